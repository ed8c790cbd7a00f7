"""Several processes on one device."""

import os
import subprocess
import sys

import torch

from ..cli.test_ranks import ROOT, contents, make_folder, torchrun
from . import NEEDS_GPU

pytestmark = NEEDS_GPU


def test_two_ranks_on_one_device_write_the_bytes_of_one(tmp_path):
    """torchrun with --device cuda:0 for all, shards shared out."""
    folder = make_folder(tmp_path / "model")
    alone = [
        sys.executable,
        "-m",
        "paramcli",
        "remove",
        str(folder),
        "--bake",
        "--device",
        "cuda:0",
        "-o",
        str(tmp_path / "one"),
    ]
    subprocess.run(alone, env=os.environ | {"PYTHONPATH": ROOT}, capture_output=True, check=True)
    done = torchrun(
        "-m", "paramcli", "remove", str(folder), "--bake", "--device", "cuda:0", "-o", str(tmp_path / "two")
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    done = torchrun("-m", "paramcli", "verify", str(tmp_path / "two"), "--device", "cuda:0")
    assert done.returncode == 0, done.stderr


def test_more_ranks_than_devices_are_told_what_to_type(tmp_path):
    """--device cuda gives each process a device of its own."""
    folder = make_folder(tmp_path / "model", 2)
    done = torchrun("-m", "paramcli", "remove", str(folder), "--bake", "--device", "cuda", "-o", str(tmp_path / "out"))
    if torch.cuda.device_count() == 1:
        assert done.returncode != 0 and "--device cuda:0 for all" in done.stderr and not (tmp_path / "out").exists()
    else:
        assert done.returncode == 0, done.stderr
