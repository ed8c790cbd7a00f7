"""Merging an adapter into every linear layer of a model, against copying the model, PEFT, and another tool.

PEFT_PYTHON names a Python that has peft and transformers, SFT the executable of sft-cli; without them paramcli is
alone.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from paramcli.checkpoint.header import Slot, build_header, file_order
from paramcli.checkpoint.source import tensor_bytes

from .harness import IMPORT_TORCH, MB, Bench, Claim, Contender, Result, paramcli, remove

HIDDEN, INTERMEDIATE, WORDS, RANK = 2048, 5504, 32000, 16
# As Llama's configuration has them.
PROJECTIONS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
NORMS = ("input_layernorm", "post_attention_layernorm")


def write_model(folder: Path, nbytes: int) -> tuple[Path, list[str]]:
    """(a Llama of about so many bytes in bfloat16, the modules of its linear layers)"""
    layer = 2 * sum(out * inputs for out, inputs in PROJECTIONS.values())
    count = max(1, (nbytes - 4 * WORDS * HIDDEN) // layer)
    folder.mkdir()
    slots = [Slot(f"{name}.weight", "BF16", (WORDS, HIDDEN)) for name in ("model.embed_tokens", "lm_head")]
    slots.append(Slot("model.norm.weight", "BF16", (HIDDEN,)))
    modules = [f"model.layers.{number}.{name}" for number in range(count) for name in PROJECTIONS]
    slots += [Slot(f"{name}.weight", "BF16", PROJECTIONS[name.split(".", 3)[3]]) for name in modules]
    slots += [
        Slot(f"model.layers.{number}.{norm}.weight", "BF16", (HIDDEN,)) for number in range(count) for norm in NORMS
    ]
    block = (torch.randn(WORDS, HIDDEN, generator=torch.Generator().manual_seed(0)) / HIDDEN**0.5).bfloat16().flatten()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(build_header(slots, {"format": "pt"}))
        for index, slot in enumerate(file_order(slots)):
            size = slot.nbytes // 2
            begin = 1009 * index % (len(block) - size) if size < len(block) else 0
            file.write(tensor_bytes(block[begin : begin + size].clone()))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": count,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": WORDS,
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, modules


def write_adapter(folder: Path, modules: list[str]) -> Path:
    """A LoRA of rank 16 on all of them."""
    folder.mkdir()
    chance, tensors = torch.Generator().manual_seed(1), {}
    for name in modules:
        out, inputs = PROJECTIONS[name.split(".", 3)[3]]
        tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(RANK, inputs, generator=chance)
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(out, RANK, generator=chance) / 1000
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    targets = sorted({name.rpartition(".")[2] for name in modules})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


PEFT = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
PeftModel.from_pretrained(base, sys.argv[2]).merge_and_unload().save_pretrained(sys.argv[3])
"""


def merge(bench: Bench) -> Result:
    """A rank of 16 on every linear layer."""
    base, modules = write_model(bench.place("base"), bench.size)
    adapter, copied, target = write_adapter(bench.place("lora"), modules), bench.place("copy"), bench.place("merged")
    weights, out = base / "model.safetensors", bench.place("out.safetensors")
    contenders = {
        "cp, then fsync": Contender(["cp", str(weights), str(copied)], copied, synced=True),
        "import torch": IMPORT_TORCH,
        "paramcli merge": Contender(paramcli("merge", weights, "--adapter", adapter, "-o", out, "-q"), out),
    }
    if python := os.environ.get("PEFT_PYTHON"):
        contenders["peft, merge_and_unload"] = Contender(
            [python, "-c", PEFT, str(base), str(adapter), str(target)], target
        )
    if sft := os.environ.get("SFT"):
        tensors = adapter / "adapter_model.safetensors"
        contenders["sft-cli lora merge"] = Contender(
            [sft, "lora", "merge", str(weights), str(tensors), "-o", str(out)], out
        )
    figures = bench.interleave(contenders)
    for path in (base, adapter):
        remove(path)
    ours, copy, torch_alone = (figures[name] for name in ("paramcli merge", "cp, then fsync", "import torch"))
    claims = [
        Claim("(wall - import of torch) / (cp, fsync)", (ours.median - torch_alone.median) / copy.median, 1.5),
        Claim("peak", ours.peak_anonymous / MB, 350, "MB"),
    ]
    return Result("Merge an adapter of rank 16", figures, "cp, then fsync", claims)
