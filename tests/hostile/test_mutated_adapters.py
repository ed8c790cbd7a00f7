"""Adapters with something changed: refused in one line with nothing written, or merged as what the file says now.

What is merged is computed again from the changed files, by the formula, with the library that reads them. Seeds are
fixed. A hundred mutations of each part run always; 10,000 with -m slow.
"""

from __future__ import annotations

import json
import math
import random
import re
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from paramcli.cli.app import run as run_command

from .test_mutations import HANG_CPU_SECONDS, Hang, Part, mutate, peak_memory

BASE = {"m.q.weight": torch.randn(6, 5), "m.v.weight": torch.randn(4, 5).half(), "n.weight": torch.ones(3)}
MODULES = {name.removesuffix(".weight"): T.shape for name, T in BASE.items() if T.ndim == 2}
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "use_rslora": False, "alpha_pattern": {"q": 5}, "bias": "none"}


def factors(up: str, down: str, named: Callable[[str], str]) -> dict[str, Tensor]:
    chance, tensors = torch.Generator().manual_seed(0), {}
    for module, (out, inputs) in MODULES.items():
        tensors[f"{named(module)}.{down}"] = torch.randn(2, inputs, generator=chance)
        tensors[f"{named(module)}.{up}"] = torch.randn(out, 2, generator=chance).bfloat16()
    return tensors


PEFT = factors("lora_B.weight", "lora_A.weight", lambda module: f"base_model.model.{module}")
KOHYA = factors("lora_up.weight", "lora_down.weight", lambda module: f"lora_unet_{module.replace('.', '_')}")
KOHYA |= {f"lora_unet_{module.replace('.', '_')}.alpha": torch.tensor(3.0) for module in MODULES}


def of_peft(folder: Path) -> dict[str, Tensor]:
    """What the folder adds to each weight, by PEFT's formula; KeyError and the like where it says nothing of one."""
    config = json.loads((folder / "adapter_config.json").read_bytes().decode())
    tensors = dict(load_file(folder / "adapter_model.safetensors"))
    made = {}
    assert config["peft_type"] == "LORA"
    for module in MODULES:
        A, B = (tensors.pop(f"base_model.model.{module}.lora_{part}.weight") for part in "AB")
        patterns = config.get("alpha_pattern") or {}
        own = [value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", module)]
        alpha, rank = (own or [config["lora_alpha"]])[0], config["r"]
        assert A.shape[0] == rank
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        made[f"{module}.weight"] = scale * B.double() @ A.double()
    assert not tensors
    return made


def of_kohya(path: Path) -> dict[str, Tensor]:
    # One changed byte makes diffusers' spelling of kohya's.
    tensors, made = {key.replace(".lora.", ".lora_"): T for key, T in load_file(path).items()}, {}
    for module in MODULES:
        flat = f"lora_unet_{module.replace('.', '_')}"
        down, up = tensors.pop(f"{flat}.lora_down.weight"), tensors.pop(f"{flat}.lora_up.weight")
        alpha = tensors.pop(f"{flat}.alpha", torch.tensor(0)).double().item()
        made[f"{module}.weight"] = (alpha or down.shape[0]) / down.shape[0] * up.double() @ down.double()
    assert not tensors
    return made


def whole_peft(folder: Path, config: bytes, weights: bytes) -> Path:
    (folder / "lora").mkdir(exist_ok=True)
    (folder / "lora" / "adapter_config.json").write_bytes(config)
    (folder / "lora" / "adapter_model.safetensors").write_bytes(weights)
    return folder / "lora"


def _config(folder: Path) -> Part:
    return Part(json.dumps(CONFIG).encode(), lambda data: whole_peft(folder, data, save(PEFT)))


def _weights(folder: Path) -> Part:
    return Part(save(PEFT), lambda data: whole_peft(folder, json.dumps(CONFIG).encode(), data))


def _header(folder: Path) -> Part:
    data = save(PEFT)
    size = int.from_bytes(data[:8], "little")
    build = _weights(folder).build
    return Part(data[8 : 8 + size], lambda text: build(struct.pack("<Q", len(text)) + text + data[8 + size :]))


def _kohya(folder: Path) -> Part:
    def build(data: bytes) -> Path:
        (folder / "kohya.safetensors").write_bytes(data)
        return folder / "kohya.safetensors"

    return Part(save(KOHYA), build)


def _kohya_header(folder: Path) -> Part:
    data, build = save(KOHYA), _kohya(folder).build
    size = int.from_bytes(data[:8], "little")
    return Part(data[8 : 8 + size], lambda text: build(struct.pack("<Q", len(text)) + text + data[8 + size :]))


KINDS = {
    "configuration": _config,
    "weights": _weights,
    "header": _header,
    "kohya": _kohya,
    "kohya header": _kohya_header,
}


def outcome(base: Path, adapter: Path, out: Path) -> str:
    """'merged' or 'refused'; what is merged is what the changed files say."""
    out.unlink(missing_ok=True)

    def alarm(number, frame):
        raise Hang

    before = signal.signal(signal.SIGPROF, alarm)
    signal.setitimer(signal.ITIMER_PROF, HANG_CPU_SECONDS)
    try:
        code = run_command(["merge", str(base), "--adapter", str(adapter), "-o", str(out), "--quiet"])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    assert code in (0, 3) and out.exists() == (code == 0), code
    if code == 0:
        change, got = (of_peft if adapter.is_dir() else of_kohya)(adapter), load_file(out)
        assert got.keys() == BASE.keys()
        for name, before_it in BASE.items():
            want = before_it.double() + change.get(name, 0)
            off = (got[name].double() - want).abs().max()
            assert off <= 4 * torch.finfo(before_it.dtype).eps * want.abs().max(), f"{name} is off by {off}"
    return "refused" if code else "merged"


def run(kind: str, mutants: Iterator[tuple[str, bytes]], folder: Path, capfd) -> dict[str, int]:
    base, out, part = folder / "base.safetensors", folder / "out.safetensors", KINDS[kind](folder)
    save_file(BASE, base)
    assert outcome(base, part.build(part.data), out) == "merged"
    counts = {"merged": 0, "refused": 0}
    for what, data in mutants:
        capfd.readouterr()
        try:
            counts[result := outcome(base, part.build(data), out)] += 1
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            pytest.fail(f"{kind}, {what}: {type(error).__name__}: {error}; {data[:2000].hex()}")
        error = capfd.readouterr().err
        assert "Traceback" not in error and (result == "merged" or error.startswith("error: ")), error
    return counts


def randomly(kind: str, folder: Path, count: int) -> Iterator[tuple[str, bytes]]:
    data = KINDS[kind](folder).data
    for number in range(count):
        yield f"mutation {number}", mutate(data, random.Random(number))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hundred_mutations(kind, tmp_path, capfd):
    """Refused in one line, or merged as the formula gives it of what the files say now."""
    counts = run(kind, randomly(kind, tmp_path, 100), tmp_path, capfd)
    assert counts["refused"] > 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_mutations(kind, tmp_path, capfd):
    """Of each part; no memory is taken for what is not there."""
    before = peak_memory()
    counts = run(kind, randomly(kind, tmp_path, 10_000), tmp_path, capfd)
    with capfd.disabled():
        print(kind, counts)
    assert counts["refused"] > 3000 and peak_memory() - before < 500 << 20
