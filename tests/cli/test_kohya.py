"""Adapters of kohya, LyCORIS and diffusers: what LyCORIS' own forward makes of each weight is the oracle
(fixtures/make_kohya.py), and the formulas of sd-scripts and diffusers by hand.
"""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli import load
from paramcli.fitting import blocks
from paramcli.maths import rows as maths_rows

NAMES = sorted(
    ["boft", "full", "glora", "ia3", "loha", "loha_tucker", "lokr", "lora", "lora_dora", "lora_tucker", "norm", "oft"]
)
UNET, TEXT = "model.diffusion_model.", "conditioner.embedders.0.transformer."


@pytest.fixture
def kohya(fixtures):
    return fixtures / "kohya"


def test_every_fixture_is_tried(kohya):
    """What is made for the tests is in the list."""
    there = {path.name.partition(".")[0] for path in kohya.iterdir()}
    assert there == {*NAMES, "base"}


def wanted(folder, name, strength):
    """What LyCORIS makes of the tensors that change."""
    merged = load_file(folder / f"{name}.merged.safetensors")
    return {key.partition("/")[2]: T for key, T in merged.items() if key.startswith(f"{strength}/")}


def require_merged(got, base, want):
    """The changed tensors are those wanted, and all others the base's, bit for bit."""
    assert got.keys() == base.keys()
    for name, tensor in got.items():
        if name in want:
            assert not torch.equal(tensor, base[name]), name
            assert (tensor.double() - want[name].double()).norm() <= 1e-6 * want[name].double().norm(), name
        else:
            assert torch.equal(tensor, base[name]), name


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", NAMES)
def test_a_merge_is_what_lycoris_computes_with(name, strength, kohya, tmp_path, paramcli):
    """Every kind of change, kernels and matrices, both models of a pipeline, at full strength and at less."""
    out = tmp_path / "out.safetensors"
    adapter = ("--adapter", kohya / f"{name}.safetensors", "--strength", strength)
    said = paramcli("merge", kohya / "base.safetensors", *adapter, "-o", out, "--json").json
    want = wanted(kohya, name, strength)
    require_merged(load_file(out), load_file(kohya / "base.safetensors"), want)
    assert {tensor["tensor"] for tensor in said["tensors"]} == set(want)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_attached_comes_off_and_bakes(name, kohya, tmp_path, paramcli):
    """add --adapter writes one file; its originals are the base, byte for byte, and its bake is the merge."""
    base = kohya / "base.safetensors"
    added, plain, baked, direct = (tmp_path / f"{n}.safetensors" for n in ("added", "plain", "baked", "direct"))
    adapter = ("--adapter", kohya / f"{name}.safetensors")
    paramcli("add", base, *adapter, "-o", added)
    paramcli("remove", added, "--no-bake", "-o", plain)
    before, after = load_file(base), load_file(plain)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    paramcli("remove", added, "-o", baked)
    paramcli("merge", base, *adapter, "-o", direct)
    once, twice = load_file(baked), load_file(direct)
    assert once.keys() == twice.keys() and all(torch.equal(once[key], twice[key]) for key in once)


def half_kernel():
    """A base of few tensors, and a LoRA of each: a matrix, a square one and a kernel."""
    chance = torch.Generator().manual_seed(3)
    drawn = lambda *shape: torch.randn(shape, generator=chance, dtype=torch.float64)  # noqa: E731
    shapes = {"in_layers.0": (6, 4), "attn.to_out": (5, 5), "conv": (6, 4, 3, 2)}
    base = {f"{name}.weight": drawn(*shape) for name, shape in shapes.items()}
    factors = {}
    for name, shape in shapes.items():
        kernel = shape[2:]
        factors[name] = (drawn(2, *shape[1:]), drawn(shape[0], 2, *(1,) * len(kernel)))
    return base, factors


def changed(base, factors, scale):
    """W + s up down, by hand."""
    return {
        f"{name}.weight": base[f"{name}.weight"]
        + scale * (up.flatten(1) @ down.flatten(1)).reshape(base[f"{name}.weight"].shape)
        for name, (down, up) in factors.items()
    }


def spelt(factors, prefix, down, up, dotted, **more):
    """The factors under names: flat or dotted, with a prefix and words for the two of them."""
    tensors = {}
    for name, (A, B) in factors.items():
        module = prefix + (name if dotted else name.replace(".", "_"))
        tensors |= {f"{module}.{down}": A, f"{module}.{up}": B}
        tensors |= {f"{module}.{key}": value.clone() for key, value in more.items()}
    return tensors


