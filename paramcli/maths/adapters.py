"""Low-rank and orthogonal adapters: the weight stays underneath, and a few numbers change it.

The parametrization holds parameters of its own beside the original (the frozen weight): `0.lora_A`, `0.lora_B`.
All of them start from the weight as it is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputRefused
from .base import Check, Parametrization
from .norm import length_error
from .numbers import compute_dtype, eps, relative


def matrix_shape(shape: torch.Size | tuple[int, ...]) -> tuple[int, int]:
    """(out, everything else): the matrix an adapter sees of a linear or convolution weight."""
    return shape[0], math.prod(shape[1:])


def require_matrix(shape: torch.Size, who: str) -> None:
    if len(shape) < 2:
        raise InputRefused(f"{who} needs two dimensions or more; the tensor has {len(shape)}")


class LoRA(Parametrization):
    r"""W0 to W0 + (alpha / rank) B A, with B of shape (out, rank) and A of shape (rank, everything else).

    With `rounds` the factors are rounded to that dtype, and so is the change before it is added: as PEFT does with an
    adapter that it holds in half precision.

    Inverse: W0 = W, B = 0, A random: the weight as it is, ready to train.
    Cost:    one thin product.
    Source:  Hu et al. 2021, arXiv:2106.09685.
    """

    whole = True

    def __init__(self, A: Tensor, B: Tensor, alpha: float, rounds: str = "none"):
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(A), nn.Parameter(B)
        self.scaling, self.rounds = alpha / A.size(0), rounds

    @classmethod
    def by_rows(cls, shape: torch.Size, *_: Any, **arguments: Any) -> frozenset[str]:
        return frozenset({"original", "lora_B"})

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        """The product is as thin as the rank: about as long as reading the weight and writing it."""
        return False

    @classmethod
    def check_shape(cls, shape: torch.Size, *_: Any, **arguments: Any) -> None:
        require_matrix(shape, "lora")

    @classmethod
    def make(cls, value: Tensor, rank: int, alpha: float = 1.0, rounds: str = "none") -> LoRA:
        return cls(*factors(value, rank), alpha, rounds)

    def change(self, X: Tensor) -> Tensor:
        A, B = (rounded(factor.to(X.dtype), self.rounds) for factor in (self.lora_A, self.lora_B))
        # In place, as memory that is new costs more than what is computed in it.
        return rounded((B @ A).view(X.shape).mul_(self.scaling), self.rounds)

    def map(self, X: Tensor) -> Tensor:
        return self.change(X).add_(X)

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.lora_B.zero_()
        return W

    @property
    def rank(self) -> int:
        return self.lora_A.size(0)

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        return [Check(f"change_of_rank:{self.rank}", *self._beyond(originals[0], value))]

    def _beyond(self, original: Tensor, value: Tensor) -> tuple[float, float]:
        """(singular value `rank` + 1 of the change, relative to the larger of both; what rounding makes of it)"""
        rank = self.rank
        S = torch.linalg.svdvals((value - original).reshape(matrix_shape(value.shape)))
        # The difference of two stored tensors carries their rounding, in units of the weight's own size.
        size = torch.maximum(torch.linalg.matrix_norm(original.reshape(matrix_shape(value.shape)), 2), S[0])
        beyond = (S[rank] / size).item() if rank < len(S) and size > 0 else 0.0
        # A change that was rounded before has that rounding too, in units of its own size.
        coarse = eps(self.stored_dtype if self.rounds == "none" else getattr(torch, self.rounds))
        return beyond, 8 * max(eps(self.stored_dtype), coarse)


class ExpertLoRA(LoRA):
    r"""W0_e to W0_e + (alpha / rank) B_e A_e for each expert e of a tensor (experts, out, in), `rounds` as of LoRA.

    A is (experts, rank, in) and B (experts, out, rank); without experts it is LoRA. PEFT keeps B with the expert index
    innermost, (out, rank, experts): its reader sees that memory in this order.

    Inverse: W0 = W, B = 0, A random.
    Cost:    one thin product for each expert.
    Source:  peft 0.21, tuners/lora (ParamWrapper).
    """

    def __init__(self, A: Tensor, B: Tensor, alpha: float, rounds: str = "none"):
        super().__init__(A, B, alpha, rounds)
        self.scaling = alpha / A.size(-2)

    @classmethod
    def by_rows(cls, shape: torch.Size, *_: Any, **arguments: Any) -> frozenset[str]:
        rows = super().by_rows(shape)
        return rows | {"lora_A"} if len(shape) > 2 else rows

    @classmethod
    def check_shape(cls, shape: torch.Size, *_: Any, **arguments: Any) -> None:
        require_matrix(shape, "expert_lora")

    @classmethod
    def make(cls, value: Tensor, rank: int, alpha: float = 1.0, rounds: str = "none") -> ExpertLoRA:
        *experts, out, rest = value.shape
        A, B = value.new_empty(math.prod(experts) * rank, rest), value.new_zeros(*experts, out, rank)
        return cls(draw(A).view(*experts, rank, rest), B, alpha, rounds)

    @property
    def rank(self) -> int:
        return self.lora_A.size(-2)

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        before, after = (W.reshape(-1, *W.shape[-2:]) for W in (originals[0], value))
        found = [self._beyond(W0, W) for W0, W in zip(before, after, strict=True)]
        return [Check(f"change_of_rank:{self.rank}", *max(found))] if found else []


def rounded(change: Tensor, rounds: str) -> Tensor:
    """The change in its own dtype, with the values that the other one has."""
    return change if rounds == "none" else change.to(getattr(torch, rounds)).to(change.dtype)


def factors(value: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A drawn and B zero, for a weight like this."""
    out, rest = matrix_shape(value.shape)
    A = torch.empty(rank, rest, dtype=value.dtype, device=value.device)
    return draw(A), torch.zeros(out, rank, dtype=value.dtype, device=value.device)


