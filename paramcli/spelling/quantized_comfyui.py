"""What ComfyUI's files say of their layers beside the tensors, and what of that goes with the codes.

    older   a tensor `scaled_fp8` that is read for its dtype; X.scale_weight, X.scale_input
    newer   X.comfy_quant (JSON in bytes), or the metadata's `_quantization_metadata` with a dict of all layers;
            then X.weight_scale, X.weight_scale_2, X.input_scale

Keys and dtypes alone would be read otherwise: its integers may be rotated (`convrot`), and the scales of `nvfp4` and
`mxfp8` lie in tiles (`maths/tiles.py`), under names that others have for rows; of `nvfp4` the upper half of a byte is
the even column. A matrix whose sides are no multiples of 16 (of 32) was filled up with zeros to some, and its own sides
are in no file; of a bias that is shorter it is seen.

Source: ComfyUI (comfy/ops.py, `_load_quantized_module`; comfy/quant_ops.py, `QUANT_ALGOS`), comfy-kitchen 0.2.40.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from ..checkpoint.source import Source, TensorInfo
from ..errors import TENSOR
from ..text import printable, shape_text
from .forms import ASIDE, Group
from .quantized_form import Parts, Reading
from .readings import built_in

METADATA, CONF, MARKER = "_quantization_metadata", "comfy_quant", "scaled_fp8"
MAX_CONF = 4096
# The format's name -> the form that it is, and the dtype of its codes.
FORMATS = {
    "float8_e4m3fn": ("fp8_scaled", "F8_E4M3"),
    "float8_e5m2": ("fp8_scaled", "F8_E5M2"),
    "int8_tensorwise": ("int_scaled", "I8"),
}


def _nvfp4(parts: Parts) -> Reading | None:
    """Two floats in a byte, a scale for each 16 and one for all."""
    every = parts.beside.get("weight_scale_2")
    if parts.codes.dtype != "U8" or every is None or every.dtype != "F32" or every.numel != 1:
        return None
    spec = "nvfp4:global_scale=multiplies:first=high:scales=tiles"
    return _tiled(parts, "nvfp4", spec, 2, 16, "F8_E4M3", {"0.global_scale": every.name})


def _mxfp8(parts: Parts) -> Reading | None:
    """8-bit floats, and a power of two for each 32."""
    if parts.codes.dtype != "F8_E4M3":
        return None
    return _tiled(parts, "fp8_block", "fp8_block:rows=1:columns=32:scales=tiles", 1, 32, "F8_E8M0", {})


def _tiled(
    parts: Parts, form: str, spec: str, each: int, run: int, dtype: str, more: Mapping[str, str]
) -> Reading | None:
    """A matrix of `each` codes in an entry, `run` columns for a scale, which lie in tiles: as floats or their bytes."""
    from ..maths.tiles import tiles_shape

    scale, stored = parts.beside.get("weight_scale"), parts.codes.shape
    if scale is None or len(stored) != 2 or stored[1] * each % run:
        return None
    shape = (stored[0], stored[1] * each)
    tiles = tiles_shape(shape[0], shape[1] // run)
    if scale.dtype not in (dtype, "U8") or scale.numel != math.prod(tiles):
        return None
    keys = {"original": parts.codes.name, "0.scale": scale.name, **more}
    seen = {"0.scale": (dtype, tiles)}
    bias = parts.beside.get("bias")
    if bias is not None and bias.shape != shape[:1]:
        unknown = (
            f"{TENSOR} is {shape_text(shape)} in codes and its bias {shape_text(bias.shape)}: it was filled up to "
            "whole tiles, and nothing says of how many columns it is"
        )
        return Reading(form, keys, shape, None, unknown, LIBRARY, seen=seen)
    return Reading(form, keys, shape, built_in(spec), seen=seen)


# Formats that nothing but what is said of them tells apart from others.
TILED: Mapping[str, Callable[[Parts], Reading | None]] = {"nvfp4": _nvfp4, "mxfp8": _mxfp8}
# What else may be said of a layer and changes no weight: how it is computed with.
HARMLESS = ("full_precision_matrix_mult", "orig_dtype", "per_channel")
LIBRARY = "load it in ComfyUI, and save the weights that it computes with"
# The name of a pipeline's part, which the metadata may leave out.
PREFIX = "model.diffusion_model."

Layers = Mapping[str, object]


def layers_of(metadata: Mapping[str, str]) -> dict[str, object]:
    """What the metadata say of layers, by name; nothing where they say nothing that can be read."""
    try:
        layers = json.loads(metadata.get(METADATA, "{}")).get("layers")
    except (ValueError, RecursionError, AttributeError):
        return {}
    return layers if isinstance(layers, dict) else {}


def as_comfyui_says(parts: Parts, reading: Reading | None, layers: Layers) -> Reading | None:
    """The reading of a layer's codes; unknown where the file says that they are of another format."""
    module = parts.name.rpartition(".")[0]
    own = parts.beside.get(CONF)
    if own is None and module not in layers and module.removeprefix(PREFIX) not in layers:
        return reading
    conf = _conf(parts.source, own) if own is not None else layers.get(module, layers.get(module.removeprefix(PREFIX)))
    conf = {"format": conf} if isinstance(conf, str) else conf if isinstance(conf, dict) else {}
    aside = {f"{ASIDE}{CONF}": own.name} if own is not None else {}
    name = conf.get("format")
    more = [key for key, value in conf.items() if value and key not in ("format", *HARMLESS)]
    form, dtype = FORMATS.get(name, ("", "")) if isinstance(name, str) else ("", "")
    if isinstance(name, str) and name in TILED:
        reading = TILED[name](parts)
    elif reading is not None and (reading.form, parts.codes.dtype) != (form, dtype):
        reading = None
    if reading is not None and not more:
        return replace(reading, keys={**reading.keys, **aside})
    said = f"{printable(name, 40)}{' with ' + printable(more[0], 40) if more else ''}"
    unknown = f"{TENSOR} is by its file of ComfyUI's {said}, which is not decoded from what is stored of it"
    return Reading("comfyui", {"original": parts.name, **aside}, parts.codes.shape, None, unknown, LIBRARY)


def _conf(source: Source, info: TensorInfo) -> object:
    if info.dtype != "U8" or info.nbytes > MAX_CONF or not info.is_readable:
        return None
    try:
        return json.loads(source.read_bytes(info.name).decode("utf-8"))
    except (ValueError, RecursionError):
        return None


def spent_markers(groups: Mapping[str, Group], decoded: Collection[str]) -> set[str]:
    """The markers of scaled weights, where none of them is left when these are decoded."""
    markers = {name for name, group in groups.items() if group.is_plain and name.rpartition(".")[2] == MARKER}
    if not markers or not decoded:
        return set()
    coded = {name for name, group in groups.items() if group.form == "fp8_scaled"}
    return markers if coded <= set(decoded) else set()


def metadata_without(metadata: Mapping[str, str], decoded: Iterable[str]) -> dict[str, str]:
    """The metadata, what they say of layers that are decoded left out: ComfyUI would look for their scales."""
    layers = layers_of(metadata)
    names = {name.rpartition(".")[0] for name in decoded}
    names |= {name.removeprefix(PREFIX) for name in names}
    kept = {layer: said for layer, said in layers.items() if layer not in names}
    if len(kept) == len(layers):
        return dict(metadata)
    rest = {key: text for key, text in metadata.items() if key != METADATA}
    return {**rest, METADATA: json.dumps({**json.loads(metadata[METADATA]), "layers": kept})} if kept else rest
