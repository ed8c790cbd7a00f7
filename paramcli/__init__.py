"""paramcli: torch's parametrizations on a checkpoint on disk, without the model's code.

    import paramcli
    paramcli.register(model.fc, "weight", "skew,cayley")      # what `paramcli add` does, on a live module
    paramcli.save(model, "model.safetensors")                 # the state dict, with a record of the chains
    paramcli.load(model, "model.safetensors")                 # registers what the record says, then loads
    paramcli.verify("model.safetensors")                      # what `paramcli verify` measures; a model will do too

Importing this package is cheap; the functions of its public interface load torch when first used.
"""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["load", "register", "save", "verify"]


def __getattr__(name: str):
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(".live", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
