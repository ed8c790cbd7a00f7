"""Runs of several processes: the same bytes as one, one voice, and nothing left of a run that lost a rank."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed import HashStore

from paramcli import ranks
from paramcli.cli.app import run
from paramcli.devices import torch_device as check_device
from paramcli.errors import InputRefused, UsageError
from paramcli.fitting.costs import share_out

from ..pace import HANG_SECONDS

ROOT = str(Path(__file__).parents[2])
INDEX = "model.safetensors.index.json"
# A list of command lines in one pair of processes, as importing torch takes longer than all of them.
DRIVER = """
import contextlib, io, json, os, sys, torch
from paramcli.cli.app import run
torch.set_num_threads(1)  # as in the tests' own process
told = []
for port, arguments in json.loads(sys.argv[1]):
    os.environ["MASTER_PORT"] = str(port)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(arguments)
    told.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(told))
"""
# The command line of paramcli in a process of which one rank, the second, is killed when it has written one tensor.
KILLED = """
import os, signal, sys
from paramcli import ranks
from paramcli.checkpoint.write.sharded import ShardedSink
from paramcli.cli.app import main
ranks.DEAD_SECONDS, ranks.BEAT_SECONDS, ranks.LEAVE_SECONDS = 3, 0.2, 1
write = ShardedSink.write
def once(self, name, data):
    write(self, name, data)
    if os.environ["RANK"] == os.environ.get("KILLED", "1"):
        os.kill(os.getpid(), signal.SIGKILL)
ShardedSink.write = once
main()
"""


def make_folder(path: Path, count: int = 8) -> Path:
    """A model in `count` shards: a weight norm over columns, a Cayley map large enough for threads to matter, a bias.

    And a spectral norm whose dim its data tell, so that its shard's record is complete only when it is baked.
    """
    torch.manual_seed(0)
    path.mkdir(parents=True)
    weight_map = {}
    for number in range(1, count + 1):
        v = torch.randn(20 + 7 * number, 300)
        part = {
            f"l{number}.weight_g": v.norm(dim=0, keepdim=True),
            f"l{number}.weight_v": v,
            f"l{number}.bias": torch.randn(7),
        }
        part[f"o{number}.parametrizations.weight.original"] = torch.randn(200, 200) / 20
        W = torch.randn(12, 12)
        # Rounded once, as a power method's: those of an SVD in float32 are of length 1 to some eps on some processors.
        U, _, Vh = (T.float() for T in torch.linalg.svd(W.double()))
        part |= {
            f"s{number}.weight_orig": W,
            f"s{number}.weight_u": U[:, 0].contiguous(),
            f"s{number}.weight_v": Vh[0].contiguous(),
        }
        shard = f"model-{number:05d}-of-{count:05d}.safetensors"
        chains = {
            f"o{number}.weight": {
                "chain": "skew,cayley",
                "constraint": "special_orthogonal",
                "state": "parametrized",
                "view": None,
            }
            for number in range(1, count + 1)
        }
        record = {"schema": 1, "version": "0.1.0", "tensors": chains}
        save_file(part, path / shard, {"format": "pt", "paramcli": json.dumps(record, sort_keys=True)})
        weight_map |= dict.fromkeys(part, shard)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (path / "config.json").write_text("{}")
    return path


def environment(rank: int, port: int, size: int = 2) -> dict[str, str]:
    mine = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return os.environ | {"PYTHONPATH": ROOT} | {name: str(value) for name, value in mine.items()}


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folder of results; name -> what each of two ranks answered (exit code, stdout, stderr) to one command line."""
    place = tmp_path_factory.mktemp("ranks")
    folder, inside = make_folder(place / "model"), make_folder(place / "inside")
    bad = make_folder(place / "bad")
    shard = bad / "model-00003-of-00008.safetensors"
    tensors = load_file(shard)
    tensors["l3.weight_v"][0, 0] = float("nan")
    save_file(tensors, shard, {"format": "pt", "paramcli": metadata(folder)})
    save_file({f"w{i}": torch.randn(3, 3) for i in range(9)}, place / "one.safetensors")
    lines = {
        "bake": ["remove", str(folder), "--bake", "-o", str(place / "two"), "--json"],
        "bake again": ["remove", str(folder), "--bake", "-o", str(place / "two")],
        "in place": ["remove", str(inside), "--bake", "--in-place", "-q"],
        "not finite": ["remove", str(bad), "--bake", "-o", str(place / "never")],
        "verify": ["verify", str(folder), "--json"],
        "does not hold": ["verify", str(folder), "-t", "o1.weight", "-t", "o2.weight", "--tol", "0"],
        "one file": ["convert", str(folder), "-o", str(place / "whole.safetensors")],
        "split": ["convert", str(place / "one.safetensors"), "-o", str(place / "split"), "--max-shard-size", "80"],
        "migrate": ["migrate", str(folder), "--to", "new", "-o", str(place / "new")],
        "to DCP": ["remove", str(folder), "--bake", "-o", str(place / "two.dcp"), "--check"],
        "one part": ["convert", str(place / "one.safetensors"), "-o", str(place / "part.dcp"), "--check"],
        "no such": ["remove", str(place / "absent"), "--json"],
        "two folders": ["remove", "mine", "--bake", "-o", str(place / "mixed")],
        "two folders verified": ["verify", "mine"],
    }
    for rank in (0, 1):
        shard = make_folder(place / f"rank{rank}" / "mine", 8) / "model-00003-of-00008.safetensors"
        tensors = load_file(shard)
        tensors["l3.weight_g"] += rank
        save_file(tensors, shard, {"format": "pt", "paramcli": metadata(folder)})
    script = json.dumps(list(zip(free_ports(len(lines)), lines.values(), strict=True)))
    started = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, script],
            env=environment(rank, 1),
            cwd=place / f"rank{rank}",
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    answers = [json.loads(process.communicate(timeout=HANG_SECONDS)[0]) for process in started]
    return place, dict(zip(lines, zip(*answers, strict=True), strict=True))


