"""Whatever a checkpoint mixes: each of its keys is in what comes out or is named, and diff says what is equal.

A checkpoint is made of blocks: a tensor as one of the spellings stores it, something that looks like one and is
none, two spellings of one tensor, or plain tensors of any dtype. What each of them means is computed here, with torch.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(eq=False)
class Block:
    """Keys below a module's name; `weight`: what they stand for, by name. `asks`: nothing is known without --chain."""

    keys: dict[str, Tensor]
    weight: dict[str, Tensor] = field(default_factory=dict)
    asks: bool = False
    # It goes by the other spelling's names too.
    old: str | None = None


def randn(random: random.Random, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(random.getrandbits(32)))


def weight_norm(random: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    shape = random.choice([(4, 3), (4, 3, 2), (1, 5)])
    g, v = randn(random, shape[0], *[1] * (len(shape) - 1)), randn(random, *shape)
    return g, v, torch._weight_norm(v, g, 0)


def spectral(random: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    W = randn(random, *random.choice([(4, 3), (3, 5)]))
    U, S, Vh = torch.linalg.svd(W)
    u, v = U[:, 0].contiguous(), Vh[0].contiguous()
    return W, u, v, S[:1].clone(), W / torch.dot(u, W @ v)


def pruned(random: random.Random) -> tuple[Tensor, Tensor, Tensor]:
    W = randn(random, 3, 4)
    mask = (randn(random, 3, 4) > 0).float()
    mask[:, 0] = 1  # a row of zeros has no direction
    return W, mask, W * mask


def _old_weight_norm(r: random.Random) -> Block:
    g, v, W = weight_norm(r)
    return Block({"weight_g": g, "weight_v": v}, {"weight": W}, old="new")


def _new_weight_norm(r: random.Random) -> Block:
    g, v, W = weight_norm(r)
    return Block(
        {"parametrizations.weight.original0": g, "parametrizations.weight.original1": v}, {"weight": W}, old="old"
    )


def _old_spectral(r: random.Random) -> Block:
    W, u, v, _, value = spectral(r)
    return Block({"weight_orig": W, "weight_u": u, "weight_v": v}, {"weight": value}, old="new")


def _new_spectral(r: random.Random) -> Block:
    W, u, v, _, value = spectral(r)
    keys = {"original": W, "0._u": u, "0._v": v}
    return Block({f"parametrizations.weight.{role}": X for role, X in keys.items()}, {"weight": value}, old="old")


def _kept_spectral(r: random.Random) -> Block:
    W, u, v, _, value = spectral(r)
    return Block({"weight": value, "weight_orig": W, "weight_u": u, "weight_v": v}, {"weight": value})


def _soft_spectral(r: random.Random) -> Block:
    W, u, v, sigma, _ = spectral(r)
    return Block({"weight_orig": W, "weight_u": u, "weight_v": v, "weight_sigma": sigma}, asks=True)


def _old_pruned(r: random.Random) -> Block:
    W, mask, value = pruned(r)
    return Block({"weight_orig": W, "weight_mask": mask, "bias": randn(r, 3)}, {"weight": value}, old="new")


def _new_pruned(r: random.Random) -> Block:
    W, mask, value = pruned(r)
    return Block(
        {"parametrizations.weight.original": W, "parametrizations.weight.0.mask": mask}, {"weight": value}, old="old"
    )


def _pruned_v(r: random.Random) -> Block:
    v, mask, value = pruned(r)
    g = randn(r, 3, 1)
    return Block(
        {"weight_g": g, "weight_v_orig": v, "weight_v_mask": mask}, {"weight": torch._weight_norm(value, g, 0)}
    )


def _half(r: random.Random) -> Block:
    name = r.choice(["weight_g", "weight_v", "weight_orig", "weight_bar", "parametrizations.weight.original0"])
    return Block({name: randn(r, 3, 2)}, asks=True)


def _twice(r: random.Random) -> Block:
    g, v, _ = weight_norm(r)
    other = r.choice(["weight", "parametrizations.weight.original"])
    return Block({"weight_g": g, "weight_v": v, other: torch.ones_like(v)}, asks=True)


def _a_word_more(r: random.Random) -> Block:
    g, v, _ = weight_norm(r)
    return Block({"weight_g": g, "weight_v": v, "weight_scale": randn(r, 2)}, asks=True)


def _look_alike(r: random.Random) -> Block:
    g, v, _ = weight_norm(r)
    named = r.choice([("x_g", "x_v"), ("bias_k", "bias_v"), ("weight", "weight_mask"), ("time_mix_g", "time_mix_v")])
    return Block(dict(zip(named, (g, v), strict=True)))


def _plain(r: random.Random) -> Block:
    kinds: list[Callable[[], Tensor]] = [
        lambda: randn(r, 3, 3),
        lambda: randn(r, 2).half(),
        lambda: torch.arange(4),
        lambda: torch.tensor(r.random() > 0.5),
        lambda: torch.zeros(0, 3),
        lambda: randn(r, 2, 2).to(torch.float8_e4m3fn),
        lambda: randn(r, 2).bfloat16(),
        lambda: torch.view_as_complex(randn(r, 3, 2)),
    ]
    return Block({r.choice(["weight", "bias", "running_mean", "*", "re:.*", "-t", "né", "a b"]): r.choice(kinds)()})


KINDS = [
    _old_weight_norm,
    _new_weight_norm,
    _old_spectral,
    _new_spectral,
    _kept_spectral,
    _soft_spectral,
    _old_pruned,
    _new_pruned,
    _pruned_v,
    _half,
    _twice,
    _a_word_more,
    _look_alike,
    _plain,
    _plain,
]


class Mixture:
    """A state dict of blocks, with what each stands for."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.blocks = {
            f"m{index}{self.random.choice(['', '.0', '.weight_v'])}": self.random.choice(KINDS)(self.random)
            for index in range(self.random.randint(1, 7))
        }
        named = [(f"{m}.{key}", tensor) for m, block in self.blocks.items() for key, tensor in block.keys.items()]
        self.random.shuffle(named)
        self.tensors = dict(named)

    def known(self) -> dict[str, Tensor]:
        """Parametrized tensors whose weight is known, by name."""
        return {f"{m}.{name}": W for m, block in self.blocks.items() for name, W in block.weight.items()}

    def block_of(self, key: str) -> Block:
        """The block that a key is of."""
        return next(b for m, b in self.blocks.items() if key.startswith(f"{m}.") and key[len(m) + 1 :] in b.keys)

    def keys_of(self, tensor: str) -> set[str]:
        """The keys that spell a known tensor."""
        module = next(m for m, block in self.blocks.items() if tensor in {f"{m}.{name}" for name in block.weight})
        return {f"{module}.{key}" for key in self.blocks[module].keys if key != "bias"}

    @property
    def asks(self) -> bool:
        return any(block.asks for block in self.blocks.values())


def _torch_file(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"model": tensors, "epoch": 3}, folder / "in.pt")
    return folder / "in.pt"


def _single(tensors: dict[str, Tensor], folder: Path) -> Path:
    save_file(tensors, folder / "in.safetensors")
    return folder / "in.safetensors"


def _shards(tensors: dict[str, Tensor], folder: Path) -> Path:
    place = folder / "in"
    place.mkdir()
    names = list(tensors)
    parts = [names[::2], names[1::2]] if len(names) > 1 else [names]
    home = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file({name: tensors[name] for name in part}, place / file)
        home.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": sum(X.nbytes for X in tensors.values())}, "weight_map": home}
    (place / "model.safetensors.index.json").write_text(json.dumps(index))
    return place


def _dcp(tensors: dict[str, Tensor], folder: Path) -> Path:
    dcp.save(dict(tensors), checkpoint_id=folder / "in", no_dist=True)
    return folder / "in"


CONTAINERS = [_torch_file, _single, _shards, _dcp]
SEEDS = range(24)


def everything(path: Path) -> dict[str, Tensor]:
    """The tensors of a result, as their own libraries read it."""
    if path.suffix == ".pt":
        found = torch.load(path, weights_only=True)
        return found.get("model", found)
    if path.is_dir():
        return {k: t for file in sorted(path.glob("*.safetensors")) for k, t in load_file(file).items()}
    return load_file(path)


def same(a: Tensor, b: Tensor) -> bool:
    """Equal in dtype, shape and bytes."""
    raw = [X.contiguous().reshape(-1).view(torch.uint8) if X.numel() else X for X in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def made(folder: Path, seed: int) -> tuple[Mixture, Path]:
    mixture = Mixture(seed)
    return mixture, CONTAINERS[seed % len(CONTAINERS)](mixture.tensors, folder)


@pytest.mark.parametrize("seed", SEEDS)
def test_each_key_is_of_one_tensor(seed, tmp_path, paramcli):
    """inspect lists every key once; whatever else is asked is answered, or refused by name."""
    mixture, path = made(tmp_path, seed)
    keys = [key for tensor in paramcli("inspect", path, "--json").json["tensors"] for key in tensor["keys"]]
    assert sorted(keys) == sorted(mixture.tensors)
    there = sorted(tmp_path.iterdir())
    for question in (["verify"], ["discover"], ["spectrum"], ["snippet"], ["inspect", "--tree"]):
        assert paramcli(question[0], path, *question[1:], code=None).code in (0, 1, 2, 3)
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("seed", SEEDS)
def test_convert_carries_every_key(seed, tmp_path, paramcli):
    """Into each container, byte for byte."""
    mixture, path = made(tmp_path, seed)
    for name in ("out.safetensors", "out.pt"):
        paramcli("convert", path, "-o", tmp_path / name, "--check")
        got = everything(tmp_path / name)
        assert got.keys() == mixture.tensors.keys()
        assert all(same(got[key], tensor) for key, tensor in mixture.tensors.items())
        assert paramcli("diff", path, tmp_path / name).code == 0 or mixture.asks


@pytest.mark.parametrize("seed", SEEDS)
def test_a_bake_turns_what_it_knows_into_weights_and_carries_the_rest(seed, tmp_path, paramcli):
    """What it does not know it names, and then writes nothing; -t leaves that out."""
    mixture, path = made(tmp_path, seed)
    known, out = mixture.known(), tmp_path / "out.safetensors"
    said = paramcli("remove", path, "-o", out, code=None)
    assert said.code == (3 if mixture.asks or not known else 0), said.err
    assert out.exists() == (said.code == 0)
    if said.code:
        assert any(module in said.err for module in mixture.blocks) or not (known or mixture.asks)
    if not known:
        return
    if said.code:
        paramcli("remove", path, *(f"--tensor={name}" for name in known), "-o", out)
    got, spelt = load_file(out), {key for name in known for key in mixture.keys_of(name)}
    assert got.keys() == (mixture.tensors.keys() - spelt) | known.keys()
    for name, tensor in got.items():
        if name in known:
            torch.testing.assert_close(tensor, known[name], rtol=1e-5, atol=1e-6)
        else:
            assert same(tensor, mixture.tensors[name])
    again = paramcli("diff", path, out, *(f"--tensor={name}" for name in known))
    assert again.code == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("to", ["new", "old"])
def test_migrate_renames_and_loses_nothing(seed, to, tmp_path, paramcli):
    """As many keys with the same bytes; those that are no spelling of the other kind keep their names."""
    mixture, path = made(tmp_path, seed)
    out = tmp_path / "out.safetensors"
    said = paramcli("migrate", path, "--to", to, "-o", out, code=None)
    assert said.code in (0, 3) and out.exists() == (said.code == 0)
    if said.code == 0:
        got = load_file(out)
        kept = {m: block for m, block in mixture.blocks.items() if {"weight", "weight_orig"} <= block.keys.keys()}
        moved = [block for block in mixture.blocks.values() if block.old == to] + list(kept.values())
        # The value that a spectral norm kept is what its new spelling computes.
        gone = {f"{m}.weight" for m in kept} if to == "new" else set()
        assert len(got) == len(mixture.tensors) - len(gone)
        for key in mixture.tensors.keys() - gone:
            if mixture.block_of(key) not in moved:
                assert same(got[key], mixture.tensors[key])
        missing = [mixture.tensors[key] for key in mixture.tensors.keys() - gone - got.keys()]
        new = [got[key] for key in got.keys() - mixture.tensors.keys()]
        assert all(any(same(a, b) for b in new) for a in missing) and len(missing) == len(new)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_edit_touches_what_it_names(seed, tmp_path, paramcli):
    """Every other key is carried byte for byte, and is in the plan."""
    mixture, path = made(tmp_path, seed)
    names = [f"{m}.{k}" for m, b in mixture.blocks.items() for k, X in b.keys.items() if X.dtype == torch.float32]
    plain = [name for name in names if all(name not in mixture.keys_of(known) for known in mixture.known())]
    target = mixture.random.choice([*plain, *mixture.known()] or ["m0.weight"])
    out = tmp_path / "out.safetensors"
    exactly = "re:" + "".join(f"[{c}]" for c in target)
    said = paramcli("add", path, f"--tensor={exactly}", "--chain", "max_norm:c=0.5", "-o", out, code=None)
    assert said.code in (0, 2, 3) and out.exists() == (said.code == 0)
    if said.code == 0:
        spelt = mixture.keys_of(target) if target in mixture.known() else {target}
        got = load_file(out)
        assert mixture.tensors.keys() - spelt <= got.keys()
        assert all(same(got[key], mixture.tensors[key]) for key in mixture.tensors.keys() - spelt)
        assert target not in got or target in mixture.known()
        with safe_open(out, "pt") as file:
            assert list(json.loads(file.metadata()["paramcli"])["tensors"]) == [target]


@pytest.mark.parametrize("seed", SEEDS)
def test_diff_is_equal_exactly_where_every_weight_and_key_is(seed, tmp_path, paramcli):
    """Against itself with one entry changed, a key gone, a key more, or a direction v that is twice as long."""
    mixture, path = made(tmp_path, seed)
    for change in ("none", "entry", "gone", "more", "twice as long"):
        tensors = dict(mixture.tensors)
        key = mixture.random.choice(sorted(k for k, X in tensors.items() if X.numel()) or [next(iter(tensors))])
        equal = change == "none"
        if change == "entry":
            if not tensors[key].numel():
                continue
            raw = tensors[key].clone().reshape(-1)
            raw[0] = not raw[0] if raw.dtype == torch.bool else 7 if raw[0] != 7 else 5
            tensors[key] = raw.reshape(tensors[key].shape)
            # A masked entry, and the length of u, are no part of the weight.
            if mixture.block_of(key).weight:
                continue
        elif change == "gone":
            del tensors[key]
            # Without its value, or its v, a spectral norm that kept both is still the same weight.
            if not tensors or {"weight", "weight_orig"} <= mixture.block_of(key).keys.keys():
                continue
        elif change == "more":
            tensors["extra"] = torch.ones(1)
        elif change == "twice as long":
            long = [m for m, b in mixture.blocks.items() if b.keys.keys() == {"weight_g", "weight_v"}]
            if not long:
                continue
            tensors[f"{long[0]}.weight_v"] = 2 * tensors[f"{long[0]}.weight_v"]
            equal = True
        save_file(tensors, tmp_path / "other.safetensors")
        said = paramcli("diff", path, tmp_path / "other.safetensors", code=None)
        assert said.code == 0 if equal and not mixture.asks else said.code in ((0, 3) if equal else (1, 3)), (
            change,
            key,
        )
        if not mixture.asks and change != "gone":
            assert said.code == (0 if equal else 1), (change, key, said.err)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 500))
def test_many_more_mixtures(seed, tmp_path, paramcli):
    """The same, over as many mixtures as one has time for."""
    for number, law in enumerate(
        (
            test_each_key_is_of_one_tensor,
            test_convert_carries_every_key,
            test_a_bake_turns_what_it_knows_into_weights_and_carries_the_rest,
            test_an_edit_touches_what_it_names,
            test_diff_is_equal_exactly_where_every_weight_and_key_is,
        )
    ):
        place = tmp_path / str(number)
        place.mkdir()
        law(seed, place, paramcli)
    for to in ("new", "old"):
        place = tmp_path / to
        place.mkdir()
        test_migrate_renames_and_loses_nothing(seed, to, place, paramcli)
