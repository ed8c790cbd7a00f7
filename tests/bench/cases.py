"""The cases: what is measured, against what, and the numbers promised of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from . import adapters, entries, files, quantized, small
from .harness import MB, PYTHON, Bench, Claim, Contender, Figures, Result, paramcli, remove, script

IMPORT_TORCH = Contender([PYTHON, "-c", "import torch"])


def startup(bench: Bench) -> Result:
    """Commands that need no torch against an interpreter that does nothing."""
    many = files.write_many_small(bench.place("many.safetensors"))
    reader = (
        "import sys; from safetensors import safe_open; f = safe_open(sys.argv[1], 'np'); "
        "print([(k, f.get_slice(k).get_shape()) for k in f.keys()])"
    )
    figures = bench.interleave(
        {
            "python -c pass": Contender([PYTHON, "-c", "pass"]),
            "paramcli --help": Contender(paramcli("--help")),
            "paramcli registry": Contender(paramcli("registry")),
            "paramcli inspect, 1,000 tensors": Contender(paramcli("inspect", many)),
            "safetensors lists the same": Contender([PYTHON, "-c", reader, str(many)]),
            "import torch": IMPORT_TORCH,
        }
    )
    remove(many)
    bare = figures["python -c pass"].median
    claims = [
        Claim("--help beyond python -c pass", figures["paramcli --help"].median - bare, 0.15, "s"),
        Claim(
            "inspect of 1,000 tensors beyond python -c pass",
            figures["paramcli inspect, 1,000 tensors"].median - bare,
            0.2,
            "s",
        ),
    ]
    return Result("Start-up", figures, "python -c pass", claims)


def _edit(bench: Bench, title: str, source: Path, target: Path, limit: float, name: str) -> Result:
    copied = bench.place("copy")
    cp = ["cp", "-r", str(source), str(copied)]
    add = paramcli("add", source, "-t", name, "--chain", "symmetric", "-o", target, "-q")
    contenders = {
        "cp": Contender(cp, copied),
        "cp, then fsync": Contender(cp, copied, synced=True),
        "import torch": IMPORT_TORCH,
        "paramcli add, one tensor": Contender(add, target),
        "paramcli add --no-sync": Contender([*add, "--no-sync"], target),
    }
    if not source.is_dir():
        contenders["load, edit, save_file"] = Contender(script("edit", source, target, name), target)
        contenders.update(_brainsurgery(source, target, name))
    figures = bench.interleave(contenders)
    ours, torch = figures["paramcli add, one tensor"], figures["import torch"]
    quick, copy = figures["paramcli add --no-sync"], figures["cp"]
    claims = [
        Claim("(wall - import of torch) / cp", (ours.median - torch.median) / copy.median, limit),
        Claim("wall / (cp, fsync)", ours.median / figures["cp, then fsync"].median, 1),
        Claim("--no-sync: (wall - import of torch) / cp", (quick.median - torch.median) / copy.median, 1.1),
        Claim(
            "peak beyond importing torch and 3 x the tensor",
            (ours.peak_anonymous - torch.peak_anonymous - 3 * files.EACH) / MB,
            60,
            "MB",
        ),
    ]
    return Result(title, figures, "cp", claims)


def _brainsurgery(source: Path, target: Path, name: str) -> dict[str, Contender]:
    """The other tool that edits checkpoints from the command line, where BRAINSURGERY names its executable."""
    tool = os.environ.get("BRAINSURGERY")
    if not tool or source.suffix != ".safetensors":
        return {}
    plan = source.with_suffix(".yaml")
    plan.write_text(
        f"inputs:\n  - {source}\ntransforms:\n  - scale_: {{target: '{name}', by: 2.0}}\noutput:\n  path: {target}\n"
    )
    return {"brainsurgery, one tensor": Contender([tool, str(plan)], target)}


def edit_safetensors(bench: Bench) -> Result:
    """One tensor of a safetensors file."""
    source = files.write_safetensors(bench.place("model.safetensors"), files.plain_slots(bench.size))
    try:
        return _edit(
            bench,
            "One-tensor edit, safetensors",
            source,
            bench.place("out.safetensors"),
            1.15,
            files.layers(bench.size)[1],
        )
    finally:
        remove(source)


def edit_zip(bench: Bench) -> Result:
    """One tensor of a torch zip checkpoint, whose checksums are compared on the way."""
    made = files.write_safetensors(bench.place("made.safetensors"), files.plain_slots(bench.size))
    source = files.write_zip(bench.place("model.pt"), made)
    remove(made)
    try:
        return _edit(
            bench,
            "One-tensor edit, torch zip",
            source,
            bench.place("out.safetensors"),
            1.25,
            files.layers(bench.size)[1],
        )
    finally:
        remove(source)


def edit_shards(bench: Bench) -> Result:
    """One tensor of four shards."""
    source = files.write_shards(bench.place("model"), files.plain_slots(bench.size), 4)
    try:
        return _edit(
            bench, "One-tensor edit, four shards", source, bench.place("out"), 1.15, files.layers(bench.size)[1]
        )
    finally:
        remove(source)


def migrate(bench: Bench) -> Result:
    """Every tensor renamed, no byte of one changed."""
    source = files.write_safetensors(bench.place("model.safetensors"), files.weight_norm_slots(bench.size))
    copied, target = bench.place("copy"), bench.place("out.safetensors")
    command = paramcli("migrate", source, "--to", "new", "-o", target, "-q")
    figures = bench.interleave(
        {
            "cp": Contender(["cp", str(source), str(copied)], copied),
            "cp, then fsync": Contender(["cp", str(source), str(copied)], copied, synced=True),
            "paramcli migrate": Contender(command, target),
            "paramcli migrate --no-sync": Contender([*command, "--no-sync"], target),
        }
    )
    remove(source)
    ours, quick = figures["paramcli migrate"], figures["paramcli migrate --no-sync"]
    claims = [
        Claim("wall / cp", ours.median / figures["cp"].median, 1.1),
        Claim("wall / (cp, fsync)", ours.median / figures["cp, then fsync"].median, 1),
        Claim("--no-sync: wall / cp", quick.median / figures["cp"].median, 1.1),
    ]
    return Result("Rename every tensor", figures, "cp", claims)


def questions(bench: Bench) -> Result:
    """What is asked of a vocoder's 1,000 tensors, beyond importing torch."""
    import subprocess

    one = files.write_vocoder(bench.place("one.safetensors"))
    two = files.write_vocoder(bench.place("two.safetensors"), 1 + 1e-6)
    normed = bench.place("normed.safetensors")
    add = paramcli("add", one, "-t", "*.weight", "--chain", "weight_norm", "-o", normed, "-q")
    subprocess.run(add, check=True, capture_output=True)
    asked = {
        "paramcli diff": Contender(paramcli("diff", one, two)),
        "paramcli discover": Contender(paramcli("discover", one)),
        "paramcli verify": Contender(paramcli("verify", normed)),
    }
    figures = bench.interleave({"import torch": IMPORT_TORCH, **asked})
    for path in (one, two, normed):
        remove(path)
    torch = figures["import torch"].median
    claims = [Claim(f"{name} beyond import of torch", figures[name].median - torch, 2, "s") for name in asked]
    return Result("Questions of 1,000 tensors", figures, "import torch", claims)


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


