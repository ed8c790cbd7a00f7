"""The library is typed: what its functions give is known to a type checker, and so is what they do not take."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import paramcli

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(find_spec("mypy") is None, reason="needs mypy: pip install paramcli[lint]")

# Every public name, as the guides use them; no type that is shown may leave anything open.
RIGHT = """\
from pathlib import Path

from torch import nn

import paramcli


class Tagger(nn.Module):
    layers: int = 2


model = Tagger()
reveal_type(paramcli.register(model, "weight", "skew,cayley", view="flatten", init="strict", seed=1, max_change=0.1))
reveal_type(paramcli.load(Tagger(), Path("a.safetensors"), strict=False, root="ema", device="cuda").layers)
reveal_type(paramcli.save(model, "a.safetensors", overwrite=True, metadata={"by": "me"}))
reveal_type(paramcli.load_plugin("maps.py:MINE"))

added = paramcli.add("a.pt", "fc.weight", "skew,cayley", init="project", tied="together", compute_dtype="float64")
reveal_type(added)
reveal_type(paramcli.add("a.pt", ["fc.*", "re:out"], "mask", mask="m.pt", spelling="old", output=Path("b.pt")))
reveal_type(paramcli.assign("a.pt", "fc.weight", with_="orthogonal", seed=3, check=True))
reveal_type(paramcli.assign("a.pt", ["fc.weight"], from_="b.pt:w", dry_run=True))
reveal_type(paramcli.remove("a.pt", bake=False, view="blocks=4", in_place=True, verify=True))
reveal_type(paramcli.merge("a.pt", ["b", "c"], strength=[1, 0.5], adapter_prefix="a.=b.", device="cuda"))
extracted: paramcli.ExtractResult = paramcli.extract("a.pt", "b.pt", "fc.*", energy=0.9, spelling="kohya", whole="x")
change: paramcli.Extracted = extracted.tensors[0]
reveal_type((change.rank, change.lost, change.writes, extracted.notes, extracted.document()))
reveal_type(paramcli.attach("a.pt", "b", strength=2, dry_run=True))
reveal_type(paramcli.migrate("a.pt", to="new", force=True))
reveal_type(paramcli.convert("a.pt", "b.safetensors", dtype="bfloat16", max_shard_size="5GB", keep="fc.*"))
applied: paramcli.EditResult = paramcli.apply("recipe.toml", "a.pt", ignore_record=True, watch=paramcli.Watch())
reveal_type((added.output, added.document(), applied.edit[0].table(), applied.forecast))
one: paramcli.Outcome = applied.tensors[0]
reveal_type((one.tensor, one.moved, one.residual, one.tolerance, one.note, one.off))

inspected: paramcli.InspectResult = paramcli.inspect("a.pt", root="model")
group: paramcli.Group = inspected.tensors[0]
chain: paramcli.Chain | None = group.chain
view: paramcli.View = group.view
reveal_type((group.tensor, str(chain), view.text, group.shape, group.dtype, group.keys))

verified: paramcli.VerifyResult = paramcli.verify("a.pt", constraint="orthogonal", tolerance=1e-3, sha256=True)
reveal_type((verified.ok, paramcli.verify(model).document()))
reveal_type([check.residual for verdict in verified for check in verdict.checks])
verdict: paramcli.Verdict = next(iter(verified))
check: paramcli.Check = verdict.checks[0]
reveal_type((verdict.ok, check.ok, check.detail))

compared: paramcli.DiffResult = paramcli.diff("a.pt", Path("b.pt"), tolerance=1e-3, exact=False)
difference: paramcli.Difference = compared.tensors[0]
reveal_type(difference.equal)
on_both = paramcli.diff("a.pt", "b.pt", adapter="c", strength=2, adapter_b=["d"], strength_b=[1], adapter_prefix="a=b")
reveal_type(on_both)
back: paramcli.VerifyResult = paramcli.round_trip("a.pt", "fc.*", base="b.pt", root="model", device="cpu")
proved: paramcli.MergeResult = paramcli.verify_merge("a.pt", "b.pt", ["c"], "fc.*", strength=[2], report="d.html")
whole: paramcli.MergeVerdict = proved.tensors[0]
reveal_type((proved.ok, whole.ok, whole.verdict, whole.strength, whole.detail, proved.different[0].tensor))

discovered: paramcli.DiscoverResult = paramcli.discover("a.pt", "fc.*", view="flatten", report="r.html")
finding: paramcli.Finding = discovered.tensors[0]
reveal_type([check.constraint for check in finding.holds])

