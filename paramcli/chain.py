"""A chain: parametrizations in the order they are registered, type-checked before any tensor is read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .catalogue.entry import Entry
from .errors import UsageError, error_context
from .registry import ANY, CONSTRAINTS, DECODERS, PARAMETRIZATIONS, look_up, target_class, typed_arguments, within
from .spec import Value, parse_items, value_text
from .text import decimal_text
from .wording import given

if TYPE_CHECKING:
    from torch import Tensor

    from .maths.base import Parametrization

# As long as any number of `rounded_up` is.
WIDEST = "9.99e-99"


def rounded_up(value: float) -> float:
    """The next number of three digits: 0.0152345 -> 0.0153."""
    near = float(f"{value:.2e}")
    return near if near >= value else float(f"{value + 10.0 ** (math.floor(math.log10(value)) - 2):.2e}")


@dataclass(frozen=True)
class Link:
    """One item of a chain: its entry, its arguments, and the sets it maps between."""

    entry: Entry
    arguments: dict[str, Value] = field(hash=False)
    domain: str
    image: str
    # Tensors that `make` takes beside the arguments (a mask from a file); no part of the chain's text.
    tensors: dict[str, Tensor] = field(default_factory=dict, hash=False, compare=False, repr=False)

    def __str__(self) -> str:
        """Canonical text: the arguments given, in the table's order."""
        return self._text(short=False)

    @property
    def short(self) -> str:
        """The same for a person: 'lora:rank=4:alpha=8', decimals with six digits at most."""
        return self._text(short=True)

    def _text(self, *, short: bool) -> str:
        shown = dict(self.arguments)
        for name in self.entry.spelt:
            shown.setdefault(name, next(a.default for a in self.entry.arguments if a.name == name))
        text = self.entry.name
        for argument in self.entry.arguments:
            if argument.name in shown:
                value = shown[argument.name]
                # (Of an amount 1.0 is all, and 1 one entry.)
                if short and isinstance(value, float) and argument.type == "float":
                    text += f":{argument.name}={decimal_text(value)}"
                else:
                    text += f":{argument.name}={value_text(value)}"
        return text

    @property
    def complex(self) -> bool:
        """Does it take complex tensors?"""
        return (
            self.entry.complex
            if isinstance(self.entry.complex, bool)
            else self.entry.complex(self.domain, self.arguments)
        )

    @property
    def over_all(self) -> bool:
        """Does its amount count entries of all chosen tensors together?"""
        return self.entry.over_all is not None and self.entry.over_all in self.arguments.items()

    @property
    def real(self) -> bool:
        """Does it take real tensors?"""
        return all(CONSTRAINTS[spec.partition(":")[0]].real for spec in (self.domain, self.image))

    def with_arguments(self, spec: str) -> str:
        """A spec such as 'factored:rank={rank}' with this link's own arguments."""
        return spec.format_map({name: value_text(value) for name, value in self.arguments.items()})

    def make(self, value: Tensor, to_invert: bool = False) -> Parametrization:
        """The live module for a tensor with this value, which remembers its own spec; imports torch. `to_invert`: the
        inverse of the value is asked of it next.
        """
        kind = target_class(self.entry)
        module = (kind.to_invert if to_invert else kind.make)(value, **self.arguments, **self.tensors)
        module.spec = str(self)
        return module


