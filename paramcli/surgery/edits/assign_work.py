"""What `assign` plans and computes: originals of a value, through right inverses."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...chain import Chain
from ...errors import PATH, TENSOR, InputRefused
from ...fitting import measure
from ...fitting import torch_module as hosting
from ...fitting.claims import claim_check
from ...fitting.evaluate import (
    Tensors,
    chain_of,
    complete,
    read_state,
    require_chain,
    weight_of,
)
from ...fitting.margins import NOTED
from ...fitting.originals import invert, widened
from ...fitting.reach import Reached, reach
from ...fitting.skeleton import dtype_of, loaded
from ...maths.numbers import wide
from ...spelling.forms import Group
from ...text import number_text
from ...view import IDENTITY, View
from ...wording import call, given
from ..plan import Made, Step, assigned, once, require_editable
from .slots import check_roles, numbers
from .values import Values


@dataclass(frozen=True)
class Assignment:
    """`assign`: `layer.weight = X`, through the chain's right inverse; a plain tensor is replaced."""

    value_for: Values
    seed: int = 0

    def plan(self, group: Group) -> Step:
        require_editable(group)
        require_chain(group)
        chain, view = None, IDENTITY
        if not group.is_plain:
            if group.chain is None:
                raise InputRefused("keys and shapes leave its chain open", hint=f"say which with {given('chain')}")
            chain, view = chain_of(group), group.view
            if chain.decodes:
                raise InputRefused(
                    f"{TENSOR} stores codes ({chain}): a value is assigned to weights",
                    hint=f"{call('remove', PATH, bake=True)} first",
                )
            if why := chain.uninvertible():
                raise InputRefused(f"{chain} has no right inverse: {why}")
            if "value" in group.keys:
                raise InputRefused(
                    f"{TENSOR} is spelt the oldest way ({group.form})",
                    hint=f"{call('migrate', PATH, to='new')} first",
                )
            check_roles(group, chain, view)
        self.value_for.check(group)
        slots, record, _ = assigned(group)

        def run(source: Tensors, device: str, compute: str) -> Made:
            state = read_state(source, group, device)
            before = state["value"] if chain is None else weight_of(group, state, chain, view, compute)
            wanted = self.value_for(group, device)
            measure.require_finite(wanted, "the value to assign")
            if chain is None:
                value = wanted.to(before.dtype).contiguous()
                measure.require_finite(value, f"the value to assign, in {str(before.dtype).removeprefix('torch.')},")
                return {group.tensor: value}, numbers(measure.moved(value, before), None)
            reached, note = self._reached(group, state, chain, view, wanted, compute)
            new = {role: reached.state.get(role, state[role]) for role in state}
            check = reached.check
            if group.constraint not in (None, chain.constraint):
                check = claim_check(chain, view, reached.value, complete(group, new, chain), compute, group.constraint)
            told = numbers(measure.moved(reached.value, before), check, note)
            return {group.keys[role]: tensor for role, tensor in new.items()}, told

        return Step(group, "assign", slots, group.chain, group.view, once(run), record=record)

    def _reached(
        self, group: Group, state: dict[str, Tensor], chain: Chain, view: View, wanted: Tensor, compute: str
    ) -> tuple[Reached, str | None]:
        """(originals for the assigned value, or for the nearest point that they can hold; what is to be told)"""
        stored = dtype_of(state)
        seed = hosting.tensor_seed(self.seed, group.twin or group.tensor)
        with torch.no_grad(), hosting.generators_kept(wanted.device):
            held = widened(complete(group, state, chain), wide(stored, wanted.device))
            parts = list(loaded(chain, view, group.shape, held))
            seen = view.into(wanted.to(wide(stored, wanted.device)))
            # The set whose nearest point is wanted.
            spec = None if parts[-1].is_projection else chain.constraint
            target, assumed = (seen, None) if spec is None else measure.nearest(spec, seen, wanted.dtype)
            make = functools.partial(
                invert,
                chain,
                seed=seed,
                view=view,
                shape=group.shape,
                existing=parts,
                stored=wanted.dtype if spec is None else None,
            )
            reached = reach(chain, view, group.shape, stored, target, make, compute, projects=parts[-1].is_projection)
        distance = measure.moved(target, seen)
        notes = [
            replace(reached, assumed=assumed).note(
                chain, seen, measure.moved(view.into(reached.value), seen), "assigned value"
            )
        ]
        if distance > NOTED and not reached.kept_away:
            notes.append(
                f"the assigned value was {number_text(distance)} from {chain.constraint}; its nearest point is stored"
            )
        return reached, "; ".join(filter(None, notes)) or None
