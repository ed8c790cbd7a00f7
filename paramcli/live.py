"""Live models: the same chains on a module in memory, and the way between modules and files.

    register(module, "weight", "skew,cayley")      what `paramcli add` does to a tensor in a file
    load(model, path)                              registers what the file says, then loads it
    save(model, path)                              the state dict, with a record of the chains
    verify(model_or_path)                          what `paramcli verify` measures

Registration is torch's own parametrize, so `parametrize.cached()`, deepcopy, optimizers and
`torch.compile` see nothing they do not know.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _Orthogonal, _SpectralNorm, _WeightNorm

from . import __version__
from .answers.verify import Verdict, measure_parts, select_claims, verify_group
from .chain import Chain, extend, parse_chain
from .checkpoint.header import Slot
from .checkpoint.read.open import open_checkpoint
from .checkpoint.source import Source, tensor_bytes
from .dtypes import CODE_OF_TORCH, code_of
from .errors import InputRefused, UsageError, error_context
from .fitting import torch_module as hosting
from .fitting.evaluate import complete, read_state, require_chain, settle
from .fitting.fit import fit
from .fitting.reach import NOTED
from .spelling import record as records
from .spelling.forms import PARAMETRIZED, Group, detect
from .spelling.keys import parametrized_key
from .text import listing, printable, shape_text
from .view import IDENTITY, View, parse_view


def register(
    module: nn.Module,
    name: str,
    chain: str,
    view: str | None = None,
    *,
    init: str = "project",
    seed: int = 0,
    max_change: float | None = None,
) -> nn.Module:
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
            raise UsageError(f"{name} is parametrized by something paramcli does not know", tensor=name)
        if view is not None and parse_view(view) != known[1]:
            raise UsageError(f"{name} already has the view {known[1]}; a chain has one view", tensor=name)
        _, more = extend(known[0], chain)
        return hosting.register(module, name, more, known[1], seed)
    parsed, seen = parse_chain(chain), parse_view(view)
    tensor = getattr(module, name, None)
    if not isinstance(tensor, Tensor) or name not in {**module._parameters, **module._buffers}:
        have = [key for key, value in {**module._parameters, **module._buffers}.items() if value is not None]
        raise UsageError(
            f"the module has no parameter or buffer '{printable(name)}'",
            hint=f"it has: {listing(have)}" if have else None,
        )
    with error_context(tensor=name):
        parsed = parsed.at(seen.shape(tensor.shape))
        hosting.require_fit(parsed, seen, tuple(tensor.shape), tensor.dtype)
        if init == "raw":
            return hosting.register(module, name, parsed, seen, seed)
        if init not in ("project", "strict"):
            raise UsageError(f"init={init!r}: project, strict or raw")
        fitted = fit(tensor.detach(), parsed, seen, init=init, seed=seed, max_change=max_change)
    if fitted.note is not None and fitted.missed > NOTED:
        warnings.warn(f"{name}: {fitted.note}", stacklevel=2)
    with ExitStack() as undo:
        _install(module, name, parsed, seen, undo)
        _fill(module, name, fitted.state)
        undo.pop_all()
    return module


def load(model: nn.Module, path: str | os.PathLike, strict: bool = True, *, root: str | None = None) -> nn.Module:
    """Register on the model what the file's record and keys say, then load the file; returns the model.

    Any checkpoint that `paramcli inspect` reads will do, in any spelling: older spellings of weight norm, spectral
    norm and pruning become parametrizations, unless the model itself spells them so. Parameters that the model has
    under the same name are filled in place, so an optimizer made before keeps its single originals; one made after
    sees all of them.

    Raises InputRefused for a file that does not fit the model (`strict=False` loads what fits), UsageError for a chain
    that nothing tells; the model is then as it was.
    """
    with open_checkpoint(Path(path), root) as source, error_context(path=path), ExitStack() as undo:
        state: dict[str, Tensor] = {}
        for group in _groups(source).values():
            state.update(_tensors_for(model, source, group, undo))
        source.check_unchanged()
        have = model.state_dict()
        wrong = [
            f"{printable(key)} is {shape_text(state[key].shape)} in the file and {shape_text(have[key].shape)} in the model"
            for key in state
            if isinstance(have.get(key), Tensor) and have[key].shape != state[key].shape
        ]
        missing, unexpected = [k for k in have if k not in state], [k for k in state if k not in have]
        if wrong or (strict and (missing or unexpected)):
            told = wrong[:3]
            told += [f"the file lacks {listing(missing, 3)}"] if missing and strict else []
            told += [f"the model lacks {listing(unexpected, 3)}"] if unexpected and strict else []
            raise InputRefused(
                f"the checkpoint does not fit the model: {'; '.join(told)}",
                hint="paramcli inspect shows the names; strict=False loads what fits",
            )
        model.load_state_dict(state, strict=False)
        undo.pop_all()
    return model


def _groups(source: Source) -> dict[str, Group]:
    record = records.record_in(source)
    plain = detect(source.tensors)
    records.check_against(record, {name: group.form for name, group in plain.items()})
    return detect(source.tensors, record) if record else plain


def _tensors_for(model: nn.Module, source: Source, group: Group, undo: ExitStack) -> dict[str, Tensor]:
    """The group's tensors under the keys the model has for them, its chain registered first where it is not."""
    state = read_state(source, group)
    own = {key: state[role] for role, key in group.keys.items()}
    module, name = _holder(model, group.tensor)
    if group.is_plain or module is None or set(own) <= set(model.state_dict(keep_vars=True)):
        return own
    if not parametrize.is_parametrized(module, name):
        if not isinstance(getattr(module, name, None), Tensor):
            return own
        with error_context(tensor=group.tensor):
            require_chain(group)
            chain, view = settle(group, state)
            hosting.require_fit(chain, view, tuple(getattr(module, name).shape), hosting.dtype_of(state))
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
    model: nn.Module, path: str | os.PathLike, *, overwrite: bool = False, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write the model's state dict as safetensors, with a record of its chains; returns the path.

    torch's own weight_norm, spectral_norm and orthogonal are recorded too. Tensors parametrized by classes that
    paramcli does not know are written without a record. The file appears whole or not at all.
    """
    from .checkpoint.write.safetensors_file import SafetensorsSink

    path, state = Path(path), model.state_dict(keep_vars=True)
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
            raise InputRefused(f"{printable(key)} is {what}, which safetensors cannot hold", tensor=key)
    slots = [Slot(key, code_of(tensor.dtype), tuple(tensor.shape)) for key, tensor in state.items()]
    entries = {}
    for tensor, module, name in _parametrized(model):
        known = chain_of(module, name)
        if known is not None:
            shape = tuple(hosting.parts(module, name)[0].stored_shape) if not _keeps_shape(module, name) else None
            entries[tensor] = records.Entry(PARAMETRIZED, str(known[0]), known[1].text, known[0].constraint, shape)
    text = {**(metadata or {}), "format": "pt"}
    if entries:
        text[records.KEY] = records.record_text(entries, __version__)
    with SafetensorsSink(path, slots, text, overwrite=overwrite) as sink:
        for key, tensor in state.items():
            sink.write(key, tensor_bytes(tensor.detach().cpu().contiguous()))
        sink.commit()
    return path


def verify(
    what: nn.Module | str | os.PathLike,
    names: Sequence[str] | None = None,
    *,
    constraint: str | None = None,
    tolerance: float | None = None,
    root: str | None = None,
) -> list[Verdict]:
    """Measure the constraints of a model's parametrized tensors, or of a checkpoint's; each Verdict has `tensor`, `ok`,
    `checks`.

    `ok` is None, and `checks` empty, for a tensor that makes no claim.

    `names` limits it to some tensors; `constraint` holds them to that set instead of their own. Raises InputRefused
    where there is nothing to verify.
    """
    if isinstance(what, nn.Module):
        return _verify_model(what, names, constraint, tolerance)
    with open_checkpoint(Path(what), root) as source, error_context(path=what):
        groups = _groups(source)
        unknown = [name for name in names or () if name not in groups]
        if unknown:
            raise UsageError(f"no tensor named '{printable(unknown[0])}' in {printable(what)}", tensor=unknown[0])
        chosen = [groups[name] for name in names] if names is not None else select_claims(list(groups.values()), what)
        found = [verify_group(source, group, constraint, tolerance) for group in chosen]
        source.check_unchanged()
    return found


def _verify_model(
    model: nn.Module, names: Sequence[str] | None, constraint: str | None, tolerance: float | None
) -> list[Verdict]:
    verdicts = []
    for tensor, module, name in _parametrized(model):
        known = chain_of(module, name)
        if known is None or (names is not None and tensor not in names):
            continue
        chain, view = known
        with torch.no_grad(), error_context(tensor=tensor):
            modes = [(part, part.training) for part in module.parametrizations[name].modules()]
            try:
                # A power step would move u and v, and measuring changes nothing.
                module.parametrizations[name].eval()
                value = getattr(module, name).detach()
            finally:
                for part, was in modes:
                    part.training = was
            group = Group(
                tensor,
                PARAMETRIZED,
                {},
                {},
                tuple(value.shape),
                code_of(value.dtype),
                str(chain),
                view.text,
                chain.constraint,
            )
            originals = hosting.roles(module, name)
            checks = measure_parts(chain, view, value, originals, constraint, tolerance)
        verdicts.append(Verdict(group, str(chain), view.text, tuple(checks)))
    if not verdicts:
        raise InputRefused("nothing to verify: no tensor of the model has a chain that paramcli knows")
    return verdicts


def chain_of(module: nn.Module, name: str) -> tuple[Chain, View] | None:
    """The chain and view on a module's parametrized tensor; None where a class in it is not paramcli's or torch's."""
    specs, view = [], IDENTITY
    for part in module.parametrizations[name]:
        spec = getattr(part, "spec", None) or _stock_spec(part)
        if spec is None:
            return None
        specs.append(spec)
        view = getattr(part, "view", IDENTITY)
    chain, parts = parse_chain(",".join(specs)), module.parametrizations[name]
    return chain.at(view.shape(parts.original.shape)) if hasattr(parts, "original") else chain, view


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
            for name in module.parametrizations:
                yield f"{prefix}.{name}" if prefix else name, module, name


