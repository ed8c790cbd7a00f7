"""Weights that are one under several names, or that an output layer has from the embedding, under adapters."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from .merging import merged


def test_a_tied_weight_is_merged_under_each_name_or_untied(adapters, tmp_path, paramcli):
    """torch.save keeps one tensor under two names; which of them the change is for is asked."""
    base, want = merged(adapters / "embedding")
    tensors = load_file(base)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    path = tmp_path / "tied.pt"
    torch.save(tensors, path)
    assert "--tied together" in paramcli("merge", path, "--adapter", adapters / "embedding", code=3).err
    for how, other in (("together", want["model.embed_tokens.weight"]), ("separate", tensors["lm_head.weight"])):
        out = tmp_path / f"{how}.pt"
        paramcli("merge", path, "--adapter", adapters / "embedding", "--tied", how, "-o", out)
        got = torch.load(out)
        torch.testing.assert_close(got["model.embed_tokens.weight"], want["model.embed_tokens.weight"])
        torch.testing.assert_close(got["lm_head.weight"], other)
        same = got["lm_head.weight"].data_ptr() == got["model.embed_tokens.weight"].data_ptr()
        assert same == (how == "together")


@pytest.mark.parametrize("says", [True, False, None])
def test_a_tied_output_layer_is_named(says, tmp_path, paramcli):
    """A base without lm_head.weight, whose embedding is that: it is told, and the prefix merges onto the one tensor."""
    E, A, B = torch.randn(24, 16), torch.randn(2, 16), torch.randn(24, 2)
    base, lora, whole = tmp_path / "base", tmp_path / "lora", tmp_path / "whole"
    for folder in (base, lora, whole):
        folder.mkdir()
    save_file({"model.embed_tokens.weight": E, "model.norm.weight": torch.ones(16)}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({} if says is None else {"tie_word_embeddings": says}))
    head = "base_model.model.lm_head"
    # PEFT saves the layer itself beside its change, where it is the embedding.
    own = {f"{head}.lora_A.weight": A, f"{head}.lora_B.weight": B, f"{head}.base_layer.weight": E}
    save_file(own, lora / "adapter_model.safetensors")
    save_file({f"{head}.weight": E + 1}, whole / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["lm_head"]}
    for folder in (lora, whole):
        (folder / "adapter_config.json").write_text(json.dumps(config))
    said = paramcli("merge", base, "--adapter", lora, code=3).err
    if says is False:
        assert "be tied" not in said and "ties it" not in said and "--adapter-prefix" not in said
        return
    tied = "whose config.json ties it" if says else "where it may be tied"
    assert f"{tied} to model.embed_tokens.weight" in said
    hint = said[said.index("--adapter-prefix") :].split()[:2]
    assert hint == ["--adapter-prefix", "lm_head.=model.embed_tokens."]
    out = tmp_path / "out.safetensors"
    paramcli("merge", base, "--adapter", lora, *hint, "-o", out)
    got = load_file(out)
    torch.testing.assert_close(got["model.embed_tokens.weight"], E + 2 * B @ A)
    assert set(got) == {"model.embed_tokens.weight", "model.norm.weight"}
    # One that replaces the layer is of no tensor that is the embedding too.
    said = paramcli("merge", base, "--adapter", whole, code=3).err
    assert tied in said and "--adapter-prefix" not in said and "the output layer alone" in said
