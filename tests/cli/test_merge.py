"""merge and add --adapter: strengths, several adapters, recipes, and what is shown of them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from .merging import merged


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


def test_the_table_has_the_dtype_that_is_written(adapters, tmp_path, paramcli):
    """Of what is merged and of what is cast, in a dry run too; nothing else in the file was asked for."""
    base = adapters / "llama.safetensors"
    given = ("--adapter", adapters / "lora", "--dtype", "bfloat16", "-o", tmp_path / "out.safetensors")
    for more in (["-n"], []):
        rows = paramcli("merge", base, *given, *more).out.splitlines()[1:]
        assert len(rows) == len(load_file(base)) and all(" bfloat16" in row for row in rows)
    assert {str(T.dtype) for T in load_file(tmp_path / "out.safetensors").values()} == {"torch.bfloat16"}


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
