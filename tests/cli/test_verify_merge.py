"""verify --base --adapter: what PEFT, paramcli and code like sd-scripts merge holds; planted faults are told apart.

The faults are planted by torch's own arithmetic here, which shares nothing with what tells them.
"""

import itertools
import json
import shlex
import shutil
from dataclasses import dataclass

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import paramcli as library

from .merging import REFUSED
from .test_kohya import NAMES as KOHYA
from .test_kohya import wanted

HALVES = torch.float16, torch.bfloat16
RANK, ALPHA = 4, 6
SCALE = ALPHA / RANK


def whole(folder, out):
    """(the base's file, all of what PEFT merges it to)"""
    with safe_open(folder / "merged.safetensors", "pt") as file:
        base = folder.parent / f"{file.metadata()['base']}.safetensors"
    save_file({**load_file(base), **load_file(folder / "merged.safetensors")}, out)
    return base, out


def test_what_merge_prints_to_type_next_proves_it(adapters, tmp_path, paramcli):
    """With its strength, its prefix and its root; of several adapters nothing is printed that would not do."""
    base, _ = whole(adapters / "lora", tmp_path / "x.safetensors")
    longer = {n.replace("model.layers", "model.language_model.layers"): T for n, T in load_file(base).items()}
    torch.save({"ema": longer, "model": longer}, tmp_path / "base.pt")
    prefix = "--adapter-prefix", "model.=model.language_model."
    lora = "--adapter", adapters / "lora"
    for more in ((*lora, "--strength", -0.5), lora):
        said = paramcli("merge", tmp_path / "base.pt", "--root", "ema", *more, *prefix, "-f").err
        typed = shlex.split(said[said.index("next: paramcli ") :])[2:]
        assert "base plus adapter" in paramcli(*typed).err
    assert "next:" not in paramcli("merge", base, *lora, *lora, "-o", tmp_path / "two.safetensors").err


@dataclass
class Case:
    """A base of a square matrix and one that is not, an adapter of them, and merges made here."""

    folder: object
    dtype: torch.dtype
    dora: bool
    change: float

    def __post_init__(self):
        chance = torch.Generator().manual_seed(3)
        draw = lambda *shape: torch.randn(shape, generator=chance)  # noqa: E731
        self.base = {
            "a.weight": (0.05 * draw(96, 128)).to(self.dtype),
            "s.weight": (0.05 * draw(80, 80)).to(self.dtype),
            "a.bias": draw(96).to(self.dtype),
        }
        self.factors, tensors = {}, {}
        for name in ("a", "s"):
            out, inputs = self.base[f"{name}.weight"].shape
            A, B = draw(RANK, inputs) / inputs**0.5, 0.05 * self.change * draw(out, RANK) * (inputs / RANK) ** 0.5
            m = self.base[f"{name}.weight"].float().norm(dim=1) * (1 + self.change * draw(out))
            self.factors[name] = A, B, m
            tensors[f"base_model.model.{name}.lora_A.weight"], tensors[f"base_model.model.{name}.lora_B.weight"] = A, B
            if self.dora:
                tensors[f"base_model.model.{name}.lora_magnitude_vector"] = m
        self.adapter = self.folder / "adapter"
        self.adapter.mkdir()
        save_file(tensors, self.adapter / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "use_dora": self.dora, "fan_in_fan_out": False}
        (self.adapter / "adapter_config.json").write_text(json.dumps(config))
        self.base_file = self.folder / "base.safetensors"
        save_file(self.base, self.base_file)

    def value(self, name, k=1.0, W=None):
        """The law, in float32."""
        A, B, m = self.factors[name]
        V = (self.base[f"{name}.weight"] if W is None else W).float() + k * SCALE * B @ A
        return V * (m / V.norm(dim=1))[:, None] if self.dora else V

    def in_half(self, name, half, cast=False):
        """As code computes it whose adapter lies in half memory; with `cast` all of it, as sd-scripts in fp16."""
        A, B, m = (T.to(half) for T in self.factors[name])
        W = self.base[f"{name}.weight"].to(half) if cast else self.base[f"{name}.weight"]
        D = 0.999 * (B @ A) / 0.999 * SCALE if cast else (B @ A) * SCALE
        if not self.dora:
            return W + D
        norm = torch.linalg.norm(W + D, dim=1).to(W.dtype)
        return (m / norm)[:, None] * (W + D)

    def write(self, make, name="merged"):
        file = self.folder / f"{name}.safetensors"
        made = {f"{n}.weight": make(n).to(self.dtype).contiguous() for n in self.factors}
        save_file({**self.base, **made}, file)
        return file

    def verdicts(self, make):
        found = library.verify_merge(self.write(make), self.base_file, self.adapter)
        assert found.untouched == 1 and not found.different
        return {verdict.tensor.partition(".")[0]: verdict for verdict in found}, found


