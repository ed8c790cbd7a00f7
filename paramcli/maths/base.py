"""What every constraint and every parametrization offers.

A `Constraint` is a set of tensors: it measures how far a tensor is from it (`residual`), knows how
much of that rounding explains (`tolerance`), and gives the nearest point (`project`).
A `Parametrization` is a map whose values lie in a constraint, as an `nn.Module` that torch's own
`register_parametrization` takes: `map` is the law, `inverse` its right inverse.

Everything acts on the last two dimensions and batches over the rest, on any device. Shapes and
names of tensors in files are none of this package's business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputRefused
from ..view import IDENTITY, View
from .numbers import compute_dtype, wide
from .rows import Share

# A residual below this is worth telling of, though rounding does not explain it.
NEARLY = 0.05
FARTHER = 1.01 * NEARLY
# A residual in double precision below which a tensor is on its constraint for an exact inverse.
MEMBER = 1e-9


@dataclass(frozen=True)
class Check:
    """One thing that was measured: it holds when the residual is within the tolerance."""

    constraint: str
    residual: float
    tolerance: float
    detail: str | None = None

    @property
    def ok(self) -> bool:
        # Written so that a NaN residual fails, and one below 0, which no distance is.
        return bool(0 <= self.residual <= self.tolerance)


@dataclass(frozen=True)
class Part:
    """One condition of a set: how far each matrix of a batch is from it, and what rounding explains of that."""

    what: str  # "" for the only one
    residual: Tensor
    tolerance: float


@dataclass(frozen=True)
class Edge:
    """Where an open image ends, seen from members of the set that it fills but for its edge.

    On the edge a map has no original, and near it originals so large, or made so exactly, that rounding them gives
    another value.
    """

    # How near each matrix comes, and how that is said of one.
    distance: Tensor
    says: Callable[[float], str]
    # For each matrix a share by which rounding changes its originals -> the points nearest to the members whose
    # originals can bear that. A member that is far enough inside, or whose share is 0, comes back as it is, to the bit.
    inside: Callable[[Tensor], Tensor]
    # The chain that holds them.
    hint: str | None = None
    # For each matrix the share up to which it comes back as it is, where that is known.
    begins: Tensor | None = None
    # The least share that is of use, where that may be less than what the stored dtype rounds by.
    finest: float | None = None

    @property
    def what(self) -> str:
        """How near they come, with the number of the nearest."""
        return self.says(self.distance.min().item())

    def of(self, index: int) -> Edge:
        """The edge as the first dimension's matrices of this index see it, for what is told."""
        return replace(self, distance=self.distance[index])


class CannotReach(InputRefused, NotImplementedError):
    """A map has no preimage for the tensor it was asked for; the message says why, with a number.

    As a NotImplementedError it is what torch expects of a right inverse at registration: the tensor is then taken as
    the original itself (`--init raw`). On assignment it is the error it says it is.
    """

    code = "out_of_reach"


class Singular(InputRefused):
    """A nearest point that does not exist or is not unique."""


def one_entry(W: Tensor, by: complex = 0.2) -> Tensor:
    """W with its entry (0, 1) of each matrix (or 1 of a vector) off by a share of W's size: a near-miss of
    many sets.
    """
    off = W.clone()
    off[..., 0, -1] += by * torch.linalg.vector_norm(W)
    return off


def row_scaled(W: Tensor, by: float = 1.05) -> Tensor:
    """W with its last row scaled: the one wrong row that a mean over a large matrix would hide."""
    off = W.clone()
    off[..., -1, :] *= by
    return off


