"""spectrum: the numbers are numpy's, the pictures say the same, in 80 columns and without colour."""

import importlib.util
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from paramcli.show.drawing.braille import WIDTH, draw, lay_out
from paramcli.show.drawing.panels import Curve, Plane, axis, sampled


def test_the_numbers_are_those_of_numpy(tmp_path, paramcli):
    """Singular values, condition number, stable rank and eigenvalues of a float64 matrix."""
    W = torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    save_file({"w": W}, tmp_path / "a.safetensors")
    (tensor,) = paramcli("spectrum", tmp_path / "a.safetensors", "-t", "w", "--json").json["tensors"]
    (m,) = tensor["matrices"]
    sigma, eigen = np.linalg.svd(W.numpy(), compute_uv=False), np.linalg.eigvals(W.numpy())
    np.testing.assert_allclose(m["singular_values"], sigma, rtol=1e-12)
    np.testing.assert_allclose(
        np.sort_complex([complex(*z) for z in m["eigenvalues"]]), np.sort_complex(eigen), atol=1e-12
    )
    assert m["condition"] == pytest.approx(np.linalg.cond(W.numpy())) and m["of"] == "value" and m["block"] is None
    assert m["stable_rank"] == pytest.approx((sigma**2).sum() / sigma[0] ** 2) and m[
        "spectral_radius"
    ] == pytest.approx(abs(eigen).max())


def test_before_and_after_through_the_view(fixtures, tmp_path, paramcli):
    """Each LSTM gate has its original and its rotation, whose singular values and eigenvalues have modulus one."""
    out = tmp_path / "p.safetensors"
    paramcli(
        "add",
        fixtures / "silero_vad_16k.safetensors",
        "-t",
        "lstm_cell.weight_hh",
        "--view",
        "blocks=4",
        "--chain",
        "skew,cayley",
        "-o",
        out,
    )
    (tensor,) = paramcli("spectrum", out, "--json").json["tensors"]
    assert [(m["of"], m["block"]) for m in tensor["matrices"]] == [
        (of, i) for i in range(4) for of in ("original", "value")
    ]
    original = load_file(out)["lstm_cell.parametrizations.weight_hh.original"].chunk(4)
    for m in tensor["matrices"]:
        if m["of"] == "value":
            np.testing.assert_allclose(m["singular_values"], 1, atol=1e-5)
            np.testing.assert_allclose([abs(complex(*z)) for z in m["eigenvalues"]], 1, atol=1e-5)
        else:
            np.testing.assert_allclose(
                m["singular_values"], np.linalg.svd(original[m["block"]].double().numpy(), compute_uv=False), rtol=1e-9
            )


def test_every_spelling_has_a_spectrum(fixtures, paramcli):
    """Old weight norm and spectral norm: the value's spectrum, and v or the original before it."""
    found = paramcli("spectrum", fixtures / "old_norms.pt", "--json").json["tensors"]
    forms = {t["form"] for t in found}
    assert {"weight_norm_old", "spectral_norm_v1"} <= forms
    assert all(t["matrices"][-1]["of"] == "value" for t in found)


def test_the_picture_keeps_to_80_columns_and_needs_no_colour(fixtures, tmp_path, paramcli):
    """Piped, every line of the picture fits, carries no escape, and the curve is there."""
    out = tmp_path / "p.safetensors"
    paramcli(
        "add",
        fixtures / "silero_vad_16k.safetensors",
        "-t",
        "lstm_cell.weight_hh",
        "--view",
        "blocks=4",
        "--chain",
        "skew,cayley",
        "-o",
        out,
    )
    shown = paramcli("spectrum", out).out
    assert "\x1b" not in shown and max(map(len, shown.splitlines())) <= 80
    assert "sigma block 0" in shown and "eig block 3 value" in shown and "condition" in shown
    many = paramcli("spectrum", fixtures / "silero_vad_16k.safetensors", "-t", "*.weight*").out
    assert "sigma conv1.weight" in many and "eig " not in many.split("condition")[0]


def test_a_flat_curve_is_a_level_line_and_a_circle_is_round():
    """Dots stand where the numbers are: one row for equal values, the extremes of a circle at equal distances."""
    lines = draw(Curve("", [1.0] * 10, None, *axis([1.0])))
    dots = [line[8:] for line in lines[1:-1]]
    assert sum(any("\u2801" <= c <= "\u28ff" for c in line) for line in dots) == 1
    circle = [complex(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 200, endpoint=False)]
    rows = [line[3:] for line in draw(Plane("", circle, 1.08))[1:-1]]
    marked = [
        (r, c) for r, row in enumerate(rows) for c, character in enumerate(row) if "\u2801" <= character <= "\u28ff"
    ]
    assert {r for r, _ in marked} == set(range(9)) and min(c for _, c in marked) == 18 - max(c for _, c in marked)
    assert all(len(line) == WIDTH for line in lines)
    assert max(map(len, lay_out([Plane("", circle, 1.08)] * 4, 80))) <= 80


