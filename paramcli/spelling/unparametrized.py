"""What a checkpoint without a parametrized tensor holds instead, by keys, shapes and dtypes, and what to do with it.

    LoRA          X.base_layer.weight, X.lora_A.weight, X.lora_A.default.weight     PEFT
                  X.weight, X.lora_A, X.lora_B                                      loralib
                  X.lora_down.weight, X.lora_up.weight, X.alpha; X.hada_w1_a ...    kohya, LyCORIS
    spectral norm X.weight, X.u0, X.sv0                                             BigGAN: divided in its own forward
                  X.weight, X.weight_u                                              the same in other code
    a mask        X.weight, X.weight_mask                                           multiplied in a forward of its own
    quantized     X.qweight, X.qzeros, X.scales; X.weight.absmax; X.weight beside X.weight_scale, ...
                  X.codes, X.codebooks; X.trellis; X.W_q ...                        FOREIGN: no reader for them

These are told, never taken for a parametrization: what the model's own code computes with them, the keys do not say.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..dtypes import DTYPES
from ..errors import PATH
from ..text import listing
from ..wording import call
from .foreign import FOREIGN
from .forms import Group

# What to do with an adapter's own file.
ONTO_BASE = f"{call('merge', 'BASE', adapter=PATH)} bakes it onto its base"

IN_BASE = f"{call('merge', PATH, adapter='adapter_config.json')} bakes it: its scale is in that file"


class Instead(NamedTuple):
    """`what` it holds, a clause; what to do next; and is it plain weights and nothing else?"""

    what: str
    hint: str
    plain: bool = False


Groups = Mapping[str, Group]
# (a name, all of them) -> is this the mark of it? And (such names, all) -> what to do next.
Mark = Callable[[str, Groups], bool]
Next = Callable[[Sequence[str], Groups], str]

_LORALIB = re.compile(r"(.+)\.lora_[AB]")
_PEFT = re.compile(r".*\b(lora_(embedding_)?[ABE]|lora_magnitude_vector)\b.*")
_KOHYA = re.compile(r".*\b(lora_(down|up|mid)|hada_w[12]_[ab]|lokr_w[12](_[ab])?|oft_blocks)\b.*")
_PROCESSORS = re.compile(r".*_lora\.(down|up)\b.*")
# One of these is in every name that _PEFT or _KOHYA have.
_PARTS = ("lora", "hada_w", "lokr_w", "oft_blocks")
_SCALES = ("_scale", "_scale_inv", "_scale_2", "_packed", "_blocks", "_scales", "_zero_point", "_global_scale")


def proof_of_codes(groups: Iterable[Group]) -> str | None:
    """What proves weights that were decoded, by their record; None where there are none."""
    records = (group.record for group in groups)
    if not any(record is not None and record.chain is not None and record.chain.decodes for record in records):
        return None
    return f"{call('verify', PATH, base='QUANTIZED', round_trip=True)} proves it by the codes that it was"


def instead_of_chains(groups: Groups, path: Path | None = None) -> Instead:
    """What these groups are, of which none is parametrized; `path`: where they lie, which tells of an adapter."""
    peft = path is not None and _is_peft(path)
    for mark, what, hint in _KINDS:
        found = [name for name in groups if mark(name, groups)]
        if found:
            return Instead(f"it holds {what} ({listing(found, 2)})", ONTO_BASE if peft else hint(found, groups))
    if path is not None and (peft or _is_kohya(groups)):
        return Instead(f"it holds an adapter's tensors ({listing(groups, 2)})", ONTO_BASE)
    baked = [group.tensor for group in groups.values() if group.record is not None]
    if baked:
        claims = any(group.constraint for group in groups.values() if group.record is not None)
        structure = f"{call('discover', PATH)} shows the structure they have"
        ask = call("verify", PATH) if claims else proof_of_codes(groups.values()) or structure
        return Instead(f"{listing(baked, 2)} {'is' if len(baked) == 1 else 'are'} baked already", ask)
    if not groups:
        return Instead("it holds no tensor", "give the file that the weights are in")
    plain = "its one tensor is plain" if len(groups) == 1 else f"all its {len(groups)} tensors are plain"
    example = next((g.tensor for g in groups.values() if len(g.shape) > 1), next(iter(groups)))
    return Instead(
        plain,
        f"{call('discover', PATH)} shows the structure they have; "
        f"{call('add', PATH, tensor=example, chain='SPEC')} puts a chain on one",
        plain=True,
    )


def _is_peft(path: Path) -> bool:
    from .peft import is_peft  # which has the whole catalogue with it

    return is_peft(path)


def _is_kohya(groups: Groups) -> bool:
    from .kohya import is_kohya

    return is_kohya(groups)


def is_of_adapter(name: str) -> bool:
    """Is it by its name a tensor of an adapter, as PEFT or kohya have them?"""
    if name.startswith(("lora_unet_", "lora_te", "lycoris_")):
        return True
    # Of most files no name has any of these, and a pattern takes ten times as long to say so.
    return any(part in name for part in _PARTS) and bool(_PEFT.fullmatch(name) or _KOHYA.fullmatch(name))


def _loralib(name: str, groups: Groups) -> bool:
    found = _LORALIB.fullmatch(name)
    return found is not None and any(f"{found[1]}{own}.weight" in groups for own in ("", ".conv"))


def _biggan(name: str, groups: Groups) -> bool:
    before, _, leaf = name.rpartition(".")
    return leaf == "sv0" and f"{before}.u0" in groups


def _vector_alone(name: str, groups: Groups) -> bool:
    return name.endswith("weight_u") and name[:-2] in groups


def _mask(name: str, groups: Groups) -> bool:
    base = name.removesuffix("_mask")
    return base != name and base in groups and groups[base].shape == groups[name].shape


def _bitsandbytes(name: str, groups: Groups) -> bool:
    return name.endswith((".absmax", ".SCB")) or ".quant_state.bitsandbytes" in name


def _scaled(name: str, groups: Groups) -> bool:
    """A scale or the like beside codes: 8-bit floats, or integers."""
    for ending in _SCALES:
        base = name.removesuffix(ending)
        if base != name:
            beside = (base, f"{base}_packed", f"{base}_blocks")
            return any(_is_code(groups[one]) for one in beside if one in groups)
    before, _, leaf = name.rpartition(".")
    weight = groups.get(f"{before}.weight")
    return leaf in ("scale", "scale_weight") and weight is not None and _is_code(weight)


def _is_code(group: Group) -> bool:
    return DTYPES[group.dtype].kind in ("int", "packed")


def _say(text: str) -> Next:
    return lambda found, groups: text


def _norm_next(found: Sequence[str], groups: Groups) -> str:
    """torch's own spectral norm of the first of the weights, whatever it is."""
    before, _, leaf = found[0].rpartition(".")
    weight = f"{before}.weight" if leaf == "sv0" else found[0].removesuffix("_u")
    return call("add", PATH, tensor=weight, chain="spectral_norm", init="raw")


