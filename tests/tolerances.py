"""python -m tests.tolerances: how far each tolerance is from what rounding leaves, for every set, dtype and size.

    rounded    the worst residual of members (tests/maths/members.py) rounded to the dtype
    maps       the worst of values that chains compute in the dtype from originals of many sizes, and of fits to random
               weights
    ratio      tolerance / the worse of the two; "exact" where both are 0, "-" where the residual has what
               measuring it is off by taken off

A line for each condition of a set. `--write` renews docs/tolerances.md; `--sizes 8,64` takes fewer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from paramcli.chain import Chain, parse_chain
from paramcli.errors import ParamcliError
from paramcli.fitting import measure
from paramcli.fitting.fit import fit
from paramcli.fitting.originals import evaluate
from paramcli.fitting.skeleton import outline
from paramcli.maths.numbers import compute_dtype, eps, wide
from paramcli.registry import PARAMETRIZATIONS, constraint
from paramcli.view import IDENTITY

from .maths.members import WORST, members, normal, rotation, rows_of, specs

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SIZES = (8, 64, 512, 1024)
PAGE = Path(__file__).resolve().parent.parent / "docs" / "tolerances.md"
# Sizes of original entries over sqrt(n): from hardly turned to angles of about two turns.
SCALES = (0.01, 0.3, 1.0, 3.0)
# And where originals are angles, of several turns.
ANGLES = (*SCALES, 4.0)
# Sets that torch's own modules compute members of.
TORCHS = ("orthogonal", "special_orthogonal", "positive_definite", "unit_spectral_norm")


@dataclass
class Line:
    """One condition of one set in one dtype."""

    spec: str
    what: str
    dtype: str
    n: int
    tolerance: float
    rounded: float = 0.0
    maps: float = 0.0

    @property
    def exact(self) -> bool:
        return self.tolerance == 0 == self.rounded

    @property
    def ratio(self) -> float:
        worst = max(self.rounded, self.maps)
        return 0.0 if self.exact else self.tolerance / worst if worst else float("inf")


def chains_into(spec: str, n: int) -> Iterator[str]:
    """The table's chains whose values lie in this set, ranks as the spec has them."""
    name, _, arguments = spec.partition(":")
    for entry in PARAMETRIZATIONS.values():
        if entry.same_as:
            continue
        for example in entry.examples or (entry.name,):
            head, _, last = example.rpartition(",")
            if "rank=" in arguments and "rank=" in last:
                last = f"{last.partition(':')[0]}:{arguments}"
            text = f"{head},{last}" if head else last
            try:
                chain = parse_chain(text)
            except ParamcliError:
                continue
            image = (chain.constraint or "any").partition(":")[0]
            if image == name or (image, name) in (("special_orthogonal", "orthogonal"), ("stochastic", "simplex")):
                yield text


def originals(chain: Chain, n: int, dtype: torch.dtype, scale: float, seed: int) -> dict[str, Tensor]:
    """What a file could hold for the chain: random originals, orthogonal bases, signs and constants as registration
    makes them.
    """
    state = {}
    for index, (role, like) in enumerate(outline(chain, (n, n), dtype, IDENTITY).items()):
        kind = role.rpartition(".")[2]
        if kind == "base" and chain.links[-1].entry.name == "sphere_exp":
            base = normal(n, n, seed) / rows_of(normal(n, n, seed))
            # Steps along the sphere, as gradients are: from 0 training takes no others.
            step = state["original"].double()
            state |= {role: base.to(dtype), "original": (step - (step * base).sum(-1, keepdim=True) * base).to(dtype)}
        elif kind == "base":
            state[role] = rotation(n, seed + index).to(dtype)
        elif kind == "In":
            state[role] = torch.eye(n, dtype=dtype)
        elif kind == "alpha":
            state[role] = torch.full((), 0.5, dtype=dtype)
        else:
            made = (
                torch.full(like.shape, 0.377 * scale, dtype=torch.float64)
                if seed < 0
                else scale
                * torch.randn(
                    like.shape, generator=torch.Generator().manual_seed(100 * max(seed, 0) + index), dtype=torch.float64
                )
            )
            state[role] = made.to(like.dtype)
    if chain.links[-1].arguments.get("map") == "householder":
        # Reflectors come with signs on the diagonal.
        made = state["original"]
        state["original"] = made.tril(-1) + torch.where(made.diagonal() < 0, -1.0, 1.0).to(dtype).diag()
    return state


