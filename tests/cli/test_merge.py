"""merge and add --adapter: PEFT's own merges of perturbed adapters are the oracle (fixtures/make_adapters.py)."""

import json
import shutil
import time

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

MOVED = {"pissa", "olora"}
REFUSED = MOVED | {"vblora_top", "vera_unsaved"}


@pytest.fixture
def adapters(fixtures):
    return fixtures / "adapters"


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


NAMES = [
    "adalora",
    "adalora_conv",
    "adalora_conv1d",
    "beft",
    "boft",
    "boft_butterfly",
    "boft_kernels",
    "c3a",
    "conv",
    "conv1d",
    "conv1d_bias",
    "conv1d_dora",
    "conv1d_square",
    "conv_dora",
    "delora",
    "dora",
    "dora_bf16",
    "embedding",
    "experts",
    "experts_across",
    "gralora",
    "gralora_hybrid",
    "high_rank",
    "hira",
    "hira_conv1d",
    "hira_kernels",
    "hra",
    "hra_kernels",
    "ia3",
    "ia3_bf16",
    "ia3_conv1d",
    "ia3_inputs",
    "ia3_outputs",
    "ln_tuning",
    "loha",
    "loha_bf16",
    "loha_kernels",
    "loha_tucker",
    "lokr",
    "lokr_bf16",
    "lokr_kernels",
    "lokr_tucker",
    "lokr_whole",
    "lora",
    "lora_bf16",
    "lora_bias",
    "lora_half",
    "miss",
    "miss_bat",
    "miss_mini",
    "oft",
    "oft_bf16",
    "oft_bounded",
    "oft_exact",
    "oft_kernels",
    "oft_shared",
    "patterns",
    "road",
    "road_2",
    "road_4",
    "rslora",
    "saved",
    "shira",
    "token_rows",
    "token_rows_named",
    "token_rows_tied",
    "trainable_tokens",
    "vblora",
    "vblora_conv1d",
    "vera",
    "vera_conv1d",
]


def test_every_fixture_is_tried(adapters):
    """What is made for the tests is in one of the two lists."""
    assert names(adapters) == sorted([*NAMES, *REFUSED])


def merged(folder):
    """(the base's file, what PEFT's merge changes)"""
    path = folder / "merged.safetensors"
    with safe_open(path, "pt") as file:
        base = file.metadata()["base"]
    return folder.parent / f"{base}.safetensors", load_file(path)


def require_merged(got, base, want):
    """Changed tensors are PEFT's, rounded once; all others are the base's, bit for bit."""
    assert got.keys() == base.keys()
    for name, tensor in got.items():
        if name not in want:
            assert torch.equal(tensor, base[name]) and tensor.dtype == base[name].dtype, name
        elif tensor.dtype == torch.bfloat16:
            assert torch.equal(tensor, want[name]), name
        else:
            assert (tensor.double() - want[name].double()).norm() <= 1e-6 * want[name].double().norm(), name


