"""What can go wrong, and the exit code each becomes.

    ParamcliError
    ├── CheckFailed     1   a constraint does not hold, two checkpoints differ, --init strict refuses
    ├── UsageError      2   the command line asks for something that does not exist
    ├── InputRefused    3   a checkpoint, record or tensor that paramcli will not work on
    ├── DeviceFull      3   a GPU whose memory does not hold what a tensor needs
    └── OutputFailed    4   the result could not be written

An exception carries the bare fact and its fields; low code raises the fact, `error_context` adds tensor and file on
the way up. `str(error)` is the line for a Python caller, and `in_words(in_shell)` the one that the command prints, with
options where the other has keywords (`wording.py`). Nothing reads a message to find out what it says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import NamedTuple, Protocol

from .text import count_text, listing, printable, printable_path

# What a fact that says it itself has in the place of a name: f"{TENSOR} is spelt the old way".
from .wording import FILE as FILE
from .wording import LEAVE_OUT, given, in_python, keyword
from .wording import PATH as PATH
from .wording import TENSOR as TENSOR

# So many mistakes are told in full.
MOST = 5
# What `code` says: of an exit code the first is the general one.
CODES: dict[int, dict[str, str]] = {
    1: {"check_failed": "a check does not hold"},
    2: {"usage": "the command line, the call or the recipe is wrong: `option` says where"},
    3: {
        "input_refused": "the input cannot be worked on, for another reason",
        "not_found": "there is no such file",
        "not_a_checkpoint": "the file is something else, or holds no weights",
        "cut_short": "the file ends too early",
        "damaged": "the file is broken otherwise, or its parts contradict each other",
        "incomplete": "a part is missing: a shard, an index, a key of a tensor",
        "ambiguous": "it holds several checkpoints or state dicts, and one has to be named",
        "unrecognised": "a tensor's keys do not tell what it is, and `--chain` has to",
        "unsafe": "the file could run code; nothing was run",
        "bad_record": "the record in the file is malformed, or contradicts its tensors",
        "changed": "the file changed while it was being read",
        "nothing_parametrized": "no tensor is there for this command",
        "nothing_to_verify": "no tensor makes a claim",
        "tied": "one of tied tensors would be edited without the others",
        "out_of_reach": "the chain has no value that is this tensor, or near enough",
        "device_full": "a GPU has no memory left",
    },
    4: {
        "output_failed": "the result could not be written, for another reason",
        "exists": "the output exists already",
        "disk_full": "the disk, or a quota, is full",
    },
    70: {"bug": "a bug in paramcli", "out_of_memory": "this machine has no memory left, or starts no more threads"},
    130: {"interrupted": "Ctrl-C, or a signal: 128 and its number"},
}


class Speech(Protocol):
    """Puts what is given and called in words: `in_shell`, `in_python`."""

    def __call__(self, text: str, path: str | PathLike[str] | None = None, root: str | None = None) -> str: ...


class Known(str):
    """A hint that says what there is ("closest: fc.weight"), not what to try."""


class Place(NamedTuple):
    """Where in a recipe something is written: in one of its edits, counted from 1, and on which line, where it has
    lines.
    """

    path: str | PathLike[str]
    edit: int | None
    line: int | None = None

    def __str__(self) -> str:
        return f"{_file_name(self.path)} " + (f"edit {self.edit}" if self.line is None else f"line {self.line}")


class ParamcliError(Exception):
    """Base of every error a user meets. `str(error)` is one line: the fact, and of what it is one.

    message:  the bare fact, a sentence; it need not name the tensor or the file.
    fact:     the same as it was raised, with TENSOR, PATH and FILE in the places of names.
    hint:     what to try next, or as a `Known` what there is instead; None where there is nothing to say.
    advice:   the same as it was raised.
    code:     what went wrong, in one word for scripts; `CODES` has all of them.
    tensor:   the tensor's name, as in the file.
    path:     the file or folder.
    root:     the place of the state dict in it, where there are several.
    of_file:  the fact is one of the file as a whole, and not of a tensor in it.
    part:     of a checkpoint in a folder, the name of the file that the tensor lies in.
    option:   the option or argument that is wrong, by its long name: "max-shard-size".
    keyword:  the same as the library's functions call it: "max_shard_size".
    origin:   the `Place` in a recipe that asked for it.
    others:   what else was found to be wrong with it, each an error of its own.
    """

    exit_code = 70
    code = "bug"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: str | None = None,
        tensor: str | None = None,
        path: str | PathLike[str] | None = None,
        of_file: bool = False,
        part: str | None = None,
        option: str | None = None,
        origin: Place | None = None,
        others: Sequence[ParamcliError] = (),
    ):
        super().__init__(message)
        self.fact = message
        self.advice = hint
        self.code = code or type(self).code
        self.tensor = tensor
        self.path = path
        self.root: str | None = None
        self.of_file = of_file
        self.part = part
        self.option = option
        self.origin = origin
        self.others = others

    @property
    def message(self) -> str:
        return self._named(in_python)

    @property
    def hint(self) -> str | None:
        return self.advised(in_python)

    @property
    def keyword(self) -> str | None:
        return self.option and keyword(self.option)

    @property
    def line(self) -> int | None:
        """The line of the recipe."""
        return self.origin.line if self.origin else None

    def __str__(self) -> str:
        return self.in_words(in_python)

    def in_words(self, speak: Speech) -> str:
        """Tensor, recipe's line and file in front of the fact, what else is wrong and the file behind it: each where
        nothing before has said it.
        """
        said = self._named(speak)
        path = None if self.path is None else printable_path(self.path)
        if self.part is not None:
            said = f"{printable(self.tensor)} in {printable(self.part)}: {said}"
        if self.of_file and path is not None:
            said = f"{path}: {said}"
        if self.origin is not None:
            said = f"{self.origin}: {said}"
        if self.tensor is not None and self.part is None and TENSOR not in self.fact:
            said = f"{printable(self.tensor)}: {said}"
        said += self._told_of_others(speak)
        tells_path = self.of_file or PATH in self.fact or FILE in self.fact
        if path is not None and not tells_path and (self.origin is None or self.origin.path != self.path):
            said += f" (in {path})"
        return " ".join(said.splitlines())

    def advised(self, speak: Speech) -> str | None:
        """The hint, for a command line or for Python."""
        return self.advice and speak(self.advice, self.path, self.root)

    def _named(self, speak: Speech) -> str:
        tensor = "the tensor" if self.tensor is None else printable(self.tensor)
        path, file = ("the file",) * 2 if self.path is None else (printable_path(self.path), _file_name(self.path))
        return speak(self.fact, self.path, self.root).replace(TENSOR, tensor).replace(PATH, path).replace(FILE, file)

    def _told_of_others(self, speak: Speech) -> str:
        """Mistakes in full; of tensors that are refused too the names."""
        mistakes = [error for error in self.others if error.tensor is None]
        tensors = [error.tensor for error in self.others if error.tensor is not None]
        said = "".join(f"; {error.in_words(speak)}" for error in mistakes[: MOST - 1])
        if len(mistakes) > MOST - 1:
            said += f"; and {len(mistakes) - (MOST - 1)} more"
        if tensors:
            said += f" ({count_text(len(tensors), 'more tensor')} refused too: {listing(tensors, 3)})"
        return said

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"


def _file_name(path: str | PathLike[str]) -> str:
    return printable(os.path.basename(os.fspath(path)))


class CheckFailed(ParamcliError):
    exit_code = 1
    code = "check_failed"


class UsageError(ParamcliError):
    exit_code = 2
    code = "usage"


class InputRefused(ParamcliError):
    exit_code = 3
    code = "input_refused"


class DeviceFull(ParamcliError):
    """Nothing is wrong with the tensor: no command leaves it out and goes on, as with one that is refused."""

    exit_code = 3
    code = "device_full"


class OutputFailed(ParamcliError):
    exit_code = 4
    code = "output_failed"


@contextmanager
def error_context(
    *, tensor: str | None = None, path: str | PathLike[str] | None = None, option: str | None = None
) -> Iterator[None]:
    """Add the tensor, file and option that low code did not know; what is already set stays.

    A decomposition that does not converge, or meets numbers beyond the range of its dtype, is a fact about the tensor.
    So is what it needs of a device's memory.
    """
    try:
        yield
    except ParamcliError as error:
        if error.tensor is None:
            error.tensor = tensor
        if error.path is None:
            error.path = path
        if error.option is None:
            error.option = option
        raise
    except RuntimeError as error:
        if (full := device_full(error)) is not None:
            full.tensor, full.path = tensor, path
            raise full from None
        if type(error).__name__ != "_LinAlgError":  # torch's, which this module does not import
            raise
        why = str(error).splitlines()[0]
        raise InputRefused(f"its linear algebra fails: {why}", hint=LEAVE_OUT, tensor=tensor, path=path) from None


# How torch and the libraries below it say that a device has no memory left: as OutOfMemoryError, AcceleratorError or
# any RuntimeError, so the words decide.
_FULL = ("out of memory", "_STATUS_ALLOC_FAILED")


def device_full(error: Exception) -> DeviceFull | None:
    """What to say of an error that means that a device is out of memory; None for any other."""
    if not isinstance(error, RuntimeError) or not any(words in str(error) for words in _FULL):
        return None
    return DeviceFull("the device is out of memory", hint=f"{given('device', 'cpu')}, or end what else uses the device")
