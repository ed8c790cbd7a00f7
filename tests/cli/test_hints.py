"""What an edit says of the tensors that were chosen for it: gates of recurrent kernels, biases among the pruned."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import paramcli as library

LAYERS = {
    "LSTM": (nn.LSTM(6, 5), 4),
    "GRU": (nn.GRU(5, 5, bidirectional=True), 3),
    "two layers": (nn.LSTM(3, 4, num_layers=2), 4),
    "cell": (nn.LSTMCell(6, 5), 4),
    "projected": (nn.LSTM(6, 8, proj_size=3), 4),
}
# Names or shapes that are no stack of gates.
OTHERS = {
    "plain RNN": nn.RNN(6, 5).state_dict(),
    "another name": {"kernel": torch.randn(20, 5)},
    "five matrices": {"weight_hh_l0": torch.randn(25, 5)},
    "no square in it": {"weight_hh_l0": torch.randn(22, 5)},
    "no weight_hh": {"weight_ih_l0": torch.randn(20, 5)},
}


@pytest.mark.parametrize("label", LAYERS)
def test_gates_are_named_with_their_view(label, tmp_path, paramcli):
    """A matrix chain on a kernel as it is stored, and discover, mention blocks=4 or 3; the view silences them."""
    layer, count = LAYERS[label]
    save_file({f"rnn.{name}": t.contiguous() for name, t in layer.state_dict().items()}, tmp_path / "m.safetensors")
    file, view = tmp_path / "m.safetensors", f"--view blocks={count}"
    kernels = [f"rnn.{name}" for name in layer.state_dict() if name.startswith(("weight_hh", "weight_ih"))]
    for name in kernels:
        told = paramcli("add", file, "-t", name, "--chain", "orthogonal", "-n").err
        assert f"{name} stacks a matrix for each of {count} gates: {view} puts the chain on each\n" in told
    assert view in paramcli("discover", file).err
    quiet = paramcli("add", file, "-t", "rnn.weight_hh*", "--chain", "orthogonal", *view.split(), "-n")
    assert "each of" not in quiet.err + paramcli("discover", file, *view.split()).err
    assert "each of" not in paramcli("add", file, "-t", kernels[0], "--chain", "weight_norm", "-n").err


@pytest.mark.parametrize("label", OTHERS)
def test_other_kernels_are_not_told_of_gates(label, tmp_path, paramcli):
    """A plain RNN, another name, rows that are no multiple of 3 or 4 squares, an input kernel alone."""
    save_file(OTHERS[label], tmp_path / "m.safetensors")
    name = next(iter(OTHERS[label]))
    told = paramcli("add", tmp_path / "m.safetensors", "-t", name, "--chain", "orthogonal", "-n").err
    assert "each of" not in told + paramcli("discover", tmp_path / "m.safetensors").err


def test_a_square_chain_on_gates_names_the_view_that_fits(tmp_path, paramcli):
    """skew wants squares: blocks=4 of the recurrent kernel are, of the input kernel they are not."""
    save_file(nn.LSTM(6, 5).state_dict(), tmp_path / "m.safetensors")
    told = paramcli("add", tmp_path / "m.safetensors", "-t", "weight_hh_l0", "--chain", "skew,cayley", code=3).err
    assert "try: --view blocks=4: it stacks a matrix for each of 4 gates\n" in told
    told = paramcli("add", tmp_path / "m.safetensors", "-t", "weight_ih_l0", "--chain", "skew,cayley", code=3).err
    assert "blocks=4" not in told
    with pytest.raises(library.InputRefused) as caught:
        library.add(tmp_path / "m.safetensors", "weight_hh_l0", "skew")
    assert caught.value.hint == 'view="blocks=4": it stacks a matrix for each of 4 gates'


@pytest.mark.parametrize("chain", ["prune_l1:amount=0.5", "prune_random:amount=2", "prune_l1:amount=0.5:scope=global"])
def test_pruning_says_that_biases_are_among_them(chain, tmp_path, paramcli):
    """A pattern that takes biases too says so, in the document too; biases asked for by name, or alone, are meant."""
    save_file({"fc.weight": torch.randn(4, 4), "fc.bias": torch.randn(4)}, tmp_path / "m.safetensors")
    told = paramcli("add", tmp_path / "m.safetensors", "-t", "*", "--chain", chain, "-n", "--json")
    said = "biases are among what it prunes (fc.bias): -t '*weight*' leaves them as they are"
    assert told.err.splitlines()[0] == said and told.json["notes"] == [said]
    for names in (["*weight*"], ["*bias"], ["fc.weight", "fc.bias"]):
        chosen = [word for name in names for word in ("-t", name)]
        assert "among" not in paramcli("add", tmp_path / "m.safetensors", *chosen, "--chain", chain, "-n").err
    result = library.add(tmp_path / "m.safetensors", "*", chain, dry_run=True)
    assert result.notes == ('biases are among what it prunes (fc.bias): tensor="*weight*" leaves them as they are',)
    assert result.document()["notes"] == list(result.notes)


def test_other_chains_on_biases_say_nothing(tmp_path, paramcli):
    """A norm on everything is no pruning."""
    save_file({"fc.weight": torch.randn(4, 4), "fc.bias": torch.rand(4)}, tmp_path / "m.safetensors")
    assert "among" not in paramcli("add", tmp_path / "m.safetensors", "-t", "*", "--chain", "max_norm", "-n").err
