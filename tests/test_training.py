"""From a real checkpoint to a trained, proven and baked one: a speech model's own weights, trained under each chain."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils.parametrize import cached

import paramcli as api


class Voice(nn.Module):
    """The layers of the voice activity detector in fixtures/, in the order it applies them."""

    def __init__(self):
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        sizes = [(129, 128, 1), (128, 64, 2), (64, 64, 2), (64, 128, 1)]
        for number, (before, after, stride) in enumerate(sizes, 1):
            setattr(self, f"conv{number}", nn.Conv1d(before, after, 3, stride, 1))
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, sound):
        spectrum = self.stft_conv(sound.unsqueeze(1))
        x = (spectrum[:, :129].square() + spectrum[:, 129:].square()).sqrt()
        for number in range(1, 5):
            x = getattr(self, f"conv{number}")(x).relu()
        state = None
        for step in x.unbind(-1):
            state = self.lstm_cell(step, state)
        return self.final_conv(state[0].relu().unsqueeze(-1)).sigmoid().flatten()


CHAINS = [
    ("lstm_cell.weight_hh", "skew,matrix_exp", "blocks=4"),
    ("conv3.weight", "orthogonal", "flatten"),
    ("conv4.weight", "weight_norm:dim=0", None),
    ("conv2.weight", "nm:n=2:m=4:dim=1", None),
    ("conv3.weight", "low_rank:rank=32", "flatten"),
]


@pytest.mark.parametrize(("tensor", "chain", "view"), CHAINS, ids=[c[1] for c in CHAINS])
def test_a_real_model_trains_under_a_chain_and_ships_plain(tensor, chain, view, fixtures, tmp_path, paramcli):
    """Disk -> load -> 50 optimizer steps -> save -> verify -> bake: a plain model gives the trained one's outputs."""
    start = fixtures / "silero_vad_16k.safetensors"
    paramcli(
        "add",
        start,
        "-t",
        tensor,
        "--chain",
        chain,
        *(["--view", view] if view else []),
        "-o",
        tmp_path / "p.safetensors",
    )
    model = api.load(Voice(), tmp_path / "p.safetensors")
    torch.manual_seed(0)
    sound, wanted = 0.1 * torch.randn(4, 2048), torch.arange(4) % 2 * 1.0
    module, _, name = tensor.rpartition(".")
    before = getattr(model.get_submodule(module), name).detach().clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(50):
        optimizer.zero_grad()
        with cached():  # the LSTM's weight is one through all steps of the sound
            nn.functional.binary_cross_entropy(model(sound), wanted).backward()
        optimizer.step()
    trained = model(sound).detach()
    moved = getattr(model.get_submodule(module), name).detach() - before
    assert moved.norm() > 1e-3 * before.norm()
    assert all(verdict.ok for verdict in api.verify(model))
    api.save(model, tmp_path / "trained.safetensors")
    paramcli("verify", tmp_path / "trained.safetensors")
    paramcli("remove", tmp_path / "trained.safetensors", "--bake", "-o", tmp_path / "plain.safetensors")
    plain = Voice()
    plain.load_state_dict(load_file(tmp_path / "plain.safetensors"), strict=True)
    torch.testing.assert_close(plain(sound), trained, rtol=1e-5, atol=1e-6)
