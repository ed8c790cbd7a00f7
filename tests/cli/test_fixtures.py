"""Laws over every fixture: nothing is lost in silence, and what torch reads is what comes out."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

FILES = [
    "silero_vad_16k.safetensors",
    "beatnet_model_1_weights.pt",
    "facenet_pnet.pt",
    "lpips_alex.pth",
    "ckpt.pt",
    "nested.ckpt",
    "old_norms.pt",
    "tied.pt",
    "sharded",
]


def tensors_of(path):
    """Name -> tensor, as torch and safetensors read the file."""
    if path.is_dir():
        return {k: v for shard in path.glob("*.safetensors") for k, v in load_file(shard).items()}
    if path.suffix == ".safetensors":
        return load_file(path)
    value = torch.load(path, weights_only=True, map_location="cpu")
    return value.get("state_dict", value)


def everything(path):
    """Every top-level name of the file."""
    if path.is_dir() or path.suffix == ".safetensors":
        return []
    value = torch.load(path, weights_only=True, map_location="cpu")
    return [key for key in value if key != "state_dict"] if "state_dict" in value else []


@pytest.mark.parametrize("name", FILES)
def test_every_key_is_in_the_output_or_named(name, fixtures, tmp_path, paramcli):
    """convert keeps every tensor bit for bit and names on stderr what safetensors cannot carry."""
    result = paramcli("convert", fixtures / name, "-o", tmp_path / "out.safetensors")
    got, wanted = load_file(tmp_path / "out.safetensors"), tensors_of(fixtures / name)
    assert set(got) == set(wanted) and all(torch.equal(got[k], wanted[k]) for k in wanted)
    for key in everything(fixtures / name):
        assert key in result.err


@pytest.mark.parametrize("name", FILES)
def test_inputs_are_never_changed(name, fixtures, tmp_path, paramcli):
    """After inspect, discover, convert and diff every input byte is what it was."""
    path = fixtures / name
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    before = [f.read_bytes() for f in files]
    for command in (
        ["inspect", path],
        ["discover", path],
        ["convert", path, "-o", tmp_path / "o.safetensors"],
        ["diff", path, path],
    ):
        paramcli(*command)
    assert [f.read_bytes() for f in files] == before


@pytest.mark.parametrize(
    "name", ["nested.ckpt", "tied.pt", "beatnet_model_1_weights.pt", "facenet_pnet.pt", "lpips_alex.pth"]
)
def test_a_torch_result_is_the_same_object_to_torch(name, fixtures, tmp_path, paramcli):
    """convert -o x.pt: torch loads an equal tree, of equal types, with ties and _metadata kept."""
    paramcli("convert", fixtures / name, "-o", tmp_path / "o.pt")
    a = torch.load(fixtures / name, weights_only=True, map_location="cpu")
    b = torch.load(tmp_path / "o.pt", weights_only=True, mmap=True)
    assert same(a, b)
    state_a, state_b = a.get("state_dict", a), b.get("state_dict", b)
    assert getattr(state_a, "_metadata", None) == getattr(state_b, "_metadata", None)

    def shared(state):
        return [[n for n in state if state[n].data_ptr() == state[m].data_ptr()] for m in state]

    assert shared(state_a) == shared(state_b)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def test_an_edit_of_a_training_checkpoint_keeps_the_wrapper(fixtures, tmp_path, paramcli):
    """-o x.ckpt: epoch and optimizer stay, the new keys stand where the old one stood, the stale optimizer is named."""
    result = paramcli(
        "add", fixtures / "nested.ckpt", "-t", "conv.weight", "--chain", "weight_norm", "-o", tmp_path / "w.ckpt"
    )
    a, b = (torch.load(p, weights_only=True) for p in (fixtures / "nested.ckpt", tmp_path / "w.ckpt"))
    assert b["epoch"] == 3 and b["best"] == 0.5 and same(a["optimizer"], b["optimizer"])
    names = list(a["state_dict"])
    at = names.index("conv.weight")
    assert list(b["state_dict"]) == [
        *names[:at],
        "conv.parametrizations.weight.original0",
        "conv.parametrizations.weight.original1",
        *names[at + 1 :],
    ]
    assert "warning: optimizer" in result.err
    model = torch.nn.ModuleDict(
        {"fc": torch.nn.Linear(16, 16), "conv": torch.nn.Conv1d(4, 6, 3), "out": torch.nn.Linear(16, 4)}
    )
    torch.nn.utils.parametrizations.weight_norm(model["conv"])
    model.load_state_dict(b["state_dict"], strict=True)


def test_safetensors_output_names_what_it_cannot_carry(fixtures, tmp_path, paramcli):
    """epoch, optimizer and best are listed."""
    result = paramcli("convert", fixtures / "nested.ckpt", "-o", tmp_path / "n.safetensors", "--json")
    assert result.json["dropped"] == ["epoch", "optimizer", "best"]
    assert "not carried over: epoch, optimizer, best" in result.err


def test_several_state_dicts_ask_which(tmp_path, paramcli):
    """An EMA copy beside the model: both are listed with their counts, and --root chooses."""
    plain = {"w.weight": torch.randn(3, 3)}
    torch.save(
        {"model": plain, "ema": {"w.weight": torch.zeros(3, 3), "b.weight": torch.ones(2, 2)}}, tmp_path / "e.pt"
    )
    message = paramcli("inspect", tmp_path / "e.pt", code=3).err
    assert "ema (2 tensors)" in message and "model (1 tensor)" in message and "--root" in message
    assert len(paramcli("inspect", tmp_path / "e.pt", "--root", "ema", "--json").json["tensors"]) == 2
    assert "model" in paramcli("inspect", tmp_path / "e.pt", "--root", "modle", code=2).err


def test_split_and_merge_give_back_the_bytes(fixtures, tmp_path, paramcli):
    """Sharding and merging a safetensors file with its metadata is the identity on its bytes."""
    save_file(load_file(fixtures / "silero_vad_16k.safetensors"), tmp_path / "a.safetensors", {"format": "pt"})
    paramcli("convert", tmp_path / "a.safetensors", "-o", tmp_path / "split", "--max-shard-size", "300KB")
    shards = sorted((tmp_path / "split").glob("*.safetensors"))
    index = json.loads((tmp_path / "split/model.safetensors.index.json").read_text())
    assert len(shards) > 2 and set(index["weight_map"].values()) == {s.name for s in shards}
    assert all(s.stat().st_size < 300_000 + 2000 or len(load_file(s)) == 1 for s in shards)
    paramcli("convert", tmp_path / "split", "-o", tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_prefixes_are_stripped_on_whole_segments(tmp_path, paramcli):
    """module. goes, modulex. stays; a collision is an error that names both."""
    save_file({"module.a.w": torch.ones(2), "modulex.w": torch.zeros(2)}, tmp_path / "m.safetensors")
    paramcli("convert", tmp_path / "m.safetensors", "--strip-prefix", "module", "-o", tmp_path / "o.safetensors")
    assert set(load_file(tmp_path / "o.safetensors")) == {"a.w", "modulex.w"}
    save_file({"module.a": torch.ones(2), "a": torch.zeros(2)}, tmp_path / "c.safetensors")
    message = paramcli(
        "convert", tmp_path / "c.safetensors", "--strip-prefix", "module.", "-o", tmp_path / "x.safetensors", code=3
    ).err
    assert "module.a" in message and not (tmp_path / "x.safetensors").exists()


def test_keep_drop_and_cast(fixtures, tmp_path, paramcli):
    """Only what is kept comes over, the rest is named; a cast is torch's .to()."""
    source = fixtures / "ckpt.pt"
    result = paramcli(
        "convert",
        source,
        "--keep",
        "*.weight",
        "--drop",
        "out*",
        "--dtype",
        "bfloat16",
        "-o",
        tmp_path / "k.safetensors",
    )
    got, wanted = load_file(tmp_path / "k.safetensors"), tensors_of(source)
    assert set(got) == {"fc.weight", "conv.weight"} and "out.weight" in result.err
    assert result.out.splitlines()[1].split() == ["fc.weight", "float32", "bfloat16", "16x16"]
    assert all(torch.equal(got[n], wanted[n].bfloat16()) for n in got)


