"""What `registry` answers: the table of the catalogue, and an entry in full."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .console import Styled, Table

if TYPE_CHECKING:
    from ..catalogue.entry import ConstraintEntry, Entry, MeasureEntry


def registry_table(entries: Sequence[Entry]) -> Table:
    """Family by family, in the order of the table."""
    table = Table("name", "domain", "image", "summary")
    from ..registry import domains_and_images

    for family in dict.fromkeys(entry.family for entry in entries):
        table.add_row(Styled((family, "cyan")))
        for entry in entries:
            if entry.family == family:
                sets = domains_and_images(entry)
                table.add_row(
                    Styled((f"  {entry.name}", "bold")),
                    "\n".join(sets["domain"]),
                    "\n".join(sets["image"]),
                    entry.summary,
                )
    return table


def constraint_table(entries: Iterable[ConstraintEntry]) -> Table:
    table = Table("constraint", "within", "summary", "residual")
    for entry in entries:
        within = ", ".join(name for name in entry.within if name != entry.name)
        table.add_row(Styled((entry.name, "bold")), within, entry.summary, entry.residual)
    return table


def constraint_card(entry: ConstraintEntry) -> str:
    """What verify measures, as text for 80 columns."""
    from ..registry import PARAMETRIZATIONS, domains_and_images

    makers = [
        e.name
        for e in PARAMETRIZATIONS.values()
        if entry.name in (i.partition(":")[0] for i in domains_and_images(e)["image"])
    ]
    rows = [
        ("residual", entry.residual),
        ("within", ", ".join(entry.within)),
        ("values of", ", ".join(makers) or "no parametrization here"),
    ]
    rows += [
        (f":{a.name}=", "; ".join(x for x in (" | ".join(a.choices) or a.type, a.help) if x)) for a in entry.arguments
    ]
    return _card(
        f"{entry.name}: {entry.summary}", [*rows, ("verify", f"paramcli verify CKPT -t NAME --constraint {entry.name}")]
    )


def measure_table(entries: Iterable[MeasureEntry]) -> Table:
    table = Table("measured", "of", "summary", "residual")
    for entry in entries:
        table.add_row(Styled((entry.name, "bold")), ", ".join(_measured_of(entry)), entry.summary, entry.residual)
    return table


def measure_card(entry: MeasureEntry) -> str:
    """What verify measures of a parametrization's own tensors, and what that proves, as text for 80 columns."""
    rows = [
        ("residual", entry.residual),
        ("tolerance", entry.tolerance),
        ("measured of", ", ".join(_measured_of(entry))),
    ]
    return _card(f"{entry.name}: {entry.summary}", [*rows, ("proves", entry.proves), ("proves not", entry.not_proved)])


def _measured_of(entry: MeasureEntry) -> list[str]:
    from ..registry import DECODERS, PARAMETRIZATIONS

    every = [*PARAMETRIZATIONS.values(), *DECODERS.values()]
    return [e.name for e in every if str(entry) in e.verifies.split("; ")]


def registry_card(entry: Entry) -> str:
    """Everything the table knows of one entry, as text for 80 columns."""
    from ..registry import ANY, CONSTRAINTS, ORIGINS, domains_and_images
    from ..spec import value_text

    sets = domains_and_images(entry)
    rows = [("law", entry.law)]
    rows += [("maps", f"{domain} -> {image}") for domain, image in zip(sets["domain"], sets["image"], strict=True)]
    for a in entry.arguments:
        default = (
            "required"
            if a.required
            else f"default {value_text(a.default)}"
            if a.default is not None or a.type == "dim"
            else ""
        )
        choices = " | ".join(a.choices)
        rows.append((f":{a.name}=", "; ".join(x for x in (choices or a.type, a.help, default) if x)))
    rows.append(("right inverse", entry.right_inverse))
    for image in dict.fromkeys(image.partition(":")[0] for image in sets["image"]):
        if CONSTRAINTS[image].residual and image != ANY:
            rows.append(("residual", f"{image}: {CONSTRAINTS[image].residual}"))
    rows += [("verify", entry.verifies)] if entry.verifies else []
    rows += [("cost", entry.cost), ("source", entry.source)]
    if entry.name in ORIGINS:
        rows.append(("from", ORIGINS[entry.name]))
    return _card(f"{entry.name}: {entry.summary}", rows)


def _card(title: str, rows: Iterable[tuple[str, str]]) -> str:
    import textwrap

    lines = [*textwrap.wrap(title, 79, subsequent_indent="  "), ""]
    for label, text in rows:
        lines += textwrap.wrap(text, 79, initial_indent=f"  {label:<15}", subsequent_indent=" " * 17) or [f"  {label}"]
    return "\n".join(lines)
