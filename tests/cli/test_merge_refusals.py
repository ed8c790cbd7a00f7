"""What no merge can be made of is refused, by name and with what would do."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ..pace import steps
from .merging import MOVED, first_A, merged, spoilt


def test_what_must_be_removed_first_is_the_base(adapters, tmp_path, paramcli):
    """A weight through another view than the adapter's: the command names the file that has it."""
    path, viewed = tmp_path / "base.safetensors", tmp_path / "viewed.safetensors"
    name = "model.layers.0.self_attn.v_proj.weight"
    base, _ = merged(adapters / "lora")
    paramcli("add", base, "-t", name, "--chain", "weight_norm", "--view", "transpose", "-o", viewed)
    error = paramcli("merge", viewed, "--adapter", adapters / "lora", "-o", path, code=3).err
    assert f"try: paramcli remove {viewed} first" in error and error.splitlines()[0].endswith(f"(in {viewed})")


def test_a_dora_after_another_adapter_is_refused(adapters, tmp_path, paramcli):
    """PEFT takes its lengths of the base and its own change alone. Before another one it is what PEFT merges."""
    base, want = merged(adapters / "dora")
    _, other = merged(adapters / "lora")
    dora, lora, out = adapters / "dora", adapters / "lora", tmp_path / "out.safetensors"
    for first in (lora, dora):
        error = paramcli("merge", base, "--adapter", first, "--adapter", dora, "-o", out, code=3).err
        assert "before a DoRA, and PEFT takes the lengths of the weight without that" in error
    paramcli("merge", base, "--adapter", dora, "--adapter", lora, "-o", out)
    got, before = load_file(out), load_file(base)
    for name in want.keys() & other.keys():
        torch.testing.assert_close(got[name], want[name] + other[name] - before[name], rtol=1e-5, atol=1e-5)


def test_a_prefix_that_does_is_named(adapters, tmp_path, paramcli):
    """Names that begin another way: what to type, and then it merges."""
    base, want = merged(adapters / "lora")
    wrapped = tmp_path / "wrapped.safetensors"
    rename = lambda name: name.replace("model.layers", "model.language_model.layers")  # noqa: E731
    save_file({rename(name): tensor for name, tensor in load_file(base).items()}, wrapped)
    said = paramcli("merge", wrapped, "--adapter", adapters / "lora", code=3).err
    hint = said[said.index("--adapter-prefix") :].split()
    out = tmp_path / "out.safetensors"
    paramcli("merge", wrapped, "--adapter", adapters / "lora", hint[0], hint[1], "-o", out)
    got = load_file(out)
    assert all((got[rename(name)] - tensor).norm() < 1e-6 * tensor.norm() for name, tensor in want.items())


def test_a_prefix_of_nothing_is_a_mistake(adapters, tmp_path, paramcli):
    """What replaces no name is told, of all adapters together, wherever adapters are given; an empty one is of all."""
    out, base = tmp_path / "out.safetensors", adapters / "llama.safetensors"
    lora, dora = adapters / "lora", adapters / "dora"
    for prefix, told in {
        ("models.=x.",): f"--adapter-prefix models.=x.: no name in {lora} begins so\n  closest: model.",
        ("=", "model.=model."): f"--adapter-prefix model.=model.: an earlier one replaces what begins so in {lora}",
    }.items():
        given = [word for text in prefix for word in ("--adapter-prefix", text)]
        for command in (("merge", base, "-o", out), ("add", base, "-o", out), ("inspect", base), ("diff", base, base)):
            assert told in paramcli(*command, "--adapter", lora, *given, code=2).err
        assert told in paramcli("verify", base, "--base", base, "--adapter", lora, *given, code=2).err
    assert not out.exists()
    said = paramcli("merge", base, "--adapter", lora, "--adapter", dora, "--adapter-prefix", "x=y", code=2).err
    assert f"no name in {lora} and 1 other adapter begins so" in said
    wrapped = tmp_path / "wrapped.safetensors"
    save_file({f"x.{name}": tensor for name, tensor in load_file(base).items()}, wrapped)
    paramcli("merge", wrapped, "--adapter", lora, "--adapter-prefix", "=x.", "-o", out)
    # Of the two sides of a diff one is enough.
    paramcli("diff", out, wrapped, "--adapter-b", lora, "--adapter-prefix", "=x.")


