"""add: put a chain of parametrizations on tensors. Its options, and what the headers foretell of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...catalogue.measures import MASK
from ...chain import Chain, Link, check_items, extend, parse_chain
from ...checkpoint.header import Slot
from ...dtypes import COMPUTE_DTYPES, ComputeDtype
from ...errors import UsageError
from ...registry import CONSTRAINTS, DECODERS, target_class
from ...spec import parse_items
from ...spelling.forms import Group
from ...spelling.keys import parametrized_key
from ...spelling.record import Entry
from ...spelling.recurrent import stacked
from ...text import listing
from ...view import IDENTITY, parse_view
from ...wording import call, given
from ..plan import Promise, together
from .base import SPELLINGS, Edit, Planner, Planning, Spelling, option

Init = Literal["project", "strict", "raw"]
INITS: tuple[Init, ...] = ("project", "strict", "raw")


@dataclass(frozen=True, kw_only=True)
class Add(Edit):
    command = "add"
    suffix = ".parametrized"

    chain: str = option("", "text")
    view: str | None = option(None, "text")
    init: Init = option("project", "text", choices=INITS)
    mask: str | None = option(None, "text")
    max_change: float | None = option(None, "number", minimum=0)
    spelling: Spelling = option("new", "text", choices=SPELLINGS)
    seed: int = option(0, "integer", minimum=0, maximum=2**63 - 1)
    compute_dtype: ComputeDtype = option("same", "text", choices=COMPUTE_DTYPES)

    def check(self) -> None:
        if not self.chain:
            raise UsageError(
                f"add needs {given('chain')}: which parametrizations, in order",
                hint=f"{given('chain', 'skew,cayley')}; {call('registry')} lists them",
                option="chain",
            )
        self._need_tensors("parametrize")
        check_items(self.chain)
        decoder = next((item.name for item in parse_items(self.chain) if item.name in DECODERS), None)
        if decoder is not None:
            raise UsageError(
                f"{decoder} decodes what a quantized file stores, and is put on no weight",
                hint=f"{call('registry')} lists what is",
                option="chain",
            )
        parse_view(self.view)

    def choose(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        """The groups; UsageError, before torch is imported, where on none of them the chain is well typed."""
        chosen = super().choose(groups, where)
        why = functools.cache(self._ill_typed)
        known = [group for group in chosen if group.problem is None]
        wrong = [(group, error) for group in known if (error := why(_chain_before(group))) is not None]
        if wrong and len(wrong) == len(chosen):
            raise together(
                [
                    UsageError(error.fact, hint=error.advice, option="chain", tensor=group.tensor, path=where)
                    for group, error in wrong
                ]
            )
        return chosen

    def _ill_typed(self, before: Chain | None) -> UsageError | None:
        try:
            parse_chain(self.chain) if before is None else extend(before, self.chain)
        except UsageError as error:
            return error
        return None

    def remarks(self, chosen: Sequence[Group], groups: Mapping[str, Group]) -> Iterator[str]:
        try:
            links = parse_chain(self.chain).links
        except UsageError:
            return  # it was appended, and is no chain alone
        biases = [group.tensor for group in chosen if _is_bias(group) and group.tensor not in self.tensor]
        if biases and len(biases) < len(chosen) and any(map(_prunes, links)):
            yield (
                f"biases are among what it prunes ({listing(biases, 2)}): "
                f"{given('tensor', '*weight*')} leaves them as they are"
            )
        if self.view is None and any(map(_goes_by_matrix, links)):
            yield from stacked([group.tensor for group in chosen], groups, "puts the chain on each")

    def planner(self, work: Planning) -> Planner:
        from ..allocate import counts
        from .add_work import Register
        from .values import masks_from

        mask_for = work.stack.enter_context(masks_from(self.mask))
        shares = counts(self.chain, work.source, work.chosen, work.edited)
        view = parse_view(self.view)
        return Register(
            self.chain,
            view,
            self.init,
            self.seed,
            self.max_change,
            self.spelling,
            mask_for,
            shares,
            work.source.tensors,
        ).plan

    def foretell(self, group: Group) -> Promise | None:
        view = parse_view(self.view)
        chain = parse_chain(self.chain).at(view.shape(group.shape))
        if any(link.over_all for link in chain.links):
            return None  # the share of each tensor is in its data
        roles = chain.stores(group.shape)
        if (
            not group.is_plain
            or self.spelling == "old"
            or roles is None
            or (view != IDENTITY and set(roles) != {"original"})
        ):
            return None
        slots = tuple(
            Slot(parametrized_key(group.tensor, role), code or group.dtype, shape)
            for role, (code, shape) in roles.items()
        )
        return Promise(slots, Entry("parametrized", chain, view, chain.constraint))


def _chain_before(group: Group) -> Chain | None:
    """What the chain is appended to."""
    return next(iter(group.chains), None) if not group.is_plain else None


def _is_bias(group: Group) -> bool:
    leaf = group.tensor.rpartition(".")[2]
    return len(group.shape) == 1 and "bias" in leaf


def _prunes(link: Link) -> bool:
    """Does it make a mask, and choose its zeros itself?"""
    return link.entry.verifies == str(MASK) and not link.entry.takes


def _goes_by_matrix(link: Link) -> bool:
    """Is its law one of each matrix, and not of each entry or of the tensor as a whole?"""
    image = CONSTRAINTS[link.image.partition(":")[0]]
    return not target_class(link.entry).whole and not target_class(image).whole
