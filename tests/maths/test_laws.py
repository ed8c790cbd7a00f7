"""Laws that every entry of the table keeps: sets first, then maps. Abilities, examples and tolerances come from the
entries.
"""

import itertools
import math
import zlib

import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.dtypes import code_of
from paramcli.errors import InputRefused
from paramcli.fitting import blocks as rows
from paramcli.fitting import measure
from paramcli.fitting.claims import Claim, claim_check
from paramcli.fitting.fit import fit
from paramcli.fitting.originals import evaluate, register_raw, widened
from paramcli.fitting.skeleton import outline
from paramcli.fitting.torch_module import bare, register, roles
from paramcli.maths.base import Parametrization
from paramcli.maths.norm import SpectralNorm
from paramcli.maths.rows import FEW, ROW_STEP, row_blocks
from paramcli.registry import CONSTRAINTS, PARAMETRIZATIONS, parse_constraint, target_class, within
from paramcli.registry import constraint as make
from paramcli.view import IDENTITY, View, parse_view

from .devices import only_explicit_devices

# Square, tall, wide, one row, batches of each, a convolution, a vector.
SHAPES = [(6, 6), (8, 4), (4, 8), (1, 8), (3, 4, 4), (2, 8, 4), (4, 4, 3, 3), (8,)]
REAL = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SEEDS = range(3)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fits(spec: str, shape: tuple[int, ...]) -> bool:
    try:
        make(spec).check_shape(torch.Size(shape))
    except InputRefused:
        return False
    return True


def chain_fits(text: str, shape: tuple[int, ...]) -> bool:
    for link in parse_chain(text).links:
        try:
            target_class(link.entry).check_shape(torch.Size(shape), **link.arguments)
        except InputRefused:
            return False
        if not fits(link.domain, shape) or not fits(link.image, shape):
            return False
    return True


SPECS = [spec for entry in CONSTRAINTS.values() for spec in entry.examples or (entry.name,)]
SETS = [(spec, shape) for spec in SPECS for shape in SHAPES if fits(spec, shape)]
# An entry that is another name for one of these has the same class and maps: test_registry holds it to that.
CHAINS = [
    chain for entry in PARAMETRIZATIONS.values() if not entry.same_as for chain in entry.examples or (entry.name,)
]
MAPS = [(chain, shape) for chain in CHAINS for shape in SHAPES if chain_fits(chain, shape)]


def last_class(chain: str) -> type:
    return target_class(parse_chain(chain).links[-1].entry)


def dtypes_of(chain: str) -> list[torch.dtype]:
    links = parse_chain(chain).links
    return [d for d in (*REAL, torch.complex64) if all(link.complex if d.is_complex else link.real for link in links)]


def dtypes_of_set(spec: str) -> list[torch.dtype]:
    entry = parse_constraint(spec)[0]
    return [d for d in (*REAL, torch.complex64) if (entry.complex if d.is_complex else entry.real)]


