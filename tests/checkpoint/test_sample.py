"""Checkpoints told apart by some of their bytes, or by the checksums that they carry."""

from __future__ import annotations

import pickle

import numpy
import pytest
import torch
from safetensors.torch import save_file

from paramcli.checkpoint import sample
from paramcli.checkpoint.read.open import open_checkpoint

from .test_parts import shard


def sampled(path) -> str:
    with open_checkpoint(path) as source:
        return sample.sampled(source)


@pytest.mark.parametrize("save", [save_file, torch.save], ids=["safetensors", "torch"])
@pytest.mark.parametrize("size", [1, 1024, 1025, 100_000])
def test_other_values_are_another_sample(size, save, tmp_path):
    """The same tensors again are the same; all values, or the first or the last alone, changed are not."""
    state = {"a": torch.zeros(3), "w": torch.arange(float(size))}
    for folder, change in (("one", None), ("two", None), ("all", ...), ("first", 0), ("last", -1)):
        made = {name: tensor.clone() for name, tensor in state.items()}
        if change is not None:
            made["w"][change] += 1
        (tmp_path / folder).mkdir()
        save(made, tmp_path / folder / "m")
    prints = {folder: sampled(tmp_path / folder / "m") for folder in ("one", "two", "all", "first", "last")}
    assert prints["one"] == prints["two"]
    assert len({prints[folder] for folder in ("one", "all", "first", "last")}) == (4 if size > 1 else 2)


@pytest.mark.parametrize("size", [3, 2000])
@pytest.mark.parametrize("protocol", [2, 4])
def test_arrays_of_a_pickle_are_sampled(size, protocol, tmp_path):
    """Also those whose bytes the file does not hold as they are: small, spelt as text, or turned round."""
    for folder, change in (("one", 0), ("two", 0), ("other", 1)):
        (tmp_path / folder).mkdir()
        values = {"a": numpy.arange(size, dtype="f4"), "w": numpy.arange(size, dtype=">f4")}
        values["w"][0] += change
        (tmp_path / folder / "m.pkl").write_bytes(pickle.dumps(values, protocol))
    prints = [sampled(tmp_path / folder / "m.pkl") for folder in ("one", "two", "other")]
    assert prints[0] == prints[1] != prints[2]


def test_every_shard_counts(tmp_path):
    """A change in the last of many shards is seen, and so is another name of a file."""
    for folder in ("one", "two", "three"):
        (tmp_path / folder).mkdir()
        for number in (1, 2, 3):
            value = float(folder == "two" and number == 3)
            name = shard(number, 3, stem="other-" if folder == "three" else "model-")
            save_file({f"l{number}": torch.full((5000,), value)}, tmp_path / folder / name)
    assert len({sampled(tmp_path / folder) for folder in ("one", "two", "three")}) == 3


def test_few_reads_where_there_are_many_tensors(tmp_path, monkeypatch):
    """No more reads than there may be in all, but three for each."""
    save_file({f"w{i}": torch.zeros(2000) for i in range(50)}, tmp_path / "m.safetensors")
    monkeypatch.setattr(sample, "MOST_READS", 60)
    with open_checkpoint(tmp_path / "m.safetensors") as source:
        read, reads = source.files[0].read, []
        source.files[0].read = lambda offset, length: reads.append(length) or read(offset, length)
        sample.sampled(source)
    assert reads == [sample.BLOCK] * 150
