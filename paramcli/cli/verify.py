"""paramcli verify: measure constraints against what rounding explains."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UsageError
from ..show.document import document
from ..show.tables import merge_table, verify_table
from ..text import printable_path
from ..wording import call, given
from . import complete, words
from . import options as o
from .screen import open_screen
from .usage import typed

if TYPE_CHECKING:
    from ..answers.merge_verdict import MergeResult
    from ..answers.verdict import VerifyResult
    from ..show.console import Screen


def attach(app: typer.Typer) -> None:
    app.command("verify", epilog="Exit code: 0 all hold, 1 one does not, 3 some could not be read.")(verify)


def verify(
    context: typer.Context,
    ckpt: o.Checkpoint,
    tensor: o.Tensors = None,
    constraint: Annotated[
        str | None,
        typer.Option(
            "--constraint",
            metavar="SET",
            help="What to hold the tensors to, e.g. orthogonal; default what the record says.",
            show_default=False,
            autocompletion=complete.constraint,
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tol", metavar="X", help="Tolerance in place of the constraint's own.", show_default=False),
    ] = None,
    chain: o.Chain = None,
    view: o.View = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="BASE",
            help="With --adapter: is CKPT this and the adapter? With --round-trip: is it this, decoded?",
            show_default=False,
        ),
    ] = None,
    adapter: Annotated[
        list[Path] | None,
        typer.Option(
            "--adapter", "-a", metavar="DIR", help="The adapter that was merged; repeatable.", show_default=False
        ),
    ] = None,
    round_trip: Annotated[
        bool,
        typer.Option(
            "--round-trip",
            help="Of quantized weights: do they, quantized again onto the stored scales, give the stored codes?",
        ),
    ] = False,
    strength: o.Strengths = None,
    adapter_prefix: o.AdapterPrefixes = None,
    root: o.Root = None,
    device: o.Device = "cpu",
    compute_dtype: o.Compute = "same",
    ignore_record: o.IgnoreRecord = False,
    report: o.Report = None,
    force: o.Force = False,
    as_json: o.Json = False,
    sha256: Annotated[
        bool,
        typer.Option(
            "--sha256",
            help="Also say what was verified, and with what: the SHA-256 of every file that was read.",
            rich_help_panel=o.WHERE,
        ),
    ] = False,
    quiet: o.Quiet = False,
) -> None:
    """Prove that the constraints hold: evaluate each tensor, measure its residual, compare with the tolerance.

    Without -t: everything the record names or the keys tell. Nothing to verify is an error, never a pass.

    paramcli verify ckpt.baked.safetensors

    paramcli verify rnn.pt -t '*_hh*' --constraint orthogonal --view blocks=4

    paramcli verify merged.safetensors --base model.safetensors --adapter my_lora/

    paramcli verify baked.safetensors --base quantized/ --round-trip
    """
    from ..api import proofs, questions

    screen = open_screen(quiet)
    if round_trip:
        other = {"constraint": constraint, "tol": tolerance, "adapter": adapter}
        _alone("round-trip", {**other, "report": report, "sha256": sha256 or None})
        back = proofs.round_trip(
            ckpt,
            tensor or (),
            base=base,
            chain=chain,
            view=view,
            root=root,
            device=device,
            ignore_record=ignore_record,
            watch=screen,
        )
        _show(screen, back, as_json, ckpt)
        return
    if base is not None or adapter or adapter_prefix or strength:
        other = {"constraint": constraint, "tol": tolerance, "chain": chain, "view": view}
        proved = proofs.verify_merge(
            ckpt,
            _both(ckpt, base, adapter, {**other, "compute-dtype": None if compute_dtype == "same" else compute_dtype}),
            adapter or (),
            tensor or (),
            strength=words.strengths(context, adapter, strength),
            adapter_prefix=adapter_prefix or (),
            root=root,
            device=device,
            ignore_record=ignore_record,
            report=report,
            force=force,
            sha256=sha256,
            command=typed(context),
            watch=screen,
        )
        _show_merge(screen, proved, as_json, report)
        return
    result = questions.verify(
        ckpt,
        tensor or (),
        constraint=constraint,
        tolerance=tolerance,
        chain=chain,
        view=view,
        root=root,
        device=device,
        compute_dtype=words.compute_dtype(compute_dtype),
        ignore_record=ignore_record,
        report=report,
        force=force,
        sha256=sha256,
        command=typed(context),
        watch=screen,
    )
    _show(screen, result, as_json, ckpt, report)


def _show(screen: Screen, result: VerifyResult, as_json: bool, ckpt: Path, report: Path | None = None) -> None:
    if as_json:
        screen.answer(document(result.document()))
    else:
        fold = screen.folds(sum(max(len(verdict.checks), 1) for verdict in result))
        screen.show(verify_table(result, fold=fold, kept=result.kept))
        for file in result.evidence.files if result.evidence else ():
            screen.note(f"{file.sha256}  {file.path}")
    if report is not None:
        screen.note(f"wrote {printable_path(report)}")
    screen.note(result.summary(f" in {printable_path(ckpt)}"))
    if result.failed or (result.kept is not None and not result.kept.ok):
        raise typer.Exit(1)
    if result.unverified:
        said = "" if result.of_codes else "say what they are with --chain, or "
        screen.note(f"{said}name with -t what is to be verified")
        raise typer.Exit(3)


def _alone(option: str, others: dict[str, object]) -> None:
    """UsageError for what asks another question."""
    for name, value in others.items():
        if value:
            raise UsageError(f"{given(option, True)} and {given(name)} exclude each other", option=name)


def _both(ckpt: Path, base: Path | None, adapter: list[Path] | None, other: dict[str, object]) -> Path:
    """The base of a merge that is to be proved; UsageError for half the question, and for what asks another."""
    if base is None:
        raise UsageError(
            f"{given('adapter')} needs {given('base')}: what it was merged into",
            hint=given("base", "BASE"),
            option="base",
        )
    if not adapter:
        raise UsageError(
            f"{given('base')} needs {given('adapter')}: what was merged into it",
            hint=f"{given('adapter', 'FOLDER')}, or {given('round-trip', True)} for a bake of its codes; "
            f"{call('diff', base, ckpt)} compares the two as they are",
            option="adapter",
        )
    for name, value in other.items():
        if value is not None:
            raise UsageError(
                f"{given('base')} and {given(name)} exclude each other: a merge is compared with what it should be",
                option=name,
            )
    return base


def _show_merge(screen: Screen, result: MergeResult, as_json: bool, report: Path | None) -> None:
    if as_json:
        screen.answer(document(result.document()))
    else:
        screen.show(merge_table(result, fold=screen.folds(len(result))))
        for file in result.evidence.files if result.evidence else ():
            screen.note(f"{file.sha256}  {file.path}")
    if report is not None:
        screen.note(f"wrote {printable_path(report)}")
    screen.note(result.summary())
    if result.said:
        screen.note(result.said)
    if result.ok is not True:
        raise typer.Exit(1 if result.ok is False else 3)
