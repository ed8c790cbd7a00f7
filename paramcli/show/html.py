"""Results -> one HTML page that needs nothing else: no network, no fonts, no images; light, dark and on paper.

Its policy allows the one style sheet and the one script below, by their hashes, and nothing besides. Every
text of a file goes through `drawing.svg.text`.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import __version__
from ..evidence import Evidence
from ..text import count_text, number_text, shape_text
from .drawing.panels import panels
from .drawing.residuals import Row, plot, worst
from .drawing.svg import STYLE as PLOT_STYLE
from .drawing.svg import grid, text
from .tables import NO_CLAIM

if TYPE_CHECKING:
    from ..answers.diff import DiffResult
    from ..answers.discover import DiscoverResult
    from ..answers.spectrum import Spectra, SpectrumResult
    from ..answers.verdict import VerifyResult

STYLE = (
    PLOT_STYLE
    + """
:root{color-scheme:light dark;--page:#fff;--ink:#1f2328;--quiet:#59636e;--line:#d8dee4;--soft:#f6f8fa;\
--good:#1a7f37;--bad:#c62828}
@media (prefers-color-scheme:dark){:root{--page:#0d1117;--ink:#e6edf3;--quiet:#9198a1;--line:#30363d;--soft:#151b23;\
--good:#56d364;--bad:#ff8a80}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1060px;margin:0 auto;padding:40px 24px 64px}
header p{margin:0;color:var(--quiet)}
h1{margin:4px 0 10px;font-size:24px;font-weight:600;line-height:1.25;overflow-wrap:anywhere}
h2{margin:40px 0 12px;font-size:17px;font-weight:600}
h3{margin:24px 0 4px;font-size:14px;font-weight:600;overflow-wrap:anywhere}
h3 span,.note,figcaption{font-weight:400;color:var(--quiet);font-size:13px}
header p.verdict{color:var(--ink);font-size:16px}
.good,header p.good{color:var(--good)}.bad,header p.bad{color:var(--bad)}.good,.bad{font-weight:600}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:18px 0 0;font-size:13px}
dt{color:var(--quiet)}dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:6px 12px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
td{overflow-wrap:break-word}td:first-child{overflow-wrap:anywhere;min-width:9em}
th.number,td.number{text-align:right;white-space:nowrap;padding-right:20px}
th{color:var(--quiet);font-weight:600;white-space:nowrap}
th button{all:unset;cursor:pointer}
th button:hover,th button:focus-visible{color:var(--ink);text-decoration:underline}
th[aria-sort=ascending] button::after{content:" \\2191"}th[aria-sort=descending] button::after{content:" \\2193"}
tbody tr:hover{background:var(--soft)}
figure{margin:0;overflow-x:auto}
.figures{display:flex;flex-wrap:wrap;gap:0 16px}.one{max-width:100%}
svg{max-width:100%;height:auto}
@media print{
:root{--page:#fff;--ink:#000;--quiet:#444;--line:#bbb;--soft:#fff;--good:#0a5c22;--bad:#b00020}
body{font-size:11px}table{font-size:9.5px}th,td{padding-right:8px}main{max-width:none;padding:0}
h2,h3{break-after:avoid}tr,figure,.one{break-inside:avoid}\
thead{display:table-header-group}th button::after{content:""!important}
}
"""
)
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  table.tHead.addEventListener("click", event => {
    const head = event.target.closest("th");
    if (!head) return;
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = row => row.cells[head.cellIndex].dataset.value ?? row.cells[head.cellIndex].textContent;
    const order = (a, b) => head.className === "number" ? key(a) - key(b) \
: key(a).localeCompare(key(b), "en", {numeric: true});
    const rows = [...table.tBodies[0].rows].sort((a, b) => up ? order(a, b) : order(b, a));
    table.tBodies[0].append(...rows);
  });
}
"""
# Spectra of so many tensors are drawn, and of matrices up to this size: a report is read, not scrolled for ever.
MOST_SPECTRA, LARGEST = 24, 1024


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, the number it sorts by, and a class for its colour."""

    text: str
    value: float | None = None
    kind: str = ""


def number(value: float | None) -> Cell:
    """A measured number; what is not finite sorts as the worst."""
    if value is None:
        return Cell("", -1.0)
    return Cell(number_text(value), value if math.isfinite(value) else 1e308)


def verdict(ok: bool, good: str, bad: str, detail: str | None = None) -> Cell:
    return Cell(f"{good if ok else bad}{f': {detail}' if detail else ''}", kind="good" if ok else "bad")


def _hash(content: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() + "'"


def table(headings: Sequence[str], rows: Sequence[Sequence[Cell | str]], numbers: Sequence[str] = ()) -> str:
    """A table that sorts by a click on a heading; the columns named in `numbers` hold numbers."""

    def kinds(*words: str) -> str:
        return f' class="{" ".join(filter(None, words))}"' if any(words) else ""

    def cell(heading: str, shown: Cell | str) -> str:
        shown = Cell(shown) if isinstance(shown, str) else shown
        value = "" if shown.value is None else f' data-value="{shown.value!r}"'
        return f"<td{kinds(_kind(heading), shown.kind)}{value}>{text(shown.text)}</td>"

    def _kind(heading: str) -> str:
        return "number" if heading in numbers else ""

    head = "".join(f'<th scope="col"{kinds(_kind(h))}><button type="button">{text(h)}</button></th>' for h in headings)
    body = "".join("<tr>" + "".join(cell(h, c) for h, c in zip(headings, row, strict=True)) + "</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def section(title: str, *parts: str) -> str:
    body = "\n".join(part for part in parts if part)
    return f"<section><h2>{text(title)}</h2>\n{body}</section>" if body else ""


def note(words: str) -> str:
    return f'<p class="note">{text(words)}</p>' if words else ""


def files_section(evidence: Evidence) -> str:
    """The section that tells the files that were read from any others."""
    rows: list[list[Cell | str]] = [
        [file.path, Cell(str(file.nbytes), file.nbytes), file.sha256] for file in evidence.files
    ]
    return section("Files", table(("file", "bytes", "SHA-256"), rows, ("bytes",)))


def page(
    command: str,
    subject: str,
    says: str,
    ok: bool | None,
    evidence: Evidence,
    facts: Sequence[tuple[str, str]],
    *sections: str,
) -> bytes:
    """The whole document. `ok` colours what it says; None leaves it as it is."""
    kind = "" if ok is None else " good" if ok else " bad"
    policy = (
        f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; base-uri 'none'; form-action 'none'"
    )
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in (*facts, *_made(evidence)))
    body = "\n".join(part for part in (*sections, files_section(evidence)) if part)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(f"paramcli {command}: {subject}")}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<p>paramcli {text(command)}</p>
<h1>{text(subject)}</h1>
<p class="verdict{kind}">{text(says)}</p>
<dl>{rows}</dl>
</header>
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
""".encode()


def _made(evidence: Evidence) -> list[tuple[str, str]]:
    return [
        ("command", evidence.command),
        ("made by", f"paramcli {__version__}, torch {evidence.torch}"),
        ("device", evidence.device),
        ("date", evidence.date),
    ]


def residuals(rows: Sequence[Row]) -> str:
    """The section that plots numbers against their limits."""
    drawn = worst(rows)
    fewer = f"The {len(drawn)} worst of {len(rows)}." if len(drawn) < len(rows) else ""
    picture = plot(drawn)
    legend = " A dot is the residual, a bar its tolerance." if any(row.limit for row in drawn) else ""
    return section("Residuals", note(f"{fewer}{legend}".strip()), f"<figure>{picture}</figure>") if picture else ""


@dataclass(frozen=True)
class Drawn:
    """The spectra that a page shows, and the names of those that it has no room for."""

    found: tuple[Spectra, ...]
    skipped: tuple[str, ...] = ()


def spectra_section(drawn: Drawn, planes: bool = True, legend: str = "") -> str:
    """The section of singular values and eigenvalues, a figure for each tensor."""
    figures = []
    for s in drawn.found:
        before = any(m.of != "value" for m in s.matrices)
        shown = panels(s, planes)
        figures.append(
            f'<div class="one"><h3>{text(s.tensor)} '
            f"<span>{text(s.title)}</span></h3><figure>{grid(shown, 3 if before and planes else 4)}</figure></div>"
        )
    fewer = (
        f"Not drawn: {count_text(len(drawn.skipped), 'tensor')} more or larger than {LARGEST} x {LARGEST}."
        if drawn.skipped
        else ""
    )
    return (
        section(
            "Spectra", note(" ".join(w for w in (legend, fewer) if w)), f'<div class="figures">{"".join(figures)}</div>'
        )
        if figures
        else ""
    )


def drawable(shape: Sequence[int], drawn: int) -> bool:
    """Is there room for one more spectrum, and is this one cheap enough for a report?"""
    return drawn < MOST_SPECTRA and len(shape) >= 2 and all(shape) and min(shape[-2:]) <= LARGEST


def verify_page(
    path: str, result: VerifyResult, drawn: Drawn, evidence: Evidence, facts: Sequence[tuple[str, str]]
) -> bytes:
    from ..dtypes import dtype_name

    rows: list[list[Cell | str]] = []
    checks: list[Row] = []
    for v in result:
        if not v.checks:
            rows.append(
                [
                    v.group.tensor,
                    v.chain or v.group.form,
                    "-",
                    shape_text(v.group.shape),
                    dtype_name(v.group.dtype),
                    number(None),
                    number(None),
                    NO_CLAIM,
                ]
            )
        for c in v.checks:
            constraint = c.constraint + (f" ({v.view})" if v.view else "")
            rows.append(
                [
                    v.group.tensor,
                    v.chain or v.group.form,
                    constraint,
                    shape_text(v.group.shape),
                    dtype_name(v.group.dtype),
                    number(c.residual),
                    number(c.tolerance),
                    verdict(c.ok, "holds", "FAILS", c.detail),
                ]
            )
            checks.append(Row(f"{v.group.tensor}  {c.constraint}", c.residual, c.tolerance, c.ok))
    headings = ("tensor", "chain", "constraint", "shape", "dtype", "residual", "tolerance", "verdict")
    legend = (
        "Dashed: the original. Solid: the value."
        if any(m.of != "value" for s in drawn.found for m in s.matrices)
        else ""
    )
    return page(
        "verify",
        path,
        replace(result, others=0).summary(),
        not result.failed,
        evidence,
        facts,
        section("Checks", table(headings, rows, ("residual", "tolerance"))),
        residuals(checks),
        spectra_section(drawn, legend=legend),
    )


def diff_page(a: str, b: str, result: DiffResult, drawn: Drawn, evidence: Evidence) -> bytes:
    rows: list[list[Cell | str]] = [
        [d.tensor, number(d.max_abs), number(d.relative), verdict(d.equal, "equal", "DIFFERENT", d.detail)]
        for d in result.tensors
    ]
    rows += [
        [name, number(None), number(None), Cell(f"only in {label}", kind="bad")]
        for label, names in (("A", result.only_in_a), ("B", result.only_in_b))
        for name in names
    ]
    distances = [Row(d.tensor, d.relative, None, d.equal) for d in result.tensors if d.relative]
    picture = plot(worst(distances))
    return page(
        "diff",
        f"{a} and {b}",
        result.summary(),
        result.equal,
        evidence,
        (("A", a), ("B", b)),
        section("Tensors", table(("tensor", "max abs", "relative", "verdict"), rows, ("max abs", "relative"))),
        section("Relative distances", f"<figure>{picture}</figure>") if picture else "",
        spectra_section(drawn, planes=False, legend="Dashed: A. Solid: B."),
    )


def discover_page(
    path: str, result: DiscoverResult, drawn: Drawn, evidence: Evidence, facts: Sequence[tuple[str, str]]
) -> bytes:
    rows: list[list[Cell | str]] = []
    checks: list[Row] = []
    for f in result.structured:
        for how, these in (("holds", f.holds), ("nearly", f.nearly)):
            for c in these:
                rows.append(
                    [
                        f.tensor,
                        shape_text(f.shape),
                        f.dtype,
                        Cell(how, kind="good" if how == "holds" else ""),
                        c.constraint,
                        number(c.residual),
                        number(c.tolerance),
                    ]
                )
                checks.append(Row(f"{f.tensor}  {c.constraint}", c.residual, c.tolerance, True))
    headings = ("tensor", "shape", "dtype", "how", "structure", "residual", "tolerance")
    return page(
        "discover",
        path,
        result.summary(),
        None,
        evidence,
        [*facts, *result.gaps(len(result.not_tried))],
        section("Structure", table(headings, rows, ("residual", "tolerance"))),
        residuals(checks),
        spectra_section(drawn),
    )


def spectrum_page(path: str, result: SpectrumResult, evidence: Evidence, facts: Sequence[tuple[str, str]]) -> bytes:
    found = result.tensors
    rows: list[list[Cell | str]] = [
        [
            s.tensor,
            s.chain or s.form,
            m.of if m.block is None else f"{m.of}, block {m.block}",
            shape_text(m.shape),
            s.dtype,
            number(m.largest),
            number(m.smallest),
            number(m.condition),
            number(m.stable_rank),
            number(m.radius),
        ]
        for s in found
        for m in s.matrices
    ]
    numbers = ("sigma max", "sigma min", "condition", "stable rank", "spectral radius")
    legend = (
        "Dashed: the original. Solid: the value." if any(m.of != "value" for s in found for m in s.matrices) else ""
    )
    return page(
        "spectrum",
        path,
        result.summary(),
        None,
        evidence,
        facts,
        section("Matrices", table(("tensor", "chain", "matrix", "shape", "dtype", *numbers), rows, numbers)),
        spectra_section(Drawn(found[:MOST_SPECTRA], tuple(s.tensor for s in found[MOST_SPECTRA:])), legend=legend),
    )
