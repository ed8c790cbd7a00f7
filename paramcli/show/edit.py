"""What an editing command says: the table or document on stdout, and on stderr what was written, what was not, and
what to type next.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..spelling import record as records
from ..surgery.edits.merge import Merge
from ..surgery.edits.remove import Remove
from ..surgery.result import EditResult
from ..text import count_text, listing, number_text, printable, printable_path, size_text
from ..wording import call, given, in_shell
from .console import Screen, Table
from .document import document
from .tables import edit_table

# What a torch result lacks of ours; a sentence of its own says what follows from that.
OWN_RECORD = f"metadata {records.KEY}"


def show_edit(screen: Screen, result: EditResult, as_json: bool, shown: Table | str | None = None) -> None:
    """`shown`: the answer for who does not ask for JSON, by default the table of the edited tensors."""
    if as_json:
        screen.answer(document(result.document(in_shell)))
    else:
        screen.show(edit_table(result.tensors, fold=screen.folds(len(result.tensors))) if shown is None else shown)
    for outcome in result.tensors:
        if outcome.remark:
            screen.note(in_shell(f"{printable(outcome.tensor)}: {outcome.remark}", result.asked, result.root))
    for said in result.said:
        screen.note(in_shell(said, result.asked, result.root))
    for outcome in result.tensors:
        if outcome.beyond is not None:
            residual = number_text(outcome.beyond[0])
            screen.warn(f"{printable(outcome.tensor)} is off its constraint (residual {residual}): verify will exit 1")
    for line in _left_behind(result):
        screen.note(line)
    if result.stale:
        # An optimizer's state belongs to the parameters as they were: by position, in their order and shapes.
        screen.warn(
            f"{listing(result.stale)} belongs to the tensors as they were: start the optimizer anew, "
            "or restore it by hand"
        )
    for line in _foretold(result) if result.dry_run else _written(result):
        screen.note(line)


def _left_behind(result: EditResult) -> Iterator[str]:
    """What the output does not hold, or holds otherwise."""
    if set(result.dropped) - {OWN_RECORD}:
        names = [name for name in result.dropped if name != OWN_RECORD]
        yield f"not carried over: {listing(names, len(result.dropped))}"
    if result.below:
        yield f"the names begin below {printable(result.below)}: safetensors has one level"
    if result.untied:
        what = "a DCP folder" if result.container == "DCP folder" else "safetensors"
        yield f"tied tensors are stored once for each name, as {what} knows no ties: {listing(result.untied, 6)}"
    if result.files_left:
        yield f"left where they are: {listing(result.files_left, 12)}"


def _foretold(result: EditResult) -> Iterator[str]:
    output = printable_path(result.output)
    yield f"dry run: would write {output} ({size_text(result.nbytes)}), {result.untouched} tensors untouched"
    yield f"dry run: {result.forecast}"
    if not result.replaces and os.path.lexists(result.output):
        yield f"dry run: {output} exists already, and only {given('force', True)} replaces it"


def _written(result: EditResult) -> Iterator[str]:
    changed = f"{count_text(len(result.tensors), 'tensor')} changed, {result.untouched} untouched"
    if not result.tensors:
        changed = f"{count_text(result.untouched, 'tensor')}, as they were"
    checked = ", all read back and equal" if result.checked else ""
    yield f"wrote {printable_path(result.output)}: {changed}{checked}"
    if (proof := _proof(result)) is not None:
        yield f"next: {proof}"
    elif result.claims and not result.has_record:
        views = result.views
        view = "" if views == {None} else f" {given('view', *views)}" if len(views) == 1 else f" and {given('view')}"
        yield (
            f"a {result.container} has no place for the record: verify it with {given('chain')} "
            f"(baked: {given('constraint')}){view}, or write safetensors"
        )
    elif result.claims:
        yield f"next: {call('verify', result.output)}"
    elif result.decoded:
        yield f"next: {_proof_of_codes(result)}"
    elif result.same_weights:
        root = {"root": result.root} if result.root else {}
        yield f"next: {call('diff', result.asked, result.output, **root)}"


def _proof_of_codes(result: EditResult) -> str:
    """What proves a bake of codes: told what they are, where the bake was."""
    proof: dict[str, object] = {"base": result.asked, "round_trip": True}
    [edit, *others] = result.edit or (None,)
    if others or not isinstance(edit, Remove):
        return call("verify", result.output, **proof)
    proof |= {name: told for name, told in (("chain", edit.chain), ("view", edit.view)) if told and edit.chain}
    return call("verify", result.output, **proof) + "".join(f" {given('tensor', name)}" for name in edit.tensor)


def _proof(result: EditResult) -> str | None:
    """What proves a merge; None where it was none, of an adapter alone, or where its base is no more."""
    [edit, *others] = result.edit or (None,)
    if not isinstance(edit, Merge) or others or len(edit.adapter) > 1 or result.output == result.checkpoint:
        return None
    options: dict[str, object] = {"base": result.asked, "adapter": edit.adapter[0]}
    if edit.strength:
        options["strength"] = edit.strength[0]
    if edit.adapter_prefix:
        options["adapter_prefix"] = dict(text.split("=", 1) for text in edit.adapter_prefix)
    root = {"root": result.root} if result.root else {}
    return call("verify", result.output, **options, **root)
