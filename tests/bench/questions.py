"""What is asked of many tensors, beyond importing torch."""

from __future__ import annotations

import subprocess

from . import files
from .harness import IMPORT_TORCH, Bench, Claim, Contender, Result, paramcli, remove


def questions(bench: Bench) -> Result:
    """What is asked of a vocoder's 1,000 tensors, beyond importing torch."""
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
