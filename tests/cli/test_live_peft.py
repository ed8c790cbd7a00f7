"""PEFT itself as the oracle, on adapters that it makes anew: pip install 'paramcli[oracle]'."""

import sys

import pytest
from safetensors.torch import load_file, save_file

from .merging import REFUSED, how, merged, require_merged

pytest.importorskip("peft")
pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def making(request):
    sys.path.insert(0, str(request.config.rootpath / "fixtures"))
    import make_adapters

    make_adapters.boft.get_fbd_cuda = make_adapters.BlockDiagonal
    yield make_adapters
    sys.path.pop(0)


@pytest.mark.filterwarnings("ignore")
def test_new_adapters_merge_as_peft_merges_them(making, tmp_path, paramcli):
    """Every configuration of the fixtures with other numbers; the result loads strictly in the model's class."""
    tried = 0
    for name, (base, config) in making.configurations().items():
        path = tmp_path / f"{base}.safetensors"
        if not path.exists():
            save_file(making.tensors_of(making.base_of(base)), path)
        making.make(tmp_path, name, base, config, seed=1000)
        if name in REFUSED:
            continue
        path, want = merged(tmp_path / name)
        out = tmp_path / f"{name}.out.safetensors"
        paramcli("merge", path, "--adapter", tmp_path / name, *how(name), "-o", out)
        require_merged(load_file(out), load_file(path), want)
        model = making.base_of(base)
        missing, unexpected = model.load_state_dict(load_file(out), strict=False)
        tied = set(getattr(model, "_tied_weights_keys", None) or {})
        assert set(missing) <= tied and not unexpected, name
        tried += 1
    assert tried > 20
