"""What geotorch has beside its manifolds: symmetric and skew-symmetric matrices from the lower triangle."""

from __future__ import annotations

from torch import Tensor

from .base import Parametrization
from .frames import lower_skew


class LowerSymmetric(Parametrization):
    r"""X to tril(X) + tril(X, -1)^T; with lower=false the tutorial's triu(X) + triu(X, 1)^T.

    Inverse: A itself.
    Source:  geotorch 0.4 Symmetric.
    """

    def __init__(self, lower: bool = True):
        super().__init__()
        self.lower = lower

    def map(self, X: Tensor) -> Tensor:
        X = X if self.lower else X.mT
        return X.tril() + X.tril(-1).mT


class LowerSkew(LowerSymmetric):
    r"""X to L - L^T with L = tril(X, -1); with lower=false the tutorial's triu(X, 1) - triu(X, 1)^T.

    Inverse: A itself.
    Source:  geotorch 0.4 Skew.
    """

    def map(self, X: Tensor) -> Tensor:
        return lower_skew(X) if self.lower else -lower_skew(X.mT)
