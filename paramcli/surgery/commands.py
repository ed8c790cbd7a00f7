"""The editing commands as values: their options in, plan steps out.

`add`, `assign`, `remove`, `migrate` on the command line and each [[edit]] of a recipe are one of these. An edit
checks its options when it is made, before any file is open; `choose` says which tensors it is for, and
`planner` gives the function that plans one of them. Torch is imported by `planner`, and only where the
edit computes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import ClassVar

from ..chain import check_items, parse_chain
from ..checkpoint.header import Slot
from ..checkpoint.source import Source
from ..dtypes import COMPUTE_DTYPES
from ..errors import TENSOR, InputRefused, Known, Place, UsageError, error_context
from ..spec import check_choice, select
from ..spelling.forms import Group, with_chain
from ..spelling.keys import parametrized_key
from ..spelling.record import Entry
from ..text import closest, printable
from ..view import parse_view
from .plan import Promise, Step, assigned, baked

Planner = Callable[[Group], Step]
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


def option(
    default: object,
    kind: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
):
    """A field that is an option of the command: `kind` is text, texts, number, integer or flag."""
    return field(
        default=default, metadata={"kind": kind, "choices": tuple(choices), "minimum": minimum, "maximum": maximum}
    )


def option_name(attribute: str) -> str:
    """max_change -> max-change; from_ -> from (words of Python carry an underscore)."""
    return attribute.rstrip("_").replace("_", "-")


def choose(groups: Mapping[str, Group], patterns: Sequence[str], where: Path) -> list[Group]:
    """The groups that the patterns name; one that matches nothing raises UsageError."""
    return [groups[name] for name in select(list(groups), patterns, where)]


@dataclass(frozen=True)
class Work:
    """What planning an edit may need beside its options: the open file, the tensors it is for, those edited before."""

    stack: ExitStack
    source: Source
    chosen: Sequence[Group]
    edited: Collection[str] = ()


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What every editing command has. `origin` says where in a recipe it was written, for messages about it."""

    command: ClassVar[str]
    suffix: ClassVar[str]
    # Does planning it need torch, and executing it a device?
    computes: ClassVar[bool] = True

    tensor: Sequence[str] | None = option((), "texts")
    tied: str | None = option(None, "text", choices=("together", "separate"))
    origin: Place | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensor", tuple(self.tensor or ()))
        for name, declared in self.declared().items():
            value = getattr(self, declared.name)
            if value is not None and declared.metadata["choices"]:
                check_choice(name, value, declared.metadata["choices"])
            low, high = declared.metadata["minimum"], declared.metadata["maximum"]
            if value is not None and low is not None and not value >= low:
                raise UsageError(f"--{name} {value}: must be at least {low}", option=name)
            if value is not None and high is not None and not value <= high:
                raise UsageError(f"--{name} {value}: must be at most {high}", option=name)
        self.check()

    @classmethod
    def declared(cls) -> dict[str, object]:
        """Option name -> its field."""
        return {option_name(f.name): f for f in fields(cls) if "kind" in f.metadata}

    def options(self) -> dict[str, object]:
        """The options that differ from their defaults, by name: what a recipe has to say."""
        given = {
            name: getattr(self, f.name) for name, f in self.declared().items() if getattr(self, f.name) != f.default
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}

    def table(self) -> dict[str, object]:
        """As a table of a recipe: the command and the options that were given."""
        return {"command": self.command, **self.options()}

    def check(self) -> None:
        """Raise UsageError for what the options alone show to be wrong."""

    def choose(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        """The groups this edit is for, read as its options say."""
        return choose(groups, self.tensor, where)

    def planner(self, work: Work) -> Planner:
        """The function that plans one group; what it holds open is closed with `work.stack`."""
        raise NotImplementedError

    def foretell(self, group: Group) -> Promise | None:
        """What the planner will promise of this group, as far as the tables tell without torch; None where they do not."""
        return None

    def _need_tensors(self, purpose: str) -> None:
        if not self.tensor:
            raise UsageError(
                f"{self.command} needs -t/--tensor: which tensors to {purpose}",
                hint="paramcli inspect lists them",
                option="tensor",
            )


@dataclass(frozen=True, kw_only=True)
class Add(Edit):
    command = "add"
    suffix = ".parametrized"

    chain: str | None = option(None, "text")
    view: str | None = option(None, "text")
    init: str = option("project", "text", choices=("project", "strict", "raw"))
    mask: str | None = option(None, "text")
    max_change: float | None = option(None, "number", minimum=0)
    spelling: str = option("new", "text", choices=("new", "old"))
    seed: int = option(0, "integer", minimum=0, maximum=2**63 - 1)
    compute_dtype: str = option("same", "text", choices=COMPUTE_DTYPES)

    def check(self) -> None:
        if not self.chain:
            raise UsageError(
                "add needs --chain: which parametrizations, in order",
                hint="--chain skew,cayley; paramcli registry lists them",
                option="chain",
            )
        self._need_tensors("parametrize")
        with error_context(option="chain"):
            check_items(self.chain)
        with error_context(option="view"):
            parse_view(self.view)

    def planner(self, work: Work) -> Planner:
        from .allocate import counts
        from .edits import Register
        from .values import masks_from

        mask_for = work.stack.enter_context(masks_from(self.mask))
        shares = counts(self.chain, work.source, work.chosen, work.edited)
        view = parse_view(self.view)
        return Register(self.chain, view, self.init, self.seed, self.max_change, self.spelling, mask_for, shares).plan

    def foretell(self, group: Group) -> Promise | None:
        view = parse_view(self.view)
        chain = parse_chain(self.chain).at(view.shape(group.shape))
        if any(link.over_all for link in chain.links):
            return None  # the share of each tensor is in its data
        roles = chain.stores(group.shape)
        if not group.is_plain or self.spelling == "old" or roles is None or (view.name and set(roles) != {"original"}):
            return None
        slots = tuple(
            Slot(parametrized_key(group.tensor, role), code or group.dtype, shape)
            for role, (code, shape) in roles.items()
        )
        return Promise(slots, Entry("parametrized", str(chain), view.text, chain.constraint))


@dataclass(frozen=True, kw_only=True)
class Assign(Edit):
    command = "assign"
    suffix = ".parametrized"

    from_: str | None = option(None, "text")
    with_: str | None = option(None, "text")
    chain: str | None = option(None, "text")
    view: str | None = option(None, "text")
    seed: int = option(0, "integer", minimum=0, maximum=2**63 - 1)
    compute_dtype: str = option("same", "text", choices=COMPUTE_DTYPES)

    def check(self) -> None:
        self._need_tensors("set")
        if (self.from_ is None) == (self.with_ is None):
            raise UsageError(
                "assign needs one of --from FILE[:NAME] and --with INIT",
                hint="--with orthogonal, or --from other.safetensors",
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
        return with_chain(choose(groups, self.tensor, where), *reading(self.chain, self.view), named=True)

    def planner(self, work: Work) -> Planner:
        from .edits import Assign as Step
        from .values import Initialised, taken_from

        if self.with_ is not None:
            values = Initialised(self.with_, self.seed)
        else:
            values = work.stack.enter_context(taken_from(self.from_, self.compute_dtype))
        return Step(values, self.seed).plan

    def foretell(self, group: Group) -> Promise | None:
        return assigned(group)


@dataclass(frozen=True, kw_only=True)
class Remove(Edit):
    command = "remove"

    bake: bool = option(True, "flag")
    chain: str | None = option(None, "text")
    view: str | None = option(None, "text")
    compute_dtype: str = option("same", "text", choices=COMPUTE_DTYPES)

    @property
    def suffix(self) -> str:
        return ".baked" if self.bake else ".unparametrized"

    @property
    def computes(self) -> bool:
        return self.bake

    def check(self) -> None:
        reading(self.chain, self.view)

    def choose(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        found = choose(groups, self.tensor, where) if self.tensor else list(groups.values())
        parametrized = [group for group in found if not group.is_plain]
        chosen = with_chain(parametrized, *reading(self.chain, self.view), named=bool(self.tensor))
        if not chosen and self.tensor:
            raise InputRefused(
                f"{TENSOR} is a plain tensor already",
                hint="paramcli inspect shows the form of each",
                tensor=found[0].tensor,
            )
        if not chosen:
            raise InputRefused("no tensor is parametrized", hint="paramcli inspect shows what is there")
        return chosen

    def planner(self, work: Work) -> Planner:
        if self.bake:
            from .edits import Bake as Step
        else:
            from .renames import Unparametrize as Step
        return Step().plan

    def foretell(self, group: Group) -> Promise | None:
        return baked(group) if self.bake and not group.problem else None


@dataclass(frozen=True, kw_only=True)
class Migrate(Edit):
    command = "migrate"
    suffix = ".migrated"
    computes = False

    to: str | None = option(None, "text", choices=("new", "old"))

    def check(self) -> None:
        if self.to is None:
            raise UsageError(
                "migrate needs --to new or --to old",
                hint="new is torch's parametrizations.*; old is weight_g/weight_v and its like",
                option="to",
            )

    def choose(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        edit = self._edit()
        chosen = [
            group
            for group in (choose(groups, self.tensor, where) if self.tensor else groups.values())
            if edit.applies(group)
        ]
        if not chosen:
            there = sorted({group.form for group in groups.values()})
            raise InputRefused(
                f"nothing to migrate: no weight norm, spectral norm or pruning is spelt the {'old' if self.to == 'new' else 'new'} way",
                hint=f"the tensors are {', '.join(there)}; paramcli inspect shows each",
            )
        return chosen

    def planner(self, work: Work) -> Planner:
        return self._edit().plan

    def _edit(self):
        from .renames import Migrate as Step

        return Step(self.to)


EDITS = {edit.command: edit for edit in (Add, Assign, Remove, Migrate)}


def reading(chain: str | None, view: str | None) -> tuple[str | None, str | None]:
    """--chain and --view as the record spells them; UsageError where they are wrong."""
    with error_context(option="chain"):
        parsed = str(parse_chain(chain)) if chain else None
    with error_context(option="view"):
        return parsed, parse_view(view).text
