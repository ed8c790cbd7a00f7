"""What is copied before torch is there: foretold plans against the plans that are made."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.catalogue.entry import itself
from paramcli.checkpoint.disk import direct
from paramcli.checkpoint.disk.atomic import AtomicFile
from paramcli.checkpoint.header import Slot
from paramcli.checkpoint.read.open import open_checkpoint
from paramcli.checkpoint.write.safetensors_file import SafetensorsSink
from paramcli.errors import ParamcliError
from paramcli.registry import PARAMETRIZATIONS
from paramcli.spelling.forms import detect
from paramcli.spelling.record import KEY, parse_record
from paramcli.surgery.edits.add import Add
from paramcli.surgery.edits.assign import Assign
from paramcli.surgery.edits.remove import Remove
from paramcli.surgery.execute import Writing
from paramcli.surgery.foretell import MOST, foretell
from paramcli.surgery.plan import Plan
from paramcli.surgery.sequence import plan_edits

from ..pace import HANG_SECONDS

CHAINS = [text for entry in PARAMETRIZATIONS.values() if not entry.same_as for text in entry.examples or (entry.name,)]
SHAPES = [(6, 6), (8, 4), (4, 8), (4, 4, 3, 3), (8,), (3, 4, 4)]


def both(path, *edits):
    """(what is foretold, what is planned) for a file's edits."""
    with open_checkpoint(path) as source, ExitStack() as stack:
        record = parse_record(source.metadata.get(KEY))
        groups = detect(source.tensors, record)
        return foretell("apply", edits, source, groups), plan_edits("apply", edits, source, groups, stack)


def promised(plan):
    return sorted((slot.name, slot.dtype, slot.shape) for slot in plan.slots), plan.copies, plan.record, plan.longest


@pytest.fixture
def tensors(tmp_path):
    def write(shape, dtype=torch.float32):
        path = tmp_path / "a.safetensors"
        save_file({"w": torch.randn(shape).to(dtype), "other": torch.ones(3)}, path)
        return path

    return write


@pytest.mark.parametrize("chain", CHAINS)
def test_what_the_table_says_is_stored_is_stored(chain, tensors):
    """Keys, dtypes and shapes by the table are those of torch's own registration, for every shape that the
    chain takes.
    """
    planned = 0
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.complex64):
            try:
                early, plan = both(tensors(shape, dtype), Add(tensor=["w"], chain=chain, init="raw"))
            except ParamcliError:
                continue
            planned += 1
            stored = sum(slot.nbytes for slot in plan.steps[0].writes)
            if (
                PARAMETRIZATIONS[chain.partition(":")[0].partition(",")[0]].stores is None
                or stored > MOST * plan.steps[0].group.nbytes
            ):
                assert early is None
            elif "scope" not in chain:
                assert promised(early) == promised(plan), shape
    assert planned


def test_a_view_a_longer_chain_a_bake_and_an_assignment_are_foretold(tensors, tmp_path, paramcli):
    """The edits that people make most: none of them waits for torch before its untouched tensors are on their way."""
    path = tensors((8, 4))
    edits = [
        Add(tensor=["w"], chain="skew,cayley", view="blocks=2"),
        Add(tensor=["w"], chain="weight_norm,mask"),
        Assign(tensor=["w"], with_="orthogonal"),
    ]
    for edit in edits:
        early, plan = both(path, edit)
        assert promised(early) == promised(plan)
    for chain in ("weight_norm", "orthogonal", "mask"):
        paramcli("add", path, "-t", "w", "--chain", chain, "-o", tmp_path / "p.safetensors", "-f")
        early, plan = both(tmp_path / "p.safetensors", Remove())
        assert promised(early) == promised(plan)
        early, plan = both(
            tmp_path / "p.safetensors", Assign(tensor=["w"], with_="ones" if chain == "mask" else "orthogonal")
        )
        assert promised(early) == promised(plan)


def test_two_edits_of_one_tensor_are_left_to_the_plan(tensors):
    """The second meets what the first leaves, which only the plan knows."""
    early, plan = both(tensors((6, 6)), Add(tensor=["w"], chain="symmetric"), Add(tensor=["w"], chain="matrix_exp"))
    assert early is None and len(plan.steps) == 1