def sharded(tensors, folder):
    """Three shards; neighbours lie in different ones."""
    folder.mkdir()
    home = {}
    for number in range(3):
        file = f"model-{number + 1:05d}-of-00003.safetensors"
        part = dict(list(tensors.items())[number::3])
        save_file(part, folder / file)
        home.update(dict.fromkeys(part, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": home}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    return folder


def how(name):
    """PEFT itself holds an adapter in half precision only where it is told to."""
    return ["--like", "peft-bf16"] if name.endswith("_half") else []


@pytest.mark.parametrize("name", NAMES)
def test_a_merge_is_what_peft_merges(name, adapters, tmp_path, paramcli):
    """One file and three shards, whose config and index come along."""
    base, want = merged(adapters / name)
    out = tmp_path / "out.safetensors"
    said = paramcli("merge", base, "--adapter", adapters / name, *how(name), "-o", out, "--json").json
    require_merged(load_file(out), load_file(base), want)
    told = {tensor["tensor"] for tensor in said["tensors"]}
    # A bias of zeros stays one, whatever it is multiplied by.
    assert told >= set(want) and not any(load_file(base)[name].any() for name in told - set(want))
    for tensor in said["tensors"]:
        if tensor["tensor"] not in want:
            continue
        before, after = (T[tensor["tensor"]].double() for T in (load_file(base), load_file(out)))
        assert float(tensor["moved"]) == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-6)
    folder = sharded(load_file(base), tmp_path / "model")
    paramcli("merge", folder, "--adapter", adapters / name, *how(name))
    parts = sorted((tmp_path / "model.merged").glob("*.safetensors"))
    assert len(parts) == 3 and (tmp_path / "model.merged" / "config.json").exists()
    require_merged({k: t for part in parts for k, t in load_file(part).items()}, load_file(base), want)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_attached_comes_off_and_bakes(name, adapters, tmp_path, paramcli):
    """add --adapter writes one file; its originals are the base, byte for byte, and its bake is the merge."""
    base, _ = merged(adapters / name)
    added, plain, baked, direct = (tmp_path / f"{n}.safetensors" for n in ("added", "plain", "baked", "direct"))
    paramcli("add", base, "--adapter", adapters / name, *how(name), "-o", added)
    paramcli("remove", added, "--no-bake", "-o", plain)
    before, after = load_file(base), load_file(plain)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    paramcli("remove", added, "-o", baked)
    paramcli("merge", base, "--adapter", adapters / name, *how(name), "-o", direct)
    once, twice = load_file(baked), load_file(direct)
    assert once.keys() == twice.keys() and all(torch.equal(once[key], twice[key]) for key in once)
    assert paramcli("verify", added, code=None).code in (0, 3)


def test_half_precision_rounds_twice(adapters, tmp_path, paramcli):
    """One rounding of the sum gives other weights than PEFT with an adapter in bfloat16; and DoRA adds nothing."""
    base, want = merged(adapters / "lora_half")
    out = tmp_path / "out.safetensors"
    paramcli("merge", base, "--adapter", adapters / "lora_half", "-o", out)
    got = load_file(out)
    assert not any(torch.equal(got[name], tensor) for name, tensor in want.items())
    refused = ("merge", base, "--adapter", adapters / "dora_bf16", "--like", "peft-bf16")
    assert "changed by dora" in paramcli(*refused, "-o", out, "-f", code=3).err
    assert paramcli("merge", base, "--adapter", adapters / "lora_half", "--like", "peft", code=2).code == 2


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize("name", ["lora", "lora_bf16", "dora"])
def test_a_merge_in_another_dtype_is_rounded_once(dtype, name, adapters, tmp_path, paramcli):
    """Every floating tensor comes in it: changed ones from the sum, others from the base, integers as they are."""
    base, _ = merged(adapters / name)
    tensors = {**load_file(base), "steps": torch.tensor(3)}
    path, wide, out = (tmp_path / f"{n}.safetensors" for n in ("base", "wide", "out"))
    save_file(tensors, path)
    save_file({key: T.double() if T.is_floating_point() else T for key, T in tensors.items()}, wide)
    paramcli("merge", wide, "--adapter", adapters / name, "-o", tmp_path / "exact.safetensors")
    exact = load_file(tmp_path / "exact.safetensors")
    paramcli("merge", path, "--adapter", adapters / name, "--dtype", dtype, "--compute-dtype", "float64", "-o", out)
    got, target = load_file(out), getattr(torch, dtype)
    assert got["steps"].dtype == torch.int64 and got.keys() == tensors.keys()
    for key, tensor in exact.items():
        if key == "steps":
            continue
        assert got[key].dtype == target
        assert torch.equal(got[key], tensor.to(target)), key


@pytest.mark.parametrize("strength", [0.0, 0.5, -1.0, 2.0])
def test_strength_multiplies_the_change(strength, adapters, tmp_path, paramcli):
    """W + k (alpha / r) B A by hand; 0 gives the base."""
    base, _ = merged(adapters / "lora")
    out = tmp_path / "out.safetensors"
    paramcli("merge", base, "--adapter", adapters / "lora", "--strength", strength, "-o", out)
    factors, before, got = load_file(adapters / "lora" / "adapter_model.safetensors"), load_file(base), load_file(out)
    for key, A in factors.items():
        if "lora_A" in key:
            name = key.removeprefix("base_model.model.").replace(".lora_A", "")
            B = factors[key.replace("lora_A", "lora_B")]
            want = before[name].double() + strength * 7 / 3 * B.double() @ A.double()
            torch.testing.assert_close(got[name].double(), want, rtol=1e-6, atol=1e-7)
            assert strength != 0 or torch.equal(got[name], before[name])


def test_the_next_command_has_the_strength_itself(adapters, tmp_path, paramcli):
    """A rounded one would be another merge; one beyond all floats is none, wherever it is said."""
    base, out = adapters / "llama.safetensors", tmp_path / "out.safetensors"
    said = paramcli("merge", base, "--adapter", adapters / "lora", "--strength", 0.123456789012, "-o", out).err
    assert "--strength 0.123456789012\n" in said
    (tmp_path / "recipe.toml").write_text(
        f'[[edit]]\ncommand = "merge"\nadapter = [{json.dumps(str(adapters / "lora"))}]\nstrength = 1{"0" * 400}\n'
    )
    error = paramcli("apply", tmp_path / "recipe.toml", base, "-o", out, "-f", code=2).err
    assert "recipe.toml line 4" in error and "a finite number is wanted" in error


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


def test_adapters_add_up_in_order(adapters, tmp_path, paramcli):
    """Two of them give the base and both changes, each with its strength."""
    base, want = merged(adapters / "lora")
    _, other = merged(adapters / "rslora")
    out, before = tmp_path / "out.safetensors", load_file(base)
    paramcli(
        "merge", base, "--adapter", adapters / "lora", "--adapter", adapters / "rslora", "--strength", 0.5, "-o", out
    )
    for name, tensor in load_file(out).items():
        wanted = before[name].double()
        wanted = wanted + sum(
            k * (changed[name].double() - before[name].double())
            for k, changed in ((1, want), (0.5, other))
            if name in changed
        )
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-5, atol=1e-6)
    again = tmp_path / "again.safetensors"
    paramcli("merge", base, "--strength", 0.5, "--adapter", adapters / "rslora", code=2)
    paramcli("merge", base, "--adapter", adapters / "rslora", *["--strength", 0.5] * 2, code=2)
    paramcli("merge", base, "-a", adapters / "rslora", "--strength=0.5", "-a", adapters / "lora", "-o", again)
    for name, tensor in load_file(again).items():
        torch.testing.assert_close(tensor, load_file(out)[name], rtol=1e-5, atol=1e-6)


