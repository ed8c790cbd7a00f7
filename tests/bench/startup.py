"""Commands that need no torch, against an interpreter that does nothing."""

from __future__ import annotations

from . import files
from .harness import IMPORT_TORCH, PYTHON, Bench, Claim, Contender, Result, paramcli, remove


def startup(bench: Bench) -> Result:
    """Commands that need no torch against an interpreter that does nothing."""
    many = files.write_many_small(bench.place("many.safetensors"))
    reader = (
        "import sys; from safetensors import safe_open; f = safe_open(sys.argv[1], 'np'); "
        "print([(k, f.get_slice(k).get_shape()) for k in f.keys()])"
    )
    asked = [
        "_PARAMCLI_COMPLETE=complete_bash",
        f"COMP_WORDS=paramcli inspect {many} -t ",
        "COMP_CWORD=4",
    ]
    figures = bench.interleave(
        {
            "python -c pass": Contender([PYTHON, "-c", "pass"]),
            "paramcli --help": Contender(paramcli("--help")),
            "paramcli registry": Contender(paramcli("registry")),
            "paramcli inspect, 1,000 tensors": Contender(paramcli("inspect", many)),
            "safetensors lists the same": Contender([PYTHON, "-c", reader, str(many)]),
            "Tab after inspect -t, 1,000 names": Contender(["env", *asked, *paramcli()]),
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
        Claim(
            "Tab beside 1,000 names beyond python -c pass",
            figures["Tab after inspect -t, 1,000 names"].median - bare,
            0.3,
            "s",
        ),
    ]
    return Result("Start-up", figures, "python -c pass", claims)
