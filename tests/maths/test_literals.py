"""The formula of every entry, checked by examples worked by hand."""

import pytest
import torch

from paramcli.chain import parse_chain
from paramcli.fitting.originals import evaluate
from paramcli.registry import PARAMETRIZATIONS
from paramcli.view import IDENTITY

from .literals import LITERALS


@pytest.mark.parametrize(("chain", "state", "expected"), LITERALS, ids=[case[0] for case in LITERALS])
def test_the_formula_gives_the_literal(chain, state, expected):
    """The weight of these tensors is the one worked by hand, to 1e-12."""
    wanted = torch.tensor(expected, dtype=torch.complex128 if "j" in repr(expected) else torch.float64)
    tensors = {
        role: torch.tensor(value, dtype=torch.complex128 if "j" in repr(value) else torch.float64)
        for role, value in state.items()
    }
    W = evaluate(parse_chain(chain), IDENTITY, wanted.shape, tensors, wanted.dtype)
    torch.testing.assert_close(W, wanted, rtol=1e-12, atol=1e-12)


def test_every_entry_has_a_literal():
    """No formula goes unchecked."""
    named = {case[0].rpartition(",")[2].partition(":")[0] for case in LITERALS}
    assert named == {name for name, entry in PARAMETRIZATIONS.items() if not entry.same_as}
