"""What `verify --base --adapter` finds: of each tensor whether it is base plus adapter, and of the others whether they
are the base's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from ..text import count_text, number_text
from .kept import Kept, Other

if TYPE_CHECKING:
    from ..evidence import Evidence

# Verdict -> what is said of it. The words are an interface.
VERDICTS = {
    "holds": "holds",
    "never_applied": "never applied",
    "twice": "applied twice",
    "other_strength": "at {} times its strength",
    "transposed": "transposed",
    "another": "another change",
    "below_rounding": "below rounding",
}


@dataclass(frozen=True)
class MergeVerdict:
    """What is said of one tensor that the adapters change.

    `verdict`: a key of VERDICTS; `residual`: ||M - E|| / ||E - W||, of what is there (M), what should be (E) and the
    base (W); `of_rounding`: the farthest entry, as a share of what rounding explains of it, 1 or less where it holds;
    `differing`: the share of entries that are not the base's; `strength`: the least and the greatest multiple of the
    adapters' strengths that rounding allows, None where that has no meaning; `detail`: how it was rounded, or what else
    is known.
    """

    tensor: str
    chain: str
    shape: tuple[int, ...]
    dtype: str
    verdict: str
    residual: float | None = None
    of_rounding: float | None = None
    differing: float | None = None
    strength: tuple[float, float] | None = None
    detail: str | None = None

    @property
    def ok(self) -> bool | None:
        """None where rounding leaves nothing to tell by."""
        return None if self.verdict == "below_rounding" else self.verdict == "holds"

    @property
    def said(self) -> str:
        if self.verdict != "other_strength" or self.strength is None:
            return VERDICTS[self.verdict]
        from ..fitting.strengths import simplest

        return VERDICTS[self.verdict].format(f"{simplest(*self.strength):g}")

    @property
    def allowed(self) -> str:
        """The strengths that rounding allows, as a number and what it may be off by."""
        if self.strength is None:
            return "-"
        from ..fitting.strengths import simplest

        middle = simplest(*self.strength)
        return f"{middle:g} \u00b1{max(self.strength[1] - middle, middle - self.strength[0]):.1g}"

    def document(self) -> dict[str, object]:
        return {
            "tensor": self.tensor,
            "chain": self.chain,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "verdict": self.verdict,
            "residual": self.residual,
            "of_rounding": self.of_rounding,
            "differing": self.differing,
            "strength": None if self.strength is None else list(self.strength),
            "ok": self.ok,
            "detail": self.detail,
        }


@dataclass(frozen=True)
class MergeResult(Sequence[MergeVerdict]):
    """The verdicts on the tensors that the adapters change, as a sequence; and what is to be said of the others, as of
    `Kept`.
    """

    checkpoint: Path
    base: Path
    adapters: tuple[tuple[str, float], ...]
    tensors: tuple[MergeVerdict, ...]
    untouched: int = 0
    cast: int = 0
    different: tuple[Other, ...] = ()
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    # What explains missing names, as it was said: a wrapper's prefix, and what to type.
    said: str | None = None
    evidence: Evidence | None = None

    def __iter__(self) -> Iterator[MergeVerdict]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __bool__(self) -> bool:
        """`assert paramcli.verify_merge(...)` must not pass what is not proved."""
        return self.ok is True

    @overload
    def __getitem__(self, index: int) -> MergeVerdict: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[MergeVerdict, ...]: ...
    def __getitem__(self, index: int | slice) -> MergeVerdict | tuple[MergeVerdict, ...]:
        return self.tensors[index]

    @property
    def kept(self) -> Kept:
        return Kept(self.untouched, self.cast, self.different, self.missing, self.extra)

    @property
    def failed(self) -> tuple[MergeVerdict, ...]:
        """Those that are something else than base plus adapter."""
        return tuple(verdict for verdict in self.tensors if verdict.ok is False)

    @property
    def ok(self) -> bool | None:
        """Is it base plus adapter? None where no tensor's change is above rounding, so that nothing tells."""
        if self.failed or not self.kept.ok:
            return False
        return True if any(verdict.ok for verdict in self.tensors) else None

    def document(self) -> dict[str, object]:
        """As --json prints it."""
        return {
            "checkpoint": str(self.checkpoint),
            "base": str(self.base),
            "adapters": [{"path": path, "strength": strength} for path, strength in self.adapters],
            "ok": self.ok,
            "tensors": [verdict.document() for verdict in self.tensors],
            **self.kept.document(),
            **({"evidence": self.evidence.document()} if self.evidence else {}),
        }

    def summary(self) -> str:
        """One line: what is proved of how many tensors, what is not, and of the others."""
        total, holds = len(self.tensors), sum(verdict.ok is True for verdict in self.tensors)
        if self.failed:
            kinds = [verdict.said for verdict in self.failed]
            each = ", ".join(f"{count_text(kinds.count(kind), 'tensor')} {kind}" for kind in dict.fromkeys(kinds))
            said = f"not base plus adapter: {each}, of {total}"
        elif holds:
            said = f"{holds} of {count_text(total, 'changed tensor')} {'is' if holds == 1 else 'are'} base plus adapter"
        else:
            said = f"nothing tells: the change of {count_text(total, 'tensor')} is below rounding"
        if holds and holds < total and not self.failed:
            said += f", {total - holds} below rounding"
        return said + self.kept.summary()


def share(value: float) -> str:
    """0.123 -> '12 %'"""
    percent = 100 * value
    return f"{percent:.0f} %" if 10 <= percent < 1e6 else f"{number_text(percent)} %"
