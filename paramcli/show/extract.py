"""What `extract` says: the table or document on stdout, and on stderr what was written and what to type next."""

from __future__ import annotations

import os
from collections.abc import Hashable

from ..surgery.extracted import Extracted, ExtractResult
from ..text import number_text, printable, printable_path, shape_text
from ..wording import given, in_shell
from .alike import alike
from .console import Screen, Table
from .document import document


def show_extract(screen: Screen, result: ExtractResult, as_json: bool) -> None:
    if as_json:
        screen.answer(document(result.document(in_shell)))
    else:
        screen.show(extract_table(result, fold=screen.folds(len(result.tensors))))
    for said in result.said:
        screen.note(in_shell(said, result.checkpoint))
    output = printable_path(result.output)
    if result.dry_run:
        screen.note(f"dry run: would write {output}; which of these changed is known when they are read")
        if os.path.lexists(result.output):
            screen.note(in_shell(f"dry run: {output} exists already, and only {given('force', True)} replaces it"))
        return
    screen.note(f"wrote {output}: {result.summary()}")
    if result.next is not None:
        screen.note(in_shell(f"next: {result.next}"))


def extract_table(result: ExtractResult, fold: bool = False) -> Table:
    """Each change: its rank or why it is whole, how much of it was lost, how large it was."""
    numbers = [] if result.dry_run else ["lost", "moved"]
    table = Table("tensor", ("rank", "right"), "shape", "dtype", *((name, "right") for name in numbers), "whole")

    def look(one: Extracted) -> Hashable:
        return one.rank, one.shape, one.dtype, one.why, one.moved is None

    found = (
        alike(result.tensors, lambda one: one.tensor, look) if fold else [(one.tensor, [one]) for one in result.tensors]
    )
    if len(found) < len(result.tensors):
        table.note = "alike tensors share a line, with their largest numbers; a pipe lists each"
    for name, group in found:
        one = group[0]
        rank = "-" if one.why else "?" if one.rank is None else str(one.rank)
        row = [printable(name) + (f" x{len(group)}" if len(group) > 1 else ""), rank, shape_text(one.shape), one.dtype]
        for number in numbers:
            values = [value for one in group if (value := getattr(one, number)) is not None]
            row.append(number_text(max(values)) if values else "-")
        table.add_row(*row, one.why or "")
    return table if any(one.why for one in result.tensors) else table.without(["whole"])
