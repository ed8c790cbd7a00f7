"""What verify finds: a verdict on each tensor, and what they amount to together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

from ..dtypes import dtype_name
from ..registry import CONSTRAINTS
from ..spelling.forms import Group
from ..text import count_text, listing
from .kept import Kept

if TYPE_CHECKING:
    from ..evidence import Evidence
    from ..maths.base import Check

# What a round trip measures of a weight and its codes.
DECODABLE, ROUND_TRIP, PRODUCT = "decodable", "round_trip", "product"


@dataclass(frozen=True)
class Verdict:
    """What verify says of one tensor. `checks` is empty where it makes no claim."""

    group: Group
    chain: str | None
    view: str | None
    checks: tuple[Check, ...]

    @property
    def tensor(self) -> str:
        return self.group.tensor

    @property
    def ok(self) -> bool | None:
        """Does all that it claims hold? None for a tensor without a claim, which proves nothing."""
        return all(check.ok for check in self.checks) if self.checks else None

    def document(self) -> dict[str, object]:
        return {
            "tensor": self.tensor,
            "form": self.group.form,
            "chain": self.chain,
            "view": self.view,
            "shape": list(self.group.shape),
            "dtype": dtype_name(self.group.dtype),
            "checks": [
                {
                    "constraint": check.constraint,
                    "residual": check.residual,
                    "tolerance": check.tolerance,
                    "ok": check.ok,
                    "detail": check.detail,
                }
                for check in self.checks
            ],
            "ok": self.ok,
        }


@dataclass(frozen=True)
class VerifyResult(Sequence[Verdict]):
    """The verdicts, one for each tensor that was looked at, as a sequence; and which tensors were not.

    `unverified`: tensors that claim something which their keys do not tell, each with its `problem`; `others`: how many
    were not looked at, as they claim nothing; `evidence`: the files' SHA-256 and what computed, where it was asked for;
    `kept`: what was to stay as it is in the file that this one was made from, where that is compared.
    """

    checkpoint: Path | None
    tensors: tuple[Verdict, ...]
    unverified: tuple[Group, ...] = ()
    others: int = 0
    evidence: Evidence | None = None
    kept: Kept | None = None

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __bool__(self) -> bool:
        """`assert paramcli.verify(...)` must not pass what does not hold."""
        return self.ok

    @overload
    def __getitem__(self, index: int) -> Verdict: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Verdict, ...]: ...
    def __getitem__(self, index: int | slice) -> Verdict | tuple[Verdict, ...]:
        return self.tensors[index]

    @property
    def failed(self) -> tuple[Verdict, ...]:
        """Those that do not hold."""
        return tuple(verdict for verdict in self.tensors if verdict.ok is False)

    @property
    def ok(self) -> bool:
        """Does every claim hold, was every one looked at, and is what was to stay as it was?"""
        return not self.failed and not self.unverified and (self.kept is None or self.kept.ok)

    @property
    def of_codes(self) -> bool:
        """Was it asked whether weights are what codes stand for, and nothing else?"""
        asked = {check.constraint for verdict in self.tensors for check in verdict.checks}
        return ROUND_TRIP in asked and asked <= {DECODABLE, ROUND_TRIP, PRODUCT}

    def document(self) -> dict[str, object]:
        """As --json prints it."""
        unread = [{"tensor": group.tensor, "reason": group.problem} for group in self.unverified]
        return {
            "checkpoint": str(self.checkpoint),
            "ok": self.ok,
            **({"unverified": unread} if unread else {}),
            "tensors": [verdict.document() for verdict in self.tensors],
            **(self.kept.document() if self.kept else {}),
            **({"evidence": self.evidence.document()} if self.evidence else {}),
        }

    def summary(self, where: str = "") -> str:
        """One line: what is proved of how many tensors, and which are not among them. `where`: " in FILE"."""
        claims, rest = [v for v in self.tensors if v.checks], [v.tensor for v in self.tensors if not v.checks]
        sets = [v for v in claims if any(check.constraint.partition(":")[0] in CONSTRAINTS for check in v.checks)]
        unread = [] if self.failed else [group.tensor for group in self.unverified]
        what, not_looked_at = count_text(len(claims), "tensor"), "without a claim"
        if self.of_codes:
            not_looked_at = "without codes"
            products = [check for v in claims for check in v.checks if check.constraint == PRODUCT]
            baked, same = bool(products), all(check.ok for check in products)
            says = f"{what}{where}: every code comes back"
            says += ", and every weight is what its codes stand for" if baked else ""
            if self.failed:
                off = "not every code is a number and comes back"
                if baked:
                    off = f"{off}, but the weights are their products" if same else "not what the codes stand for"
                says = f"{len(self.failed)} of {what}{where}: {off}"
        elif self.failed:
            off = count_text(len(self.failed), "tensor")
            says = f"{off} of {len(claims)}{where}: the constraint does not hold"
        elif not sets:
            says = f"{what}{where}: what they store agrees; no constraint is claimed"
        else:
            says = f"{what}{where}: {'the' if unread else 'every'} constraint holds"
            if len(sets) < len(claims):
                says += f" ({len(claims) - len(sets)} of them claim none: what they store agrees)"
        for names, lack in ((rest, "without a claim"), (unread, "not verified")):
            says += f"; {len(names)} {lack}: {listing(names, 4)}" if names else ""
        says += self.kept.summary() if self.kept is not None else ""
        return says + (f"; {self.others} {not_looked_at} not looked at" if self.others else "")