ODD = {
    "f8": torch.arange(16, dtype=torch.uint8).view(torch.float8_e4m3fn),
    "f8b": torch.arange(16, dtype=torch.uint8).view(torch.float8_e5m2),
    "c64": torch.randn(3, dtype=torch.complex64),
    "i64": torch.tensor(5),
    "bool": torch.tensor([True, False]),
    "empty": torch.zeros(0, 3),
    "bf16": torch.randn(3).bfloat16(),
    "u8": torch.arange(5, dtype=torch.uint8),
}


@pytest.mark.parametrize("out", ["o.safetensors", "o.pt"])
@pytest.mark.parametrize("container", ["a.safetensors", "a.pt", "legacy.pt"])
def test_odd_tensors_pass_byte_for_byte(container, out, tmp_path, paramcli):
    """fp8, complex, integers, bool, 0-d and empty tensors come through an edit of another tensor unchanged."""
    state = {**ODD, "w": torch.randn(4, 4)}
    if container.endswith(".safetensors"):
        save_file(state, tmp_path / container)
    else:
        if "legacy" in container:
            state = {k: v for k, v in state.items() if not k.startswith("f8")}
        torch.save(state, tmp_path / container, _use_new_zipfile_serialization="legacy" not in container)
    paramcli("add", tmp_path / container, "-t", "w", "--chain", "symmetric", "-o", tmp_path / out)
    got = load_file(tmp_path / out) if out.endswith("safetensors") else torch.load(tmp_path / out, weights_only=True)
    for name in set(state) - {"w"}:
        assert got[name].dtype == state[name].dtype and got[name].shape == state[name].shape
        assert (
            got[name].contiguous().view(torch.uint8).equal(state[name].view(torch.uint8))
            if state[name].ndim
            else torch.equal(got[name], state[name])
        )


