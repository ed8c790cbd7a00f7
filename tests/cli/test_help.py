"""Help, lists and messages: what a person meets when the command line is not yet right."""

import re

import pytest

from paramcli.cli.usage import COMMANDS, PANELS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_help_opens_with_two_examples_that_fit(command, shell):
    """Right under the first sentence, each on a line of its own, within 80 columns."""
    lines = [line.strip() for line in shell(command, "-h", COLUMNS="80").out.splitlines()]
    examples = [i for i, line in enumerate(lines) if line.startswith("paramcli ")]
    assert len(examples) >= 2 and examples[1] == examples[0] + 1
    assert all(lines[i].startswith(f"paramcli {command}") and len(lines[i]) <= 78 for i in examples)
    panel = next(i for i, line in enumerate(lines) if line.startswith("╭"))
    assert examples[1] < panel and sum(map(bool, lines[: examples[0]])) <= 4


def test_help_in_a_pipe_is_plain_on_a_ci_machine_too(shell):
    """GitHub Actions is no terminal."""
    assert "\x1b" not in shell("add", "--help", GITHUB_ACTIONS="true").out


def test_brackets_in_a_help_are_no_markup(shell):
    """The extra that --png needs is named in full."""
    assert "paramcli[plot]" in shell("spectrum", "-h", COLUMNS="140").out


def test_commands_are_listed_by_what_they_are_for(shell):
    """Every command is in one panel, with one line each at 80 columns."""
    out = shell("--help", COLUMNS="80").out
    for panel, commands in PANELS.items():
        block = re.search(rf"─ {panel} ─.*?╰", out, re.S)[0]
        assert re.findall(r"^│ (\w+)", block, re.M) == list(commands)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["ad"], "no command 'ad'", "closest: paramcli add"),
        (["fix", "x"], "no command 'fix'", "known: inspect, discover"),
        (["add", "x", "--chian", "skew"], "paramcli add has no option '--chian'", "closest: --chain"),
        (["add"], "paramcli add needs CKPT", "paramcli add --help"),
        (["add", "x", "-t", "a", "--chain", "skew", "--seed", "a"], "--seed 'a' is not a whole number", "--help"),
        (["add", "x", "-t", "a", "--chain", "skew", "--seed", "-1"], "--seed -1: must be at least 0", None),
        (["add", "x", "--max-change", "x"], "--max-change 'x' is not a number", "paramcli add --help"),
        (["registry", "x", "--plugin"], "option '--plugin' requires an argument", "paramcli --help"),
        (["verify", "x", "--tol", "-1"], "--tol -1: must be at least 0", None),
        (["diff", "x", "y", "--tol", "nan"], "--tol nan: must be at least 0", None),
        (
            ["add", "x", "-t", "a", "--chain", "skew", "--init", "projekt"],
            "--init projekt: not one of",
            "--init project",
        ),
        (["add", "x", "-t", "a", "--chain", "cayly"], "no parametrization named 'cayly'", "closest: cayley"),
        (["verify", "x", "--constraint", "orthgonal"], "no constraint named 'orthgonal'", "closest: orthogonal"),
        (
            ["assign", "x", "-t", "a", "--with", "xavier_unifrom"],
            "no initialiser named 'xavier_unifrom'",
            "xavier_uniform",
        ),
        (["registry", "--family", "masks"], "no family named 'masks'", "closest: mask"),
        (["migrate", "x", "--to", "newer"], "--to newer: not one of new, old", "--to new"),
        (["inspect", "x", "--compute-dtype", "float"], "no option '--compute-dtype'", None),
    ],
)
def test_mistakes_are_met_with_the_nearest_right_thing(arguments, message, hint, paramcli):
    """Commands, options, their words and names: one line each, exit 2, and what was probably meant."""
    result = paramcli(*arguments, code=2)
    assert message in result.err and (hint is None or hint in result.err)
    assert result.err.count("\n") <= 2 and "try: closest" not in result.err


def test_no_command_at_all_shows_the_help_and_no_error(paramcli):
    """There is no mistake to name, but nothing was done either: exit 2."""
    result = paramcli(code=2)
    assert "inspect" in result.out + result.err and "error" not in result.err


def test_debug_works_in_any_place_and_keeps_the_exit_code(shell):
    """A traceback, then the same line and the same code as without."""
    import subprocess
    import sys

    for arguments in (["--debug", "inspect", "nope"], ["inspect", "nope", "--debug"]):
        done = subprocess.run([sys.executable, "-m", "paramcli", *arguments], capture_output=True, text=True)
        assert done.returncode == 3 and "Traceback" in done.stderr and "error: no such file: nope" in done.stderr


def test_a_bug_says_how_to_report_it(fc_checkpoint, monkeypatch, paramcli):
    """Exit 70: what it was, on one line, and what a report should hold."""

    monkeypatch.setattr("paramcli.spelling.opened.detect", lambda *_: 1 / 0)
    result = paramcli("inspect", fc_checkpoint, code=70)
    assert (
        "a bug in paramcli: ZeroDivisionError" in result.err and "report it" in result.err and "--debug" in result.err
    )


def test_the_registry_is_browsed_by_family_and_by_constraint(paramcli):
    """--family shows one family; --constraints the sets; a constraint has a card too."""
    norm = paramcli("registry", "--family", "norm").out
    assert "weight_norm" in norm and "cayley" not in norm and norm.splitlines()[1] == "norm"
    assert {e["family"] for e in paramcli("registry", "--family", "norm", "--json").json["parametrizations"]} == {
        "norm"
    }
    assert "unit_spectral_norm" in paramcli("registry", "--constraints").out
    card = paramcli("registry", "special_orthogonal").out
    assert "cayley" in card and "--constraint special_orthogonal" in card and max(map(len, card.splitlines())) <= 80
    assert "special_orthogonal" in {c["name"] for c in paramcli("registry", "--json").json["constraints"]}


def test_a_mistyped_file_meets_the_one_beside_it(fc_checkpoint, paramcli):
    """chkpt.pt where ckpt.pt is: named as it can be typed; nothing near, nothing said."""
    assert f"closest: {fc_checkpoint}" in paramcli("inspect", fc_checkpoint.parent / "chkpt.pt", code=3).err
    assert "closest" not in paramcli("inspect", fc_checkpoint.parent / "elsewhere.bin", code=3).err


def test_a_fold_names_the_command_that_checks_it(fixtures, tmp_path, paramcli):
    """Where there is no constraint to verify, diff compares what was with what is, and finds it equal."""
    told = paramcli("remove", fixtures / "old_norms.pt", "-t", "conv.weight", "-o", tmp_path / "o.safetensors").err
    next_line = told.splitlines()[-1]
    assert next_line == f"next: paramcli diff {fixtures / 'old_norms.pt'} {tmp_path / 'o.safetensors'}"
    paramcli(*next_line.split()[2:])


def test_a_table_has_no_column_that_is_empty(fixtures, tmp_path, paramcli):
    """A rename has no numbers, and a cast names the dtype it is to."""
    assert (
        "residual"
        not in paramcli("migrate", fixtures / "old_norms.pt", "--to", "new", "-o", tmp_path / "n.safetensors").out
    )
    cast = paramcli("convert", fixtures / "ckpt.pt", "--dtype", "bfloat16", "-o", tmp_path / "c.safetensors").out
    assert "float32  bfloat16" in cast
