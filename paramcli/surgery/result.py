"""What an editing command gives back: the outcomes of a plan, and what a person is to be told beside them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from ..checkpoint.read.folder import files_left
from ..errors import Speech
from ..spelling.opened import Opened
from ..spelling.record import Entry
from ..wording import in_python
from .edits.base import Edit
from .edits.remove import Remove
from .forecast import Forecast, forecast
from .output import has_record, is_dcp_folder, is_file, is_torch, lost, still_described, untied
from .plan import Outcome, Plan

# Steps after which every effective weight is what it was.
SAME_WEIGHT = ("bake", "migrate")


@dataclass(frozen=True, kw_only=True)
class EditResult:
    """What `add`, `assign`, `remove`, `migrate`, `convert` and `apply` did, or with dry_run would do.

    The first fields are those of the --json document. `dropped`: what the input holds beside tensors and the output
    does not, and the tensors that the user left out; `checked`: all was read back and compared; `edit`: the edits,
    whose `table()` a recipe takes; `forecast`: of a dry run.
    """

    command: str
    checkpoint: Path
    output: Path
    dry_run: bool
    tensors: tuple[Outcome, ...]
    untouched: int
    dropped: tuple[str, ...]
    checked: bool
    edit: tuple[Edit, ...] = ()
    forecast: Forecast | None = None
    # What follows is for who reads along. The bytes of the output, and whether --force or --in-place was given.
    nbytes: int = 0
    replaces: bool = False
    # The level of the input whose names the output has; which state dict it is, where there are several.
    below: str | None = None
    root: str | None = None
    container: str = "safetensors"
    untied: tuple[str, ...] = ()
    files_left: tuple[str, ...] = ()
    # What a person should know of what was chosen, as it was said.
    said: tuple[str, ...] = ()
    # Optimizer states that belong to the tensors as they were.
    stale: tuple[str, ...] = ()
    # Does the output make claims, seen through which views, and has it a place for the record of them?
    claims: bool = False
    views: frozenset[str | None] = frozenset()
    has_record: bool = True
    # What the input is asked for by again.
    asked: Path = Path()
    plan: Plan = field(repr=False, compare=False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of what was chosen; what is to be known of one tensor is with that."""
        return tuple(in_python(said, self.checkpoint, self.root) for said in self.said)

    @property
    def ok(self) -> bool:
        """Is no tensor off its constraint, as far as that was measured? `verify` will say the same."""
        return not any(outcome.off for outcome in self.tensors)

    @property
    def same_weights(self) -> bool:
        """Is every effective weight what it was, in another file, and can `diff` see that of both?

        It reads the input by its keys and its record, and where a bake was told --chain they may not have said enough.
        """
        steps = self.plan.steps
        told = any(isinstance(edit, Remove) and edit.chain is not None for edit in self.edit)
        same = bool(steps) and all(step.action in SAME_WEIGHT for step in steps)
        return same and not told and self.output != self.checkpoint

    @property
    def decoded(self) -> bool:
        """Were codes baked, into another file, and nothing else done?"""
        steps = self.plan.steps
        return (
            bool(steps)
            and self.output != self.checkpoint
            and all(step.action == "bake" and step.group.in_codes for step in steps)
        )

    def document(self, speak: Speech = in_python) -> dict[str, object]:
        """As --json prints it, which speaks as a shell does."""
        told = partial(speak, path=self.checkpoint, root=self.root)
        return {
            "command": self.command,
            "checkpoint": str(self.checkpoint),
            "output": str(self.output),
            "dry_run": self.dry_run,
            "tensors": [outcome.document(told) for outcome in self.tensors],
            "untouched": self.untouched,
            "dropped": list(self.dropped),
            "checked": self.checked,
            **({"notes": [told(said) for said in self.said]} if self.said else {}),
            # What `paramcli apply` needs to do the same again.
            **({"edit": [edit.table() for edit in self.edit]} if self.edit else {}),
            **({"forecast": asdict(self.forecast)} if self.forecast else {}),
        }


def result_of(
    plan: Plan,
    opened: Opened,
    output: Path,
    outcomes: list[Outcome],
    *,
    dry_run: bool,
    checked: bool,
    replaces: bool,
    left: list[str] | None = None,
    edit: tuple[Edit, ...] = (),
) -> EditResult:
    """The result of a plan that was executed, or shown; `left`: names of tensors that the user left out."""
    source, left = opened.source, left or []
    entries = plan.with_record(plan.longest).record.values()
    folder_stays = source.home is not None and output != source.path and not is_file(output)
    torch_made = is_torch(output, source)
    return EditResult(
        command=plan.command,
        checkpoint=source.path,
        asked=source.home or source.path,
        output=output,
        dry_run=dry_run,
        tensors=tuple(outcomes),
        untouched=plan.untouched,
        dropped=(*left, *lost(output, source, plan)),
        checked=checked and not dry_run,
        edit=edit,
        forecast=forecast(plan) if dry_run else None,
        nbytes=plan.nbytes,
        replaces=replaces,
        below=source.root if has_record(output, source) else None,
        root=(source.root or ".") if len(source.roots) > 1 else None,
        container="DCP folder" if is_dcp_folder(output, source) else "torch file" if torch_made else "safetensors",
        untied=tuple(untied(output, source, plan)),
        files_left=tuple(files_left(source)) if folder_stays else (),
        said=(
            *(
                said
                for one in edit
                for said in one.remarks([step.group for step in plan.steps if one in step.edits], opened.groups)
            ),
            *still_described(output, source, plan),
        ),
        stale=tuple(source.optimizers) if torch_made and (plan.steps or left) else (),
        claims=any(map(_claims, entries)),
        views=frozenset(entry.view.text for entry in entries),
        has_record=has_record(output, source),
        plan=plan,
    )


def _claims(entry: Entry) -> bool:
    """Is there something for `verify` to measure?"""
    return bool(entry.constraint) or (entry.state == "parametrized" and entry.chain.claims)
