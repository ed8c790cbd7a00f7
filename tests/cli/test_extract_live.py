"""extract: PEFT itself loads what is written, and its merge is the tuned model. Runs where PEFT is installed."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")


class Mixed(nn.Module):
    """A layer of every kind; two paths of which one is the end of the other; parameters of no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 18)
        self.block = nn.ModuleDict({"fc": nn.Linear(24, 24), "ln": nn.LayerNorm(18), "norm": nn.LayerNorm(18)})
        self.c = nn.Conv2d(6, 8, 3)
        self.one = nn.Conv2d(12, 16, 1, bias=False)
        self.c1 = nn.Conv1d(8, 6, 5)
        self.up = nn.ConvTranspose2d(6, 8, 3)
        self.deep = nn.Conv2d(8, 8, 3, groups=8)
        self.embed = nn.Embedding(30, 12)
        self.bn = nn.BatchNorm1d(6)
        self.norm = nn.LayerNorm(18)
        self.attn = nn.MultiheadAttention(12, 2)
        self.scale = nn.Parameter(torch.ones(7))


def llama(**options) -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=40, num_key_value_heads=1, **sizes, **options)
    return transformers.LlamaForCausalLM(config)


def qwen() -> nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(vocab_size=40, num_key_value_heads=1, **sizes))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    return transformers.GPT2LMHeadModel(config)


MODELS = {
    "llama": lambda: llama(tie_word_embeddings=False),
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "llama in bfloat16": lambda: llama(tie_word_embeddings=False).to(torch.bfloat16),
    "qwen2": qwen,
    "gpt2": gpt2,
    "mixed": Mixed,
}
# What changes: every tensor; matrices; biases; a little of everything.
CHANGES = {
    "everything": lambda name, T: True,
    "weights": lambda name, T: T.ndim >= 2,
    "biases": lambda name, T: name.endswith("bias"),
    "no matrix": lambda name, T: T.ndim < 2,
    "every third": lambda name, T: sum(map(ord, name)) % 3 == 0,
}


_LLAMA = {
    f"model.layers.{layer}.{name}.weight"
    for layer in range(2)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
} | {f"model.layers.{layer}.self_attn.{name}_proj.weight" for layer in range(2) for name in "kv"}
_GPT2 = {
    f"transformer.h.{n}.{name}.weight"
    for n in range(2)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
}
_MIXED = {f"{name}.weight" for name in ("fc", "block.fc", "c", "one", "c1")}
# What factors of rank 3 are smaller than, and can hold; everything else goes whole.
FACTORED = {
    "llama": _LLAMA | {"lm_head.weight"},
    "llama, tied": _LLAMA,
    "llama in bfloat16": {name for name in _LLAMA if ".k_" not in name and ".v_" not in name} | {"lm_head.weight"},
    "qwen2": _LLAMA | {"lm_head.weight"},
    "gpt2": _GPT2,
    "mixed": _MIXED,
}


IDS = torch.arange(6).unsqueeze(0)


def made(kind):
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def stored(model):
    """The state dict as save_pretrained has it: one name of what is tied."""
    tied = getattr(model, "_tied_weights_keys", None) or {}
    tied = tied if getattr(getattr(model, "config", None), "tie_word_embeddings", False) else {}
    return {name: T.clone().contiguous() for name, T in model.state_dict().items() if name not in tied}


