"""The cases by name: each is in the file of its subject, with the numbers promised of it."""

from __future__ import annotations

from collections.abc import Callable

from . import adapters, bakes, chains, edits, entries, gpu, linalg, quantized, questions, small, startup
from .harness import Bench, Result

# Cases that are measured with files of 4 GB where no --size is given: what they are held against takes the disk's time.
LARGE = {"edit", "migrate"}
CASES: dict[str, Callable[[Bench], Result]] = {
    "startup": startup.startup,
    "linalg": linalg.linalg,
    "entries": entries.entries,
    "chains": chains.chains,
    "small": small.small,
    "edit": edits.edit_safetensors,
    "edit-zip": edits.edit_zip,
    "edit-shards": edits.edit_shards,
    "migrate": edits.migrate,
    "questions": questions.questions,
    "bake": bakes.bake,
    "bake-zip": bakes.bake_zip,
    "bake-shards": bakes.bake_shards,
    "memory": bakes.memory,
    "large": bakes.large,
    "merge": adapters.merge,
    "bake-fp8": quantized.bake_fp8,
    "gpu": gpu.gpu,
}
