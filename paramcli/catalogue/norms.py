"""Norms, means, spectral bounds: spheres and balls, standardized weights, Lipschitz and stable matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..spec import Argument, Value, value_text
from .core import DIM
from .entry import ConstraintEntry, Entry, Shape, Stored, image_of
from .measures import SIGMA, UNIT_U_V

# repr of a larger float has a + in its exponent, which no spec has.
LARGEST = 1e6
ALONG = Argument(
    "dim", "dim", "the dimension each vector runs along (-1: rows); none: the whole tensor", -1, minimum=-64, maximum=63
)
KEPT = Argument(
    "dim",
    "int",
    "the dimension whose slices (outputs) are taken one by one, as in weight_norm",
    0,
    minimum=-64,
    maximum=63,
)
R = Argument("r", "float", "the norm", 1.0, minimum=1e-6, maximum=LARGEST)
C = Argument("c", "float", "the bound", 1.0, minimum=1e-6, maximum=LARGEST)
SUM = Argument("c", "float", "the sum", 0.0, minimum=-LARGEST, maximum=LARGEST)
GAMMA = Argument("gamma", "float", "the bound, at most 1", 0.99, minimum=1e-6, maximum=1)


def _soft_spectral_norm_stores(shape: Shape, arguments: Mapping[str, Value]) -> Stored:
    """u and v of the tensor flattened to (first, everything else), and the log of sigma."""
    outputs, inputs = shape[0], math.prod(shape[1:])
    return {"original": (None, shape), "_u": (None, (outputs,)), "_v": (None, (inputs,)), "_sigma": (None, (1,))}


CONSTRAINTS = (
    ConstraintEntry(
        name="unit_norm",
        summary="every vector along dim has norm r",
        target="bounded:UnitNorm",
        arguments=(ALONG, R),
        residual="max |norm / r - 1|",
        examples=("unit_norm", "unit_norm:dim=0:r=2.5", "unit_norm:dim=none"),
        complex=True,
    ),
    ConstraintEntry(
        name="unit_rms",
        summary="every slice of dim has root mean square 1",
        target="bounded:UnitRms",
        arguments=(KEPT,),
        residual="max |rms - 1|",
        complex=True,
    ),
    ConstraintEntry(
        name="ball",
        summary="every vector along dim has norm below c",
        target="bounded:Ball",
        arguments=(ALONG, C),
        residual="max(norm / c - 1, 0)",
        examples=("ball", "ball:c=3.0"),
        complex=True,
    ),
    ConstraintEntry(
        name="max_norm",
        summary="every vector along dim has norm at most c",
        target="bounded:MaxNorm",
        arguments=(ALONG, C),
        residual="max(norm / c - 1, 0)",
        examples=("max_norm", "max_norm:dim=none:c=3.0"),
        complex=True,
    ),
    ConstraintEntry(
        name="sum_to",
        summary="every vector along dim sums to c",
        target="moments:SumTo",
        arguments=(ALONG, SUM),
        residual="max |sum - c| / (||x|| + |c|)",
        examples=("sum_to", "sum_to:dim=0:c=2.0"),
        complex=True,
    ),
    ConstraintEntry(
        name="standardized",
        summary="every slice of dim has mean 0 and standard deviation 1",
        target="moments:Standardized",
        arguments=(KEPT,),
        residual="max |mean|, max |std - 1|",
    ),
    ConstraintEntry(
        name="spectral_cap",
        summary="largest singular value at most c, each matrix",
        target="spectral:SpectralCap",
        arguments=(C,),
        residual="max(sigma / c - 1, 0)",
        examples=("spectral_cap", "spectral_cap:c=0.5"),
        complex=True,
        keeper="spectral_cap",
    ),
    ConstraintEntry(
        name="aol",
        summary="largest eigenvalue of |W^T W| is 1, so sigma <= 1",
        target="spectral:AolBound",
        within=("spectral_cap",),
        residual="|sqrt(rho(|W^T W|)) - 1|",
    ),
    ConstraintEntry(
        name="schur_stable",
        summary="every eigenvalue has absolute value at most gamma",
        target="spectral:SchurStable",
        arguments=(GAMMA,),
        residual="max (|l| - gamma) / ||A||_2, less what computing l may be off by",
    ),
)

PARAMETRIZATIONS = (
    Entry(
        name="unit_norm",
        family="norm",
        summary="every vector along dim scaled to norm r (sphere, oblique)",
        law="W = r x / ||x||",
        maps=(("any", image_of("unit_norm", "dim", "r")),),
        right_inverse="W itself; a zero vector has none",
        source="torch.nn.functional.normalize; geotorch sphere; nGPT, arXiv:2410.01131",
        target="bounded:ToUnitNorm",
        arguments=(ALONG, R),
        cost="one pass",
        examples=("unit_norm", "unit_norm:dim=0:r=2.5", "unit_norm:dim=none"),
        complex=True,
    ),
    Entry(
        name="mp_norm",
        family="norm",
        summary="every output scaled to root mean square 1 (EDM2)",
        law="W = x sqrt(n) / ||x||, n entries in the slice x of dim",
        maps=(("any", image_of("unit_rms", "dim")),),
        right_inverse="W itself; a zero slice has none",
        source="EDM2: Karras et al. 2023, arXiv:2312.02696 (its code adds 1e-4 to rms)",
        target="bounded:MagnitudePreserving",
        arguments=(KEPT,),
        cost="one pass",
        complex=True,
    ),
    Entry(
        name="ball",
        family="norm",
        summary="every vector along dim squashed into the open ball of radius c",
        law="W = c tanh(||x|| / c) x / ||x||",
        maps=(("any", image_of("ball", "dim", "c")),),
        right_inverse="c atanh(||w|| / c) w / ||w||",
        source="Poincare's ball: Ganea, Becigneul and Hofmann 2018, arXiv:1805.09112",
        target="bounded:ToBall",
        arguments=(ALONG, C),
        cost="one pass",
        examples=("ball", "ball:c=3.0"),
        complex=True,
    ),
    Entry(
        name="max_norm",
        family="norm",
        summary="every vector along dim cut to norm c at most",
        law="W = x min(1, c / ||x||)",
        maps=(("any", image_of("max_norm", "dim", "c")),),
        right_inverse="W itself",
        source="torch.renorm; Srivastava et al. 2014, JMLR 15",
        target="bounded:CutNorm",
        arguments=(ALONG, C),
        cost="one pass",
        examples=("max_norm", "max_norm:dim=none:c=3.0"),
        complex=True,
    ),
    Entry(
        name="centered",
        family="moments",
        summary="every vector along dim has mean 0",
        law="W = x - mean(x)",
        maps=(("any", image_of("sum_to", "dim")),),
        right_inverse="W itself; in half types rounded so that it does",
        source="orthogonal projection onto a hyperplane",
        target="moments:ToSum",
        arguments=(ALONG,),
        cost="two passes",
        complex=True,
    ),
    Entry(
        name="sum_to",
        family="moments",
        summary="every vector along dim sums to c",
        law="W = x - (sum(x) - c) / n",
        maps=(("any", image_of("sum_to", "dim", "c")),),
        right_inverse="W itself; in half types rounded so that it does",
        source="orthogonal projection onto a hyperplane",
        target="moments:ToSum",
        arguments=(ALONG, SUM),
        cost="two passes",
        examples=("sum_to:dim=0:c=2.0",),
        complex=True,
    ),
    Entry(
        name="weight_std",
        family="moments",
        summary="weight standardization: every output has mean 0 and std 1",
        law="W = (x - mean(x)) / std(x), the sum of squares over n",
        maps=(("any", image_of("standardized", "dim")),),
        right_inverse="W itself; a constant slice has none",
        source="Qiao et al. 2019, arXiv:1903.10520 (implementations add an eps to std)",
        target="moments:WeightStandardization",
        arguments=(KEPT,),
        cost="two passes",
    ),
    Entry(
        name="spectral_cap",
        family="spectral",
        summary="scaled down where its spectral norm is above c (Lipschitz)",
        law="W = X min(1, c / sigma(X))",
        maps=(("any", image_of("spectral_cap", "c")),),
        right_inverse="W itself",
        source="Gouk et al. 2018, arXiv:1804.04368",
        target="spectral:ScaledToCap",
        arguments=(C,),
        cost="a Gram matrix and its eigenvalues",
        examples=("spectral_cap", "spectral_cap:c=0.5"),
        complex=True,
    ),
    Entry(
        name="schur_stable",
        family="spectral",
        summary="singular values cut at gamma: powers of W do not grow",
        law="W = U min(S, gamma) V^T of X = U S V^T",
        maps=(("any", lambda a: f"spectral_cap:c={value_text(a.get('gamma', GAMMA.default))}"),),
        right_inverse="W itself",
        source="stable recurrences: Miller and Hardt 2018, arXiv:1805.10369",
        target="spectral:CutToCap",
        arguments=(GAMMA,),
        cost="one SVD",
    ),
    Entry(
        name="aol",
        family="spectral",
        summary="almost orthogonal: columns scaled so that sigma <= 1",
        law="W = X diag(sum_j |X^T X|_ij)^(-1/2)",
        maps=(("any", "aol"),),
        right_inverse="X = W diag(s), |W^T W| s = s; else W is kept up to a factor",
        source="Prach and Lampert 2022, arXiv:2208.03160",
        target="spectral:AlmostOrthogonal",
        cost="a Gram matrix; the inverse another, at most 20 products",
    ),
    Entry(
        name="sigma_reparam",
        family="spectral",
        summary="a learned spectral norm: original0 = gamma, original1 = X",
        law="W = gamma X / (u^T X v), u and v stored",
        maps=(("any", "any"),),
        right_inverse="gamma = sigma(W), X = W, u and v its singular vectors",
        source="Zhai et al. 2023, arXiv:2303.06296",
        target="spectral_scale:SigmaReparam",
        arguments=(
            DIM,
            Argument("n_power_iterations", "int", "steps of the power method in training", 1, minimum=1, maximum=1000),
        ),
        cost="a matrix-vector product; the inverse one SVD",
        originals=2,
        verifies=f"{UNIT_U_V}; {SIGMA}",
        examples=("sigma_reparam", "sigma_reparam:dim=1"),
        stores=None,
    ),
    Entry(
        name="spectral_reparam",
        family="spectral",
        summary="RADIO's learned spectral norm, in its own keys",
        law="W = X (softplus(scale) + alpha) / (u^T X v + eps)",
        maps=(("any", "any"),),
        right_inverse="X = W, scale at its spectral norm; sigma <= alpha has none",
        source="NVlabs/RADIO, radio/enable_spectral_reparam.py",
        target="spectral_scale:SpectralReparam",
        arguments=(
            Argument("alpha", "float", "the least spectral norm (RADIO: 0.05)", 0.05, minimum=0, maximum=LARGEST),
            Argument(
                "eps", "float", "added to sigma (RADIO: 1e-6, or 1e-12 where configured)", 1e-6, minimum=0, maximum=1
            ),
        ),
        cost="a matrix-vector product; the inverse one SVD",
        stores=None,
        verifies=str(UNIT_U_V),
    ),
    Entry(
        name="soft_spectral_norm",
        family="spectral",
        summary="divided by its spectral norm where that is above coeff",
        law="W = X / (max(1, u^T X v / coeff) + eps), u and v stored",
        maps=(("any", "any"),),
        right_inverse="X = W (1 + eps), u and v its singular vectors; sigma > coeff has none",
        source="Behrmann et al. 2019, arXiv:1811.00995; Gouk et al. 2018, arXiv:1804.04368",
        target="spectral_scale:SoftSpectralNorm",
        arguments=(
            Argument("coeff", "float", "the bound", required=True, minimum=1e-6, maximum=LARGEST),
            Argument("eps", "float", "added to the divisor (invertible-resnet: 1e-5)", 0.0, minimum=0, maximum=1),
        ),
        cost="a matrix-vector product; the inverse one SVD",
        examples=("soft_spectral_norm:coeff=50", "soft_spectral_norm:coeff=60:eps=1e-05"),
        stores=_soft_spectral_norm_stores,
        verifies=str(UNIT_U_V),
        old_form="soft_spectral_norm_old",
    ),
)