def tuned(base, changes):
    """Changes of rank 3 and a little more, relative to the weight's size."""
    chance, found = torch.Generator().manual_seed(1), {}
    for name, T in base.items():
        found[name] = T
        if changes(name, T) and T.is_floating_point():
            if T.ndim >= 2:
                flat = T.flatten(1)
                rank = 2 if "block" in name else 3
                left, right = (torch.randn(n, rank, generator=chance) for n in flat.shape)
                D = (left @ right.T).reshape(T.shape) * 0.01
            else:
                D = 0.1 * torch.randn(T.shape, generator=chance)
            found[name] = (T.double() + D.double()).to(T.dtype)
        elif changes(name, T) and T.ndim == 0:
            found[name] = T + 5
    return found


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("what", CHANGES)
def test_peft_merges_it_to_the_tuned_model(kind, what, tmp_path, paramcli):
    """And so does `merge`. (In bfloat16 the change is rounded too, and is of full rank then.)"""
    model = made(kind)
    before = stored(model)
    after = tuned(before, CHANGES[what])
    if all(torch.equal(before[name], after[name]) for name in before):
        pytest.skip("nothing of this kind is in the model")
    base, target, out, merged = (tmp_path / name for name in ("base", "tuned.safetensors", "adapter", "m.safetensors"))
    base.mkdir()
    save_file(before, base / "model.safetensors")
    if hasattr(model, "config"):
        (base / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    save_file(after, target)
    half = "bfloat16" in kind
    said = paramcli(
        "extract", target, "--base", base, *(["--rank", 6] if half else ["--max-error", 1e-5]), "-o", out, "--json"
    ).json
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        wrapped = peft.PeftModel.from_pretrained(made(kind), out)
        logits = wrapped(IDS).logits if kind != "mixed" else None
        result = stored(wrapped.merge_and_unload())
    if logits is not None and not half:
        model.load_state_dict(after, strict=False)
        torch.testing.assert_close(logits, model.eval()(IDS).logits, rtol=1e-3, atol=1e-3)
    assert not [w for w in warned if "missing" in str(w.message) or "unexpected" in str(w.message)]
    assert result.keys() == before.keys()
    written = {key for one in said["tensors"] for key in one["writes"]}
    assert written <= load_file(out / "adapter_model.safetensors").keys()
    factored = {one["tensor"] for one in said["tensors"] if one["rank"]}
    assert factored == FACTORED[kind] & {one["tensor"] for one in said["tensors"]}
    bound = {one["tensor"]: float(one["lost"]) for one in said["tensors"]}
    for name, T in after.items():
        D = (T.double() - before[name].double()).norm()
        error = (result[name].double() - T.double()).norm()
        rounding = T.double().norm() * torch.finfo(T.dtype).eps if T.is_floating_point() else 0
        assert error <= bound.get(name, 0) * D * (1 + 1e-6) + rounding, name
    if all(T.dtype != torch.int64 or torch.equal(T, after[name]) for name, T in before.items()):
        paramcli("merge", base, "--adapter", out, "-o", merged)
        for name, T in load_file(merged).items():
            assert (T.double() - result[name].double()).norm() <= 2e-6 * T.double().norm(), name


class Layers(nn.Module):
    """What LyCORIS has modules for."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24, 18)
        self.deep = nn.ModuleDict({"fc": nn.Linear(24, 24, bias=False), "only_bias": nn.Linear(12, 9)})
        self.c = nn.Conv2d(6, 8, 3, bias=False)
        self.c1 = nn.Conv1d(8, 6, 5, bias=False)
        self.ln = nn.LayerNorm(18)
        self.gn = nn.GroupNorm(2, 8)


def test_lycoris_merges_it_to_the_tuned_model(tmp_path, paramcli):
    """Factors of layers and convolutions, norms, a whole layer with its bias, a bias alone."""
    lycoris = pytest.importorskip("lycoris")
    torch.manual_seed(0)
    model = Layers().eval()
    before = stored(model)
    after = tuned(before, lambda name, T: name != "deep.only_bias.weight")
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    pair, out = (tmp_path / "tuned.safetensors", "--base", tmp_path / "base.safetensors"), tmp_path / "a.safetensors"
    kohya = ("--spelling", "kohya", "--prefix", "lycoris_", "--whole", "fc.weight")
    paramcli("extract", *pair, "--max-error", 1e-5, *kohya, "-o", out)
    wrapper, _ = lycoris.create_lycoris_from_weights(1.0, str(out), model, load_file(out))
    wrapper.merge_to(1.0)
    result = model.state_dict()
    for name, T in after.items():
        assert (result[name] - T).norm() <= 2e-6 * T.norm(), name


@pytest.mark.parametrize("tied", [True, False])
def test_added_tokens_are_there_when_the_base_is_resized(tied, tmp_path, paramcli):
    """As the note says: resize first, and PEFT puts the embedding of the tuned model in its place."""
    torch.manual_seed(0)
    model = llama(tie_word_embeddings=tied)
    before = stored(model)
    model.resize_token_embeddings(42)
    after = tuned(stored(model), lambda name, T: True)
    save_file(before, tmp_path / "base.safetensors")
    save_file(after, tmp_path / "tuned.safetensors")
    out = tmp_path / "a"
    pair = tmp_path / "tuned.safetensors", "--base", tmp_path / "base.safetensors"
    assert "has to be resized" in paramcli("extract", *pair, "--max-error", 1e-5, "-o", out).err
    torch.manual_seed(0)
    resized = llama(tie_word_embeddings=tied)
    resized.resize_token_embeddings(42)
    result = stored(peft.PeftModel.from_pretrained(resized, out).merge_and_unload())
    for name, T in after.items():
        assert (result[name] - T).norm() <= 2e-6 * T.norm(), name
