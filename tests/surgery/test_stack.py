"""Small tensors computed as a batch: the same bits, the same words, and an executor that keeps order and promises."""

import itertools

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.chain import parse_chain
from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.fitting import originals
from paramcli.fitting.claims import Claim, claim_check
from paramcli.fitting.fit import Fitting, fit
from paramcli.fitting.originals import evaluate
from paramcli.fitting.skeleton import outline
from paramcli.registry import PARAMETRIZATIONS, target_class
from paramcli.spelling.forms import detect
from paramcli.spelling.given import with_chain
from paramcli.surgery import execute
from paramcli.surgery.edits.remove_work import Bake
from paramcli.view import IDENTITY, parse_view

CHAINS = ("skew", "symmetric", "skew,cayley")


def rotations(count, n, dtype=torch.float32):
    A = torch.randn(count, n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).triu(1) / n**0.5
    A, I = A - A.mT, torch.eye(n, dtype=torch.float64)
    return [Q.contiguous() for Q in torch.linalg.solve(I - A, I + A).to(dtype)]


def fitted_together(tensors, chain, view):
    """What `Fitting` makes of a stack: (original, value, what became of it) of each tensor."""
    W, shape = torch.stack([view.into(W) for W in tensors]), tensors[0].shape
    fitting = Fitting(chain, IDENTITY, W.shape, W.dtype, seed=None, count=len(tensors))
    state, values = fitting.make(W)
    for X, value, became in zip(state["original"], values, fitting.result(), strict=True):
        yield view.back(X, shape), view.back(value, shape), became


def test_every_entry_that_stacks_is_tested_here():
    """The chains below hold each of them, and none has buffers, which a stack could not give back."""
    stacking = {name for name, entry in PARAMETRIZATIONS.items() if target_class(entry).stacks}
    assert stacking == {link.entry.name for text in CHAINS for link in parse_chain(text).links}
    for text in CHAINS:
        assert set(outline(parse_chain(text), (4, 4), torch.float32)) == {"original"}


@pytest.mark.parametrize(
    "text, n, dtype", list(itertools.product(CHAINS, (1, 3, 64, 128), (torch.float32, torch.float64, torch.bfloat16)))
)
def test_a_stack_gives_each_tensor_the_bits_it_gets_alone(text, n, dtype):
    """Baked and fitted: a batch of kernels and one kernel at a time agree bit for bit."""
    chain, generator = parse_chain(text), torch.Generator().manual_seed(0)
    tensors = [(torch.randn(n, n, generator=generator) / max(n, 1) ** 0.5).to(dtype) for _ in range(5)]
    X = torch.stack(tensors)
    values, claim = (
        evaluate(chain, IDENTITY, X.shape, {"original": X}, dtype),
        Claim(chain, IDENTITY, X.shape, dtype, count=5),
    )
    claim.add(values, {"original": X})
    for X, value, check in zip(tensors, values, claim.result(), strict=True):
        assert torch.equal(value, evaluate(chain, IDENTITY, X.shape, {"original": X}, dtype))
        assert check.ok and check.tolerance == claim_check(chain, IDENTITY, value, {"original": X}).tolerance
    weights = rotations(5, n, dtype) if text.endswith("cayley") else tensors
    for W, (original, value, became) in zip(weights, fitted_together(weights, chain, IDENTITY), strict=True):
        alone = fit(W, chain, IDENTITY)
        assert torch.equal(original, alone.state["original"]) and torch.equal(value, alone.value)
        assert became.moved == pytest.approx(alone.moved, rel=1e-12)
        assert became.check.residual == pytest.approx(alone.check.residual, rel=1e-6)
        assert became.check.tolerance == alone.check.tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_file_of_small_matrices_bakes_to_what_each_is_alone(dtype, tmp_path, paramcli):
    """Whatever their side, odd ones too, which LAPACK would round otherwise at another place in a batch."""
    torch.manual_seed(0)
    state = {f"{n}.{i}": torch.randn(n, n, dtype=dtype) for n in (2, 9, 16, 17, 31, 64) for i in range(4)}
    save_file({f"{name}.parametrizations.weight.original": X for name, X in state.items()}, tmp_path / "a.safetensors")
    paramcli("remove", tmp_path / "a.safetensors", "--chain", "skew,cayley", "-o", tmp_path / "b.safetensors")
    for name, value in load_file(tmp_path / "b.safetensors").items():
        A = state[name.removesuffix(".weight")].triu(1)
        A, I = A - A.T, torch.eye(len(A), dtype=dtype)
        assert torch.equal(value, torch.linalg.solve(I - A, I + A)), name


def test_views_are_stacked_as_the_maths_sees_them():
    """The gates of several recurrent kernels are one batch of matrices."""
    chain, view = parse_chain("skew,cayley"), parse_view("blocks=4")
    kernels = [torch.cat(rotations(4, 8)) * (1 + 0.01 * index) for index in range(3)]
    for W, (original, value, _) in zip(kernels, fitted_together(kernels, chain, view), strict=True):
        alone = fit(W, chain, view)
        assert torch.equal(original, alone.state["original"]) and value.shape == W.shape


