"""What a module's tensors in an adapter of kohya or LyCORIS do to its weight and its bias, by which of them there are.

Source: LyCORIS 4.1, modules and functional; the formulas are those of its `forward`, as its `get_merged_weight` scales
LoHa and LoKr twice. Strength is said once, where LyCORIS has it: of LoRA, LoHa, LoKr and GLoRA in the scale, and with a
`dora_scale` in that alone.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from ..chain import parse_chain
from ..checkpoint.source import Source
from ..dtypes import dtype_name
from ..errors import TENSOR, InputRefused, UsageError
from ..spec import value_text
from ..text import printable, shape_text
from ..view import IDENTITY, View
from .adapter import Change, half_a_change, not_of_shape
from .flat_names import prefix_of
from .forms import Group
from .peft_config import Config
from .peft_lora import require_first

# How a number lies in its bytes. (BF16: the upper half of an F32.)
_NUMBERS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}


@dataclass(frozen=True)
class Module:
    """The tensors that an adapter has of one module, by part; `said`: what diffusers' metadata say of its scale;
    `told`: what an adapter's modules have, for who looks at it: rank and alpha, each with its values.
    """

    name: str
    keys: Mapping[str, str]
    source: Source
    strength: float
    said: Config | None = None
    told: dict[str, dict[str, None]] = field(default_factory=dict)

    def shape(self, part: str) -> tuple[int, ...]:
        return tuple(self.source.tensors[self.keys[part]].shape)

    def side(self, part: str, dim: int) -> int:
        """A side of a tensor of at least two dimensions."""
        shape = self.shape(part)
        if len(shape) < 2 or 0 in shape:
            raise self.refusal(part, f"is {shape_text(shape)}, and a matrix is wanted")
        return shape[dim]

    def require(self, *parts: str) -> None:
        """InputRefused where one of them is missing."""
        missing = [self._as_spelt(part) for part in parts if part not in self.keys]
        if missing:
            there = [part for part in parts if part in self.keys] or [part for part in self.keys if part not in _SCALES]
            raise half_a_change(self.name, missing, self.keys[there[0]], self.source)

    def _as_spelt(self, part: str) -> str:
        """What the part is called in the words of the module's other side."""
        for words in (("lora_A", "lora_B"), ("lora.down", "lora.up")) if part in ("lora_down", "lora_up") else ():
            if any(key.startswith(f"{self.name}.{word}.") for key in self.keys.values() for word in words):
                return words[part == "lora_up"]
        return part

    def refusal(self, part: str, why: str) -> InputRefused:
        return InputRefused(f"{TENSOR} {why}", tensor=self.keys[part], path=self.source.path)

    def number(self, part: str) -> float:
        """The one finite number in a tensor."""
        info = self.source.tensors[self.keys[part]]
        if math.prod(info.shape) != 1 or not info.is_readable or info.dtype not in {*_NUMBERS, "BF16"}:
            raise self.refusal(part, f"is {shape_text(info.shape)} of {dtype_name(info.dtype)}, and a number is wanted")
        data = bytes(self.source.read_bytes(self.keys[part]))
        packed = ("<f", b"\0\0" + data) if info.dtype == "BF16" else (_NUMBERS[info.dtype], data)
        value = float(struct.unpack(*packed)[0])
        if not math.isfinite(value):
            raise self.refusal(part, f"is {value}, and a finite number is wanted")
        return value

    def alpha(self, rank: int) -> float:
        """What the scale is the share of the rank of: the rank, where there is no alpha or it is 0."""
        said = self.said.scale(self.name[len(prefix_of(self.name)) :], rank) * rank if self.said else None
        alpha = (self.number("alpha") or float(rank)) if "alpha" in self.keys else None
        if alpha is not None and said is not None and not math.isclose(alpha, said, rel_tol=1e-6):
            raise self.refusal("alpha", f"is {alpha:g}, and by the metadata it is {said:g}")
        alpha = next((value for value in (alpha, said) if value is not None), float(rank))
        for what, value in (("rank", rank), ("alpha", alpha)):
            self.told.setdefault(what, {})[f"{value:g}"] = None
        return alpha

    @property
    def says_its_scale(self) -> bool:
        """Does its alpha tell of training with rs_lora? GLoRA's does not, and a whole LoKr has none."""
        return "a1" not in self.keys and not {"lokr_w1", "lokr_w2"} <= self.keys.keys()

    def whole(self) -> float:
        """The scale of a product that has no rank."""
        return 1.0

    @property
    def left(self) -> bool:
        """Is a Kronecker product that of torch with a whole factor of three dimensions?"""
        return False

    def item(self, name: str, **arguments: float | str) -> str:
        """The text of a chain's item; InputRefused for a number that none can have."""
        wrong = next(
            (value for value in arguments.values() if isinstance(value, float) and not math.isfinite(value)), 0
        )
        if wrong:
            raise self.refusal(next(iter(self.keys)), "has a scale beyond all numbers")
        return name + "".join(f":{key}={value_text(value)}" for key, value in arguments.items())


