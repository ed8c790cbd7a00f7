"""Small tensors computed as a batch: the same bits, the same words, and an executor that keeps order and promises."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

from paramcli.chain import parse_chain
from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.errors import ParamcliError
from paramcli.fitting import originals
from paramcli.fitting.blocks import stackable
from paramcli.fitting.fit import Fitting, fit
from paramcli.fitting.originals import evaluate
from paramcli.fitting.torch_module import require_fit
from paramcli.maths.base import CannotReach
from paramcli.maths.orthogonal import Cayley
from paramcli.registry import PARAMETRIZATIONS, target_class
from paramcli.spelling.forms import detect
from paramcli.spelling.given import with_chain
from paramcli.surgery import execute
from paramcli.surgery.edits.remove_work import Bake
from paramcli.view import IDENTITY, parse_view

from .test_edges import half_turns

# A link of each kind that torch's kernels give a batch as they do one matrix; the others have a module for each tensor.
BATCHED = ("skew", "symmetric", "skew,cayley")
SHAPES = ((16, 16), (64, 64), (128, 128), (9, 9), (32, 48), (48, 32), (32, 16, 3), (16, 16, 3, 3), (256, 128, 3))


def rotations(count, n, dtype=torch.float32):
    A = torch.randn(count, n, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).triu(1) / n**0.5
    A, I = A - A.mT, torch.eye(n, dtype=torch.float64)
    return [Q.contiguous() for Q in torch.linalg.solve(I - A, I + A).to(dtype)]


def fitted_together(tensors, chain, view, seeds=None):
    """What `Fitting` makes of a stack: (tensors by role, value, what became of it) of each tensor."""
    W, shape = torch.stack([view.into(W) for W in tensors]), tensors[0].shape
    seeds = seeds or [0] * len(tensors)
    fitting = Fitting(chain, IDENTITY, W.shape, W.dtype, seed=seeds, count=len(tensors))
    state, values = fitting.make(W)
    for index, became in enumerate(fitting.result()):
        own = {role: view.back(tensor[index], shape) for role, tensor in state.items()}
        yield own, view.back(values[index], shape), became


def same(one, other):
    """Are two tensors equal, bit for bit?"""
    one, other = (T.contiguous().reshape(-1).view(torch.uint8) for T in (one, other))
    return torch.equal(one, other)


def test_the_links_that_make_a_batch_are_tested_here():
    stacking = {name for name, entry in PARAMETRIZATIONS.items() if target_class(entry).stacks}
    assert stacking == {link.entry.name for text in BATCHED for link in parse_chain(text).links}


def cases():
    texts = [text for entry in PARAMETRIZATIONS.values() for text in entry.examples or (entry.name,)]
    for text in dict.fromkeys([*BATCHED, *texts, "skew,matrix_exp"]):
        for shape in SHAPES:
            try:
                chain = parse_chain(text).at(shape)
                require_fit(chain, IDENTITY, shape, torch.float32)
                if any(stackable(chain, IDENTITY, shape, dtype) for dtype in DTYPES):
                    yield text, shape
            except ParamcliError:
                pass


DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def drawn(text, shape, dtype):
    """Tensors for a chain: near rotations, where it takes nothing else as it is."""
    if text == "skew,cayley" and len(shape) == 2:
        return rotations(5, shape[-1], dtype)
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype) for _ in range(5)]


def alone(W, chain, seed):
    try:
        return fit(W, chain, IDENTITY, seed=seed)
    except ParamcliError:
        return None


@pytest.mark.parametrize("text, shape", list(cases()))
def test_together_each_tensor_gets_the_bits_that_it_gets_alone(text, shape):
    """Fitted and baked, of every entry: what is stored, the value, and what is said of it. What several cannot be told
    of they are told alone.
    """
    chain = parse_chain(text).at(shape)
    for dtype in DTYPES:
        if not stackable(chain, IDENTITY, shape, dtype):
            continue
        weights = drawn(text, shape, dtype)
        found = [(W, seed, one) for seed, W in enumerate(weights, 11) if (one := alone(W, chain, seed)) is not None]
        if len(found) < 2:
            continue  # of such tensors there is nothing to compare
        weights, seeds, expected = zip(*found, strict=True)
        try:
            made = list(fitted_together(weights, chain, IDENTITY, seeds))
        except ParamcliError:
            continue  # one of them is told something: `execute.together` finds it by halves
        states = {role: torch.stack([own[role] for own, _, _ in made]) for role in made[0][0]}
        baked = evaluate(chain, IDENTITY, (len(made), *shape), states, dtype, together=True)
        for (own, value, became), one, together in zip(made, expected, baked, strict=True):
            assert same(together, evaluate(chain, IDENTITY, shape, own, dtype))
            if became is None:
                continue
            assert own.keys() == one.state.keys() and all(same(own[role], one.state[role]) for role in own)
            assert same(value, one.value) and same(together, value)
            assert became.moved == pytest.approx(one.moved, rel=1e-12) and became.note == one.note
            assert (became.check is None) == (one.check is None)
            if one.check is not None:
                assert became.check.residual == pytest.approx(one.check.residual, rel=1e-6)
                assert became.check.tolerance == one.check.tolerance


def test_most_entries_are_computed_together():
    """84 of them when this was written: the test above is about something."""
    assert len({text.partition(":")[0] for text, _ in cases()}) >= 80


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


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("put", [weight_norm, orthogonal, spectral_norm], ids=lambda put: put.__name__)
def test_torch_s_own_modules_bake_to_their_weights_together(put, suffix, tmp_path, paramcli):
    """Bit for bit, also of a base that torch holds column by column, which a .pt tells and a safetensors file does
    not.
    """
    torch.manual_seed(0)
    layers = nn.ModuleList(put(nn.Linear(16, 16)) for _ in range(5)).eval()
    given, out = tmp_path / f"a.{suffix}", tmp_path / "b.safetensors"
    state = layers.state_dict()
    if suffix == "pt":
        torch.save(state, given)
    else:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, given)
    paramcli("remove", given, "--chain", put.__name__, "-o", out)
    baked = load_file(out)
    for index, layer in enumerate(layers):
        assert same(baked[f"{index}.weight"], layer.weight.detach()), index


def test_views_are_stacked_as_the_maths_sees_them():
    """The gates of several recurrent kernels are one batch of matrices."""
    chain, view = parse_chain("skew,cayley"), parse_view("blocks=4")
    kernels = [torch.cat(rotations(4, 8)) * (1 + 0.01 * index) for index in range(3)]
    for W, (own, value, _) in zip(kernels, fitted_together(kernels, chain, view), strict=True):
        one = fit(W, chain, view)
        assert torch.equal(own["original"], one.state["original"]) and value.shape == W.shape


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
    real = originals.loaded_together
    monkeypatch.setattr(
        originals, "loaded_together", lambda *arguments: calls.append(arguments[2][0]) or real(*arguments)
    )
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


def each_alone(paramcli, tmp_path, state, *arguments, command="add"):
    """What the command makes of every tensor in a file of its own, and says of it."""
    made, told = {}, []
    for name, W in state.items():
        save_file({name: W}, tmp_path / "one.safetensors")
        out = tmp_path / "one.out.safetensors"
        told += paramcli(command, tmp_path / "one.safetensors", *arguments, "-f", "-o", out, "--json").json["tensors"]
        made |= load_file(out)
    return made, told


def said(one):
    return {key: value for key, value in one.items() if key not in ("moved", "residual")}


def mixed():
    """Members of their sets and others, in one file."""
    Q = rotations(3, 16)
    chance = torch.Generator().manual_seed(3)
    others = [torch.randn(16, 16, generator=chance) for _ in range(4)]
    return {f"l.{i}.weight": W for i, W in enumerate([torch.eye(16), *others[:2], 1.5 * Q[0], Q[1], *others[2:], Q[2]])}


@pytest.mark.parametrize(
    "chain", ["spectral_norm", "orthogonal", "skew,cayley", "weight_norm", "lora:rank=4", "prune_random:amount=0.5"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_command_makes_of_many_what_it_makes_of_each(chain, dtype, tmp_path, paramcli):
    """Members and others among them: the same bytes and the same words."""
    state = {name: W.to(dtype) for name, W in mixed().items()}
    save_file(state, tmp_path / "a.safetensors")
    arguments = ("-t", "*", "--chain", chain)
    told = paramcli("add", tmp_path / "a.safetensors", *arguments, "-o", tmp_path / "b.safetensors", "--json").json
    made, alone_told = each_alone(paramcli, tmp_path, state, *arguments)
    together = load_file(tmp_path / "b.safetensors")
    assert together.keys() == made.keys() and all(same(together[key], made[key]) for key in made)
    assert [said(one) for one in told["tensors"]] == [said(one) for one in alone_told]


def test_logarithms_of_both_kinds_are_found_among_each_other(tmp_path, paramcli):
    """Of rotations and of positive definite matrices, each by its own: what is next to the identity is both,
    and its own nearer kind.
    """
    spd = [torch.matrix_exp((A + A.T) / 2) for A in torch.randn(3, 16, 16, dtype=torch.float64) / 8]
    one, two, three = rotations(3, 16, torch.float64)
    eye = torch.eye(16, dtype=torch.float64)
    kinds = [one, eye + 1e-12 * (spd[0] + spd[0].T), two, three, *spd, eye]
    state = {f"l.{index}.weight": W for index, W in enumerate(kinds)}
    save_file(state, tmp_path / "a.safetensors")
    arguments = ("-t", "*", "--chain", "matrix_exp")
    paramcli("add", tmp_path / "a.safetensors", *arguments, "-o", tmp_path / "b.safetensors")
    made, _ = each_alone(paramcli, tmp_path, state, *arguments)
    together = load_file(tmp_path / "b.safetensors")
    assert together.keys() == made.keys() and all(same(together[key], made[key]) for key in made)
    for name, W in state.items():
        X = together[f"{name.removesuffix('.weight')}.parametrizations.weight.original"]
        assert torch.allclose(torch.matrix_exp(X), W, atol=1e-10)


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_right_inverse_that_does_not_come_back_is_refused(count, dtype, monkeypatch):
    """Off by a ten-thousandth: more than an exact inverse is, and less than what is told of a value."""
    chain, real = parse_chain("skew,cayley"), Cayley.inverse
    weights = rotations(count, 16, dtype)
    monkeypatch.setattr(Cayley, "inverse", lambda self, Q: real(self, Q) * (1 + 1e-4))
    with pytest.raises(CannotReach, match="comes back"):
        if count == 1:
            fit(weights[0], chain, IDENTITY)
        else:
            list(fitted_together(weights, chain, IDENTITY))


def test_matrices_of_one_tensor_near_an_edge_are_judged_one_by_one(tmp_path, paramcli):
    """A gate that has to keep away from a half turn, among three that do not."""
    torch.manual_seed(1)
    state = {f"l{index}.weight": torch.randn(64, 16).bfloat16() for index in range(6)}
    save_file(state, tmp_path / "a.safetensors")
    arguments = ("-t", "*", "--chain", "skew,cayley", "--view", "blocks=4")
    told = paramcli("add", tmp_path / "a.safetensors", *arguments, "-o", tmp_path / "b.safetensors", "--json").json
    made, alone_told = each_alone(paramcli, tmp_path, state, *arguments)
    together = load_file(tmp_path / "b.safetensors")
    assert all(same(together[key], made[key]) for key in made)
    assert [said(one) for one in told["tensors"]] == [said(one) for one in alone_told]
    assert any("of 4 matrices" in one.get("note", "") for one in alone_told)


def test_each_tensor_has_its_own_mask(tmp_path, paramcli):
    """The file's, and a mask that does not fit is refused for the tensor that it is of."""
    masks = {"a.weight": torch.eye(16), "b.weight": 1 - torch.eye(16)}
    save_file({name: torch.randn(16, 16) for name in masks}, tmp_path / "a.safetensors")
    save_file(masks, tmp_path / "m.safetensors")
    line = ["add", tmp_path / "a.safetensors", "-t", "*", "--mask", tmp_path / "m.safetensors", "--chain"]
    for chain, link in (("mask", 0), ("weight_norm,mask", 1)):
        out = tmp_path / f"{link}.safetensors"
        paramcli(*line, chain, "-o", out)
        made = load_file(out)
        for name, mask in masks.items():
            module = name.removesuffix(".weight")
            assert torch.equal(made[f"{module}.parametrizations.weight.{link}.mask"].float(), mask)
    save_file({**masks, "b.weight": torch.ones(4, 4)}, tmp_path / "m.safetensors")
    assert "b.weight" in paramcli(*line, "mask", "-o", tmp_path / "c.safetensors", code=3).err


