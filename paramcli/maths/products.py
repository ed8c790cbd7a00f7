"""Changes that are products of small tensors: a kernel between thin matrices, entry by entry, Kronecker, on both sides.

The weight stays underneath, and a few numbers change it; all of them start from the weight as it is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputRefused
from .adapters import draw, matrix_shape, require_matrix
from .base import Parametrization


def tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """sum_ij up[., i] core[i, j, ...] down[j, .]: (i, j, kernel), (out, i), (j, in) -> (out, in * kernel)."""
    (i, j), size = core.shape[:2], down.size(-1)
    # As matrices: whether torch folds a batch times a matrix into one product hangs on whether a gradient is wanted.
    inner = core.reshape(i, j, -1).mT.reshape(-1, j) @ down
    return up @ inner.reshape(i, -1, size).mT.flatten(1)


def empty(value: Tensor, *shape: int) -> Tensor:
    return torch.zeros(shape, dtype=value.dtype, device=value.device)


def drawn(value: Tensor, *shape: int) -> Tensor:
    """Random numbers of a size at which products of them are about 1."""
    flat = empty(value, shape[0], math.prod(shape[1:]))
    return draw(flat).reshape(shape)


class Added(Parametrization):
    """W0 to W0 + scale D(the parametrization's own tensors), where D = 0 while those named `off` are 0."""

    whole = True
    off: tuple[str, ...] = ()

    def __init__(self, scale: float, tensors: dict[str, Tensor]):
        super().__init__()
        self.scale = scale
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        """Thin products: about as long as reading the weight and writing it."""
        return False

    def factor(self, name: str, like: Tensor) -> Tensor:
        """One of its own tensors, in the precision that the map is computed in."""
        tensor: Tensor = getattr(self, name)
        return tensor.to(like.dtype)

    def has(self, name: str) -> bool:
        return name in self._parameters

    def change(self, X: Tensor) -> Tensor:
        raise NotImplementedError

    def map(self, X: Tensor) -> Tensor:
        return X + self.scale * self.change(X).reshape(X.shape)

    def inverse(self, W: Tensor) -> Tensor:
        with torch.no_grad():
            for name in self.off:
                if self.has(name):
                    self.get_parameter(name).zero_()
        return W


class Tucker(Added):
    r"""W0 to W0 + (alpha / rank) sum_ij B[., i] T[i, j, ...] A[j, .]: LoRA of a convolution, with a small kernel T.

    In plain words, inputs are mixed to a few, these are convolved, and the few results are mixed to the outputs.

    Shapes:  A (rank, in), B (out, rank), T (rank, rank, kernel) for a weight (out, in, kernel).
    Inverse: W0 = W, B = 0, A and T random.
    Cost:    two thin products.
    Source:  LyCORIS 4.1, modules/locon.py (`lora_mid`), arXiv:2309.14859; Phan et al. 2020, arXiv:2008.05441.
    """

    off = ("lora_up",)

    @classmethod
    def by_rows(cls, shape: torch.Size, rank: int, alpha: float = 1.0) -> frozenset[str]:
        return frozenset({"original", "lora_up"})

    @classmethod
    def check_shape(cls, shape: torch.Size, rank: int, alpha: float = 1.0) -> None:
        require_matrix(shape, "tucker")

    @classmethod
    def make(cls, value: Tensor, rank: int, alpha: float = 1.0) -> Tucker:
        out, inputs, *kernel = value.shape
        tensors = {
            "lora_down": drawn(value, rank, inputs),
            "lora_mid": drawn(value, rank, rank, *kernel),
            "lora_up": empty(value, out, rank),
        }
        return cls(alpha / rank, tensors)

    def change(self, X: Tensor) -> Tensor:
        return tucker(self.factor("lora_mid", X), self.factor("lora_up", X), self.factor("lora_down", X))


class LoHa(Added):
    r"""W0 to W0 + (alpha / rank) (A1 B1) * (A2 B2), the product entry by entry: a change of rank up to rank^2.

    With `tucker` each factor is a small kernel between two thin matrices, as of `Tucker`.

    Shapes:  A1, A2 (out, rank), B1, B2 (rank, everything else); with tucker A (rank, out), B (rank, in), T (rank, rank,
             kernel).
    Inverse: W0 = W, A2 = 0, the others random.
    Cost:    two thin products.
    Source:  Hyeon-Woo et al. 2021, arXiv:2108.06098; LyCORIS 4.1, modules/loha.py; peft 0.21, tuners/loha.
    """

    off = ("hada_w2_a",)

    @classmethod
    def by_rows(cls, shape: torch.Size, rank: int, alpha: float = 1.0, tucker: bool = False) -> frozenset[str]:
        return frozenset() if tucker else frozenset({"original", "hada_w1_a", "hada_w2_a"})

    @classmethod
    def check_shape(cls, shape: torch.Size, rank: int, alpha: float = 1.0, tucker: bool = False) -> None:
        require_matrix(shape, "loha")

    @classmethod
    def make(cls, value: Tensor, rank: int, alpha: float = 1.0, tucker: bool = False) -> LoHa:
        out, rest = matrix_shape(value.shape)
        kernel, width = (value.shape[2:], value.shape[1]) if tucker else ((), rest)
        tensors = {}
        for half in "12":
            a = (rank, out) if tucker else (out, rank)
            tensors[f"hada_w{half}_a"] = drawn(value, *a) if half == "1" else empty(value, *a)
            tensors[f"hada_w{half}_b"] = drawn(value, rank, width)
            if tucker:
                tensors[f"hada_t{half}"] = drawn(value, rank, rank, *kernel)
        return cls(alpha / rank, tensors)

    def change(self, X: Tensor) -> Tensor:
        return self._half("1", X) * self._half("2", X)

    def _half(self, half: str, X: Tensor) -> Tensor:
        A, B = self.factor(f"hada_w{half}_a", X), self.factor(f"hada_w{half}_b", X)
        return tucker(self.factor(f"hada_t{half}", X), A.mT, B) if self.has(f"hada_t{half}") else A @ B


class LoKr(Added):
    r"""W0 to W0 + scale (W1 kron W2), W1 a p x q matrix; each of the two whole, or a thin product A B.

    In plain words, one block is repeated p by q times, each time with another factor. W2 of a convolution has its
    kernel; with w2=tucker it is a small kernel between two thin matrices. `left` is how peft 0.21 multiplies where a
    convolution of one dimension has a whole W2: W1 stands before the kernel's last two axes and not before its first.

    Shapes:  W1 (p, q) = (p, rank)(rank, q); W2 (out/p, in/q, kernel) = (out/p, rank)(rank, the rest), with tucker
             (rank, out/p), (rank, in/q), (rank, rank, kernel).
    Inverse: W0 = W, W2 or its B = 0, the others random.
    Cost:    the product, as large as the weight.
    Source:  LyCORIS 4.1, modules/lokr.py, arXiv:2309.14859; Edalati et al. 2022, arXiv:2212.10650; peft 0.21,
             tuners/lokr.
    """

    off = ("lokr_w2", "lokr_w2_b")

    def __init__(self, scale: float, tensors: dict[str, Tensor], left: bool):
        super().__init__(scale, tensors)
        self.left = left

    @classmethod
    def check_shape(cls, shape: torch.Size, p: int, q: int, **arguments: Any) -> None:
        require_matrix(shape, "lokr")
        if shape[0] % p or shape[1] % q:
            raise InputRefused(f"lokr:p={p}:q={q} does not divide {shape[0]} outputs and {shape[1]} inputs")

    @classmethod
    def make(
        cls,
        value: Tensor,
        p: int,
        q: int,
        rank: int = 1,
        scale: float = 1.0,
        w1: str = "whole",
        w2: str = "whole",
        left: bool = False,
    ) -> LoKr:
        out, inputs, kernel = value.shape[0] // p, value.shape[1] // q, value.shape[2:]
        tensors = {}
        if w1 == "whole":
            tensors["lokr_w1"] = drawn(value, p, q)
        else:
            tensors |= {"lokr_w1_a": drawn(value, p, rank), "lokr_w1_b": drawn(value, rank, q)}
        if w2 == "whole":
            tensors["lokr_w2"] = empty(value, out, inputs, *kernel)
        elif w2 == "factored":
            tensors |= {
                "lokr_w2_a": drawn(value, out, rank),
                "lokr_w2_b": empty(value, rank, inputs * math.prod(kernel)),
            }
        else:
            tensors |= {"lokr_w2_a": drawn(value, rank, out), "lokr_w2_b": empty(value, rank, inputs)}
            tensors["lokr_t2"] = drawn(value, rank, rank, *kernel)
        return cls(scale, tensors, left)

    def change(self, X: Tensor) -> Tensor:
        W1 = self.factor("lokr_w1", X) if self.has("lokr_w1") else self._product("lokr_w1", X)
        if self.has("lokr_w2"):
            W2 = self.factor("lokr_w2", X)
        elif self.has("lokr_t2"):
            A, B = self.factor("lokr_w2_a", X), self.factor("lokr_w2_b", X)
            W2 = tucker(self.factor("lokr_t2", X), A.mT, B)
        else:
            W2 = self._product("lokr_w2", X)
        return torch.kron(W1, W2 if self.left and self.has("lokr_w2") else W2.flatten(1))

    def _product(self, name: str, X: Tensor) -> Tensor:
        return self.factor(f"{name}_a", X) @ self.factor(f"{name}_b", X)


class GLoRA(Added):
    r"""W0 to W0 + (alpha / rank) (W0 A1 A2 + B1 B2): the inputs are mixed before the weight, and a change is added.

    Shapes:  A1 (in, rank), A2 (rank, in), B1 (out, rank), B2 (rank, everything else).
    Inverse: W0 = W, A2 = B2 = 0, A1 and B1 random.
    Cost:    three thin products.
    Source:  Chavan et al. 2023, arXiv:2306.07967, of which LyCORIS 4.1, modules/glora.py, has these two terms.
    """

    off = ("a2", "b2")

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        """The weight itself is multiplied."""
        return True

    @classmethod
    def check_shape(cls, shape: torch.Size, rank: int, alpha: float = 1.0) -> None:
        require_matrix(shape, "glora")

    @classmethod
    def make(cls, value: Tensor, rank: int, alpha: float = 1.0) -> GLoRA:
        (out, rest), inputs = matrix_shape(value.shape), value.shape[1]
        tensors = {
            "a1": drawn(value, inputs, rank),
            "a2": empty(value, rank, inputs),
            "b1": drawn(value, out, rank),
            "b2": empty(value, rank, rest),
        }
        return cls(alpha / rank, tensors)

    def change(self, X: Tensor) -> Tensor:
        a1, a2, b1, b2 = (self.factor(name, X) for name in ("a1", "a2", "b1", "b2"))
        # As one product of matrices, which `@` makes of it only where a gradient is wanted.
        inputs = X.movedim(1, -1)
        mixed = (inputs.reshape(-1, inputs.size(-1)) @ a1 @ a2).reshape(inputs.shape).movedim(-1, 1)
        return mixed + (b1 @ b2).reshape(X.shape)
