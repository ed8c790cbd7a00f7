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
    return words.reshape(-1).view(torch.uint8).reshape(*words.shape[:-1], 4 * words.size(-1))


def unpacked(words: Tensor, bits: int, count: int, layout: str = "stream") -> Tensor:
    """int32 (..., words) -> the first `count` codes (..., count), unsigned, in an integer dtype that holds them."""
    if 8 % bits == 0:
        parts, each = octets_of(words), 8 // bits
    elif layout == "words":
        parts, each = words, 32 // bits
    else:
        # Eight codes are `bits` bytes, which one integer of 64 bits holds.
        octets = torch.nn.functional.pad(octets_of(words), (0, -4 * words.size(-1) % bits))
        octets = octets.unflatten(-1, (-1, bits)).long()
        parts, each = (octets << _shifts(octets, bits, 8)).sum(-1), 8
    codes = (parts.unsqueeze(-1) >> _shifts(parts, each, bits)) & ((1 << bits) - 1)
    return codes.flatten(-2)[..., :count]


def packed(codes: Tensor, bits: int, layout: str = "stream") -> Tensor:
    """Unsigned codes (..., count) -> int32 (..., words); what no code fills is zero."""
    count, each = words_of(codes.size(-1), bits, layout), 32 // bits if layout == "words" else 8
    codes = torch.nn.functional.pad(codes.long(), (0, -codes.size(-1) % (each if layout == "words" else 32)))
    parts = codes.unflatten(-1, (-1, each))
    parts = (parts << _shifts(parts, each, bits)).sum(-1)
    # The bytes of each part, which are the words.
    size = 4 if layout == "words" else bits
    octets = ((parts.unsqueeze(-1) >> _shifts(parts, size, 8)) & 255).flatten(-2).to(torch.uint8)
    return octets.view(torch.int32)[..., :count].contiguous()