def test_edits_of_a_recipe_keep_their_seeds_and_dtypes_apart(tmp_path, paramcli):
    """Tensors of one kind in edits that differ in what no chain says."""
    state = {f"l{index}.weight": torch.randn(16, 16) for index in range(4)}
    save_file(state, tmp_path / "a.safetensors")
    edits = [
        f'[[edit]]\ncommand = "add"\ntensor = ["l{a}.weight", "l{a + 1}.weight"]\n'
        f'chain = "lora:rank=4"\nseed = {seed}\n'
        for a, seed in ((0, 1), (2, 2))
    ]
    (tmp_path / "r.toml").write_text("".join(edits))
    paramcli("apply", tmp_path / "r.toml", tmp_path / "a.safetensors", "-o", tmp_path / "b.safetensors")
    both = load_file(tmp_path / "b.safetensors")
    for seed, names in ((1, "l0 l1"), (2, "l2 l3")):
        out = tmp_path / f"{seed}.safetensors"
        wanted = [argument for name in names.split() for argument in ("-t", f"{name}.weight")]
        paramcli("add", tmp_path / "a.safetensors", *wanted, "--chain", "lora:rank=4", "--seed", seed, "-o", out)
        for key, tensor in load_file(out).items():
            assert key.endswith(".weight") or torch.equal(both[key], tensor), key
    bakes = [
        f'[[edit]]\ncommand = "remove"\ntensor = ["l{a}.weight", "l{a + 1}.weight"]\nbake = true\n{dtype}'
        for a, dtype in ((0, ""), (2, 'dtype = "float16"\n'))
    ]
    (tmp_path / "bake.toml").write_text("".join(bakes))
    paramcli("apply", tmp_path / "bake.toml", tmp_path / "b.safetensors", "-o", tmp_path / "c.safetensors")
    assert [tensor.dtype for _, tensor in sorted(load_file(tmp_path / "c.safetensors").items())] == [
        torch.float32,
        torch.float32,
        torch.float16,
        torch.float16,
    ]


