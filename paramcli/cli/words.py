"""Options that take one of a few words: their texts as the types that the library has for them.

Raises UsageError for any other word, as the library does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UsageError
from ..spec import check_choice
from ..wording import given
from .usage import ORDER

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import typer

    from ..dtypes import ComputeDtype
    from ..spelling.written import AdapterSpelling
    from ..surgery.edits.add import Init
    from ..surgery.edits.base import Spelling, Tied
    from ..surgery.edits.merge import Like


def tied(word: str | None) -> Tied | None:
    from ..surgery.edits.base import TIED

    return None if word is None else check_choice("tied", word, TIED)


def like(word: str | None) -> Like | None:
    from ..surgery.edits.merge import ROUNDS

    return None if word is None else check_choice("like", word, tuple(ROUNDS))


def init(word: str) -> Init:
    from ..surgery.edits.add import INITS

    return check_choice("init", word, INITS)


def spelling(word: str) -> Spelling:
    from ..surgery.edits.base import SPELLINGS

    return check_choice("spelling", word, SPELLINGS)


def adapter_spelling(word: str) -> AdapterSpelling:
    from ..spelling.written import ADAPTER_SPELLINGS

    return check_choice("spelling", word, ADAPTER_SPELLINGS)


def compute_dtype(word: str) -> ComputeDtype:
    from ..dtypes import COMPUTE_DTYPES

    return check_choice("compute-dtype", word, COMPUTE_DTYPES)


def strengths(
    context: typer.Context, adapters: Sequence[Path] | None, said: Sequence[float] | None, of: str = ""
) -> list[float]:
    """The strength of each adapter: the one that stands after it and before the next; 1 where none does.

    `of`: what the options of the other side of a comparison end with.
    """
    adapter, strength = f"adapter{of}", f"strength{of}"
    found: list[float | None] = []
    left = iter(said or ())
    for name in context.meta.get(ORDER, ()):
        if name == adapter.replace("-", "_"):
            found.append(None)
        elif name == strength.replace("-", "_"):
            factor = next(left)
            if not found or found[-1] is not None:
                why = "stands before any adapter" if not found else "is the second of one adapter"
                raise UsageError(
                    f"{given(strength, factor)} {why}: each belongs to the {given(adapter)} before it",
                    hint=f"{given(adapter, 'A')} {given(strength, factor)} {given(adapter, 'B')}",
                    option=strength,
                )
            found[-1] = factor
    return [1.0 if factor is None else factor for factor in found] or [1.0] * len(adapters or ())


def only_adapters(tensor: list[str] | None, chain: str | None, view: str | None, mask: str | None) -> None:
    """Raise UsageError for what says in another way what an adapter says itself."""
    said = {"tensor": tensor, "chain": chain, "view": view, "mask": mask}
    for name, value in said.items():
        if value:
            raise UsageError(
                f"{given('adapter')} and {given(name)} exclude each other: an adapter says itself what it changes",
                option=name,
            )
