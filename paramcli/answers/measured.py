"""(Source, group) -> its verdict: the tensor is evaluated, and what it claims is measured."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from ..chain import Chain
from ..checkpoint.source import Source
from ..errors import InputRefused, ParamcliError, error_context
from ..fitting import measure
from ..fitting.bake import Baked, Baking
from ..fitting.blocks import Batch, evaluated_together
from ..fitting.claims import claim_check
from ..fitting.costs import PART
from ..fitting.evaluate import chain_of, complete, read_state, settle, weight_of
from ..fitting.originals import widened
from ..fitting.skeleton import loaded
from ..fitting.threads import threads_for
from ..maths.base import Check, Parametrization
from ..maths.numbers import compute_dtype, wide
from ..registry import ANY, parse_constraint, target_class
from ..registry import constraint as constraint_of
from ..spelling.forms import Group
from ..view import View
from .verdict import Verdict


def verify_group(
    source: Source,
    group: Group,
    constraint: str | None = None,
    tolerance: float | None = None,
    view: View | None = None,
    device: torch.device | str = "cpu",
    compute: str = "same",
) -> Verdict:
    """Evaluate one tensor and measure what it claims, or whether it lies in `constraint`."""
    with error_context(tensor=group.tensor, path=source.path), torch.no_grad(), threads_for(group.shape):
        if constraint is not None:
            parse_constraint(constraint)
        state = read_state(source, group, device)
        chain, seen_through = (None, group.view) if group.is_plain else settle(group, state)
        seen_through = seen_through if view is None else view
        value = state["value"] if chain is None else weight_of(group, state, chain, seen_through, compute)
        wanted = constraint or group.constraint
        if wanted is not None and not (value.is_floating_point() or value.is_complex()):
            raise InputRefused(f"{str(value.dtype).removeprefix('torch.')} tensors have no constraint to verify")
        if chain is None:
            checks = unless_finite(value) if wanted is None else [measure.check(wanted, value, seen_through, tolerance)]
            return Verdict(group, None if group.chain is None else str(group.chain), seen_through.text, tuple(checks))
        whole = complete(group, state, chain)
        if (
            "value" in state and "0._v" not in state
        ):  # the oldest spectral norm has no v: the one that is solved for has no length to be held to
            whole["0._v"] = torch.nn.functional.normalize(whole["0._v"], dim=0)
        checks = measure_parts(chain, seen_through, value, whole, wanted, tolerance, compute, own=constraint is None)
        return Verdict(group, str(chain), seen_through.text, tuple(checks))


class Together:
    """The verdicts of small tensors of one kind, computed together: what `verify_group` says of each, to the bit."""

    def __init__(
        self, source: Source, groups: Sequence[Group], device: torch.device | str = "cpu", compute: str = "same"
    ):
        self.source, self.device, self.compute = source, device, compute
        kinds: dict[Hashable, list[Group]] = {}
        for group in groups:
            if (kind := _kind(group)) is not None:
                kinds.setdefault(kind, []).append(group)
        self._part_of: dict[str, Sequence[Group]] = {}
        for alike in kinds.values():
            size = max(1, PART // math.prod(alike[0].shape))
            for part in (alike[first : first + size] for first in range(0, len(alike), size)):
                self._part_of.update({group.tensor: part for group in part if len(part) > 1})
        self._found: dict[str, Verdict | None] = {}

    def verdict(self, group: Group) -> Verdict | None:
        """None of one that is verified alone, or has more to say then. Each is given once."""
        if group.tensor not in self._found and (part := self._part_of.get(group.tensor)):
            self._found.update(self._measured(part))
        return self._found.pop(group.tensor, None)

    def _measured(self, part: Sequence[Group]) -> Mapping[str, Verdict | None]:
        try:
            with error_context(), torch.no_grad(), threads_for(part[0].shape):
                baking = Baking(Batch(self.source, part, part[0].view, self.device), self.compute)
                baking.make(None, baking.batch.read(None))
        except ParamcliError:
            return {group.tensor: None for group in part}
        finally:
            for group in part:
                del self._part_of[group.tensor]
        return {group.tensor: _verdict(group, one) for group, one in zip(part, baking.result(), strict=True)}


def _kind(group: Group) -> Hashable | None:
    """Groups of which this is the same are verified together; None for one whose links check more than their set, or
    whose set has a word to say of members too.
    """
    if group.is_plain or group.chain is None or group.problem or group.chain.decodes:
        return None
    try:
        chain = chain_of(group)
        if any(target_class(link.entry).checks is not Parametrization.checks for link in chain.links):
            return None
        tells = chain.constraint is not None and constraint_of(chain.constraint).tells
        return None if tells else evaluated_together(group, chain)
    except Exception:
        return None  # a map may stumble in any way over shapes that a file made up: what is wrong is said of it alone


def _verdict(group: Group, made: Baked) -> Verdict | None:
    if made.check is not None and not made.check.ok:
        return None  # why it is off is said of it alone
    return Verdict(group, str(made.chain), made.view.text, () if made.check is None else (made.check,))


def measure_parts(
    chain: Chain,
    view: View,
    value: Tensor,
    state: Mapping[str, Tensor],
    constraint: str | None = None,
    tolerance: float | None = None,
    compute: str = "same",
    own: bool = True,
) -> list[Check]:
    """The constraint (default: the chain's) on the value, and what each link promises about its own tensors (`state`,
    by role).
    """
    wanted = constraint or chain.constraint
    checks: list[Check] = []
    if wanted is not None and own and tolerance is None:
        claimed = claim_check(chain, view, value, state, compute, wanted)
        checks += [] if claimed is None else [claimed]
    elif wanted is not None:
        checks.append(measure.check(wanted, value, view, tolerance, compute_dtype(value.dtype, compute)))
    if own:
        checks += _own_checks(chain, view, value, state)
    return checks or unless_finite(value)


def unless_finite(value: Tensor) -> list[Check]:
    """Nothing is claimed of this value; that it is not finite is a finding all the same."""
    return [] if measure.all_finite(value) else [measure.check(ANY, value)]


def _own_checks(chain: Chain, view: View, value: Tensor, state: Mapping[str, Tensor]) -> list[Check]:
    """u and v of unit length, zeros under a mask, the norms g: whatever a link checks beyond its constraint."""
    if all(target_class(link.entry).checks is Parametrization.checks for link in chain.links):
        return []
    double = wide(value.dtype, value.device)
    parts = loaded(chain, view, value.shape, widened(state, double), double if chain.decodes else None)
    originals, checks = parts.originals, []
    for index, part in enumerate(parts):
        part.stored_dtype = value.dtype
        seen = part.into_view(originals)
        made = view.into(value.to(double)) if index == len(parts) - 1 else part.map(*seen)
        checks += part.checks(seen, made)
        originals = (view.back(made, value.shape),)
    return checks