def test_unknown_classes_are_read_past(tmp_path, paramcli):
    """Namespace, OmegaConf-like objects, numpy scalars and a class that exists nowhere: tensors convert, names are
    told.
    """
    import argparse
    import sys
    import types

    import numpy

    gone = types.ModuleType("gone_library")
    gone.Config = type("Config", (dict,), {"__module__": "gone_library"})
    gone.Node = type("Node", (), {"__module__": "gone_library"})
    sys.modules["gone_library"] = gone
    try:
        node = gone.Node()
        node.content = {"lr": 0.1}
        training = {
            "state_dict": {"w.weight": torch.randn(3, 3)},
            "args": argparse.Namespace(lr=1, tags=["a"]),
            "cfg": gone.Config(x=1),
            "node": node,
            "metric": numpy.float64(0.5),
            "array": numpy.arange(3),
        }
        torch.save(training, tmp_path / "t.ckpt")
    finally:
        del sys.modules["gone_library"]
    result = paramcli("convert", tmp_path / "t.ckpt", "-o", tmp_path / "o.safetensors")
    assert torch.equal(load_file(tmp_path / "o.safetensors")["w.weight"], training["state_dict"]["w.weight"])
    for name in ("argparse.Namespace", "gone_library.Config", "gone_library.Node", "args", "metric"):
        assert name in result.err
    paramcli("convert", tmp_path / "t.ckpt", "-o", tmp_path / "o.pt")
    # What was written again unpickles to the same objects where the classes exist.
    sys.modules["gone_library"] = gone
    try:
        back = torch.load(tmp_path / "o.pt", weights_only=False)
    finally:
        del sys.modules["gone_library"]
    assert back["args"] == training["args"] and back["cfg"] == {"x": 1} and back["node"].content == {"lr": 0.1}
    assert back["metric"] == 0.5 and (back["array"] == numpy.arange(3)).all()


def test_a_pickle_that_calls_os_system_does_nothing(tmp_path, paramcli):
    """The message names the global; no marker file appears."""

    class Evil:
        def __reduce__(self):
            import os

            return os.system, (f"touch {tmp_path}/marker",)

    torch.save({"w": torch.ones(2, 2), "x": Evil()}, tmp_path / "evil.pt")
    message = paramcli("convert", tmp_path / "evil.pt", "-o", tmp_path / "o.safetensors", code=3).err
    assert "posix.system" in message or "os.system" in message
    assert not (tmp_path / "marker").exists() and not (tmp_path / "o.safetensors").exists()


