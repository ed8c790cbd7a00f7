"""What each command answers: results -> tables, trees, pictures and cards, which console.py prints."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ..spelling.record import KEY as RECORD
from ..text import count_text, listing, number_text, printable, printable_path, shape_text, size_text
from ..wording import PATH, call, given, in_shell
from .alike import alike
from .console import Styled, Table

if TYPE_CHECKING:
    from ..answers.diff import DiffResult
    from ..answers.discover import Finding
    from ..answers.inspect import InspectResult
    from ..answers.kept import Kept
    from ..answers.merge_verdict import MergeResult, MergeVerdict
    from ..answers.spectrum import Spectra
    from ..answers.verdict import Verdict
    from ..spelling.forms import Group
    from ..surgery.plan import Outcome

    Answer = TypeVar("Answer", Outcome, Verdict, MergeVerdict)

# Of a tensor that no constraint and no chain says anything about.
NO_CLAIM = "no claim"
MERGE_LEGEND = "of rounding: of the worst entry, up to 1 is rounding; strength: 1 is what was asked for"
# Up to so many tensors each get a picture of their own.
FEW_TENSORS = 3


def _verdict(ok: bool) -> Styled:
    return Styled(("holds", "green")) if ok else Styled(("FAILS", "bold red"))


def _number(value: float | None) -> str:
    return "-" if value is None else number_text(value)


def edit_table(outcomes: Sequence[Outcome], fold: bool = False) -> Table:
    """What was done to each tensor; a number that none of them has (no constraint, a dry run) has no column.

    `fold`: tensors alike are one row, with the largest numbers among them; what does not hold has its own.
    """
    numbers = [
        name for name in ("moved", "residual", "tolerance") if any(getattr(o, name) is not None for o in outcomes)
    ]
    verdict = [""] if "residual" in numbers else []
    table = Table("tensor", "chain", "shape", "dtype", *((name, "right") for name in numbers), *verdict)

    table.judged = bool(verdict) and not any(o.off for o in outcomes)

    def look(o: Outcome) -> Hashable:
        return (
            o.chain,
            o.view,
            o.shape,
            o.dtype,
            o.written,
            o.moved is None,
            o.residual is None,
            o.tensor if o.off else None,
        )

    for name, group in _rows(table, outcomes, look, fold):
        o = max(group, key=lambda o: _excess(o.residual, o.tolerance))
        chain = o.short or o.chain or "-"
        if o.view:
            chain += f" ({o.view})"
        moved = max((o.moved for o in group if o.moved is not None), default=None)
        row: list[Styled | str] = [_times(name, group), printable(chain), shape_text(o.shape), o.written or o.dtype]
        row += [_number(moved if number == "moved" else getattr(o, number)) for number in numbers]
        if verdict:
            row.append("" if o.residual is None else _verdict(not o.off))
        table.add_row(*row)
    return table


def _rows(
    table: Table, results: Sequence[Answer], look: Callable[[Answer], Hashable], fold: bool
) -> list[tuple[str, list[Answer]]]:
    """(name, results) of each row of the table, which says so where several results are one."""
    found = (
        alike(results, lambda result: result.tensor, look)
        if fold
        else [(result.tensor, [result]) for result in results]
    )
    if len(found) < len(results):
        table.note = "alike tensors share a line, with their largest numbers; a pipe lists each"
    return found


def _excess(residual: float | None, tolerance: float | None) -> float:
    """How much of its tolerance a residual takes."""
    return 0.0 if residual is None or not residual else residual / tolerance if tolerance else math.inf


def _times(name: str, group: Sequence[object]) -> str:
    return printable(name) + (f" x{len(group)}" if len(group) > 1 else "")


def convert_table(outcomes: Sequence[Outcome], dtype: str | None, fold: bool = False) -> Table | str:
    """The tensors whose bytes changed; copies are only counted. `fold`: tensors alike are one row."""
    if not outcomes:
        return "every tensor is copied byte for byte"
    table = Table("tensor", "from", "to", "shape")
    for name, group in _rows(table, outcomes, lambda o: (o.dtype, o.shape), fold):
        table.add_row(_times(name, group), group[0].dtype, dtype or "-", shape_text(group[0].shape))
    return table


def verify_table(verdicts: Sequence[Verdict], fold: bool = False, kept: Kept | None = None) -> Table:
    """Each check of each tensor, and those without a claim; `fold`: those alike for which all hold are one, with the
    largest residual of each check. `kept`: of what was to stay as it was, that which did not is shown.
    """
    table = Table("tensor", "constraint", ("residual", "right"), ("tolerance", "right"), "verdict")

    table.judged = all(c.ok for v in verdicts for c in v.checks)

    def look(v: Verdict) -> Hashable:
        off = not all(c.ok for c in v.checks)
        asked = tuple((c.constraint, c.detail) for c in v.checks)
        return v.view, v.group.shape, v.group.dtype, asked, v.tensor if off else None

    for name, group in _rows(table, verdicts, look, fold):
        view = group[0].view
        if not group[0].checks:
            table.add_row(_times(name, group), "-", "-", "-", NO_CLAIM)
        for i, same in enumerate(zip(*(v.checks for v in group), strict=True)):
            c = max(same, key=lambda c: _excess(c.residual, c.tolerance))
            constraint = c.constraint + (f" ({view})" if view and i == 0 else "")
            verdict = _verdict(c.ok)
            if c.detail:
                verdict = Styled(verdict, f": {printable(c.detail)}")
            table.add_row(
                _times(name, group) if i == 0 else "",
                constraint,
                number_text(c.residual),
                number_text(c.tolerance),
                verdict,
            )
    if kept is not None:
        _kept_rows(table, kept)
    return table


def _spelling(group: Group) -> tuple[str, str]:
    """(form, chain) as they are shown; what is not known is a question mark."""
    chain = " or ".join(chain.short for chain in group.chains) or ("?" if group.problem else "")
    for part in group.nested.values():
        chain += f" ({printable(part.tensor.rpartition('.')[2])}: {_spelling(part)[1]})"
    if group.view.text:
        chain += f" ({group.view})"
    baked = group.record is not None and group.record.state == "baked"
    return "baked" if baked else group.form, chain


def inspect_table(groups: Sequence[Group]) -> Table:
    """One line a tensor."""
    from ..dtypes import dtype_name

    table = Table("tensor", "form", "chain", "shape", "dtype", ("bytes", "right"))
    for g in groups:
        form, chain = _spelling(g)
        table.add_row(
            printable(g.tensor),
            form,
            printable(chain),
            shape_text(g.shape),
            dtype_name(g.dtype),
            size_text(g.nbytes),
        )
    return table


def inspect_tree(groups: Sequence[Group]) -> Table:
    """Modules with what they hold, folded layers as one; sizes of a module are those of all it stands for."""
    from ..dtypes import dtype_name
    from .tree import Node, grow, walk

    table = Table("module, tensor", "parametrized as", "shape", "dtype", ("size", "right"))
    for depth, name, item in walk(grow(groups)):
        indent = "  " * depth
        if isinstance(item, Node):
            alike = f"{item.count} alike, {size_text(item.nbytes // item.count)} each" if item.count > 1 else ""
            table.add_row(
                Styled((indent + printable(name), "bold")),
                Styled((alike, "dim")),
                "",
                "",
                Styled((size_text(item.nbytes), "bold")),
            )
            continue
        form, chain = _spelling(item)
        how = "" if form == "plain" else chain if form == "parametrized" else f"{chain} [{form}]"
        table.add_row(
            indent + printable(name),
            Styled((printable(how), "cyan")),
            shape_text(item.shape),
            dtype_name(item.dtype),
            size_text(item.nbytes),
        )
    return table


def inspect_head(result: InspectResult) -> Iterable[str]:
    forms = count_text(result.keys, "tensor key")
    yield f"{printable_path(result.checkpoint)}: {result.container}, {size_text(result.nbytes)}, {forms}"
    if result.root:
        yield f"state dict: {printable(result.root)}"
    if (adapter := result.adapter) is not None and adapter.problem is None:
        facts = "".join(f"; {name} {value}" for name, value in adapter.facts.items())
        yield f"an adapter: {adapter.title}, of {count_text(adapter.changes, 'tensor')} of its base{facts}"


# So many names are typed in a hint.
NAMED = 8


def inspect_tail(result: InspectResult) -> Iterable[str]:
    groups = result.tensors
    values = sum(
        math.prod(group.shape) if group.in_codes else max((info.numel for info in group.infos.values()), default=0)
        for group in groups
    )
    nbytes = sum(group.nbytes for group in groups)
    codes = Counter(group.form for group in groups if group.in_codes)
    other = sum(not group.is_plain for group in groups) - codes.total()
    yield f"{count_text(len(groups), 'tensor')}, {values:,} values, {size_text(nbytes)}" + "".join(
        [f"; {other} parametrized" if other else "", *(f"; {count} in codes: {form}" for form, count in codes.items())]
    )
    for names in result.tied:
        yield f"tied: {' = '.join(printable(name) for name in names)}"
    for group in groups:
        if group.problem:
            yield str(group.refusal())
    if named := sorted({*result.metadata, *([RECORD] if result.sharded_record else [])}):
        yield f"metadata: {listing(named, len(named))}"
    if result.extra:
        kinds = [f"{extra.name} ({extra.type})" for extra in result.extra]
        yield "not tensors of the state dict: " + listing(kinds, len(kinds))
    if read := [group for group in groups if group.in_codes and not group.problem]:
        # What nothing decodes is refused where it is not left out.
        some = any(group.problem and not group.is_plain for group in groups)
        typed = "".join(f" {given('tensor', group.tensor)}" for group in read[:NAMED]) if some else ""
        more = f", and {len(read) - NAMED} more" if some and len(read) > NAMED else ""
        yield in_shell(f"next: {call('remove', PATH)}{typed}{more}", result.asked, result.root or None)
    if (adapter := result.adapter) is not None:
        next_step = in_shell(call("merge", "BASE", adapter=str(result.asked)))
        yield f"not merged: {adapter.problem}" if adapter.problem else f"next: {next_step}"


def diff_table(result: DiffResult, limit: int = 200) -> Table:
    """Tensors that differ, or that are spelt another way; equal ones of one spelling are only counted."""
    table = Table("tensor", ("max abs", "right"), ("relative", "right"), "verdict")
    shown = [d for d in result.tensors if not d.equal] + [d for d in result.tensors if d.equal and d.detail]
    for d in shown[:limit]:
        verdict = Styled(("equal", "green")) if d.equal else Styled(("DIFFERENT", "bold red"))
        table.add_row(
            printable(d.tensor),
            _number(d.max_abs),
            _number(d.relative),
            Styled(verdict, f": {printable(d.detail)}") if d.detail else verdict,
        )
    for label, names in (("A", result.only_in_a), ("B", result.only_in_b)):
        for name in names[:limit]:
            table.add_row(printable(name), "-", "-", Styled((f"only in {label}", "bold red")))
    return table


def merge_table(result: MergeResult, fold: bool = False, limit: int = 200) -> Table:
    """The verdict on each tensor that adapters change, and the others that are not the base's. `fold`: those alike
    that hold are one, with the largest numbers among them.
    """
    from ..fitting.strengths import ONCE

    table = Table("tensor", ("residual", "right"), ("of rounding", "right"), "strength", "verdict")

    def look(v: MergeVerdict) -> Hashable:
        return v.chain, v.shape, v.dtype, v.verdict, v.detail, None if v.ok else v.tensor

    for name, group in _rows(table, result.tensors, look, fold):
        v = max(group, key=lambda v: v.residual or 0.0)
        colour = {True: "green", False: "bold red", None: "yellow"}[v.ok]
        said = Styled((v.said, colour))
        plain = v.detail is None or (v.ok and v.detail == ONCE)
        table.add_row(
            _times(name, group),
            _number(v.residual),
            ">1" if v.of_rounding is not None and v.of_rounding > 1 else _number(v.of_rounding),
            v.allowed,
            said if plain else Styled(said, f": {printable(v.detail or '')}"),
        )
    _kept_rows(table, result.kept, limit)
    table.note = "\n".join(filter(None, (table.note, MERGE_LEGEND)))
    return table


def _kept_rows(table: Table, kept: Kept, limit: int = 200) -> None:
    """Those that are not as they were, in a table of five columns."""
    for name, what in kept.wrong[:limit]:
        table.add_row(printable(name), "-", "-", "-", Styled((printable(what), "bold red")))


def discover_table(findings: Sequence[Finding]) -> Table:
    table = Table("tensor", "shape", "dtype", "structure", ("residual", "right"), ("tolerance", "right"))
    for f in findings:
        rows = [(c, "holds") for c in f.holds] + [(c, "nearly") for c in f.nearly]
        for i, (check, how) in enumerate(rows):
            name = check.constraint if how == "holds" else Styled(("nearly ", "yellow"), check.constraint)
            head = (printable(f.tensor), shape_text(f.shape), f.dtype) if i == 0 else ("", "", "")
            table.add_row(*head, name, number_text(check.residual), number_text(check.tolerance))
    return table


def spectrum_plot(found: Sequence[Spectra], columns: int) -> Iterable[Styled]:
    """Each tensor's curves and planes; many tensors as one field of curves."""
    from .drawing.braille import BEFORE, lay_out
    from .drawing.panels import panels

    if len(found) <= FEW_TENSORS:
        for s in found:
            yield Styled((printable(s.tensor), "bold"), f"  {printable(s.title)}")
            shown = panels(s)
            yield _picture(lay_out(shown, columns, len(shown) // sum(m.of == "value" for m in s.matrices)))
    else:
        yield _picture(lay_out([p for s in found for p in panels(s, planes=False, title=printable(s.tensor))], columns))
    if any(m.of != "value" for s in found for m in s.matrices):
        yield _picture([f"{BEFORE} is the original, ⠶ the value"])


def _picture(lines: Sequence[str]) -> Styled:
    """Colour only repeats what the characters say."""
    styles = {"│": "dim", "─": "dim", "┼": "dim", "·": "yellow"}
    parts = re.split("([\u2801-\u28ff]+|·+|[│─┼]+)", "\n".join(lines) + "\n")
    return Styled(*((part, styles.get(part[0], "cyan")) if n % 2 else part for n, part in enumerate(parts)))


def spectrum_table(found: Sequence[Spectra]) -> Table:
    headings = ("sigma max", "sigma min", "condition", "stable rank", "max |eig|")
    names = len(found) > 1  # the picture of a single one is headed by its name
    table = Table(*(["tensor"] if names else []), "matrix", *((heading, "right") for heading in headings))
    for s in found:
        for i, m in enumerate(s.matrices):
            which = m.of + (f" {m.block}" if m.block is not None else "") + (f" x{m.count}" if m.count > 1 else "")
            name = [printable(s.tensor) if i == 0 else ""] if names else []
            numbers = (m.largest, m.smallest, m.condition, m.stable_rank, m.radius)
            table.add_row(*name, which, *("-" if value is None else f"{value:.3g}" for value in numbers))
    return table