@dataclass(frozen=True)
class Family:
    """One kind of change of a weight, known by the parts that it has.

    `spelt` gives the item of a chain and its tensors by name, of a module at a strength; `decomposed`: a `dora_scale`
    may follow it; `spends`: parts that are numbers, which the item has; `leaf`: what of the module it changes, a
    weight of two dimensions or more unless it is `of_any_shape`.
    """

    title: str
    parts: tuple[str, ...]
    marks: tuple[str, ...]
    spelt: Callable[[Module, float], tuple[str, dict[str, str]]]
    decomposed: bool = False
    spends: tuple[str, ...] = ("alpha",)
    leaf: str = "weight"
    of_any_shape: bool = False


# Parts that are no change by themselves.
_SCALES = {"alpha", "dora_scale"}


def changes_of(module: Module) -> Iterator[tuple[str, Change]]:
    """(what it is called, the change) of a module's tensors, those of its weight before those of its bias."""
    found: dict[str, Family] = {}
    for family in FAMILIES:
        if any(mark in module.keys for mark in family.marks):
            other = found.setdefault(family.leaf, family)
            if other is not family:
                raise InputRefused(
                    f"{TENSOR} is of a module with tensors of {other.title} and of {family.title}, and one is wanted",
                    tensor=next(iter(module.keys.values())),
                    path=module.source.path,
                )
    if module.keys.keys() <= _SCALES:
        raise half_a_change(module.name, ["change that it scales"], next(iter(module.keys.values())), module.source)
    for family in found.values():
        yield family.title, change_of(module, family)


def change_of(module: Module, family: Family) -> Change:
    decomposed = family.decomposed and "dora_scale" in module.keys
    item, parts = family.spelt(module, 1.0 if decomposed else module.strength)
    keys = {role: module.keys[part] for role, part in parts.items()}

    def reads(group: Group) -> tuple[str, View]:
        whole = item
        if len(group.shape) < 2 and not family.of_any_shape:
            raise not_of_shape(group, "change is of matrices,", [module.shape(part) for part in parts.values()])
        if "magnitude" in keys:
            require_first(group)
        if decomposed:
            axis = _axis(module, group)
            whole += "," + module.item("lycoris.dora", strength=module.strength, axis=axis)
        shapes = {role: tuple(module.source.tensors[key].shape) for role, key in keys.items()}
        _require_shapes(group, whole, shapes, parts)
        return whole, IDENTITY

    if decomposed:
        keys["1.dora_scale"] = module.keys["dora_scale"]
    spends = tuple(module.keys[part] for part in family.spends if part in module.keys)
    return Change(f"{module.name}.{family.leaf}", keys, reads, spends=spends)


def _axis(module: Module, group: Group) -> str:
    """Is there a length for each output or for each input? By the shape alone; a 1 x 1 weight has the same of both."""
    shape, size = module.shape("dora_scale"), math.prod(module.shape("dora_scale"))
    if len(shape) > 1 and len(group.shape) > 1:
        if shape[0] == size == group.shape[0]:
            return "out"
        if shape[1] == size == group.shape[1]:
            return "in"
    raise not_of_shape(group, "dora_scale is", [shape])


def _require_shapes(group: Group, item: str, shapes: Mapping[str, tuple[int, ...]], parts: Mapping[str, str]) -> None:
    """InputRefused where the tensors, by their names in the chain, are not those of a weight of the group's shape."""
    try:
        wanted = parse_chain(item).stores(group.shape)
    except UsageError as error:
        raise InputRefused(error.fact, tensor=group.tensor) from None
    for role, shape in shapes.items():
        link, _, name = role.rpartition(".")
        want = (wanted or {}).get(f"{int(link or 0)}.{name}")
        if want is None or not _is_alike(shape, want[1], group.shape[2:]):
            raise not_of_shape(group, f"{parts.get(role, name)} is", [shape])


