"""Quantized weights by names, dtypes and shapes together, and by what the model's configuration says where they leave
several readings.

    form           keys                                                    roles
    fp8_block      X.weight (fp8), X.weight_scale_inv; X, X_scale_inv      original, 0.scale
    fp8_scaled     X.weight (fp8), X.weight_scale or X.scale_weight        original, 0.scale
                   X (fp8), X_scale, X.weight_scale or the like            the same, in a file whose weights have scales
    int_scaled     X.weight (int8), X.weight_scale, ...                    original, 0.scale, 0.zero_point, 0.g_idx
    nvfp4          X.weight_packed (uint8), X.weight_global_scale, ...     original, 0.scale, 0.global_scale
                   X.weight (uint8), X.weight_scale_2, ...                 the same
    mxfp4, mxfp6   X.weight_packed (uint8), X.weight_scale (exponents)     original, 0.scale
    int_packed     X.weight_packed (int32), X.weight_scale, ...            the same; X.weight_shape goes with it
    mxfp4          X_blocks, X_scales; X.weight (int8), X.scale            `quantized_experts.py`
    bnb_4bit       X.weight, X.weight.absmax ...                           `quantized_bitsandbytes.py`
    bnb_int8       X.weight (int8), X.SCB                                  the same
    gptq, awq      X.qweight, X.qzeros, X.scales, X.g_idx (I32)            original, 0.zeros, 0.scale, 0.g_idx

What lies beside them and scales what is computed with them (input_scale, activation_scale) goes with them. A weight of
8-bit floats or integers without a scale, in a file whose others have one, is no weight by itself.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ..checkpoint.source import Source, TensorInfo
from ..dtypes import CODE_OF_TORCH, EDITABLE
from ..errors import PATH, TENSOR
from ..text import listing, printable, shape_text
from ..wording import LEAVE_OUT, call, given
from . import quantized_bitsandbytes
from .companions import companions, names_scale
from .foreign import Foreign, is_foreign
from .forms import ASIDE, Group
from .quantization_config import Quantization, read_quantization
from .quantized_comfyui import as_comfyui_says, layers_of
from .quantized_experts import packed_bytes, transposed_blocks
from .quantized_form import FP8, SCALES, Form, Parts, Reading
from .quantized_gptq import gptq_or_awq
from .quantized_integers import int_packed, int_scaled
from .quantized_minifloats import modelopt_nvfp4, packed_floats
from .readings import built_in

# Scales of what a layer is given and gives, which no weight has.
INPUTS = (
    "input_scale",
    "scale_input",
    "activation_scale",
    "input_global_scale",
    "input_scale_inv",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
)
# Names of one scale, or of one for each output.
WEIGHT_SCALES = ("weight_scale", "scale_weight", "_scale_inv")
PARAMETER_SCALES = ("_scale", "_weight_scale", "_scale_weight", ".weight_scale", ".scale_weight", "_scale_inv")
# Scales that are powers of two: bytes too.
EXPONENTS = ("U8", "F8_E8M0")
# What a weight's value may need beside codes and scales: what is there and is not read leaves no weight.
COMPANION = re.compile(r"weight_(zero_point|g_idx|global_scale|scale_2)|pre_quant_scale|svdquant_lora_.*", re.S)


OF_ANOTHER = "the configuration is of another file, or the file is incomplete"
INCOMPLETE = "the file is incomplete, or half converted"
# Of codes without a scale, until it is known what others the file has.
ALONE = "alone"
# A pattern that is longer is not typed.
LONGEST = 160


def _fp8_block(parts: Parts) -> Reading | None:
    """`weight_scale_inv`, which is multiplied in spite of its name; or `weight_scale`, or `scale`, of a grid."""
    inverse, shape = parts.at("_scale_inv"), parts.codes.shape
    scale = inverse or parts.at("weight_scale") or parts.at("scale")
    if scale is None or parts.codes.dtype not in FP8 or len(shape) < 2:
        return None
    if scale.dtype not in (*SCALES, *EXPONENTS) or len(scale.shape) != len(shape):
        return None
    if inverse is None and scale.dtype in EDITABLE and 1 in scale.shape[-1:] and scale.shape[-2] == shape[-2]:
        return None
    keys = {"original": parts.codes.name, "0.scale": scale.name}
    grids = (shape[-2:], scale.shape[-2:])
    blocks = _blocks(parts)
    same = scale.shape[:-2] == shape[:-2]
    fitting = [block for block in blocks if same and _fits(block, *grids)]
    if len(fitting) == 1:
        rows, columns = fitting[0]
        return Reading("fp8_block", keys, shape, built_in(f"fp8_block:rows={rows}:columns={columns}"))
    if fitting or not blocks:
        said = "its configuration says several" if fitting else "no configuration says of how large blocks"
        if parts.config.unreadable:
            said += " (its config.json is no JSON object)"
        unknown = (
            f"{TENSOR} is {shape_text(shape)} in 8-bit floats with scales of {shape_text(scale.shape)}, and {said}"
        )
        likely = [] if fitting or not same else _likely(*grids, scale.dtype in EXPONENTS)
        tried = [given("chain", f"fp8_block:rows={rows}:columns={columns}") for rows, columns in fitting or likely]
        hint = " or ".join(tried) + (", if that is its block" if likely else "")
        return Reading("fp8_block", keys, shape, None, unknown, hint or INCOMPLETE)
    said = listing([f"{rows}x{columns}" for rows, columns in blocks], 3)
    unknown = (
        f"{TENSOR} is {shape_text(shape)} with scales of {shape_text(scale.shape)}, which blocks of {said} do not have"
    )
    return Reading("fp8_block", keys, shape, None, unknown, OF_ANOTHER)


def _fits(block: Sequence[int], sizes: Sequence[int], counts: Sequence[int]) -> bool:
    """Has a matrix of these sizes so many blocks along each side?"""
    return all(-(-size // side) == count for size, side, count in zip(sizes, block, counts, strict=True))


def _likely(sizes: Sequence[int], counts: Sequence[int], exponents: bool) -> list[tuple[int, int]]:
    """The first block that so many scales fit: 1 x 32 of exponents, 128 x 128, a square of a power of two, such sides,
    any; none where no block fits.
    """
    if not all(sizes) or not all(counts):
        return []
    least = [-(-size // count) for size, count in zip(sizes, counts, strict=True)]
    rows, columns = ((1 << (side - 1).bit_length(), side) for side in least)
    square = max(rows[0], columns[0])
    tried = [(1, 32)] if exponents else []
    tried += [(128, 128), (square, square), *itertools.product(rows, columns)]
    return [block for block in tried if _fits(block, sizes, counts)][:1]


def _blocks(parts: Parts) -> list[tuple[int, int]]:
    """Rows and columns of the blocks that the configuration may mean; a group is a block of one row."""
    if parts.config.block is not None:
        return [parts.config.block]
    settings = [s for s in parts.config.groups.of(parts.module) if s.type in ("float", None)]
    groups = {s.block or ((1, s.size) if s.strategy == "group" and s.size else None) for s in settings}
    return sorted(block for block in groups if block is not None)


def _fp8_scaled(parts: Parts) -> Reading | None:
    """One scale, or one for each output, of a weight or of any other parameter."""
    found = list(filter(None, map(parts.at, WEIGHT_SCALES if parts.is_weight else PARAMETER_SCALES)))
    if not found or parts.codes.dtype not in FP8 or any(scale.dtype not in EDITABLE for scale in found):
        return None
    scale, shape = found[0], parts.codes.shape
    keys = {"original": parts.codes.name, "0.scale": scale.name}
    each = _has_a_scale(scale, shape, parts.is_weight)
    if each is not None and (parts.is_weight or len(found) == 1) and not scale.name.endswith("_inv"):
        return Reading("fp8_scaled", keys, shape, built_in(f"fp8_scaled:per={each}"))
    beside = listing([f"{printable(one.name)} ({shape_text(one.shape)})" for one in found], 3)
    unknown = f"{TENSOR} is {shape_text(shape)} in 8-bit floats, and {beside} beside it may be read several ways"
    hint = f"{given('chain', f'fp8_scaled:per={each}')}, if that multiplies it" if each and len(found) == 1 else None
    return Reading("fp8_scaled", keys, shape, None, unknown, hint or ALONE)


def _has_a_scale(scale: TensorInfo, shape: Sequence[int], is_weight: bool) -> str | None:
    """What of codes of this shape has a scale of its own: the tensor, each output, or neither."""
    if scale.numel == 1:
        return "tensor"
    if not shape or scale.numel != shape[0]:
        return None
    if scale.shape == (shape[0], *[1] * (len(shape) - 1)):
        return "output"
    # Of a parameter that is no weight, as many numbers as it has columns may be theirs.
    one_way = is_weight or shape[-1] != shape[0]
    return "output" if scale.shape == (shape[0],) and one_way else None


# The first that reads them.
FORMS = (
    Form(("_scale_inv", "weight_scale", "scale"), _fp8_block),
    Form(("_scale_inv",), _fp8_block, leaf=""),
    *quantized_bitsandbytes.FORMS,
    Form(WEIGHT_SCALES, _fp8_scaled),
    Form(("weight_scale",), int_scaled),
    Form(("scale",), packed_bytes),
    Form(("",), transposed_blocks, "_blocks"),
    # By their own name: without a scale they are none.
    Form(("weight_packed",), int_packed, "weight_packed"),
    Form(("weight_packed",), packed_floats, "weight_packed"),
    Form(("weight_scale", "weight_scale_2"), modelopt_nvfp4),
    Form(("qweight",), gptq_or_awq, "qweight"),  # alone it is no weight either
)

# What a parameter that is no weight is decoded with, where others of the file are.
PARAMETERS = (Form(PARAMETER_SCALES, _fp8_scaled, ""),)

# Endings that nothing else has; and of what else belongs to a weight in codes.
DECODE_WITH = (".absmax", ".nested_absmax", ".SCB", "_scale_inv")
OF_CODES = (".weight_scale", ".scale_weight", ".weight_scale_2", ".weight_global_scale", ".weight_zero_point")
# The quant_methods whose names for weights and scales are read; what another one means by them nothing here knows.
METHODS = {
    "fp8",
    "fbgemm_fp8",
    "compressed-tensors",
    "compressed_tensors",
    "modelopt",
    "modelopt_fp4",
    "gptq",
    "awq",
    "bitsandbytes",
    "mxfp4",
    "mxfp8",
}
# Names of weights, those of experts too.
WEIGHT = re.compile(r"(.*[._])?(weight|proj)", re.S)


def quantized(groups: Mapping[str, Group], source: Source) -> dict[str, Group]:
    """The groups, those of codes and their scales as the weights that they stand for, in the file's order."""
    left = any(name.endswith((*DECODE_WITH, *OF_CODES)) for name in groups)
    if not left and not any(group.dtype not in EDITABLE for group in groups.values()):
        return dict(groups)
    config = read_quantization(source.folder)
    plain = {name: group.infos["value"] for name, group in groups.items() if group.is_plain}
    if (way := is_foreign(config.values)) is not None:
        return _foreign(groups, plain, way)
    beside: dict[str, dict[str, TensorInfo]] = {}
    for name, info in plain.items():
        module, _, leaf = name.rpartition(".")
        beside.setdefault(module, {})[leaf] = info
    layers = layers_of(source.metadata)
    found: dict[str, Group] = {}
    taken: set[str] = set()
    for forms in (FORMS, PARAMETERS):
        for there in beside.values():
            for leaf, codes in there.items():
                # What a parameter's scale is called may be anything's name: it is one where weights have scales.
                if forms is PARAMETERS and (not taken or codes.name in taken):
                    continue
                parts = Parts(codes.name, codes, there, plain, config, source)
                reading = _read(forms, parts, leaf)
                reading = as_comfyui_says(parts, reading, layers) if parts.is_weight else reading
                if reading is not None:
                    before = "" if "weight" in leaf else f"{leaf}_"  # experts have no `.weight`
                    aside = {f"{ASIDE}{one}": there[before + one].name for one in INPUTS if before + one in there}
                    group = _group(_whole(reading, parts), codes.name, aside, plain, config)
                    found[codes.name] = group
                    taken.update(group.keys.values())
    if not found and not config.values:
        return dict(groups)
    made: dict[str, Group] = {}
    for name, group in groups.items():
        if name in found:
            alone = _alone(found[name], groups, taken)
            made[alone.tensor] = alone
        elif name not in taken:
            made[name] = _lone(group, plain) if group.is_plain else group
    return _with_a_way_out(made)


