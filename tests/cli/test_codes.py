"""Scripts read an error by its fields: a code for what went wrong, the option that is wrong, its keyword in Python."""

from __future__ import annotations

import ast
import inspect
import json
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations

import paramcli as library
from paramcli.errors import CODES

ROOT = Path(__file__).resolve().parent.parent.parent


def header(tensors: dict) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """A folder of files with a fault each."""
    folder = tmp_path_factory.mktemp("broken")
    eye = {"w": torch.eye(4)}
    save_file(eye, folder / "plain.safetensors")
    whole = (folder / "plain.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-1])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "gap.safetensors").write_bytes(
        header({"w": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}) + bytes(2)
    )
    torch.save({"a": {"w": torch.eye(4)}, "b": {"w": torch.eye(4)}}, folder / "two.pt")
    data = (folder / "two.pt").read_bytes()
    (folder / "cut.pt").write_bytes(data[: len(data) // 2])
    at = data.index(torch.eye(4).numpy().tobytes())
    (folder / "flipped.pt").write_bytes(data[: at + 3] + bytes([data[at + 3] ^ 1]) + data[at + 4 :])
    (folder / "page.pt").write_bytes(b"<!DOCTYPE html><html><body>not found")
    (folder / "unsafe.pt").write_bytes(_unsafe())
    torch.save({"epoch": 3}, folder / "none.pt")
    (folder / "several").mkdir()
    save_file(eye, folder / "several" / "a.safetensors")
    save_file(eye, folder / "several" / "b.safetensors")
    (folder / "shards").mkdir()
    index = {"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}
    (folder / "shards" / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file(eye, folder / "shards" / "a.safetensors")
    save_file({"weight_g": torch.ones(4, 1)}, folder / "half.safetensors")
    save_file(eye, folder / "record.safetensors", {"paramcli": "{}"})
    state = parametrizations.orthogonal(nn.Linear(4, 4)).state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "unknown.safetensors")
    flip = torch.eye(4)
    flip[0] *= -1
    save_file({"w": flip}, folder / "flip.safetensors")
    tied = torch.eye(4)
    torch.save({"w": tied, "v": tied}, folder / "tied.pt")
    return folder


def _unsafe() -> bytes:
    import io
    import os
    import zipfile

    class Evil:
        def __reduce__(self):
            return os.system, ("true",)

    made = io.BytesIO()
    torch.save({"w": torch.eye(2), "x": Evil()}, made)
    assert zipfile.is_zipfile(made)
    return made.getvalue()


# (command, code)
FAULTS = [
    ("inspect nowhere.pt", "not_found"),
    ("inspect page.pt", "not_a_checkpoint"),
    ("inspect none.pt", "not_a_checkpoint"),
    ("inspect cut.safetensors", "cut_short"),
    ("inspect cut.pt", "cut_short"),
    ("inspect empty.pt", "cut_short"),
    ("inspect gap.safetensors", "damaged"),
    ("convert flipped.pt --root a -o x.safetensors", "damaged"),
    ("inspect unsafe.pt", "unsafe"),
    ("inspect two.pt", "ambiguous"),
    ("inspect several", "ambiguous"),
    ("inspect shards", "incomplete"),
    ("verify half.safetensors", "unrecognised"),
    ("remove unknown.safetensors", "unrecognised"),
    ("inspect record.safetensors", "bad_record"),
    ("verify plain.safetensors", "nothing_to_verify"),
    ("verify plain.safetensors -t w", "nothing_to_verify"),
    ("remove plain.safetensors", "nothing_parametrized"),
    ("migrate plain.safetensors --to new", "nothing_parametrized"),
    ("add flip.safetensors -t w --chain skew,cayley -o x.safetensors", "out_of_reach"),
    ("add tied.pt -t w --chain symmetric", "tied"),
    ("add plain.safetensors -t w --chain symmetric -o plain.safetensors", "exists"),
    ("add plain.safetensors -t w --chain symmetric -o no/x.safetensors", "output_failed"),
    ("add flip.safetensors -t w --chain so --init strict -o x.safetensors", "check_failed"),
    ("add plain.safetensors -t v --chain symmetric", "usage"),
    ("inspect two.pt --root c", "usage"),
]


@pytest.mark.parametrize(("line", "code"), FAULTS)
def test_the_code_says_what_went_wrong(line, code, broken, paramcli, monkeypatch):
    """In the document, and of the library's error; the exit code is that of its kind."""
    monkeypatch.chdir(broken)
    number = next(number for number, codes in CODES.items() if code in codes)
    before = sorted(broken.rglob("*"))
    assert paramcli(*line.split(), "--json", code=number).json["error"]["code"] == code
    assert sorted(broken.rglob("*")) == before
    name, file, *options = line.split()
    if name == "inspect" and not options:
        with pytest.raises(library.ParamcliError) as caught:
            library.inspect(file)
        assert (caught.value.code, caught.value.exit_code) == (code, number)


def test_every_code_is_told_of():
    """What the source says as a code is in the table, and the table is in the docs, word for word."""
    listed = {code for codes in CODES.values() for code in codes}
    used = set()
    for path in (ROOT / "paramcli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "code":
                used |= {c.value for c in ast.walk(node.value) if isinstance(c, ast.Constant) and c.value is not None}
    kinds = (library.CheckFailed, library.UsageError, library.InputRefused, library.OutputFailed, library.DeviceFull)
    assert used <= listed and {kind.code for kind in kinds} <= listed
    told = (ROOT / "docs" / "exit-codes-and-json.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| \d+ \| (.*?) \|$", told, re.M))
    assert rows == {code: said for codes in CODES.values() for code, said in codes.items()}


# A wrong command line -> the option that it is wrong in.
WRONG = {
    "add m.safetensors --chain skew": "tensor",
    "add m.safetensors -t w": "chain",
    "add m.safetensors -t w --chain skw": "chain",
    "add m.safetensors -t w --chain skew,": "chain",
    "add m.safetensors -t w --chain symmetric,cayley": "chain",
    "add m.safetensors -t w --chain skew:a": "chain",
    "add m.safetensors -t w --chain skew:a=1": "chain",
    "add m.safetensors -t w --chain low_rank:rank=x": "chain",
    "add m.safetensors -t w --chain low_rank": "chain",
    "add m.safetensors -t w --chain interval:a=2": "chain",
    "add m.safetensors -t w --chain matrix_exp,symmetric,cayley": "chain",
    "add m.safetensors -t w --chain orthogonal --spelling old": "chain",
    "add m.safetensors -t w --chain symmetric --mask m.safetensors": "chain",
    "add m.safetensors -t v --chain skew": "tensor",
    "add m.safetensors -t re:( --chain skew": "tensor",
    "add m.safetensors -t w --chain skew --view x": "view",
    "add m.safetensors -t w --chain skew --init x": "init",
    "add m.safetensors -t w --chain skew --seed -1": "seed",
    "add m.safetensors -t w --chain skew --seed x": "seed",
    "add m.safetensors -t w --chain skew --tied x": "tied",
    "add m.safetensors -t w --chain skew --max-change -1": "max-change",
    "add m.safetensors -t w --chain skew --compute-dtype x": "compute-dtype",
    "add m.safetensors -t w --chain skew --device x": "device",
    "add m.safetensors -t w --chain skew --in-place -o x": "in-place",
    "add m.safetensors -t w --chain skew -o x.onnx": "output",
    "add m.safetensors -t w --chain skew -o -": "output",
    "add m.safetensors -t w --chain skew -o m.safetensors -f": "output",
    "add m.safetensors -t w --chain skew --root a": "root",
    "add m.safetensors -t w --chain": "chain",
    "add m.safetensors -t": "tensor",
    "assign m.safetensors -t w": "with",
    "assign m.safetensors -t w --with x": "with",
    "assign m.safetensors -t w --from m.safetensors:v -o x.safetensors": "from",
    "apply r.toml": "ckpt",
    "migrate m.safetensors": "to",
    "migrate m.safetensors --to x": "to",
    "convert m.safetensors": "output",
    "convert m.safetensors -o x.safetensors --keep v": "keep",
    "convert m.safetensors -o x.safetensors --drop v": "drop",
    "convert m.safetensors -o x.safetensors --drop *": "drop",
    "convert m.safetensors -o x.safetensors --strip-prefix v": "strip-prefix",
    "convert m.safetensors -o x.safetensors --dtype v": "dtype",
    "convert m.safetensors -o x --max-shard-size v": "max-shard-size",
    "convert m.safetensors -o x.safetensors --max-shard-size 5GB": "output",
    "verify m.safetensors --constraint x": "constraint",
    "verify m.safetensors --constraint orthogonal,psd": "constraint",
    "verify m.safetensors --tol -1": "tol",
    "verify m.safetensors --tol x": "tol",
    "verify m.safetensors -t w --chain skew": "chain",
    "verify m.safetensors --report x.txt": "report",
    "diff m.safetensors m.safetensors -t v": "tensor",
    "diff m.safetensors": "b",
    "discover m.safetensors --view x": "view",
    "spectrum m.safetensors": "tensor",
    "registry x": "name",
    "registry --family x": "family",
    "inspect": "ckpt",
    "inspect m.safetensors --flot": "flot",
    "--plugin x.py inspect m.safetensors": "plugin",
    "inspekt m.safetensors": "command",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_usage_error_says_which_option(line, tmp_path, paramcli, monkeypatch):
    """`option` is the long name, whatever was typed."""
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.eye(3)}, "m.safetensors")
    first, *rest = line.split()
    words = [first, "--json", *rest] if first != "--plugin" else [*line.split(), "--json"]
    told = paramcli(*words, code=2)
    assert told.json["error"]["option"] == WRONG[line]
    assert told.json["error"]["code"] == "usage" and [*tmp_path.iterdir()] == [tmp_path / "m.safetensors"]
    assert "paramcli --help" not in told.err or first in ("--plugin", "inspekt")


def test_an_option_is_a_keyword_of_the_library(tmp_path):
    """Of each function's error `keyword` is one of its own arguments, and `option` the command line's."""
    file = tmp_path / "m.safetensors"
    save_file({"w": torch.eye(3)}, file)
    wrong = [
        (library.add, dict(tensor="w", chain="skew", max_change=-1), "max-change", "max_change"),
        (library.assign, dict(tensor="w", with_="x"), "with", "with_"),
        (library.assign, dict(tensor="w", from_=""), "from", "from_"),
        (library.verify, dict(tolerance=-1.0), "tol", "tolerance"),
        (library.convert, dict(output=tmp_path / "x", max_shard_size="x"), "max-shard-size", "max_shard_size"),
        (library.verify, dict(constraint="x"), "constraint", "constraint"),
    ]
    for function, arguments, option, keyword in wrong:
        with pytest.raises(library.UsageError) as caught:
            function(file, **arguments)
        assert (caught.value.option, caught.value.keyword) == (option, keyword)
        assert keyword in inspect.signature(function).parameters
    with pytest.raises(library.UsageError) as caught:
        library.register(nn.Linear(2, 2), "weight", "skew", init="x")
    assert caught.value.keyword == "init"


EMPTY = [
    ("inspect", "ckpt"),
    ("verify", "ckpt"),
    ("discover", "ckpt"),
    ("remove", "ckpt"),
    ("migrate --to new", "ckpt"),
    ("convert -o x.safetensors", "ckpt"),
    ("diff m.safetensors", "b"),
    ("convert m.safetensors -o", "output"),
    ("add m.safetensors -t w --chain skew -o", "output"),
    ("apply", "recipe"),
    ("assign m.safetensors -t w --from", "from"),
    ("add m.safetensors -t w --chain mask --mask", "mask"),
    ("verify m.safetensors -t w --constraint symmetric --report", "report"),
    ("spectrum m.safetensors -t w --svg", "svg"),
]


@pytest.mark.parametrize(("line", "option"), EMPTY)
def test_an_empty_path_is_no_folder(line, option, tmp_path, paramcli, monkeypatch):
    """An unset variable between quotes does not name the working folder, which here would even do."""
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.eye(3)}, "m.safetensors")
    words = [*line.split(), "", *(["m.safetensors"] if line == "apply" else [])]
    told = paramcli(words[0], "--json", *words[1:], code=2)
    assert "is an empty path" in told.err and told.json["error"]["option"] == option
    assert [*tmp_path.iterdir()] == [tmp_path / "m.safetensors"]


def test_an_empty_path_is_none_in_python(tmp_path, monkeypatch):
    """The same of the functions."""
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.eye(3)}, "m.safetensors")
    calls = [
        lambda: library.inspect(""),
        lambda: library.verify(""),
        lambda: library.diff("m.safetensors", ""),
        lambda: library.remove(""),
        lambda: library.convert("m.safetensors", ""),
        lambda: library.load(nn.Linear(2, 2), ""),
        lambda: library.save(nn.Linear(2, 2), ""),
    ]
    for call in calls:
        with pytest.raises(library.UsageError, match="is an empty path"):
            call()


def test_an_empty_file_is_converted_where_it_can_be_read_again(tmp_path, paramcli, monkeypatch):
    """No option that was not given is blamed: safetensors can hold nothing, the other containers cannot."""
    monkeypatch.chdir(tmp_path)
    save_file({}, "e.safetensors")
    paramcli("convert", "e.safetensors", "-o", "o.safetensors", "--check")
    assert paramcli("inspect", "o.safetensors", "--json").json["tensors"] == []
    for name in ("o.pt", "o.dcp", "folder"):
        told = paramcli("convert", "e.safetensors", "-o", name, code=3).err
        assert "e.safetensors holds no tensor" in told and not Path(name).exists()
