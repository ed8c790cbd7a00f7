"""The options that commands share, as annotated types: one wording for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..dtypes import COMPUTE_DTYPES
from . import complete

# The panels of each command's help: what to work on, where the result goes, how it is computed and read.
WHERE, HOW = "Output", "Reading and computing"

Checkpoint = Annotated[
    Path,
    typer.Argument(metavar="CKPT", help="Checkpoint: a file, a folder of shards, or its index.", show_default=False),
]
Tensors = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor",
        "-t",
        metavar="PATTERN",
        help="Tensor name, shell glob, or re:REGEX; repeatable.",
        show_default=False,
        autocompletion=complete.tensors,
    ),
]
Chain = Annotated[
    str | None,
    typer.Option(
        "--chain",
        metavar="SPEC",
        help="e.g. skew,cayley or weight_norm:dim=0",
        show_default=False,
        autocompletion=complete.chain,
    ),
]
View = Annotated[
    str | None,
    typer.Option(
        "--view",
        metavar="V",
        help="What the maths sees: flatten, blocks=N, heads=N, transpose.",
        show_default=False,
        autocompletion=complete.views,
    ),
]
# Each --strength is of the --adapter in the same place.
Adapters = Annotated[
    list[Path] | None,
    typer.Option(
        "--adapter",
        "-a",
        metavar="ADAPTER",
        help="An adapter's folder (PEFT) or file (kohya, LyCORIS); repeatable, in order.",
        show_default=False,
    ),
]
Strengths = Annotated[
    list[float] | None,
    typer.Option(
        "--strength", metavar="S", help="What an adapter's change is multiplied by: one for each.", show_default=False
    ),
]
AdapterPrefixes = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter-prefix",
        metavar="OLD=NEW",
        help="How the adapter's names begin, and the base's; repeatable.",
        show_default=False,
    ),
]
Like = Annotated[
    str | None,
    typer.Option(
        "--like",
        metavar="PROGRAM",
        help="peft-bf16, peft-fp16: as PEFT merges with the adapter in half precision.",
        show_default=False,
        autocompletion=complete.words("peft-bf16", "peft-fp16"),
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="D",
        help="Cast floating tensors: float64, float32, float16, bfloat16.",
        show_default=False,
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random.")]
Tied = Annotated[
    str | None,
    typer.Option(
        "--tied",
        metavar="HOW",
        help="Tensors that are one under several names: together or separate.",
        show_default=False,
        autocompletion=complete.words("together", "separate"),
    ),
]

# A str: a Path would drop the slash that makes it a folder.
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Where to write, a file or FOLDER/; default beside the input.",
        show_default=False,
        rich_help_panel=WHERE,
    ),
]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an output that exists.", rich_help_panel=WHERE)]
InPlace = Annotated[
    bool, typer.Option("--in-place", help="Replace the input itself, atomically.", rich_help_panel=WHERE)
]
Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Read the result back and compare every tensor before it gets its name; --in-place always does.",
        rich_help_panel=WHERE,
    ),
]
Sync = Annotated[
    bool,
    typer.Option(
        "--sync/--no-sync",
        help="Wait until the result is on the disk; with --no-sync a power cut may take it.",
        show_default=False,
        rich_help_panel=WHERE,
    ),
]
Verify = Annotated[
    bool,
    typer.Option("--verify", help="Exit 1 and write nothing unless every constraint holds.", rich_help_panel=WHERE),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", "-n", help="Show what would be done and write nothing.", rich_help_panel=WHERE)
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="FILE.html",
        help="Also write a page with tables and plots.",
        show_default=False,
        rich_help_panel=WHERE,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.", rich_help_panel=WHERE)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages on stderr but errors.", rich_help_panel=WHERE)]

Root = Annotated[
    str | None,
    typer.Option(
        "--root",
        metavar="A.B",
        help="Which state dict of a nested checkpoint.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]
IgnoreRecord = Annotated[
    bool, typer.Option("--ignore-record", help="Read the file without its paramcli record.", rich_help_panel=HOW)
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEV",
        help="cpu, cuda, cuda:N, mps or auto.",
        rich_help_panel=HOW,
        autocompletion=complete.words("cpu", "cuda", "mps", "auto"),
    ),
]
Compute = Annotated[
    str,
    typer.Option(
        "--compute-dtype",
        metavar="D",
        help="same, float32 or float64.",
        rich_help_panel=HOW,
        autocompletion=complete.words(*COMPUTE_DTYPES),
    ),
]
