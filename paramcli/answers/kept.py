"""What an edit leaves alone: is it in the result as it was before, bit for bit?"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..dtypes import EDITABLE
from ..text import count_text, listing

if TYPE_CHECKING:
    from torch import Tensor

    from ..spelling.forms import Group
    from ..spelling.opened import Opened


@dataclass(frozen=True)
class Other:
    """A tensor that was to stay as it is in the base, and did not."""

    tensor: str
    detail: str


@dataclass(frozen=True)
class Kept:
    """The tensors that were to stay as they are in the base.

    `untouched`: how many are the base's, bit for bit; `cast`: how many of these but for their dtype, in which they
    are rounded; `different`, `missing`, `extra`: those that are not, that only the base has, and only the result.
    """

    untouched: int = 0
    cast: int = 0
    different: tuple[Other, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not (self.different or self.missing or self.extra)

    @property
    def wrong(self) -> list[tuple[str, str]]:
        """(the name of each that is not as it was, what is to be said of it)"""
        found = [(other.tensor, f"not the base's: {other.detail}") for other in self.different]
        found += [(name, "missing") for name in self.missing]
        return found + [(name, "not in the base") for name in self.extra]

    def document(self) -> dict[str, object]:
        """As --json prints it."""
        return {
            "untouched": self.untouched,
            "cast": self.cast,
            "different": [{"tensor": other.tensor, "detail": other.detail} for other in self.different],
            "missing": list(self.missing),
            "extra": list(self.extra),
        }

    def summary(self) -> str:
        """The end of a line: "; 3 others are the base's", and what is not."""
        said = f"; {count_text(self.untouched, 'other')} {'is' if self.untouched == 1 else 'are'} the base's"
        said += f" ({self.cast} cast to another dtype)" if self.cast else ""
        odd = ("not the base's", [other.tensor for other in self.different]), ("missing", self.missing)
        for what, names in (*odd, ("not in the base", self.extra)):
            said += f"; {len(names)} {what}: {listing(names, 4)}" if names else ""
        return said


def compare_kept(
    result: Opened,
    base: Opened,
    names: Sequence[str],
    changed: Collection[str],
    missing: Sequence[str],
    extra: Sequence[str],
    advance: Callable[[int], None],
) -> Kept:
    """What is to be said of the tensors of these names, which both have. `changed`: those that the edit was of: what is
    tied to one of them is changed with it.
    """
    from .diff import compare_one, same_state

    twins = {name: tied for tied in base.source.tied() for name in tied}
    same = cast = 0
    different = []
    for name in names:
        one, other = base.groups[name], result.groups[name]
        found = compare_one(name, base.source, one, result.source, other, None, exact=True)
        tied = [twin for twin in twins.get(name, ()) if twin in changed and twin in result.groups]
        if found.equal:
            same += 1
        elif one.dtype != other.dtype and _is_cast(base, one, result, other):
            same, cast = same + 1, cast + 1
        elif any(same_state(result.source, result.groups[twin], result.source, other) for twin in tied):
            same += 1  # one tensor with what was changed, and changed with it
        else:
            if one.dtype != other.dtype:
                found = compare_one(name, base.source, one, result.source, other, None, exact=False)
            off = "" if found.max_abs is None else f"it is off by {found.max_abs:.3g}"
            different.append(Other(name, "; ".join(filter(None, (found.detail, off)))))
        advance(other.nbytes)
    return Kept(same, cast, tuple(different), tuple(missing), tuple(extra))


def _is_cast(base: Opened, one: Group, result: Opened, other: Group) -> bool:
    """Is one the other, rounded to its dtype?"""
    from ..fitting.pairs import Pair

    if one.shape != other.shape or {one.dtype, other.dtype} - EDITABLE:
        return False
    return Pair(result.source, other, base.source, one).alike(_rounded)


def _rounded(M: Tensor, W: Tensor) -> bool:
    """Is M what a cast gives of W? What has no room in the other dtype is lost, and no cast of it."""
    import torch

    kept = torch.equal(torch.isinf(W), torch.isinf(M)) and torch.equal(torch.isnan(W), torch.isnan(M))
    number = ~torch.isnan(M)
    return kept and torch.equal(W.to(M.dtype)[number], M[number])