def merge(paramcli, tmp_path, base, adapter, *options, metadata=None, suffix="safetensors", code=0):
    """(what is in the result, what was said)"""
    save_file(base, tmp_path / "base.safetensors")
    file = tmp_path / f"adapter.{suffix}"
    if suffix == "pt":
        torch.save(adapter, file)
    else:
        save_file({key: tensor.clone() for key, tensor in adapter.items()}, file, metadata)
    out = tmp_path / "out.safetensors"
    said = paramcli("merge", tmp_path / "base.safetensors", "--adapter", file, *options, "-o", out, "-f", code=code)
    assert out.exists() == (code == 0)
    return (load_file(out) if code == 0 else None), said.out + said.err


SPELLINGS = {
    "kohya": ("lora_unet_", "lora_down.weight", "lora_up.weight", False, "model.diffusion_model."),
    "kohya, one model": ("lora_unet_", "lora_down.weight", "lora_up.weight", False, ""),
    "kohya's text encoder": ("lora_te_", "lora_down.weight", "lora_up.weight", False, "cond_stage_model.transformer."),
    "SDXL's first": ("lora_te1_", "lora_down.weight", "lora_up.weight", False, "conditioner.embedders.0.transformer."),
    "SD3's second": ("lora_te2_", "lora_down.weight", "lora_up.weight", False, "text_encoders.clip_g.transformer."),
    "SD3's third": ("lora_te3_", "lora_down.weight", "lora_up.weight", False, "text_encoders.t5xxl.transformer."),
    "LyCORIS": ("lycoris_", "lora_down.weight", "lora_up.weight", False, ""),
    "ComfyUI": ("diffusion_model.", "lora_A.weight", "lora_B.weight", True, "model.diffusion_model."),
    "ComfyUI, one model": ("diffusion_model.", "lora_down.weight", "lora_up.weight", True, ""),
    "diffusers": ("transformer.", "lora_A.weight", "lora_B.weight", True, ""),
    "older diffusers": ("unet.", "lora.down.weight", "lora.up.weight", True, ""),
    "diffusers' text encoder": ("text_encoder.", "lora_A.weight", "lora_B.weight", True, ""),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_lora_is_the_formula(spelling, tmp_path, paramcli):
    """W + strength alpha / r B A in float64, alpha the rank where there is none."""
    prefix, down, up, dotted, container = SPELLINGS[spelling]
    base, factors = half_kernel()
    whole = {container + name: tensor for name, tensor in base.items()} | {"other": torch.ones(2)}
    for alpha, scale in ((None, 0.5), (3.0, 0.75)):
        more = {} if alpha is None else {"alpha": torch.tensor(alpha)}
        adapter = spelt(factors, prefix, down, up, dotted, **more)
        got, _ = merge(paramcli, tmp_path, whole, adapter, "--strength", 0.5)
        assert torch.equal(got["other"], whole["other"])
        for name, tensor in changed(base, factors, scale).items():
            torch.testing.assert_close(got[container + name], tensor, rtol=1e-13, atol=1e-13)
        got_again, _ = merge(paramcli, tmp_path, whole, adapter, "--strength", 0.5, suffix="pt")
        assert all(torch.equal(got[name], got_again[name]) for name in got)


ALPHAS = {
    "none is the rank": (None, 1.0),
    "0 is the rank": (torch.tensor(0.0), 1.0),
    "half precision": (torch.tensor(0.5, dtype=torch.float16), 0.25),
    "bfloat16": (torch.tensor(0.5, dtype=torch.bfloat16), 0.25),
    "an integer of a list": (torch.tensor([4]), 2.0),
    "below 0": (torch.tensor(-1.0, dtype=torch.float64), -0.5),
    "beyond float32": (torch.tensor(1e-300, dtype=torch.float64), 0.0),
}


@pytest.mark.parametrize("label", ALPHAS)
def test_alpha_is_a_number_of_any_dtype(label, tmp_path, paramcli):
    """alpha / r is what the change is scaled by."""
    alpha, scale = ALPHAS[label]
    base, factors = half_kernel()
    more = {} if alpha is None else {"alpha": alpha}
    got, _ = merge(paramcli, tmp_path, base, spelt(factors, *SPELLINGS["LyCORIS"][:4], **more))
    for name, tensor in changed(base, factors, scale).items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-13, atol=1e-13)


