"""A plain pickle of numpy arrays by name (detectron2's model zoo, VISSL) as a Source: described, never loaded."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputRefused
from ...text import listing
from ..disk.input_file import InputFile
from ..pickle.arrays import OF_NUMPY, is_array
from ..pickle.pickle_data import check_structure, read_pickle_in
from ..source import Root, Source
from .recognise import PICKLE
from .roots import choose_root
from .search import is_tensor
from .torch_file import Listing, check_expansion, collector_paused


def open_pickle(path: Path, file: InputFile, root: str | None = None) -> Source:
    """Open a pickle; `root` names the state dict where there are several. Takes over `file`."""
    try:
        with collector_paused():
            return _open(path, file, root)
    except InputRefused as error:
        file.close()
        if error.path is None:
            error.path, error.of_file = path, True
            error.fact = f"a pickle that torch.save did not write: {error.fact}"
        raise
    except BaseException:
        file.close()
        raise


def _open(path: Path, file: InputFile, root: str | None) -> Source:
    loaded = read_pickle_in(file, 0, file.size)
    if loaded.end != file.size:
        raise InputRefused(
            "bytes after the end of its pickle belong to nothing", hint="copy or download the file again"
        )
    check_structure(loaded.value)
    chosen = choose_root(loaded.value, root, lambda item: is_tensor(item) or is_array(item))
    tensors = Listing(chosen, {}).tensors()
    check_expansion(tensors, file.size)
    skipped = [str(cls) for cls in loaded.classes if cls not in OF_NUMPY]
    return Source(
        path=path,
        container=PICKLE,
        files=[file],
        tensors=tensors,
        extras=chosen.extras,
        roots=[Root(name, count) for name, count in chosen.candidates],
        root=chosen.name,
        root_path=chosen.path,
        is_loaded=False,
        notes=[
            *([f"read past classes paramcli does not know: {listing(skipped, 100)}"] if skipped else []),
            "a pickle records no checksums, so damage to its arrays cannot be noticed",
            *chosen.note(tensors.values()),
        ],
    )