def _mask_next(found: Sequence[str], groups: Groups) -> str:
    """The first of the masks on its weight."""
    return call("add", PATH, tensor=found[0].removesuffix("_mask"), chain="mask", mask=f"{PATH}:{found[0]}")


def _peft_next(found: Sequence[str], groups: Groups) -> str:
    """One state dict with the weights in it, or the factors alone."""
    return IN_BASE if any(".base_layer." in name for name in groups) else ONTO_BASE


_DEQUANTIZE = _say("load it with the library that quantized it, and save the weights that it computes with")
# The first that has a mark in the file: (mark, what it is, what to do).
_KINDS: tuple[tuple[Mark, str, Next], ...] = (
    (_loralib, "LoRA factors as loralib names them", _say("model.eval() in loralib merges them into the weights")),
    (lambda name, groups: bool(_PEFT.fullmatch(name)), "LoRA factors as PEFT names them", _peft_next),
    (
        lambda name, groups: bool(_KOHYA.fullmatch(name)),
        "a LoRA as kohya and LyCORIS name its factors",
        _say(ONTO_BASE),
    ),
    (
        lambda name, groups: bool(_PROCESSORS.fullmatch(name)),
        "a LoRA of attention processors as older diffusers name its factors",
        _say("load_lora_weights and fuse_lora of diffusers merge it"),
    ),
    (_biggan, "spectral norms whose division is in BigGAN's own code", _norm_next),
    (
        _vector_alone,
        "vectors of spectral norms, divided by in the model's own code",
        _norm_next,
    ),
    (_mask, "masks beside weights, multiplied in the model's own code", _mask_next),
    *(
        (way.marks, f"weights quantized by {way.name}, which nothing here decodes", _say(way.hint))
        for way in FOREIGN.values()
    ),
    (lambda name, groups: name.endswith(".qweight"), "weights quantized by GPTQ, AWQ or the like", _DEQUANTIZE),
    (_bitsandbytes, "weights quantized by bitsandbytes", _DEQUANTIZE),
    (_scaled, "quantized weights with their scales", _DEQUANTIZE),
)