@dataclass(frozen=True)
class Chain:
    """The links of a well-typed chain. weight = link_n(... link_1(original))."""

    links: tuple[Link, ...]

    def __str__(self) -> str:
        return ",".join(map(str, self.links))

    @property
    def short(self) -> str:
        """The text for a person, which is not always one that can be parsed."""
        return ",".join(link.short for link in self.links)

    def __repr__(self) -> str:
        return f"<Chain {self}>"

    def __len__(self) -> int:
        return len(self.links)

    @property
    def constraint(self) -> str | None:
        """The set the values lie in, as a constraint spec; None when that is every tensor."""
        image = self.links[-1].image
        return None if image == ANY else image

    @property
    def decodes(self) -> bool:
        """Are what it stores codes, and its values of another dtype?"""
        return self.links[0].entry.decodes

    @property
    def claims(self) -> bool:
        """Is there something that verify measures of its values, or of the tensors it stores?"""
        return self.constraint is not None or any(link.entry.verifies for link in self.links)

    @property
    def widest_constraint(self) -> str | None:
        """The longest text that a bake may make of the constraint, where its data decide an argument of it."""
        keeps = self.links[-1].entry.keeps
        return f"{self.constraint}:{keeps}={WIDEST}" if keeps else self.constraint

    def kept_constraint(self, within: float) -> str:
        """The constraint with the argument that data decide: three digits of it, rounded up."""
        return f"{self.constraint}:{self.links[-1].entry.keeps}={value_text(rounded_up(within))}"

    def require_taker(self, name: str) -> None:
        """Raise UsageError where no link takes a tensor of this name from a file."""
        if not any(name in link.entry.takes for link in self.links):
            takers = [entry.name for entry in PARAMETRIZATIONS.values() if name in entry.takes]
            raise UsageError(f"{self} has no {name} that could take it", hint=given("chain", takers[0]), option="chain")

    def with_tensor(self, name: str, tensor: Tensor) -> Chain:
        """The chain whose links that take a tensor of this name are made with this one."""
        return Chain(
            tuple(
                replace(link, tensors={**link.tensors, name: tensor}) if name in link.entry.takes else link
                for link in self.links
            )
        )

    def weight_shape(self, originals: Sequence[tuple[int, ...]]) -> tuple[int, ...] | None:
        """The weight's shape from the shapes of its originals, without a view; None where they are not this chain's."""
        first = self.links[0]
        if len(originals) != first.entry.originals:
            return None
        if first.entry.originals == 1 and not first.entry.reshapes:
            return originals[0]
        return target_class(first.entry).weight_shape(*originals, **first.arguments)

    def at(self, shape: tuple[int, ...]) -> Chain:
        """The chain for tensors of this shape, as the view shows it: where an image depends on that, it is the one for
        them.
        """
        if all(link.entry.image_at is None for link in self.links):
            return self
        return Chain(
            tuple(
                link if (at := link.entry.image_at) is None else replace(link, image=at(link.image, shape))
                for link in self.links
            )
        )

    def stores(self, shape: tuple[int, ...]) -> dict[str, tuple[str | None, tuple[int, ...]]] | None:
        """Role -> (dtype code, None for the weight's own; shape) by the table alone, without a view; None where it
        cannot tell.
        """
        roles = {}
        for index, link in enumerate(self.links):
            if link.entry.stores is None:
                return None
            try:
                stored = link.entry.stores(shape, link.arguments)
            except Exception:
                return None  # a shape that the link does not take, or a plug-in's mistake: planning says which matters
            for name, what in stored.items():
                if not name.startswith("original"):
                    roles[f"{index}.{name}"] = what
                elif index == 0:
                    roles[name] = what
        return roles

    def uninvertible(self) -> str | None:
        """Why assignment through the chain cannot work whatever the value; None when it can.

        The right inverse of a link lands in its domain, so that must lie in the image before it.
        """
        image = ANY
        for before, link in zip((None, *self.links[:-1]), self.links, strict=True):
            if before is not None and not within(link.domain.partition(":")[0], image):
                return f"the right inverse of {link.entry.name} does not lie in the values of {before.entry.name}"
            image = link.image.partition(":")[0]
        return None


@error_context(option="chain")
def parse_chain(text: str) -> Chain:
    """'skew,cayley' -> Chain; raises UsageError for unknown names, bad arguments and ill-typed chains."""
    links: list[Link] = []
    image = ANY
    for item in parse_items(text):
        entry = look_up({**PARAMETRIZATIONS, **DECODERS}, item.name, "parametrization")
        arguments = typed_arguments(entry, item)
        if _comes_first(entry) and links:
            what = (
                "codes"
                if entry.decodes
                else f"{entry.originals} originals"
                if entry.originals > 1
                else "an original of another shape than the weight"
            )
            raise UsageError(
                f"{entry.name} stores {what}, so it can only be the first of a chain",
                hint=f"{entry.name},{links[0].entry.name}" if not _comes_first(links[0].entry) else None,
            )
        fitting = next((pair for pair in entry.maps if within(image.partition(":")[0], pair[0])), None)
        if fitting is None:
            raise _ill_typed(entry, links, image)
        domain, made = fitting
        links.append(Link(entry, arguments, domain, made if isinstance(made, str) else made(arguments)))
        image = links[-1].image
    return Chain(tuple(links))


def _comes_first(entry: Entry) -> bool:
    """Does it store what no link before it could make?"""
    return entry.originals > 1 or entry.reshapes or entry.decodes


def _ill_typed(entry: Entry, links: list[Link], image: str) -> UsageError:
    wanted = " or ".join(domain for domain, _ in entry.maps)
    before = (
        f"after {links[-1].entry.name} it gets {CONSTRAINTS[image.partition(':')[0]].name}"
        if links
        else "nothing before it gives that"
    )
    sources = [
        e.name
        for e in PARAMETRIZATIONS.values()
        for _, made in e.maps
        if isinstance(made, str) and any(within(made.partition(":")[0], d) for d, _ in entry.maps)
    ]
    working = " or ".join(f"{name},{entry.name}" for name in dict.fromkeys(sources) if name != entry.name)
    return UsageError(f"{entry.name} wants {wanted} values; {before}", hint=working)


@error_context(option="chain")
def check_items(text: str) -> None:
    """Raise UsageError for unknown names and bad arguments; the types wait for what the items are appended to."""
    for item in parse_items(text):
        typed_arguments(look_up({**PARAMETRIZATIONS, **DECODERS}, item.name, "parametrization"), item)


def extend(chain: Chain, more: str) -> tuple[Chain, Chain]:
    """(the chain with more items registered after it, type-checked as one; the new links alone)."""
    whole = parse_chain(f"{chain},{more}")
    return whole, Chain(whole.links[len(chain) :])