def _foreign(groups: Mapping[str, Group], plain: Mapping[str, TensorInfo], way: Foreign) -> dict[str, Group]:
    """The groups; unknown those of codes, and of what they are decoded with: by the configuration no reader's."""
    meant = companions(plain)
    what = f"{TENSOR} is by its configuration of weights quantized by {way.name}, which nothing here decodes"
    return {
        name: _unread(group, way.name, what, way.hint) if name in meant else group for name, group in groups.items()
    }


def _unread(group: Group, form: str, what: str, hint: str) -> Group:
    """A plain tensor that is none."""
    keys, infos = {"original": group.tensor}, {"original": group.infos["value"]}
    return replace(group, form=form, keys=keys, infos=infos, unknown=what, hint=hint)


def _read(forms: Sequence[Form], parts: Parts, leaf: str) -> Reading | None:
    for form in forms:
        if form.fits(leaf) and any(parts.at(ending) is not None for ending in form.endings):
            reading = form.read(parts)
            if reading is not None:
                return reading
    return None


def _whole(reading: Reading, parts: Parts) -> Reading:
    """The reading; unknown where there is more to the weight than its codes and what it reads beside them, and where
    its configuration is of a way to quantize that nobody here knows.
    """
    method = parts.config.method
    if method is not None and method.lower() not in METHODS and not reading.unknown and reading.chain is not None:
        unknown = f"{TENSOR} is by its configuration quantized by {printable(method, 40)}, which nothing here knows"
        hint = f"{given('chain', str(reading.chain))}, if it means by these keys what others do"
        return replace(reading, chain=None, unknown=unknown, hint=hint)
    if parts.config.transforms and not reading.unknown:
        unknown = (
            f"{TENSOR} is of a model whose layers turn their inputs or outputs as well (transform_config), which plain "
            "weights do not"
        )
        return replace(reading, chain=None, unknown=unknown, hint=f"{LEAVE_OUT}, or give {given('chain')}")
    read = set(reading.keys.values())
    more = [info.name for leaf, info in parts.beside.items() if COMPANION.fullmatch(leaf) and info.name not in read]
    if not more or reading.unknown:
        return reading
    unknown = f"{TENSOR} has {listing(more, 3)} beside it, which {reading.form} has no use for"
    return replace(reading, chain=None, unknown=unknown, hint=LEAVE_OUT)