def drawn_anew(case, name):
    A, B, m = case.factors[name]
    other = torch.randn(A.shape, generator=torch.Generator().manual_seed(9)) * A.std()
    kept, case.factors[name] = case.factors[name], (other, B, m)
    made = case.value(name)
    case.factors[name] = kept
    return made


def turned(case, name):
    """With the adapter's change the other way round, where that fits."""
    W = case.base[f"{name}.weight"]
    if W.shape[0] != W.shape[1]:
        return case.value(name)
    if case.dora:
        return case.value(name, W=W.mT.contiguous()).mT
    return W.float() + (case.value(name) - W.float()).mT


CASES = list(itertools.product((torch.float32, torch.bfloat16), (False, True), (0.3, 1e-3)))


@pytest.mark.parametrize(("dtype", "dora", "change"), CASES)
def test_every_fault_is_told_from_the_others(dtype, dora, change, tmp_path):
    """LoRA and DoRA, changes of a third of the weight and, as they are in life, of a thousandth."""
    case = Case(tmp_path, dtype, dora, change)
    faults = {
        "never_applied": lambda name: case.base[f"{name}.weight"],
        "twice": lambda name: case.value(name, W=case.value(name).to(dtype)),
        "transposed": lambda name: turned(case, name),
        "another": lambda name: drawn_anew(case, name),
    }
    for fault, make in faults.items():
        found, result = case.verdicts(make)
        assert found["s"].verdict == fault, (fault, found["s"])
        assert found["a"].verdict == ("holds" if fault == "transposed" else fault), (fault, found["a"])
        assert result.ok is False and not result
    for k in (0.5, 2 / 3, -1.0, 4.0, 1.05, 0.97):
        found, _ = case.verdicts(lambda name, k=k: case.value(name, k))
        for verdict in found.values():
            assert verdict.verdict == "other_strength", (k, verdict)
            low, high = verdict.strength
            assert low <= k <= high and high - low < 0.02, (k, verdict)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dora_that_was_taken_for_a_lora_is_told(dtype, tmp_path, fixtures):
    """Its magnitudes are left out, as some tools leave them; PEFT's and LyCORIS' alike."""
    case = Case(tmp_path, dtype, True, 0.05)
    plain = {name: case.base[f"{name}.weight"].float() + SCALE * B @ A for name, (A, B, _) in case.factors.items()}
    found, _ = case.verdicts(plain.__getitem__)
    assert {verdict.verdict for verdict in found.values()} == {"another"}
    assert all("the magnitudes are left out" in verdict.detail for verdict in found.values())
    kohya = fixtures / "kohya"
    base = {name: T.to(dtype) for name, T in load_file(kohya / "base.safetensors").items()}
    tensors = load_file(kohya / "lora_dora.safetensors")
    lora = {name: T for name, T in tensors.items() if "dora_scale" not in name}
    save_file(base, tmp_path / "k.safetensors")
    save_file(lora, tmp_path / "lora.safetensors")
    library.merge(tmp_path / "k.safetensors", tmp_path / "lora.safetensors", output=tmp_path / "out.safetensors")
    told = library.verify_merge(
        tmp_path / "out.safetensors", tmp_path / "k.safetensors", kohya / "lora_dora.safetensors"
    )
    assert all("the magnitudes are left out" in (verdict.detail or "") for verdict in told)