def test_threads_that_share_a_file_draw_nothing(monkeypatch, tmp_path, paramcli):
    """torch has one generator for all of them: what is drawn for a tensor is drawn from its own seed, whatever the
    threads.
    """
    monkeypatch.setattr(execute, "SHARED_OUT", 0)
    monkeypatch.setattr(execute, "PART", 64 * 64)
    save_file({f"l.{index:03d}.weight": torch.randn(64, 64) for index in range(120)}, tmp_path / "a.safetensors")
    before, made = torch.get_num_threads(), []
    try:
        for threads in (1, 4, 4):
            torch.set_num_threads(threads)
            out = tmp_path / f"{len(made)}.safetensors"
            paramcli("add", tmp_path / "a.safetensors", "-t", "*", "--chain", "lora:rank=8", "-o", out)
            made.append(out.read_bytes())
    finally:
        torch.set_num_threads(before)
    assert made[0] == made[1] == made[2]


def test_batches_keep_within_their_budget(monkeypatch):
    """Stackable steps of one key fill batches up to the budget; another key, and a step that does not stack, stand
    apart.
    """
    from types import SimpleNamespace

    def step(key, nbytes, ranges=()):
        return SimpleNamespace(stack_key=key, nbytes=nbytes, ranges=ranges)

    monkeypatch.setattr(execute, "STACK_BYTES", 100)
    steps = [step("a", 40), step("b", 40), step("a", 40), step(None, 40), step("a", 40), step("a", 200), step("a", 40)]
    steps.append(step("a", 40, ranges=((0, 1), (1, 2))))
    got = [[number for number, _ in batch] for batch in execute.batched(list(enumerate(steps)))]
    assert got == [[0, 2], [1], [3], [4], [5], [6], [7]]


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


