"""Tolerances against what rounding and the maps leave: python -m tests.tolerances, held to its bounds."""

import pytest
import torch

from ..tolerances import TORCHS, lines
from .members import MEMBERS

# How much of what was measured a tolerance may be: in half types, and where no map of torch's computes members; where
# torch's own do (orthogonal, spectral_norm, matrix_exp, the tutorial's).
MOST, OF_TORCHS = 20, 4


@pytest.mark.parametrize("n", [8, pytest.param(64, marks=pytest.mark.slow), pytest.param(512, marks=pytest.mark.slow)])
@pytest.mark.parametrize("key", MEMBERS)
def test_a_tolerance_is_what_rounding_explains_and_little_more(key, n):
    """Nothing that is inside is off, and nothing is let pass that is many times what members and maps leave."""
    with torch.no_grad():
        for line in lines([n], [key]):
            worst = max(line.rounded, line.maps)
            assert worst <= line.tolerance, line
            if line.exact or not worst:
                continue  # exact, or the residual itself takes off what measuring it is off by
            bound = OF_TORCHS if key in TORCHS and line.maps and line.dtype not in ("float16", "bfloat16") else MOST
            assert line.ratio <= bound, line