def draw(A: Tensor) -> Tensor:
    """Uniform in +-1/sqrt(fan in), as torch starts a linear layer and minLoRA its A; drawn on the CPU for every device
    alike.
    """
    if A.is_meta:
        return A
    bound = 1 / math.sqrt(max(A.size(1), 1))
    values = torch.rand(A.shape, dtype=torch.float64, device="cpu") * 2 * bound - bound
    return A.copy_(values.to(A.dtype))


class MinLoRA(LoRA):
    r"""As LoRA, in the keys of minLoRA: a `lora_dropout_mask` of ones beside A and B, and for embeddings A B in place
    of B A.

    With `embedding` the weight is (fan in, fan out), A is (fan in, rank) and B (rank, fan out).
    The mask is what dropout acts on in training and plays no part in the value.

    Inverse: W0 = W, B = 0, A random.
    Cost:    one thin product.
    Source:  minLoRA, github.com/cccntu/minLoRA.
    """

    def __init__(self, A: Tensor, B: Tensor, alpha: float, embedding: bool):
        super().__init__(A, B, alpha)
        self.embedding = embedding
        self.scaling = alpha / (A.size(1) if embedding else A.size(0))
        ones = (A.size(0), 1) if embedding else (1, A.size(1))
        self.register_buffer("lora_dropout_mask", torch.ones(ones, dtype=A.dtype, device=A.device))

    @classmethod
    def by_rows(cls, shape: torch.Size, *_: Any, **arguments: Any) -> frozenset[str]:
        return frozenset()

    @classmethod
    def check_shape(cls, shape: torch.Size, *_: Any, **arguments: Any) -> None:
        require_matrix(shape, "minlora")

    @classmethod
    def make(
        cls, value: Tensor, rank: int, alpha: float = 1.0, rounds: str = "none", embedding: bool = False
    ) -> MinLoRA:
        first, rest = matrix_shape(value.shape)
        sizes = ((first, rank), (rank, rest)) if embedding else ((rank, rest), (first, rank))
        A, B = (torch.zeros(size, dtype=value.dtype, device=value.device) for size in sizes)
        return cls(draw(A), B, alpha, embedding)

    def change(self, X: Tensor) -> Tensor:
        A, B = self.lora_A.to(X.dtype), self.lora_B.to(X.dtype)
        return (A @ B if self.embedding else B @ A).view(X.shape) * self.scaling

    @property
    def rank(self) -> int:
        return self.lora_A.size(1) if self.embedding else self.lora_A.size(0)


class DoRA(LoRA):
    r"""W0 to m (W0 + (alpha / rank) B A) / ||W0 + (alpha / rank) B A||, the norm over each output's weights.

    Inverse: W0 = W, m = ||W||, B = 0.
    Cost:    one thin product and one pass.
    Source:  Liu et al. 2024, arXiv:2402.09353.
    """

    def __init__(self, A: Tensor, B: Tensor, alpha: float, magnitude: Tensor):
        super().__init__(A, B, alpha)
        self.magnitude = nn.Parameter(magnitude)

    @classmethod
    def by_rows(cls, shape: torch.Size, *_: Any, **arguments: Any) -> frozenset[str]:
        return frozenset({"original", "lora_B", "magnitude"})

    @classmethod
    def check_shape(cls, shape: torch.Size, *_: Any, **arguments: Any) -> None:
        require_matrix(shape, "dora")

    @classmethod
    def make(cls, value: Tensor, rank: int, alpha: float = 1.0, rounds: str = "none") -> DoRA:
        magnitude = value.new_empty(value.size(0)) if value.is_meta else lengths(value)
        return cls(*factors(value, rank), alpha, magnitude)

    def map(self, X: Tensor) -> Tensor:
        V = X + self.change(X)
        size = lengths(V)
        factor = self.magnitude.to(X.dtype) / size.where(size != 0, 1.0)
        return V * factor.reshape(-1, *[1] * (X.ndim - 1))

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.magnitude.copy_(lengths(W))
        return super().inverse(W)

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        found = length_error(lengths(value), self.magnitude.abs(), value[0].numel(), self.stored_dtype)
        return [Check("norms", *found)]