def _group(
    reading: Reading, name: str, aside: Mapping[str, str], plain: Mapping[str, TensorInfo], config: Quantization
) -> Group:
    keys = {**reading.keys, **aside}
    infos = {role: plain[key] for role, key in keys.items()}
    for role, (dtype, shape) in reading.seen.items():
        infos[role] = replace(infos[role], dtype=dtype, shape=shape)
    return Group(
        reading.tensor or name,
        reading.form,
        keys,
        infos,
        reading.shape,
        config.dtype or reading.dtype or CODE_OF_TORCH["float32"],
        reading.chain,
        unknown=reading.unknown,
        hint=reading.hint,
    )


def _alone(group: Group, groups: Mapping[str, Group], taken: Collection[str]) -> Group:
    """The group; unknown where the file has another tensor of the weight's name, which is not one of its parts."""
    if group.tensor not in groups or group.tensor in taken:
        return group
    return replace(
        group,
        tensor=group.keys["original"],
        chain=None,
        unknown=f"{TENSOR} is the codes of {printable(group.tensor)}, and the file has that too",
        hint=f"{LEAVE_OUT}, or take one of them out with {call('convert', PATH)} {given('drop')}",
    )


def _lone(group: Group, plain: Mapping[str, TensorInfo]) -> Group:
    """A plain tensor beside quantized ones; unknown where it is a weight in codes, which mean nothing by themselves, or
    what codes are decoded with that are not there.
    """
    if (kind := _weight_in_codes(group)) is not None:
        form, codes = kind
        what = f"{TENSOR} is in 8-bit {codes} and has no scale beside it, which quantized weights have"
        return _unread(group, form, what, ALONE)
    weight = plain.get(f"{group.tensor.rpartition('.')[0]}.weight") if group.tensor.endswith(OF_CODES) else None
    if weight is not None and weight.dtype in EDITABLE:
        what = f"{TENSOR} is what a quantized weight is decoded with, and {printable(weight.name)} is in no codes"
        way = f"if the weight is as it should be, {call('convert', PATH)} {given('drop')} takes the scale out"
        return _unread(group, "fp8_scaled", what, way)
    if group.tensor.endswith(DECODE_WITH) or (group.dtype == "U8" and group.tensor.endswith("_scales")):
        what = f"{TENSOR} is what quantized weights are decoded with, and what it belongs to is not there"
        return _unread(group, "fp8_scaled", what, INCOMPLETE)
    return group


