"""inspect: a folded tree for people, one line a tensor for pipes."""

import os
import pty
import re
import subprocess
import sys

import torch
from safetensors.torch import save_file
from torch import nn


def model():
    """An encoder of four equal layers and one that differs, a head, and a deep name with nothing beside it."""
    layers = [nn.ModuleDict({"attn": nn.Linear(8, 8), "norm": nn.LayerNorm(8)}) for _ in range(4)] + [
        nn.ModuleDict({"attn": nn.Linear(8, 8, bias=False), "norm": nn.LayerNorm(8)})
    ]
    return nn.ModuleDict({"encoder": nn.ModuleDict({"layers": nn.ModuleList(layers)}), "head": nn.Linear(8, 2)})


def test_equal_layers_are_folded_and_others_are_not(tmp_path, paramcli):
    """layers.0-3 stand as one with their count; the fifth, without a bias, for itself; sizes add up."""
    save_file(model().state_dict(), tmp_path / "m.safetensors")
    shown = paramcli("inspect", tmp_path / "m.safetensors", "--tree").out
    rows = [re.split(r"  +", line.strip()) for line in shown.splitlines()]
    assert ["0-3", "4 alike, 352 B each", "1.4 KiB"] in rows
    assert ["4", "320 B"] in rows and shown.count("attn") == 2 and shown.count("8x8") == 2
    assert ["encoder.layers", "1.7 KiB"] in rows
    total = sum(p.numel() for p in model().parameters())
    assert f"{total:,} values" in shown


def test_a_layer_with_another_chain_is_not_alike(tmp_path, paramcli):
    """Shapes and names are equal, but one weight is parametrized."""
    save_file({f"layers.{i}.weight": torch.randn(4, 4) for i in range(3)}, tmp_path / "m.safetensors")
    assert "layers.0-2" in paramcli("inspect", tmp_path / "m.safetensors", "--tree").out
    paramcli(
        "add", tmp_path / "m.safetensors", "-t", "layers.1.weight", "--chain", "skew", "-o", tmp_path / "p.safetensors"
    )
    shown = paramcli("inspect", tmp_path / "p.safetensors", "--tree").out
    assert "alike" not in shown and "skew" in shown and "1 parametrized" in shown


def test_order_numbers_and_odd_names(tmp_path, paramcli):
    """9 and 10 follow each other, gaps do not fold, names that are no modules stay as they are."""
    names = ["m.9.w", "m.10.w", "m.12.w", "x", "a..b", "m.٣.w"]
    torch.save({name: torch.randn(3) for name in names}, tmp_path / "m.pt")
    shown = paramcli("inspect", tmp_path / "m.pt", "--tree").out
    assert "9-10" in shown and "12" in shown and "٣" in shown and "alike" in shown


def test_layers_of_a_file_that_is_sorted_by_name_fold(tmp_path, paramcli):
    """Ten comes before two in such a file, and all twelve layers are one line."""
    save_file({f"layers.{i}.w": torch.randn(3, 3) for i in range(12)}, tmp_path / "m.safetensors")
    assert "layers.0-11" in paramcli("inspect", tmp_path / "m.safetensors", "--tree").out


def test_a_pipe_gets_one_line_a_tensor(tmp_path, paramcli):
    """What grep is for: the full name and all else on one line, also where --flat says so."""
    save_file(model().state_dict(), tmp_path / "m.safetensors")
    piped, flat = (paramcli("inspect", tmp_path / "m.safetensors", *extra).out for extra in ((), ("--flat",)))
    assert piped == flat and re.search(r"^encoder\.layers\.2\.attn\.weight +plain +8x8 +float32 +256 B$", piped, re.M)


def test_a_terminal_gets_the_tree(tmp_path):
    """On a terminal of 80 columns the default is the tree, and no line is longer."""
    save_file(model().state_dict(), tmp_path / "m.safetensors")
    main, side = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "paramcli", "inspect", str(tmp_path / "m.safetensors")],
        stdout=side,
        stderr=side,
        env=environment,
    )
    os.close(side)
    shown = b""
    try:
        while chunk := os.read(main, 65536):
            shown += chunk
    except OSError:
        pass  # Linux answers EIO when the other side has closed
    os.close(main)
    assert process.wait() == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()
    assert any("4 alike" in line for line in lines) and max(len(line.rstrip()) for line in lines[1:]) <= 80


def test_selection_works_on_the_tree(tmp_path, paramcli):
    """-t picks tensors, and totals are those of what is shown."""
    save_file(model().state_dict(), tmp_path / "m.safetensors")
    shown = paramcli("inspect", tmp_path / "m.safetensors", "--tree", "-t", "head.*").out
    assert "encoder" not in shown and "2 tensors, 18 values" in shown