def _differing(one: Contender, two: Contender) -> int:
    import subprocess

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
                paramcli("remove", source, "-t", "norm", "--bake", "-o", target, "-q"), target
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


def chains(bench: Bench) -> Result:
    """A thousand small chains: the maths of paramcli, file to file, against a loop over torch modules that touches no
    file.
    """
    import subprocess

    source = files.write_many_small(bench.place("many.safetensors"))
    added, baked = bench.place("added.safetensors"), bench.place("baked.safetensors")
    figures = {
        name: Figures()
        for name in (
            "loop over torch modules",
            "the loop, one thread",
            "paramcli add",
            "paramcli remove --bake",
            "its maths alone",
            "its maths and checks",
        )
    }
    subprocess.run(
        paramcli("add", source, "-t", "*", "--chain", "skew,cayley", "-o", added, "-q"), check=True, capture_output=True
    )
    for number in range(bench.rounds):
        for name, threads in (("loop over torch modules", "default"), ("the loop, one thread", 1)):
            said = subprocess.run(
                script("cayley_loop", source, threads), check=True, capture_output=True, text=True
            ).stdout
            figures[name].seconds.append(float(said))
        figures["paramcli add"].seconds.append(
            _executing("add", source, "-t", "*", "--chain", "skew,cayley", "-o", baked)
        )
        figures["paramcli remove --bake"].seconds.append(_executing("remove", added, "-o", baked))
        figures["its maths alone"].seconds.append(_computing(added, checks=False))
        figures["its maths and checks"].seconds.append(_computing(added, checks=True))
        bench.log(
            f"  round {number + 1}/{bench.rounds}  "
            + ", ".join(f"{name}: {f.seconds[-1]:.3f} s" for name, f in figures.items())
        )
    worst = _farthest(added, source, baked)
    for path in (source, added):
        remove(path)
    maths, loop = figures["its maths alone"], figures["loop over torch modules"]
    claims = [
        Claim("the maths of a bake / the loop", maths.median / loop.median, 1 / 5),
        Claim(
            "the maths of a bake / the loop on one thread", maths.median / figures["the loop, one thread"].median, 1 / 5
        ),
        Claim("largest difference of a value from torch's own", worst, 1e-6),
    ]
    return Result("1,000 chains of 64 x 64 skew,cayley", figures, "loop over torch modules", claims)


