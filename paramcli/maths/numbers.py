"""The dtypes that the maths computes in, what rounding to one does, and sizes of tensors whatever their entries'."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The largest float8_e4m3fn.
E4M3 = 448.0
# A norm whose square may have left the range of doubles.
SMALL = 1e-140
# Rows of a block of a product that is its own mirror image; and the side up to which matrices are computed together.
ROWS, STACKED = 192, 128


def wide(dtype: torch.dtype, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype in which inverses, projections and residuals are taken: double precision.

    Metal has no float64, so there it is float32.
    """
    double = torch.device(device).type != "mps"
    if dtype.is_complex:
        return torch.complex128 if double else torch.complex64
    return torch.float64 if double else torch.float32


def compute_dtype(stored: torch.dtype, asked: str = "same") -> torch.dtype:
    """The dtype in which a map is evaluated: half types and narrower ones in float32, the others in their own."""
    if asked != "same":
        real = getattr(torch, asked)
        return {torch.float32: torch.complex64, torch.float64: torch.complex128}[real] if stored.is_complex else real
    return torch.float32 if stored.is_floating_point and stored.itemsize < 4 else stored


def from_float8(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """`codes.to(dtype)`, to the bit; on the CPU, where torch converts floats of 8 bits one by one, in a tenth of its
    time.

    With the sign in its place the bits of a float8_e4m3fn, 7 further up, are those of a half 2^-8 times as large,
    subnormal ones too; but for NaN, which has no code of its own there and comes out beyond the largest number, 448.
    The bits of a float8_e5m2 are the upper half of a half's.
    """
    if codes.device.type != "cpu" or not codes.numel():
        return codes.to(dtype)
    if codes.dtype == torch.float8_e5m2:
        return codes.view(torch.uint8).to(torch.int16).bitwise_left_shift_(8).view(torch.float16).to(dtype)
    if codes.dtype != torch.float8_e4m3fn or dtype.itemsize < 4:
        return codes.to(dtype)
    octets = codes.view(torch.int8)
    bits = octets.to(torch.int16).bitwise_left_shift_(7).bitwise_and_(~(1 << 14))
    values = bits.view(torch.float16).to(dtype).mul_(256)
    # The codes without their signs: the last of them is NaN.
    return values if (octets & 127).amax() < 127 else values.masked_fill_(values.abs() > E4M3, math.nan)


def in_precision(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Floating tensors in the precision of `dtype`, real ones real and complex ones complex; integers as they are."""
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    if not tensor.is_floating_point():
        return tensor
    return from_float8(tensor, dtype.to_real() if dtype.is_complex else dtype)


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of rounding a number to `dtype`: half of eps."""
    return eps(dtype) / 2


def rounded_bound(bound: float, dtype: torch.dtype) -> float:
    """A bound on entries as entries of this dtype are rounded."""
    return torch.tensor(bound, dtype=torch.float64, device="cpu").to(dtype).double().item()


def smallest(dtype: torch.dtype) -> float:
    """The distance of numbers near 0: what lies below half of it is stored as 0."""
    kind = torch.finfo(dtype)
    return kind.smallest_normal * kind.eps


def scale_of(values: Tensor, dims: tuple[int, ...]) -> Tensor:
    """A power of two as large as the largest magnitude along `dims` (kept as 1), so that squares of values / scale
    neither overflow nor vanish; 1 for zeros and for what is not finite. Dividing by it rounds nothing."""
    largest = values.abs().amax(dim=dims, keepdim=True)
    largest = torch.where(torch.isfinite(largest) & (largest > 0), largest, torch.ones_like(largest))
    return largest / (2 * torch.frexp(largest).mantissa)


def norm(values: Tensor, dims: tuple[int, ...], keepdim: bool = False) -> Tensor:
    """The Euclidean norm along `dims`, of entries of any size: 1e-170 has one, and 1e200."""
    if not dims or not values.numel():
        return torch.linalg.vector_norm(values, dim=dims, keepdim=keepdim) if dims else values.abs()
    size = values.abs()
    # Not vector_norm, which adds one after another: of a million equal entries it is off by 30,000 eps.
    if values.device.type == "cpu" and not torch.is_grad_enabled():
        largest = size.amax(dim=dims)
        if squares_in_range(largest.masked_fill_(largest == 0, 1.0)):
            return size.square_().sum(dim=dims, keepdim=keepdim).sqrt_()
    del size
    scale = scale_of(values, dims)
    sizes = (values / scale).abs().square().sum(dim=dims, keepdim=True).sqrt() * scale
    return sizes if keepdim else sizes.squeeze(dims)


def squares_in_range(largest: Tensor) -> bool:
    """Are the largest magnitudes such that sums of squares are, to the bit, those of entries that were scaled?

    What vanishes of them is below eps of the sum, and on a processor it takes a third of the time to ask first; on a
    device the answer would be waited for.
    """
    most = {torch.float32: 2.0**40, torch.float64: 2.0**400}.get(largest.dtype)
    if most is None:
        return False
    low, high = torch.stack(torch.aminmax(largest)).tolist()
    return bool(1 / most <= low and high <= most)


def matrix_dims(values: Tensor) -> tuple[int, ...]:
    """The last two dimensions, or the one of a vector."""
    return tuple(range(max(values.ndim - 2, 0), values.ndim))


def column_major(W: Tensor) -> Tensor:
    """The same matrices, each column by column in memory."""
    return W.mT.contiguous().mT


def farthest(errors: Tensor) -> int:
    """The place of the largest; of those that are as large up to rounding the first, on every processor."""
    flat = errors.reshape(-1)
    near = (flat >= flat.max() * (1 - 1e-5)).nonzero().reshape(-1)
    return int(near[0]) if len(near) else int(flat.argmax())


def per_matrix(values: Tensor) -> Tensor:
    """Frobenius norm over the last two dimensions (over the whole vector of a 1-d tensor)."""
    return norm(values, matrix_dims(values))


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """|part| / |whole|, with 0 / 0 = 0. The only division by a norm: on a GPU the norm of negative zeros is -0.0, and
    x / -0.0 = -inf would be within any tolerance. What is not 0 stays so, however small."""
    part, whole = part.abs(), whole.abs()
    return torch.where(part == 0, part, (part / whole).clamp(min=torch.finfo(part.dtype).tiny))


def relative(part: Tensor, whole: Tensor) -> Tensor:
    """||part|| / ||whole|| for each matrix; 0 / 0 is 0, since a zero matrix has no wrong part."""
    return ratio(per_matrix(part), per_matrix(whole))


def times_adjoint(M: Tensor, hermitian: bool = False) -> Tensor:
    """M M^H, which is M M where M is `hermitian`; of a large matrix each block of rows with those below it, and what is
    above them mirrored: of 512 x 5632 doubles that takes 34 ms in place of 56, of 2048 x 2048 190 in place of 430.
    """
    k = M.size(-2)
    if not M.is_cpu or M.ndim > 2 or k < 2 * ROWS or torch.is_grad_enabled():
        other = M if hermitian else M.mH
        if max(M.shape[-2:]) > STACKED:
            return M @ other
        # Kernels round some small products of a batch otherwise than the same product alone, and those of a view: alone
        # each is a batch of one.
        return (M.unsqueeze(0) @ other.contiguous().unsqueeze(0)).squeeze(0)
    G = M.new_empty(k, k)
    for first in range(0, k, ROWS):
        last = first + ROWS
        torch.mm(M[first:], M[first:last].mH, out=G[first:, first:last])
        G[first:last, last:] = G[last:, first:last].mH
    return G


def spectral_norm(H: Tensor, squarings: int = 4) -> Tensor:
    r"""||H||_2 of Hermitian matrices, from above: (sum |lambda|^p)^{1/p} with p = 2^{squarings + 1} = 32.

    At least the largest |lambda|, so that no direction of an error can hide in it, and at most n^{1/32} times as
    large (1.24 for n = 1024; 1.1 for random errors). Cost: `squarings` products, in place of an eigendecomposition.
    """
    size = per_matrix(H)
    # Of length 1 its largest eigenvalue is n^{-1/2} or more, and the 16th power of that no number too small.
    power = H / torch.where(size > 0, size, torch.ones_like(size)).unsqueeze(-1).unsqueeze(-1)
    for _ in range(squarings):
        power = times_adjoint(power, hermitian=True)
    root = per_matrix(power)
    for _ in range(squarings):
        # No power: of several numbers that is computed by other code than of one, to another last digit.
        root = root.sqrt()
    return size * root


def asymmetry(W: Tensor) -> Tensor:
    """max_i ||row i of W - W^H|| / max_i ||row i of W||: the one wrong row that a mean over a matrix would hide."""
    off, whole = norm(W - W.mH, (-1,)), norm(W, (-1,))
    return ratio(off.amax(-1), whole.amax(-1))


def with_added(A: Tensor, number: Tensor | float) -> Tensor:
    """A + c I, with a number c or one for each matrix."""
    made = A.clone()
    diagonal = made.diagonal(dim1=-2, dim2=-1)
    diagonal += number.unsqueeze(-1) if isinstance(number, Tensor) else number
    return made


def identity(like: Tensor, n: int) -> Tensor:
    """The identity matrix, in the dtype and on the device of `like`; on the meta device its shape alone."""
    # There torch.eye, as much else, imports torch's compiler: half a second.
    return like.new_empty(n, n) if like.is_meta else torch.eye(n, dtype=like.dtype, device=like.device)
