"""LyCORIS itself as the oracle, on adapters that it makes anew: pip install 'paramcli[oracle]'."""

import sys

import pytest
from safetensors.torch import load_file

from .test_kohya import require_merged, wanted

pytest.importorskip("lycoris")


@pytest.fixture(scope="module")
def making(request):
    sys.path.insert(0, str(request.config.rootpath / "fixtures"))
    import make_kohya

    yield make_kohya
    sys.path.pop(0)


@pytest.mark.filterwarnings("ignore")
def test_new_adapters_merge_as_lycoris_computes_with_them(making, tmp_path, paramcli):
    """Every kind of the fixtures with other numbers, at full strength and at less."""
    bases = making.models()
    making.write_base(tmp_path, bases)
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    for name in making.ADAPTERS:
        making.make(tmp_path, name, bases, seed=1000)
        for strength in making.STRENGTHS:
            adapter = ("--adapter", tmp_path / f"{name}.safetensors", "--strength", strength)
            paramcli("merge", base, *adapter, "-o", out, "-f")
            require_merged(load_file(out), load_file(base), wanted(tmp_path, name, strength))