@pytest.mark.parametrize("output", ["o.safetensors", "o.pt", "folder"])
def test_a_wrong_foretelling_costs_time_only(output, tmp_path, paramcli, monkeypatch):
    """Where the plan is another than what was begun, the output has the bytes of a run that began nothing."""
    source = tmp_path / "a.safetensors"
    save_file({f"l{n}.weight": torch.randn(16, 16) for n in range(9)}, source)
    if output == "folder":
        paramcli("convert", source, "-o", tmp_path / "shards", "--max-shard-size", "3kB")
        source = tmp_path / "shards"
    command = ["add", source, "-t", "l3.weight", "--chain", "weight_norm"]
    paramcli(*command, "-o", tmp_path / output)
    monkeypatch.setitem(PARAMETRIZATIONS, "weight_norm", replace(PARAMETRIZATIONS["weight_norm"], stores=itself))
    served = []
    real = Writing.serves
    monkeypatch.setattr(Writing, "serves", lambda self, plan: served.append(real(self, plan)) or served[-1])
    wrong = tmp_path / f"wrong-{output}"
    paramcli(*command, "-o", wrong)
    assert served == ([] if output == "o.pt" else [False])  # which tensors of a torch file are one, only the plan knows
    assert files(wrong) == files(tmp_path / output)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".paramcli")]


def files(path):
    if path.is_dir():
        return {file.name: file.read_bytes() for file in path.iterdir()}
    return path.read_bytes()


def test_what_was_begun_for_a_refused_edit_leaves_nothing(tensors, tmp_path, paramcli):
    """An edit that data refuse late, or the plan early: the copy that was under way is gone, and the message is the
    edit's own.
    """
    path = tensors((8, 4))
    before = set(os.listdir(tmp_path))
    said = paramcli("add", path, "-t", "w", "--chain", "cayley", "-o", tmp_path / "o.safetensors", code=2).err
    assert "cayley wants skew" in said
    said = paramcli("add", path, "-t", "w", "--chain", "skew", "-o", tmp_path / "o.safetensors", code=3).err
    assert "square" in said
    said = paramcli(
        "add", path, "-t", "w", "--chain", "orthogonal", "--init", "strict", "-o", tmp_path / "o.safetensors", code=1
    ).err
    assert "not orthogonal" in said
    assert set(os.listdir(tmp_path)) == before


def test_copying_has_begun_when_the_plan_is_made(tmp_path, paramcli, monkeypatch):
    """What no edit touches is under way before a plan is there, and it is copied once."""
    path = tmp_path / "a.safetensors"
    save_file({f"l{n}.weight": torch.randn(16, 16) for n in range(9)}, path)
    order = []
    from paramcli.surgery import sequence

    begun, planned = AtomicFile.__enter__, sequence.plan_edits
    monkeypatch.setattr(AtomicFile, "__enter__", lambda self: (order.append("output"), begun(self))[1])
    monkeypatch.setattr(sequence, "plan_edits", lambda *a: (order.append("plan"), planned(*a))[1])
    paramcli("add", path, "-t", "l3.weight", "--chain", "symmetric", "-o", tmp_path / "o.safetensors")
    assert order == ["output", "plan"]
    assert len(load_file(tmp_path / "o.safetensors")) == 9


def test_no_space_is_asked_for_what_planning_may_refuse(tmp_path, paramcli, monkeypatch):
    """A few numbers that stand for a huge weight, by a record or by a square base: refused before the disk
    hears of it.
    """
    asked = []
    monkeypatch.setattr(os, "posix_fallocate", lambda descriptor, at, size: asked.append(size))
    for size in (65536, 1 << 31):
        entry = {"state": "parametrized", "chain": "mask", "view": None, "constraint": None, "shape": [size, size]}
        record = json.dumps({"schema": 1, "version": "0", "tensors": {"w.weight": entry}})
        tensors = {
            "w.parametrizations.weight.original": torch.ones(2, 2),
            "w.parametrizations.weight.0.mask": torch.ones(2, 2, dtype=torch.bool),
            "b": torch.ones(3),
        }
        save_file(tensors, tmp_path / "over.safetensors", {KEY: record})
        for output in ("o.safetensors", "o.dcp"):
            paramcli("remove", tmp_path / "over.safetensors", "-o", tmp_path / output, code=3)
    save_file({"e": torch.randn(100_000, 1), "b": torch.ones(3)}, tmp_path / "tall.safetensors")
    paramcli(
        "add",
        tmp_path / "tall.safetensors",
        "-t",
        "e",
        "--chain",
        "orthogonal",
        "-o",
        tmp_path / "o.safetensors",
        code=3,
    )
    assert not asked and sorted(os.listdir(tmp_path)) == ["over.safetensors", "tall.safetensors"]


