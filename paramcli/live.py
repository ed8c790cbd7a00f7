"""Live models: the same chains on a module in memory, and the way between modules and files.

    register(module, "weight", "skew,cayley")      what `paramcli add` does to a tensor in a file
    load(model, path)                              registers what the file says, then loads it
    save(model, path)                              the state dict, with a record of the chains
    verify_model(model)                            what `paramcli verify` measures

Registration is torch's own parametrize, so `parametrize.cached()`, deepcopy, optimizers and
`torch.compile` see nothing they do not know.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm, _WeightNorm

from . import __version__
from .answers.measured import measure_parts
from .answers.verdict import Verdict, VerifyResult
from .chain import Chain, extend, parse_chain
from .checkpoint.disk.atomic import AtomicFile
from .checkpoint.header import Slot
from .checkpoint.source import Source, tensor_bytes
from .checkpoint.write.safetensors_file import SafetensorsSink
from .devices import torch_device
from .dtypes import CODE_OF_TORCH, code_of
from .errors import PATH, TENSOR, InputRefused, Known, OutputFailed, UsageError, error_context
from .fitting import torch_module as hosting
from .fitting.evaluate import complete, read_state, require_chain, settle
from .fitting.fit import fit
from .fitting.margins import NOTED
from .fitting.skeleton import dtype_of
from .maths.base import Parametrization
from .spec import path_of, select
from .spelling import record as records
from .spelling.forms import PARAMETRIZED, Group
from .spelling.keys import parametrized_key
from .spelling.opened import open_groups
from .surgery.output import TORCH_SUFFIXES
from .text import listing, printable, shape_text
from .view import IDENTITY, View, parse_view
from .wording import call, given

if TYPE_CHECKING:
    from .surgery.edits.add import Init

# A module's own class, which is what comes back.
Model = TypeVar("Model", bound=nn.Module)


def register(
    module: Model,
    name: str,
    chain: str,
    view: str | None = None,
    *,
    init: Init = "project",
    seed: int = 0,
    max_change: float | None = None,
) -> Model:
    """Put a chain on a parameter or buffer of a module; returns the module.

    Args:
        chain: as on the command line, e.g. "skew,cayley" or "weight_norm:dim=0".
        view: what the maths sees, e.g. "flatten" or "blocks=4"; the stored shape does not change.
        init: "project" keeps a weight that satisfies the constraint and moves another to its nearest point; "strict"
            raises CheckFailed for one that is off; "raw" is torch's register_parametrization, item by item.
        seed: of everything random (masks, completed bases).
        max_change: raise CheckFailed where the weight would move by more than this relative distance.

    What `paramcli add` would note of the result (a point that the originals cannot hold) is a warning here, where it is
    far.

    On a tensor that has a chain already the new items are appended, as torch does, and `init` plays no part.
    Raises UsageError for chains that do not type-check, InputRefused for tensors a map cannot take.
    """
    if parametrize.is_parametrized(module, name):
        known = chain_of(module, name)
        if known is None:
            raise UsageError(
                f"{TENSOR} is parametrized by something paramcli does not know", tensor=name, option="name"
            )
        if view is not None and parse_view(view) != known[1]:
            raise UsageError(
                f"{TENSOR} already has the view {known[1]}; a chain has one view", tensor=name, option="view"
            )
        _, more = extend(known[0], chain)
        hosting.register(module, name, more, known[1], seed)
        return module
    parsed, seen = parse_chain(chain), parse_view(view)
    tensor = getattr(module, name, None)
    if not isinstance(tensor, Tensor) or name not in {**module._parameters, **module._buffers}:
        have = [key for key, value in {**module._parameters, **module._buffers}.items() if value is not None]
        raise UsageError(
            f"the module has no parameter or buffer '{printable(name)}'",
            hint=Known(f"it has: {listing(have)}") if have else None,
            option="name",
        )
    with error_context(tensor=name):
        parsed = parsed.at(seen.shape(tensor.shape))
        hosting.require_fit(parsed, seen, tuple(tensor.shape), tensor.dtype)
        if init == "raw":
            hosting.register(module, name, parsed, seen, seed)
            return module
        if init not in ("project", "strict"):
            raise UsageError(f"init={init!r}: project, strict or raw", option="init")
        fitted = fit(tensor.detach(), parsed, seen, init=init, seed=seed, max_change=max_change)
    if fitted.note is not None and fitted.missed > NOTED:
        warnings.warn(f"{name}: {fitted.note}", stacklevel=2)
    with ExitStack() as undo:
        _install(module, name, parsed, seen, undo)
        _fill(module, name, fitted.state)
        undo.pop_all()
    return module


def load(
    model: Model,
    path: str | os.PathLike[str],
    strict: bool = True,
    *,
    root: str | None = None,
    device: str = "cpu",
    ignore_record: bool = False,
) -> Model:
    """Register on the model what the file's record and keys say, then load the file; returns the model.

    Any checkpoint that `paramcli inspect` reads will do, in any spelling: older spellings of weight norm, spectral
    norm and pruning become parametrizations, unless the model itself spells them so. Parameters that the model has
    under the same name are filled in place, so an optimizer made before keeps its single originals; one made after
    sees all of them. `device`: where what the file leaves open is computed; the model stays where it is.

    Raises InputRefused for a file that does not fit the model (`strict=False` loads what fits), UsageError for a chain
    that nothing tells; the model is then as it was.
    """
    where = torch_device(device)
    with (
        open_groups(path_of(path, "path"), root, ignore_record) as opened,
        error_context(path=path),
        ExitStack() as undo,
    ):
        state: dict[str, Tensor] = {}
        for group in opened.groups.values():
            state.update(_tensors_for(model, opened.source, group, where, undo))
        opened.source.check_unchanged()
        have = model.state_dict()
        wrong = [
            f"{printable(key)} is {shape_text(tensor.shape)} in the file and {shape_text(have[key].shape)} in the model"
            for key, tensor in state.items()
            if isinstance(have.get(key), Tensor) and have[key].shape != tensor.shape
        ]
        missing, unexpected = [k for k in have if k not in state], [k for k in state if k not in have]
        if wrong or (strict and (missing or unexpected)):
            told = wrong[:3]
            told += [f"the file lacks {listing(missing, 3)}"] if missing and strict else []
            told += [f"the model lacks {listing(unexpected, 3)}"] if unexpected and strict else []
            fits = "; strict=False loads what fits" if strict and not wrong else ""
            raise InputRefused(
                f"the checkpoint does not fit the model: {'; '.join(told)}",
                hint=f"{call('inspect', PATH)} shows the names{fits}",
            )
        if have and state and len(unexpected) == len(state):
            raise InputRefused(
                f"nothing in the checkpoint fits the model: it has {listing(state, 3)}, "
                f"and the model {listing(have, 3)}",
                hint=f"load into the part of the model that the file is of, or rename with {call('convert')}",
            )
        model.load_state_dict(state, strict=False)
        undo.pop_all()
    return model


def _tensors_for(model: nn.Module, source: Source, group: Group, device: str, undo: ExitStack) -> dict[str, Tensor]:
    """The group's tensors under the keys the model has for them, its chain registered first where it is not."""
    state = read_state(source, group, device)
    own = {key: state[role] if role in state else source.read(key) for role, key in group.keys.items()}
    module, name = _holder(model, group.tensor)
    if group.is_plain or module is None or set(own) <= set(model.state_dict(keep_vars=True)):
        return own
    if not parametrize.is_parametrized(module, name):
        if not isinstance(getattr(module, name, None), Tensor):
            return own
        with error_context(tensor=group.tensor):
            require_chain(group)
            chain, view = settle(group, state)
            hosting.require_fit(chain, view, tuple(getattr(module, name).shape), dtype_of(state))
            _install(module, name, chain, view, undo)
            state = complete(group, state, chain)
            # What is not in the file would stay as memory happened to be.
            lacking = [
                parametrized_key(group.tensor, role) for role in hosting.roles(module, name) if role not in state
            ]
            if lacking:
                raise InputRefused(
                    f"the file lacks {listing(lacking, 3)}", hint="if it is a shard, give its folder or index"
                )
    return {parametrized_key(group.tensor, role): tensor for role, tensor in state.items()}


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    sync: bool = True,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Write the model's state dict, as its name says: `.safetensors` with a record of its chains, `.pt`, `.pth`, `.bin`
    or `.ckpt` as torch.save writes it, which has no place for one. Returns the path.

    torch's own weight_norm, spectral_norm and orthogonal are recorded too. Tensors parametrized by classes that
    paramcli does not know are written without a record. The file appears whole or not at all; one that is there is
    replaced with `overwrite=True` only. `sync=False`: without waiting until it is on the disk.
    """
    path = path_of(path, "path")
    if not path.name.endswith((".safetensors", *TORCH_SUFFIXES)):
        raise UsageError(
            f"save writes safetensors and torch checkpoints, not {printable(path.name)}",
            hint="model.safetensors, or model.pt",
            option="path",
        )
    if not overwrite and os.path.lexists(path):
        raise OutputFailed(
            f"{PATH} exists already", hint=f"{given('overwrite', True)} replaces it", path=path, code="exists"
        )
    if path.name.endswith(".safetensors"):
        _save_safetensors(model, path, overwrite, sync, metadata or {})
    elif metadata:
        raise UsageError(
            "a torch file has no place for metadata", hint="save to a name that ends in .safetensors", option="metadata"
        )
    else:
        with AtomicFile(path, overwrite=overwrite, sync=sync) as file:
            writer = _Writer(file)
            torch.save(model.state_dict(), writer)  # type: ignore[arg-type]  # of a file it asks no more than this
            file.commit(writer.size)
    return path


class _Writer:
    """An AtomicFile as torch.save wants one: written from its beginning to its end."""

    def __init__(self, file: AtomicFile):
        self._file, self.size = file, 0

    def write(self, data: bytes | memoryview) -> int:
        self._file.write_at(self.size, data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        pass


def _save_safetensors(model: nn.Module, path: Path, overwrite: bool, sync: bool, metadata: Mapping[str, str]) -> None:
    state = model.state_dict(keep_vars=True)
    for key, tensor in state.items():
        if (
            not isinstance(tensor, Tensor)
            or str(tensor.dtype).removeprefix("torch.") not in CODE_OF_TORCH
            or tensor.layout != torch.strided
        ):
            what = (
                type(tensor).__name__
                if not isinstance(tensor, Tensor)
                else f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
            )
            raise InputRefused(f"{TENSOR} is {what}, which safetensors cannot hold", tensor=key)
    slots = [Slot(key, code_of(tensor.dtype), tuple(tensor.shape)) for key, tensor in state.items()]
    text = {**metadata, "format": "pt"}
    if entries := _record_of(model):
        text[records.KEY] = records.record_text(entries, __version__)
    with SafetensorsSink(path, slots, text, overwrite=overwrite, sync=sync) as sink:
        for key, tensor in state.items():
            sink.write(key, tensor_bytes(tensor.detach().cpu().contiguous()))
        sink.commit()


def _record_of(model: nn.Module) -> dict[str, records.Entry]:
    entries = {}
    for tensor, module, name in _parametrized(model):
        known = chain_of(module, name)
        if known is not None:
            shape = _untold_shape(module, name)
            entries[tensor] = records.Entry(PARAMETRIZED, *known, known[0].constraint, shape)
    return entries


def verify_model(
    model: nn.Module, tensor: Sequence[str] = (), *, constraint: str | None = None, tolerance: float | None = None
) -> VerifyResult:
    """Measure the constraints of a model's parametrized tensors, of those that `tensor` names or of all.

    `constraint` holds them to that set instead of their own. Raises InputRefused where there is nothing to verify.
    """
    known: dict[str, tuple[nn.Module, str, Chain, View]] = {}
    for full, module, name in _parametrized(model):
        if (chain := chain_of(module, name)) is not None:
            known[full] = (module, name, *chain)
    if not known:
        raise InputRefused("nothing to verify: no tensor of the model has a chain that paramcli knows")
    chosen = select(list(known), tensor, "the model") if tensor else list(known)
    verdicts = [_verdict_of(full, *known[full], constraint, tolerance) for full in chosen]
    return VerifyResult(None, tuple(verdicts))


def _verdict_of(
    tensor: str,
    module: nn.Module,
    name: str,
    chain: Chain,
    view: View,
    constraint: str | None,
    tolerance: float | None,
) -> Verdict:
    with torch.no_grad(), error_context(tensor=tensor):
        parts = hosting.parametrizations_of(module, name)
        modes = [(part, part.training) for part in parts.modules()]
        try:
            # A power step would move u and v, and measuring changes nothing.
            parts.eval()
            value = getattr(module, name).detach()
        finally:
            for part, was in modes:
                part.training = was
        code, shape = code_of(value.dtype), tuple(value.shape)
        group = Group(tensor, PARAMETRIZED, {}, {}, shape, code, chain, view, chain.constraint)
        checks = measure_parts(chain, view, value, hosting.roles(module, name), constraint, tolerance)
    return Verdict(group, str(chain), view.text, tuple(checks))


def chain_of(module: nn.Module, name: str) -> tuple[Chain, View] | None:
    """The chain and view on a module's parametrized tensor; None where a class in it is not paramcli's or torch's."""
    specs, view = [], IDENTITY
    parts = hosting.parametrizations_of(module, name)
    for part in parts:
        spec = getattr(part, "spec", None) or _stock_spec(part)
        if spec is None:
            return None
        specs.append(spec)
        view = getattr(part, "view", IDENTITY)
    chain = parse_chain(",".join(specs))
    shape = _untold_shape(module, name) or (parts.original.shape if hasattr(parts, "original") else None)
    return chain if shape is None else chain.at(view.shape(shape)), view