@pytest.mark.parametrize(("dtype", "dora", "change"), CASES)
def test_what_is_base_plus_adapter_holds(dtype, dora, change, tmp_path):
    """Computed in float32 and rounded once, or with the adapter in half memory; and nothing else is left to be said."""
    case = Case(tmp_path, dtype, dora, change)
    ways = {"once": case.value, **{str(half): lambda name, half=half: case.in_half(name, half) for half in HALVES}}
    if not dora:
        ways["sd-scripts"] = lambda name: case.in_half(name, torch.bfloat16 if dtype == torch.bfloat16 else dtype, True)
    for way, make in ways.items():
        found, result = case.verdicts(make)
        assert all(verdict.ok for verdict in found.values()) and result, (way, found)
        for verdict in found.values():
            low, high = verdict.strength
            assert low <= 1 <= high and high - low < (0.1 if way != "once" else 0.01), (way, verdict)
            assert verdict.of_rounding <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_wrong_row_and_one_wrong_entry_are_told(dtype, tmp_path):
    """Nothing hides in a mean: a row without the adapter, and an entry that is a few steps of the dtype off."""
    case = Case(tmp_path, dtype, False, 0.05)
    made = {name: case.value(name).to(dtype) for name in case.factors}
    row, entry = made["a"].clone(), made["s"].clone()
    row[7] = case.base["a.weight"][7]
    largest = entry.abs().argmax()
    entry.view(-1)[largest] *= 1 + 4 * torch.finfo(dtype).eps
    found, _ = case.verdicts({"a": row, "s": entry}.__getitem__)
    assert found["a"].verdict == "another" and "of 12288 entries are off, the others hold" in found["a"].detail
    assert found["s"].verdict == "another" and found["s"].detail.startswith("1 of 6400 entries")


def test_what_rounding_swallows_is_not_taken_for_proof(tmp_path, paramcli):
    """A change below half a step of the dtype everywhere: the base is the merge, and nothing tells (exit 3)."""
    case = Case(tmp_path, torch.bfloat16, False, 1e-7)
    found, result = case.verdicts(case.value)
    assert {verdict.verdict for verdict in found.values()} == {"below_rounding"} and result.ok is None and not result
    command = "verify", tmp_path / "merged.safetensors", "--base", case.base_file, "--adapter", case.adapter
    said = paramcli(*command, code=3)
    assert "nothing tells" in said.err and "below rounding" in said.out
    assert paramcli(*command, "--json", code=3).json["ok"] is None
    nothing = library.verify_merge(case.base_file, case.base_file, case.adapter, strength=0.0)
    assert nothing.ok is None


def test_the_pefts_merges_hold(adapters, tmp_path, paramcli):
    """Every fixture: linear, convolutions, embeddings, Conv1D, DoRA, biases, whole tensors; in float32 and bfloat16."""
    for folder in sorted(path for path in adapters.iterdir() if path.is_dir()):
        if folder.name in REFUSED:
            continue
        base, merge = whole(folder, tmp_path / f"{folder.name}.safetensors")
        said = paramcli("verify", merge, "--base", base, "--adapter", folder, "--json").json
        changed = set(load_file(folder / "merged.safetensors"))
        verdicts = {tensor["tensor"]: tensor["verdict"] for tensor in said["tensors"]}
        assert said["ok"] and changed <= verdicts.keys(), folder.name
        for name, verdict in verdicts.items():
            # A bias of zeros, times what is learned, stays what it is.
            assert verdict == ("holds" if name in changed else "below_rounding"), (folder.name, name)
        assert said["untouched"] == len(load_file(base)) - len(verdicts)


@pytest.mark.parametrize("name", ["lora", "dora_bf16", "conv_dora", "conv1d_bias"])
def test_our_own_merges_hold_in_every_form(name, adapters, tmp_path, paramcli):
    """Merged, or kept in one file; with a strength; of shards and a torch file; and not at another strength."""
    base, _ = whole(adapters / name, tmp_path / "x.safetensors")
    out, both, half = (tmp_path / f"{n}.safetensors" for n in ("out", "both", "half"))
    proof = "--base", base, "--adapter", adapters / name
    paramcli("merge", base, "--adapter", adapters / name, "-o", out)
    paramcli("add", base, "--adapter", adapters / name, "-o", both)
    paramcli("verify", out, *proof)
    paramcli("verify", both, *proof)
    paramcli("merge", base, "--adapter", adapters / name, "--strength", 0.5, "-o", half)
    paramcli("verify", half, *proof, "--strength", 0.5)
    paramcli("verify", half, *proof, code=1)
    for rounded in (["--dtype", "float16"], *([["--like", "peft-bf16"]] if "dora" not in name else [])):
        paramcli("merge", base, "--adapter", adapters / name, *rounded, "-o", half, "-f")
        paramcli("verify", half, *proof)
    torch.save({"state_dict": load_file(out), "epoch": 1}, tmp_path / "out.pt")
    paramcli("verify", tmp_path / "out.pt", *proof, "--root", "state_dict")