def double(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def single(chain: str) -> torch.dtype:
    return torch.float32 if torch.float32 in dtypes_of(chain) else torch.complex64


def widest(dtypes: list[torch.dtype]) -> torch.dtype:
    """float64, or complex128 for what is defined on complex tensors only."""
    return torch.float64 if torch.float64 in dtypes else torch.complex128


def member(spec: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return make(spec).sample(torch.Size(shape), generator(seed), dtype or widest(dtypes_of_set(spec)))


def weight(chain: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> torch.Tensor:
    """A weight the chain can be fitted to: random where its set has nearest points, else a member of the set."""
    image = parse_chain(chain).constraint
    if image is not None and make(image).projection != "nearest":
        return member(image, shape, seed, double(dtype)).to(dtype)
    W = torch.randn(shape, generator=generator(seed), dtype=double(dtype))
    # The only 1 x 1 rotation is 1, and -1 is rightly refused.
    return (W.abs() if shape[-2:] == (1, 1) else W).to(dtype)


def test_every_entry_is_exercised():
    """No entry escapes: each example is a chain that ends in its entry, and some shape fits it."""
    for table, examples in ((CONSTRAINTS, SETS), (PARAMETRIZATIONS, MAPS)):
        covered = {text.rpartition(",")[2].partition(":")[0] for text, _ in examples}
        assert covered == {name for name, entry in table.items() if not getattr(entry, "same_as", None)}


# --- sets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "shape", "dtype"), [(s, n, d) for s, n in SETS for d in dtypes_of_set(s)], ids=str)
def test_members_rounded_to_storage_are_accepted(spec, shape, dtype):
    """A member computed in float64 and rounded once to its storage dtype is within the tolerance."""
    for seed in SEEDS:
        check = measure.check(spec, member(spec, shape, seed, double(dtype)).to(dtype))
        assert check.ok, check


@pytest.mark.parametrize(("spec", "shape", "dtype"), [(s, n, d) for s, n in SETS for d in dtypes_of_set(s)], ids=str)
def test_near_misses_are_rejected(spec, shape, dtype):
    """What is close to the set and not in it is rejected in every dtype, bfloat16 included."""
    for seed in SEEDS:
        for label, tensor in make(spec).near_misses(member(spec, shape, seed, double(dtype))).items():
            check = measure.check(spec, tensor.to(dtype))
            assert not check.ok, (label, check)


@pytest.mark.parametrize("spec", SPECS)
def test_every_set_names_near_misses(spec):
    """A set that rejects nothing proves nothing."""
    assert any(make(spec).near_misses(member(spec, shape, 0)) for s, shape in SETS if s == spec)


@pytest.mark.parametrize(("spec", "shape"), [(s, n) for s, n in SETS if make(s).projection != "none"], ids=str)
def test_projection_lands_in_the_set_and_is_idempotent(spec, shape):
    """project(X) lies in the set, and projecting again changes nothing."""
    for seed in SEEDS:
        P = make(spec).project(weight_near(spec, shape, seed))
        assert P.shape == shape and measure.check(spec, P).ok
        assert measure.moved(make(spec).project(P), P) < 1e-9


def weight_near(spec: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A random tensor, or where some have no nearest point one not far from a member."""
    W = torch.randn(shape, generator=generator(seed), dtype=widest(dtypes_of_set(spec)))
    return W if make(spec).projection == "nearest" else member(spec, shape, seed) + 0.5 * W


@pytest.mark.parametrize(("spec", "shape"), [(s, n) for s, n in SETS if make(s).projection == "nearest"], ids=str)
def test_no_random_member_is_nearer_than_the_projection(spec, shape):
    """The projection is the nearest point: no member found at random, or near it, is closer."""
    X = weight_near(spec, shape, 3)
    P = make(spec).project(X)
    best = torch.linalg.vector_norm(P - X)
    for seed in range(40):
        assert torch.linalg.vector_norm(member(spec, shape, seed) - X) >= best - 1e-9
        nudge = 10.0 ** -(1 + seed % 4) * torch.randn(shape, generator=generator(seed), dtype=X.dtype)
        try:
            other = make(spec).project(P + nudge)
        except InputRefused:
            continue
        assert torch.linalg.vector_norm(other - X) >= best - 1e-9


@pytest.mark.parametrize(("spec", "shape"), SETS, ids=str)
def test_inclusions_of_the_table_are_true(spec, shape):
    """A member of a set is a member of every set the table says contains it (those that need no arguments)."""
    for other, entry in CONSTRAINTS.items():
        if (
            spec.partition(":")[0] != other
            and within(spec.partition(":")[0], other)
            and not any(a.required for a in entry.arguments)
        ):
            check = measure.check(other, member(spec, shape, 0))
            assert check.ok, check


@pytest.mark.parametrize("spec", [s for s in SPECS if not make(s).whole and ((s, (3, 4, 4)) in SETS)])
def test_a_batch_measures_as_its_matrices(spec):
    """The residual of a batch is the residual of each of its matrices, members or not."""
    batch = torch.stack(
        [
            member(spec, (4, 4), 0),
            *list(make(spec).near_misses(member(spec, (4, 4), 1)).values())[:1],
            member(spec, (4, 4), 2),
        ]
    )
    wanted = torch.stack([make(spec).residual(W) for W in batch])
    torch.testing.assert_close(make(spec).residual(batch), wanted, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("spec", "shape"), SETS, ids=str)
def test_sets_stay_on_their_device(spec, shape):
    """Residual, projection and details create no tensor without saying where."""
    W = member(spec, shape, 0)
    with only_explicit_devices():
        make(spec).residual(W)
        make(spec).detail(1.5 * W)
        if make(spec).projection != "none":
            make(spec).project(W)


# --- maps -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("chain", "shape", "dtype"), [(c, s, d) for c, s in MAPS for d in dtypes_of(c)], ids=str)
def test_fit_lies_in_the_image_and_promises_hold(chain, shape, dtype):
    """The fitted value keeps shape and dtype, lies in the chain's image, and evaluates from what is stored."""
    for seed in SEEDS[:2]:
        W = weight(chain, shape, seed, dtype)
        fitted = fit(W, parse_chain(chain), IDENTITY)
        assert fitted.value.dtype == dtype and fitted.value.shape == W.shape
        assert fitted.check is None or fitted.check.ok
        again = evaluate(parse_chain(chain), IDENTITY, shape, fitted.state, dtype)
        assert torch.equal(again, fitted.value)


@pytest.mark.parametrize(
    ("chain", "shape", "dtype"), [(c, s, d) for c, s in MAPS if not last_class(c).random for d in dtypes_of(c)], ids=str
)
def test_fit_is_idempotent(chain, shape, dtype):
    """A weight that is a value of the chain is kept to rounding: f(r(f(r(W)))) = f(r(W))."""
    first = fit(weight(chain, shape, 1, dtype), parse_chain(chain), IDENTITY)
    second = fit(first.value, parse_chain(chain), IDENTITY)
    assert second.moved <= 40 * torch.finfo(dtype).eps * (
        25 if dtype in (torch.float64, torch.float32, torch.complex64) else 1
    )


@pytest.mark.parametrize(
    ("chain", "shape"),
    [(c, s) for c, s in MAPS if last_class(c).fills_image and not last_class(c).random and parse_chain(c).constraint],
    ids=str,
)
def test_members_of_the_image_are_kept(chain, shape):
    """forward(right_inverse(Y)) = Y for members Y of the image, in float64."""
    for seed in SEEDS:
        Y = member(parse_chain(chain).constraint, shape, seed)
        assert fit(Y, parse_chain(chain), IDENTITY).moved <= 1e-9


def live(chain: str, shape: tuple[int, ...], seed: int, state: dict[str, torch.Tensor]) -> torch.nn.Module:
    """A module with the chain registered as a user would, holding this state."""
    host = register(bare(weight(chain, shape, seed, widest(dtypes_of(chain)))), "weight", parse_chain(chain), seed=0)
    host.load_state_dict({f"parametrizations.weight.{role}": t for role, t in state.items()}, strict=True)
    return host


def trained(chain: str, shape: tuple[int, ...], seed: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(tensors by role with the originals moved off the fitted ones, the entries that training moves: their gradient is
    not 0).
    """
    state = dict(fit(weight(chain, shape, seed, widest(dtypes_of(chain))), parse_chain(chain), IDENTITY).state)
    # Where a factor begins at 0 the others have no gradient before it has moved.
    state |= {role: moved_by(state[role], role, seed) for role in learnt(chain, shape) if not state[role].any()}
    host = live(chain, shape, seed, state).requires_grad_()
    direction = torch.randn(shape, generator=generator(seed + 100), dtype=host.weight.dtype)
    (host.weight * direction).sum().real.backward()
    moves = {}
    for name, parameter in host.named_parameters():
        if parameter.grad is not None:
            role = name.removeprefix("parametrizations.weight.")
            moves[role] = parameter.grad != 0
            state[role] = moved_by(parameter.detach(), role, seed + 1, moves[role])
    return state, moves


def learnt(chain: str, shape: tuple[int, ...]) -> list[str]:
    """The roles that are parameters of a live module, and no buffers."""
    host = register(bare(weight(chain, shape, 0, widest(dtypes_of(chain)))), "weight", parse_chain(chain), seed=0)
    return [name.removeprefix("parametrizations.weight.") for name, _ in host.named_parameters()]


def moved_by(original: torch.Tensor, role: str, seed: int, moves: torch.Tensor | bool = True) -> torch.Tensor:
    """An original that training moved by a third of its size, no two roles alike; of one that begins at 0 it is 1."""
    random = generator(1000 * seed + zlib.crc32(role.encode()) % 1000)
    step = torch.randn(original.shape, generator=random, dtype=double(original.dtype)).to(original.dtype)
    return original + 0.3 * (original.abs().mean() or 1.0) * step * moves


def assigns(chain: str) -> bool:
    """Is its last map onto all tensors, and its live right inverse its own? A spectral norm's takes the value for the
    original, as torch's does.
    """
    last = last_class(chain)
    own = last.right_inverse is not SpectralNorm.right_inverse
    return own and last.fills_image and not last.random and parse_chain(chain).constraint is None


@pytest.mark.parametrize(("chain", "shape"), [(c, s) for c, s in MAPS if assigns(c)], ids=str)
def test_what_makes_every_weight_can_be_assigned_any(chain, shape):
    """forward(right_inverse(Y)) = Y in float64 for any Y, also where training has moved what a link adds."""
    host = live(chain, shape, 1, trained(chain, shape, 1)[0])
    Y = torch.randn(shape, generator=generator(9), dtype=host.weight.dtype)
    with torch.no_grad():
        host.weight = Y
        assert measure.moved(host.weight, Y) <= 1e-9


@pytest.mark.parametrize(
    ("chain", "shape"), [(c, s) for c, s in MAPS if last_class(c).onto_image and parse_chain(c).constraint], ids=str
)
def test_values_of_any_originals_lie_in_the_image(chain, shape):
    """After training has moved the originals the value still lies in the image."""
    for seed in SEEDS:
        parsed, state = parse_chain(chain).at(shape), trained(chain, shape, seed)[0]
        host_value = evaluate(parsed, IDENTITY, shape, state, widest(dtypes_of(chain)))
        check = measure.check(parsed.constraint, host_value)
        assert check.ok, check


def keeps_its_weight(chain: str) -> bool:
    """Is the first link's right inverse the identity, so that its original is the weight itself?"""
    first = target_class(parse_chain(chain).links[0].entry)
    own = (first.inverse, first.right_inverse) == (Parametrization.inverse, Parametrization.right_inverse)
    return own and first.stored_originals == (0,)


@pytest.mark.parametrize(
    ("chain", "shape", "dtype"), [(c, s, d) for c, s in MAPS if keeps_its_weight(c) for d in dtypes_of(c)], ids=str
)
def test_adding_raw_and_taking_off_gives_the_weight_back(chain, shape, dtype):
    """Where mathematics allows it the round trip is exact to the bit; everywhere else test_fit_is_idempotent states the
    bound.
    """
    W = weight(chain, shape, 2, dtype)
    assert torch.equal(register_raw(W, parse_chain(chain), IDENTITY, 0)["original"].to(dtype), W)


@pytest.mark.parametrize(("chain", "shape"), MAPS, ids=str)
def test_a_file_and_a_live_module_agree(chain, shape):
    """What is written has the names, shapes and dtypes of a module registered live, and loads into it strictly."""
    parsed, W = parse_chain(chain), weight(chain, shape, 0, single(chain))
    fitted = fit(W, parsed, IDENTITY)
    module = register(bare(W.clone()), "weight", parsed, seed=0)
    live_roles = roles(module)
    planned = outline(parsed, shape, W.dtype)
    assert list(planned) == list(live_roles) and set(planned) == set(fitted.state)
    for role, tensor in planned.items():
        assert (tensor.shape, tensor.dtype) == (live_roles[role].shape, live_roles[role].dtype), role
        assert (tensor.shape, tensor.dtype) == (fitted.state[role].shape, fitted.state[role].dtype), role
        code_of(tensor.dtype)
    module.load_state_dict({f"parametrizations.weight.{role}": t for role, t in fitted.state.items()}, strict=True)
    assert torch.equal(module.weight.detach(), fitted.value)
    # Trained too, as what a link adds begins at nothing. (In eval: a power step would go on from stale vectors.)
    state = fitted.state | {role: moved_by(fitted.state[role], role, 1) for role in learnt(chain, shape)}
    module.load_state_dict({f"parametrizations.weight.{role}": t for role, t in state.items()}, strict=True)
    # In the memory of the module, as of what is read from a file (`by_columns`).
    state = {name.removeprefix("parametrizations.weight."): t for name, t in module.state_dict().items()}
    assert torch.equal(module.eval().weight.detach(), evaluate(parsed, IDENTITY, shape, state, W.dtype))


@pytest.mark.parametrize(
    "chain",
    [
        c
        for c in CHAINS
        if (c, (3, 4, 4)) in MAPS
        and (parse_chain(c).constraint is None or not make(parse_chain(c).constraint).whole)
        and not last_class(c).whole
    ],
)
def test_a_batch_is_fitted_as_its_matrices(chain):
    """Each matrix of a batch is mapped on its own."""
    batch = torch.stack([weight(chain, (4, 4), seed, widest(dtypes_of(chain))) for seed in SEEDS])
    whole = fit(batch, parse_chain(chain), IDENTITY).value
    for i in range(3):
        torch.testing.assert_close(
            whole[i], fit(batch[i].clone(), parse_chain(chain), IDENTITY).value, rtol=1e-8, atol=1e-8
        )
    # And so are values of originals that are those of the matrices, one after another.
    state = trained(chain, (3, 4, 4), 0)[0]
    alone = fit(batch[0].clone(), parse_chain(chain), IDENTITY).state
    if all(tensor.shape == (3, *alone[role].shape) for role, tensor in state.items()):
        values = evaluate(parse_chain(chain), IDENTITY, (3, 4, 4), state, batch.dtype)
        for i in range(3):
            of_one = {role: tensor[i].clone() for role, tensor in state.items()}
            value = evaluate(parse_chain(chain), IDENTITY, (4, 4), of_one, batch.dtype)
            torch.testing.assert_close(values[i], value, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("chain", [c for c in CHAINS if last_class(c).differentiable])
def test_gradients_flow(chain):
    """gradcheck in float64 through the registered chain, with respect to its originals, all of which matter."""
    for shape in (shape for c, shape in MAPS if c == chain):
        state, moves = trained(chain, shape, 5)
        if moves and all(moved.any() for moved in moves.values()):
            break
    else:
        pytest.fail("a gradient of 0 says nothing")
    host = live(chain, shape, 5, state)
    host.forward = lambda: host.weight

    def run(*steps):
        moved = {
            f"parametrizations.weight.{r}": state[r] + step * moves[r] for r, step in zip(moves, steps, strict=True)
        }
        return torch.func.functional_call(host, moved, (), strict=False)

    assert torch.autograd.gradcheck(run, [torch.zeros_like(state[role]).requires_grad_() for role in moves])


@pytest.mark.parametrize(("chain", "shape"), MAPS, ids=str)
def test_maps_stay_on_their_device(chain, shape):
    """Fitting and evaluating create no tensor without saying where, and the map runs on another device, here meta."""
    W = weight(chain, shape, 0, single(chain))
    with only_explicit_devices():
        fitted = fit(W, parse_chain(chain), IDENTITY)
    elsewhere = register(bare(W.clone()), "weight", parse_chain(chain), seed=0).to("meta")
    with only_explicit_devices():
        assert elsewhere.weight.is_meta and elsewhere.weight.shape == W.shape
    assert set(roles(elsewhere)) == set(fitted.state)


@pytest.mark.parametrize("view", ["flatten", "blocks=2", "heads=2", "transpose"])
@pytest.mark.parametrize("chain", CHAINS)
def test_views_keep_the_stored_shape(chain, view):
    """Under a view value and stored originals keep their shape, and the image is held by what the view shows."""
    seen_through = parse_view(view)
    shape = next(s for s in [(8, 8), (8, 4), (8, 16), (8, 2, 4)] if chain_fits(chain, seen_through.shape(s)))
    W = seen_through.back(weight(chain, seen_through.shape(shape), 0, single(chain)), shape).contiguous()
    fitted = fit(W, parse_chain(chain), seen_through)
    assert fitted.value.shape == W.shape and fitted.value.is_contiguous()
    stored = last_class(chain).stored_originals
    for i in stored:
        assert (
            fitted.state["original" if len(fitted.state) and "original" in fitted.state else f"original{i}"].shape
            == W.shape
        )
    if fitted.check:
        assert measure.check(fitted.check.constraint, seen_through.into(fitted.value)).ok
    again = evaluate(parse_chain(chain), seen_through, shape, widened(fitted.state, W.dtype), W.dtype)
    assert torch.equal(again, fitted.value)
    # Trained, it is the same map of what the view shows.
    state = fitted.state | {
        role: moved_by(fitted.state[role], role, 1) for role in learnt(chain, seen_through.shape(shape))
    }
    shown = {
        role: seen_through.into(t) if t.shape == W.shape and role.startswith("original") else t
        for role, t in state.items()
    }
    alone = evaluate(parse_chain(chain), IDENTITY, seen_through.shape(shape), shown, W.dtype)
    trained_value = evaluate(parse_chain(chain), seen_through, shape, state, W.dtype)
    torch.testing.assert_close(trained_value, seen_through.back(alone, shape), rtol=1e-5, atol=1e-5)


# --- rows -------------------------------------------------------------------------------------------

# Many rows, few, odd widths, kernels, a vector: each of several blocks.
TALL = [(131, 24), (96, 4, 3, 3), (77, 6, 5), (300,), (70, 128)]


def row_claims(chain: str, shape: tuple[int, ...], view: View) -> frozenset[str] | None:
    return rows.sliced_roles(parse_chain(chain), view, shape)


def views_of(shape: tuple[int, ...]) -> list[View]:
    return [IDENTITY, parse_view("flatten")] if len(shape) > 2 else [IDENTITY]


ROWS = [
    (c, n, v) for c in CHAINS for n in TALL for v in views_of(n) if chain_fits(c, v.shape(n)) and row_claims(c, n, v)
]


def blocks_of(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    ranges = row_blocks(shape, 256)
    assert len(ranges) > 1 and ranges[0][0] == 0 and ranges[-1][1] == shape[0]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ranges))
    return ranges


def test_blocks_are_those_that_no_kernel_can_tell():
    """Every block begins at a multiple of ROW_STEP entries, whatever the width, and has FEW rows at least."""
    for shape, entries in (((1000, 77), 300), ((1000, 64), 64), ((9, 3, 1024), 10**6), ((5000,), 100), ((130, 96), 1)):
        for first, end in row_blocks(shape, entries):
            assert first < end and first * math.prod(shape[1:]) % ROW_STEP == 0
            assert end - first >= min(FEW, shape[0])
    assert row_blocks((34, 64), 640) == [(0, 10), (10, 20), (20, 34)]
    assert row_blocks((34, 64), 128) == [(0, 8), (8, 16), (16, 24), (24, 34)]
    assert row_blocks((10, 64), 128) == row_blocks((10, 1), 10) == [(0, 10)]
    assert row_blocks((71, 64), 1024) == [(0, 16), (16, 32), (32, 48), (48, 71)]


def test_a_last_row_is_no_block():
    """A product of one row is another kernel's, whose sums round otherwise: of 961 rows none is left alone."""
    B, A = (torch.randn(shape, generator=generator(0)) for shape in ((961, 16), (16, 512)))
    ranges = row_blocks((961, 512), 1 << 15)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(torch.cat([B[first:end] @ A for first, end in ranges]), B @ A)
    finally:
        torch.set_num_threads(before)
    assert len(ranges) == 15 and ranges[-1] == (896, 961)


@pytest.mark.parametrize(
    ("chain", "shape", "view", "dtype"), [(*row, d) for row in ROWS for d in dtypes_of(row[0])], ids=str
)
def test_rows_alone_give_the_rows_of_the_whole(chain, shape, view, dtype):
    """Who claims to act by rows does, bit for bit and in one thread: values, the residual and, where claimed, what it
    stores.
    """
    parsed, roles = parse_chain(chain), row_claims(chain, shape, view)
    assert not any(target_class(link.entry).threads_matter(**link.arguments) for link in parsed.links)
    try:
        state = fit(weight(chain, shape, 0, dtype), parsed, view).state
    except InputRefused:
        state = register_raw(torch.randn(shape, generator=generator(0), dtype=double(dtype)).to(dtype), parsed, view, 0)
        state = widened(state, dtype)
    # What a link adds begins at nothing, and nothing times anything is alike in any blocks.
    state |= {role: moved_by(state[role], role, 1) for role in learnt(chain, view.shape(shape))}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        value = evaluate(parsed, view, shape, state, dtype)
        made, claim = [], Claim(parsed, view, shape, dtype, rows=True)
        for first, end in blocks_of(shape):
            part = {role: tensor[first:end] if role in roles else tensor for role, tensor in state.items()}
            made.append(evaluate(parsed, view, (end - first, *shape[1:]), part, dtype))
            claim.add(made[-1], part)
        assert torch.equal(torch.cat(made), value)
        whole, [by_rows] = claim_check(parsed, view, value, state), claim.result()
        assert (whole and (whole.residual, whole.tolerance)) == (by_rows and (by_rows.residual, by_rows.tolerance))
        if rows.made_by_rows(parsed, view, shape):
            again = fit(value, parsed, view)
            parts = [fit(value[first:end].clone(), parsed, view).state for first, end in blocks_of(shape)]
            for role, tensor in again.state.items():
                assert torch.equal(tensor, torch.cat([part[role] for part in parts])), role
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("spec", "shape"), [(s, n) for s in SPECS for n in TALL if fits(s, n) and make(s).by_rows(torch.Size(n))], ids=str
)
def test_a_set_measured_by_rows_finds_what_it_finds_in_the_whole(spec, shape):
    """Members and near-misses: equal residuals, to the bit."""
    W = member(spec, shape, 0)
    for label, tensor in {"member": W, **make(spec).near_misses(W)}.items():
        measured = measure.Measured(spec, torch.Size(shape), W.dtype, W.dtype, rows=True)
        for first, end in blocks_of(shape):
            measured.add(tensor[first:end])
        whole, [by_rows] = measure.check(spec, tensor), measured.result()
        assert (whole.ok, whole.tolerance) == (by_rows.ok, by_rows.tolerance), label
        assert whole.residual == by_rows.residual or (
            whole.residual != whole.residual and by_rows.residual != by_rows.residual
        ), label
