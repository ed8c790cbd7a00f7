"""What an entry of the table says: its card, its types, and the class that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..spec import Argument, Value, value_text

Shape = tuple[int, ...]
# Role -> (dtype code, or None for the weight's own; shape): what a parametrization stores for a weight.
Stored = dict[str, tuple[str | None, Shape]]


def itself(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    """One original in the weight's shape and nothing beside it."""
    return {"original": (None, shape)}


def masked(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    """The weight as it was, and which of its entries count."""
    return {"original": (None, shape), "mask": ("BOOL", shape)}


def based(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    """An original, and a square matrix that it moves."""
    side = max(shape[-2:])
    return {"original": (None, shape), "base": (None, (*shape[:-2], side, side))}


@dataclass(frozen=True, kw_only=True)
class MeasureEntry:
    """What is measured of a parametrization's own tensors, by the name that verify shows; no set, and no claim once it
    is baked.
    """

    name: str
    summary: str
    residual: str
    tolerance: str
    proves: str
    # What someone might take it to prove.
    not_proved: str

    def __str__(self) -> str:
        """As an entry's `verifies` has it."""
        return f"{self.name}: {self.residual}"


@dataclass(frozen=True, kw_only=True)
class ConstraintEntry:
    """A set of tensors by name. `within`: the sets that contain it; `target`: as of `Entry`."""

    name: str
    summary: str
    target: str | type
    within: tuple[str, ...] = ("any",)
    arguments: tuple[Argument, ...] = ()
    residual: str = ""
    # Arguments that `discover` always writes, default or not.
    spelt: tuple[str, ...] = ()
    # Why these values, each of which is one, are none together; None where they are.
    impossible: Callable[[Mapping[str, Value]], str | None] | None = None
    # Specs that the laws are tested on; the bare name where arguments are optional.
    examples: tuple[str, ...] = ()
    # Complex tensors can lie in it; and real ones can (`hermitian` leaves them to `symmetric`).
    complex: bool = False
    real: bool = True
    # The parametrization, with those arguments that this set requires, that keeps every member as it is.
    keeper: str | None = None
    # For `discover`, which tells nothing that a stronger finding says: sets that its members lie in for some arguments
    # of theirs, which the inclusions of `within` do not speak of;
    implies: tuple[str, ...] = ()
    # the closed set that this open one fills but for its border, whose members are all near this one;
    closure: str | None = None
    # and whether a tensor of equal entries is in it, or near it, for no other reason.
    of_constants: bool = False
    # Orthogonal matrices with determinant 1 alone: half of what draws orthogonal ones draws none of these.
    rotations: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A parametrization by name: its card, its types and the class that computes it.

    `maps` are (domain, image) pairs of constraint specs, the first fitting one holds; an image may be a
    function of the arguments. `target` is "module:Class" below `maths`, or a plug-in's class itself.
    """

    name: str
    family: str
    summary: str
    law: str
    maps: tuple[tuple[str, str | Callable[[Mapping[str, Value]], str]], ...]
    right_inverse: str
    source: str
    target: str | type
    arguments: tuple[Argument, ...] = ()
    cost: str = ""
    # What the map costs in products of n x n matrices, for --dry-run; 0: passes over the tensor only.
    products: float = 0
    # More than one original: torch then wants it first in its chain.
    originals: int = 1
    # Its one original does not have the weight's shape: it too comes first, and its class tells the weight's shape.
    reshapes: bool = False
    # What verify measures of its tensors beside the image's residual, by the name that its table shows.
    verifies: str = ""
    # What it stores, by shape alone: a hint by which copying begins before the maths is there, so a wrong one of a
    # plug-in costs time and nothing else. The built-in ones also tell a shard that has half a tensor. None: only the
    # class can tell.
    stores: Callable[[Shape, Mapping[str, Value]], Stored] | None = itself
    # As of a ConstraintEntry.
    impossible: Callable[[Mapping[str, Value]], str | None] | None = None
    # Arguments that are always written in a chain's text, given or not.
    spelt: tuple[str, ...] = ()
    # The image for tensors of a shape, as the view shows it, from the image that the arguments give.
    image_at: Callable[[str, Shape], str] | None = None
    # Chains that the laws are tested on, each mode once; the bare name where nothing must come before it.
    examples: tuple[str, ...] = ()
    # The spelling from before parametrize that holds the same tensors, where there was one.
    old_form: str | None = None
    # The maths has a complex form; the others refuse complex tensors. A function of the domain and the arguments where
    # only some modes have one: exp of a complex skew-symmetric matrix is no rotation, of a skew-Hermitian one it is.
    complex: bool | Callable[[str, Mapping[str, Value]], bool] = False
    # The chain to take where this one's square bases would be far larger than the weight; {rank} is its own argument.
    compact: str | None = None
    # Its original are codes: integers, or floats of 8 bits and fewer, from which the values are computed in float32. It
    # is the first of its chain, and no weight can be put under it yet.
    decodes: bool = False
    # The argument of its image that says how far beyond rounding a value may be: data decide it at a bake, and the
    # record keeps it.
    keeps: str = ""
    # Tensors from a file that `make` takes beside the arguments, by name: `mask` is what --mask gives.
    takes: tuple[str, ...] = ()
    # Made of a weight alone it changes nothing but that the zeros stay; `add` says so of a weight that has none.
    keeps_zeros: bool = False
    # The argument, and its value, with which `amount` counts the smallest entries of all chosen tensors together.
    # Each tensor's own chain then has its own count, and not this argument.
    over_all: tuple[str, str] | None = None
    # Of a map that brings outputs to stored lengths: the chain without these, "" where nothing is left of it.
    without_lengths: str | None = None
    # torch's function for the same, and its keyword arguments, where torch.nn.utils.parametrizations has one.
    torch_call: Callable[[Mapping[str, Value]], tuple[str, dict[str, Value]]] | None = None
    # Another name for this entry: same class, same maps. The laws and literals of that entry are its own.
    same_as: str | None = None


def image_of(constraint: str, *names: str) -> Callable[[Mapping[str, Value]], str]:
    """An image that passes a parametrization's arguments on to its constraint, which has the same defaults."""

    def spec(arguments: Mapping[str, Value]) -> str:
        return constraint + "".join(f":{name}={value_text(arguments[name])}" for name in names if name in arguments)

    return spec
