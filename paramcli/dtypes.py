"""The dtypes of the safetensors format, by their codes; torch is never imported here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .errors import TENSOR, InputRefused
from .wording import LEAVE_OUT

if TYPE_CHECKING:
    import torch

# What --compute-dtype takes, and --dtype of `convert`.
ComputeDtype = Literal["same", "float32", "float64"]
COMPUTE_DTYPES: tuple[ComputeDtype, ...] = ("same", "float32", "float64")
CastDtype = Literal["float64", "float32", "float16", "bfloat16"]
CAST_DTYPES: tuple[CastDtype, ...] = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class DType:
    """One dtype: its safetensors code, its width, and torch's name for it (None: torch has none)."""

    code: str
    bits: int
    torch_name: str | None
    kind: str  # "float", "half", "complex", "int", "bool", or "packed" (8 bits and fewer)


DTYPES = {
    entry.code: entry
    for entry in (
        DType("F64", 64, "float64", "float"),
        DType("F32", 32, "float32", "float"),
        DType("F16", 16, "float16", "half"),
        DType("BF16", 16, "bfloat16", "half"),
        DType("C64", 64, "complex64", "complex"),
        DType("I64", 64, "int64", "int"),
        DType("U64", 64, "uint64", "int"),
        DType("I32", 32, "int32", "int"),
        DType("U32", 32, "uint32", "int"),
        DType("I16", 16, "int16", "int"),
        DType("U16", 16, "uint16", "int"),
        DType("I8", 8, "int8", "int"),
        DType("U8", 8, "uint8", "int"),
        DType("BOOL", 8, "bool", "bool"),
        DType("F8_E4M3", 8, "float8_e4m3fn", "packed"),
        DType("F8_E5M2", 8, "float8_e5m2", "packed"),
        DType("F8_E8M0", 8, "float8_e8m0fnu", "packed"),
        DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz", "packed"),
        DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz", "packed"),
        # Packed two (or four thirds) to a byte; torch has at most a shell dtype for these.
        DType("F6_E2M3", 6, None, "packed"),
        DType("F6_E3M2", 6, None, "packed"),
        DType("F4", 4, None, "packed"),
    )
}
CODE_OF_TORCH = {entry.torch_name: code for code, entry in DTYPES.items() if entry.torch_name}
EDITABLE = {code for code, entry in DTYPES.items() if entry.kind in ("float", "half")}


def bits_of(dtype: str, shape: Sequence[int]) -> int:
    return math.prod(shape) * DTYPES[dtype].bits


def nbytes_of(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a row-major tensor; the caller has checked that the bits fill whole bytes."""
    return bits_of(dtype, shape) // 8


def words_of(codes: int, bits: int, layout: str = "stream") -> int:
    """How many words of 32 bits so many codes of `bits` bits take: in one stream of bits, or with no code in two words
    (layout "words").
    """
    return -(-codes * bits // 32) if layout == "stream" else -(-codes // (32 // bits))


def kind_of(code: str) -> str:
    """The kind of a dtype; "other" for torch's words ("?complex128") for what no container holds."""
    return DTYPES[code].kind if code in DTYPES else "other"


def dtype_name(code: str) -> str:
    """'F32' -> 'float32', as people know it; a dtype torch lacks keeps its code."""
    return (DTYPES[code].torch_name or code) if code in DTYPES else code.removeprefix("?") or "unknown"


def torch_dtype(code: str) -> torch.dtype:
    """The torch dtype of a code; InputRefused where this torch has none. Imports torch."""
    import torch

    found = getattr(torch, dtype_name(code), None)
    if found is None:
        raise InputRefused(
            f"{TENSOR} is {dtype_name(code)}, and torch {torch.__version__} has no such numbers", hint=LEAVE_OUT
        )
    return found


def code_of(dtype: torch.dtype) -> str:
    """A torch dtype's code: torch.float32 -> 'F32'."""
    return CODE_OF_TORCH[str(dtype).removeprefix("torch.")]