def lengths(W: Tensor) -> Tensor:
    """The length of each output's weights."""
    return torch.linalg.vector_norm(W.flatten(1), dim=1)


class OFT(Parametrization):
    r"""W0 to R W0, with R = diag(R_1, ..., R_blocks) rotations of the outputs, R_i = (I + K_i)(I - K_i)^{-1}, K_i skew.

    In plain words, the outputs of a layer are turned among each other and keep every angle between inputs: W^T W = W0^T
    W0.

    Inverse: W0 = W, K = 0.
    Cost:    a solve for each block and one product.
    Source:  Qiu et al. 2023, arXiv:2306.07280 (orthogonal fine-tuning).
    """

    whole = True

    def __init__(self, K: Tensor):
        super().__init__()
        self.oft_K = nn.Parameter(K)

    @classmethod
    def check_shape(cls, shape: torch.Size, blocks: int = 1) -> None:
        require_matrix(shape, "oft")
        if shape[0] % blocks:
            raise InputRefused(f"oft:blocks={blocks} does not divide the {shape[0]} outputs")

    @classmethod
    def make(cls, value: Tensor, blocks: int = 1) -> OFT:
        size = value.size(0) // blocks
        return cls(torch.zeros(blocks, size, size, dtype=value.dtype, device=value.device))

    def map(self, X: Tensor) -> Tensor:
        K = self.oft_K.to(X.dtype).triu(1)
        K = K - K.mT
        I = torch.eye(K.size(-1), dtype=K.dtype, device=K.device)
        R = torch.linalg.solve(I - K, I + K)
        return (R @ X.reshape(K.size(0), K.size(1), -1)).reshape(X.shape)

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.oft_K.zero_()
        return W

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        before, after = (T.flatten(1).mT @ T.flatten(1) for T in (originals[0], value))
        # The rotations are computed by a solve, whose error grows with their side.
        computed = (self.oft_K.size(-1) + 64) * eps(compute_dtype(self.stored_dtype))
        return [
            Check("gram_kept", relative(after - before, before).max().item(), 4 * (eps(self.stored_dtype) + computed))
        ]


class Saved(Parametrization):
    r"""W0 to V: another tensor in the weight's place, which stays underneath.

    Adapters keep whole tensors too: what PEFT's `modules_to_save` and its trained biases hold.

    Inverse: V = W, W0 = W.
    Cost:    none.
    Source:  peft 0.21, tuners.utils (ModulesToSaveWrapper).
    """

    whole = True

    def __init__(self, saved: Tensor):
        super().__init__()
        self.saved = nn.Parameter(saved)

    @classmethod
    def by_rows(cls, shape: torch.Size, *_: Any, **arguments: Any) -> frozenset[str]:
        return frozenset({"original", "saved"})

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        return False

    @classmethod
    def make(cls, value: Tensor) -> Saved:
        return cls(value.clone())

    def map(self, X: Tensor) -> Tensor:
        return self.saved.to(X.dtype)

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.saved.copy_(W)
        return W


class Shifted(Parametrization):
    r"""W0 to W0 + scale D, a whole tensor that is added; `rounds` as of LoRA.

    Inverse: W0 = W, D = 0.
    Cost:    one pass.
    Source:  LyCORIS 4.1 (`diff`, `diff_b`); peft 0.21 (`lora_B.bias`, which is added to the layer's bias).
    """

    whole = True

    def __init__(self, diff: Tensor, scale: float, rounds: str = "none"):
        super().__init__()
        self.diff, self.scale, self.rounds = nn.Parameter(diff), scale, rounds

    @classmethod
    def by_rows(cls, shape: torch.Size, *_: Any, **arguments: Any) -> frozenset[str]:
        return frozenset({"original", "diff"})

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        return False

    @classmethod
    def make(cls, value: Tensor, scale: float = 1.0, rounds: str = "none") -> Shifted:
        return cls(torch.zeros_like(value), scale, rounds)

    def map(self, X: Tensor) -> Tensor:
        return X + rounded(self.scale * rounded(self.diff.to(X.dtype), self.rounds), self.rounds)

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            self.diff.zero_()
        return W
