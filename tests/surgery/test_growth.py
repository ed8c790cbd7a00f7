"""A base as square as the longer side: a plan tells of it, or refuses, before anything is computed."""

import pytest
import torch
from safetensors.torch import save_file

from paramcli.chain import parse_chain
from paramcli.fitting.skeleton import outline
from paramcli.registry import PARAMETRIZATIONS

SQUARE_BASES = [
    "stiefel",
    "grassmannian",
    "low_rank:rank=8",
    "orthogonal",
    "orthogonal:map=cayley",
    "almost_orthogonal",
]


def zeros_file(path, rows: int, columns: int) -> None:
    """A file with one float32 tensor."""
    save_file({"w": torch.zeros(rows, columns)}, path)


@pytest.mark.parametrize("chain", SQUARE_BASES)
@pytest.mark.parametrize("dry", [True, False])
def test_gigabytes_for_a_small_tensor_are_refused(chain, dry, tmp_path, paramcli):
    """30000 x 50 would store a base of 3.4 GiB: refused with the number, by the dry run too, and nothing is written."""
    zeros_file(tmp_path / "a.safetensors", 30000, 50)
    result = paramcli("add", tmp_path / "a.safetensors", "-t", "w", "--chain", chain, *(["-n"] if dry else []), code=3)
    assert "3.4 GiB" in result.err and "601 times" in result.err
    compact = parse_chain(chain).links[0].entry.compact
    assert (f"--chain {compact.format(rank=8)} needs no square base" if compact else "squarer") in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_megabytes_are_told(tmp_path, paramcli):
    """3000 x 50 grows 61 times, to 35 MiB: told with the chain that does not, and by the dry run too."""
    zeros_file(tmp_path / "a.safetensors", 3000, 50)
    result = paramcli("add", tmp_path / "a.safetensors", "-t", "w", "--chain", "stiefel", "-n")
    assert (
        "34.9 MiB" in result.err and "61 times" in result.err and "orthogonal:map=householder:triv=false" in result.err
    )
    document = paramcli("add", tmp_path / "a.safetensors", "-t", "w", "--chain", "stiefel", "-n", "--json").json
    assert "34.9 MiB" in document["tensors"][0]["note"]


@pytest.mark.parametrize(
    ("shape", "chain"), [((1, 64), "stiefel"), ((256, 256), "alpha_stable"), ((30000, 50), "weight_norm")]
)
def test_what_is_small_or_no_larger_is_not_spoken_of(shape, chain, tmp_path, paramcli):
    """A few KiB more, a few times a square matrix, or no base at all need no word."""
    zeros_file(tmp_path / "a.safetensors", *shape)
    document = paramcli("add", tmp_path / "a.safetensors", "-t", "w", "--chain", chain, "-n", "--json").json
    assert "note" not in document["tensors"][0]


@pytest.mark.parametrize("entry", [entry for entry in PARAMETRIZATIONS.values() if entry.compact], ids=lambda e: e.name)
def test_the_chain_that_is_named_is_compact(entry):
    """What an entry names in its place is a chain, and stores at most four times the weight."""
    named = entry.compact.format(rank=8)
    stored = sum(tensor.numel() for tensor in outline(parse_chain(named), (1000, 20), torch.float32).values())
    assert stored <= 4 * 20_000
