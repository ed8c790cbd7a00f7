"""Records that the data complete: the header is written before a tensor is read, with room for the longest that can
follow.
"""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from paramcli.checkpoint.disk import direct
from paramcli.checkpoint.header import Slot, build_header, parse_header
from paramcli.checkpoint.write.safetensors_file import SafetensorsSink
from paramcli.surgery.execute import Writing

RECORDED = {"chain": "spectral_norm:dim=1", "constraint": "unit_spectral_norm:dim=1", "state": "baked", "view": None}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """A square spectral norm of dim 1, which only its u and v tell, in the spelling of torch, and something
    beside it.
    """
    torch.manual_seed(0)
    W = torch.randn(24, 24)
    U, _, Vh = torch.linalg.svd(W.T.double())
    parts = {"original": W, "0._u": U[:, 0].float(), "0._v": Vh[0].float()}
    return {
        **{f"l.parametrizations.weight.{role}": tensor.contiguous() for role, tensor in parts.items()},
        "big": torch.randn(500, 500),
    }


def recorded(path) -> dict:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["paramcli"])["tensors"]


@pytest.mark.parametrize("how", [[], ["--check"], ["--verify"], ["--tied", "separate"]])
def test_the_chain_that_the_data_told_is_in_the_file(tensors, tmp_path, paramcli, how):
    """Read by the library, with spaces where the longest record would have gone on, and the same bytes each time."""
    source, out, again = (tmp_path / f"{name}.safetensors" for name in ("in", "out", "again"))
    save_file(tensors, source)
    for target in (out, again):
        told = paramcli("remove", source, "-o", target, "--json", *how).json["tensors"]
        assert [t["chain"] for t in told] == [RECORDED["chain"]]
    assert recorded(out) == {"l.weight": RECORDED}
    assert torch.equal(load_file(out)["big"], tensors["big"]) and out.read_bytes() == again.read_bytes()
    length = int.from_bytes(out.read_bytes()[:8], "little")
    assert out.read_bytes()[8 + length - 4 : 8 + length] == b"    "
    assert [t["tensor"] for t in paramcli("verify", out, "--json").json["tensors"]] == ["l.weight"]


def test_copying_that_has_begun_before_torch_is_there_goes_on(tensors, tmp_path, paramcli, monkeypatch):
    """What is foretold has the same room for the record, past the page cache too."""
    monkeypatch.setattr(direct, "LEAST", 1)
    served, real = [], Writing.serves
    monkeypatch.setattr(Writing, "serves", lambda self, plan: served.append(real(self, plan)) or served[-1])
    save_file(tensors, tmp_path / "in.safetensors")
    paramcli("remove", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors")
    assert served == [True] and recorded(tmp_path / "out.safetensors") == {"l.weight": RECORDED}


def test_in_place(tensors, tmp_path, paramcli):
    """What replaces the input is the checked file with its record."""
    path = tmp_path / "a.safetensors"
    save_file(tensors, path)
    paramcli("remove", path, "--in-place")
    assert recorded(path) == {"l.weight": RECORDED} and set(load_file(path)) == {"l.weight", "big"}


def test_each_shard_completes_its_own(tensors, tmp_path, paramcli):
    """Of a folder only the shard with the tensor has its record, and shards without one are byte for byte what they
    were.
    """
    folder = tmp_path / "model"
    folder.mkdir()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts = [{key: tensor for key, tensor in tensors.items() if (key == "big") == bool(number)} for number in range(2)]
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name, {"format": "pt"})
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    before = (folder / names[1]).read_bytes()
    for arguments in (["-o", tmp_path / "out"], ["--in-place"]):
        paramcli("remove", folder, *arguments)
        result = tmp_path / "out" if "-o" in arguments else folder
        assert recorded(result / names[0]) == {"l.weight": RECORDED}
        assert (result / names[1]).read_bytes() == before
        paramcli("verify", result)


