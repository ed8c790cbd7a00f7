"""Checkpoints of any size for the bench, written as streams: 1024 x 1024 float32 matrices, four megabytes each."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from paramcli.checkpoint.header import Slot, build_header, file_order
from paramcli.checkpoint.source import tensor_bytes
from paramcli.dtypes import torch_dtype

SIDE = 1024
EACH = SIDE * SIDE * 4


def layers(nbytes: int) -> list[str]:
    return [f"layers.{index:04d}.weight" for index in range(max(1, nbytes // EACH))]


def plain_slots(nbytes: int) -> list[Slot]:
    return [Slot(name, "F32", (SIDE, SIDE)) for name in layers(nbytes)]


def weight_norm_slots(nbytes: int) -> list[Slot]:
    """As `torch.nn.utils.weight_norm` named them: weight_g and weight_v."""
    return [
        slot
        for name in layers(nbytes)
        for slot in (Slot(f"{name}_g", "F32", (SIDE, 1)), Slot(f"{name}_v", "F32", (SIDE, SIDE)))
    ]


def large_slots(nbytes: int) -> list[Slot]:
    """One matrix of so many bytes as weight norm stores it, and a plain one as large."""
    rows = max(1, nbytes // EACH) * SIDE
    return [
        Slot("norm.weight_g", "F32", (rows, 1)),
        Slot("norm.weight_v", "F32", (rows, SIDE)),
        Slot("plain", "F32", (rows, SIDE)),
    ]


def write_safetensors(path: Path, slots: Iterable[Slot]) -> Path:
    """Random values, made quickly: one matrix of them, rolled on and scaled from tensor to tensor."""
    slots = list(slots)
    block = torch.randn(SIDE, SIDE, generator=torch.Generator().manual_seed(0)) / SIDE**0.5
    with path.open("wb") as file:
        file.write(build_header(slots, {"format": "pt"}))
        for index, slot in enumerate(file_order(slots)):
            for _ in range(0, slot.shape[0], SIDE):
                value = block.roll(index, 0)[: slot.shape[0], : slot.shape[1]] * (1 + index / len(slots))
                file.write(tensor_bytes(value.contiguous()))
    return path


def write_vocoder(path: Path, factor: float = 1.0) -> Path:
    """500 convolutions and their biases as a vocoder has them (HiFi-GAN, BigVGAN): 1,000 tensors, 230 MB."""
    from safetensors.torch import save_file

    generator, state = torch.Generator().manual_seed(0), {}
    sizes = [c for c, count in ((512, 12), (256, 36), (128, 120), (64, 120), (32, 212)) for _ in range(count)]
    for index, c in enumerate(sizes):
        state[f"resblocks.{index}.weight"] = (
            0.01 * factor * torch.randn(c, c, (3, 7, 11)[index % 3], generator=generator)
        )
        state[f"resblocks.{index}.bias"] = 0.01 * factor * torch.randn(c, generator=generator)
    save_file(state, path, {"format": "pt"})
    return path


def write_shards(folder: Path, slots: Iterable[Slot], count: int) -> Path:
    """The same slots over `count` shards with an index."""
    slots = list(slots)
    folder.mkdir()
    weight_map = {}
    for number in range(count):
        part = slots[number * len(slots) // count : (number + 1) * len(slots) // count]
        name = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        write_safetensors(folder / name, part)
        weight_map.update({slot.name: name for slot in part})
    total = sum(slot.nbytes for slot in slots)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map})
    )
    return folder


def write_zip(path: Path, source: Path) -> Path:
    """The tensors of a safetensors file as torch.save writes them, each its own storage; they are never all
    in memory.
    """
    from safetensors import safe_open

    with safe_open(source, "pt") as opened, source.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        state: dict[str, Tensor] = {}
        for name in list(opened.keys()):
            entry = header[name]
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            dtype = torch_dtype(entry["dtype"])
            state[name] = torch.frombuffer(
                mapped, dtype=dtype, offset=begin, count=(end - begin) // dtype.itemsize
            ).reshape(entry["shape"])
        torch.save(state, path)
    return path


def write_many_small(path: Path, count: int = 1000, side: int = 64) -> Path:
    """`count` square matrices, small enough that what surrounds the maths costs more than it."""
    generator = torch.Generator().manual_seed(0)
    slots = [Slot(f"blocks.{index:04d}.weight", "F32", (side, side)) for index in range(count)]
    with path.open("wb") as file:
        file.write(build_header(slots, {"format": "pt"}))
        for _ in file_order(slots):
            skew = torch.randn(side, side, generator=generator).triu(1) / side**0.5
            skew = skew - skew.mT
            eye = torch.eye(side)
            file.write(tensor_bytes(torch.linalg.solve(eye - skew, eye + skew).contiguous()))
    return path
