"""Device correctness without a GPU: every tensor that maths creates must say where it lives."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode

# Functions that make a tensor out of nothing, on the default device unless told.
_FACTORIES = {
    getattr(torch, name)
    for name in [
        "empty",
        "zeros",
        "ones",
        "full",
        "eye",
        "arange",
        "linspace",
        "logspace",
        "rand",
        "randn",
        "randint",
        "tensor",
        "as_tensor",
        "tril_indices",
        "triu_indices",
    ]
}


class _Explicit(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _FACTORIES and kwargs.get("device") is None:
            raise AssertionError(f"torch.{function.__name__} without device=")
        return function(*args, **kwargs)


@contextmanager
def only_explicit_devices():
    """Within the block a factory call without `device=` raises: on a GPU it would mix devices."""
    with _Explicit():
        yield
