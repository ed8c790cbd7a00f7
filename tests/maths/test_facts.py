"""What is kept of a tensor is what is found of it anew, and is another's never; proofs by the Gram matrix are right."""

from __future__ import annotations

import pytest
import torch

from paramcli.maths.facts import any_entry, gram, kept, largest_singular_value, length_of, same_entries, zeros_of
from paramcli.maths.norm import surely_apart


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (3, 7, 20), (400, 30), (30, 400), (500, 700), (1, 1), (600, 580)])
def test_a_gram_matrix_is_the_product_of_the_shorter_side(shape, dtype):
    """By torch's own product, of large matrices too, of which half is mirrored."""
    M = noise(*shape, dtype=dtype)
    wide = M if shape[-2] <= shape[-1] else M.mH
    with torch.no_grad():
        G, size = gram(M)
    torch.testing.assert_close(G * size**2, wide @ wide.mH, rtol=1e-13, atol=1e-13 * max(shape))


@pytest.mark.parametrize("by", [1e-170, 1e-300, 1.0, 1e170, 1e300])
def test_entries_of_any_size_have_a_largest_singular_value(by):
    """By torch's own, of the entries before they were made so small or so large; of each matrix of a batch."""
    M = noise(2, 6, 30)
    expected = torch.linalg.svdvals(M)[:, 0] * by
    torch.testing.assert_close(largest_singular_value(M * by), expected, rtol=1e-13, atol=0)
    mixed = largest_singular_value(torch.stack([M[0], M[1] * by]))
    torch.testing.assert_close(mixed, torch.stack([expected[0] / by, expected[1]]), rtol=1e-13, atol=0)


def test_what_is_kept_is_found_again_for_the_same_entries_alone():
    """A view of the same memory is the same; another tensor, shape or number of threads is not; nothing stays after."""
    W = noise(8, 12)
    with kept():
        G, _ = gram(W)
        assert gram(W.reshape(8, 3, 4).flatten(1))[0] is G
        assert gram(W.clone())[0] is not G and gram(W[:4])[0].shape == (4, 4)
        assert gram(W.T)[0] is not G
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(threads + 1)
            assert gram(W)[0] is not G
        finally:
            torch.set_num_threads(threads)
        assert gram(W)[0] is G
        # Two facts of one tensor are two.
        assert (zeros_of(W), length_of(W)) == (0, torch.linalg.vector_norm(W).item())
    assert gram(W)[0] is not G


def test_a_tensor_that_is_kept_keeps_its_memory():
    """While a fact is kept no other tensor can come to lie where its tensor lay."""
    with kept():
        for seed in range(50):
            W = noise(64, 64, seed=seed)
            assert length_of(W) == torch.linalg.vector_norm(W).item()
            del W


def test_the_same_entries_are_those_in_one_place():
    """Equal numbers elsewhere, and the same memory in another order, are others."""
    W = noise(4, 4)
    assert same_entries(W, W.view(4, 4)) and same_entries(W[1:], W[1:])
    assert not any(same_entries(W, other) for other in (W.clone(), W.T, W[:2], W.view(torch.int64), W[1:]))


def test_any_entry_is_torchs_any():
    """Wherever the entry is, also beyond those that are looked at first."""
    for shape in ((3,), (5000,), (70, 80), (2, 50, 60), ()):
        W = torch.zeros(shape)
        assert not any_entry(W, lambda part: part > 0)
        for place in (0, W.numel() // 2, W.numel() - 1):
            one = W.clone()
            one.reshape(-1)[place] = 1
            assert any_entry(one, lambda part: part > 0) and any_entry(one.mT if one.ndim > 1 else one, lambda p: p > 0)


@pytest.mark.parametrize("shape", [(6, 6), (30, 200), (200, 30), (64, 400), (300, 310)])
def test_a_largest_singular_value_that_is_surely_apart_is(shape):
    """By torch's singular values: it says so of nothing that is as near, and of all that is farther by a thousandth."""
    M = noise(*shape)
    M = M / torch.linalg.matrix_norm(M, 2)
    low_rank = torch.outer(M[:, 0], M[0])
    low_rank = low_rank / torch.linalg.matrix_norm(low_rank, 2)
    for W in (M, low_rank, torch.linalg.qr(M)[0]):
        for off in (0.05, 0.3, 1.5):
            for sigma in (1 - 1.001 * off, 1 - 0.999 * off, 1.0, 1 + 0.999 * off, 1 + 1.001 * off):
                if sigma > 0:
                    true = torch.linalg.svdvals(sigma * W)[0].item()
                    assert surely_apart(sigma * W, 1.0, off) == (abs(true - 1) > off), (sigma, off)
    assert surely_apart(1e-170 * M, 1.0, 0.05) and surely_apart(1e170 * M, 1.0, 0.05)
    assert not surely_apart(torch.zeros(shape, dtype=M.dtype), 1.0, 1.0)
