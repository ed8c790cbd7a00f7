"""The changes of LyCORIS: products entry by entry, Kronecker products, cores of convolutions, turns and lengths of its
own.

The weight stays underneath, and a few numbers change it; all of them start from the weight as it is. PEFT's LoHa and
LoKr are the same maps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputRefused
from .adapters import draw, matrix_shape, require_matrix
from .base import Parametrization
from .numbers import identity

# What LyCORIS adds to a norm before it divides by it: the eps of float32, in which it computes.
EPS = 2.0**-23


def tucker(core: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """sum_ij up[., i] core[i, j, ...] down[j, .]: (i, j, kernel), (out, i), (j, in) -> (out, in * kernel)."""
    inner = (core.reshape(*core.shape[:2], -1).mT @ down).mT
    return up @ inner.flatten(1)


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
        mixed = (X.movedim(1, -1) @ a1 @ a2).movedim(-1, 1)
        return mixed + (b1 @ b2).reshape(X.shape)


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
        return cls(
            value.new_empty([size if dim == kept else 1 for dim, size in enumerate(value.shape)]), strength, axis
        )

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
        ones = empty(value, value.shape[0], *[1] * (value.ndim - 1)) + 1 if rescale else None
        return cls(empty(value, blocks, size, size), ones, strength, constraint)

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
        if odd or size % 2 or stages > 64 or shape[0] % (size << (stages - 1)):
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
        made = super().make(value, blocks, strength, constraint, rescale)
        made.oft_blocks = nn.Parameter(made.oft_blocks.detach().expand(stages, -1, -1, -1).clone())
        assert isinstance(made, LycorisBOFT)
        return made

    def turned(self, X: Tensor) -> Tensor:
        turns, size = self.turns(X), self.oft_blocks.size(-1)
        Y = X.flatten(1) if X.ndim > 1 else X
        for stage, turn in enumerate(turns):
            apart = (size // 2) << stage
            Y = Y.unflatten(0, (-1, 2, apart)).transpose(1, 2).flatten(0, 2)
            Y = (turn @ Y.unflatten(0, (-1, size))).flatten(0, 1)
            Y = Y.unflatten(0, (-1, apart, 2)).transpose(1, 2).flatten(0, 2)
        return Y.reshape(X.shape)
