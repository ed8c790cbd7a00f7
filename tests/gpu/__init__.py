"""What only a real GPU can show. Skipped where there is none: python -m pytest -m gpu -n 4"""

import pytest
import torch

DEVICE = "cuda"
# Each file's `pytestmark`.
NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]