def _holder(model: nn.Module, tensor: str) -> tuple[nn.Module | None, str]:
    prefix, _, name = tensor.rpartition(".")
    try:
        return model.get_submodule(prefix), name
    except AttributeError:
        return None, name


def _keeps_shape(module: nn.Module, name: str) -> bool:
    first = module.parametrizations[name][0]
    return bool(getattr(first, "stored_originals", (0,)))


def _install(module: nn.Module, name: str, chain: Chain, view: View, undo: ExitStack) -> None:
    """Register the chain's structure without any arithmetic; a single original stays the same Parameter object.

    `undo` gets the way back: originals made here hold no numbers yet.
    """
    old = getattr(module, name)
    tables = [module._parameters, module._buffers, module._modules, module._non_persistent_buffers_set]
    undo.callback(_put_back, module, name, type(module), [(table, table.copy()) for table in tables])
    shell = torch.empty(old.shape, dtype=old.dtype, device="meta")
    is_parameter = name in module._parameters
    setattr(module, name, nn.Parameter(shell, old.requires_grad) if is_parameter else shell)
    hosting.register(module, name, chain, view)
    made = module.parametrizations[name].to_empty(device=old.device)
    if hasattr(made, "original") and made.original.shape == old.shape:
        (made._parameters if is_parameter else made._buffers)["original"] = old


def _put_back(module: nn.Module, name: str, was: type, tables: Sequence[tuple]) -> None:
    if type(module) is was and parametrize.is_parametrized(module, name):
        # Other tensors of the module are parametrized and stay so.
        del module.parametrizations[name]
        delattr(was, name)
    module.__class__ = was
    for table, entries in tables:
        table.clear()
        table.update(entries)


def _fill(module: nn.Module, name: str, state: Mapping[str, Tensor]) -> None:
    module.parametrizations[name].load_state_dict(dict(state), strict=True)
