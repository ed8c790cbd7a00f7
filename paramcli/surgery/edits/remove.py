"""remove: bake tensors into plain weights, or go back to their originals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...checkpoint.header import Slot
from ...dtypes import CAST_DTYPES, COMPUTE_DTYPES, CastDtype, ComputeDtype, dtype_name, kind_of
from ...errors import PATH, TENSOR, InputRefused, UsageError
from ...spelling.forms import Group
from ...spelling.given import named, with_chain
from ...spelling.quantized_comfyui import MARKER
from ...spelling.unparametrized import instead_of_chains
from ...text import listing, shape_text
from ...wording import call, given
from ..plan import Promise, Step, baked
from .base import Edit, Planner, Planning, option, reading


@dataclass(frozen=True, kw_only=True)
class Remove(Edit):
    command = "remove"

    bake: bool = option(True, "flag")
    chain: str | None = option(None, "text")
    view: str | None = option(None, "text")
    dtype: CastDtype | None = option(None, "text", choices=CAST_DTYPES)
    compute_dtype: ComputeDtype = option("same", "text", choices=COMPUTE_DTYPES)

    @property
    def suffix(self) -> str:
        return ".baked" if self.bake else ".unparametrized"

    @property
    def computes(self) -> bool:
        return self.bake

    @property
    def takes_nested(self) -> bool:
        return self.bake

    def check(self) -> None:
        reading(self.chain, self.view)
        if self.dtype is not None and not self.bake:
            raise UsageError(
                f"{given('dtype')} is for values that are computed, and {given('bake', False)} computes none",
                hint=given("bake", True),
                option="dtype",
            )

    def choose(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        chain, view = reading(self.chain, self.view)
        found = named(groups, self.tensor, where, chain is not None) if self.tensor else list(groups.values())
        parametrized = [group for group in found if not group.is_plain]
        chosen = with_chain(parametrized, chain, view, named=bool(self.tensor))
        if not chosen and self.tensor:
            raise InputRefused(
                f"{TENSOR} is a plain tensor already",
                hint=f"{call('inspect', PATH)} shows the form of each",
                tensor=found[0].tensor,
                code="nothing_parametrized",
            )
        if not chosen:
            holds = instead_of_chains(groups, where)
            raise InputRefused(f"no tensor is parametrized: {holds.what}", hint=holds.hint, code="nothing_parametrized")
        return chosen

    def planner(self, work: Planning) -> Planner:
        if not self.bake:
            return parametrized(Unparametrize().plan)
        from .remove_work import Bake

        return parametrized(Bake(dtype=self.dtype).plan)

    def remarks(self, chosen: Sequence[Group], groups: Mapping[str, Group]) -> Iterator[str]:
        return still_codes(chosen, groups)

    def foretell(self, group: Group) -> Promise | None:
        return baked(group) if self.bake and self.dtype is None and not group.problem else None


def still_codes(chosen: Sequence[Group], groups: Mapping[str, Group]) -> Iterator[str]:
    """Where codes are baked: which others are 8-bit floats, or codes that are not read, and stay what they are."""
    if not any(group.in_codes for group in chosen):
        return
    baked = {group.tensor for group in chosen}
    left: dict[str, dict[str, str]] = {"no scale was read for": {}, "nothing says what decodes": {}}
    for name, group in groups.items():
        stored = group.infos.get("value") or group.infos.get("original")
        mere = group.unknown or (group.is_plain and stored and kind_of(stored.dtype) == "packed")
        if mere and stored and name not in baked and name.rpartition(".")[2] != MARKER:
            why = "nothing says what decodes" if len(group.infos) > 1 else "no scale was read for"
            left[why][name] = dtype_name(stored.dtype)
    for why, names in left.items():
        if names:
            stay, it = ("stays", "it") if len(names) == 1 else ("stay", "them")
            dtypes = " and ".join(sorted(set(names.values())))
            yield f"{listing(names, 4)} {stay} in {dtypes}, as before: {why} {it}"


def parametrized(plan: Planner) -> Planner:
    """The planner, for what has something to remove: a tied plain tensor that is meant along has not."""

    def plan_one(group: Group) -> Step:
        if group.is_plain:
            raise InputRefused(
                f"{TENSOR} is a plain tensor, and one with what a parametrization stores: it cannot be edited alike",
                hint=f"{given('tied', 'separate')} leaves it as it is",
                tensor=group.tensor,
            )
        return plan(group)

    return plan_one


@dataclass(frozen=True)
class Unparametrize:
    """`remove --no-bake`: the original in place of the parametrization, byte for byte."""

    def plan(self, group: Group) -> Step:
        if group.chain is not None and group.chain.decodes:
            raise InputRefused(
                f"{TENSOR} stores codes ({group.chain}): without what they are decoded with they are no weight",
                hint=f"{given('bake', True)} keeps the value",
            )
        if "original" not in group.keys:
            several = ", ".join(sorted(role for role in group.keys if role.startswith("original")))
            raise InputRefused(
                f"{TENSOR} has several originals ({several or 'none complete'}); none of them alone is the weight",
                hint=f"{given('bake', True)} keeps the value",
            )
        shape = group.infos["original"].shape
        if shape != group.shape:
            raise InputRefused(
                f"the original of {TENSOR} is {shape_text(shape)} and the weight {shape_text(group.shape)}; "
                "it cannot take its place",
                hint=f"{given('bake', True)} keeps the value",
            )
        renames = {group.tensor: group.keys["original"]}
        return Step(
            group,
            "unparametrize",
            (Slot(group.tensor, group.dtype, group.shape),),
            group.chain,
            group.view,
            renames=renames,
        )
