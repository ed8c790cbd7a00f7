"""Decoding in parts: what lies at their seams, and what is not theirs."""

from __future__ import annotations

import pytest
import torch

from paramcli.maths import decoders
from paramcli.maths.decoders import Blocks

SHAPES = {
    "ragged below and aside": ((300, 70), (128, 32)),
    "experts": ((3, 130, 65), (64, 16)),
    "a row is a block": ((40, 40), (1, 16)),
    "one block, not filled": ((5, 7), (128, 128)),
    "blocks that fill it": ((256, 128), (128, 128)),
    "no rows": ((0, 8), (4, 4)),
}


@pytest.mark.parametrize("part", [1, 1000, decoders.PART])
@pytest.mark.parametrize("name", SHAPES)
def test_blocks_in_parts_of_any_size_are_the_product_entry_by_entry(name, part, monkeypatch):
    """code x scale in float32, each entry with a scale of its own, rounded once; and its codes back."""
    monkeypatch.setattr(decoders, "PART", part)
    shape, (rows, columns) = SHAPES[name]
    chance = torch.Generator().manual_seed(part)
    codes = (torch.randn(shape, generator=chance) * 50).to(torch.float8_e4m3fn)
    scale = torch.rand(*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns), generator=chance) + 0.1
    each = scale.repeat_interleave(rows, -2).repeat_interleave(columns, -1)[..., : shape[-2], : shape[-1]]
    product, blocks = codes.float() * each, Blocks(scale, rows, columns)
    assert torch.equal(blocks.decode(codes, torch.float32, torch.bfloat16), product.bfloat16())
    floats = codes.float()
    assert torch.equal(blocks.map(floats), product)
    assert torch.equal(floats, codes.float()), "its entries are somebody else's"
    assert torch.equal(blocks.inverse(product).view(torch.uint8), codes.view(torch.uint8))
