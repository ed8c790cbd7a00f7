"""The documents of --json: these keys, with these types; others may be added."""

import pytest

NUMBER = (int, float)
EDIT = {
    "command": str,
    "checkpoint": str,
    "output": str,
    "dry_run": bool,
    "tensors": list,
    "untouched": int,
    "dropped": list,
}
EDITED = {
    "tensor": str,
    "action": str,
    "chain": str,
    "view": str,
    "shape": list,
    "dtype": str,
    "moved": NUMBER,
    "residual": NUMBER,
    "tolerance": NUMBER,
    "reads": list,
    "writes": list,
}


def keys_and_types(document, wanted):
    """Each key of `wanted` with its type; None stands for what there is none of."""
    assert set(wanted) <= set(document)
    for key, kind in wanted.items():
        assert document[key] is None or isinstance(document[key], kind), key


@pytest.fixture
def parametrized(fixtures, tmp_path, paramcli):
    out = tmp_path / "p.safetensors"
    paramcli(
        "add",
        fixtures / "silero_vad_16k.safetensors",
        "-t",
        "lstm_cell.weight_hh",
        "--view",
        "blocks=4",
        "--chain",
        "skew,cayley",
        "-o",
        out,
    )
    return out


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        ["add", "CKPT", "-t", "conv1.weight", "--chain", "weight_norm"],
        ["assign", "CKPT", "-t", "lstm_cell.weight_hh", "--from", "CKPT"],
        ["remove", "CKPT", "--bake"],
        ["remove", "CKPT", "--no-bake"],
    ],
    ids=lambda a: " ".join(a[:1] + a[-1:]),
)
def test_edits(arguments, dry, parametrized, tmp_path, paramcli):
    """add, assign and remove; a dry run has the same keys without numbers."""
    line = [str(parametrized) if a == "CKPT" else a for a in arguments]
    document = paramcli(*line, "-o", tmp_path / "o.safetensors", "--json", *["-n"] * dry).json
    keys_and_types(document, EDIT)
    assert (
        document["dry_run"] is dry
        and document["command"] == arguments[0]
        and (tmp_path / "o.safetensors").exists() is not dry
    )
    for tensor in document["tensors"]:
        keys_and_types(tensor, EDITED)
        assert (tensor["moved"] is None) == (dry or "--no-bake" in arguments)
    assert document["untouched"] == 14


def test_verify(parametrized, paramcli):
    """A verdict for each tensor, with its checks."""
    document = paramcli("verify", parametrized, "--json").json
    keys_and_types(document, {"checkpoint": str, "ok": bool, "tensors": list})
    tensor = document["tensors"][0]
    keys_and_types(
        tensor,
        {
            "tensor": str,
            "form": str,
            "chain": str,
            "view": str,
            "shape": list,
            "dtype": str,
            "checks": list,
            "ok": bool,
        },
    )
    keys_and_types(
        tensor["checks"][0], {"constraint": str, "residual": NUMBER, "tolerance": NUMBER, "ok": bool, "detail": str}
    )


def test_inspect(parametrized, fixtures, paramcli):
    """The container, the roots, each tensor, and what is not a tensor."""
    whole = {
        "checkpoint": str,
        "container": str,
        "bytes": int,
        "roots": list,
        "tensors": list,
        "metadata": dict,
        "extra": list,
    }
    tensor = {
        "tensor": str,
        "form": str,
        "chain": str,
        "view": str,
        "shape": list,
        "dtype": str,
        "bytes": int,
        "keys": list,
        "tied": list,
    }
    for path in (parametrized, fixtures / "nested.ckpt", fixtures / "tied.pt", fixtures / "old_norms.pt"):
        document = paramcli("inspect", path, "--json").json
        keys_and_types(document, whole)
        for entry in document["tensors"]:
            keys_and_types(entry, tensor)
        for entry in document["extra"]:
            keys_and_types(entry, {"name": str, "type": str})
    assert any(entry["tied"] for entry in paramcli("inspect", fixtures / "tied.pt", "--json").json["tensors"])


def test_registry(paramcli):
    """Every entry, and one by name."""
    wanted = {
        "name": str,
        "summary": str,
        "arguments": list,
        "domain": list,
        "image": list,
        "right_inverse": str,
        "source": str,
    }
    for arguments in ([], ["cayley"]):
        for entry in paramcli("registry", *arguments, "--json").json["parametrizations"]:
            assert set(wanted) <= set(entry)


def test_errors(fixtures, tmp_path, paramcli):
    """One document for every exit code, on stdout, beside the line on stderr."""
    source = fixtures / "silero_vad_16k.safetensors"
    lines = {
        1: ["verify", source, "-t", "lstm_cell.weight_hh", "--constraint", "orthogonal", "--view", "blocks=4"],
        2: ["add", source, "-t", "nope", "--chain", "skew"],
        3: ["add", source, "-t", "conv1.bias", "--chain", "skew"],
        4: ["add", source, "-t", "conv1.weight", "--chain", "weight_norm", "-o", tmp_path / "none" / "o.safetensors"],
    }
    for code, line in lines.items():
        result = paramcli(*line, "--json", code=code)
        if code > 1:
            wanted = {"code": str, "message": str, "hint": str, "option": str, "tensor": str, "path": str}
            keys_and_types(result.json["error"], wanted)
            assert result.json["error"]["message"] in result.err
        else:
            assert result.json["ok"] is False