def test_diff_finds_what_differs(fixtures, tmp_path, paramcli):
    """Values, shapes, dtypes and missing names are told apart; --tol decides."""
    a = load_file(fixtures / "silero_vad_16k.safetensors")
    b = {k: v.clone() for k, v in a.items()}
    b["conv1.weight"][0, 0, 0] += 0.5
    b["conv2.bias"] = b["conv2.bias"][:10].clone()
    del b["conv3.bias"]
    save_file(b, tmp_path / "b.safetensors")
    document = paramcli(
        "diff", fixtures / "silero_vad_16k.safetensors", tmp_path / "b.safetensors", "--json", code=1
    ).json
    by_name = {t["tensor"]: t for t in document["tensors"]}
    assert document["only_in_a"] == ["conv3.bias"] and not document["equal"]
    assert (
        by_name["conv1.weight"]["max_abs"] == pytest.approx(0.5, rel=1e-5)
        and "shapes" in by_name["conv2.bias"]["detail"]
    )
    assert by_name["conv1.bias"]["equal"]
    paramcli(
        "diff", fixtures / "silero_vad_16k.safetensors", tmp_path / "b.safetensors", "-t", "conv1.weight", "--tol", "1"
    )
    save_file({f"module.{k}": v for k, v in a.items()}, tmp_path / "c.safetensors")
    assert (
        "--strip-prefix module."
        in paramcli("diff", tmp_path / "c.safetensors", fixtures / "silero_vad_16k.safetensors", code=1).err
    )


def test_discover_finds_the_structure_that_is_there(tmp_path, paramcli):
    """Each planted structure is found, and a random matrix has none."""
    torch.manual_seed(0)
    Q = torch.linalg.qr(torch.randn(12, 12))[0].contiguous()
    Q[0] *= torch.linalg.det(Q).sign()
    X = torch.randn(12, 12)
    pruned = X * (torch.arange(12) % 4 < 2)
    planted = {
        "rotation": (Q, "special_orthogonal"),
        "symmetric": (X + X.T, "symmetric"),
        "skew": (X - X.T, "skew"),
        "spd": (X @ X.T + torch.eye(12), "positive_definite"),
        "rank3": (torch.randn(12, 3) @ torch.randn(3, 10), "low_rank:rank=3"),
        "nm": (pruned, "nm:n=2:m=4"),
        "rows": (torch.nn.functional.normalize(torch.randn(9, 5), dim=1), "unit_norm"),
        "copy": (X - X.T, "duplicate of skew"),
        "scaled": (X / torch.linalg.matrix_norm(X, 2), "unit_spectral_norm"),
        "zero": (torch.zeros(4, 4), "zero"),
    }
    save_file(
        {name: tensor.contiguous().clone() for name, (tensor, _) in planted.items()} | {"random": torch.randn(12, 12)},
        tmp_path / "d.safetensors",
    )
    found = {t["tensor"]: t for t in paramcli("discover", tmp_path / "d.safetensors", "--json").json["tensors"]}
    for name, (_, structure) in planted.items():
        if name == "copy":
            continue
        assert structure in [c["constraint"] for c in found[name]["holds"]], (name, found[name])
    pair = {c["constraint"] for n in ("skew", "copy") for c in found[n]["holds"]}
    assert pair & {"duplicate of skew", "duplicate of copy"}
    assert found["random"]["holds"] == []


def test_discover_finds_what_nearly_holds(tmp_path, paramcli):
    """Structure blurred by noise a hundred times above rounding is told with its residual; noise alone has none."""
    torch.manual_seed(0)
    Q, X = torch.linalg.qr(torch.randn(12, 12))[0].contiguous(), torch.randn(12, 12)
    noise = 1e-4 * torch.randn(12, 12)
    planted = {
        "orthogonal": (Q + noise, "orthogonal"),
        "symmetric": (X + X.T + noise, "symmetric"),
        "rank2": (torch.randn(12, 2) @ torch.randn(2, 12) + noise, "low_rank:rank=2"),
        "scaled": (1.001 * X / torch.linalg.matrix_norm(X, 2), "unit_spectral_norm"),
    }
    plain = {f"random{i}": torch.randn(12, 10 + i) for i in range(6)}
    save_file({name: tensor for name, (tensor, _) in planted.items()} | plain, tmp_path / "d.safetensors")
    found = {t["tensor"]: t for t in paramcli("discover", tmp_path / "d.safetensors", "--json").json["tensors"]}
    for name, (_, structure) in planted.items():
        near = {c["constraint"].replace("special_", ""): c for c in found[name]["nearly"]}
        assert structure in near and near[structure]["residual"] > near[structure]["tolerance"], (name, found[name])
    S = torch.linalg.svdvals(planted["rank2"][0].double())
    rank = next(c for c in found["rank2"]["nearly"] if c["constraint"] == "low_rank:rank=2")
    assert rank["residual"] == pytest.approx((S[2] / S[0]).item())
    assert all(found[name]["holds"] == found[name]["nearly"] == [] for name in plain)
