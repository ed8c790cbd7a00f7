"""What can go wrong, and the exit code each becomes.

    ParamcliError
    ├── CheckFailed     1   a constraint does not hold, two checkpoints differ, --init strict refuses
    ├── UsageError      2   the command line asks for something that does not exist
    ├── InputRefused    3   a checkpoint, record or tensor that paramcli will not work on
    ├── DeviceFull      3   a GPU whose memory does not hold what a tensor needs
    └── OutputFailed    4   the result could not be written

An exception carries the fact and its fields (`tensor`, `path`, `hint`); low code raises the short
fact, `error_context` adds tensor and file on the way up, and the command line prints it once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike


class ParamcliError(Exception):
    """Base of every error a user meets: one sentence, and the fields that scripts read."""

    exit_code = 70
    code = "bug"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        tensor: str | None = None,
        path: str | PathLike | None = None,
    ):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.tensor = tensor
        self.path = path


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
def error_context(*, tensor: str | None = None, path: str | PathLike | None = None) -> Iterator[None]:
    """Add the tensor and file that low code did not know; what is already set stays.

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
        raise
    except RuntimeError as error:
        if (full := device_full(error)) is not None:
            full.tensor, full.path = tensor, path
            raise full from None
        if type(error).__name__ != "_LinAlgError":  # torch's, which this module does not import
            raise
        why = str(error).splitlines()[0]
        raise InputRefused(
            f"its linear algebra fails: {why}", hint="leave it out with -t", tensor=tensor, path=path
        ) from None


# How torch and the libraries below it say that a device has no memory left: as OutOfMemoryError, AcceleratorError or
# any RuntimeError, so the words decide.
_FULL = ("out of memory", "_STATUS_ALLOC_FAILED")


def device_full(error: Exception) -> DeviceFull | None:
    """What to say of an error that means that a device is out of memory; None for any other."""
    if not isinstance(error, RuntimeError) or not any(words in str(error) for words in _FULL):
        return None
    return DeviceFull("the device is out of memory", hint="--device cpu, or end what else uses the device")
