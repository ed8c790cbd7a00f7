"""Codes of a few bits that lie packed in words of 32 bits, along the last dimension.

    stream  one stream of bits, the lowest first: code i is its bits from i bits on, and may lie in two words
    words   as many whole codes as a word has room for, the first lowest; what is left of a word is zero

For 1, 2, 4 and 8 bits both are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import words_of


def octets_of(words: Tensor) -> Tensor:
    """The bytes of words, along the last dimension. (A tensor of one column is contiguous whatever its strides.)"""
    return words.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _eights(octets: Tensor, bits: int) -> Tensor:
    """The bytes of eight codes each, `bits` of them, as one integer of 64 bits; zeros fill the last."""
    return _joined(torch.nn.functional.pad(octets, (0, -octets.size(-1) % bits)), bits, 8)


def unpacked_octets(octets: Tensor, bits: int) -> Tensor:
    """The stream of bits in bytes (..., n) -> all codes that it has room for, and zeros to fill eight."""
    return _fields(octets, 8 // bits, bits) if 8 % bits == 0 else _fields(_eights(octets, bits), 8, bits)


def looked_up(octets: Tensor, bits: int, table: Tensor) -> Tensor:
    """The table's value of each code of the stream of bits in bytes (..., n), as of `unpacked_octets`: one look-up for
    several codes, of a table of all that these may be.
    """
    if 8 % bits == 0:
        each, found = 8 // bits, octets
    else:
        each = 4 if bits == 3 else 2
        found = _fields(_eights(octets, bits), 8 // each, each * bits, torch.int32)
    numbers = torch.arange(1 << each * bits, device=table.device)
    several = table[_fields(numbers, each, bits).view(-1, each)]
    return several.index_select(0, found.flatten().int()).view(*found.shape[:-1], each * found.size(-1))


def packed_octets(codes: Tensor, bits: int) -> Tensor:
    """Codes (..., 8 n) -> the bytes (..., bits n) of their stream of bits."""
    return _fields(_joined(codes, 8, bits), bits, 8, torch.uint8)


def _joined(codes: Tensor, each: int, bits: int) -> Tensor:
    """So many codes after each other -> one integer of 64 bits, the first lowest."""
    codes = codes.unflatten(-1, (-1, each))
    parts = codes[..., 0].long()
    for k in range(1, each):
        parts = parts | codes[..., k].long() << bits * k
    return parts


def _fields(parts: Tensor, each: int, bits: int, dtype: torch.dtype | None = None) -> Tensor:
    """The lowest `each` fields of so many bits of every integer, in a dtype that holds them: one field of all at a
    time, so that no more than the result is ever there of what is wider.
    """
    found = parts.new_empty((*parts.shape, each), dtype=dtype)
    for k in range(each):
        found[..., k] = (parts >> bits * k) & ((1 << bits) - 1)
    return found.flatten(-2)


def unpacked(words: Tensor, bits: int, count: int, layout: str = "stream") -> Tensor:
    """int32 (..., words) -> the first `count` codes (..., count), unsigned, in an integer dtype that holds them."""
    if layout == "words" and 8 % bits:
        return _fields(words, 32 // bits, bits)[..., :count]
    return unpacked_octets(octets_of(words), bits)[..., :count]


def values_in(words: Tensor, bits: int, count: int, layout: str, table: Tensor) -> Tensor:
    """`unpacked`, with the table's value of each code in its place."""
    if layout == "words" and 8 % bits:
        numbers = unpacked(words, bits, count, layout)
        return table.index_select(0, numbers.flatten().int()).view(numbers.shape)
    return looked_up(octets_of(words), bits, table)[..., :count]


def packed(codes: Tensor, bits: int, layout: str = "stream") -> Tensor:
    """Unsigned codes (..., count) -> int32 (..., words); what no code fills is zero."""
    count, each = words_of(codes.size(-1), bits, layout), 32 // bits if layout == "words" else 32
    codes = torch.nn.functional.pad(codes, (0, -codes.size(-1) % each))
    run, size = (each, 4) if layout == "words" else (8, bits)  # so many codes fill so many bytes
    octets = _fields(_joined(codes, run, bits), size, 8, torch.uint8)
    return octets.view(torch.int32)[..., :count].contiguous()
