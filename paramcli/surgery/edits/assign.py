"""assign: set tensors, through their chains. Its options, and what the headers foretell of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...dtypes import COMPUTE_DTYPES, ComputeDtype
from ...errors import Known, UsageError
from ...spelling.forms import Group
from ...spelling.given import named, with_chain
from ...text import closest, printable
from ...wording import given
from ..plan import Promise, assigned
from .base import Edit, Planner, Planning, option, reading

# The initialisers of torch.nn.init that need nothing but the tensor.
INITS = (
    "dirac",
    "eye",
    "kaiming_normal",
    "kaiming_uniform",
    "normal",
    "ones",
    "orthogonal",
    "trunc_normal",
    "uniform",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
)


@dataclass(frozen=True, kw_only=True)
class Assign(Edit):
    command = "assign"
    suffix = ".parametrized"

    from_: str | None = option(None, "text")
    with_: str | None = option(None, "text")
    chain: str | None = option(None, "text")
    view: str | None = option(None, "text")
    seed: int = option(0, "integer", minimum=0, maximum=2**63 - 1)
    compute_dtype: ComputeDtype = option("same", "text", choices=COMPUTE_DTYPES)

    def check(self) -> None:
        self._need_tensors("set")
        if (self.from_ is None) == (self.with_ is None):
            raise UsageError(
                f"assign needs one of {given('from')} and {given('with')}: a file, or an initialiser of torch",
                hint=f"{given('with', 'orthogonal')}, or {given('from', 'other.safetensors')}",
                option="with",
            )
        if self.with_ is not None and self.with_.removesuffix("_") not in INITS:
            near = closest(self.with_, INITS)
            raise UsageError(
                f"no initialiser named '{printable(self.with_)}'",
                hint=Known(f"closest: {', '.join(near)}" if near else f"known: {', '.join(INITS)}"),
                option="with",
            )
        reading(self.chain, self.view)

    def choose(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        chain, view = reading(self.chain, self.view)
        return with_chain(named(groups, self.tensor, where, chain is not None), chain, view, named=True)

    def planner(self, work: Planning) -> Planner:
        from .assign_work import Assignment
        from .values import Initialised, Values, taken_from

        values: Values
        if self.from_ is not None:
            values = work.stack.enter_context(taken_from(self.from_, self.compute_dtype))
        else:
            assert self.with_ is not None  # `check` has seen to it
            values = Initialised(self.with_, self.seed)
        return Assignment(values, self.seed).plan

    def foretell(self, group: Group) -> Promise | None:
        return assigned(group)