def values(spec: str, n: int, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """(the set, a value) of what chains into a set of this kind compute, rounded to the dtype."""
    if spec.startswith("special_linear") or "orthogonal" in spec:
        # torch.matrix_exp is least exact for one small angle: `MATRIX_EXP_SMALL`.
        angle = {torch.float64: 0.049}.get(dtype, 0.57)
        A = torch.zeros(n, n, dtype=compute_dtype(dtype))
        A[0, 1], A[1, 0] = angle, -angle
        for size in (0.9, 1.1) if spec == "almost_orthogonal" else (1.0,):  # singular values at the bounds
            yield spec, (size * torch.matrix_exp(A)).to(dtype)
            yield spec, (size * rotation(n, 0).to(A.dtype) @ torch.matrix_exp(A)).to(dtype)
    if "symmetric" in (part.what for part in constraint(spec).parts(torch.eye(n, dtype=torch.float64), dtype, dtype)):
        # A pair that a map computed a little differently, on either side of a tie.
        W = torch.eye(n, dtype=dtype)
        one = torch.ones((), dtype=dtype)
        if spec == "correlation":
            W[0, 1], W[1, 0] = 1 - 4 * eps(dtype), torch.nextafter(one - 4 * eps(dtype), 0 * one)
        else:
            W = W if spec.startswith("positive") else 0 * W
            W[0, 0] = W[1, 1] = one + (8 * eps(dtype) if spec.startswith("positive") else 0)
            W[0, 1], W[1, 0] = one, torch.nextafter(one, 2 * one)
        yield spec, W
    for text in chains_into(spec, n):
        chain = parse_chain(text)
        # What u and v of nothing in particular leave is no value of the set; equal entries have no deviation, less
        # their mean are rounding, and make errors of singular values that line up, which no product of them forgives.
        # Numbers of few digits less their mean are all rounded one way: originals of half types sum to c where they
        # were made to.
        given = "spectral_norm" in spec or (spec.startswith("sum_to") and eps(dtype) > eps(torch.float32))
        scales = () if given else ANGLES if "orthogonal" in spec else SCALES
        for scale in scales:
            equal = spec in TORCHS or (
                scale == 1.0 and not spec.startswith(("standardized", "sum_to", "special_linear"))
            )
            for seed in range(-1 if equal else 0, _seeds(n)):  # -1: all entries are equal
                yield (
                    chain.constraint,
                    evaluate(chain, IDENTITY, (n, n), originals(chain, n, dtype, scale / n**0.5, seed), dtype),
                )
        for seed in range(min(_seeds(n), 3) if n <= 512 or spec in TORCHS else 0):
            try:
                yield chain.constraint, fit(normal(n, n, seed).to(dtype), chain, IDENTITY).value
            except ParamcliError:
                continue


def _seeds(n: int) -> int:
    return 10 if n <= 8 else 4 if n <= 64 else 1


def lines(sizes: Sequence[int] = SIZES, keys: Iterable[str] | None = None) -> Iterator[Line]:
    for n in sizes:
        for key, spec in specs(n).items():
            if keys is None or key in keys:
                yield from _lines_of(key, spec, n)


def _lines_of(key: str, spec: str, n: int) -> Iterator[Line]:
    made = constraint(spec)
    for name, dtype in DTYPES.items():
        found: dict[str, Line] = {}
        more = (W for seed in range(_seeds(n)) for W in WORST[key](n, seed)) if key in WORST else ()
        for W in (*members(key, n, _seeds(n)), *more):
            for part in made.as_stored(dtype).parts(W.to(dtype).to(wide(dtype)), dtype, compute_dtype(dtype)):
                line = found.setdefault(part.what, Line(spec, part.what, name, n, part.tolerance))
                line.rounded = max(line.rounded, part.residual.max().item())
        for image, W in values(spec, n, dtype):
            # Where all entries are below the normal numbers of the dtype, rounding is no share of them.
            if measure.all_finite(W) and W.abs().max() > torch.finfo(dtype).smallest_normal / eps(dtype):
                for part in constraint(image).as_stored(dtype).parts(W.to(wide(dtype)), dtype, compute_dtype(dtype)):
                    # Another length has another tolerance. Strict conditions fail for some originals, as they should.
                    if part.what in found and part.tolerance == found[part.what].tolerance > 0:
                        found[part.what].maps = max(found[part.what].maps, part.residual.max().item())
        yield from found.values()


def table(found: Iterable[Line]) -> str:
    """In eps of the dtype."""
    rows = ["| set | dtype | n | tolerance | rounded | maps | ratio |", "|---|---|---|---|---|---|---|"]
    for line in found:
        unit = eps(DTYPES[line.dtype])
        name = f"`{line.spec}`" + (f" {line.what}" if line.what else "")
        ratio = "exact" if line.exact else f"{line.ratio:.1f}" if line.ratio < float("inf") else "-"
        rows.append(
            f"| {name} | {line.dtype} | {line.n} | {line.tolerance / unit:.3g} | {line.rounded / unit:.2g} | "
            f"{line.maps / unit:.2g} | {ratio} |"
        )
    return "\n".join(rows)


def main(arguments: Sequence[str]) -> None:
    sizes = SIZES
    if "--sizes" in arguments:
        sizes = tuple(int(text) for text in arguments[arguments.index("--sizes") + 1].split(","))
    keys = arguments[arguments.index("--sets") + 1].split("+") if "--sets" in arguments else None
    found = []
    for line in lines(sizes, keys):
        found.append(line)
        print(table([line]).splitlines()[-1], flush=True)
    if "--write" in arguments:
        before, _, _ = PAGE.read_text(encoding="utf-8").partition("\n| set |")
        PAGE.write_text(f"{before}\n{table(found)}\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1:])
