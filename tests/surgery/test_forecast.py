"""What --dry-run says a command will cost."""

import os

import torch
from safetensors.torch import save_file


def test_the_bytes_are_those_that_are_written_and_the_operations_those_of_the_law(tmp_path, paramcli):
    """A Cayley map of n x n is four products of 2 n^3, and skew one pass; bytes are the file's own, its
    header aside.
    """
    n = 32
    save_file(
        {
            "a.weight": torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q.float().contiguous(),
            "b": torch.ones(100),
        },
        tmp_path / "a.safetensors",
    )
    arguments = (
        "add",
        tmp_path / "a.safetensors",
        "-t",
        "a.weight",
        "--chain",
        "skew,cayley",
        "--init",
        "raw",
        "-o",
        tmp_path / "o.safetensors",
    )
    told = paramcli(*arguments, "--dry-run", "--json").json["forecast"]
    assert told["operations"] == 4 * 2 * n**3 + n * n
    assert not (tmp_path / "o.safetensors").exists()
    assert "forecast" not in paramcli(*arguments, "--json").json
    header = int.from_bytes((tmp_path / "o.safetensors").read_bytes()[:8], "little") + 8
    assert told["bytes_written"] == os.path.getsize(tmp_path / "o.safetensors") - header


def test_a_rename_needs_no_torch_and_no_arithmetic(tmp_path, paramcli):
    """migrate is forecast at the interpreter's own memory, whatever the size of the tensors; people get one line."""
    save_file({"a.weight_g": torch.ones(4, 1), "a.weight_v": torch.ones(4, 5000)}, tmp_path / "a.safetensors")
    done = paramcli("migrate", tmp_path / "a.safetensors", "--to", "new", "--dry-run", "--json")
    told = done.json["forecast"]
    assert told["operations"] == 0 and told["peak_memory"] < 50_000_000
    assert sum("operations" in line for line in done.err.splitlines()) == 1


def test_memory_grows_with_the_largest_tensor_that_is_edited_alone(tmp_path, paramcli):
    """Twice as many tensors cost no more memory; a larger one does."""

    def peak(**tensors):
        save_file(tensors, tmp_path / "a.safetensors")
        done = paramcli("add", tmp_path / "a.safetensors", "-t", "w*", "--chain", "symmetric", "--dry-run", "--json")
        return done.json["forecast"]["peak_memory"]

    one = peak(w0=torch.ones(64, 64))
    assert peak(w0=torch.ones(64, 64), w1=torch.ones(64, 64), untouched=torch.ones(1000, 1000)) == one
    assert peak(w0=torch.ones(128, 128)) - one == 3 * 64 * 64 * (4 + 4 + 6 * 8)


def test_a_tensor_that_is_computed_by_rows_costs_its_blocks(tmp_path, paramcli, monkeypatch):
    """Twice the rows cost no more; a map that needs all of them does."""
    from paramcli.fitting import blocks as rows

    monkeypatch.setattr(rows, "LARGE", 1 << 20)
    monkeypatch.setattr(rows, "BLOCK_BYTES", 1 << 18)

    def peak(side, chain):
        save_file({"w": torch.ones(side, 1024)}, tmp_path / "a.safetensors")
        return paramcli("add", tmp_path / "a.safetensors", "-t", "w", "--chain", chain, "--dry-run", "--json").json[
            "forecast"
        ]["peak_memory"]

    assert (
        peak(2048, "weight_norm")
        == peak(1024, "weight_norm")
        < 0.2 * (peak(1024, "weight_norm:dim=1") - 160_000_000) + 160_000_000
    )
    assert peak(2048, "weight_norm:dim=1") > 1.2 * peak(1024, "weight_norm:dim=1")
