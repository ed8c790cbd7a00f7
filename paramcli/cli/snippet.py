"""paramcli snippet: the Python that registers the recorded chains on a live model."""

from __future__ import annotations

from dataclasses import replace

import typer

from ..checkpoint.source import Source
from ..errors import InputRefused
from ..show.console import Screen
from ..spelling.forms import Group
from . import options as o
from .session import open_groups


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
    from ..answers.snippet import snippet as text

    screen = Screen(quiet)
    with open_groups(ckpt, root, ignore_record, screen) as opened:
        chosen = opened.choose(tensor, lambda group: not group.is_plain)
        screen.answer(text([_settled(opened.source, group) for group in chosen], ckpt, opened.source.root_path))


def _settled(source: Source, group: Group) -> Group:
    """The group with its chain known; where keys and shapes leave several the data are asked."""
    if group.problem:
        raise InputRefused(group.problem, hint=group.hint, tensor=group.tensor, path=source.path)
    if not group.alternatives:
        return group
    from ..fitting.evaluate import read_state, settle

    chain, _ = settle(group, read_state(source, group))
    return replace(group, chain=str(chain), alternatives=())
