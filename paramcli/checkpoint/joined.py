"""Several checkpoints as one: a base, and what adapters hold beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from .source import Source, Storage, TensorInfo


def joined(base: Source, others: Mapping[str, Source]) -> Source:
    """The base with the tensors of the others beside its own, theirs as `label/key`; closing it closes all.

    Everything else (root, shards, metadata) is the base's, and the others' tensors are `beside` it. A label stands for
    no tensor of the base, so no two names are alike.
    """
    files, tensors, notes = list(base.files), dict(base.tensors), list(base.notes)
    for label, other in others.items():
        first = len(files)
        files += other.files
        moved: dict[int, Storage] = {}
        for key, info in other.tensors.items():
            storage = moved.setdefault(
                id(info.storage),
                replace(info.storage, file=info.storage.file + first, key=f"{label}/{info.storage.key}"),
            )
            name = f"{label}/{key}"
            tensors[name] = _placed(info, name, storage, first)
    beside = frozenset(tensors.keys() - base.tensors.keys()) | base.beside
    return replace(base, files=files, tensors=tensors, notes=notes, beside=beside)


def _placed(info: TensorInfo, name: str, storage: Storage, first: int) -> TensorInfo:
    pieces = tuple(
        replace(
            piece, info=replace(piece.info, storage=replace(piece.info.storage, file=piece.info.storage.file + first))
        )
        for piece in info.pieces
    )
    return replace(info, name=name, storage=storage, pieces=pieces)
