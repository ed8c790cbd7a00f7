"""What ComfyUI's files say of their layers beside the tensors, and what of that goes with the codes.

    older   a tensor `scaled_fp8` that is read for its dtype; X.scale_weight, X.scale_input
    newer   X.comfy_quant (JSON in bytes), or the metadata's `_quantization_metadata` with a dict of all layers;
            then X.weight_scale, X.weight_scale_2, X.input_scale

Keys and dtypes alone would be read otherwise: its integers may be rotated (`convrot`), and its floats of 4 bits have
the names and shapes of ModelOpt's, in another order of nibbles, and scales in the order of a kernel's tiles.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

from ..checkpoint.source import Source, TensorInfo
from ..errors import TENSOR
from ..text import printable
from .forms import ASIDE, Group
from .quantized_form import Parts, Reading

METADATA, CONF, MARKER = "_quantization_metadata", "comfy_quant", "scaled_fp8"
MAX_CONF = 4096
# The format's name -> the form that it is, and the dtype of its codes.
FORMATS = {
    "float8_e4m3fn": ("fp8_scaled", "F8_E4M3"),
    "float8_e5m2": ("fp8_scaled", "F8_E5M2"),
    "int8_tensorwise": ("int_scaled", "I8"),
}
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
    if reading is not None and reading.form == form and parts.codes.dtype == dtype and not more:
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
