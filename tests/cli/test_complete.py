"""Tab completion, through the protocol that the shells speak: words and a cursor in the environment."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

BLOCK = "import sys; sys.modules['torch'] = None; sys.modules['numpy'] = None"
COUNTED = f"""
{BLOCK}
from tests.pace import calls
def complete():
    from paramcli.cli.app import main
    try:
        main([])
    except SystemExit:
        pass
print(calls(complete), file=open("calls", "w"))
"""


def bash(line, cwd, code=f"{BLOCK}; from paramcli.cli.app import main; main([])"):
    """What bash would offer for the last word of the line; torch cannot be imported meanwhile."""
    words = re.split("[ \n]", line)
    environment = {
        **os.environ,
        "_PARAMCLI_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=cwd)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path):
    tensors = {f"layers.{i}.{part}.weight": torch.zeros(1) for i in range(250) for part in ("q", "k", "v", "o")}
    save_file(tensors, tmp_path / "big.safetensors")
    nasty = ["ok.weight", "$(touch pwned)", "a b", "-f", "x;y", "bidi\u202e", "new\nline", "`id`"]
    torch.save({name: torch.zeros(2) for name in nasty}, tmp_path / "n.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("paramcli ver", ["verify"]),
        ("paramcli add --ma", ["--mask", "--max-change"]),
        ("paramcli add big.safetensors -t layers.249.q", ["layers.249.q.weight"]),
        ("paramcli spectrum big.safetensors --tensor layers.12.", [f"layers.12.{p}.weight" for p in "kovq"]),
        ("paramcli add big.safetensors --chain skew,cay", ["skew,cayley"]),
        ("paramcli add big.safetensors --chain orthogonal:map=h", ["orthogonal:map=householder"]),
        ("paramcli add big.safetensors --init s", ["strict"]),
        ("paramcli add big.safetensors --view f", ["flatten"]),
        ("paramcli verify big.safetensors --constraint special_o", ["special_orthogonal"]),
        ("paramcli assign big.safetensors --with xavier_u", ["xavier_uniform"]),
        ("paramcli registry cay", ["cayley"]),
        ("paramcli registry --family ortho", ["orthogonal"]),
        ("paramcli migrate big.safetensors --to n", ["new"]),
        ("paramcli verify big.safetensors --device c", ["cpu", "cuda"]),
        ("paramcli --plug", ["--plugin"]),
        ("paramcli --plugin p.py add big.safetensors -t layers.249.q", ["layers.249.q.weight"]),
        ("paramcli add --plugin p.py big.safetensors -t layers.249.q", ["layers.249.q.weight"]),
        ("paramcli add big.safetensors --plugin=p.py --debug --view f", ["flatten"]),
        ("paramcli add big.safetensors --plugin ", []),
    ],
)
def test_the_shell_is_offered_what_fits(line, wanted, folder):
    """Commands, options, their words, registry names, and tensor names of the file on the line."""
    assert sorted(bash(line, folder)) == sorted(wanted)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--chain weight_norm :", ["dim=", "dim=0"]),
        ("--chain weight_norm : d", ["dim=", "dim=0"]),
        ("--chain orthogonal : ma", ["map=cayley", "map=householder", "map=matrix_exp"]),
        ("--chain orthogonal : map =", ["cayley", "householder", "matrix_exp"]),
        ("--chain orthogonal : map = h", ["householder"]),
        ("--chain prune_l1 : amount = 0.3 : sc", ["scope=global", "scope=tensor"]),
        ("--chain skew,orthogonal : map = h", ["householder"]),
        ("--chain = skew,cay", ["skew,cayley"]),
        ("--chain = orthogonal : map = h", ["householder"]),
        ("--chain skew,cay", ["skew,cayley"]),
        ("-t a :", ["b.weight", "c.weight"]),
        ("-t a : b", ["b.weight"]),
        ("--tensor = a : b", ["b.weight"]),
        ("-t a : b.weight --chain weight_norm :", ["dim=", "dim=0"]),
        ("-t a : b.weight --vi", ["--view"]),
        ("--init ", ["project", "raw", "strict"]),
    ],
)
def test_bash_takes_colons_for_words(words, wanted, folder):
    """What is offered stands behind the last of them, as bash puts it there; the words come with line ends between."""
    torch.save({"a:b.weight": torch.ones(2), "a:c.weight": torch.ones(2), "fc.weight": torch.ones(2)}, folder / "c.pt")
    assert sorted(bash(f"paramcli add c.pt {words}", folder)) == wanted
    assert sorted(bash(f"paramcli add c.pt {words}".replace(" ", "\n"), folder)) == wanted


def test_only_plain_words_are_offered(folder):
    """A name that a shell would expand, split or run is never put on the command line."""
    assert bash("paramcli inspect n.pt -t ", folder) == ["ok.weight"]


def test_a_file_that_cannot_be_read_offers_nothing(folder):
    """No message and no traceback in the middle of typing."""
    (folder / "bad.pt").write_bytes(b"no checkpoint")
    assert bash("paramcli inspect bad.pt -t ", folder) == [] == bash("paramcli inspect missing.pt -t ", folder)
    assert bash("paramcli inspect -t ", folder) == []


def test_a_thousand_names_come_at_once(folder, monkeypatch):
    """Their file is read either way: beside one name of it they take some calls each, and all that is imported
    for them few of what importing torch takes (over a million).
    """
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    counts = []
    for line, names in (("layers.249.q", 1), ("layers.", 1000)):
        assert len(bash(f"paramcli inspect big.safetensors -t {line}", folder, COUNTED)) == names
        counts.append(int((folder / "calls").read_text()))
    assert counts[1] - counts[0] < 50 * 1000 and counts[1] < 400_000, counts


def test_bash_runs_the_installed_script(folder, shell):
    """The script that --show-completion prints, sourced by a real bash, fills COMPREPLY."""
    script = subprocess.run(
        [sys.executable, "-m", "paramcli"],
        capture_output=True,
        text=True,
        env={**os.environ, "_PARAMCLI_COMPLETE": "source_bash"},
    ).stdout
    assert "complete -o default" in script
    command = folder / "bin" / "paramcli"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m paramcli "$@"\n')
    command.chmod(0o755)
    test = script + (
        "\nCOMP_WORDS=(paramcli inspect big.safetensors -t layers.7.q); COMP_CWORD=4; "
        'COMP_LINE="${COMP_WORDS[*]}"; COMP_POINT=${#COMP_LINE}\n'
        '_paramcli_completion paramcli\necho "${COMPREPLY[@]}"\n'
        "COMP_WORDS=(paramcli add big.safetensors --chain orthogonal : map = h); COMP_CWORD=8\n"
        '_paramcli_completion paramcli\necho "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", test],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}"},
    )
    assert done.stdout.split() == ["layers.7.q.weight", "householder"], done.stderr