METADATA = {
    "of a component": ({"transformer.r": 2, "transformer.lora_alpha": 5}, "transformer.", 2.5),
    "of one model": ({"r": 2, "lora_alpha": 5}, "", 2.5),
    "rsLoRA": (
        {"transformer.r": 2, "transformer.lora_alpha": 5, "transformer.use_rslora": True},
        "transformer.",
        5 / 2**0.5,
    ),
    "a pattern": ({"unet.r": 9, "unet.rank_pattern": {".*": 2}, "unet.lora_alpha": 1}, "unet.", 0.5),
}


@pytest.mark.parametrize("label", METADATA)
def test_diffusers_metadata_say_the_scale(label, tmp_path, paramcli):
    """`lora_adapter_metadata` is PEFT's configuration, of one model or of each of a pipeline."""
    said, prefix, scale = METADATA[label]
    base, factors = half_kernel()
    adapter = spelt(factors, prefix, "lora_A.weight", "lora_B.weight", True)
    got, _ = merge(paramcli, tmp_path, base, adapter, metadata={"lora_adapter_metadata": json.dumps(said)})
    for name, tensor in changed(base, factors, scale).items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ('{"transformer.r": 3, "transformer.lora_alpha": 1}', "is 3 here, and 2 in the weights"),
        ('{"transformer.r": 2, "transformer.lora_alpha": "1"}', "lora_alpha"),
        ('{"transformer.r": 2, "transformer.lora_alpha": 1, "transformer.init_lora_weights": "pissa"}', "pissa"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "no JSON object"),
    ],
)
def test_metadata_that_do_not_fit_are_refused(metadata, told, tmp_path, paramcli):
    """Another rank, an alpha that is none, a base that was changed."""
    base, factors = half_kernel()
    adapter = spelt(factors, "transformer.", "lora_A.weight", "lora_B.weight", True)
    error = merge(paramcli, tmp_path, base, adapter, metadata={"lora_adapter_metadata": metadata}, code=3)[1]
    assert told in error


def test_an_alpha_that_the_metadata_contradict_is_refused(tmp_path, paramcli):
    """Which of the two holds, readers do not agree on."""
    base, factors = half_kernel()
    words = ("transformer.", "lora_A.weight", "lora_B.weight", True)
    metadata = {"lora_adapter_metadata": '{"transformer.r": 2, "transformer.lora_alpha": 5}'}
    adapter = spelt(factors, *words, alpha=torch.tensor(4.0))
    assert "is 4, and by the metadata it is 5" in merge(paramcli, tmp_path, base, adapter, metadata=metadata, code=3)[1]
    got, _ = merge(paramcli, tmp_path, base, spelt(factors, *words, alpha=torch.tensor(5.0)), metadata=metadata)
    torch.testing.assert_close(got["conv.weight"], changed(base, factors, 2.5)["conv.weight"], rtol=1e-13, atol=1e-13)


def test_a_scale_that_nothing_tells_is_refused(tmp_path, paramcli):
    """lora_A and lora_B without alpha: of no model, or of several ranks, which tools read differently."""
    base, factors = half_kernel()
    words = ("lora_A.weight", "lora_B.weight", True)
    assert "no word of which model" in merge(paramcli, tmp_path, base, spelt(factors, "", *words), code=3)[1]
    A, B = factors["conv"]
    factors["conv"] = (A[:1], B[:, :1])
    error = merge(paramcli, tmp_path, base, spelt(factors, "transformer.", *words), code=3)[1]
    assert "the ranks differ" in error
    flat = spelt(factors, "lora_unet_", "lora_down.weight", "lora_up.weight", False)
    got, _ = merge(paramcli, tmp_path, base, flat)
    torch.testing.assert_close(got["conv.weight"], changed(base, factors, 1.0)["conv.weight"], rtol=1e-13, atol=1e-13)


def test_dora_is_rounded_once(kohya, tmp_path, paramcli):
    """In bfloat16 the change, the norm and the length are computed in float32, and their value is rounded."""
    base = {name: T.bfloat16() for name, T in load_file(kohya / "base.safetensors").items()}
    adapter = load_file(kohya / "lora_dora.safetensors")
    got, _ = merge(paramcli, tmp_path, base, adapter, "--strength", 0.6)
    name, flat = f"{UNET}ff_net.1.weight", "lora_unet_ff_net_1"
    up, down, m = (adapter[f"{flat}.{part}"].double() for part in ("lora_up.weight", "lora_down.weight", "dora_scale"))
    V = base[name].double() + 0.5 * up @ down
    want = V * (1 + 0.6 * (m / (V.norm(dim=1, keepdim=True) + 2**-23) - 1))
    assert torch.equal(got[name], want.to(torch.bfloat16))


