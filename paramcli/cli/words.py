"""Options that take one of a few words: their texts as the types that the library has for them.

Raises UsageError for any other word, as the library does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UsageError
from ..spec import check_choice
from ..wording import given

if TYPE_CHECKING:
    from ..dtypes import ComputeDtype
    from ..surgery.edits.add import Init
    from ..surgery.edits.base import Spelling, Tied


def tied(word: str | None) -> Tied | None:
    from ..surgery.edits.base import TIED

    return None if word is None else check_choice("tied", word, TIED)


def init(word: str) -> Init:
    from ..surgery.edits.add import INITS

    return check_choice("init", word, INITS)


def spelling(word: str) -> Spelling:
    from ..surgery.edits.base import SPELLINGS

    return check_choice("spelling", word, SPELLINGS)


def compute_dtype(word: str) -> ComputeDtype:
    from ..dtypes import COMPUTE_DTYPES

    return check_choice("compute-dtype", word, COMPUTE_DTYPES)


def only_adapters(tensor: list[str] | None, chain: str | None, view: str | None, mask: str | None) -> None:
    """Raise UsageError for what says in another way what an adapter says itself."""
    said = {"tensor": tensor, "chain": chain, "view": view, "mask": mask}
    for name, value in said.items():
        if value:
            raise UsageError(
                f"{given('adapter')} and {given(name)} exclude each other: an adapter says itself what it changes",
                option=name,
            )