def _stock_spec(part: nn.Module) -> str | None:
    """The item that torch's own parametrization classes are; None for settings that no item has."""
    if type(part) is _WeightNorm:
        return f"weight_norm:dim={'none' if part.dim == -1 else part.dim}"
    if type(part) is _SpectralNorm and part.eps == 1e-12:
        return (
            f"spectral_norm:dim={part.dim}:n_power_iterations={part.n_power_iterations}"
            if hasattr(part, "_u")
            else None
        )
    if type(part) is _Orthogonal:
        return f"orthogonal:map={part.orthogonal_map.name}:triv={str(hasattr(part, 'base')).lower()}"
    return None


def _parametrized(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """(tensor name, module, leaf) of every parametrized tensor, shared modules once."""
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for name in hosting.parametrized(module):
                yield f"{prefix}.{name}" if prefix else name, module, name


def _holder(model: nn.Module, tensor: str) -> tuple[nn.Module | None, str]:
    prefix, _, name = tensor.rpartition(".")
    try:
        return model.get_submodule(prefix), name
    except AttributeError:
        return None, name


def _untold_shape(module: nn.Module, name: str) -> tuple[int, ...] | None:
    """The weight's shape, where none of its originals has it."""
    first = hosting.parts(module, name)[0]
    return first.stored_shape if isinstance(first, Parametrization) and not first.stored_originals else None


def _install(module: nn.Module, name: str, chain: Chain, view: View, undo: ExitStack) -> None:
    """Register the chain's structure without any arithmetic; a single original stays the same Parameter object.

    `undo` gets the way back: originals made here hold no numbers yet.
    """
    old = getattr(module, name)
    tables = [
        _restoring(module._parameters),
        _restoring(module._buffers),
        _restoring(module._modules),
        _restoring(module._non_persistent_buffers_set),
    ]
    undo.callback(_put_back, module, name, type(module), tables)
    shell = torch.empty(old.shape, dtype=old.dtype, device="meta")
    is_parameter = name in module._parameters
    setattr(module, name, nn.Parameter(shell, old.requires_grad) if is_parameter else shell)
    hosting.register(module, name, chain, view)
    made = hosting.parametrizations_of(module, name).to_empty(device=old.device)
    if hasattr(made, "original") and made.original.shape == old.shape:
        (made._parameters if is_parameter else made._buffers)["original"] = old


# A module's own table: of parameters, buffers or modules by name, or of names.
Own = TypeVar("Own", dict[str, Any], set[str])


def _restoring(table: Own) -> Callable[[], None]:
    """What makes a table be again what it is now."""
    now = table.copy()

    def restore() -> None:
        table.clear()
        table.update(now)

    return restore


def _put_back(module: nn.Module, name: str, was: type[nn.Module], tables: Sequence[Callable[[], None]]) -> None:
    if type(module) is was and parametrize.is_parametrized(module, name):
        # Other tensors of the module are parametrized and stay so.
        del hosting.parametrized(module)[name]
        delattr(was, name)
    module.__class__ = was
    for restore in tables:
        restore()


def _fill(module: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    hosting.parametrizations_of(module, name).load_state_dict(dict(state), strict=True)
