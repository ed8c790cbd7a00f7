"""stdout and stderr as a command has them: its verdict does not depend on who reads them, or for how long."""

from __future__ import annotations

import os
from collections.abc import Callable
from io import TextIOWrapper
from typing import ParamSpec, TextIO

from ..errors import OutputFailed

Parameters = ParamSpec("Parameters")


class Outlet:
    """A stream whose reader may leave (`| head -1`): what is written after that goes nowhere, and the work goes on.

    Otherwise the parser's library would exit with 1, which of a verify reads as "does not hold". Where a stream is
    there and takes no more (a full disk) the answer is lost, which is OutputFailed, once; messages are lost in silence.
    """

    def __init__(self, stream: TextIO, answers: bool):
        self._stream, self._answers = stream, answers
        # An encoding of few characters (ASCII, a code page of Windows) gets the others escaped, as stderr's does.
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
        # What was raised, for those whose caller swallowed it (the parser's library asks a stream what it is by writing
        # nothing).
        self.lost: OutputFailed | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, act: Callable[Parameters, object], *arguments: Parameters.args, **named: Parameters.kwargs) -> None:
        try:
            act(*arguments, **named)
        except OSError as error:
            self._drop()
            if self._answers and not isinstance(error, BrokenPipeError):
                self.lost = OutputFailed(
                    f"stdout could not be written: {error.strerror}", hint="make room, or send it elsewhere"
                )
                raise self.lost from None

    def _drop(self) -> None:
        """Let what is still to come, and what the stream holds back, go nowhere."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