def _executing(*command: object) -> float:
    """Seconds that one command spends from its plan to its last byte."""
    code = (
        "import sys, time, torch\n"
        "import paramcli.surgery.execute as m\n"
        "real, spent = m.execute, [0.0]\n"
        "def timed(*a, **k):\n"
        "    began = time.perf_counter(); out = real(*a, **k); spent[0] += time.perf_counter() - began; return out\n"
        "m.execute = timed\n"
        "from paramcli.cli.app import run\n"
        "code = run(sys.argv[1:]); print('seconds', spent[0], file=sys.stderr); sys.exit(code)\n"
    )
    seconds = _said(code, *command, "-q")
    remove(Path(command[command.index("-o") + 1]))
    return seconds


def _computing(added: Path, checks: bool) -> float:
    """Seconds that a bake computes, its batches as they are and their tensors in memory, as the loop's are.

    Without `checks` the values alone, which is what the loop gives; with them the residuals too.
    """
    return _said(
        "import sys, time, torch\n"
        "from contextlib import ExitStack\n"
        "from paramcli.spelling.forms import detect\n"
        "from paramcli.checkpoint.read.open import open_checkpoint\n"
        "from paramcli.spelling.record import KEY, parse_record\n"
        "from paramcli.surgery.edits.remove import Remove\n"
        "from paramcli.surgery.execute import Held, batched, by_parts, threads_for\n"
        "from paramcli.surgery.sequence import plan_edits\n"
        "from paramcli.fitting.claims import Claim\n"
        "if sys.argv[2] != 'True':\n"
        "    Claim.add, Claim.result = lambda *block: None, lambda self: [None] * (1 << 20)\n"
        "spent = 0\n"
        "with open_checkpoint(sys.argv[1]) as source:\n"
        "    groups = detect(source.tensors, parse_record(source.metadata[KEY]))\n"
        "    plan = plan_edits('remove', [Remove()], source, groups, ExitStack())\n"
        "    for batch in batched(list(enumerate(plan.steps))):\n"
        "        steps = [step for _, step in batch]\n"
        "        keys = [key for step in steps for key in step.group.keys.values()]\n"
        "        held = Held(source, {key: source.read(key) for key in keys})\n"
        "        began = time.perf_counter()\n"
        "        with threads_for(batch[0][1]) as threads:\n"
        "            by_parts(steps, held, 'cpu', 'same', threads)\n"
        "        spent += time.perf_counter() - began\n"
        "print('seconds', spent, file=sys.stderr)\n",
        added,
        checks,
    )


