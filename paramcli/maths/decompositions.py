"""Decompositions that more than one step needs of the same large matrix: measuring a weight, projecting it, inverting
a map at the point that was found. Each is computed once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .facts import gram, same_entries

# Smaller ones are decomposed whenever they are asked for: they may be stacked, and a stack of them begins no
# decomposition that the matrix alone, which has to get the same bits, would find. But for those that are made one by
# one also where they are several.
SMALL = 128


@dataclass
class _Shared:
    # Whose decomposition will be needed whole, though at first its values are asked for alone.
    whole: Tensor | None = None
    # (kind, matrix, decomposition): of the weight and of a point made of it.
    known: deque[tuple[str, Tensor, Any]] = field(default_factory=lambda: deque(maxlen=2))
    # The same of small ones, by their place in memory.
    small: dict[int, tuple[str, Tensor, Any]] = field(default_factory=dict)

    def find(self, kind: str, W: Tensor) -> Any:
        there = self.small.get(W.data_ptr()) if self.small else None
        known = [*self.known, *([] if there is None else [there])]
        return next((found for name, matrix, found in known if name == kind and same_entries(matrix, W)), None)


_SHARED: ContextVar[_Shared | None] = ContextVar("_SHARED", default=None)


@contextmanager
def shared() -> Iterator[None]:
    """While it lasts, decompositions of the last two matrices are kept, and found again for the same tensors, which
    nothing may change.
    """
    token = _SHARED.set(_Shared())
    try:
        yield
    finally:
        _SHARED.reset(token)


def needed_whole(W: Tensor) -> None:
    """Within `shared`: who asks for this matrix' singular values or eigenvalues will ask for their vectors too."""
    if (here := _SHARED.get()) is not None:
        here.whole = W


def remember(kind: str, W: Tensor, decomposition: Any, one_by_one: bool = False) -> None:
    """W was made from its own decomposition; `one_by_one`, if it would have been among others too: small ones that lie
    row by row are kept then, so that `stacked` finds them.
    """
    here = _SHARED.get()
    if here is None or W.ndim < 2:
        return
    if min(W.shape[-2:]) > SMALL:
        here.known.append((kind, W, decomposition))
    elif one_by_one and W.is_contiguous():
        here.small[W.data_ptr()] = kind, W, decomposition


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """torch.stack; what is known of one of them is known of it there too."""
    together, here = torch.stack(list(tensors)), _SHARED.get()
    for one, there in zip(tensors, together, strict=True):
        if here is not None and (known := here.small.pop(one.data_ptr(), None)) is not None:
            kind, matrix, found = known
            if one.is_contiguous() and matrix.numel() == one.numel():
                remember(kind, there.reshape(matrix.shape), found, one_by_one=True)
    return together


def _found(kind: str, W: Tensor, make: Callable[[Tensor], Any]) -> Any:
    here = _SHARED.get()
    found = here.find(kind, W) if here is not None else None
    if found is None:
        found = make(W)
        remember(kind, W, found)
    return found


def is_shared(kind: str, W: Tensor) -> bool:
    """Is this decomposition of W known, or needed later in any case?"""
    here = _SHARED.get()
    if here is None or W.ndim < 2 or min(W.shape[-2:]) <= SMALL:
        return False
    return (here.whole is not None and same_entries(here.whole, W)) or here.find(kind, W) is not None


def svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V^H, without the columns that square ones would have beside them."""
    U, S, Vh = _found("svd", W, lambda W: torch.linalg.svd(W, full_matrices=False))
    return U, S, Vh


def singular_values(W: Tensor) -> Tensor:
    return svd(W)[1] if is_shared("svd", W) else torch.linalg.svdvals(W)


def first_pair(M: Tensor) -> tuple[Tensor, Tensor]:
    """The singular vectors u and v of the largest singular value of one matrix."""

    def of_svd(M: Tensor) -> tuple[Tensor, Tensor]:
        U, _, Vh = svd(M)
        return U[:, 0].contiguous(), Vh[0].conj().contiguous()

    u, v = _found("first pair", M, of_svd)
    return u, v


def even_singular_values(W: Tensor) -> Tensor:
    """Singular values that are expected to be of one size: of large matrices the roots of the Gram matrix'
    eigenvalues, half the work, whose error is n eps of the largest square; or those that `singular_values` gives,
    where the smallest is below a tenth of the largest.
    """
    if W.ndim < 2 or min(W.shape[-2:]) <= SMALL or is_shared("svd", W):
        return singular_values(W)
    G, size = gram(W)
    S = torch.linalg.eigvalsh(G).flip(-1).clamp(min=0).sqrt() * size.squeeze(-1)
    alike = S[..., -1:] > S[..., :1] / 10
    return S if bool(alike.all()) else torch.where(alike, S, singular_values(W))


def eigh(W: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of the symmetric (Hermitian) part of W."""
    values, vectors = _found("eigh", W, lambda W: torch.linalg.eigh((W + W.mH) / 2))
    return values, vectors


def eigenvalues_of_symmetric_part(W: Tensor) -> Tensor:
    return eigh(W)[0] if is_shared("eigh", W) else torch.linalg.eigvalsh((W + W.mH) / 2)


def eig(W: Tensor) -> tuple[Tensor, Tensor]:
    """Complex eigenvalues and eigenvectors of a square matrix; the eigenvalues are kept."""
    values, vectors = torch.linalg.eig(W)
    remember("eigenvalues", W, values)
    return values, vectors


def eigenvalues(W: Tensor) -> Tensor:
    found: Tensor = _found("eigenvalues", W, torch.linalg.eigvals)
    return found


def made_of_svd(U: Tensor, S: Tensor, Vh: Tensor) -> Tensor:
    """U diag(S) V^H, for values in descending order that are not below 0."""
    W = (U * S.unsqueeze(-2)) @ Vh
    remember("svd", W, (U, S, Vh))
    return W


def made_of_eigh(values: Tensor, vectors: Tensor) -> Tensor:
    """Q diag(l) Q^H, for eigenvalues in ascending order."""
    W = (vectors * values.unsqueeze(-2)) @ vectors.mH
    W = (W + W.mH) / 2
    remember("eigh", W, (values, vectors))
    return W
