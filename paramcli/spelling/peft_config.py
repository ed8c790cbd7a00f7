"""What the `adapter_config.json` of a PEFT adapter says: numbers, patterns, and refusals in its name."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputRefused
from ..text import count_text, listing, printable
from ..wording import given
from .patterns import Budget, Pattern, Unknown

MAX_CONFIG = 1 << 20
# No number that means something is larger; a whole one of hundreds of digits is none that could be computed with.
# What to do about a configuration that cannot be that of the weights beside it.
AGAIN = "copy or download the adapter again: its configuration and its weights have to be of one training"
_MOST = 1e30
# What `inspect` shows of it.
_FACTS = (
    "r",
    "init_r",
    "lora_alpha",
    "alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "oft_block_size",
    "boft_block_size",
    "target_modules",
    "target_parameters",
    "modules_to_save",
    "base_model_name_or_path",
)


@dataclass
class Config:
    """What the configuration says of the change."""

    path: Path
    values: Mapping[str, object]
    strength: float
    # Module path -> is its weight stored (in, out), by the tensors that are not square.
    seen: dict[str, bool] = field(default_factory=dict)
    # The same of the base's tensors that are not square and have a bias, which is as long as their outputs.
    stored: dict[str, bool] = field(default_factory=dict)
    # Those of the base's weights that have a bias beside them.
    with_bias: set[str] = field(default_factory=set)
    _budget: Budget = field(default_factory=Budget)
    # What may be spent on looking for what is only worth a word.
    _spare: Budget = field(default_factory=Budget)
    # (name, is it for spare) -> its patterns and their values, in order.
    _patterns: dict[tuple[str, bool], list[tuple[Pattern, object]]] = field(default_factory=dict)
    # Modules that two patterns give different alphas, with these: no tensor says which was trained with.
    _unsure: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, strength: float) -> Config:
        try:
            data = path.read_bytes() if path.stat().st_size <= MAX_CONFIG else b""
            values = json.loads(data.decode("utf-8"))
        except FileNotFoundError:
            raise InputRefused(
                "an adapter's scale is in its adapter_config.json, and there is none",
                hint=f"{given('adapter')} is for the folder that save_pretrained of a PEFT model wrote; the base stands"
                " before it",
                path=path.parent,
            ) from None
        except (OSError, ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise InputRefused("it is no JSON object of an adapter", path=path, of_file=True, hint=AGAIN)
        return cls(path, values, strength)

    def refusal(self, why: str, hint: str | None = None) -> InputRefused:
        return InputRefused(why, path=self.path, of_file=True, hint=hint)

    @property
    def peft_type(self) -> str:
        return str(self.values.get("peft_type"))

    @property
    def fan_in_fan_out(self) -> bool:
        return self.values.get("fan_in_fan_out") is not None and self.flag("fan_in_fan_out")

    def facts(self) -> dict[str, str]:
        """What of it tells adapters apart, as text: numbers, flags that are set, patterns, and what it is for."""
        found = {}
        for name in _FACTS:
            value = self.values.get(name)
            if isinstance(value, dict):
                value = [f"{key} {one}" for key, one in value.items()]
            if isinstance(value, list):
                value = listing([printable(one, 60) for one in value], 8)
            if value not in (None, False, "", "none"):
                found[name] = printable(value, 200)
        return found

    def is_set(self, name: str) -> bool:
        return bool(self.values.get(name))

    def flag(self, name: str, default: bool = False) -> bool:
        """InputRefused for a value that is neither true nor false."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            raise self.refusal(f"{name} is neither true nor false")
        return value

    def whole(self, name: str, default: int) -> int:
        value = self.number(name, default=default)
        if value != int(value) or not 0 <= value < 1 << 40:
            raise self.refusal(f"{name} is no whole number")
        return int(value)

    def mapping(self, name: str) -> Mapping[str, object]:
        """{} where there is none."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise self.refusal(f"{name} is no object of names")
        return value or {}

    def names_module(self, name: str, module: str) -> bool:
        """Is the module one of a list of ends of paths, or does the pattern match the whole of its path?"""
        value = self.values.get(name)
        if isinstance(value, str):
            try:
                return Pattern(value, self._budget, before="").matches(module)
            except Unknown as error:
                raise self.refusal(
                    f"{name} is a pattern that paramcli does not match ({error}): {printable(value, 80)}"
                ) from None
        if value is not None and not (isinstance(value, list) and all(isinstance(end, str) for end in value)):
            raise self.refusal(f"{name} is no list of names")
        try:
            self._budget.spend(1 + len(value or ()) // 64)
        except Unknown as error:
            raise self.refusal(f"{name} has more names than paramcli looks up ({error})") from None
        return module.endswith(tuple(value or ()))

    def number(self, name: str, module: str = "", patterns: str = "", default: object = None) -> float:
        """A finite number, for a module that of the first pattern that matches the end of its path."""
        value = self.of_module(name, patterns, module, default) if patterns else self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _MOST:
            of = f" of {printable(module)}" if module else ""
            raise self.refusal(f"{name}{of} is no number", hint=AGAIN)
        return value

    def of_module(self, name: str, patterns: str, module: str, default: object = None) -> object:
        """The value of a module, which the first pattern that matches it may give, or else its own name there."""
        try:
            for number, (pattern, value) in enumerate(self._compiled(patterns)):
                if pattern.matches(module):
                    # (What a rank was the tensors say.)
                    if patterns == "alpha_pattern":
                        self._look_further(module, number)
                    return value
        except Unknown as error:
            raise self.refusal(f"{patterns} has more patterns than paramcli matches ({error})") from None
        return self.mapping(patterns).get(module, self.values.get(name, default))

    def _look_further(self, module: str, number: int) -> None:
        """Does another pattern give the module another alpha? As far as there is time for it."""
        patterns = self._compiled("alpha_pattern", spare=True)
        first, value = patterns[number]
        with suppress(Unknown):
            for pattern, other in patterns[number + 1 :]:
                if other != value and pattern.matches(module):
                    both = f"{printable(value, 20)} ({printable(first.text, 60)}) and {printable(other, 20)}"
                    self._unsure.setdefault(module, f"{both} ({printable(pattern.text, 60)})")
                    return

    def notes(self) -> Iterator[str]:
        """What is to be said once the changes are read."""
        if self._unsure:
            module, both = next(iter(self._unsure.items()))
            rest = len(self._unsure) - 1
            more = f", and so {count_text(rest, 'more module')}" if rest else ""
            yield (
                f"alpha_pattern gives {printable(module)} {both}{more}: the first counts, as where PEFT loads it; but "
                "PEFT sorts the patterns where it saves them, so it may have trained with the other"
            )

    def _compiled(self, name: str, spare: bool = False) -> list[tuple[Pattern, object]]:
        if (name, spare) not in self._patterns:
            compiled = []
            for text, value in self.mapping(name).items():
                try:
                    compiled.append((Pattern(text, self._spare if spare else self._budget), value))
                except Unknown as error:
                    raise self.refusal(
                        f"{name} has a pattern that paramcli does not match ({error}): {printable(text, 80)}"
                    ) from None
            self._patterns[name, spare] = compiled
        return self._patterns[name, spare]

    def rank(self, module: str, rank: int) -> None:
        """InputRefused where the configuration has another rank than the module's tensors."""
        said = self.number("r", module, "rank_pattern")
        if said != rank:
            why = f"the rank of {printable(module)} is {said:g} here, and {rank} in the weights"
            raise self.refusal(why, hint=AGAIN)

    def scale(self, module: str, rank: int, alpha: str = "lora_alpha") -> float:
        """strength * alpha / rank of a module, whose tensors have this rank; InputRefused where the configuration has
        another; alpha / sqrt(rank) with `use_rslora`.
        """
        self.rank(module, rank)
        above = self.number(alpha, module, "alpha_pattern")
        return self.strength * above / (math.sqrt(rank) if self.is_set("use_rslora") else rank)
