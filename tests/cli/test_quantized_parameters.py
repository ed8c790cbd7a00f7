"""8-bit floats under other names than `weight`: what is read of them, what is refused, and what stays as it is."""

import pytest
import torch
from safetensors.torch import load_file, save_file

E4M3 = torch.float8_e4m3fn


def codes(*shape):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))) * 8).to(E4M3)


def model(tmp_path, **more):
    """A file whose one weight has a scale, and what else is given."""
    path = tmp_path / "model.safetensors"
    weight = {"l.weight": codes(8, 16), "l.weight_scale": torch.tensor(0.3), "n.weight": torch.ones(8)}
    save_file(weight | more, path)
    return path


MODULATION, TABLE = "blocks.0.modulation", "scale_shift_table"
# label -> (name, shape, name of the scale, scale)
READ = {
    "an ending": (MODULATION, (1, 6, 8), f"{MODULATION}_scale", torch.tensor(0.3)),
    "a weight's ending": (MODULATION, (1, 6, 8), f"{MODULATION}_weight_scale", torch.tensor([0.3])),
    "below its name": (MODULATION, (1, 6, 8), f"{MODULATION}.scale_weight", torch.tensor(0.3)),
    "of each row": ("pos_embed", (4, 8), "pos_embed_scale", torch.rand(4, 1) + 0.5),
    "of each row, flat": ("pos_embed", (4, 8), "pos_embed.weight_scale", torch.rand(4) + 0.5),
    "what is named a scale": (TABLE, (2, 8), f"{TABLE}_scale", torch.tensor(0.3)),
    "a bias": ("l.bias", (8,), "l.bias_scale", torch.tensor(0.3)),
}


@pytest.mark.parametrize("label", READ)
def test_a_parameter_with_a_scale_is_baked_as_weights_are(label, tmp_path, paramcli):
    """The product in float32, rounded once; the scale goes with it, and every code comes back of what was baked."""
    name, shape, scale_name, scale = READ[label]
    X, out = codes(*shape), tmp_path / "out.safetensors"
    path = model(tmp_path, **{name: X, scale_name: scale})
    paramcli("remove", path, "--dtype", "bfloat16", "-o", out)
    got = load_file(out)
    each = scale.float().view(-1, *[1] * (len(shape) - 1)) if scale.numel() > 1 else scale.float()
    assert got.keys() == {"l.weight", "n.weight", name}
    assert torch.equal(got[name], (X.float() * each).bfloat16())
    paramcli("verify", out, "--base", path, "--round-trip")


# label -> (what is there, what is said, what to do)
REFUSED = {
    "no scale": ({MODULATION: codes(1, 6, 8)}, "has no scale beside it", "-t '*.weight' bakes the others"),
    "no scale, and no dot": ({"pos_embed": codes(4, 8)}, "has no scale beside it", "-t '*.weight' bakes the others"),
    "another weight": ({"m.weight": codes(4, 8)}, "has no scale", "-t 're:(?!(m\\.weight)$).*' bakes the others"),
    "a scale of columns": (
        {"pos": codes(4, 8), "pos_scale": torch.rand(8)},
        "pos_scale (8) beside it may be read several ways",
        "-t '*.weight' bakes the others",
    ),
    "a scale of rows or of columns": (
        {"pos": codes(8, 8), "pos_scale": torch.rand(8)},
        "pos_scale (8) beside it may be read several ways",
        "-t '*.weight' bakes the others",
    ),
    "two scales": (
        {"pos": codes(4, 8), "pos_scale": torch.tensor(1.0), "pos_scale_weight": torch.tensor(2.0)},
        "pos_scale (scalar), pos_scale_weight (scalar) beside it may be read several ways",
        "-t '*.weight' bakes the others",
    ),
    "an inverse": (
        {"pos": codes(4, 8), "pos_scale_inv": torch.tensor(2.0)},
        "pos_scale_inv (scalar) beside it may be read several ways",
        "--chain fp8_scaled:per=tensor, if that multiplies it",
    ),
}


@pytest.mark.parametrize("label", REFUSED)
def test_what_would_be_a_guess_is_refused_with_what_bakes_the_rest(label, tmp_path, paramcli):
    """It is named, and nothing is written; what the hint says runs, and says what stayed in codes."""
    there, said, way = REFUSED[label]
    path, out = model(tmp_path, **there), tmp_path / "out.safetensors"
    error = paramcli("remove", path, "-o", out, code=3).err
    assert next(iter(there)) in error and said in error and way in error and not out.exists()
    name, X = next(iter(there.items()))
    if way.startswith("--chain"):
        paramcli("remove", path, "--chain", "fp8_scaled:per=tensor", "-o", out)
        assert torch.equal(load_file(out)[name], X.float() * 2)
        return
    pattern = way.removeprefix("-t '").removesuffix("' bakes the others")
    assert f"{name} stays in float8_e4m3fn" in paramcli("remove", path, "-t", pattern, "-o", out).err
    got = load_file(out)
    assert torch.equal(got["l.weight"], codes(8, 16).float() * torch.tensor(0.3))
    assert got[name].dtype == E4M3 and torch.equal(got[name].float(), X.float())


def test_floats_that_stay_in_8_bits_are_told_of(tmp_path, paramcli):
    """A table that is named as scales are, and a bias, have no scale and are no weights: they stay, and it is said."""
    path, out = model(tmp_path, **{TABLE: codes(2, 8), "l.bias": codes(8)}), tmp_path / "out.safetensors"
    said = f"l.bias, {TABLE} stay in float8_e4m3fn, as before: no scale was read for them"
    assert paramcli("remove", path, "-o", out, "--json").json["notes"] == [said]
    assert load_file(out)[TABLE].dtype == E4M3
    assert said in paramcli("remove", path, "-o", out, "-f").err


def test_without_other_scales_a_scale_is_a_parameter(tmp_path, paramcli):
    """A file that was cast to 8 bits has parameters named so, and nothing of it is decoded."""
    path = tmp_path / "cast.safetensors"
    save_file({"pos": codes(4, 8), "pos_scale": torch.tensor(2.0)}, path)
    forms = {row["tensor"]: row["form"] for row in paramcli("inspect", path, "--json").json["tensors"]}
    assert forms == {"pos": "plain", "pos_scale": "plain"}
