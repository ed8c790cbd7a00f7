"""A thousand small chains against a loop over torch modules."""

from __future__ import annotations

import subprocess
from pathlib import Path

from . import files
from .harness import PYTHON, Bench, Claim, Figures, Result, paramcli, remove, script


def chains(bench: Bench) -> Result:
    """A thousand small chains: the maths of paramcli, file to file, against a loop over torch modules that touches no
    file.
    """
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
        "    Claim.add, Claim.result = lambda *block: None, lambda self: [None] * self._measured.count\n"
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
    done = subprocess.run([PYTHON, "-c", code, *map(str, arguments)], check=True, capture_output=True, text=True)
    return float(done.stderr.split("seconds")[1].split()[0])


def _farthest(added: Path, source: Path, baked: Path) -> float:
    """The largest distance of a baked value from what tutorial modules give on the same originals."""
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
