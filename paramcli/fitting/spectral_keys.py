"""What spectral norm's keys hold beside the original and u: a v, or the value in its place, or both."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import PATH, InputRefused
from ..maths.norm import as_matrix
from ..maths.numbers import wide
from ..spelling.forms import Group
from ..text import number_text, printable
from ..wording import LEAVE_OUT, call, given


def without_value(group: Group, state: Mapping[str, Tensor], chain: str, dim: int) -> dict[str, Tensor]:
    """The state without a value that other code keeps beside u and v, which it must be the value of."""
    rest = {role: tensor for role, tensor in state.items() if role != "value"}
    W, u, v = _wide(rest["original"]), _wide(rest["0._u"]), _wide(rest["0._v"])
    expected = W / torch.dot(u, torch.mv(as_matrix(W, dim), v))
    off = torch.linalg.vector_norm(_wide(state["value"]) - expected) / torch.linalg.vector_norm(expected)
    if not off <= _agreement(state["value"], dim):
        raise InputRefused(
            f"{printable(group.keys['value'])} is not what {chain} gives of the keys beside it (off by "
            f"{number_text(off.item())}), and nothing says which of the two is the weight",
            hint=f"{call('convert', PATH)} {given('drop')} takes the one out that is not",
            tensor=group.tensor,
        )
    return rest


def with_v(group: Group, state: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    r"""The state of the oldest spectral norm with a v in place of the value, in double precision: u^T W v is the sigma
    that the value was divided by, and so the value is what it was.

    sigma is <W, W> / <W, value>, by least squares: what rounding is left in it is that of all entries together. After
    a training step sigma u = W v for the v of that step, a unit vector, and with W = U S V^T that is v = sigma V S^{-1}
    U^T u, which torch's own loader solves for. Where the power method has converged v is W^T u as well, up to its
    length, by one product. Directions below the rounding of u are left out: nothing but that would be found there.

    Raises InputRefused where the value is no multiple of the original.
    """
    W, u, value = _wide(state["original"]), _wide(state["0._u"]), _wide(state["value"])
    size = torch.linalg.vector_norm(W)
    sigma = size * (size / (W * value).sum())
    off = torch.linalg.vector_norm(W - sigma * value) / size
    if not off <= _agreement(state["value"], dim):
        raise InputRefused(
            f"{printable(group.keys['value'])} is no multiple of {printable(group.keys['original'])}"
            + (f" (off by {number_text(off.item())})" if torch.isfinite(off) else "")
            + ", so there is no spectral norm that it was divided by",
            hint=LEAVE_OUT,
            tensor=group.tensor,
        )
    M, rounding = as_matrix(W, dim), torch.finfo(state["0._u"].dtype).eps
    v = M.mT @ u
    v = v * (sigma / v.square().sum())
    if _length_off(v) > 4 * rounding:
        U, S, Vh = torch.linalg.svd(M, full_matrices=False)
        x = Vh.mT @ torch.where(rounding * S[0] < S, (U.mT @ u) / S, 0)
        x = x * (sigma / torch.dot(u, M @ x))
        v = min(v, x, key=_length_off)
    return {"original": state["original"], "0._u": state["0._u"], "0._v": v}


def _length_off(v: Tensor) -> float:
    off = abs(torch.linalg.vector_norm(v).item() - 1)
    return off if off == off else float("inf")


def _wide(X: Tensor) -> Tensor:
    return X.to(wide(X.dtype, X.device))


def _agreement(value: Tensor, dim: int) -> float:
    """How far a value may be from what is computed of the keys beside it, in shares of its norm.

    Both are rounded once, and sigma is summed over as many products as W has rows and columns: a few eps. What a value
    of another step of training is off by is the change of a step, thousands of eps.
    """
    return (16 + sum(as_matrix(value, dim).shape) / 16) * torch.finfo(value.dtype).eps
