"""Speed and memory against what one would use instead: python -m tests.bench [--size 1GB] [--json F] [CASE...]

Every case runs its contenders in turn, round by round, and shows medians, ratios and the peak of anonymous memory.
Needs room for a few files of --size in --folder (the system's temporary folder); `memory` for twenty of them.
Nothing here is a test: timings belong to the machine they come from, which the JSON names.
"""

from __future__ import annotations

import argparse
import compileall
import functools
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path

import paramcli

from .cases import CASES, LARGE
from .harness import MB, Bench, Result, Skipped, machine


def size(text: str) -> int:
    found = re.fullmatch(r"([0-9.]+)\s*([MG])B?", text, re.I)
    if not found:
        raise argparse.ArgumentTypeError("e.g. 1GB or 250MB")
    return int(float(found[1]) * {"M": 10**6, "G": 10**9}[found[2].upper()])


def table(result: Result) -> str:
    width = max(map(len, result.figures))
    lines = [result.title, f"  {'':{width}}  median s    min    max   ratio   cpu s  peak MB"]
    for name, f in result.figures.items():
        peak = f"{statistics.median(f.cpu):7.2f} {f.peak_anonymous / MB:8.0f}" if f.cpu else ""
        lines.append(
            f"  {name:{width}}  {f.median:8.3f} {min(f.seconds):6.2f} {max(f.seconds):6.2f}  "
            f"{result.ratio(name):6.2f} {peak}"
        )
    for claim in result.claims:
        lines.append(
            f"  {'holds' if claim.ok else 'MISSED'}: {claim.what} = {claim.value:.3g} {claim.unit} "
            f"(limit {claim.limit:.3g})"
        )
    return "\n".join([*lines, *(f"  {note}" for note in result.notes)])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all of them unless named")
    parser.add_argument("--size", type=size, help="size of the large checkpoints (1GB; edit, migrate: 4GB)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", type=int, default=1024, help="of the matrices of linalg and entries (1024)")
    parser.add_argument("--json", type=Path, help="write the figures and the machine here")
    parser.add_argument("--folder", type=Path, help="where the files are made and removed")
    options = parser.parse_args()
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"no case named {', '.join(sorted(unknown))}")

    def size_of(name: str) -> int:
        return options.size or (4 if name in LARGE else 1) * 10**9

    # As pip leaves what it installs, also where this environment writes no bytecode of its own.
    compileall.compile_dir(Path(paramcli.__file__).parent, quiet=1)
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()), "\n")
    documents = {}
    for name in options.cases or CASES:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="paramcli-bench-") as folder:
            log = functools.partial(print, file=sys.stderr)
            try:
                result = CASES[name](Bench(Path(folder), size_of(name), options.rounds, log, options.side))
            except Skipped as why:
                print(f"{name}: skipped, {why}\n", flush=True)
                continue
        print(table(result), "\n", flush=True)
        documents[name] = {"size": size_of(name), **result.document()}
        if options.json:
            about_it = {"machine": about, "side": options.side, "rounds": options.rounds, "cases": documents}
            text = json.dumps(about_it, indent=2)
            options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