def test_a_recipe_merges(adapters, tmp_path, paramcli):
    """In one pass with other edits, as commands one after another; the document of a merge is a recipe too."""
    base, _ = merged(adapters / "lora")
    one, two, direct, out = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "direct", "out"))
    name = "model.layers.0.self_attn.q_proj.weight"
    paramcli("add", base, "-t", name, "--chain", "weight_norm", "-o", one)
    paramcli("merge", one, "--adapter", adapters / "lora", "--strength", 0.5, "-o", two)
    said = paramcli("merge", base, "--adapter", adapters / "lora", "--strength", 0.5, "-o", direct, "--json").json
    recipe = tmp_path / "recipe.toml"
    adapter = json.dumps(str(adapters / "lora"))
    recipe.write_text(
        f'''[[edit]]\ncommand = "add"\ntensor = ["{name}"]\nchain = "weight_norm"\n
[[edit]]\ncommand = "merge"\nadapter = [{adapter}]\nstrength = 0.5\n'''
    )
    paramcli("apply", recipe, base, "-o", out)
    got, want = load_file(out), load_file(two)
    assert got.keys() == want.keys() and all(torch.equal(got[key], want[key]) for key in got)
    # Weight norm changes no weight, so the merge is the one without it, but for rounding.
    torch.testing.assert_close(got[name], load_file(direct)[name], rtol=1e-5, atol=1e-6)
    document = tmp_path / "document.json"
    document.write_text(json.dumps(said))
    paramcli("apply", document, base, "-o", tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == direct.read_bytes()
    shown = paramcli("apply", recipe, base, "--dry-run").out
    (tmp_path / "shown.toml").write_text(shown)
    paramcli("apply", tmp_path / "shown.toml", base, "-o", tmp_path / "third.safetensors")
    assert (tmp_path / "third.safetensors").read_bytes() == out.read_bytes()
    recipe.write_text(f'[[edit]]\ncommand = "merge"\nadapter = {adapter}\ntensor = "x"\n')
    assert "no option 'tensor'" in paramcli("apply", recipe, base, code=2).err


def test_a_merge_onto_a_parametrized_base_says_how_far_its_weight_moved(adapters, tmp_path, paramcli):
    """The base's weight is what its chain gives, and not what it stores."""
    base, _ = merged(adapters / "lora")
    normed, out = tmp_path / "normed.safetensors", tmp_path / "out.safetensors"
    paramcli("add", base, "-t", "*q_proj*", "--chain", "weight_norm", "-o", normed)
    said = paramcli("merge", normed, "--adapter", adapters / "lora", "-o", out, "--json").json
    before, after = load_file(base), load_file(out)
    for tensor in said["tensors"]:
        old, new = before[tensor["tensor"]].double(), after[tensor["tensor"]].double()
        assert float(tensor["moved"]) == pytest.approx(((new - old).norm() / old.norm()).item(), rel=1e-5)


def test_a_tied_weight_is_merged_under_each_name_or_untied(adapters, tmp_path, paramcli):
    """torch.save keeps one tensor under two names; which of them the change is for is asked."""
    base, want = merged(adapters / "embedding")
    tensors = load_file(base)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    path = tmp_path / "tied.pt"
    torch.save(tensors, path)
    assert "--tied together" in paramcli("merge", path, "--adapter", adapters / "embedding", code=3).err
    for how, other in (("together", want["model.embed_tokens.weight"]), ("separate", tensors["lm_head.weight"])):
        out = tmp_path / f"{how}.pt"
        paramcli("merge", path, "--adapter", adapters / "embedding", "--tied", how, "-o", out)
        got = torch.load(out)
        torch.testing.assert_close(got["model.embed_tokens.weight"], want["model.embed_tokens.weight"])
        torch.testing.assert_close(got["lm_head.weight"], other)
        same = got["lm_head.weight"].data_ptr() == got["model.embed_tokens.weight"].data_ptr()
        assert same == (how == "together")


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


@pytest.mark.parametrize("says", [True, False, None])
def test_a_tied_output_layer_is_named(says, tmp_path, paramcli):
    """A base without lm_head.weight, whose embedding is that: it is told, and the prefix merges onto the one tensor."""
    E, A, B = torch.randn(24, 16), torch.randn(2, 16), torch.randn(24, 2)
    base, lora, whole = tmp_path / "base", tmp_path / "lora", tmp_path / "whole"
    for folder in (base, lora, whole):
        folder.mkdir()
    save_file({"model.embed_tokens.weight": E, "model.norm.weight": torch.ones(16)}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({} if says is None else {"tie_word_embeddings": says}))
    head = "base_model.model.lm_head"
    # PEFT saves the layer itself beside its change, where it is the embedding.
    own = {f"{head}.lora_A.weight": A, f"{head}.lora_B.weight": B, f"{head}.base_layer.weight": E}
    save_file(own, lora / "adapter_model.safetensors")
    save_file({f"{head}.weight": E + 1}, whole / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["lm_head"]}
    for folder in (lora, whole):
        (folder / "adapter_config.json").write_text(json.dumps(config))
    said = paramcli("merge", base, "--adapter", lora, code=3).err
    if says is False:
        assert "be tied" not in said and "ties it" not in said and "--adapter-prefix" not in said
        return
    tied = "whose config.json ties it" if says else "where it may be tied"
    assert f"{tied} to model.embed_tokens.weight" in said
    hint = said[said.index("--adapter-prefix") :].split()[:2]
    assert hint == ["--adapter-prefix", "lm_head.=model.embed_tokens."]
    out = tmp_path / "out.safetensors"
    paramcli("merge", base, "--adapter", lora, *hint, "-o", out)
    got = load_file(out)
    torch.testing.assert_close(got["model.embed_tokens.weight"], E + 2 * B @ A)
    assert set(got) == {"model.embed_tokens.weight", "model.norm.weight"}
    # One that replaces the layer is of no tensor that is the embedding too.
    said = paramcli("merge", base, "--adapter", whole, code=3).err
    assert tied in said and "--adapter-prefix" not in said and "the output layer alone" in said


def test_the_table_has_the_dtype_that_is_written(adapters, tmp_path, paramcli):
    """Of what is merged and of what is cast, in a dry run too; nothing else in the file was asked for."""
    base = adapters / "llama.safetensors"
    given = ("--adapter", adapters / "lora", "--dtype", "bfloat16", "-o", tmp_path / "out.safetensors")
    for more in (["-n"], []):
        rows = paramcli("merge", base, *given, *more).out.splitlines()[1:]
        assert len(rows) == len(load_file(base)) and all(" bfloat16" in row for row in rows)
    assert {str(T.dtype) for T in load_file(tmp_path / "out.safetensors").values()} == {"torch.bfloat16"}


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


def spoilt(adapters, tmp_path, change=lambda tensors: tensors, **config):
    """A copy of the plain adapter with other tensors, or another configuration."""
    folder = tmp_path / "spoilt"
    shutil.copytree(adapters / "lora", folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({key: T.contiguous() for key, T in change(tensors).items()}, folder / "adapter_model.safetensors")
    values = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**values, **config}))
    return folder


