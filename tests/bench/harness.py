"""Processes timed side by side: interleaved rounds, medians, peak anonymous memory, and the machine it was."""

from __future__ import annotations

import os
import platform
import random
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MB = 10**6
PYTHON = sys.executable
# Each look takes a tenth of a millisecond from one of the cores.
SAMPLE_EVERY = 0.01


class Skipped(Exception):
    """A case that this machine cannot run, and why."""


@dataclass
class Contender:
    """A command, what it leaves behind (removed after each run), and whether the disk is waited for in the time."""

    argv: Sequence[str]
    output: Path | None = None
    synced: bool = False


IMPORT_TORCH = Contender([PYTHON, "-c", "import torch"])


@dataclass
class Figures:
    """What the rounds of one contender gave."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # of the process, on all cores: less at the mercy of what else runs
    peak_anonymous: int = 0  # bytes, the largest seen in any round

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Claim:
    """A number held against its limit."""

    what: str
    value: float
    limit: float
    unit: str = ""

    @property
    def ok(self) -> bool:
        return self.value <= self.limit


@dataclass
class Result:
    """One case: its figures by contender, the contender that ratios are taken to, and its claims."""

    title: str
    figures: dict[str, Figures]
    base: str
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def ratio(self, name: str) -> float:
        return self.figures[name].median / self.figures[self.base].median

    def document(self) -> dict:
        return {
            "title": self.title,
            "base": self.base,
            "contenders": {
                name: {
                    "seconds": [round(s, 5) for s in f.seconds],
                    "median": round(f.median, 5),
                    "ratio": round(self.ratio(name), 3),
                    "cpu": [round(s, 5) for s in f.cpu],
                    "peak_anonymous_mb": round(f.peak_anonymous / MB, 1),
                }
                for name, f in self.figures.items()
            },
            "claims": [
                {"what": c.what, "value": round(c.value, 4), "limit": c.limit, "unit": c.unit, "ok": c.ok}
                for c in self.claims
            ],
            "notes": self.notes,
        }


def paramcli(*arguments: object) -> list[str]:
    return [PYTHON, "-m", "paramcli", *map(str, arguments)]


def script(name: str, *arguments: object) -> list[str]:
    """One of the scripts that a user would write instead (scripts.py)."""
    return [PYTHON, "-m", "tests.bench.scripts", name, *map(str, arguments)]


def interleave(contenders: Mapping[str, Contender], rounds: int, log: Callable[[str], None]) -> dict[str, Figures]:
    """Every contender once a round, so that a slow minute of the machine falls on all of them.

    Each round has an order of its own: a run is fast in memory that the one before it has just given back, and slow
    where a virtual machine's host has to give it first.
    """
    figures = {name: Figures() for name in contenders}
    for number in range(rounds):
        order = list(contenders.items())
        random.Random(number).shuffle(order)
        for name, contender in order:
            seconds, cpu, peak = run(contender)
            figures[name].seconds.append(seconds)
            figures[name].cpu.append(cpu)
            figures[name].peak_anonymous = max(figures[name].peak_anonymous, peak)
            log(f"  round {number + 1}/{rounds}  {name}: {seconds:.3f} s")
    return figures


def run(contender: Contender) -> tuple[float, float, int]:
    """(wall seconds, CPU seconds, peak anonymous bytes) of one run; nobody else's dirty pages are waited for in it."""
    if contender.output is not None:
        remove(contender.output)
        os.sync()
    before = _children_cpu()
    started = time.perf_counter()
    child = subprocess.Popen(
        contender.argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    watcher = _Watcher(child.pid)
    _, said = child.communicate()
    if contender.synced and contender.output is not None:
        _sync(contender.output)
    seconds = time.perf_counter() - started
    cpu, peak = _children_cpu() - before, watcher.stop()
    if child.returncode:
        raise SystemExit(f"{' '.join(contender.argv)}\n{said.decode(errors='replace')}")
    if contender.output is not None:
        remove(contender.output)
    return seconds, cpu, peak


def _sync(path: Path) -> None:
    """fsync of a file, or of a folder and what is in it."""
    for one in (*(path.iterdir() if path.is_dir() else ()), path):
        descriptor = os.open(one, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class _Watcher(threading.Thread):
    """Samples RssAnon of a process and its children's: heap and copies, not mapped libraries or page cache."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.path = f"/proc/{pid}/status"
        self.peak = 0
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(SAMPLE_EVERY):
            try:
                text = Path(self.path).read_text()
            except OSError:
                continue
            found = text.find("RssAnon:")
            if found >= 0:
                self.peak = max(self.peak, int(text[found + 8 :].split(None, 1)[0]) * 1024)

    def stop(self) -> int:
        self._stopped.set()
        self.join()
        return self.peak


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def machine() -> dict[str, object]:
    import safetensors
    import torch

    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = next((int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 10**9, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


@dataclass
class Bench:
    """What every case is given: a folder for its files, their size, how many rounds, and where progress goes."""

    folder: Path
    size: int
    rounds: int
    log: Callable[[str], None]
    # Of the matrices of the cases of linear algebra.
    side: int = 1024

    def place(self, name: str) -> Path:
        return self.folder / name

    def interleave(self, contenders: dict[str, Contender]) -> dict[str, Figures]:
        return interleave(contenders, self.rounds, self.log)
