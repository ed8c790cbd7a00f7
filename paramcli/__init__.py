"""paramcli: torch's parametrizations on a checkpoint on disk, without the model's code.

Every command is a function with the command's name and options; it returns a frozen result:

    import paramcli
    result = paramcli.add("ckpt.pt", "fc.weight", "skew,cayley", output="ckpt.parametrized.safetensors")
    paramcli.verify(result.output).ok                         # what `paramcli verify` measures; a model will do too

and on live models:

    paramcli.register(model.fc, "weight", "skew,cayley")      # what `add` does, on a module in memory
    paramcli.save(model, "model.safetensors")                 # the state dict, with a record of the chains
    paramcli.load(model, "model.safetensors")                 # registers what the record says, then loads

Errors are `ParamcliError` and its subclasses, with fields. Importing this package is cheap; torch is loaded by the
functions that compute.
"""

__version__ = "0.1.0"

# With `python -m paramcli` this runs before __main__.py has taken the working directory out of the way, and imports
# nothing: a file there could have the name, typing.py or __future__.py.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from .answers.diff import Difference, DiffResult
    from .answers.discover import DiscoverResult, Finding
    from .answers.inspect import InspectResult
    from .answers.merge_verdict import MergeResult, MergeVerdict
    from .answers.spectrum import Spectra, Spectrum, SpectrumResult
    from .answers.verdict import Verdict, VerifyResult
    from .api.edits import add, apply, assign, attach, convert, merge, migrate, remove
    from .api.extract import extract
    from .api.proofs import round_trip, verify_merge
    from .api.questions import diff, discover, inspect, snippet, spectrum, verify
    from .chain import Chain
    from .errors import CheckFailed, DeviceFull, InputRefused, OutputFailed, ParamcliError, UsageError
    from .live import load, register, save
    from .maths.base import Check
    from .plugins import load_plugin
    from .spelling.forms import Group
    from .surgery.extracted import Extracted, ExtractResult
    from .surgery.plan import Outcome
    from .surgery.result import EditResult
    from .view import View
    from .watch import Watch

# Public name -> the module that has it. None is imported before it is asked for.
_PLACES = {
    ".api.edits": ("add", "apply", "assign", "attach", "convert", "merge", "migrate", "remove"),
    ".api.extract": ("extract",),
    ".api.questions": ("diff", "discover", "inspect", "snippet", "spectrum", "verify"),
    ".api.proofs": ("round_trip", "verify_merge"),
    ".live": ("load", "register", "save"),
    ".plugins": ("load_plugin",),
    ".watch": ("Watch",),
    ".errors": ("CheckFailed", "DeviceFull", "InputRefused", "OutputFailed", "ParamcliError", "UsageError"),
    ".surgery.result": ("EditResult",),
    ".surgery.extracted": ("ExtractResult", "Extracted"),
    ".surgery.plan": ("Outcome",),
    ".answers.inspect": ("InspectResult",),
    ".answers.verdict": ("Verdict", "VerifyResult"),
    ".answers.merge_verdict": ("MergeResult", "MergeVerdict"),
    ".answers.diff": ("DiffResult", "Difference"),
    ".answers.discover": ("DiscoverResult", "Finding"),
    ".answers.spectrum": ("Spectra", "Spectrum", "SpectrumResult"),
    ".maths.base": ("Check",),
    ".spelling.forms": ("Group",),
    ".chain": ("Chain",),
    ".view": ("View",),
}
_HOME = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "Chain",
    "Check",
    "CheckFailed",
    "DeviceFull",
    "DiffResult",
    "Difference",
    "DiscoverResult",
    "EditResult",
    "ExtractResult",
    "Extracted",
    "Finding",
    "Group",
    "InputRefused",
    "InspectResult",
    "MergeResult",
    "MergeVerdict",
    "Outcome",
    "OutputFailed",
    "ParamcliError",
    "Spectra",
    "Spectrum",
    "SpectrumResult",
    "UsageError",
    "Verdict",
    "VerifyResult",
    "View",
    "Watch",
    "add",
    "apply",
    "assign",
    "attach",
    "convert",
    "diff",
    "discover",
    "extract",
    "inspect",
    "load",
    "load_plugin",
    "merge",
    "migrate",
    "register",
    "remove",
    "round_trip",
    "save",
    "snippet",
    "spectrum",
    "verify",
    "verify_merge",
]


if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> object:
        if name in _HOME:
            from importlib import import_module

            return getattr(import_module(_HOME[name], __name__), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