class Constraint:
    """A set of tensors. `name` and arguments are those of the registry's table."""

    name = ""
    # What `project` gives. "nearest": the nearest point of the set. "inside": the set is open, and the nearest with a
    # margin is given. "near": the nearest is not known, and another member close by is given. "none": there is no such
    # point to give, and project refuses what lies outside.
    projection = "nearest"
    # The residual is one number for the whole tensor, not one for each matrix of a batch.
    whole = False
    # The residual of a matrix of a batch is to the bit what it is alone.
    stacks = True
    # `project` too acts on each row alone, and leaves members as they are, where `by_rows` holds.
    projects_by_rows = False
    # `detail` is worth a word of members too.
    tells = False

    def residual(self, W: Tensor) -> Tensor:
        """A number >= 0 for each matrix of the batch, 0 on the set; W is double precision."""
        raise NotImplementedError

    def tolerance(self, shape: torch.Size, stored: torch.dtype, computed: torch.dtype) -> float:
        """The largest residual that rounding to `stored` after computing in `computed` explains.

        0 for a set that rounding never leaves: equal entries stay equal, zeros zero, and order stays order.
        """
        return 0.0

    def parts(self, W: Tensor, stored: torch.dtype, computed: torch.dtype) -> list[Part]:
        """The conditions that make up the set, each against its own tolerance: rounding leaves some of them exact."""
        return [Part("", self.residual(W), self.tolerance(W.shape, stored, computed))]

    def as_stored(self, stored: torch.dtype) -> Constraint:
        """The set as tensors of this dtype can have it: bounds on entries are rounded as the entries are."""
        return self

    def project(self, W: Tensor) -> Tensor:
        """The point of the set nearest to W in the Frobenius norm; raises Singular without one."""
        raise NotImplementedError

    def nearest(self, W: Tensor, stored: torch.dtype | None) -> tuple[Tensor, str | None]:
        """(`project` of a W that was rounded to `stored`, what had to be assumed for it); None where it was not
        rounded.

        Raises Singular also where the nearest point would be made of nothing but that rounding.
        """
        return self.project(W), None

    def by_rows(self, shape: torch.Size) -> bool:
        """Can a tensor of this shape be measured a block of rows (indices of dimension 0) at a time?

        Its residual is then, to the bit, `joined` of the `part` of every block.
        """
        return False

    def part(self, W: Tensor) -> Tensor:
        """What a block of rows has to say about the residual of the whole: its own, unless that needs more."""
        return self.residual(W).amax()

    def joined(self, parts: Tensor, shape: torch.Size) -> Tensor:
        """The residual of a tensor of this shape from the parts of its blocks, stacked: the worst of them."""
        return parts.amax()

    def detail(self, W: Tensor) -> str | None:
        """What a person wants to know of a tensor that is off, beyond the residual."""
        return None

    def check_shape(self, shape: torch.Size) -> None:
        """Raise InputRefused for a shape that cannot lie in the set."""

    def sample(self, shape: torch.Size, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        """A random member of this shape."""
        return self.project(torch.randn(shape, generator=generator, dtype=dtype))

    def near_misses(self, W: Tensor) -> dict[str, Tensor]:
        """Labelled tensors close to the member W that are none, in any dtype they are rounded to."""
        raise NotImplementedError

    def at_least(self, W: Tensor) -> float:
        """A lower bound of the residual of a W in double precision, cheaper than that: 0 where there is none.

        Of a bound that is far from the set nothing else need be known. Right to a share of 1e-6, not to the last bit.
        """
        return 0.0

    @classmethod
    def candidates(cls, W: Tensor, stored: torch.dtype) -> list[Constraint]:
        """The sets of this kind that a look at W (double precision, finite, not zero; kept in `stored`) suggests it may
        lie in. A class that leaves this as it is belongs to the sets that `discover` does not try, and says so.
        """
        return []


def is_near(constraint: Constraint, W: Tensor, part: Tensor) -> bool:
    """Is W, in double precision, nearer to the set than NEARLY?

    `part`: some of W that is no farther from the set than all of it is. Where that is farther, by a hundredth more than
    rounding (FARTHER), the rest of W is not looked at.
    """
    if part.numel() < W.numel() and bool((constraint.residual(part) > FARTHER).any()):
        return False
    return bool((constraint.residual(W) < NEARLY).all())


def first_along(W: Tensor, dim: int | None) -> Tensor:
    """The first vector along `dim`; the whole tensor as one for None."""
    return W.reshape(-1) if dim is None else W[tuple(slice(None) if d == dim % W.ndim else 0 for d in range(W.ndim))]


def first_of_batch(W: Tensor) -> Tensor:
    """A batch with the first matrix of W alone; a vector or a matrix is all there is."""
    return W[(slice(1),) * max(W.ndim - 2, 0)]


def started(constraint: Constraint, W: Tensor) -> Tensor:
    """W where it is a member (to what an exact inverse brings back), else its nearest point; in double precision.

    What a live registration starts from when its weight lies outside, as torch's `orthogonal` does.
    """
    W = W.to(wide(W.dtype, W.device))
    return W if bool((constraint.residual(W) <= MEMBER).all()) else constraint.project(W)


def square(shape: torch.Size | tuple[int, ...], who: str) -> None:
    if len(shape) < 2 or shape[-1] != shape[-2]:
        seen = (
            f"sees {'x'.join(map(str, shape))}"
            if len(shape) > 1
            else f"sees a vector of {shape[0]}"
            if shape
            else "sees a scalar"
        )
        raise InputRefused(f"{who} needs a square matrix (or a batch of them); the maths {seen}")


def matrix(shape: torch.Size | tuple[int, ...], who: str) -> None:
    if len(shape) < 2:
        seen = f"a vector of {shape[0]}" if shape else "a scalar"
        raise InputRefused(f"{who} needs a matrix (or a batch of them); the maths sees {seen}")


class Parametrization(nn.Module):
    """A map onto a constraint, as torch's parametrize wants it.

    Subclasses give `map` and `inverse` for what the view shows; `forward` and `right_inverse`, which
    torch calls, add the view and compute half precision in float32, rounding once.
    """

    view: View = IDENTITY
    # The map is itself the projection onto its image (a mask, a polar factor): every tensor is then
    # its own right inverse, and keeping it loses nothing.
    is_projection = False
    # torch evaluates the map while it registers it, and what that changes (u and v) belongs to the result.
    evaluated_on_registration = False
    # Which originals have the stored shape (the others, such as weight norm's g, are no view of it).
    stored_originals: tuple[int, ...] = (0,)
    # Every value of the map lies in its image; off where that needs more than the originals (u and v kept up to date).
    onto_image = True
    # The map sees the whole tensor, not matrix by matrix of a batch.
    whole = False
    # Every member of the image is a value of the map; off where the image is a larger set, the least that has a name.
    fills_image = True
    # Small matrices of several tensors may be stacked into one batch, both ways: every value is bit for bit what it is
    # alone, and there are no buffers. (torch.matrix_exp takes another path for a batch than for one matrix.)
    stacks = False
    # Each registration draws anew, so that doing it twice gives another value.
    random = False
    # The gradient with respect to the originals is the derivative of the map (not a straight-through estimate).
    differentiable = True
    # Its own square tensors that torch's module holds column by column: its products round as that order has it.
    by_columns: tuple[str, ...] = ()
    # Identity matrices that other code for this map stores as buffers; they say nothing that the shape does not.
    identities: tuple[str, ...] = ()
    # Its own tensors that are exponents where they are stored as bytes: 255 is that of no number (OCP Microscaling).
    exponents: tuple[str, ...] = ()
    # The stored shape of the weight, known when the module is registered.
    stored_shape: tuple[int, ...] = ()
    # What to say of a value that is off its image where the map's own tensors promise nothing of it (`slack` is 0).
    unpromised: str | None = None
    # Near the map's edge a value counts as a member within this share of its tolerance: other kernels, and other ways
    # of writing the map, which round another way, then find it within the whole.
    safe_share = 1.0
    # The dtype that the value given to `inverse` was rounded to, where it was.
    stored: torch.dtype | None = None
    # The stored dtype of the weight, for `checks` and `slack`: they see everything in double precision.
    stored_dtype: torch.dtype = torch.float32
    # The row of the whole tensor that a block's first row is, so that messages name rows as its owner counts them.
    first_row: int | None = None
    # The item of a chain that it was made for, as text.
    spec: str

    # Each map has originals and arguments of its own: the signatures here leave both open (`*_: Any, **arguments: Any`)
    # so that those of a class may name them.

    @classmethod
    def by_rows(cls, shape: torch.Size, *_: Any, **arguments: Any) -> frozenset[str] | Mapping[str, int | Share]:
        """Where each row of the value (an index of dimension 0) comes from that row of the originals alone, bit for
        bit, in a tensor of this shape: the map's own tensors that have such rows, by name, or one for so many rows, or
        another share. The others are given whole.

        Empty where a row of the value needs other rows. "Bit for bit" is for one thread, and for blocks that begin at a
        multiple of `ROW_STEP` entries: kernels compute the entries beyond their last full vector by other code.
        """
        return frozenset()

    @classmethod
    def made_by_rows(cls, shape: torch.Size, *_: Any, **arguments: Any) -> bool:
        """Do `make` and `inverse` too act on each row alone, where the map does?"""
        return False

    @classmethod
    def threads_matter(cls, *_: Any, **arguments: Any) -> bool:
        """Does the map gain from several threads, or do its bits depend on their number? Passes over memory do
        neither.
        """
        return True

    @classmethod
    def make(cls, value: Tensor, *_: Any, **arguments: Any) -> Parametrization:
        """The module for a tensor with this value (seen through the view); random parts use torch's generator."""
        return cls(**arguments)

    def inverts_together(self, values: Tensor) -> bool:
        """Gives `inverse` of these tensors, along the first dimension, each what it gets alone, bit for bit?"""
        return False

    @classmethod
    def to_invert(cls, value: Tensor, **arguments: Any) -> Parametrization:
        """`make` of a module whose `inverse` of the value comes next; without what that replaces."""
        return cls.make(value, **arguments)

    @classmethod
    def check_shape(cls, shape: torch.Size, *_: Any, **arguments: Any) -> None:
        """Raise InputRefused for a shape (as the view shows it) the map has no use for, beyond what its sets refuse."""

    def map(self, *originals: Any, **_: Any) -> Tensor:
        raise NotImplementedError

    def inverse(self, value: Tensor) -> Tensor | tuple[Tensor, ...]:
        return value

    def proves(self, value: Tensor, within: float, *originals: Tensor) -> bool:
        """Is it sure, at less than the cost of `map`, that the value of these originals is the one that they were made
        for, but for this share of it, matrix by matrix?
        """
        return False

    def edge(self, value: Tensor) -> Edge | None:
        """The edge of an open image, for members `value` of the set in double precision; None where `inverse` takes all
        of them.
        """
        return None

    def checks(self, originals: tuple[Tensor, ...], value: Tensor) -> list[Check]:
        """What must hold between this module's own tensors and its value, beyond the constraint.

        `originals` and `value` are what the view shows, in double precision.
        """
        return []

    def slack(self, image: Constraint, value: Tensor) -> float:
        """How much farther from its image than rounding explains this module's own tensors leave the value; an image
        has an argument `within` for it, which the record keeps of a baked value. `value` as `checks` has it.
        """
        return 0.0

    def outline(self, value: Tensor) -> Tensor | tuple[Tensor, ...]:
        """`inverse` for a tensor that has a shape and no data: originals and buffers of the right shapes and dtypes."""
        # Not empty_like: for tensors without data it loads sympy, half a second and 30 MB.
        return value.new_empty(value.shape)

    @classmethod
    def weight_shape(cls, *originals: Any, **arguments: Any) -> tuple[int, ...] | None:
        """The weight's shape from its originals' shapes, where no view and no record tells it; None where they do
        not.
        """
        return originals[cls.stored_originals[0]]

    def forward(self, *originals: Any, **_: Any) -> Tensor:
        stored = originals[0].dtype
        dtype = compute_dtype(stored)
        seen = [X.to(dtype) for X in self.into_view(originals)]
        shape = originals[self.stored_originals[0]].shape if self.stored_originals else self.stored_shape
        return self.view.back(self.map(*seen).to(stored), shape)

    def right_inverse(self, value: Tensor) -> Tensor | tuple[Tensor, ...]:
        seen = self.view.into(value)
        try:
            originals = self.outline(seen) if value.is_meta else self.inverse(seen.to(compute_dtype(value.dtype)))
        except CannotReach as error:
            if self.stored_originals == (0,):
                raise
            # torch would take the tensor for the original, and this map has others.
            raise InputRefused(error.fact, hint=error.advice) from None
        made = self.out_of_view(originals if isinstance(originals, tuple) else (originals,), value.shape)
        made = tuple(X.to(value.dtype) for X in made)
        return made if isinstance(originals, tuple) else made[0]

    def into_view(self, originals: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Originals as stored -> as the maths sees them."""
        return tuple(self.view.into(X) if i in self.stored_originals else X for i, X in enumerate(originals))

    def out_of_view(self, originals: tuple[Tensor, ...], shape: torch.Size) -> tuple[Tensor, ...]:
        """Originals as the maths made them -> in the stored shape."""
        return tuple(self.view.back(X, shape) if i in self.stored_originals else X for i, X in enumerate(originals))