def first_A(tensors):
    return next(key for key in tensors if "lora_A" in key)


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


def test_the_file_that_is_named_is_the_one_that_is_merged(adapters, tmp_path, paramcli):
    """Another name in a folder, a torch file beside one of safetensors; what is no adapter is none there."""
    base, _ = merged(adapters / "lora")
    folder, out = tmp_path / "mine", tmp_path / "out.safetensors"
    shutil.copytree(adapters / "lora", folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    other = {key: 3 * T if "lora_B" in key else T for key, T in tensors.items()}
    save_file(other, folder / "epoch-2.safetensors")
    torch.save(other, folder / "adapter_model.bin")
    paramcli("merge", base, "--adapter", folder, "--strength", 3, "-o", out)
    want, plain = load_file(out), load_file(base)
    for name in ("epoch-2.safetensors", "adapter_model.bin"):
        paramcli("merge", base, "--adapter", folder / name, "-o", out, "-f")
        for key, tensor in load_file(out).items():
            torch.testing.assert_close(tensor, want[key], rtol=1e-5, atol=1e-5)
            assert not torch.equal(tensor, plain[key]) or torch.equal(want[key], plain[key])
    shutil.copy(base, folder / "model.safetensors")
    error = paramcli("merge", base, "--adapter", folder / "model.safetensors", "-o", out, "-f", code=3).err
    assert "model.safetensors is no adapter that is read" in error


def test_a_copy_of_the_base_is_that_of_a_base_with_adapters(adapters, tmp_path, paramcli):
    """An embedding that an adapter is on is still its original; of another chain nothing says what the copy is of."""
    base, _ = merged(adapters / "embedding")
    added, twice, apart, normed = (tmp_path / f"{n}.safetensors" for n in ("added", "twice", "apart", "normed"))
    paramcli("merge", base, *["--adapter", adapters / "embedding"] * 2, "-o", twice)
    paramcli("add", base, "--adapter", adapters / "embedding", "-o", added)
    paramcli("merge", added, "--adapter", adapters / "embedding", "-o", apart)
    (key,) = [key for key in load_file(added) if key.endswith("embed_tokens.parametrizations.weight.original")]
    embedding = key.replace("parametrizations.weight.original", "weight")
    assert torch.equal(load_file(apart)[embedding], load_file(twice)[embedding])
    paramcli("add", base, "-t", embedding, "--chain", "weight_norm", "-o", normed)
    error = paramcli("merge", normed, "--adapter", adapters / "embedding", "-o", apart, "-f", code=3).err
    assert "is made of others (weight_norm" in error and "paramcli remove" in error


def test_names_of_a_hundred_thousand_parts_take_no_time(adapters, tmp_path, paramcli):
    """Where one of the base's begins in them is looked for in their last parts alone."""
    base, _ = merged(adapters / "lora")
    for config in ({}, {"target_parameters": ["q_proj.weight"]}):
        folder = spoilt(adapters, tmp_path, lambda t: {"a." * 10**5 + key: T for key, T in t.items()}, **config)
        began = time.perf_counter()
        assert paramcli("merge", base, "--adapter", folder, code=3).err.startswith("error: ")
        assert time.perf_counter() - began < 20
        shutil.rmtree(folder)


@pytest.mark.parametrize("label", ["two alphas", "one alpha twice", "two ranks"])
def test_of_two_patterns_the_first_counts(label, adapters, tmp_path, paramcli):
    """As in PEFT 0.21, whose get_pattern_key goes by the file's order: told where another alpha would be possible."""
    base, _ = merged(adapters / "lora")
    config = {
        "two alphas": {"alpha_pattern": {".*q_proj": 14, "layers.0.*": 14, "q_proj": 28}},
        "one alpha twice": {"alpha_pattern": {".*q_proj": 14, "q_proj": 14}},
        "two ranks": {"alpha_pattern": {".*q_proj": 14}, "rank_pattern": {".*q_proj": 3, "q_proj": 4}},
    }[label]
    out = tmp_path / "out.safetensors"
    told = paramcli("merge", base, "--adapter", spoilt(adapters, tmp_path, **config), "-o", out)
    name = "model.layers.0.self_attn.q_proj"
    A, B = (
        load_file(adapters / "lora" / "adapter_model.safetensors")[f"base_model.model.{name}.lora_{x}.weight"]
        for x in "AB"
    )
    torch.testing.assert_close(load_file(out)[f"{name}.weight"], load_file(base)[f"{name}.weight"] + 14 / 3 * B @ A)
    unsure = f"alpha_pattern gives {name} 14 (.*q_proj) and 28 (q_proj), and so 1 more module: the first counts"
    assert (unsure in told.err) == ("the first counts" in told.err) == (label == "two alphas")


def test_an_adapter_says_what_it_is(adapters, tmp_path, paramcli):
    """inspect of its folder or its weights; of one that is refused the reason; training leaves other files beside."""
    folder = tmp_path / "mine"
    shutil.copytree(adapters / "patterns", folder)
    (folder / "merged.safetensors").unlink()
    torch.save({}, folder / "optimizer.pt")
    (folder / "training_args.bin").write_bytes(b"?")
    for path in (folder, folder / "adapter_model.safetensors"):
        said = paramcli("inspect", path, "--json").json["adapter"]
        assert (said["title"], said["changes"]) == ("PEFT LoRA", 8)
        assert said["facts"]["r"] == "3" and said["facts"]["lora_alpha"] == "7"
        assert said["facts"]["rank_pattern"] == "layers.1.mlp.down_proj 6, q_proj 2"
        assert "next: paramcli merge BASE --adapter" in paramcli("inspect", path).out
    refused = paramcli("inspect", adapters / "pissa" / "adapter_model.safetensors", "--json").json["adapter"]
    assert "the base was changed" in refused["problem"]
    assert "adapter" not in paramcli("inspect", adapters / "llama.safetensors", "--json").json


def test_what_would_be_attached_is_shown(adapters, paramcli):
    """inspect BASE --adapter: each tensor that is changed, with its chain; nothing is computed."""
    base, want = merged(adapters / "dora")
    said = paramcli("inspect", base, "--adapter", adapters / "dora", "--json").json
    assert {tensor["tensor"]: tensor["chain"] for tensor in said["tensors"]} == dict.fromkeys(
        want, "dora:rank=3:alpha=7.0"
    )
    error = paramcli("inspect", base, "--adapter", adapters / "conv", code=3).err
    assert error.startswith("error: ")


def test_what_is_no_base_and_what_lacks_an_option_is_told(adapters, paramcli):
    """An adapter in the base's place; an adapter without its option; a command that needs a base."""
    weights, base = adapters / "lora" / "adapter_model.safetensors", adapters / "llama.safetensors"
    assert "which is an adapter itself" in paramcli("merge", weights, "--adapter", adapters / "lora", code=3).err
    assert "BASE --adapter ADAPTER" in paramcli("merge", base, adapters / "lora", code=2).err
    assert f"paramcli merge BASE --adapter {weights}" in paramcli("remove", weights, code=3).err


APART = {
    "Mixtral's files": ("block_sparse_moe.experts", ("w1", "w3", "w2")),
    "Qwen's files": ("mlp.experts", ("gate_proj", "up_proj", "down_proj")),
}


@pytest.mark.parametrize("spelt", APART)
def test_fused_changes_fit_experts_that_lie_apart(spelt, adapters, tmp_path, paramcli):
    """The rows of gate_up_proj are those of the gate and then those of up; each expert's delta is its own."""
    path, want = merged(adapters / "experts")
    module, (gate, up, down) = APART[spelt]

    def apart(tensors):
        made = {}
        for name, tensor in tensors.items():
            where, _, leaf = name.rpartition(".")
            if ".mlp.experts." not in name:
                made[name] = tensor
                continue
            where = where.replace("mlp.experts", module)
            for expert, W in enumerate(tensor):
                parts = {gate: W[:20], up: W[20:]} if leaf == "gate_up_proj" else {down: W}
                made.update({f"{where}.{expert}.{part}.weight": T.clone() for part, T in parts.items()})
        return made

    base = tmp_path / "base.safetensors"
    save_file(apart(load_file(path)), base)
    out = tmp_path / "out.safetensors"
    said = paramcli("merge", base, "--adapter", adapters / "experts", "-o", out, "--json").json
    require_merged(load_file(out), load_file(base), apart(want))
    assert len(said["tensors"]) == 1 + 3 * 3
    folder = sharded(load_file(base), tmp_path / "model")
    paramcli("merge", folder, "--adapter", adapters / "experts")
    parts = (tmp_path / "model.merged").glob("*.safetensors")
    require_merged({k: t for part in parts for k, t in load_file(part).items()}, load_file(base), apart(want))
    added, baked = tmp_path / "added.safetensors", tmp_path / "baked.safetensors"
    paramcli("add", base, "--adapter", adapters / "experts", "-o", added)
    paramcli("remove", added, "-o", baked)
    require_merged(load_file(baked), load_file(base), apart(want))


def expert_adapter(folder, experts, rank, out, inputs, **config):
    """A PEFT folder of one fused parameter, by hand."""
    folder.mkdir()
    chance = torch.Generator().manual_seed(0)
    A, B = torch.randn(experts * rank, inputs, generator=chance), torch.randn(out, rank * experts, generator=chance)
    where = "base_model.model.m.experts"
    save_file({f"{where}.lora_A.weight": A, f"{where}.lora_B.weight": B}, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_parameters": ["experts.w"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    A, B = A.view(experts, rank, inputs).double(), B.view(out, rank, experts).double()
    return torch.einsum("ore,eri->eoi", B, A)


@pytest.mark.parametrize("across", [False, True])
def test_large_experts_are_merged_by_rows(across, tmp_path, paramcli):
    """A tensor of 12 MB goes expert by expert, whichever way it is stored."""
    change = expert_adapter(tmp_path / "adapter", 12, 4, 640, 400)
    change = change.mT if across else change
    W = torch.randn(change.shape)
    save_file({"m.experts.w": W.contiguous(), "n.weight": torch.ones(3)}, tmp_path / "base.safetensors")
    out = tmp_path / "out.safetensors"
    paramcli("merge", tmp_path / "base.safetensors", "--adapter", tmp_path / "adapter", "-o", out)
    torch.testing.assert_close(load_file(out)["m.experts.w"].double(), W.double() + change, rtol=1e-5, atol=1e-4)


def test_experts_that_do_not_fit_are_refused(tmp_path, paramcli):
    """Another size, another number of experts, square ones of which nothing tells how they lie, names that are none."""
    expert_adapter(tmp_path / "adapter", 2, 3, 8, 8)
    base = tmp_path / "base.safetensors"
    for shape, said in (((2, 8, 8), "is square for each expert"), ((4, 8, 8), "4x8x8"), ((2, 8, 9), "2x8x9")):
        save_file({"m.experts.w": torch.ones(shape)}, base)
        assert said in paramcli("merge", base, "--adapter", tmp_path / "adapter", code=3).err
    save_file({"m.experts.x": torch.ones(2, 8, 8)}, base)
    assert "m.experts.w, which the base has" in paramcli("merge", base, "--adapter", tmp_path / "adapter", code=3).err
    expert_adapter(tmp_path / "odd", 2, 3, 8, 8, target_parameters="experts.w")
    assert "no list of names" in paramcli("merge", base, "--adapter", tmp_path / "odd", code=3).err


@pytest.mark.parametrize("kind", ["safetensors", "pt", "shards"])
def test_a_whole_model_is_merged_by_its_configurations(kind, adapters, tmp_path, paramcli):
    """Base and adapters in one state dict: the configurations tell the scales, the result has the base's own names."""
    folder = adapters.parent / "peft_model"
    tensors, want = load_file(folder / "model.safetensors"), load_file(folder / "merged.safetensors")
    base, out = folder / "model.safetensors", tmp_path / "out.safetensors"
    if kind == "pt":
        base = tmp_path / "model.pt"
        torch.save({"step": 3, "state_dict": tensors}, base)
    elif kind == "shards":
        base, out = sharded(tensors, tmp_path / "model"), tmp_path / "out"
    both = ("--adapter", folder / "adapter_config.json", "--adapter", folder / "other" / "adapter_config.json")
    paramcli("merge", base, *both, "-o", out)
    got = {k: t for part in ([out] if out.is_file() else out.glob("*.safetensors")) for k, t in load_file(part).items()}
    require_merged(got, load_file(adapters / "llama.safetensors"), want)
    error = paramcli("merge", base, *both[:2], "-o", out, "-f", code=3).err
    assert "is of the adapter other" in error
    assert "--adapter adapter_config.json" in paramcli("remove", base, code=3).err
    strengths = ("--adapter", folder, "--strength", 0, "--adapter", folder / "other", "--strength", 1)
    paramcli("merge", base, *strengths, "-o", tmp_path / "none.safetensors" if kind != "shards" else tmp_path / "none")
