"""What a result rests on, for who was not there: the files by their SHA-256, the command, and what it was computed
with.

The files are hashed in a thread while the command works, through the open files that it reads. They are then asked once
more whether anything changed since they were opened, so the sums are those of what was measured.
"""

from __future__ import annotations

import shlex
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from . import __version__
from .checkpoint.disk.input_file import InputFile
from .checkpoint.source import Source
from .text import printable

# Read at a time, and how much of a command line is shown: more than a shell takes.
_BLOCK, _LONGEST_COMMAND = 1 << 20, 1 << 22


@dataclass(frozen=True)
class FileSum:
    """One file that was read."""

    path: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Evidence:
    """The facts. `device` is where tensors were computed; a graphics card by its name."""

    files: tuple[FileSum, ...]
    command: str
    torch: str
    device: str
    date: str

    def document(self) -> dict[str, object]:
        """All but the date: the same command on the same files gives the same document."""
        return {
            "files": [{"path": file.path, "bytes": file.nbytes, "sha256": file.sha256} for file in self.files],
            "command": self.command,
            "version": __version__,
            "torch": self.torch,
            "device": self.device,
        }


class Gathering:
    """Hashes all files of the sources from the moment it is entered; `evidence` waits for the end. Stopped on the way
    out.
    """

    def __init__(self, command: Sequence[str], *sources: Source):
        self.command = printable(shlex.join(command), _LONGEST_COMMAND)
        self._sources = sources
        self._sums: list[FileSum] = []
        self._error: Exception | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Gathering:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def evidence(self, device: str) -> Evidence:
        """Raises InputRefused where a file changed since it was opened. Asked last, when nothing more will be read."""
        import torch

        self._thread.join()
        if self._error is not None:
            raise self._error
        for source in self._sources:
            source.check_unchanged()
        shown = f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device
        date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        return Evidence(tuple(self._sums), self.command, str(torch.__version__), shown, date)

    def _work(self) -> None:
        block = memoryview(bytearray(_BLOCK))
        try:
            for file in (file for source in self._sources for file in source.read_files):
                self._sums.append(FileSum(printable(file.path), file.size, self._sum(file, block)))
        except Exception as error:
            self._error = error  # raised to who asks for the evidence

    def _sum(self, file: InputFile, block: memoryview) -> str:
        import hashlib

        found = hashlib.sha256()
        for at in range(0, file.size, _BLOCK):
            if self._stopped.is_set():
                break
            part = block[: file.size - at]
            file.read_into(at, part)
            found.update(part)
        return found.hexdigest()
