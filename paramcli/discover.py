"""discover: which constraints each tensor already satisfies, or nearly does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import measure
from .checkpoint.forms import Group
from .checkpoint.source import Source
from .dtypes import DTYPES, dtype_name
from .errors import InputRefused
from .maths.base import Check, eps, wide
from .maths.norm import as_matrix
from .registry import CONSTRAINTS
from .surgery.evaluate import effective

# A residual below this is worth telling of, though rounding does not explain it.
NEARLY = 0.05


@dataclass(frozen=True)
class Finding:
    """The structure of one tensor."""

    tensor: str
    shape: tuple[int, ...]
    dtype: str
    holds: tuple[Check, ...]
    nearly: tuple[Check, ...]


def findings(
    source: Source, groups: Sequence[Group], device: str = "cpu", progress: Callable[[int], None] = lambda nbytes: None
) -> tuple[list[Finding], list[tuple[str, str]]]:
    """(one Finding for each floating tensor, tensors that could not be looked at with the reason)."""
    found, skipped, seen = [], [], {}
    for group in groups:
        progress(group.nbytes)
        if DTYPES[group.dtype].kind not in ("float", "half", "complex"):
            continue
        try:
            W = effective(source, group, device)
        except InputRefused as error:
            skipped.append((group.tensor, error.message))
            continue
        checks = [check for check in _checks(W) if check is not None]
        digest = (W.shape, hashlib.sha256(source_bytes(W)).digest())
        if W.numel() > 1 and digest in seen and bool((W != 0).any()):
            checks.append(Check(f"duplicate of {seen[digest]}", 0.0, 0.0))
        seen.setdefault(digest, group.tensor)
        holds = tuple(check for check in checks if check.ok)
        nearly = tuple(check for check in checks if not check.ok and check.residual <= NEARLY)
        found.append(Finding(group.tensor, group.shape, dtype_name(group.dtype), *_strongest(holds, nearly)))
    return found, skipped


def source_bytes(W: Tensor) -> memoryview:
    from .checkpoint.source import tensor_bytes

    return tensor_bytes(W.cpu().contiguous())


def _strongest(holds: tuple[Check, ...], nearly: tuple[Check, ...]) -> tuple[tuple[Check, ...], tuple[Check, ...]]:
    """Without what a stronger finding implies: a rotation is orthogonal, has spectral norm 1 and unit rows."""
    implied = {
        "special_orthogonal": {"orthogonal", "unit_spectral_norm", "unit_rows", "unit_columns"},
        "orthogonal": {"unit_spectral_norm", "unit_rows", "unit_columns"},
        "unitary": {"orthogonal", "unit_spectral_norm", "unit_rows", "unit_columns"},
        "positive_definite": {"symmetric"},
        "hermitian_positive_definite": {"hermitian"},
        "zero": {"symmetric", "skew", "low_rank", "sparse", "nm", "constant"},
    }

    def without(found: tuple[Check, ...], by: tuple[Check, ...]) -> tuple[Check, ...]:
        gone = {name for check in by for name in implied.get(check.constraint.partition(":")[0], ())}
        return tuple(check for check in found if check.constraint.partition(":")[0] not in gone)

    holds = without(holds, holds)
    named = {check.constraint.partition(":")[0] for check in holds}
    return holds, tuple(c for c in without(without(nearly, holds), nearly) if c.constraint.partition(":")[0] not in named)


def _checks(W: Tensor) -> list[Check | None]:
    if not W.numel() or not bool(torch.isfinite(W).all()):
        return []
    if not bool((W != 0).any()):
        return [Check("zero", 0.0, 0.0)]
    double = W.to(wide(W.dtype, W.device))
    return [*_matrix_checks(W, double), *_spectral_checks(W, double), *_zeros(W), _constant(double, W.dtype)]


def _matrix_checks(W: Tensor, double: Tensor) -> list[Check]:
    """The constraints of the registry's table, on the last two dimensions as torch sees them."""
    if W.ndim < 2 or min(W.shape[-2:]) < 2:
        return []
    names = ["orthogonal"]
    if W.shape[-1] == W.shape[-2]:
        names += ["symmetric", "skew", "special_orthogonal", "positive_definite"]
        names += ["hermitian", "skew_hermitian", "unitary", "hermitian_positive_definite"]
    entries = [CONSTRAINTS[name] for name in names]
    names = [entry.name for entry in entries if (entry.complex if W.is_complex() else entry.real)]
    checks = [measure.check(name, W) for name in names]
    for name, dim in (("unit_rows", -1), ("unit_columns", -2)):
        residual = (torch.linalg.vector_norm(double, dim=dim) - 1).abs().max().item()
        checks.append(Check(name, residual, 4 * eps(W.dtype)))
    return checks


def _spectral_checks(W: Tensor, double: Tensor) -> list[Check]:
    """Spectral norm and rank of the tensor flattened to (out, everything else)."""
    if W.ndim < 2 or min(as_matrix(W, 0).shape) < 2:
        return []
    S = torch.linalg.svdvals(as_matrix(double, 0))
    # Rounding moves singular values by about a third of eps of the largest one.
    rounding = 2 * eps(W.dtype)
    checks = [Check("unit_spectral_norm:dim=0", abs(S[0].item() - 1), rounding)]
    rank = int((S > rounding * S[0]).sum())
    if rank == len(S):
        # Nearly so: in the first half of the spectrum it drops at once; the last values of any square matrix are small.
        rank = 1 + int((S[1 : len(S) // 2 + 1] / S[: len(S) // 2]).argmin())
        if S[rank] > NEARLY * S[rank - 1]:
            return checks
    checks.append(Check(f"low_rank:rank={rank}", (S[rank] / S[0]).item(), rounding))
    return checks


def _zeros(W: Tensor) -> list[Check | None]:
    """Unstructured sparsity above a tenth, and N of M along the last dimension."""
    zeros = int((W == 0).sum())
    checks: list[Check | None] = []
    if zeros >= max(W.numel() // 10, 2):
        checks.append(Check(f"sparse:amount={zeros}", 0.0, 0.0, f"{zeros / W.numel():.0%} zeros"))
    if zeros and W.ndim >= 2:
        for n, m in ((1, 4), (2, 4), (4, 8)):
            if W.shape[-1] % m == 0:
                groups = (W.reshape(-1, m) != 0).sum(-1)
                excess = int((groups > n).sum()) / groups.numel()
                if excess <= NEARLY:
                    checks.append(Check(f"nm:n={n}:m={m}", excess, 0.0))
                    break
    return checks


def _constant(double: Tensor, dtype: torch.dtype) -> Check | None:
    first = double.reshape(-1)[0]
    gap = ((double - first).abs().max() / first.abs().clamp(min=1e-300)).item()
    value = f"{first.item():.6g}" if not dtype.is_complex else str(first.item())
    return Check(f"constant:value={value}", gap, eps(dtype)) if gap <= eps(dtype) and double.numel() > 1 else None
