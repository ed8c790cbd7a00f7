"""LOHA and LOKR of PEFT: changes that are products, in LyCORIS' names and with a scale in the configuration.

    LOHA    MODULE.hada_w1_a, .hada_w1_b, .hada_w2_a, .hada_w2_b, .hada_t1, .hada_t2
    LOKR    MODULE.lokr_w1 or .lokr_w1_a, .lokr_w1_b;  .lokr_w2 or .lokr_w2_a, .lokr_w2_b, .lokr_t2

The scale is alpha / r, of a LoKr without factors too. A whole W2 of a convolution of one dimension is multiplied as
torch does it, W1 padded on its left: another change than LyCORIS'. Source: peft 0.21, tuners/loha, tuners/lokr.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .adapter import Change
from .kohya_families import LOHA as LYCORIS_LOHA
from .kohya_families import LOKR as LYCORIS_LOKR
from .kohya_families import Family as LycorisFamily
from .kohya_families import Module as LycorisModule
from .kohya_families import change_of
from .peft_config import Config
from .peft_family import Family, Module


@dataclass(frozen=True)
class _OfConfig(LycorisModule):
    """A module whose scale is in a configuration."""

    config: Config | None = None

    def alpha(self, rank: int) -> float:
        assert self.config is not None
        self.config.rank(self.name, rank)
        return self.config.number("alpha", self.name, "alpha_pattern")

    def whole(self) -> float:
        assert self.config is not None
        rank = self.config.number("r", self.name, "rank_pattern")
        if rank <= 0:
            raise self.config.refusal(f"r is {rank:g}, and a rank is 1 or more")
        return self.config.number("alpha", self.name, "alpha_pattern") / rank

    @property
    def left(self) -> bool:
        return "lokr_w2" in self.keys and len(self.shape("lokr_w2")) == 3


def _as(family: LycorisFamily) -> Callable[[Module, Config], list[Change]]:
    def changes(module: Module, config: Config) -> list[Change]:
        own = _OfConfig(module.path, module.keys, module.source, config.strength, config=config)
        return [change_of(own, family)]

    return changes


LOHA = Family("LOHA", "LoHa", LYCORIS_LOHA.parts, _as(LYCORIS_LOHA))
LOKR = Family("LOKR", "LoKr", LYCORIS_LOKR.parts, _as(LYCORIS_LOKR))
