"""Folders under a hidden name: held while they are built, and swept away when whoever built them was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from paramcli.checkpoint.disk.building import Building, sweep

from ..pace import HANG_SECONDS

ROOT = Path(__file__).parents[2]
HOLDS = """
import os, sys
from pathlib import Path
from paramcli.checkpoint.disk.building import Building
building = Building.new(Path(sys.argv[1]))
(building.path / "part").write_text("x")
print(building.path.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that builds a folder in tmp_path: (the process, the folder)."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process, tmp_path / process.stdout.readline().strip()
    process.kill()
    process.communicate(timeout=HANG_SECONDS)


def test_what_a_killed_process_built_is_swept_away(holder, tmp_path, paramcli):
    """Not while it lives, by no run, and by the next one after that: a folder result leaves nothing but itself."""
    process, folder = holder
    save_file({"w": torch.ones(2, 2)}, tmp_path / "m.safetensors")
    line = ["convert", tmp_path / "m.safetensors", "--max-shard-size", "1KB", "-f", "-o"]
    paramcli(*line, tmp_path / "one")
    assert (folder / "part").exists()
    os.kill(process.pid, signal.SIGKILL)
    process.wait(HANG_SECONDS)
    paramcli(*line, tmp_path / "two")
    assert sorted(os.listdir(tmp_path)) == ["m.safetensors", "one", "two"]


def test_one_that_another_process_holds_too_stays(holder, tmp_path):
    """The ranks of a run hold it together: it goes with the last of them."""
    process, folder = holder
    mine = Building(folder)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(HANG_SECONDS)
    sweep(tmp_path)
    assert folder.is_dir()
    mine.close()
    sweep(tmp_path)
    assert not folder.exists()


def test_nothing_else_is_swept(tmp_path, monkeypatch):
    """Folders of another system, which may lock where this one does not see it, of other names, files and links."""
    building = Building.new(tmp_path)
    name, outside = building.path.name, tmp_path / "outside"
    building.close()
    os.rename(building.path, outside)
    (outside / "kept").write_text("x")
    (tmp_path / name).symlink_to(outside)
    others = [name.replace(name[-12:], "-00000000.tmp"), name[:-4], f"{name}x", ".paramcli-0123abcd.tmp", "x" + name]
    for other in others:
        (tmp_path / other).mkdir()
    (tmp_path / f".paramcli-00000000{name[-13:]}").write_text("a file")
    before = sorted(os.listdir(tmp_path))
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == before and (outside / "kept").exists()
    (tmp_path / name).unlink()
    os.rename(outside, tmp_path / name)
    monkeypatch.setattr("paramcli.checkpoint.disk.building._BOOT", tmp_path / "none")
    sweep(tmp_path)
    assert (tmp_path / name / "kept").exists()
