"""--device: names to devices that this machine has."""

from __future__ import annotations

import re

from . import ranks
from .errors import UsageError
from .text import printable
from .wording import given

_INSTEAD = f"{given('device', 'cpu')}, or {given('device', 'auto')}"


def torch_device(device: str) -> str:
    """The torch device to use; UsageError where the machine has none. Imports torch."""

    if not re.fullmatch(r"cpu|auto|mps|cuda(:[0-9]{1,3})?", device):
        raise UsageError(
            f"no device named '{printable(device)}'", hint="cpu, cuda, cuda:0, mps or auto", option="device"
        )
    from .checkpoint.disk.interrupts import import_torch

    import_torch()
    if device == "cpu":
        return device
    import torch

    have_cuda, have_mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device == "auto":
        device = "cuda" if have_cuda else "mps" if have_mps else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if have_cuda else 0
        if not have_cuda:
            why = (
                "this torch is built without CUDA"
                if not torch.backends.cuda.is_built()
                else "torch finds no CUDA device"
            )
            raise UsageError(f"{given('device', device)}: {why}", hint=_INSTEAD, option="device")
        if ":" in device and int(device[5:]) >= count:
            raise UsageError(
                f"{given('device', device)}: there are {count}, cuda:0 to cuda:{count - 1}", option="device"
            )
        run = ranks.current()
        if device == "cuda" and run.local_size > 1:
            # Of a run's processes on one machine each has a device of its own.
            if run.local_size > count:
                raise UsageError(
                    f"{run.local_size} processes and {count} CUDA devices",
                    hint=f"--nproc-per-node {count}, or {given('device', 'cuda:0')} for all",
                    option="device",
                )
            return f"cuda:{run.local_rank}"
    elif device == "mps" and not have_mps:
        raise UsageError(f"{given('device', 'mps')}: torch finds no Metal device", hint=_INSTEAD, option="device")
    return device
