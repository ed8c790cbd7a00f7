"""Distances of entries whose squares leave the range of numbers."""

import pytest
import torch
from safetensors.torch import save_file


@pytest.mark.parametrize("size", [1e-200, 1e-300, 1.0, 1e160, 1e300])
def test_entries_of_any_size_have_a_distance(size, tmp_path, paramcli):
    for name, factor in (("a", 1.0), ("b", 3.0)):
        save_file({"w": torch.full((4, 4), factor * size, dtype=torch.float64)}, tmp_path / f"{name}.safetensors")
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    [told] = paramcli("diff", *files, "--json", code=1).json["tensors"]
    assert told["relative"] == pytest.approx(2, rel=1e-12)
    paramcli("diff", files[0], files[0])
