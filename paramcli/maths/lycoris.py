"""LyCORIS' own conventions of what others have too: a factor and a length for each output, and turns of the outputs.

The weight stays underneath, and a few numbers change it; all of them start from the weight as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputRefused
from .adapters import require_matrix
from .base import Parametrization
from .numbers import identity
from .products import empty

# What LyCORIS adds to a norm before it divides by it: the eps of float32, in which it computes.
EPS = 2.0**-23


class LycorisDoRA(Parametrization):
    r"""V to V (1 + strength (m / (||V|| + eps) - 1)), the norm over each output, or with axis=in over each input.

    The second half of LyCORIS' DoRA, after any change that is added: at strength 1 every output has length m but for
    eps = 2^-23. The change before it is always whole, so strength 0 is not the weight as it was.

    Shapes:  m (out, 1, ...) or (1, in, 1, ...).
    Inverse: V = W, m = ||W|| + eps.
    Cost:    one pass.
    Source:  LyCORIS 4.1, functional/general.py (`weight_decompose`); after Liu et al. 2024, arXiv:2402.09353.
    """

    whole = True

    def __init__(self, dora_scale: Tensor, strength: float, axis: str):
        super().__init__()
        self.dora_scale, self.strength, self.axis = nn.Parameter(dora_scale), strength, axis

    @classmethod
    def by_rows(cls, shape: torch.Size, strength: float = 1.0, axis: str = "out") -> frozenset[str]:
        return frozenset({"original", "dora_scale"} if axis == "out" else ())

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        return False

    @classmethod
    def check_shape(cls, shape: torch.Size, strength: float = 1.0, axis: str = "out") -> None:
        require_matrix(shape, "lycoris.dora")

    @classmethod
    def make(cls, value: Tensor, strength: float = 1.0, axis: str = "out") -> LycorisDoRA:
        kept = 0 if axis == "out" else 1
        shape = [size if dim == kept else 1 for dim, size in enumerate(value.shape)]
        made = cls(value.new_empty(shape), strength, axis)
        if not value.is_meta:
            made.inverse(value)  # after another link nobody asks for an inverse, and the weight stays what it was
        return made

    def _norm(self, W: Tensor) -> Tensor:
        kept = 0 if self.axis == "out" else 1
        lengths = torch.linalg.vector_norm(W.movedim(kept, 0).flatten(1), dim=1) + EPS
        return lengths.reshape([-1 if dim == kept else 1 for dim in range(W.ndim)])

    def map(self, X: Tensor) -> Tensor:
        return X * (1 + self.strength * (self.dora_scale.to(X.dtype) / self._norm(X) - 1))

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.dora_scale.copy_(self._norm(W))
        return W


class LycorisIA3(Parametrization):
    r"""W0 to W0 (1 + strength w), a factor for each output, or with axis=in for each input.

    Shapes:  w (out) or (in).
    Inverse: W0 = W, w = 0.
    Cost:    one pass.
    Source:  LyCORIS 4.1, modules/ia3.py; Liu et al. 2022, arXiv:2205.05638, where the factor is w itself.
    """

    whole = True

    def __init__(self, weight: Tensor, strength: float, axis: str):
        super().__init__()
        self.weight, self.strength, self.axis = nn.Parameter(weight), strength, axis

    @classmethod
    def by_rows(cls, shape: torch.Size, strength: float = 1.0, axis: str = "out") -> frozenset[str]:
        return frozenset({"original", "weight"} if axis == "out" else {"original"})

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        return False

    @classmethod
    def check_shape(cls, shape: torch.Size, strength: float = 1.0, axis: str = "out") -> None:
        require_matrix(shape, "lycoris.ia3")

    @classmethod
    def make(cls, value: Tensor, strength: float = 1.0, axis: str = "out") -> LycorisIA3:
        return cls(empty(value, value.shape[0 if axis == "out" else 1]), strength, axis)

    def map(self, X: Tensor) -> Tensor:
        kept = 0 if self.axis == "out" else 1
        factor = 1 + self.strength * self.weight.to(X.dtype)
        return X * factor.reshape([-1 if dim == kept else 1 for dim in range(X.ndim)])

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.zero_()
        return W


def _ones(value: Tensor) -> Tensor:
    """A factor 1 for each output."""
    return torch.ones(value.shape[0], *[1] * (value.ndim - 1), dtype=value.dtype, device=value.device)


class LycorisOFT(Parametrization):
    r"""W0 to diag(1 + strength (R_k^T - 1)) W0, R_k = (I + K_k)(I - K_k)^{-1}, K_k = M_k - M_k^T: blocks of outputs are
    turned.

    Where the norm of all blocks of K together is above constraint x outputs (and constraint above 0), K is scaled down
    to that. `rescale` multiplies each output afterwards, at any strength.

    Shapes:  M (blocks, out / blocks, out / blocks), rescale (out, 1, ...).
    Inverse: W0 = W, M = 0, rescale = 1.
    Cost:    a solve for each block and one product.
    Source:  LyCORIS 4.1, modules/diag_oft.py; Qiu et al. 2023, arXiv:2306.07280.
    """

    whole = True
    rescale: nn.Parameter | None

    def __init__(self, blocks: Tensor, rescale: Tensor | None, strength: float, constraint: float):
        super().__init__()
        self.oft_blocks = nn.Parameter(blocks)
        self.register_parameter("rescale", None if rescale is None else nn.Parameter(rescale))
        self.strength, self.constraint = strength, constraint

    @classmethod
    def check_shape(cls, shape: torch.Size, blocks: int = 1, **arguments: Any) -> None:
        require_matrix(shape, "lycoris.oft")
        if shape[0] % blocks:
            raise InputRefused(f"lycoris.oft:blocks={blocks} does not divide the {shape[0]} outputs")

    @classmethod
    def make(
        cls, value: Tensor, blocks: int = 1, strength: float = 1.0, constraint: float = 0.0, rescale: bool = False
    ) -> LycorisOFT:
        size = value.shape[0] // blocks
        return cls(empty(value, blocks, size, size), _ones(value) if rescale else None, strength, constraint)

    def turns(self, X: Tensor) -> Tensor:
        """I + strength (R - I) of every block."""
        K = self.oft_blocks.to(X.dtype)
        K = K - K.mT
        if self.constraint > 0:
            length, most = torch.linalg.vector_norm(K) + 1e-8, self.constraint * X.shape[0]
            K = torch.where(length > most, K * (most / length), K)
        I = identity(K, K.size(-1))
        return I + self.strength * (torch.linalg.solve(I - K, I + K) - I)

    def turned(self, X: Tensor) -> Tensor:
        blocks = self.oft_blocks.size(0)
        return (self.turns(X).mT @ X.reshape(blocks, X.shape[0] // blocks, -1)).reshape(X.shape)

    def map(self, X: Tensor) -> Tensor:
        turned = self.turned(X)
        return turned if self.rescale is None else turned * self.rescale.to(X.dtype)

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.oft_blocks.zero_()
            if self.rescale is not None:
                self.rescale.fill_(1.0)
        return W


class LycorisBOFT(LycorisOFT):
    r"""W0 to B_stages ... B_1 W0, each B_i block rotations of the outputs in an order of its own (a butterfly).

    As `LycorisOFT`, but that a stage is I + strength (R - I), not its transpose; the constraint is on all stages
    together. Stage i joins outputs that are 2^i b/2 apart, b the size of a block.

    Shapes:  M (stages, blocks, b, b), b = out / blocks, even; rescale (out, 1, ...).
    Inverse: W0 = W, M = 0, rescale = 1.
    Cost:    a solve for each block, one product for each stage.
    Source:  LyCORIS 4.1, functional/boft.py; Liu et al. 2023, arXiv:2311.06243.
    """

    @classmethod
    def check_shape(cls, shape: torch.Size, blocks: int = 1, stages: int = 1, **arguments: Any) -> None:
        require_matrix(shape, "lycoris.boft")
        size, odd = divmod(shape[0], blocks)
        if odd or not size or size % 2 or stages > 64 or shape[0] % (size << (stages - 1)):
            raise InputRefused(
                f"lycoris.boft:blocks={blocks}:stages={stages} does not divide the {shape[0]} outputs into pairs"
            )

    @classmethod
    def make(  # type: ignore[override]
        cls,
        value: Tensor,
        blocks: int = 1,
        stages: int = 1,
        strength: float = 1.0,
        constraint: float = 0.0,
        rescale: bool = False,
    ) -> LycorisBOFT:
        size = value.shape[0] // blocks
        return cls(empty(value, stages, blocks, size, size), _ones(value) if rescale else None, strength, constraint)

    def turned(self, X: Tensor) -> Tensor:
        turns, size = self.turns(X), self.oft_blocks.size(-1)
        Y = X.flatten(1) if X.ndim > 1 else X
        for stage, turn in enumerate(turns):
            apart = (size // 2) << stage
            Y = Y.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2)
            Y = (turn @ Y.unflatten(0, (-1, size))).flatten(0, 1)
            Y = Y.unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
        return Y.reshape(X.shape)