def test_what_one_tensor_is_refused_for_is_told_of_it_alone(tmp_path, paramcli):
    """Among twenty that work, one with determinant -1 is named with its own reason, and nothing is written."""
    weights = rotations(20, 6)
    weights[7] = weights[7] * torch.tensor([-1.0, 1, 1, 1, 1, 1])
    save_file({f"l.{index:02d}.weight": W for index, W in enumerate(weights)}, tmp_path / "a.safetensors")
    said = paramcli("add", tmp_path / "a.safetensors", "-t", "*", "--chain", "skew,cayley", code=3).err
    assert "l.07.weight" in said and "determinant" in said
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_whole_file_of_small_tensors_is_batched_and_unchanged_in_meaning(tmp_path, paramcli, monkeypatch):
    """Many tensors of two shapes reach the maths in few calls, are reported in order, and bake to torch's
    own values.
    """
    weights = {f"l.{index:02d}.weight": W for index, W in enumerate(rotations(15, 6) + rotations(15, 8))}
    save_file({**weights, "bias": torch.ones(3)}, tmp_path / "a.safetensors")
    calls = []
    real = originals.loaded
    monkeypatch.setattr(originals, "loaded", lambda *arguments: calls.append(arguments[2][0]) or real(*arguments))
    told = paramcli(
        "add",
        tmp_path / "a.safetensors",
        "-t",
        "l.*",
        "--chain",
        "skew,cayley",
        "-o",
        tmp_path / "b.safetensors",
        "--json",
    ).json
    assert [t["tensor"] for t in told["tensors"]] == list(weights)
    paramcli("remove", tmp_path / "b.safetensors", "-o", tmp_path / "c.safetensors")
    assert calls == [15, 15, 15, 15]
    baked = load_file(tmp_path / "c.safetensors")
    for name, W in weights.items():
        assert (baked[name] - W).abs().max() < 2e-6


@pytest.mark.parametrize("threads", [2, 3, 40])
@pytest.mark.parametrize("part", [1, 144, 1000, 1 << 17])
def test_parts_of_a_stack_give_the_bits_of_the_whole(threads, part, monkeypatch, tmp_path):
    """However many threads share a stack, in whatever parts, each matrix comes out as it does alone, and in
    its place.
    """
    monkeypatch.setattr(execute, "SHARED_OUT", 0)
    monkeypatch.setattr(execute, "PART", part)
    Xs = {f"l.{index:02d}": torch.randn(12, 12) for index in range(17)}
    save_file({f"{name}.parametrizations.weight.original": X for name, X in Xs.items()}, tmp_path / "a.safetensors")
    before = torch.get_num_threads()
    with open_checkpoint(tmp_path / "a.safetensors") as source:
        groups = with_chain(list(detect(source.tensors).values()), parse_chain("skew,cayley"), IDENTITY, named=True)
        made = execute.by_parts([Bake().plan(group) for group in groups], source, "cpu", "same", threads)
    assert len(made) == 17 and torch.get_num_threads() == before
    for (name, X), (tensors, told) in zip(Xs.items(), made, strict=True):
        value = evaluate(parse_chain("skew,cayley"), IDENTITY, X.shape, {"original": X}, X.dtype)
        assert torch.equal(tensors[f"{name}.weight"], value) and told.residual <= told.tolerance


def test_batches_keep_within_their_budget(monkeypatch):
    """Stackable steps of one key fill batches up to the budget; another key, and a step that does not stack, stand
    apart.
    """
    from types import SimpleNamespace

    def step(key, nbytes):
        return SimpleNamespace(stack_key=key, nbytes=nbytes)

    monkeypatch.setattr(execute, "STACK_BYTES", 100)
    steps = [step("a", 40), step("b", 40), step("a", 40), step(None, 40), step("a", 40), step("a", 200), step("a", 40)]
    got = [[number for number, _ in batch] for batch in execute.batched(list(enumerate(steps)))]
    assert got == [[0, 2], [1], [3], [4], [5], [6]]


@pytest.mark.parametrize(
    "shape, chain, expected",
    [
        ((64, 64), "skew,cayley", 1),
        ((512, 512), "skew,cayley", 2),
        ((512, 512), "weight_norm:dim=0", 1),
        ((512, 512), "symmetric", 1),
        ((512, 512), "weight_norm:dim=none", 2),
        ((512, 512), None, 2),
    ],
)
def test_threads_are_a_function_of_shape_and_chain(shape, chain, expected):
    """One for what is small or a mere pass over memory, torch's number where it matters; it is given back."""
    from types import SimpleNamespace

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        step = SimpleNamespace(group=SimpleNamespace(shape=shape), chain=chain and parse_chain(chain), edits=())
        with execute.threads_for(step):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_bakes_called_independent_of_threads_are():
    """Weight norm by rows and masks give the same bits with one thread and with two."""
    before = torch.get_num_threads()
    v, g = torch.randn(700, 300, generator=torch.Generator().manual_seed(0)), torch.rand(700, 1)
    mask = torch.rand(700, 300) > 0.5
    cases = [
        ("weight_norm", {"original0": g, "original1": v}),
        ("mask", {"original": v, "0.mask": mask}),
        ("symmetric", {"original": v[:300]}),
    ]
    try:
        for text, state in cases:
            values = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                values.append(
                    evaluate(
                        parse_chain(text),
                        IDENTITY,
                        (700, 300) if text != "symmetric" else (300, 300),
                        state,
                        torch.float32,
                    )
                )
            assert torch.equal(*values)
    finally:
        torch.set_num_threads(before)


def test_an_evaluated_tensor_is_not_kept_by_the_module_that_evaluated_it():
    """torch's parametrized modules are cycles; with the collector off the originals still go when they are let go."""
    import gc
    import weakref

    gc.disable()
    try:
        v = torch.randn(4, 4)
        kept = weakref.ref(v)
        evaluate(
            parse_chain("weight_norm"), IDENTITY, (4, 4), {"original0": torch.ones(4, 1), "original1": v}, torch.float32
        )
        del v
        assert kept() is None
    finally:
        gc.enable()