@pytest.mark.parametrize("output", ["out.pt", "out.dcp"])
def test_containers_without_a_record_have_nothing_to_complete(tensors, tmp_path, paramcli, output):
    """A torch file and a DCP folder take the value, and say that the record is lost."""
    source = tmp_path / "in.safetensors"
    save_file(tensors, source)
    assert "no place for the record" in paramcli("remove", source, "-o", tmp_path / output).err
    assert (tmp_path / output).exists()


def test_a_run_that_fails_late_leaves_nothing(tensors, tmp_path, paramcli):
    """u and v that fit no dim: the header had room for either, and no file appears."""
    u = "l.parametrizations.weight.0._u"
    save_file({**tensors, u: torch.nn.functional.normalize(torch.randn(24), dim=0)}, tmp_path / "in.safetensors")
    refused = paramcli("remove", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors", code=3)
    assert "--chain" in refused.err and sorted(p.name for p in tmp_path.iterdir()) == ["in.safetensors"]


def test_a_header_with_room_is_as_long_as_the_longest():
    """Its JSON is that of the metadata alone, and spaces; without room it is what it always was."""
    slots = [Slot("w", "F32", (2,))]
    short, long = {"format": "pt"}, {"format": "pt", "paramcli": "x" * 100}
    roomy = build_header(slots, short, longest=long)
    assert len(roomy) == len(build_header(slots, long)) == len(build_header(slots, long, longest=long))
    assert (
        roomy[8:].rstrip() == build_header(slots, short)[8:].rstrip() and parse_header(roomy[8:], 8).metadata == short
    )


def test_amending_more_than_there_is_room_for_is_a_mistake(tmp_path):
    """A record that is longer than was promised is never cut short: the sink refuses, and nothing appears."""
    slots = [Slot("w", "U8", (2,))]
    with (
        pytest.raises(AssertionError, match="has room for"),
        SafetensorsSink(tmp_path / "a.safetensors", slots, {}, longest={"k": "x"}) as sink,
    ):
        sink.write("w", b"12")
        sink.amend(lambda names: {"k": "x" * 200})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("then", ['command = "remove"', 'command = "assign"\nwith = "orthogonal"'])
def test_no_edit_follows_a_chain_that_only_the_data_tell(tensors, tmp_path, paramcli, then):
    """What is appended to it is in no key: a later edit of the recipe would take it for the spectral norm alone."""
    save_file(tensors, tmp_path / "in.safetensors")
    first = '[[edit]]\ncommand = "add"\ntensor = ["l.weight"]\nchain = "symmetric"\n\n'
    (tmp_path / "r.toml").write_text(f'{first}[[edit]]\n{then}\ntensor = ["l.weight"]\n')
    refused = paramcli(
        "apply", tmp_path / "r.toml", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors", code=3
    )
    assert "in the data" in refused.err and not (tmp_path / "out.safetensors").exists()
    # One after another they are what they are.
    paramcli(
        "add", tmp_path / "in.safetensors", "-t", "l.weight", "--chain", "symmetric", "-o", tmp_path / "p.safetensors"
    )
    paramcli("remove", tmp_path / "p.safetensors", "-o", tmp_path / "b.safetensors")
    value = load_file(tmp_path / "b.safetensors")["l.weight"]
    assert torch.equal(value, value.T)


def test_taking_off_what_the_data_tell_leaves_the_original(tensors, tmp_path, paramcli):
    """Which chain it was matters not where nothing of it is left, and the record has no word on it."""
    save_file(tensors, tmp_path / "in.safetensors")
    edits = ('command = "add"\nchain = "symmetric"', 'command = "remove"\nbake = false')
    (tmp_path / "r.toml").write_text("\n".join(f'[[edit]]\ntensor = ["l.weight"]\n{edit}\n' for edit in edits))
    paramcli("apply", tmp_path / "r.toml", tmp_path / "in.safetensors", "-o", tmp_path / "out.safetensors")
    assert torch.equal(
        load_file(tmp_path / "out.safetensors")["l.weight"], tensors["l.parametrizations.weight.original"]
    )
    paramcli("inspect", tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert "paramcli" not in file.metadata()
