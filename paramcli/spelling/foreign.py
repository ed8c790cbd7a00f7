"""Ways to quantize that nothing here decodes, by their configurations or by their keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from .forms import Group


class Foreign(NamedTuple):
    """A way to quantize that nothing here decodes: its name, what does, the last part of a name that is its mark (a
    regular expression) and a part that stands beside that; '' where there are none of its own.
    """

    name: str
    library: str
    leaf: str = ""
    beside: str = ""

    def marks(self, name: str, groups: Mapping[str, Group]) -> bool:
        before, _, leaf = name.rpartition(".")
        if not self.leaf or not re.fullmatch(self.leaf, leaf):
            return False
        return not self.beside or f"{before}.{self.beside}" in groups

    @property
    def hint(self) -> str:
        return f"load it with {self.library}, and save the weights that it computes with"


# By the quant_method of their configurations.
FOREIGN = {
    "aqlm": Foreign("AQLM", "aqlm", "codes", "codebooks"),
    "exl2": Foreign("EXL2", "exllamav2", "q_weight", "q_invperm"),
    "exl3": Foreign("EXL3", "exllamav3", "trellis"),
    "hqq": Foreign("HQQ", "hqq", "W_q"),
    "vptq": Foreign("VPTQ", "vptq", "indices", "centroids.weight"),
    "higgs": Foreign("HIGGS", "transformers and flute", "weight", "tables2"),
    "quanto": Foreign("Quanto", "optimum-quanto", "_data", "_scale"),
    "torchao": Foreign("torchao", "torchao", ".*[_:]qdata"),
    "marlin": Foreign("Marlin", "the library that packed it for its kernel", "B", "s"),
    "spqr": Foreign("SpQR", "transformers and spqr_quant"),
    "eetq": Foreign("EETQ", "transformers and eetq"),
    "bitnet": Foreign("BitNet", "transformers"),
    "fp_quant": Foreign("FP-Quant", "transformers and fp_quant"),
    "sinq": Foreign("SINQ", "transformers and sinq"),
    "metal": Foreign("Metal", "transformers"),
    "fouroversix": Foreign("Four Over Six", "transformers and fouroversix"),
}


def is_foreign(values: Mapping[str, object]) -> Foreign | None:
    """The way of a `quantization_config` to quantize, where nothing here decodes it."""
    if "marlin" in (values.get("checkpoint_format"), values.get("format")) or values.get("is_marlin_format") is True:
        return FOREIGN["marlin"]
    method = values.get("quant_method")
    return FOREIGN.get(method) if isinstance(method, str) else None