def test_two_adapters_are_proved_together(adapters, tmp_path, paramcli):
    """In any order that adds; the one that was left out is named."""
    base, _ = whole(adapters / "lora", tmp_path / "x.safetensors")
    one, two = adapters / "lora", adapters / "rslora"
    out, alone = tmp_path / "out.safetensors", tmp_path / "alone.safetensors"
    pair = "--adapter", one, "--strength", 0.5, "--adapter", two
    paramcli("merge", base, *pair, "-o", out)
    paramcli("verify", out, "--base", base, *pair)
    paramcli("merge", base, "--adapter", two, "-o", alone)
    said = paramcli("verify", alone, "--base", base, *pair, "--json", code=1).json
    assert {tensor["verdict"] for tensor in said["tensors"]} == {"never_applied"}
    assert all("lora is not in it, rslora is" in tensor["detail"] for tensor in said["tensors"])


def test_an_adapter_that_lies_in_the_file_of_its_base(adapters, tmp_path, paramcli):
    """The state dict of a whole PeftModel, of which the configuration says what it is."""
    base, _ = whole(adapters / "dora", tmp_path / "x.safetensors")
    own = load_file(adapters / "dora" / "adapter_model.safetensors")
    both = {
        name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."): T
        for name, T in own.items()
    }
    both = {name.replace("magnitude_vector", "magnitude_vector.default.weight"): T for name, T in both.items()}
    adapted = {name.partition(".lora_")[0] for name in own}
    for name, tensor in load_file(base).items():
        module, _, leaf = f"base_model.model.{name}".rpartition(".")
        both[f"{module}.base_layer.{leaf}" if module in adapted else f"{module}.{leaf}"] = tensor
    save_file(both, tmp_path / "peft.safetensors")
    config = tmp_path / "config"
    config.mkdir()
    shutil.copy(adapters / "dora" / "adapter_config.json", config)
    out, half = tmp_path / "out.safetensors", tmp_path / "half.safetensors"
    proof = "--base", tmp_path / "peft.safetensors", "--adapter", config
    paramcli("merge", tmp_path / "peft.safetensors", "--adapter", config, "-o", out)
    paramcli("verify", out, *proof)
    paramcli("merge", tmp_path / "peft.safetensors", "--adapter", config, "--strength", 0.5, "-o", half)
    assert "at 0.5 times its strength" in paramcli("verify", half, *proof, code=1).out


