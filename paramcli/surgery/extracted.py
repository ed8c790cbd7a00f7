"""What `extract` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import Speech
from ..text import count_text, number_text
from ..wording import in_python


@dataclass(frozen=True)
class Extracted:
    """A changed tensor as the adapter holds it: factors of a rank, or whole (`rank` None) and `why`.

    `lost`: ||D - B A||_F / ||D||_F of the change D and the factors as they are written; `moved`: ||D||_F over the norm
    of the base's tensor, None where the shapes differ. Both None in a dry run.
    """

    tensor: str
    rank: int | None
    lost: float | None
    moved: float | None
    shape: tuple[int, ...]
    dtype: str
    why: str | None = None
    writes: tuple[str, ...] = ()

    def document(self) -> dict[str, object]:
        return {
            "tensor": self.tensor,
            "rank": self.rank,
            "lost": self.lost,
            "moved": self.moved,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "why": self.why,
            "writes": list(self.writes),
        }


@dataclass(frozen=True)
class ExtractResult:
    """The adapter that was written. `unchanged`: tensors that are equal in both, and are in no adapter."""

    checkpoint: Path
    base: Path
    output: Path
    spelling: str
    dry_run: bool
    tensors: tuple[Extracted, ...]
    unchanged: int
    # What a person should know, and what to type next, as it was said.
    said: tuple[str, ...] = ()
    next: str | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of what was chosen."""
        return tuple(in_python(said, self.checkpoint) for said in self.said)

    @property
    def lost(self) -> float:
        """The largest share of a change that was lost."""
        return max((one.lost for one in self.tensors if one.lost is not None), default=0.0)

    def document(self, speak: Speech = in_python) -> dict[str, object]:
        """As --json prints it, which speaks as a shell does."""
        return {
            "command": "extract",
            "checkpoint": str(self.checkpoint),
            "base": str(self.base),
            "output": str(self.output),
            "spelling": self.spelling,
            "dry_run": self.dry_run,
            "tensors": [one.document() for one in self.tensors],
            "unchanged": self.unchanged,
            **({"notes": [speak(said, self.checkpoint) for said in self.said]} if self.said else {}),
        }

    def summary(self) -> str:
        """'7 changes by factors (at most 0.02 of one lost), 2 whole, 12 tensors unchanged'"""
        factored = [one for one in self.tensors if one.rank is not None]
        parts = []
        if factored:
            parts.append(f"{count_text(len(factored), 'change')} by factors (at most {number_text(self.lost)} lost)")
        if len(factored) < len(self.tensors):
            parts.append(f"{len(self.tensors) - len(factored)} whole")
        return ", ".join([*parts, f"{self.unchanged} unchanged"])
