"""The options that commands share, as annotated types: one wording for each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

# readable=False: whether a file can be read is found out by reading it, and is exit 3.
Checkpoint = Annotated[Path, typer.Argument(metavar="CKPT", help="Checkpoint: a file, a folder of shards, or its index.", show_default=False, readable=False)]
Tensors = Annotated[
    Optional[list[str]],
    typer.Option("--tensor", "-t", metavar="PATTERN", help="Tensor name, shell glob, or re:REGEX; repeatable.", show_default=False),
]
Root = Annotated[Optional[str], typer.Option("--root", metavar="A.B", help="Which state dict of a nested checkpoint.", show_default=False)]
Device = Annotated[str, typer.Option("--device", metavar="DEV", help="cpu, cuda, cuda:N, mps or auto.")]
Compute = Annotated[str, typer.Option("--compute-dtype", metavar="D", help="same, float32 or float64.")]
Output = Annotated[Optional[Path], typer.Option("--output", "-o", metavar="FILE", help="Where to write; default beside the input.", show_default=False, readable=False)]
Force = Annotated[bool, typer.Option("--force", "-f", help="Replace an output that exists.")]
InPlace = Annotated[bool, typer.Option("--in-place", help="Replace the input itself, atomically.")]
Check = Annotated[bool, typer.Option("--check", help="Read the result back and compare every tensor before it gets its name; --in-place always does.")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Show what would be done and write nothing.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No messages on stderr but errors.")]
Chain = Annotated[Optional[str], typer.Option("--chain", metavar="SPEC", help="e.g. skew,cayley or weight_norm:dim=0", show_default=False)]
View = Annotated[Optional[str], typer.Option("--view", metavar="V", help="What the maths sees: flatten, blocks=N, heads=N, transpose.", show_default=False)]
IgnoreRecord = Annotated[bool, typer.Option("--ignore-record", help="Read the file without its paramcli record.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.", min=0, max=2**63 - 1)]
Tied = Annotated[Optional[str], typer.Option("--tied", metavar="HOW", help="Tensors that are one under several names: together or separate.", show_default=False)]
