"""numpy arrays in a pickle, as descriptions: where their bytes are, and what is to be done to read them.

    _reconstruct(ndarray, (0,), b"b"), with the state (version, shape, dtype, by columns?, bytes)
    _frombuffer(bytes, dtype, shape, "C" or "F")

Protocol 2 has no bytes: it spells them as text, a character of Latin-1 for each, and calls _codecs.encode.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...dtypes import DTYPES
from ...errors import InputRefused
from ..disk.input_file import InputFile
from .pickle_data import Global, Opaque, Payload, TensorRef, broken
from .pickle_globals import TORCH_DTYPES

_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_RECONSTRUCT = {Global(module, "_reconstruct") for module in _MODULES}
_FROM_BUFFER = {Global(module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")}
_NDARRAY, _DTYPE = Global("numpy", "ndarray"), Global("numpy", "dtype")
# What an array, and numbers and dtypes beside it, are made of.
OF_NUMPY = _RECONSTRUCT | _FROM_BUFFER | {_DTYPE, _NDARRAY} | {Global(module, "scalar") for module in _MODULES}
# torch_xla keeps a tensor as an array of the CPU; bfloat16, which numpy lacks, as float32.
_OF_ANOTHER_DEVICE = {
    Global("torch._utils", name) for name in ("_rebuild_xla_tensor", "_rebuild_device_tensor_from_numpy")
}
_CODES = {
    "f2": "F16",
    "f4": "F32",
    "f8": "F64",
    "i1": "I8",
    "i2": "I16",
    "i4": "I32",
    "i8": "I64",
    "u1": "U8",
    "u2": "U16",
    "u4": "U32",
    "u8": "U64",
    "b1": "BOOL",
    "c8": "C64",
    "c16": "?complex128",
    "f12": "?longdouble",
    "f16": "?longdouble",
    "c32": "?clongdouble",
}
# Elements of these have two numbers, each in the order of bytes that the array has.
_PAIRS = {"C64"}


@dataclass(frozen=True)
class Array:
    """An array of numbers: dtype and shape as torch has them, strides in elements, and where the bytes are.

    `swapped`: the bytes of each number are turned round; `narrowed`: each float32 stands for a bfloat16.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    data: bytes | Payload
    swapped: bool = False
    narrowed: bool = False

    @property
    def nbytes(self) -> int:
        """Of its values, as they are read."""
        return math.prod(self.shape) * (DTYPES[self.dtype].bits // 8 if self.dtype in DTYPES else 0)

    @property
    def is_in_file(self) -> bool:
        """Do its bytes lie in the file as they are?"""
        return isinstance(self.data, Payload) and not (self.data.is_text or self.swapped or self.narrowed)

    def read(self, file: InputFile) -> bytearray:
        """Its bytes, from a file that holds them otherwise; InputRefused where there are not so many of them."""
        data = self.data.read(file) if isinstance(self.data, Payload) else bytearray(self.data)
        if len(data) != self.nbytes * (2 if self.narrowed else 1):
            raise InputRefused("an array in it has another number of bytes than its shape asks for")
        if self.swapped:
            width = (4 if self.narrowed else DTYPES[self.dtype].bits // 8) // (2 if self.dtype in _PAIRS else 1)
            turned = bytearray(len(data))
            for place in range(width):
                turned[place::width] = data[width - 1 - place :: width]
            data = turned
        if self.narrowed:
            if any(data[0::4].strip(b"\0")) or any(data[1::4].strip(b"\0")):
                raise InputRefused("a bfloat16 tensor in it is kept as float32 numbers that are none of bfloat16")
            upper = bytearray(len(data) // 2)
            upper[0::2], upper[1::2] = data[2::4], data[3::4]
            data = upper
        return data


def array_of(item: object) -> Array | None:
    """The array of numbers that an object is; None for everything else. InputRefused for a broken one."""
    if isinstance(item, Opaque) and item.cls in _OF_ANOTHER_DEVICE:
        return _of_another_device(item)
    parts = _parts(item)
    return None if parts is None else _array(*parts)


def is_array(item: object) -> bool:
    """Is this an array of numbers?"""
    return _parts(item) is not None


def _parts(item: object) -> tuple[object, object, bool, object] | None:
    """(dtype, shape, by columns?, bytes) of an array of numbers; None for everything else."""
    if not isinstance(item, Opaque):
        return None
    dtype: object = None
    if item.cls in _FROM_BUFFER and len(item.arguments) == 4 and item.state is None:
        data, dtype, shape, order = item.arguments
        by_columns = order == "F"
    elif item.cls in _RECONSTRUCT and item.arguments[:1] == (_NDARRAY,):
        state = item.state if isinstance(item.state, tuple) and len(item.state) == 5 else (None,) * 5
        _, shape, dtype, is_fortran, data = state
        by_columns = is_fortran is True
    return (dtype, shape, by_columns, data) if _code(dtype) else None


def _code(dtype: object) -> str:
    """The code of an array's dtype; "" for one of texts, objects or records."""
    if not isinstance(dtype, Opaque) or dtype.cls != _DTYPE or not dtype.arguments:
        return ""
    kind = dtype.arguments[0]
    if isinstance(kind, Global):
        return TORCH_DTYPES.get(kind.name, "") if kind.module == "ml_dtypes" else ""
    return _CODES.get(kind, "") if isinstance(kind, str) else ""


def _array(dtype: object, shape: object, by_columns: bool, data: object) -> Array:
    if isinstance(data, str):  # Python 2 has no other bytes
        try:
            data = data.encode("latin-1")
        except UnicodeEncodeError:
            raise broken("an array whose bytes are none") from None
    if not isinstance(data, (bytes, Payload)):
        raise broken("an array without its bytes")
    sizes = shape if isinstance(shape, tuple) else (shape,)
    if len(sizes) > 64 or not all(type(size) is int and 0 <= size < 1 << 62 for size in sizes):
        raise broken("an array whose shape is no list of whole numbers")
    shape = tuple(size for size in sizes if isinstance(size, int))
    steps, step = [], 1
    for size in shape if by_columns else reversed(shape):
        steps.append(step)
        step *= max(size, 1)
    state = dtype.state if isinstance(dtype, Opaque) and isinstance(dtype.state, tuple) else ()
    swapped = len(state) > 1 and state[1] in (">", b">")
    array = Array(_code(dtype), shape, tuple(steps if by_columns else reversed(steps)), data, swapped)
    if array.dtype in DTYPES:
        there = len(data) if isinstance(data, bytes) else data.size
        # Of text that is not read yet only the most is known.
        if there < array.nbytes or (there != array.nbytes and not (isinstance(data, Payload) and data.is_text)):
            raise broken("an array of another number of bytes than its shape asks for")
    return array


def _of_another_device(item: Opaque) -> Array | None:
    """(array, dtype, device, is a gradient asked for); the array is one of numpy, never such a tensor again."""
    parts = _parts(item.arguments[0]) if item.arguments and item.state is None else None
    array = None if parts is None else _array(*parts)
    wanted = item.arguments[1] if len(item.arguments) > 1 else None
    dtype = TORCH_DTYPES.get(wanted.name) if isinstance(wanted, Global) and wanted.module == "torch" else None
    if array is None or dtype is None:
        return None
    if array.dtype == dtype:
        return array
    if (array.dtype, dtype) == ("F32", "BF16"):
        return Array("BF16", array.shape, array.stride, array.data, array.swapped, narrowed=True)
    return None


def tensor_of_another_device(item: object) -> TensorRef | None:
    """What _rebuild_device_tensor_from_cpu_tensor(tensor, dtype, ...) is made of, where its dtype is that."""
    is_one = isinstance(item, Opaque) and item.cls == Global("torch._utils", "_rebuild_device_tensor_from_cpu_tensor")
    if not is_one or not isinstance(item, Opaque) or len(item.arguments) < 2 or item.state is not None:
        return None
    ref, wanted = item.arguments[:2]
    if not isinstance(ref, TensorRef) or not isinstance(wanted, Global) or wanted.module != "torch":
        return None
    return ref if TORCH_DTYPES.get(wanted.name) == ref.dtype else None