def test_two_names_that_are_one_when_flat_are_refused(tmp_path, paramcli):
    """Nothing tells a dot from an underscore: both of the base are named."""
    base = {"a.b.weight": torch.ones(3, 3), "a_b.weight": torch.ones(3, 3)}
    flat = {"lora_unet_a_b.lora_down.weight": torch.ones(1, 3), "lora_unet_a_b.lora_up.weight": torch.ones(3, 1)}
    error = merge(paramcli, tmp_path, base, flat, code=3)[1]
    assert "a.b.weight" in error and "a_b.weight" in error and error.startswith("error: lora_unet_a_b.weight may be")
    dotted = {key.replace("lora_unet_a_b", "unet.a.b"): tensor for key, tensor in flat.items()}
    assert torch.equal(merge(paramcli, tmp_path, base, dotted)[0]["a_b.weight"], base["a_b.weight"])


def test_two_models_of_an_adapter_are_not_one_base(tmp_path, paramcli):
    """Both text encoders have the same names: a base that is one of them takes not both, and the hint keeps one."""
    base = {"text_model.q.weight": torch.ones(3, 3)}
    pair = {}
    for prefix in ("lora_te1_", "lora_te2_"):
        module = f"{prefix}text_model_q"
        pair |= {f"{module}.lora_down.weight": torch.ones(1, 3), f"{module}.lora_up.weight": torch.ones(3, 1)}
    error = merge(paramcli, tmp_path, base, pair, code=3)[1]
    assert "are both of text_model.q.weight" in error and "--keep 'lora_te2_*'" in error


def test_a_base_that_lacks_a_model_says_how_to_leave_it_out(kohya, tmp_path, paramcli):
    """The U-Net alone: the hint keeps what is of it, and that merges."""
    base = {name: T for name, T in load_file(kohya / "base.safetensors").items() if name.startswith(UNET)}
    adapter = load_file(kohya / "lora.safetensors")
    error = merge(paramcli, tmp_path, base, adapter, code=3)[1]
    assert "the base has nothing of lora_te1_" in error
    command = error[error.index("paramcli convert") : error.index(", and merge that")].split()
    assert command[2] == str(tmp_path / "adapter.safetensors")
    part = tmp_path / "part.safetensors"
    paramcli("convert", command[2], "--keep", command[4].strip("'"), "-o", part)
    paramcli("merge", tmp_path / "base.safetensors", "--adapter", part, "-o", tmp_path / "out.safetensors")
    want = {name: T for name, T in wanted(kohya, "lora", 1.0).items() if name in base}
    require_merged(load_file(tmp_path / "out.safetensors"), base, want)


def test_a_model_whose_projections_are_fused_is_left_out(tmp_path, paramcli):
    """SDXL's second text encoder: what to type for the rest, and why."""
    base = {
        "model.diffusion_model.a.weight": torch.ones(3, 3),
        "conditioner.embedders.1.model.x.attn.in_proj_weight": torch.ones(9, 3),
    }
    adapter = {}
    for module in ("lora_unet_a", "lora_te2_x_mlp_fc1", "lora_te2_x_self_attn_q_proj"):
        adapter |= {f"{module}.lora_down.weight": torch.ones(1, 3), f"{module}.lora_up.weight": torch.ones(3, 1)}
    error = merge(paramcli, tmp_path, base, adapter, code=3)[1]
    assert "--keep 'lora_unet_*'" in error and "which the base has fused" in error


REASONS = {
    "diffusers' names": (
        "lora_unet_down_blocks_0_conv",
        "model.diffusion_model.input_blocks.0.conv.weight",
        "its names are of diffusers",
    ),
    "original names": ("lora_unet_input_blocks_0_conv", "down_blocks.0.conv.weight", "its names are the original"),
    "fused": ("transformer.blocks.0.attn.to_q", "blocks.0.attn.qkv.weight", "which the base has fused"),
    "fused, flat": (
        "lora_te2_encoder_layers_0_self_attn_q_proj",
        "resblocks.0.attn.in_proj_weight",
        "which the base has fused",
    ),
    "a name that is near": (
        "lora_unet_bloks_0_lin",
        "blocks.0.lin.weight",
        "blocks.0.lin.weight, which is lora_unet_blocks_0_lin",
    ),
    "another base": ("lora_unet_zzz", "x.weight", "is it an adapter of this base?"),
}


