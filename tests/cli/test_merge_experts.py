"""Changes of experts that lie in one tensor, or each in its own."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from .merging import merged, require_merged, sharded

APART = {
    "Mixtral's files": ("block_sparse_moe.experts", ("w1", "w3", "w2")),
    "Qwen's files": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
}


@pytest.mark.parametrize("spelt", APART)
def test_fused_changes_fit_experts_that_lie_apart(spelt, adapters, tmp_path, paramcli):
    """The rows of gate_up_proj are those of the gate and then those of up; each expert's delta is its own."""
    path, want = merged(adapters / "experts")
    module, (gate, up, down) = APART[spelt]

    def apart(tensors):
        made = {}
        for name, tensor in tensors.items():
            where, _, leaf = name.rpartition(".")
            if ".mlp.experts." not in name:
                made[name] = tensor
                continue
            where = where.replace("mlp.experts", module)
            for expert, W in enumerate(tensor):
                parts = {gate: W[:20], up: W[20:]} if leaf == "gate_up_proj" else {down: W}
                made.update({f"{where}.{expert}.{part}.weight": T.clone() for part, T in parts.items()})
        return made

    base = tmp_path / "base.safetensors"
    save_file(apart(load_file(path)), base)
    out = tmp_path / "out.safetensors"
    said = paramcli("merge", base, "--adapter", adapters / "experts", "-o", out, "--json").json
    require_merged(load_file(out), load_file(base), apart(want))
    assert len(said["tensors"]) == 1 + 3 * 3
    folder = sharded(load_file(base), tmp_path / "model")
    paramcli("merge", folder, "--adapter", adapters / "experts")
    parts = (tmp_path / "model.merged").glob("*.safetensors")
    require_merged({k: t for part in parts for k, t in load_file(part).items()}, load_file(base), apart(want))
    added, baked = tmp_path / "added.safetensors", tmp_path / "baked.safetensors"
    paramcli("add", base, "--adapter", adapters / "experts", "-o", added)
    paramcli("remove", added, "-o", baked)
    require_merged(load_file(baked), load_file(base), apart(want))


def expert_adapter(folder, experts, rank, out, inputs, **config):
    """A PEFT folder of one fused parameter, by hand."""
    folder.mkdir()
    chance = torch.Generator().manual_seed(0)
    A, B = torch.randn(experts * rank, inputs, generator=chance), torch.randn(out, rank * experts, generator=chance)
    where = "base_model.model.m.experts"
    save_file({f"{where}.lora_A.weight": A, f"{where}.lora_B.weight": B}, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_parameters": ["experts.w"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    A, B = A.view(experts, rank, inputs).double(), B.view(out, rank, experts).double()
    return torch.einsum("ore,eri->eoi", B, A)


@pytest.mark.parametrize("across", [False, True])
def test_large_experts_are_merged_by_rows(across, tmp_path, paramcli):
    """A tensor of 12 MB goes expert by expert, whichever way it is stored."""
    change = expert_adapter(tmp_path / "adapter", 12, 4, 640, 400)
    change = change.mT if across else change
    W = torch.randn(change.shape)
    save_file({"m.experts.w": W.contiguous(), "n.weight": torch.ones(3)}, tmp_path / "base.safetensors")
    out = tmp_path / "out.safetensors"
    paramcli("merge", tmp_path / "base.safetensors", "--adapter", tmp_path / "adapter", "-o", out)
    torch.testing.assert_close(load_file(out)["m.experts.w"].double(), W.double() + change, rtol=1e-5, atol=1e-4)


def test_experts_that_do_not_fit_are_refused(tmp_path, paramcli):
    """Another size, another number of experts, square ones of which nothing tells how they lie, names that are none."""
    expert_adapter(tmp_path / "adapter", 2, 3, 8, 8)
    base = tmp_path / "base.safetensors"
    for shape, said in (((2, 8, 8), "is square for each expert"), ((4, 8, 8), "4x8x8"), ((2, 8, 9), "2x8x9")):
        save_file({"m.experts.w": torch.ones(shape)}, base)
        assert said in paramcli("merge", base, "--adapter", tmp_path / "adapter", code=3).err
    save_file({"m.experts.x": torch.ones(2, 8, 8)}, base)
    assert "m.experts.w, which the base has" in paramcli("merge", base, "--adapter", tmp_path / "adapter", code=3).err
    expert_adapter(tmp_path / "odd", 2, 3, 8, 8, target_parameters="experts.w")
    assert "no list of names" in paramcli("merge", base, "--adapter", tmp_path / "odd", code=3).err
