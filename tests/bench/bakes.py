"""Bakes of weight norms, in time and in memory, against the script that one would write."""

from __future__ import annotations

import subprocess
from pathlib import Path

from . import files
from .harness import IMPORT_TORCH, MB, Bench, Claim, Contender, Result, paramcli, remove, script


def bake(bench: Bench) -> Result:
    """Every weight norm of a safetensors file baked."""
    source = files.write_safetensors(bench.place("model.safetensors"), files.weight_norm_slots(bench.size))
    return _bake(bench, "Bake every weight norm, safetensors", source, bench.place("out.safetensors"))


def bake_zip(bench: Bench) -> Result:
    """The same of a torch zip checkpoint."""
    made = files.write_safetensors(bench.place("made.safetensors"), files.weight_norm_slots(bench.size))
    source = files.write_zip(bench.place("model.pt"), made)
    remove(made)
    return _bake(bench, "Bake every weight norm, torch zip", source, bench.place("out.safetensors"))


def bake_shards(bench: Bench) -> Result:
    """The same of four shards; the script makes one file of them."""
    source = files.write_shards(bench.place("model"), files.weight_norm_slots(bench.size), 4)
    return _bake(bench, "Bake every weight norm, four shards", source, bench.place("out"))


def memory(bench: Bench) -> Result:
    """The peak of a bake does not grow with the checkpoint: eight shards of `size` against one."""
    small = files.write_shards(bench.place("one"), files.weight_norm_slots(bench.size), 1)
    large = files.write_shards(bench.place("eight"), files.weight_norm_slots(8 * bench.size), 8)
    target = bench.place("out")
    figures = bench.interleave(
        {
            "bake, one shard": Contender(paramcli("remove", small, "--bake", "-o", target, "-q"), target),
            "bake, eight shards": Contender(paramcli("remove", large, "--bake", "-o", target, "-q"), target),
        }
    )
    remove(small)
    remove(large)
    peaks = [f.peak_anonymous for f in figures.values()]
    return Result(
        "Memory against size",
        figures,
        "bake, one shard",
        [Claim("peak of eight shards / of one", peaks[1] / peaks[0], 1.1)],
    )


def large(bench: Bench) -> Result:
    """One tensor of `size`: what a bake and an add hold of it, when it is computed by rows."""
    source, target = bench.place("large.safetensors"), bench.place("out.safetensors")
    files.write_safetensors(source, files.large_slots(bench.size))
    figures = bench.interleave(
        {
            "import torch": IMPORT_TORCH,
            "bake, weight norm": Contender(
                paramcli("remove", source, "-t", "norm.weight", "--bake", "-o", target, "-q"), target
            ),
            "add, a mask": Contender(
                paramcli("add", source, "-t", "plain", "--chain", "mask", "-o", target, "-q"), target
            ),
        }
    )
    remove(source)
    bare = figures["import torch"].peak_anonymous
    claims = [
        Claim(f"peak of {name} beyond importing torch", (f.peak_anonymous - bare) / MB, 200, "MB")
        for name, f in figures.items()
        if name != "import torch"
    ]
    return Result("One large tensor", figures, "bake, weight norm", claims)


def _bake(bench: Bench, title: str, source: Path, target: Path) -> Result:
    copied, theirs = bench.place("copy"), bench.place("theirs.safetensors")
    mine = Contender(paramcli("remove", source, "--bake", "-o", target, "-q"), target)
    users = Contender(script("bake", source, theirs), theirs)
    figures = bench.interleave(
        {
            "cp": Contender(["cp", "-r", str(source), str(copied)], copied),
            "load, remove, save_file": users,
            "paramcli remove --bake": mine,
            "import torch": IMPORT_TORCH,
        }
    )
    differing = _differing(mine, users)
    remove(source)
    ours, script_ = figures["paramcli remove --bake"], figures["load, remove, save_file"]
    claims = [
        Claim("wall / the script's", ours.median / script_.median, 0.8),
        Claim("peak memory / the script's", ours.peak_anonymous / script_.peak_anonymous, 1 / 8),
        Claim("tensors whose bytes differ from the script's", differing, 0),
    ]
    return Result(title, figures, "load, remove, save_file", claims)


def _differing(one: Contender, two: Contender) -> int:
    from safetensors import safe_open

    for contender in (one, two):
        subprocess.run(contender.argv, check=True, capture_output=True)
    ours = sorted(one.output.glob("*.safetensors")) if one.output.is_dir() else [one.output]
    count, seen = 0, set()
    with safe_open(two.output, "pt") as b:
        for part in ours:
            with safe_open(part, "pt") as a:
                seen.update(a.keys())
                count += sum(
                    a.get_tensor(key).numpy().tobytes() != b.get_tensor(key).numpy().tobytes()
                    for key in sorted(a.keys())
                )
        assert seen == set(b.keys())
    remove(one.output)
    remove(two.output)
    return count
