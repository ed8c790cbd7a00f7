"""Tied tensors are found in time that grows as they do."""

import torch

from paramcli.spelling.opened import open_groups
from paramcli.surgery.sequence import tie

from ..pace import steps


def test_tied_pairs_take_linear_time(tmp_path):
    """Of 6000 pairs: far less than going through all for each of them."""
    count = 6000
    tensors = [torch.zeros(2) for _ in range(count)]
    torch.save({f"{side}.{n}": T for side in "ab" for n, T in enumerate(tensors)}, tmp_path / "t.pt")
    with open_groups(tmp_path / "t.pt") as opened:
        groups = opened.groups
        found: list = []
        assert (
            steps(lambda: found.extend(tie(opened.source, groups, groups, list(groups.values()), "together")), 2e7)
            < 2e7
        )
        assert len(found) % (2 * count) == 0 and {group.twin for group in found} == {f"a.{n}" for n in range(count)}
