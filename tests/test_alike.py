"""Tables of many layers: one line for those alike, on a terminal, and none lost."""

import pytest
import torch
from safetensors.torch import save_file

from paramcli.maths.base import Check
from paramcli.show.alike import alike
from paramcli.show.tables import convert_table, edit_table, verify_table
from paramcli.surgery.plan import Outcome

from .terminal import run_line


def test_names_that_differ_in_numbers_only_are_together():
    """Of one look; a star stands for each number that changes, and the order is that of the first of each."""
    names = ["a.0.x1.w", "b", "a.1.x1.w", "a.2.x1.w", "a.3.x2.b", "c.7", "a.0.x1.v"]
    found = alike(names, name=str, look=lambda name: name == "a.2.x1.w")
    assert found == [
        ("a.*.x1.w", ["a.0.x1.w", "a.1.x1.w"]),
        ("b", ["b"]),
        ("a.2.x1.w", ["a.2.x1.w"]),
        ("a.3.x2.b", ["a.3.x2.b"]),
        ("c.7", ["c.7"]),
        ("a.0.x1.v", ["a.0.x1.v"]),
    ]
    assert alike(["1", "22", "a1b22", "a1b3"], name=str, look=len) == [
        ("1", ["1"]),
        ("22", ["22"]),
        ("a1b22", ["a1b22"]),
        ("a1b3", ["a1b3"]),
    ]
    assert alike([], name=str, look=len) == []


def outcome(number: int, moved: float, residual: float | None, tolerance: float | None = 1e-5) -> Outcome:
    return Outcome(
        f"layers.{number}.w", "register", "orthogonal", None, (4, 4), "float32", (), (), moved, residual, tolerance
    )


def rows(table) -> list[list[str]]:
    return [[str(cell) for cell in row] for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_a_folded_edit_shows_the_worst_of_each_number():
    """The largest way moved, and the residual that takes most of its tolerance with that tolerance."""
    table = edit_table([outcome(0, 0.1, 1e-7), outcome(1, 0.5, 9e-6), outcome(2, 0.2, 2e-5, 1e-4)], fold=True)
    assert rows(table) == [["layers.*.w x3", "orthogonal", "4x4", "float32", "0.5", "9e-06", "1e-05", "holds"]]


@pytest.mark.parametrize("residual", [0.3, float("nan"), float("inf")])
def test_what_fails_is_never_hidden_among_what_holds(residual):
    """Of a hundred layers the one that is off has a line with its own name."""
    outcomes = [outcome(n, 0.0, residual if n == 57 else 1e-7) for n in range(100)]
    found = rows(edit_table(outcomes, fold=True))
    assert [row[0] for row in found] == ["layers.*.w x99", "layers.57.w"] and [row[-1] for row in found] == [
        "holds",
        "FAILS",
    ]


def test_what_fails_is_named_each_by_itself():
    """Alike or not: which ones are off is what one wants to know, and no line stands for two of them."""
    table = edit_table([outcome(n, 0.0, 0.3 if n in (5, 6) else 1e-7) for n in range(50)], fold=True)
    assert [row[0] for row in rows(table)] == ["layers.*.w x48", "layers.5.w", "layers.6.w"] and table.note
    table = edit_table([outcome(n, 0.0, 0.3) for n in range(50)], fold=True)
    assert [row[0] for row in rows(table)] == [f"layers.{n}.w" for n in range(50)] and table.note is None


def test_folded_rows_count_every_tensor_once():
    """Without numbers too, as in a dry run, and in the tables of verify and convert."""

    class Verdict:
        def __init__(self, n):
            self.tensor, self.view, self.group = f"l.{n}.w", None, self
            self.shape, self.dtype = (n % 2,), "F32"
            self.checks = (Check("orthogonal", n * 1e-8, 1e-5), Check("norm", 0.5 if n == 3 else 0.0, 0.02))

    found = rows(verify_table([Verdict(n) for n in range(9)], fold=True))
    assert [row[0] for row in found] == ["l.*.w x5", "", "l.*.w x3", "", "l.3.w", ""]
    assert [row[2] for row in found] == ["8e-08", "0", "7e-08", "0", "3e-08", "0.5"] and found[-1][-1] == "FAILS"
    dry = [Outcome(f"l.{n}.w", "bake", "mask", None, (2,), "float32", (), ()) for n in range(50)]
    assert rows(edit_table(dry, fold=True)) == [["l.*.w x50", "mask", "2", "float32"]]
    assert rows(convert_table(dry, "bfloat16", fold=True)) == [["l.*.w x50", "float32", "bfloat16", "2"]]


def test_a_terminal_folds_and_a_pipe_does_not(tmp_path):
    """Fifty layers are a line for a person and fifty for a script; forty are shown as they are."""
    for count in (40, 50):
        parts = {"weight_g": (4, 1), "weight_v": (4, 3)}
        save_file(
            {f"layers.{n}.{part}": torch.rand(shape) for n in range(count) for part, shape in parts.items()},
            tmp_path / "a.safetensors",
        )
        for line in ("paramcli remove a.safetensors -n", "paramcli verify a.safetensors"):
            code, piped = run_line(line, tmp_path, columns=None)
            assert code == 0 and piped.count("layers.") == count and "alike" not in piped
            code, shown = run_line(line, tmp_path, columns=80)
            assert code == 0 and shown.count("layers.") == (1 if count > 40 else count)
            assert ("layers.*.weight x50" in shown) == ("alike tensors share a line" in shown) == (count > 40)
