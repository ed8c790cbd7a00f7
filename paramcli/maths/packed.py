"""Codes of a few bits that lie packed in words of 32 bits, along the last dimension.

    stream  one stream of bits, the lowest first: code i is its bits from i bits on, and may lie in two words
    words   as many whole codes as a word has room for, the first lowest; what is left of a word is zero

For 1, 2, 4 and 8 bits both are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..dtypes import words_of


def _shifts(like: Tensor, count: int, each: int) -> Tensor:
    return torch.arange(0, count * each, each, dtype=like.dtype, device=like.device)


def octets_of(words: Tensor) -> Tensor:
    """The bytes of words, along the last dimension. (A tensor of one column is contiguous whatever its strides.)"""
    return words.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def unpacked_octets(octets: Tensor, bits: int) -> Tensor:
    """The stream of bits in bytes (..., n) -> all codes that it has room for, and zeros to fill eight."""
    parts, each = octets, 8 // bits
    if 8 % bits:
        # Eight codes are `bits` bytes, which one integer of 64 bits holds.
        octets = torch.nn.functional.pad(octets, (0, -octets.size(-1) % bits)).unflatten(-1, (-1, bits)).long()
        parts, each = (octets << _shifts(octets, bits, 8)).sum(-1), 8
    return _fields(parts, each, bits)


def packed_octets(codes: Tensor, bits: int) -> Tensor:
    """Codes (..., 8 n) -> the bytes (..., bits n) of their stream of bits."""
    codes = codes.long().unflatten(-1, (-1, 8))
    parts = (codes << _shifts(codes, 8, bits)).sum(-1)
    return _fields(parts, bits, 8).to(torch.uint8)


def _fields(parts: Tensor, each: int, bits: int) -> Tensor:
    return ((parts.unsqueeze(-1) >> _shifts(parts, each, bits)) & ((1 << bits) - 1)).flatten(-2)


def unpacked(words: Tensor, bits: int, count: int, layout: str = "stream") -> Tensor:
    """int32 (..., words) -> the first `count` codes (..., count), unsigned, in an integer dtype that holds them."""
    if layout == "words" and 8 % bits:
        return _fields(words, 32 // bits, bits)[..., :count]
    return unpacked_octets(octets_of(words), bits)[..., :count]


def packed(codes: Tensor, bits: int, layout: str = "stream") -> Tensor:
    """Unsigned codes (..., count) -> int32 (..., words); what no code fills is zero."""
    count, each = words_of(codes.size(-1), bits, layout), 32 // bits if layout == "words" else 32
    codes = torch.nn.functional.pad(codes.long(), (0, -codes.size(-1) % each))
    if layout == "words":
        parts = codes.unflatten(-1, (-1, each))
        octets = _fields((parts << _shifts(parts, each, bits)).sum(-1), 4, 8).to(torch.uint8)
    else:
        octets = packed_octets(codes, bits)
    return octets.view(torch.int32)[..., :count].contiguous()