def _said(code: str, *arguments: object) -> float:
    import subprocess

    done = subprocess.run([PYTHON, "-c", code, *map(str, arguments)], check=True, capture_output=True, text=True)
    return float(done.stderr.split("seconds")[1].split()[0])


def _farthest(added: Path, source: Path, baked: Path) -> float:
    """The largest distance of a baked value from what tutorial modules give on the same originals."""
    import subprocess

    import torch
    from safetensors.torch import load_file

    from .scripts import CayleyMap, Skew

    subprocess.run(paramcli("remove", added, "-o", baked, "-q"), check=True, capture_output=True)
    originals, values = load_file(added), load_file(baked)
    skew, cayley = Skew(), CayleyMap(64)
    worst = 0.0
    for name, value in values.items():
        expected = cayley(
            skew(originals[name.replace(".weight", ".parametrizations.weight.original")].double())
            .float()
            .double()
            .to(torch.float32)
        )
        worst = max(worst, (value - expected).abs().max().item())
    remove(baked)
    return worst


def linalg(bench: Bench) -> Result:
    """The maps on one n x n matrix against one matrix product of the same dtype, in this process."""
    import torch

    from paramcli.chain import parse_chain
    from paramcli.fitting import measure
    from paramcli.fitting.originals import loaded, value_of
    from paramcli.view import IDENTITY

    n = bench.side
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(n, n, generator=generator) / n**0.5
    rotation = torch.linalg.qr(W.double()).Q.float()
    near = rotation + 1e-3 * torch.randn(n, n, generator=generator) / n**0.5

    def through(text: str) -> Callable[[], object]:
        parts = loaded(parse_chain(text), IDENTITY, (n, n), {"original": W})
        return lambda: value_of(parts, torch.float32, torch.float32)

    work = {
        "one product, float32": lambda: W @ W,
        "one product, float64": (lambda D: lambda: D @ D)(W.double()),
        "skew,cayley": through("skew,cayley"),
        "skew,matrix_exp": through("skew,matrix_exp"),
        "nearest orthogonal, a random matrix": lambda: measure.nearest("orthogonal", W.double(), None),
        "nearest orthogonal, one that is off by 1e-3": lambda: measure.nearest("orthogonal", near.double(), None),
        "verify orthogonal": lambda: measure.check("orthogonal", rotation),
    }
    figures = {name: Figures() for name in work}
    for number in range(bench.rounds + 1):
        for name, function in work.items():
            began = time.perf_counter()
            with torch.no_grad():
                function()
            if number:  # the first round warms up
                figures[name].seconds.append(time.perf_counter() - began)
        bench.log(f"  round {number}/{bench.rounds}")
    return Result(
        f"Linear algebra, n = {n}", figures, "one product, float32", notes=[f"{torch.get_num_threads()} threads"]
    )


# Cases that are measured with files of 4 GB where no --size is given: what they are held against takes the disk's time.
LARGE = {"edit", "migrate"}
CASES: dict[str, Callable[[Bench], Result]] = {
    "startup": startup,
    "linalg": linalg,
    "entries": entries.entries,
    "chains": chains,
    "small": small.small,
    "edit": edit_safetensors,
    "edit-zip": edit_zip,
    "edit-shards": edit_shards,
    "migrate": migrate,
    "questions": questions,
    "bake": bake,
    "bake-zip": bake_zip,
    "bake-shards": bake_shards,
    "memory": memory,
    "large": large,
    "merge": adapters.merge,
    "bake-fp8": quantized.bake_fp8,
}