def test_a_share_over_all_tensors_is_left_to_the_plan(tensors):
    """How many entries each tensor drops is in the data: nothing is begun that would be dropped."""
    early, plan = both(tensors((6, 6)), Add(tensor=["w"], chain="prune_l1:amount=0.3:scope=global"))
    assert early is None and str(plan.record["w"].chain) == "prune_l1:amount=11"


@pytest.mark.parametrize("moment", ["abandon", "submit"])
def test_a_signal_while_it_begins_or_cleans_up_leaves_nothing(moment, tensors, tmp_path, monkeypatch):
    """A second Ctrl-C during the clean-up of the first, and one between the open file and its first thread."""
    from concurrent.futures import ThreadPoolExecutor

    with open_checkpoint(tensors((8, 4))) as source:
        slots = tuple(Slot(key, info.dtype, info.shape) for key, info in source.tensors.items())
        sink = SafetensorsSink(tmp_path / "o.safetensors", slots, {})
        real = getattr(sink if moment == "abandon" else ThreadPoolExecutor, moment)

        def interrupted(*arguments):
            real(*arguments)
            signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(sink if moment == "abandon" else ThreadPoolExecutor, moment, interrupted)
        with (
            pytest.raises(KeyboardInterrupt),
            Writing(Plan("x", (), tuple((key, key) for key in source.tensors), slots, {}, {}), source, sink),
        ):
            raise KeyboardInterrupt
    assert sorted(os.listdir(tmp_path)) == ["a.safetensors"]


def test_a_hint_to_the_disk_takes_no_standard_stream(tmp_path):
    """Where stdin is closed, the copy of a descriptor that waits for the disk does not become descriptor 0."""
    code = (
        "import os, fcntl, paramcli.checkpoint.disk.writeback as w\n"
        "taken, real = [], fcntl.fcntl\n"
        "w.fcntl.fcntl = lambda *a: taken.append(real(*a)) or taken[-1]\n"
        f"w.begin_writeback(os.open({str(tmp_path / 'x')!r}, os.O_RDWR | os.O_CREAT) + 0)\n"
        "assert taken and min(taken) > 2, taken\n"
    )
    assert (
        subprocess.run(["sh", "-c", 'exec "$0" -c "$1" <&-', sys.executable, code], timeout=HANG_SECONDS).returncode
        == 0
    )


@pytest.mark.parametrize("output", ["o.safetensors", "o.dcp"])
def test_an_early_copy_given_up_in_a_storage_does_not_decide_its_checksum(output, tmp_path, paramcli, monkeypatch):
    """What was begun for another plan stops in the middle of a storage; the copy that counts compares it itself."""
    tensors = {"w": torch.randn(8, 8), **{f"t{n}": torch.randn(300_000) for n in range(4)}}
    torch.save(tensors, tmp_path / "a.pt")
    monkeypatch.setattr(direct, "BLOCK", 5 * 4096)
    begun, real = threading.Event(), AtomicFile.write_at

    def slow(self, offset, data):
        begun.set()
        time.sleep(0.005)
        real(self, offset, data)

    given_up = []

    def other(self, plan):
        assert begun.wait(10)
        monkeypatch.setattr(AtomicFile, "write_at", real)
        given_up.append(True)
        return False

    monkeypatch.setattr(AtomicFile, "write_at", slow)
    monkeypatch.setattr(Writing, "serves", other)
    paramcli("add", tmp_path / "a.pt", "-t", "w", "--chain", "symmetric", "-o", tmp_path / output)
    assert given_up
    with open_checkpoint(tmp_path / output) as got:
        assert all(torch.equal(got.read(name), value) for name, value in tensors.items() if name != "w")