def _is_alike(shape: tuple[int, ...], wanted: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """The same, or with sides of 1 after it, or with inputs and kernel apart; a vector along any axis."""
    if len(wanted) == 1:
        return [side for side in shape if side != 1] == [side for side in wanted if side != 1]
    shapes = [wanted]
    inputs, rest = divmod(wanted[-1] if wanted else 0, math.prod(kernel) or 1)
    if len(wanted) == 2 and not rest:
        shapes.append((wanted[0], inputs, *kernel))
    return any(_begins(shape, one) or _begins(one, shape) for one in shapes)


def _begins(shape: tuple[int, ...], with_: tuple[int, ...]) -> bool:
    """Is the shape this one, with nothing but sides of 1 after it?"""
    return shape[: len(with_)] == with_ and all(side == 1 for side in shape[len(with_) :])


def _lora(module: Module, strength: float) -> tuple[str, dict[str, str]]:
    module.require("lora_down", "lora_up")
    rank = module.side("lora_down", 0)
    up, down, numbers = "lora_up", "lora_down", {"rank": rank, "alpha": strength * module.alpha(rank)}
    if "lora_mid" in module.keys:
        return module.item("tucker", **numbers), {part: part for part in (down, "lora_mid", up)}
    if "magnitude" in module.keys:
        if "dora_scale" in module.keys:
            raise module.refusal("magnitude", f"and {printable(module.keys['dora_scale'])} are the same change")
        return module.item("dora", **numbers), {"lora_A": down, "lora_B": up, "magnitude": "magnitude"}
    return module.item("lora", **numbers), {"lora_A": down, "lora_B": up}


_HADA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")


def _loha(module: Module, strength: float) -> tuple[str, dict[str, str]]:
    tucker = "hada_t1" in module.keys or "hada_t2" in module.keys
    parts = _HADA if tucker else _HADA[:4]
    module.require(*parts)
    rank = module.side("hada_w1_b", 0)
    return module.item("loha", rank=rank, alpha=strength * module.alpha(rank), tucker=tucker), {
        part: part for part in parts
    }


_LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")


def _lokr(module: Module, strength: float) -> tuple[str, dict[str, str]]:
    """The rank is that of `*_b`'s rows, as a tucker `*_a` is (rank, out). Both whole have no scale but the strength."""
    parts: list[str] = []
    how: dict[str, str | bool] = {}
    ranks: list[int] = []
    for half in ("lokr_w1", "lokr_w2"):
        whole = half in module.keys
        own = (half,) if whole else (f"{half}_a", f"{half}_b")
        module.require(*own)
        parts += own
        ranks += [] if whole else [module.side(f"{half}_b", 0)]
        how[half[-2:]] = "whole" if whole else "factored"
    if "lokr_t2" in module.keys:
        parts.append("lokr_t2")
        how["w2"] = "tucker"
    if len(set(ranks)) > 1:
        raise module.refusal("lokr_w1_b", f"is of rank {ranks[0]} and the other factor of rank {ranks[1]}")
    p = module.side("lokr_w1", 0) if "lokr_w1" in module.keys else module.side("lokr_w1_a", 0)
    q = module.side("lokr_w1" if "lokr_w1" in module.keys else "lokr_w1_b", 1)
    scale = strength * (module.alpha(ranks[0]) / ranks[0] if ranks else module.whole())
    how |= {"left": True} if module.left else {}
    return module.item("lokr", p=p, q=q, rank=ranks[0] if ranks else 1, scale=scale, **how), {p: p for p in parts}


def _glora(module: Module, strength: float) -> tuple[str, dict[str, str]]:
    parts = ("a1", "a2", "b1", "b2")
    module.require(*parts)
    rank = module.side("a2", 0)
    return module.item("glora", rank=rank, alpha=strength * module.alpha(rank)), {part: part for part in parts}


def _oft(module: Module, strength: float) -> tuple[str, dict[str, str]]:
    """Blocks of three dimensions are OFT's, of four BOFT's; alpha is the bound of the turns."""
    shape = module.shape("oft_blocks")
    if len(shape) not in (3, 4) or shape[-1] != shape[-2] or 0 in shape:
        raise module.refusal("oft_blocks", f"is {shape_text(shape)}, and blocks n x b x b or m x n x b x b are wanted")
    constraint = module.number("alpha") if "alpha" in module.keys else 0.0
    if constraint < 0 or (constraint == 0 and module.name.startswith("oft_unet_")):
        raise module.refusal("alpha", f"is {value_text(constraint)}, and bounds the turns of oft_blocks")
    stages = {"stages": shape[0]} if len(shape) == 4 else {}
    parts = ("oft_blocks", *(("rescale",) if "rescale" in module.keys else ()))
    item = module.item(
        "lycoris.boft" if stages else "lycoris.oft",
        blocks=shape[-3],
        **stages,
        strength=strength,
        constraint=constraint,
        rescale=len(parts) == 2,
    )
    return item, {part: part for part in parts}


def _ia3(module: Module, strength: float) -> tuple[str, dict[str, str]]:
    module.require("weight", "on_input")
    item = module.item("lycoris.ia3", strength=strength, axis="in" if module.number("on_input") else "out")
    return item, {"weight": "weight"}


def _added(part: str) -> Callable[[Module, float], tuple[str, dict[str, str]]]:
    return lambda module, strength: (module.item("shifted", scale=strength), {"diff": part})


LOHA = Family("LoHa", _HADA, _HADA, _loha, True)
LOKR = Family("LoKr", _LOKR, _LOKR, _lokr, True)
FAMILIES = (
    Family("LoRA", ("lora_down", "lora_up", "lora_mid", "magnitude"), ("lora_down", "lora_up"), _lora, True),
    LOHA,
    LOKR,
    Family("GLoRA", ("a1", "a2", "b1", "b2"), ("a1", "a2", "b1", "b2"), _glora),
    Family("OFT", ("oft_blocks", "rescale"), ("oft_blocks",), _oft),
    Family("IA3", ("weight", "on_input"), ("on_input",), _ia3, spends=("on_input",)),
    *(Family("full", (part,), (part,), _added(part), spends=(), of_any_shape=True) for part in ("diff", "w_norm")),
    *(
        Family("full", (part,), (part,), _added(part), spends=(), leaf="bias", of_any_shape=True)
        for part in ("diff_b", "b_norm")
    ),
)
