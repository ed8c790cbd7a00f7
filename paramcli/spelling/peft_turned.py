"""OFT and BOFT of PEFT, which turn a layer's inputs.

    OFT   MODULE.oft_R.weight, one row for each block of inputs    W diag(R_1, ...)^T
          MODULE.oft_embedding_R.weight                            W diag(R_1, ...)
    BOFT  MODULE.boft_R, .boft_s                                   diag(s) W (M_N ... M_1)^T

The size of a block is told by the tensors; the configuration tells how a rotation is made of them. Source: peft 0.21,
tuners/oft, tuners/boft.
"""

from __future__ import annotations

import math

from ..spec import value_text
from ..text import printable
from ..view import IDENTITY, View
from .adapter import Change, matrix_of, not_of_shape
from .forms import Group
from .peft_config import Config
from .peft_family import Family, Module, require_whole_strength


def _oft_changes(module: Module, config: Config) -> list[Change]:
    if "oft_r" in module.keys:
        raise module.refusal("oft_r", "as PEFT before 0.16 has it, whose OFT is another map")
    if len(module.keys) != 1:
        raise module.refusal("oft_R", "and the module has oft_embedding_R too")
    [(part, key)] = module.keys.items()
    shape = module.shape(part)
    size = (1 + math.isqrt(1 + 8 * shape[1])) // 2 if len(shape) == 2 else 0
    if not size or math.comb(size, 2) != shape[1] or not shape[0]:
        raise module.refusal(part, "and no such row holds what is above the diagonal of a square matrix")
    shared = config.flag("block_share")
    if shared and shape[0] != 1:
        raise module.refusal(part, "and block_share of the configuration says that one rotation is of all blocks")
    item = f"peft.oft:size={size}" + _oft_arguments(config, shared) + (":transposed=true" if "embed" in part else "")

    def reads(group: Group) -> tuple[str, View]:
        inputs = matrix_of(group.shape)[1] if len(group.shape) > 1 else 0
        if not inputs or (inputs % size if shared else inputs != shape[0] * size):
            raise not_of_shape(group, f"rotations of {size} inputs are", [shape])
        _require_blocks(config, module, inputs, size, "oft_block_size", "r")
        return item, IDENTITY

    return [Change(f"{module.path}.weight", {"oft_R": key}, reads)]


def _oft_arguments(config: Config, shared: bool) -> str:
    text = ""
    if config.flag("use_cayley_neumann", True):
        # None and one are the identity alone.
        text += f":terms={max(config.whole('num_cayley_neumann_terms', 5), 1)}"
    if shared:
        text += ":shared=true"
    if config.flag("coft"):
        bound = config.number("eps", default=6e-5)
        if bound <= 0:
            raise config.refusal("coft is set, and its eps is not above 0")
        text += f":bound={value_text(bound)}"
    return text


def _require_blocks(config: Config, module: Module, inputs: int, size: int, by_size: str, by_count: str) -> None:
    """InputRefused where the configuration has blocks of another size; PEFT takes near ones where they do not divide
    the inputs.
    """
    said, count = config.whole(by_size, 0), config.whole(by_count, 0)
    wanted = said if said > 0 else inputs // count if count > 0 and inputs % count == 0 else 0
    if wanted and inputs % wanted == 0 and wanted != size:
        raise config.refusal(
            f"the blocks of {printable(module.path)} are {wanted} wide here, and {size} in the weights"
        )


def _boft_changes(module: Module, config: Config) -> list[Change]:
    module.require("boft_R", "boft_s")
    R, s = module.shape("boft_R"), module.shape("boft_s")
    if len(R) != 4 or R[2] != R[3] or not all(R) or math.prod(s) != max(s, default=0):
        raise module.refusal("boft_R", "and (factors, blocks, size, size) is wanted")
    factors, blocks, size = R[:3]
    said = config.whole("boft_n_butterfly_factor", 1)
    # Without its CUDA extension PEFT takes one factor, whatever is said.
    if factors not in (1, said):
        raise module.refusal("boft_R", f"and boft_n_butterfly_factor of the configuration is {said}")

    def reads(group: Group) -> tuple[str, View]:
        if len(group.shape) < 2 or matrix_of(group.shape) != (math.prod(s), blocks * size):
            raise not_of_shape(group, "rotations and lengths are", [R, s])
        _require_blocks(config, module, blocks * size, size, "boft_block_size", "boft_block_num")
        return f"peft.boft:size={size}" + (f":factors={factors}" if factors > 1 else ""), IDENTITY

    roles = {part: module.keys[part] for part in ("boft_R", "boft_s")}
    return [Change(f"{module.path}.weight", roles, reads)]


OFT = Family("OFT", "OFT", ("oft_R", "oft_embedding_R", "oft_r"), _oft_changes, require_whole_strength)
BOFT = Family("BOFT", "BOFT", ("boft_R", "boft_s"), _boft_changes, require_whole_strength)