def test_of_several_those_are_judged_that_are_asked():
    """By their own originals, and against their own points."""
    A = torch.stack([Q - Q.mT for Q in rotations(4, 8, torch.float64)])
    chain, judged = parse_chain("skew"), []
    part = chain.links[0].make(A)
    trip = originals.Trip(lambda index, back, wanted: judged.append((back, wanted)), 0, part, (A.triu(1),), A + 1)
    trip.judge([2, 3])
    [(back, wanted)] = judged
    assert torch.equal(back, A[[2, 3]]) and torch.equal(wanted, A[[2, 3]] + 1)
    trip.judge()
    assert torch.equal(judged[1][0], A)


def test_those_near_an_edge_keep_their_own_seeds(monkeypatch):
    """What they are made of again is asked by their places among those, and seeds are of the whole stack."""
    tensors = rotations(5, 16)
    for index in (1, 3, 4):
        tensors[index] = half_turns(16, 1, index, gap=3e-4).float().contiguous()
    asked = []

    def none_is_reached(chain, stored, nearest, make, compute, tried):
        asked.extend(make(among).keywords["seed"] for among in ([0, 1, 2], [0, 2], [1, 2]))
        assert len(tried.found) == len(tried.value) == len(nearest) == 3
        raise CannotReach("nothing")

    monkeypatch.setattr("paramcli.fitting.fit.reach_several", none_is_reached)
    list(fitted_together(tensors, parse_chain("skew,cayley"), IDENTITY, [10, 11, 12, 13, 14]))
    assert asked == [[11, 13, 14], [11, 14], [13, 14]]