def test_what_no_adapter_changes_is_the_bases(adapters, tmp_path, paramcli):
    """One bit of another tensor, a missing one, one more, another shape: each is told by its name, exit 1."""
    base, merge = whole(adapters / "lora", tmp_path / "merged.safetensors")
    proof = "--base", base, "--adapter", adapters / "lora"
    tensors, bad = load_file(merge), tmp_path / "bad.safetensors"
    changed = {**tensors, "model.norm.weight": tensors["model.norm.weight"] * (1 + 2e-7)}
    less = {
        name: T for name, T in tensors.items() if name not in ("lm_head.weight", "model.layers.0.mlp.down_proj.weight")
    }
    more = {**tensors, "x.weight": torch.ones(2)}
    shape = {**tensors, "model.layers.0.mlp.down_proj.weight": torch.ones(3, 3)}
    for made, word in (
        (changed, "model.norm.weight  -  -  -  not the base's"),
        (less, "lm_head.weight"),
        (more, "x.weight"),
        (shape, "it is 3x3, and 16x20 in the base"),
    ):
        save_file(made, bad)
        said = paramcli("verify", bad, *proof, code=1)
        assert " ".join(word.split()) in " ".join(said.out.split()), said.out
    save_file(less, bad)
    said = paramcli("verify", bad, *proof, "--json", code=1).json
    assert said["missing"] == ["lm_head.weight", "model.layers.0.mlp.down_proj.weight"] and not said["ok"]
    tensors["model.layers.0.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, bad)
    assert "NaN or infinity in it" in paramcli("verify", bad, *proof, code=1).out
    paramcli("verify", bad, *proof, "-t", "*layers.1*")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_merge_may_have_been_cast(dtype, adapters, tmp_path):
    """As a whole, before it was merged or after: the others are casts of the base's, and said to be."""
    for name in ("lora", "lora_bf16"):
        base, merge = whole(adapters / name, tmp_path / "merged.safetensors")
        tensors, out = load_file(merge), tmp_path / "cast.safetensors"
        save_file({key: T.to(dtype) for key, T in tensors.items()}, out)
        found = library.verify_merge(out, base, adapters / name)
        same = dtype == next(iter(tensors.values())).dtype
        assert found.ok and found.untouched == 13 and found.cast == (0 if same else 13), found.summary()
        early = {key: T.to(dtype) for key, T in load_file(base).items()}
        save_file(early, tmp_path / "early.safetensors")
        library.merge(tmp_path / "early.safetensors", adapters / name, output=out, force=True)
        assert library.verify_merge(out, base, adapters / name).ok


def test_names_that_begin_another_way_say_what_to_type(adapters, tmp_path, paramcli):
    """A wrapper's prefix in the merge; a longer one of the base, for which there is --adapter-prefix."""
    base, merge = whole(adapters / "lora", tmp_path / "merged.safetensors")
    wrapped = tmp_path / "wrapped.safetensors"
    save_file({f"module.{name}": T for name, T in load_file(merge).items()}, wrapped)
    proof = "--base", base, "--adapter", adapters / "lora"
    said = paramcli("verify", wrapped, *proof, code=3).err
    assert "--strip-prefix module." in said
    longer = {n: n.replace("model.layers", "model.language_model.layers") for n in load_file(base)}
    for source, name in ((base, "base2"), (merge, "merged2")):
        save_file({longer[n]: T for n, T in load_file(source).items()}, tmp_path / f"{name}.safetensors")
    proof = tmp_path / "merged2.safetensors", "--base", tmp_path / "base2.safetensors", "--adapter", adapters / "lora"
    said = paramcli("verify", *proof, code=3).err
    hint = said[said.index("--adapter-prefix") :].split()[:2]
    paramcli("verify", *proof, *hint)


def test_half_a_question_is_no_question(adapters, tmp_path, paramcli):
    """What is missing is named; what asks another question is refused; files that are not there are exit 3."""
    base, merge = whole(adapters / "lora", tmp_path / "merged.safetensors")
    lora = "--adapter", adapters / "lora"
    assert "--base BASE" in paramcli("verify", merge, *lora, code=2).err
    said = paramcli("verify", merge, "--base", base, code=2).err
    assert "--adapter FOLDER" in said and "paramcli diff" in said
    for option in (("--constraint", "orthogonal"), ("--tol", 1), ("--chain", "skew"), ("--view", "flatten")):
        assert "exclude each other" in paramcli("verify", merge, "--base", base, *lora, *option, code=2).err
    paramcli("verify", merge, "--base", base, *lora, *lora, "--strength", 1, "--strength", 2, code=2)
    for wrong in (
        (tmp_path / "none.safetensors", "--base", base, *lora),
        (merge, "--base", tmp_path / "none.safetensors", *lora),
        (merge, "--base", base, "--adapter", tmp_path / "none"),
        (merge, "--base", base, "--adapter", adapters / "conv"),
        (merge, "--base", base, *lora, "-t", "lm_head.weight"),
    ):
        paramcli("verify", *wrong, code=3)
    point = {**load_file(base), "model.layers.0.mlp.down_proj.weight": torch.zeros(())}
    save_file(point, tmp_path / "point.safetensors")
    paramcli("verify", merge, "--base", tmp_path / "point.safetensors", *lora, code=3)
    spoilt = tmp_path / "spoilt"
    shutil.copytree(adapters / "lora", spoilt)
    tensors = load_file(spoilt / "adapter_model.safetensors")
    tensors[next(iter(tensors))][0, 0] = float("inf")
    save_file(tensors, spoilt / "adapter_model.safetensors")
    assert "infinite" in paramcli("verify", merge, "--base", base, "--adapter", spoilt, code=3).err


def test_the_document_and_the_page(adapters, tmp_path, paramcli):
    """Every field, strict JSON, the files by their sums; a page that names the verdicts."""
    base, merge = whole(adapters / "lora", tmp_path / "merged.safetensors")
    proof = "--base", base, "--adapter", adapters / "lora"
    page = tmp_path / "page.html"
    said = paramcli("verify", merge, *proof, "--json", "--sha256", "--report", page).json
    assert set(said) == {
        *("checkpoint", "base", "adapters", "ok", "tensors", "untouched", "cast", "different", "missing", "extra"),
        "evidence",
    }
    fields = {"tensor", "chain", "shape", "dtype", "verdict", "residual", "of_rounding", "differing", "strength", "ok"}
    assert set(said["tensors"][0]) == fields | {"detail"}
    assert said["adapters"] == [{"path": str(adapters / "lora"), "strength": 1.0}]
    read = [file["path"] for file in said["evidence"]["files"]]
    adapter = [str(adapters / "lora" / f"adapter_{name}") for name in ("model.safetensors", "config.json")]
    assert read == [str(merge), str(base), *adapter]
    text = page.read_text()
    assert "base plus adapter" in text and "q_proj" in text and "rounded once" in text
    paramcli("verify", merge, *proof, "--report", page, code=4)
    paramcli("verify", base, *proof, "--report", page, "--force", code=1)
    assert "never applied" in page.read_text()


def test_a_large_tensor_is_seen_block_by_block(tmp_path):
    """What merging computes bit for bit is looked at in some rows; one wrong bit in a later block is told too."""
    torch.manual_seed(0)
    W, A, B = 0.02 * torch.randn(1536, 2048), torch.randn(4, 2048) / 45, 1e-3 * torch.randn(1536, 4)
    base = tmp_path / "base.safetensors"
    save_file({"l.weight": W}, base)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    names = {f"base_model.model.l.lora_{name}.weight": T for name, T in (("A", A), ("B", B))}
    save_file(names, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    out = tmp_path / "out.safetensors"
    library.merge(base, adapter, output=out)
    [held] = library.verify_merge(out, base, adapter)
    assert held.ok and held.differing > 0.99 and 0.999 < held.strength[0] <= 1 <= held.strength[1] < 1.001
    made = load_file(out)["l.weight"]
    bits = made.view(torch.int32)
    bits[1500, 77] ^= 1 << 12
    save_file({"l.weight": made}, out)
    [told] = library.verify_merge(out, base, adapter)
    assert told.verdict == "another" and told.detail == "1 of 3145728 entries is off, the others hold"
    library.merge(base, adapter, strength=0.25, output=out, force=True)
    [weak] = library.verify_merge(out, base, adapter)
    assert weak.verdict == "other_strength" and weak.said == "at 0.25 times its strength"


def test_lycoris_kinds_hold_and_their_strengths_are_told(fixtures, tmp_path):
    """LoHa, LoKr, GLoRA, OFT, whole differences and the others, as LyCORIS computes them, at two strengths."""
    kohya, out = fixtures / "kohya", tmp_path / "out.safetensors"
    for name in KOHYA:
        for strength, other in ((1.0, 0.6), (0.6, 1.0)):
            save_file({**load_file(kohya / "base.safetensors"), **wanted(kohya, name, strength)}, out)
            proof = out, kohya / "base.safetensors", kohya / f"{name}.safetensors"
            found = library.verify_merge(*proof, strength=strength)
            assert found and {verdict.verdict for verdict in found} == {"holds"}, (name, strength, found.summary())
            for verdict in library.verify_merge(*proof, strength=other):
                low, high = verdict.strength
                assert verdict.verdict == "other_strength" and low <= strength / other <= high, (name, verdict)


def test_the_columns_are_explained_to_a_person(fixtures, tmp_path, paramcli):
    """One line on stderr, which -q and --json do without."""
    base, lora = fixtures / "adapters" / "llama.safetensors", fixtures / "adapters" / "lora"
    paramcli("merge", base, "--adapter", lora, "-o", tmp_path / "m.safetensors")
    question = ("verify", tmp_path / "m.safetensors", "--base", base, "--adapter", lora)
    told = paramcli(*question)
    assert "of rounding: of the worst entry, up to 1 is rounding; strength: 1 is what was asked for\n" in told.err
    paramcli(*question, "--report", tmp_path / "page.html")
    assert "of rounding: of the worst entry" in (tmp_path / "page.html").read_text()
    assert not paramcli(*question, "-q").err and "worst entry" not in paramcli(*question, "--json").err