WRONG = {
    "one key more": (lambda t: {**t, "base_model.model.x.lora_A.weight": torch.ones(3, 2)}, {}, "half a change"),
    "a stranger": (lambda t: {**t, "base_model.model.lm_head.hada_w1_a": torch.ones(3, 2)}, {}, "lm_head.hada_w1_a"),
    "one of another layer": (
        lambda t: {key.replace("layers.1.mlp", "layers.9.mlp"): T for key, T in t.items()},
        {},
        "layers.9.mlp.down_proj.weight",
    ),
    "half a change": (
        lambda t: {key: T for key, T in t.items() if key != first_A(t)},
        {},
        "has no lora_A",
    ),
    "another width": (lambda t: {**t, first_A(t): torch.ones(3, 99)}, {}, "3x99"),
    "another rank in the configuration": (lambda t: t, {"r": 8}, "is 8 here, and 3 in the weights"),
    "DoRA by its configuration alone": (lambda t: t, {"use_dora": True}, "wants a lora_magnitude_vector beside it"),
    "DoRA by its tensors alone": (
        lambda t: {**t, first_A(t).replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(16)},
        {},
        "use_dora of the configuration is not set",
    ),
    "a bias by the configuration alone": (lambda t: t, {"lora_bias": True}, "wants a lora_B.bias beside it"),
    "a bias by its tensor alone": (
        lambda t: {**t, first_A(t).replace("lora_A.weight", "lora_B.bias"): torch.ones(16)},
        {},
        "lora_bias of the configuration is not set",
    ),
    "one change by two names": (
        lambda t: {**t, **{key.replace(".lora_", ".base_layer.lora_"): 2 * T for key, T in t.items()}},
        {},
        "are the same change of model.layers.",
    ),
    "two tensors for one": (
        lambda t: {
            **t,
            **{
                f"base_model.model.lm_head.{at}weight": torch.ones(24, 16) for at in ("", "base_layer.modules_to_save.")
            },
        },
        {},
        "are the same change of lm_head.weight",
    ),
    "magnitudes in a matrix": (
        lambda t: {
            **t,
            **{
                key.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(4, T.shape[0])
                for key, T in t.items()
                if "lora_A" in key
            },
        },
        {"use_dora": True},
        "and the outputs of lora_B are 16",
    ),
    "PiSSA": (lambda t: t, {"init_lora_weights": "pissa_niter_4"}, "the base was changed"),
    "another method": (lambda t: t, {"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
    "what depends on the input": (lambda t: t, {"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
    "a pattern that looks ahead": (lambda t: t, {"alpha_pattern": {"(?=q)q_proj": 2}}, "does not match"),
    "a pattern that is too long": (lambda t: t, {"rank_pattern": {"a" * 600: 2}}, "does not match"),
    "patterns that are no object": (lambda t: t, {"rank_pattern": ["q_proj"]}, "no object"),
    "a configuration of another type": (lambda t: t, {"peft_type": "LOKR"}, "LOKR"),
    "layers that are replicated": (lambda t: t, {"layer_replication": [[0, 2]]}, "layer_replication"),
    "a scale that is none": (lambda t: t, {"lora_alpha": "much"}, "is no number"),
    "a scale beyond all": (lambda t: t, {"lora_alpha": 10**400}, "is no number"),
    "NaN": (lambda t: {**t, first_A(t): t[first_A(t)] * float("nan")}, {}, "NaN"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("command", ["merge", "add"])
def test_what_does_not_fit_is_refused_by_name(wrong, command, adapters, tmp_path, paramcli):
    """One line, exit 3, nothing written. (What is not computed is not found to be NaN.)"""
    change, config, said = WRONG[wrong]
    base, _ = merged(adapters / "lora")
    folder = spoilt(adapters, tmp_path, change, **config)
    there = sorted(tmp_path.iterdir())
    if (wrong, command) == ("NaN", "add"):
        return
    error = paramcli(command, base, "--adapter", folder, "-o", tmp_path / "out.safetensors", code=3).err
    assert " -t" not in error  # which neither of the two has for adapters
    assert said in error and error.startswith("error: ") and sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("name", sorted(MOVED))
def test_an_adapter_of_a_changed_base_is_refused(name, adapters, tmp_path, paramcli):
    """What PiSSA and its like add is not to the base that was published."""
    base, _ = merged(adapters / name)
    error = paramcli("merge", base, "--adapter", adapters / name, "-o", tmp_path / "out.safetensors", code=3).err
    assert "the base was changed when training began" in error and not list(tmp_path.iterdir())


def test_what_is_no_adapter_is_said(adapters, tmp_path, paramcli):
    """No folder, no weights, no configuration, a broken one; a base of integers; an output that is there."""
    base, _ = merged(adapters / "lora")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "there is none" in paramcli("merge", base, "--adapter", empty, code=3).err
    shutil.copy(adapters / "lora" / "adapter_config.json", empty)
    assert "without adapter_model.safetensors" in paramcli("merge", base, "--adapter", empty, code=3).err
    bare = tmp_path / "bare"
    shutil.copytree(adapters / "lora", bare)
    (bare / "adapter_config.json").unlink()
    assert "there is none" in paramcli("merge", base, "--adapter", bare, code=3).err
    (bare / "adapter_config.json").write_text("[1]")
    assert "no JSON object" in paramcli("merge", base, "--adapter", bare, code=3).err
    integers = tmp_path / "integers.safetensors"
    save_file({name: T.mul(9).to(torch.int8) for name, T in load_file(base).items()}, integers)
    assert "is int8" in paramcli("merge", integers, "--adapter", adapters / "lora", code=3).err
    assert "exists" in paramcli("merge", base, "--adapter", adapters / "lora", "-o", integers, code=4).err


def test_names_of_a_hundred_thousand_parts_take_no_time(adapters, tmp_path, paramcli):
    """Where one of the base's begins in them is looked for in their last parts alone."""
    base, _ = merged(adapters / "lora")
    for config in ({}, {"target_parameters": ["q_proj.weight"]}):
        folder = spoilt(adapters, tmp_path, lambda t: {"a." * 10**5 + key: T for key, T in t.items()}, **config)

        def refused(folder=folder) -> None:
            assert paramcli("merge", base, "--adapter", folder, code=3).err.startswith("error: ")

        # Twenty times what it takes; all begins would take minutes.
        assert steps(refused, 400_000_000) < 400_000_000
        shutil.rmtree(folder)


def test_what_is_no_base_and_what_lacks_an_option_is_told(adapters, paramcli):
    """An adapter in the base's place; an adapter without its option; a command that needs a base."""
    weights, base = adapters / "lora" / "adapter_model.safetensors", adapters / "llama.safetensors"
    assert "which is an adapter itself" in paramcli("merge", weights, "--adapter", adapters / "lora", code=3).err
    assert "BASE --adapter ADAPTER" in paramcli("merge", base, adapters / "lora", code=2).err
    assert f"paramcli merge BASE --adapter {weights}" in paramcli("remove", weights, code=3).err