def _with_a_way_out(groups: Mapping[str, Group]) -> dict[str, Group]:
    """The groups; those of codes without a scale say how the others are baked."""
    alone = {name: group for name, group in groups.items() if group.hint == ALONE}
    baked = [name for name, group in groups.items() if group.in_codes and not group.unknown]
    unread = [name for name, group in groups.items() if group.unknown]
    ending = f".{baked[0].rpartition('.')[2]}" if baked else ""
    if all(name.endswith(ending) for name in baked) and not any(name.endswith(ending) for name in unread):
        pattern = f"*{ending}"
    else:
        pattern = f"re:(?!({'|'.join(map(re.escape, unread))})$).*"
    way = f"{call('remove', PATH, tensor=pattern)} bakes the others and leaves it as it is"
    if not baked or len(pattern) > LONGEST:
        way = f"{INCOMPLETE}; {LEAVE_OUT}" if baked else INCOMPLETE
    return {**groups, **{name: replace(group, hint=way) for name, group in alone.items()}}


def _weight_in_codes(group: Group) -> tuple[str, str] | None:
    """(the form it would be, the word for its codes) of a weight in codes. Of floats every matrix is one that is not
    named a scale; of integers what is named a weight: masks and tokenizers are bytes too, counters have no rows.
    """
    matrix, named = len(group.shape) > 1, WEIGHT.fullmatch(group.tensor) is not None
    if group.dtype in FP8 and (named or (matrix and not names_scale(group.tensor.rpartition(".")[2]))):
        return "fp8_scaled", "floats"
    return ("int_scaled", "integers") if group.dtype in ("I8", "U8") and matrix and named else None
