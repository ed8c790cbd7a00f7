"""Baking 8-bit floats in blocks of 128 x 128, against copying the result; and the proof of it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from paramcli.checkpoint.header import Slot, build_header, file_order
from paramcli.checkpoint.source import tensor_bytes

from .harness import IMPORT_TORCH, MB, Bench, Claim, Contender, Result, paramcli, remove, run

SIDE, BLOCK = 4096, 128


def write_model(folder: Path, nbytes: int) -> Path:
    """A folder whose bake has about so many bytes in bfloat16."""
    folder.mkdir()
    count = max(1, nbytes // (2 * SIDE * SIDE))
    names = [f"layers.{number}.weight" for number in range(count)]
    slots = [Slot(name, "F8_E4M3", (SIDE, SIDE)) for name in names]
    slots += [Slot(f"{name}_scale_inv", "F32", (SIDE // BLOCK, SIDE // BLOCK)) for name in names]
    chance = torch.Generator().manual_seed(0)
    codes = (torch.randn(SIDE, SIDE, generator=chance) * 50).to(torch.float8_e4m3fn)
    scale = torch.rand(SIDE // BLOCK, SIDE // BLOCK, generator=chance) + 0.1
    with (folder / "model.safetensors").open("wb") as file:
        file.write(build_header(slots, {"format": "pt"}))
        for slot in file_order(slots):
            file.write(tensor_bytes(codes if slot.dtype == "F8_E4M3" else scale))
    config = {"dtype": "bfloat16", "quantization_config": {"weight_block_size": [BLOCK, BLOCK]}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder / "model.safetensors"


def bake_fp8(bench: Bench) -> Result:
    """To bfloat16; the copy is of a result, as disks make less of bytes that are all alike."""
    source, out, copied = write_model(bench.place("fp8"), bench.size), bench.place("out"), bench.place("copy")
    result = bench.place("plain.safetensors")
    run(Contender(paramcli("remove", source, "-o", result, "-q"), None))
    figures = bench.interleave(
        {
            "cp of the result, then fsync": Contender(["cp", str(result), str(copied)], copied, synced=True),
            "import torch": IMPORT_TORCH,
            "paramcli remove --bake": Contender(
                paramcli("remove", source, "-o", out.with_suffix(".safetensors"), "-q"), out.with_suffix(".safetensors")
            ),
            "paramcli verify --round-trip": Contender(
                paramcli("verify", result, "--base", source, "--round-trip", "-q")
            ),
        }
    )
    remove(source.parent)
    remove(result)
    ours, copy, alone = (
        figures[name] for name in ("paramcli remove --bake", "cp of the result, then fsync", "import torch")
    )
    claims = [
        Claim("(wall - import of torch) / (cp, fsync)", (ours.median - alone.median) / copy.median, 1.2),
        Claim("peak", ours.peak_anonymous / MB, 350, "MB"),
        Claim("peak of the proof", figures["paramcli verify --round-trip"].peak_anonymous / MB, 350, "MB"),
    ]
    return Result("Bake 8-bit floats", figures, "cp of the result, then fsync", claims)
