"""What a plan will be, told from headers and tables before torch is there to make it.

Importing torch takes as long as copying four gigabytes. What no edit touches is copied meanwhile, to where the plan
foretold puts it. The plan itself is made all the same and decides: where it is another, what was begun is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..checkpoint.source import Source
from ..errors import ParamcliError
from ..spelling.forms import Group
from .edits.base import Edit
from .plan import Plan, Step, assemble
from .sequence import tie

# What is written of a tensor, against what is stored of it: squares and masks stay within, a few numbers that stand for
# a weight of gigabytes do not.
MOST = 4


def foretell(command: str, edits: Sequence[Edit], source: Source, groups: Mapping[str, Group]) -> Plan | None:
    """The plan as far as its slots, copies and record go; None where torch, or the data, have a say in them."""
    steps: dict[str, Step] = {}
    try:
        for edit in edits:
            for group in tie(source, groups, groups, edit.choose(groups, source.path), edit.tied):
                promise = None if group.odd else edit.foretell(group)
                if promise is None or group.tensor in steps:
                    return None
                if sum(slot.nbytes for slot in promise.slots) > MOST * group.nbytes:
                    return None  # planning may refuse it, and no space is asked for until it has not
                steps[group.tensor] = Step(
                    group, edit.command, promise.slots, record=promise.record, longest=promise.longest
                )
        return assemble(command, source, groups, list(steps.values()))
    except ParamcliError:
        return None  # the plan will say it, with all the others of its kind
