"""What every edit has: options that are checked before any file is open, the tensors it is for, and a planner."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from ...chain import Chain, parse_chain
from ...checkpoint.source import Source
from ...errors import Place, UsageError
from ...spec import check_choice
from ...spelling.forms import Group
from ...spelling.given import named
from ...spelling.opened import Opened
from ...view import View, parse_view
from ...wording import call, given
from ..plan import Promise, Step

Planner = Callable[[Group], Step]
# The words that options of several edits take.
Tied = Literal["together", "separate"]
TIED: tuple[Tied, ...] = ("together", "separate")
Spelling = Literal["new", "old"]
SPELLINGS: tuple[Spelling, ...] = ("new", "old")
Default = TypeVar("Default")


def option(
    default: Default,
    kind: str,
    *,
    choices: Sequence[str] = (),
    minimum: float | None = None,
    maximum: float | None = None,
) -> Default:
    """A field that is an option of the command: `kind` is text, texts, number, numbers, integer or flag."""
    return field(
        default=default, metadata={"kind": kind, "choices": tuple(choices), "minimum": minimum, "maximum": maximum}
    )


def option_name(attribute: str) -> str:
    """max_change -> max-change; from_ -> from (words of Python carry an underscore)."""
    return attribute.rstrip("_").replace("_", "-")


@dataclass(frozen=True)
class Planning:
    """What planning an edit may need beside its options: the open file, the tensors it is for, those edited before."""

    stack: ExitStack
    source: Source
    chosen: Sequence[Group]
    edited: Collection[str] = ()


@dataclass(frozen=True, kw_only=True)
class Edit:
    """What every editing command has. `origin` says where in a recipe it was written, for messages about it."""

    command: ClassVar[str]
    # Is it for tensors that its options name?
    by_name: ClassVar[bool] = True

    tensor: Sequence[str] = option((), "texts")
    tied: Tied | None = option(None, "text", choices=TIED)
    origin: Place | None = field(default=None, compare=False)

    @property
    def suffix(self) -> str:
        """What the output's name has between the input's and the extension."""
        raise NotImplementedError

    @property
    def computes(self) -> bool:
        """Does planning it need torch, and executing it a device?"""
        return True

    def __post_init__(self) -> None:
        for f in fields(self):
            if f.metadata.get("kind") in ("texts", "numbers"):
                object.__setattr__(self, f.name, tuple(getattr(self, f.name)))
        for name, declared in self.declared().items():
            value = getattr(self, declared.name)
            if value is not None and declared.metadata["choices"]:
                check_choice(name, value, declared.metadata["choices"])
            low, high = declared.metadata["minimum"], declared.metadata["maximum"]
            if value is not None and low is not None and not value >= low:
                raise UsageError(f"{given(name, value)}: must be at least {low}", option=name)
            if value is not None and high is not None and not value <= high:
                raise UsageError(f"{given(name, value)}: must be at most {high}", option=name)
        self.check()

    @classmethod
    def declared(cls) -> dict[str, Field[Any]]:
        """Option name -> its field."""
        found = {option_name(f.name): f for f in fields(cls) if "kind" in f.metadata}
        return found if cls.by_name else {name: f for name, f in found.items() if name != "tensor"}

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

    def opening(self, opened: Opened, stack: ExitStack) -> tuple[Edit, Opened]:
        """(the edit, the checkpoint) with what the edit reads beside it; what is opened is closed with `stack`."""
        return self, opened

    def choose(self, groups: Mapping[str, Group], where: Path) -> list[Group]:
        """The groups this edit is for, read as its options say."""
        return named(groups, self.tensor, where)

    @property
    def takes_nested(self) -> bool:
        """Can it take a tensor that is made of one which is spelt by keys of its own?"""
        return False

    def planner(self, work: Planning) -> Planner:
        """The function that plans one group; what it holds open is closed with `work.stack`."""
        raise NotImplementedError

    def foretell(self, group: Group) -> Promise | None:
        """What the planner will promise of this group, as far as the tables tell without torch; None where they do
        not.
        """
        return None

    def remarks(self, chosen: Sequence[Group], groups: Mapping[str, Group]) -> Iterator[str]:
        """What a person should know of having chosen these of all the groups."""
        return iter(())

    def _need_tensors(self, purpose: str) -> None:
        if not self.tensor:
            raise UsageError(
                f"{self.command} needs {given('tensor')}: which tensors to {purpose}",
                hint=f"{call('inspect')} lists them",
                option="tensor",
            )


def reading(chain: str | None, view: str | None) -> tuple[Chain | None, View]:
    """--chain and --view; UsageError where they are wrong."""
    return parse_chain(chain) if chain else None, parse_view(view)
