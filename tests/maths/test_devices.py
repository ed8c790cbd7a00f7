"""Device correctness without a GPU: under fake tensors, mixing CPU and CUDA raises."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from paramcli.maths.bounded import CutNorm, MagnitudePreserving, ToBall, ToUnitNorm
from paramcli.maths.definite import LU, CholeskyCorrelation, CholeskyDefinite
from paramcli.maths.elementwise import ToIncreasing, ToInterval, ToPositive
from paramcli.maths.exponential import MatrixExp
from paramcli.maths.facts import largest_singular_value
from paramcli.maths.mask import Mask, PruneL1
from paramcli.maths.moments import ToSum, WeightStandardization
from paramcli.maths.norm import UnitSpectralNorm, WeightNorm, as_matrix
from paramcli.maths.orthogonal import Cayley, Orthogonal, gram_error
from paramcli.maths.spectral import AlmostOrthogonal, CutToCap, ScaledToCap
from paramcli.maths.stochastic import Sinkhorn, ToSimplex
from paramcli.maths.symmetric import Skew, SkewMatrices, Symmetric, SymmetricMatrices

SHAPE = (4, 6, 6)


def fake():
    return torch.empty(SHAPE, device="cuda")


MAPS = {
    "symmetric": lambda X: Symmetric()(X),
    "skew": lambda X: Skew()(X),
    "cayley": lambda X: Cayley()(X),
    "matrix_exp": lambda X: MatrixExp()(X),
    "orthogonal matrix_exp": lambda X: Orthogonal.make(X, "matrix_exp", False)(X),
    "orthogonal cayley": lambda X: Orthogonal.make(X, "cayley", False)(X),
    "orthogonal householder": lambda X: Orthogonal.make(X, "householder", False)(X),
    "weight_norm": lambda X: WeightNorm(0).map(X.narrow(1, 0, 1).narrow(2, 0, 1), X),
    "mask": lambda X: Mask(torch.empty(SHAPE, dtype=torch.bool, device="cuda"))(X),
    "prune_l1": lambda X: PruneL1(torch.empty(SHAPE, dtype=torch.bool, device="cuda"))(X),
    "lu": lambda X: LU(torch.empty(SHAPE[:2], dtype=torch.int64, device="cuda"), X.narrow(2, 0, 1).squeeze(2))(X),
    **{
        type(part).__name__: lambda X, part=part: part(X)
        for part in (
            ToUnitNorm(),
            MagnitudePreserving(),
            ToBall(),
            CutNorm(),
            ToSum(),
            WeightStandardization(),
            ScaledToCap(),
            CutToCap(),
            AlmostOrthogonal(),
            ToPositive(),
            ToInterval(),
            ToIncreasing(),
            ToSimplex(),
            Sinkhorn(3),
            CholeskyDefinite(0.1),
            CholeskyCorrelation(),
        )
    },
    "half precision": lambda X: Cayley()(X.half()),
    "gram error": lambda X: gram_error(X),
    "spectral norm": lambda X: largest_singular_value(as_matrix(X, 0)),
    "residuals": lambda X: SymmetricMatrices().residual(X) + SkewMatrices().residual(X),
    "unit spectral residual": lambda X: UnitSpectralNorm().residual(X),
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_stay_on_their_device(name):
    """Every map and residual runs on a CUDA tensor without touching one on the CPU, and its value is on CUDA."""
    with FakeTensorMode():
        assert MAPS[name](fake()).device.type == "cuda"


def test_the_mode_notices_mixing():
    """The instrument works: a CPU tensor in the sum raises."""
    with FakeTensorMode(), pytest.raises(Exception, match="device"):
        fake() + torch.empty(SHAPE)


def test_weight_norm_in_double_precision_leaves_torchs_kernel_on_cuda_alone(monkeypatch):
    """There it is right to single precision only; on the CPU, and in other dtypes, the bits are torch's own."""

    class Asked(Exception):
        pass

    def kernel(*arguments):
        raise Asked

    with FakeTensorMode():
        for dtype, device, torchs in (
            (torch.float64, "cuda", False),
            (torch.float32, "cuda", True),
            (torch.float64, "cpu", True),
        ):
            v = torch.empty(SHAPE, device=device, dtype=dtype)
            originals = {0: v.narrow(1, 0, 1).narrow(2, 0, 1), None: v.new_empty(())}
            for dim, g in originals.items():
                monkeypatch.setattr(torch, "_weight_norm", kernel)
                if torchs:
                    with pytest.raises(Asked):
                        WeightNorm(dim).map(g, v)
                else:
                    value = WeightNorm(dim).map(g, v)
                    assert value.is_cuda and value.shape == v.shape and value.dtype == dtype