def metadata(folder: Path) -> str:
    from safetensors import safe_open

    with safe_open(folder / "model-00001-of-00008.safetensors", "pt") as file:
        return file.metadata()["paramcli"]


def test_two_ranks_write_the_bytes_of_one(pair, capsys):
    """Shards, index and the files beside them are those of one process, and the report is whole and said once."""
    place, told = pair
    assert run(["remove", str(place / "model"), "--bake", "-o", str(place / "single"), "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert contents(place / "two") == contents(place / "single")
    (code, out, _), (other_code, other_out, other_err) = told["bake"]
    assert (code, other_code, other_out, other_err) == (0, 0, "", "")
    assert json.loads(out)["tensors"] == alone["tensors"]


def test_two_ranks_write_one_dcp_folder(pair):
    """Each rank writes and checks its parts of a DCP folder, and the first one the .metadata of all: the bytes of one
    process.
    """
    place, told = pair
    assert [code for code, *_ in told["to DCP"]] == [0, 0]
    assert run(["remove", str(place / "model"), "--bake", "-o", str(place / "single.dcp"), "-q"]) == 0
    assert contents(place / "two.dcp") == contents(place / "single.dcp")
    assert {".metadata", "__0_7.distcp", "config.json"} <= contents(place / "two.dcp").keys()
    assert [code for code, *_ in told["one part"]] == [0, 0]


def test_in_place_two_ranks_replace_the_shards(pair):
    """In place the folder's own shards become what a new folder's would be."""
    place, told = pair
    assert [code for code, *_ in told["in place"]] == [0, 0]
    assert contents(place / "inside") == contents(place / "two")


def test_an_output_that_exists_stays_and_is_refused_once(pair):
    """Both ranks fail with one code, and one line says why."""
    _, told = pair
    assert [code for code, *_ in told["bake again"]] == [4, 4]
    assert "".join(err for _, _, err in told["bake again"]).count("exists already") == 1


def test_a_failure_in_one_share_is_the_failure_of_all(pair):
    """A tensor that only one rank reads fails both, with its name said once; nothing is written or left."""
    place, told = pair
    assert [code for code, *_ in told["not finite"]] == [3, 3]
    assert "".join(err for _, _, err in told["not finite"]).count("l3.weight: its l3.weight_v has 1 NaN") == 1
    assert not (place / "never").exists()
    assert not [name for name in os.listdir(place) if name.startswith(".paramcli")]


@pytest.mark.parametrize("command", ["two folders", "two folders verified"])
def test_folders_that_differ_in_values_alone_are_not_mixed(pair, command):
    """Names, shapes and sizes are the same, one tensor has other values on one rank: both fail, nothing is written."""
    place, told = pair
    assert [code for code, *_ in told[command]] == [3, 3]
    assert "".join(err for _, _, err in told[command]).count("rank 1 sees another checkpoint at mine") == 1
    assert not (place / "mixed").exists()


def test_an_error_document_comes_from_the_first_rank(pair):
    """--json prints one error document in all."""
    _, told = pair
    outs = [out for _, out, _ in told["no such"]]
    assert json.loads(outs[0])["error"]["code"] == "not_found" and outs[1] == ""


def test_verify_gathers_what_the_ranks_measured(pair, capsys):
    """The document is that of one process; a constraint that does not hold is exit 1 on every rank."""
    place, told = pair
    assert run(["verify", str(place / "model"), "--json"]) == 0
    assert json.loads(told["verify"][0][1]) == json.loads(capsys.readouterr().out)
    assert told["verify"][1][1] == ""
    assert [code for code, *_ in told["does not hold"]] == [1, 1]


def test_one_file_is_written_by_the_first_rank(pair):
    """A single-file result is whole, and stderr says that it was not shared out."""
    place, told = pair
    assert [code for code, *_ in told["one file"]] == [0, 0]
    assert len(load_file(place / "whole.safetensors")) == 56
    assert "written by one process" in told["one file"][0][2]


@pytest.mark.parametrize(
    "command, arguments",
    [
        ("split", ["convert", "one.safetensors", "--max-shard-size", "80"]),
        ("migrate", ["migrate", "model", "--to", "new"]),
    ],
)
def test_copies_and_renames_are_shared_out_too(pair, command, arguments):
    """What only moves bytes gives the files of one process."""
    place, told = pair
    assert [code for code, *_ in told[command]] == [0, 0]
    name, ckpt, *options = arguments
    assert run([name, str(place / ckpt), "-o", str(place / f"single-{command}"), *options]) == 0
    assert contents(place / f"single-{command}") == contents(place / {"split": "split", "migrate": "new"}[command])


def test_a_rank_that_is_killed_is_missed(tmp_path):
    """Without a launcher that tells, the others find out by themselves: non-zero exit, no output, no temporary file."""
    folder, (port,) = make_folder(tmp_path / "model", 4), free_ports(1)
    line = [sys.executable, "-c", KILLED, "remove", str(folder), "--bake", "-o", str(tmp_path / "out")]
    started = [
        subprocess.Popen(line, env=environment(rank, port), stderr=subprocess.PIPE, text=True) for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=HANG_SECONDS)[1] for process in started]
    assert [process.returncode for process in started] == [4, -signal.SIGKILL]
    assert "rank 1 has given no sign of life" in errors[0]
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_a_first_rank_that_is_killed_leaves_nothing(tmp_path):
    """It made the folder, and kept the store that the others could have asked: they take away what it cannot."""
    folder, (port,) = make_folder(tmp_path / "model", 4), free_ports(1)
    line = [sys.executable, "-c", KILLED, "remove", str(folder), "--bake", "-o", str(tmp_path / "out")]
    started = [
        subprocess.Popen(line, env=environment(rank, port) | {"KILLED": "0"}, stderr=subprocess.PIPE) for rank in (0, 1)
    ]
    for process in started:
        process.communicate(timeout=HANG_SECONDS)
    assert [process.returncode for process in started] == [-signal.SIGKILL, 4]
    assert sorted(os.listdir(tmp_path)) == ["model"]


def torchrun(*arguments: str) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    return subprocess.run(
        line, env=os.environ | {"PYTHONPATH": ROOT}, capture_output=True, text=True, timeout=HANG_SECONDS
    )


def test_torchrun_gives_the_bytes_of_one_process(tmp_path):
    """Started by torchrun, which asks for one thread where its user asks for none, an 8-shard folder comes out the
    same.
    """
    folder = make_folder(tmp_path / "model")
    alone = [sys.executable, "-m", "paramcli", "remove", str(folder), "--bake", "-o", str(tmp_path / "one")]
    subprocess.run(alone, env=os.environ | {"PYTHONPATH": ROOT}, capture_output=True, check=True)
    done = torchrun("-m", "paramcli", "remove", str(folder), "--bake", "-o", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert done.stdout.count("l1.weight") == 1


def test_torchrun_with_a_killed_rank_leaves_nothing(tmp_path):
    """A rank killed half way through its shards: torchrun fails, and there is no folder, no index, no
    temporary file.
    """
    folder, script = make_folder(tmp_path / "model"), tmp_path / "killed.py"
    script.write_text(KILLED)
    done = torchrun(str(script), "remove", str(folder), "--bake", "-o", str(tmp_path / "out"))
    assert done.returncode != 0
    assert sorted(os.listdir(tmp_path)) == ["killed.py", "model"]


# --- the run itself, its ranks in threads ---------------------------------------------------------


def together(size: int, work) -> list:
    """What `work(run)` gives or raises on each rank of a run."""
    store, answers = HashStore(), [None] * size

    def one(rank: int) -> None:
        try:
            member = ranks.Ranks(store, rank, size, hosts=rank == 0)
        except Exception as error:  # another has failed before this one was there
            answers[rank] = error
            return
        try:
            answers[rank] = work(member)
        except Exception as error:
            member.fail(error)
            answers[rank] = error
        finally:
            member.leave()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return answers


def test_everybody_hears_everybody():
    """Values of any size arrive as they were said."""
    said = together(3, lambda member: member.exchange("words", {"rank": member.rank, "long": "x" * 3_000_000}))
    assert said == [[{"rank": rank, "long": "x" * 3_000_000} for rank in range(3)]] * 3


def test_after_a_failure_nothing_is_published():
    """The rank that waits fails with the first failure's code, and the first rank may not publish any more."""

    def work(member):
        if member.rank == 1:
            raise InputRefused("broken", tensor="w")
        if member.rank == 2:
            return member.exchange("never", None)
        while not member.store.check(["failure"]):
            time.sleep(0.01)
        return member.may_publish()

    first, _, waiting = together(3, work)
    for error in (first, waiting):
        assert isinstance(error, ranks.RunFailed) and error.exit_code == 3 and error.tensor == "w" and error.told


def test_once_published_a_late_failure_takes_nothing_away():
    """A rank that leaves after the decision is told that the files are not its own to remove."""

    def work(member):
        if member.leads:
            member.may_publish()
        member.exchange("published", None)
        return member.give_up()

    assert together(2, work) == [False, False]


def test_shares_are_even_by_weight():
    """The heaviest goes first, each to whoever has the least; equal input, equal shares."""
    owner = share_out({"a": 5, "b": 4, "c": 3, "d": 3, "e": 3}, 2)
    loads = [
        sum({"a": 5, "b": 4, "c": 3, "d": 3, "e": 3}[name] for name in owner if owner[name] == rank) for rank in (0, 1)
    ]
    assert sorted(loads) == [8, 10]


def test_each_local_rank_has_its_own_cuda_device(monkeypatch):
    """`--device cuda` and `auto` are the device of the local rank; more ranks than devices are refused."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    run = ranks.Alone()
    run.local_rank, run.local_size, run.size = 2, 4, 4
    monkeypatch.setattr(ranks, "_current", run)
    assert check_device("cuda") == check_device("auto") == "cuda:2"
    assert check_device("cuda:1") == "cuda:1"
    run.local_size = 5
    with pytest.raises(UsageError, match="5 processes and 4 CUDA devices"):
        check_device("cuda")