@pytest.mark.parametrize("label", REASONS)
def test_why_a_name_is_in_no_base_is_said(label, tmp_path, paramcli):
    """What needs a table of renames, or a part of a tensor, is refused by that; else the nearest names, flat too."""
    module, tensor, told = REASONS[label]
    words = ("lora_A.weight", "lora_B.weight") if "." in module else ("lora_down.weight", "lora_up.weight")
    adapter = {f"{module}.{words[0]}": torch.ones(1, 3), f"{module}.{words[1]}": torch.ones(3, 1)}
    error = merge(paramcli, tmp_path, {tensor: torch.ones(3, 3)}, adapter, code=3)[1]
    assert error.startswith(f"error: {module}.weight is not in") and told in error


def test_a_prefix_is_replaced_in_flat_names_too(tmp_path, paramcli):
    """--adapter-prefix OLD=NEW, where NEW is how the base's own names begin, flat."""
    base, factors = half_kernel()
    adapter = spelt(factors, "my_net_", "lora_down.weight", "lora_up.weight", False)
    assert "not in" in merge(paramcli, tmp_path, base, adapter, code=3)[1]
    got, _ = merge(paramcli, tmp_path, base, adapter, "--adapter-prefix", "my_net_=")
    torch.testing.assert_close(got["conv.weight"], changed(base, factors, 1.0)["conv.weight"], rtol=1e-13, atol=1e-13)


PREFIXED = {
    "a wrapper of the base": ("lora_unet_", False, "net.", "--adapter-prefix lora_unet_=net_"),
    "one of dots": ("diffusion_model.", True, "net.", "--adapter-prefix diffusion_model.=net."),
    "a beginning that is not known": ("my_net_", False, "", "--adapter-prefix my_net_="),
    "another model": ("lora_te_", False, "net.text.", "--adapter-prefix lora_te_=net_text_"),
}