def test_zeros_and_single_values_can_be_drawn():
    """A zero matrix, one singular value, and thirteen decades are no trouble."""
    assert axis([0.0, 0.0]) == (-1.0, 1.0) and sampled([0.0], -1.0, 3) == [-1.0] * 3
    low, high = axis([1.0, 1e-30])
    assert high - low < 14
    assert draw(Curve("x" * 40, [1.0, 1e-30, 0.0], [2.0, 1.0, 0.0], low, high))[0].startswith("…")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (1.13e-4, "1.1e-4"),
        (17_340.0, "1.7e4"),
        (0.0009, "0.0009"),
        (67.0, "67"),
        (1.23e-12, "1e-12"),
        (2e-305, "2e-305"),
    ],
)
def test_every_panel_is_as_wide_as_it_says(value, label):
    """Whatever its singular values are: a label has the room that is beside the axis."""
    low, high = axis([value])
    lines = draw(Curve("", [value] * 10, None, low, high))
    assert {len(line) for line in lines} == {WIDTH} and any(line.startswith(f"{label:>6} │") for line in lines), lines


def test_the_svg_is_whole_and_names_nothing_outside(tmp_path, paramcli):
    """It parses, holds a panel for each matrix, and escapes a name that is markup."""
    save_file({"<script>&": torch.eye(4), "b": torch.randn(3, 5)}, tmp_path / "a.safetensors")
    paramcli("spectrum", tmp_path / "a.safetensors", "-t", "*", "--svg", tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    root = ElementTree.fromstring(text)
    assert len(root.findall("{http://www.w3.org/2000/svg}g")) == 3
    assert "<script" not in text and text.count("http") == 1
    assert (
        "exists" in paramcli("spectrum", tmp_path / "a.safetensors", "-t", "b", "--svg", tmp_path / "a.svg", code=4).err
    )


def test_png_is_drawn_or_says_what_to_install(tmp_path, paramcli):
    """With matplotlib a PNG, the same each time; without it one line with the extra's name."""
    save_file({"w": torch.eye(4)}, tmp_path / "a.safetensors")
    if importlib.util.find_spec("matplotlib") is None:
        assert (
            "pip install 'paramcli[plot]'"
            in paramcli("spectrum", tmp_path / "a.safetensors", "-t", "w", "--png", tmp_path / "a.png", code=2).err
        )
        assert not (tmp_path / "a.png").exists()
        return
    for name in "ab":
        paramcli("spectrum", tmp_path / "a.safetensors", "-t", "w", "--png", tmp_path / f"{name}.png")
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG") and data == (tmp_path / "b.png").read_bytes()


def test_what_has_no_spectrum_is_said(tmp_path, paramcli):
    """A bias, integers, NaN, and a file without any chain when no tensor is named."""
    tensors = {
        "b": torch.randn(3),
        "i": torch.ones(2, 2, dtype=torch.int64),
        "n": torch.full((2, 2), float("nan")),
        "w": torch.eye(2),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    for name, words in (("b", "needs a matrix"), ("i", "no spectrum"), ("n", "4 NaN")):
        assert words in paramcli("spectrum", tmp_path / "a.safetensors", "-t", name, code=3).err
    assert "not drawn: b" in paramcli("spectrum", tmp_path / "a.safetensors", "-t", "*").err
    assert "needs -t" in paramcli("spectrum", tmp_path / "a.safetensors", code=2).err


def test_a_batch_of_many_matrices_is_drawn_as_one(tmp_path, paramcli):
    """A convolution's 3x3 kernels, pooled; as one matrix with --view flatten."""
    torch.save({"w": torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))}, tmp_path / "a.pt")
    result = paramcli("spectrum", tmp_path / "a.pt", "-t", "w", "--json")
    (m,) = result.json["tensors"][0]["matrices"]
    assert m["count"] == 32 and len(m["singular_values"]) == 96 and "--view flatten" in result.err
    (m,) = paramcli("spectrum", tmp_path / "a.pt", "-t", "w", "--view", "flatten", "--json").json["tensors"][0][
        "matrices"
    ]
    assert m["count"] == 1 and m["shape"] == [8, 36]
