"""paramcli snippet: the Python that registers the recorded chains on a live model."""

from __future__ import annotations

import typer

from . import options as o
from .screen import open_screen


def attach(app: typer.Typer) -> None:
    app.command("snippet")(snippet)


def snippet(
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    root: o.Root = None,
    ignore_record: o.IgnoreRecord = False,
    quiet: o.Quiet = False,
) -> None:
    """Print the Python that registers the file's chains on a live model and loads it.

    paramcli snippet ckpt.parametrized.safetensors

    paramcli snippet vocoder.pth > load_vocoder.py
    """
    from ..api import questions

    screen = open_screen(quiet)
    screen.answer(questions.snippet(ckpt, tensor or (), root=root, ignore_record=ignore_record, watch=screen))
