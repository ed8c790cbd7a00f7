"""Results -> one JSON document. Keys are an interface: they are added to, never renamed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict

from ..dtypes import dtype_name
from ..errors import ParamcliError
from ..text import printable_path


def document(value: object) -> str:
    """Strict JSON: NaN and infinities as strings, lone surrogates escaped, keys in the order given."""
    return json.dumps(_strict(value), allow_nan=False, indent=2).replace("\x7f", "\\u007f")


def _strict(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, str) and not value.isascii():
        # A lone surrogate is no text to strict parsers, even as an escape.
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_strict(str(key)): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    if isinstance(value, os.PathLike):
        return _strict(os.fspath(value))
    return value


def error_document(error: ParamcliError) -> dict:
    path = None if error.path is None else printable_path(error.path)
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "tensor": error.tensor,
            "path": path,
        }
    }


def edit_document(
    command: str,
    checkpoint: object,
    output: object,
    dry_run: bool,
    outcomes: Sequence,
    untouched: int,
    dropped: Sequence[str],
    edits: Sequence = (),
    forecast: object = None,
    checked: bool = False,
) -> dict:
    return {
        "command": command,
        "checkpoint": str(checkpoint),
        "output": str(output),
        "dry_run": dry_run,
        "tensors": [
            {
                "tensor": o.tensor,
                "action": o.action,
                "chain": o.chain,
                "view": o.view,
                "shape": list(o.shape),
                "dtype": o.dtype,
                "moved": o.moved,
                "residual": o.residual,
                "tolerance": o.tolerance,
                "reads": list(o.reads),
                "writes": list(o.writes),
                **({"note": o.note} if o.note else {}),
            }
            for o in outcomes
        ],
        "untouched": untouched,
        "dropped": list(dropped),
        "checked": checked,
        # What `paramcli apply` needs to do the same again.
        **({"edit": [edit_table(edit) for edit in edits]} if edits else {}),
        # Of --dry-run.
        **({"forecast": asdict(forecast)} if forecast else {}),
    }


def edit_table(edit) -> dict:
    """One edit as a table of a recipe: its command and the options that were given."""
    return {"command": edit.command, **edit.options()}


def verify_document(checkpoint: object, verdicts: Sequence, unread: Sequence = (), evidence=None) -> dict:
    """`unread`: groups that claim something which their keys do not tell; `evidence`: of --sha256."""
    return {
        "checkpoint": str(checkpoint),
        "ok": all(v.ok is not False for v in verdicts) and not unread,
        **({"unverified": [{"tensor": group.tensor, "reason": group.problem} for group in unread]} if unread else {}),
        "tensors": [
            {
                "tensor": v.group.tensor,
                "form": v.group.form,
                "chain": v.chain,
                "view": v.view,
                "shape": list(v.group.shape),
                "dtype": dtype_name(v.group.dtype),
                "checks": [
                    {
                        "constraint": c.constraint,
                        "residual": c.residual,
                        "tolerance": c.tolerance,
                        "ok": c.ok,
                        "detail": c.detail,
                    }
                    for c in v.checks
                ],
                "ok": v.ok,
            }
            for v in verdicts
        ],
        **({"evidence": evidence.document()} if evidence else {}),
    }


def inspect_document(source, groups: Sequence, tied: Mapping[str, list[str]]) -> dict:
    return {
        "checkpoint": str(source.path),
        "container": source.container,
        "bytes": source.nbytes,
        "root": source.root,
        "roots": [{"root": root.name, "tensors": root.tensors} for root in source.roots],
        "tensors": [
            {
                "tensor": g.tensor,
                "form": g.form,
                "chain": g.chain,
                "view": g.view,
                "shape": list(g.shape),
                "dtype": dtype_name(g.dtype),
                "bytes": sum(info.nbytes for info in g.infos.values()),
                "keys": list(g.keys.values()),
                "tied": sorted({name for key in g.keys.values() for name in tied.get(key, ())}),
                **({"problem": g.problem} if g.problem else {}),
            }
            for g in groups
        ],
        "metadata": dict(source.metadata),
        "extra": [{"name": extra.name, "type": extra.type} for extra in source.extras],
    }


def diff_document(equal: bool, differences: Sequence, only_a: Sequence[str], only_b: Sequence[str]) -> dict:
    return {
        "equal": equal,
        "tensors": [
            {"tensor": d.tensor, "max_abs": d.max_abs, "relative": d.relative, "equal": d.equal, "detail": d.detail}
            for d in differences
        ],
        "only_in_a": list(only_a),
        "only_in_b": list(only_b),
    }


def discover_document(findings: Sequence) -> dict:
    def checks(found: Sequence) -> list[dict]:
        return [{"constraint": c.constraint, "residual": c.residual, "tolerance": c.tolerance} for c in found]

    return {
        "tensors": [
            {
                "tensor": f.tensor,
                "shape": list(f.shape),
                "dtype": f.dtype,
                "holds": checks(f.holds),
                "nearly": checks(f.nearly),
            }
            for f in findings
        ]
    }


def spectrum_document(checkpoint: object, found: Sequence) -> dict:
    return {
        "checkpoint": str(checkpoint),
        "tensors": [
            {
                "tensor": s.tensor,
                "form": s.form,
                "chain": s.chain,
                "view": s.view,
                "shape": list(s.shape),
                "dtype": s.dtype,
                "matrices": [
                    {
                        "of": m.of,
                        "block": m.block,
                        "count": m.count,
                        "shape": list(m.shape),
                        "sigma_max": m.largest,
                        "sigma_min": m.smallest,
                        "condition": m.condition,
                        "stable_rank": m.stable_rank,
                        "spectral_radius": m.radius,
                        "singular_values": list(m.singular),
                        "eigenvalues": None if m.eigen is None else [[z.real, z.imag] for z in m.eigen],
                    }
                    for m in s.matrices
                ],
            }
            for s in found
        ],
    }


def registry_document(entries: Sequence, constraints: Iterable = (), measures: Iterable = ()) -> dict:
    from ..registry import domains_and_images

    listed = [
        {
            "name": c.name,
            "summary": c.summary,
            "within": list(c.within),
            "arguments": [a.name for a in c.arguments],
            "residual": c.residual,
        }
        for c in constraints
    ]
    return {
        "parametrizations": [
            {
                "name": entry.name,
                "family": entry.family,
                "summary": entry.summary,
                "arguments": [
                    {
                        "name": a.name,
                        "type": a.type,
                        "default": a.default,
                        "required": a.required,
                        "choices": list(a.choices),
                        "minimum": a.minimum,
                        "maximum": a.maximum,
                        "help": a.help,
                    }
                    for a in entry.arguments
                ],
                **domains_and_images(entry),
                "law": entry.law,
                "right_inverse": entry.right_inverse,
                "verifies": entry.verifies or None,
                "cost": entry.cost,
                "source": entry.source,
            }
            for entry in entries
        ],
        **({"constraints": listed} if listed else {}),
        **({"measures": [asdict(entry) for entry in measures]} if measures else {}),
    }