drawn: paramcli.SpectrumResult = paramcli.spectrum("a.pt", chain="cayley", svg="a.svg")
spectra: paramcli.Spectra = drawn.tensors[0]
spectrum: paramcli.Spectrum = spectra.matrices[0]
reveal_type((spectrum.singular, spectrum.eigen, spectrum.condition))
reveal_type(paramcli.snippet("a.pt"))

kinds: list[type[paramcli.ParamcliError]] = [
    paramcli.CheckFailed,
    paramcli.DeviceFull,
    paramcli.InputRefused,
    paramcli.OutputFailed,
    paramcli.UsageError,
]
try:
    paramcli.inspect("a.pt")
except paramcli.ParamcliError as error:
    reveal_type((error.message, error.hint, error.tensor, error.path, error.option, error.exit_code))
"""

# Code -> what is said of it.
WRONG = {
    'paramcli.add("a.pt", "w", "skew", init="projekt")': 'Argument "init" to "add" has incompatible type',
    'paramcli.add("a.pt", "w")': 'Missing positional argument "chain"',
    'paramcli.add("a.pt", "w", "skew", spelling="older")': 'Argument "spelling" to "add" has incompatible type',
    'paramcli.add("a.pt", "w", "skew", colour=True)': 'Unexpected keyword argument "colour"',
    'paramcli.assign("a.pt", 3)': 'Argument 2 to "assign" has incompatible type "int"',
    'paramcli.remove("a.pt", compute_dtype="float16")': 'Argument "compute_dtype" to "remove" has incompatible type',
    'paramcli.remove("a.pt", tied="yes")': 'Argument "tied" to "remove" has incompatible type',
    'paramcli.migrate("a.pt")': 'Missing named argument "to"',
    'paramcli.convert("a.pt", dtype="float8")': 'Argument "dtype" to "convert" has incompatible type',
    'paramcli.bake("a.pt")': 'Module has no attribute "bake"',
    'paramcli.verify("a.pt").okay': '"VerifyResult" has no attribute "okay"',
    'paramcli.verify("a.pt", tolerance="small")': 'Argument "tolerance" to "verify" has incompatible type "str"',
    'paramcli.register("model", "weight", "skew")': 'Value of type variable "Model" of "register" cannot be "str"',
    'paramcli.save(nn.Linear(2, 2), "a.pt") + 1': "Unsupported operand types for +",
    'paramcli.snippet("a.pt").tensors': '"str" has no attribute "tensors"',
    'paramcli.inspect("a.pt").tensors[0].tensor = "skew"': 'Property "tensor" defined in "Group" is read-only',
}


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """What mypy says of a text: (line, "error" or "note", message)."""
    from mypy import api

    folder = tmp_path_factory.mktemp("types")

    def check(text: str) -> list[tuple[int, str, str]]:
        (folder / "snippet.py").write_text(text)
        settings = folder / "mypy.ini"
        # Of what is imported only the types count here.
        settings.write_text(f"[mypy]\nstrict = true\nfollow_imports = silent\nmypy_path = {ROOT}\n")
        out, err, _ = api.run(
            [
                *("--config-file", str(settings), "--cache-dir", str(folder / "cache")),
                *("--python-executable", sys.executable, str(folder / "snippet.py")),
            ]
        )
        assert not err
        found = re.findall(r"^.*snippet\.py:(\d+): (error|note): (.*)$", out, re.MULTILINE)
        return [(int(line), kind, message) for line, kind, message in found]

    return check


def test_what_the_library_gives_is_known(checked):
    """No mistake is found where there is none, and no type is Any."""
    said = checked(RIGHT)
    assert [entry for entry in said if entry[1] == "error"] == []
    shown = [message for _, _, message in said if message.startswith("Revealed type is")]
    assert len(shown) == RIGHT.count("reveal_type(") and not [message for message in shown if "Any" in message]
    assert 'Revealed type is "snippet.Tagger"' in shown


def test_every_public_name_is_looked_at():
    """The snippet above uses all that the library offers."""
    assert [name for name in paramcli.__all__ if not re.search(rf"\bparamcli\.{name}\b", RIGHT)] == []


def test_what_the_library_does_not_take_is_found(checked):
    """Each of these lines is a mistake, and the message is about it."""
    said = {
        line: message
        for line, kind, message in checked(f"import paramcli; from torch import nn\n{chr(10).join(WRONG)}")
        if kind == "error"
    }
    missed = {code: said.get(line) for line, code in enumerate(WRONG, 2) if WRONG[code] not in said.get(line, "")}
    assert not missed and len(said) == len(WRONG)
