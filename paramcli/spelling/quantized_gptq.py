"""GPTQ and AWQ: X.qweight, X.qzeros, X.scales and perhaps X.g_idx, which hold the transpose of X.weight.

    GPTQ    qweight (in bits / 32, out)    qzeros (groups, out bits / 32)    scales (groups, out)    g_idx (in)
    AWQ     qweight (in, out / 8)          qzeros (groups, out / 8)          scales (groups, out)

Shapes tell which of the two, and of how many bits; the configuration whether GPTQ's zero points are stored less one.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint.source import TensorInfo
from ..dtypes import EDITABLE, kind_of
from ..errors import TENSOR
from ..text import listing, printable, shape_text
from ..wording import LEAVE_OUT, given
from .quantization_config import Quantization
from .quantized_form import Parts, Reading
from .readings import built_in

_ROLES = {"qweight": "original", "scales": "0.scale", "qzeros": "0.zeros", "g_idx": "0.g_idx"}
_WIDTHS = (2, 3, 4, 8)
# The largest group that a chain has.
_MOST = 1 << 20
# checkpoint_format -> zeros.
_ZEROS = {"gptq": "v1", "gptq_v2": "v2"}
_OTHER_FILE = "the configuration is of another file, or the file is damaged"


def gptq_or_awq(parts: Parts) -> Reading | None:
    """Of a tensor `qweight` of integers; None of any other."""
    if kind_of(parts.codes.dtype) != "int":
        return None
    there = {leaf: parts.beside[leaf] for leaf in _ROLES if leaf in parts.beside}
    missing = [f"{parts.name.removesuffix('qweight')}{leaf}" for leaf in ("scales", "qzeros") if leaf not in there]
    if missing:
        why = f"{TENSOR} has a qweight, as GPTQ and AWQ have, and no {listing(missing, 2)}"
        return _unknown("gptq", there, why, "the file is incomplete, or packed another way")
    shapes = {leaf: info.shape for leaf, info in there.items()}
    typed = all(there[leaf].dtype == "I32" for leaf in ("qweight", "qzeros")) and there["scales"].dtype in EDITABLE
    if typed and all(len(shapes[leaf]) == 2 for leaf in ("qweight", "qzeros", "scales")):
        wide, out = shapes["qweight"][1], shapes["scales"][1]
        if wide == out:
            return _gptq(there, parts.config) or _unfit("gptq", there)
        if 8 * wide == out:
            return _awq(there, parts.config) or _unfit("awq", there)
    return _unfit("gptq", there)


def _unknown(
    form: str, there: Mapping[str, TensorInfo], why: str, hint: str, shape: tuple[int, ...] | None = None
) -> Reading:
    codes = there["qweight"]
    keys = {_ROLES[leaf]: info.name for leaf, info in there.items()}
    name = codes.name.removesuffix("qweight") + "weight"
    return Reading(form, keys, codes.shape if shape is None else shape, None, why, hint, tensor=name)


def _unfit(form: str, there: Mapping[str, TensorInfo]) -> Reading:
    what = ", ".join(f"{leaf} {shape_text(info.shape)} {info.dtype}" for leaf, info in there.items())
    return _unknown(
        form,
        there,
        f"{TENSOR} has the keys of GPTQ and AWQ, and shapes and dtypes that neither has: {printable(what)}",
        f"the file is damaged, or packed another way, which is not read (Marlin, gemv, exllama): {LEAVE_OUT}",
    )


def _known(form: str, there: Mapping[str, TensorInfo], shape: tuple[int, int], chain: str) -> Reading:
    found = _unknown(form, there, "", "", shape)
    return Reading(form, found.keys, shape, built_in(chain), tensor=found.tensor)


def _gptq(there: Mapping[str, TensorInfo], config: Quantization) -> Reading | None:
    (rows, out), (groups, wide) = there["qweight"].shape, there["qzeros"].shape
    bits, rest = divmod(32 * wide, out) if out else (0, 1)
    if rest or not 1 < bits <= 8 or 32 * rows % bits or there["scales"].shape != (groups, out):
        return None
    inputs, order = 32 * rows // bits, there.get("g_idx")
    if order is not None and (order.shape != (inputs,) or order.dtype not in ("I32", "I64")):
        return None
    shape = (out, inputs)
    if bits not in _WIDTHS:
        why = f"{TENSOR} is of {bits} bits, which GPTQ packs in planes (gptq_p) that are not read"
        return _unknown("gptq", there, why, LEAVE_OUT, shape)
    if _is_embedding(there["qweight"].name):
        why = f"{TENSOR} is an embedding by its name, and how GPTQModel packs those, untransposed, is not read"
        return _unknown("gptq", there, why, LEAVE_OUT, shape)
    # What `dynamic` says of single modules is in patterns; the shapes are the modules' own.
    alike = "dynamic" not in config.values
    size = config.number("group_size", "q_group_size") if alike else None
    group = _group(inputs, groups, size)
    if group is None and size is None:
        return None
    if group is None or (alike and config.number("bits", "w_bit") not in (None, bits)):
        return _unknown("gptq", there, _contradicted(bits, groups, shape), _OTHER_FILE, shape)
    chain = f"gptq:bits={bits}:zeros={{}}" + ("" if group == inputs else f":group={group}")
    chain += "" if order is not None else ":g_idx=false"
    ragged = size is None and order is None and group * groups != inputs
    if undecided := _undecided(bits, config, ragged):
        either = [f"{given('chain', chain.format(zeros))} is for {name}" for name, zeros in _ZEROS.items()]
        return _unknown("gptq", there, undecided, " and ".join(either), shape)
    [name] = _formats(config) or {"gptq"}
    if name not in _ZEROS:
        why = f"{TENSOR} is in GPTQ's format '{printable(name)}' by its configuration, which is not read"
        return _unknown("gptq", there, why, f"gptq and gptq_v2 are read; {LEAVE_OUT}", shape)
    zeros = "v1_words" if name == "gptq" and bits != 3 and _by_words(config) else _ZEROS[name]
    return _known("gptq", there, shape, chain.format(zeros))


def _by_words(config: Quantization) -> bool:
    """Did GPTQModel write it? It takes one off each field of a word at once, and a zero point of 0 borrows of the next;
    of 3 bits it takes one off each for itself, as others do of all.
    """
    meta = config.values.get("meta")
    writers = meta.get("quantizer") if isinstance(meta, dict) else None
    return any(
        isinstance(writer, str) and writer.lower().startswith("gptqmodel")
        for writer in (writers if isinstance(writers, list) else [writers])
    )


def _is_embedding(name: str) -> bool:
    module = name.split(".")[-2:][0].lower()
    return "emb" in module or module in ("wte", "wpe")


def _formats(config: Quantization) -> set[str]:
    return config.said("checkpoint_format", "format")


def _undecided(bits: int, config: Quantization, ragged: bool) -> str | None:
    """Why the configuration does not tell how zero points are stored, or of how many inputs the groups are."""
    methods, formats = config.said("quant_method", "method"), _formats(config)
    told = f"{TENSOR} is packed in {bits} bits as GPTQ packs, and"
    if not methods and config.number("bits") is None:
        return f"{told} no configuration says in which checkpoint_format, which is how its zero points are stored"
    if methods - {"gptq"}:
        return f"{told} the configuration is of {printable(listing(sorted(methods), 3))}"
    if ragged:
        return f"{told} nothing says of how many inputs its groups are"
    if len(formats) > 1:
        return f"{told} its configurations contradict each other: {printable(listing(sorted(formats), 3))}"
    return None


def _contradicted(bits: int, groups: int, shape: tuple[int, ...]) -> str:
    return (
        f"{TENSOR} is {shape_text(shape)} in {bits} bits and {groups} group{'s' * (groups != 1)} by its shapes, which "
        "the configuration contradicts"
    )


def _group(inputs: int, groups: int, size: int | None) -> int | None:
    """The inputs of a group: as the configuration says, or else as the number of groups; None where that gives another
    number of groups.
    """
    if size is None:
        size = -(-inputs // groups) if groups else 0
    size = inputs if size == -1 or size > inputs else size
    return size if size > 0 and (size <= _MOST or size == inputs) and -(-inputs // size) == groups else None


def _awq(there: Mapping[str, TensorInfo], config: Quantization) -> Reading | None:
    (inputs, wide), (groups, _), out = there["qweight"].shape, there["qzeros"].shape, there["scales"].shape[1]
    if there["qzeros"].shape != (groups, wide) or there["scales"].shape != (groups, out) or "g_idx" in there:
        return None
    shape = (out, inputs)
    size, bits = config.number("group_size", "q_group_size"), config.number("bits", "w_bit")
    group = _group(inputs, groups, size)
    if size is None and (group is None or inputs % group):
        return None
    if group is None or inputs % group or bits not in (None, 4) or config.values.get("zero_point") is False:
        return _unknown("awq", there, _contradicted(4, groups, shape), _OTHER_FILE, shape)
    chain = "awq" + ("" if group == inputs else f":group={group}")
    if methods := config.said("quant_method", "method") - {"awq"}:
        why = f"{TENSOR} is packed as AWQ packs, and the configuration is of {printable(listing(sorted(methods), 3))}"
        return _unknown("awq", there, why, f"{given('chain', chain)}, if it is AWQ (gemm)", shape)
    if other := config.said("version", "format", "checkpoint_format") - {"gemm"}:
        why = f"{TENSOR} is in AWQ's layout '{printable(sorted(other)[0])}' by its configuration, which is not read"
        return _unknown("awq", there, why, f"gemm is read; {LEAVE_OUT}", shape)
    return _known("awq", there, shape, chain)