@pytest.mark.parametrize("label", PREFIXED)
def test_a_prefix_that_does_is_named(label, tmp_path, paramcli):
    """Names that begin another way: what to type, and then it merges."""
    prefix, dotted, before, told = PREFIXED[label]
    base, factors = half_kernel()
    whole = {before + name: tensor for name, tensor in base.items()}
    adapter = spelt(factors, prefix, "lora_down.weight", "lora_up.weight", dotted)
    error = merge(paramcli, tmp_path, whole, adapter, code=3)[1]
    assert f"try: {told}\n" in error
    got, _ = merge(paramcli, tmp_path, whole, adapter, *told.split())
    for name, tensor in changed(base, factors, 1.0).items():
        torch.testing.assert_close(got[before + name], tensor, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(("name", "told"), [("glora", True), ("lokr", True), ("loha", False), ("lora", False)])
def test_a_scale_that_rs_lora_hides_is_refused(name, told, kohya, tmp_path, paramcli):
    """LyCORIS writes such an alpha into a file so that its loader finds the scale, but for GLoRA and a whole LoKr."""
    base, adapter = load_file(kohya / "base.safetensors"), load_file(kohya / f"{name}.safetensors")
    metadata = {"ss_network_args": json.dumps({"algo": name, "rs_lora": "True"})}
    said = merge(paramcli, tmp_path, base, adapter, metadata=metadata, code=3 if told else 0)[1]
    assert ("trained with rs_lora" in said) == told
    merge(paramcli, tmp_path, base, adapter, metadata={"ss_network_args": "{" if told else '{"rs_lora": "False"}'})


def test_what_it_is_is_shown(kohya, tmp_path, paramcli):
    """inspect names the kinds, how many tensors it changes, ranks and alphas, and what the trainer said."""
    tensors = load_file(kohya / "lokr.safetensors") | load_file(kohya / "norm.safetensors")
    save_file(tensors, tmp_path / "a.safetensors", {"ss_network_module": "lycoris.kohya", "ss_tag_frequency": "{}"})
    told = paramcli("inspect", tmp_path / "a.safetensors").out
    assert "an adapter: kohya LoKr, full, of 11 tensors of its base; rank 1, 2; alpha 1.5; " in told
    assert "ss_network_module lycoris.kohya" in told and "paramcli merge BASE --adapter" in told
    shown = paramcli("inspect", kohya / "base.safetensors", "--adapter", tmp_path / "a.safetensors", "--json").json
    assert len(shown["tensors"]) == 11 and {T["chain"].partition(":")[0] for T in shown["tensors"]} == {
        "lokr",
        "shifted",
    }


def test_the_folder_of_diffusers_is_its_file(tmp_path, paramcli):
    """save_lora_weights writes pytorch_lora_weights.safetensors in a folder."""
    base, factors = half_kernel()
    save_file(base, tmp_path / "base.safetensors")
    (tmp_path / "style").mkdir()
    adapter = spelt(factors, "unet.", "lora_A.weight", "lora_B.weight", True)
    save_file(adapter, tmp_path / "style" / "pytorch_lora_weights.safetensors")
    out = tmp_path / "out.safetensors"
    paramcli("merge", tmp_path / "base.safetensors", "--adapter", tmp_path / "style", "-o", out)
    torch.testing.assert_close(
        load_file(out)["conv.weight"], changed(base, factors, 1.0)["conv.weight"], rtol=1e-13, atol=1e-13
    )


def test_an_alpha_that_is_no_tensor_is_refused(tmp_path, paramcli):
    """A torch file may hold a number in its place: merged without it the change would be another."""
    base, factors = half_kernel()
    adapter = spelt(factors, "lora_unet_", "lora_down.weight", "lora_up.weight", False)
    adapter["lora_unet_conv.alpha"] = 1.0
    error = merge(paramcli, tmp_path, base, adapter, suffix="pt", code=3)[1]
    assert "lora_unet_conv.alpha is of type float, and a tensor is wanted" in error


def test_lengths_of_diffusers_are_those_of_peft(tmp_path, paramcli):
    """lora_magnitude_vector is PEFT's DoRA: m V / norm(V) for each output, of kernels too."""
    base, factors = half_kernel()
    m = {name: torch.arange(1.0, len(B) + 1, dtype=torch.float64) for name, (_, B) in factors.items()}
    adapter = spelt(factors, "unet.", "lora_A.weight", "lora_B.weight", True)
    adapter |= {f"unet.{name}.lora_magnitude_vector": lengths for name, lengths in m.items()}
    got, _ = merge(paramcli, tmp_path, base, adapter)
    for name, V in changed(base, factors, 1.0).items():
        lengths = m[name.removesuffix(".weight")] / V.flatten(1).norm(dim=1)
        want = V * lengths.reshape(-1, *[1] * (V.ndim - 1))
        torch.testing.assert_close(got[name], want, rtol=1e-13, atol=1e-13)


def of(**parts):
    """One module's tensors, of x.weight, a 6 x 4 matrix."""
    return {f"lora_unet_x.{key.replace('__', '.')}": value for key, value in parts.items()}


DOWN, UP = torch.ones(2, 4), torch.ones(6, 2)
HADA = {"hada_w1_a": UP, "hada_w1_b": DOWN, "hada_w2_a": UP, "hada_w2_b": DOWN}
PAIR = {"lora_down__weight": DOWN, "lora_up__weight": UP}
WRONG = {
    "half a LoRA": (of(lora_down__weight=DOWN), "has no lora_up"),
    "half a LoRA and its alpha": (
        of(alpha=torch.tensor(1.0), lora_down__weight=DOWN),
        "lora_down.weight is half a change",
    ),
    "half a LoRA of diffusers": (of(lora_A__weight=DOWN), "has no lora_B"),
    "half a LoRA of diffusers before": (of(lora__down__weight=DOWN), "has no lora.up"),
    "an alpha of nothing": ({**of(**PAIR), "lora_unet_y.alpha": torch.tensor(1.0)}, "y has no change that it scales"),
    "half a LoHa": (of(**{**HADA, "hada_t1": torch.ones(2, 2)}), "has no hada_t2"),
    "half a LoKr": (of(lokr_w1=torch.ones(2, 2)), "has no lokr_w2_a"),
    "half a GLoRA": (of(a1__weight=torch.ones(4, 2)), "has no a2"),
    "a factor of IA3 that is of nothing": (of(on_input=torch.tensor(1)), "has no weight"),
    "another width": (of(lora_down__weight=torch.ones(2, 5), lora_up__weight=UP), "2x5"),
    "the two exchanged": (of(lora_down__weight=UP, lora_up__weight=DOWN), "is 6x4 in the base"),
    "another rank": (of(lora_down__weight=DOWN, lora_up__weight=torch.ones(6, 3)), "6x3"),
    "a vector": (of(lora_down__weight=torch.ones(4), lora_up__weight=UP), "a matrix is wanted"),
    "no rank": (of(lora_down__weight=torch.ones(0, 4), lora_up__weight=torch.ones(6, 0)), "a matrix is wanted"),
    "a kernel": (of(**{**PAIR, "lora_mid__weight": torch.ones(2, 2, 3, 3)}), "2x2x3x3"),
    "a length too few": (of(**PAIR, dora_scale=torch.ones(5, 1)), "dora_scale is 5x1"),
    "a length of nothing": (of(**PAIR, dora_scale=torch.tensor(1.0)), "dora_scale is scalar"),
    "W1 that does not divide": (of(lokr_w1=torch.ones(4, 2), lokr_w2=torch.ones(1, 2)), "is 6x4 in the base"),
    "two ranks": (
        of(
            lokr_w1_a=torch.ones(2, 1),
            lokr_w1_b=torch.ones(1, 2),
            lokr_w2_a=torch.ones(3, 2),
            lokr_w2_b=torch.ones(2, 2),
        ),
        "of rank 1 and the other factor of rank 2",
    ),
    "blocks that do not divide": (of(oft_blocks=torch.ones(4, 2, 2)), "oft_blocks is 4x2x2"),
    "blocks that are none": (of(oft_blocks=torch.ones(2, 3, 2)), "2x3x2"),
    "a butterfly that is none": (of(oft_blocks=torch.ones(3, 3, 2, 2)), "oft_blocks is 3x3x2x2"),
    "a kernel the other way": (of(lora_down__weight=torch.ones(2, 1, 4), lora_up__weight=UP), "is 2x1x4"),
    "a bound below 0": (of(oft_blocks=torch.ones(3, 2, 2), alpha=torch.tensor(-1.0)), "bounds the turns"),
    "a difference of another shape": (of(diff=torch.ones(4, 6)), "diff is 4x6"),
    "a bias that is not there": (of(diff=torch.ones(6, 4), diff_b=torch.ones(6)), "lora_unet_x.bias"),
    "two kinds at once": (of(**PAIR, **HADA), "of LoRA and of LoHa"),
    "a tensor that is unknown": (of(**PAIR, oft_diag=torch.ones(6)), "lora_unet_x.oft_diag"),
    "a scale of what has none": (of(diff=torch.ones(6, 4), alpha=torch.tensor(1.0)), "lora_unet_x.alpha"),
    "alpha that is NaN": (of(**PAIR, alpha=torch.tensor(math.nan)), "is nan, and a finite number is wanted"),
    "alpha that is infinite": (of(**PAIR, alpha=torch.tensor(math.inf)), "is inf, and a finite number is wanted"),
    "alpha of several": (of(**PAIR, alpha=torch.ones(2)), "a number is wanted"),
    "alpha that is complex": (of(**PAIR, alpha=torch.tensor(1j)), "a number is wanted"),
    "a factor that is NaN": (of(lora_down__weight=DOWN * math.nan, lora_up__weight=UP), "NaN"),
    "factors of integers": (of(lora_down__weight=DOWN.to(torch.int32), lora_up__weight=UP), "int32"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_fit_is_refused_by_name(wrong, tmp_path, paramcli):
    """One line, exit 3, nothing written; by `add` too, but that what is not computed is not found to be NaN."""
    adapter, told = WRONG[wrong]
    error = merge(paramcli, tmp_path, {"x.weight": torch.ones(6, 4)}, adapter, code=3)[1]
    assert error.startswith("error: ") and told in error, error
    if told != "NaN":
        files = (tmp_path / "base.safetensors", "--adapter", tmp_path / "adapter.safetensors")
        assert told in paramcli("add", *files, "-o", tmp_path / "out.safetensors", code=3).err


@pytest.mark.parametrize("command", ["merge", "add"])
def test_a_change_of_a_matrix_is_of_no_vector(command, tmp_path, paramcli):
    """A LoRA of a norm's weight, whose one dimension it has."""
    save_file({"x.weight": torch.ones(6)}, tmp_path / "base.safetensors")
    save_file(of(lora_down__weight=torch.ones(2, 1), lora_up__weight=UP), tmp_path / "adapter.safetensors")
    files = (tmp_path / "base.safetensors", "--adapter", tmp_path / "adapter.safetensors")
    assert "is 6 in the base" in paramcli(command, *files, "-o", tmp_path / "out.safetensors", code=3).err


def test_a_strength_that_is_too_much_is_refused(tmp_path, paramcli):
    """strength * alpha beyond all numbers is no scale."""
    adapter = of(**PAIR, alpha=torch.tensor(1e300, dtype=torch.float64))
    error = merge(paramcli, tmp_path, {"x.weight": torch.ones(6, 4)}, adapter, "--strength", 1e300, code=3)[1]
    assert "a scale beyond all numbers" in error


def test_what_is_no_adapter_is_said(kohya, tmp_path, paramcli):
    """A model, weights of PEFT without their configuration, a file that is not there."""
    base = {"x.weight": torch.ones(6, 4)}
    error = merge(paramcli, tmp_path, base, {"y.weight": torch.ones(2, 2)}, code=3)[1]
    assert "is no adapter that is read: a folder of PEFT, or a file of kohya, LyCORIS or diffusers" in error
    peft = {f"base_model.model.x.lora_{word}.weight": T for word, T in (("A", DOWN), ("B", UP))}
    assert "adapter_config.json" in merge(paramcli, tmp_path, base, peft, code=3)[1]
    there = ("merge", tmp_path / "base.safetensors", "--adapter")
    assert "no such file" in paramcli(*there, tmp_path / "none.safetensors", code=3).err


@pytest.mark.parametrize("name", ["full", "ia3", "loha", "lora", "lora_dora", "lora_tucker"])
def test_large_tensors_go_in_blocks(name, kohya, tmp_path, paramcli, monkeypatch):
    """Of a few rows each, with the values of the whole; to the bit where a row is no product of matrices."""
    base, adapter = kohya / "base.safetensors", kohya / f"{name}.safetensors"
    added, whole, parts = (tmp_path / f"{n}.safetensors" for n in ("added", "whole", "parts"))
    paramcli("add", base, "--adapter", adapter, "-o", added)
    paramcli("merge", base, "--adapter", adapter, "-o", whole)
    taken = []
    real = blocks.Batch.read
    monkeypatch.setattr(blocks.Batch, "read", lambda self, rows: taken.append(rows) or real(self, rows))
    monkeypatch.setattr(blocks, "LARGE", 1)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 128)
    monkeypatch.setattr(maths_rows, "FEW", 1)
    paramcli("remove", added, "-o", parts)
    assert any(rows is not None for rows in taken)
    one, other = load_file(whole), load_file(parts)
    close = 0.0 if name in ("full", "ia3") else 1e-6
    assert all(torch.allclose(one[key], other[key], rtol=close, atol=close) for key in one)


def test_what_was_added_loads_onto_a_live_model(kohya, tmp_path, paramcli):
    """Chains of one and of two parametrizations, on linear layers and kernels: the weights are those of the merge."""
    base, adapter = kohya / "base.safetensors", kohya / "lora_dora.safetensors"
    added, merged = tmp_path / "added.safetensors", tmp_path / "merged.safetensors"
    paramcli("add", base, "--adapter", adapter, "-o", added)
    paramcli("merge", base, "--adapter", adapter, "-o", merged)
    model = torch.nn.ModuleDict({"ff": torch.nn.Linear(12, 8), "c": torch.nn.Conv2d(4, 6, 3)})
    names = {"ff": f"{UNET}ff_net.1", "c": f"{UNET}input_blocks.0"}
    part = tmp_path / "part.safetensors"
    paramcli("convert", added, "--keep", "*ff_net.1*", "--keep", "*input_blocks.0*", "-o", part)
    renamed = tmp_path / "renamed.safetensors"
    paramcli("convert", part, *[f"--rename={old}={new}" for new, old in names.items()], "-o", renamed)
    load(model, renamed)
    want = load_file(merged)
    for new, old in names.items():
        torch.testing.assert_close(model[new].weight, want[f"{old}.weight"], rtol=1e-6, atol=1e-7)


def test_what_is_there_twice_is_refused(tmp_path, paramcli):
    """Two words for the lengths of a DoRA; one module flat and dotted, of which no pattern leaves the right one."""
    base, adapter, out = (tmp_path / f"{name}.safetensors" for name in ("base", "adapter", "out"))
    save_file({"m.a.weight": torch.randn(8, 8)}, base)

    def pair(name):
        return {f"{name}.lora_down.weight": torch.randn(2, 8), f"{name}.lora_up.weight": torch.randn(8, 2)}

    lengths = {"lora_unet_m_a.lora_magnitude_vector": torch.ones(8), "lora_unet_m_a.dora_scale": torch.ones(8, 1)}
    for tensors, said in (
        ({**pair("lora_unet_m_a"), **lengths}, "lora_unet_m_a.dora_scale are the same change"),
        ({**pair("lora_unet_m_a"), **pair("lora_unet_m.a")}, "try: nothing tells which is meant"),
    ):
        save_file(tensors, adapter)
        assert said in paramcli("merge", base, "--adapter", adapter, "-o", out, code=3).err
    save_file({**pair("lora_unet_m_a"), "lora_unet_m_a.lora_magnitude_vector": torch.ones(8)}, adapter)
    paramcli("merge", base, "--adapter", adapter, "-o", out)
    twice = paramcli("merge", base, *["--adapter", adapter] * 2, "-o", out, "-f", code=3).err
    assert "before a DoRA, and PEFT takes the lengths" in twice
