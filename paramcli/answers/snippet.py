"""Python that registers a checkpoint's chains on a live model: plain torch where torch has the function, else paramcli.

The text is built from typed entries and from names written as ASCII literals, so that nothing in a file
can become code or reach a terminal as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..chain import Chain
from ..checkpoint.source import Source
from ..errors import PATH, TENSOR, InputRefused
from ..spelling.forms import PARAMETRIZED, Group
from ..spelling.opened import Opened
from ..view import IDENTITY
from ..wording import call


def snippet(opened: Opened, path: Path, tensor: Sequence[str] = ()) -> str:
    """A function `parametrize(model)` and the line that loads the file.

    Of what `tensor` names, or of all that is parametrized; where keys and shapes leave several chains the data are
    asked.
    """
    chosen = opened.choose(tensor, lambda group: not group.is_plain)
    source = opened.source
    groups = [_settled(source, group) for group in chosen]
    return snippet_text(groups, path, source.container, source.root_path, None if source.is_loaded else source.root)


def _settled(source: Source, group: Group) -> Group:
    if group.problem:
        raise group.refusal(source.path)
    if group.chain is not None and group.chain.decodes:
        raise InputRefused(
            f"{TENSOR} stores codes ({group.chain}): a live module has weights",
            hint=f"{call('remove', PATH, bake=True)} first",
            tensor=group.tensor,
            path=source.path,
        )
    if not group.alternatives:
        return group
    from ..fitting.evaluate import read_state, settle

    chain, _ = settle(group, read_state(source, group))
    return replace(group, chain=chain, alternatives=())


def snippet_text(
    groups: Iterable[Group], path: Path, container: str, root: Sequence[str | int] = (), named: str | None = None
) -> str:
    """The same for groups whose chains are all known. `container`: what the file is, whatever it is called; `root`: the
    keys that lead to the state dict in a torch file; `named`: its name, where no keys do.
    """
    safetensors = container == "safetensors"
    levels = "".join(f"[{key!a}]" for key in root)
    parametrized = [group for group in groups if not group.is_plain]
    calls = [_call(group) for group in parametrized]
    lines = ["import paramcli"] if any("paramcli." in call for call in calls) else []
    lines += ["from safetensors.torch import load_file"] if safetensors else ["import torch"]
    lines += (
        ["from torch.nn.utils import parametrizations"] if any("parametrizations." in call for call in calls) else []
    )
    lines += ["", "", "def parametrize(model):"]
    lines += [f"    {call}" for call in calls] or ["    pass  # no tensor is parametrized"]
    lines += ["    return model", "", ""]
    # torch.load goes by the name, and takes one of these for safetensors.
    alone = safetensors or (container in ("torch zip", "torch legacy") and path.suffix != ".safetensors")
    if named is None and all(group.form == PARAMETRIZED for group in parametrized) and os.path.isfile(path) and alone:
        read = f"load_file({str(path)!a})" if safetensors else f"torch.load({str(path)!a}, weights_only=True){levels}"
        lines += ["model = parametrize(model)", f"model.load_state_dict({read}, strict=True)"]
    else:
        # Older spellings, shards: paramcli.load registers what it reads, so the function above only shows it.
        lines = ["import paramcli", *(line for line in lines if line != "import paramcli" and "load_file" not in line)]
        given = f"{str(path)!a}" if named is None else f"{str(path)!a}, root={named!a}"
        lines += [f"model = paramcli.load(model, {given})  # registers the same, and reads every spelling"]
    return "\n".join(lines)


def _call(group: Group) -> str:
    module, _, name = group.tensor.rpartition(".")
    holder = f"model.get_submodule({module!a})" if module else "model"
    assert group.chain is not None  # it is settled
    stock = _stock(group.chain) if group.view == IDENTITY else None
    if stock is not None:
        function, arguments = stock
        return f"parametrizations.{function}({holder}, {name!a}{arguments})"
    view = f", {str(group.view)!a}" if group.view != IDENTITY else ""
    return f'paramcli.register({holder}, {name!a}, {str(group.chain)!a}{view}, init="raw")'


def _stock(chain: Chain) -> tuple[str, str] | None:
    """(torch's function, its keyword arguments) for a chain of one item that torch has."""
    if len(chain) != 1 or chain.links[0].entry.torch_call is None:
        return None
    function, keywords = chain.links[0].entry.torch_call(chain.links[0].arguments)
    return function, "".join(f", {name}={value!a}" for name, value in keywords.items())
