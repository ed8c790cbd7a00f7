"""Scales in the order that tensor cores take them: a matrix cut into tiles of 128 rows and 4 columns, row by row of
tiles, and filled up to whole ones.

Within a tile rows i, i + 32, i + 64 and i + 96 lie together. Seen as (tiles down, tiles across, 32, 4, 4), entry
(r, c, i, k, l) is that of row 128 r + 32 k + i and column 4 c + l. (NVIDIA: cuBLAS, "1D block scaling factors layout";
torchao's `to_blocked`.) Without torch: readers and the table ask for shapes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import InputRefused

if TYPE_CHECKING:
    from torch import Tensor

# Rows and columns of a tile, and how many rows lie together.
ROWS, COLUMNS, TOGETHER = 128, 4, 4


def tiles_shape(rows: int, columns: int) -> tuple[int, ...]:
    """The shape, as above, of the tiles of a matrix."""
    return -(-rows // ROWS), -(-columns // COLUMNS), ROWS // TOGETHER, TOGETHER, COLUMNS


def require_matrix(shape: tuple[int, ...]) -> None:
    """InputRefused for a weight that is none: of several nothing says how their tiles lie."""
    if len(shape) != 2:
        raise InputRefused(f"scales in tiles are of a matrix; the tensor has {len(shape)} dimensions")


def from_tiles(tiles: Tensor, rows: int, columns: int) -> Tensor:
    """The matrix (rows, columns) of such tiles, without what fills them up."""
    down, across = tiles.shape[:2]
    return tiles.permute(0, 3, 2, 1, 4).reshape(down * ROWS, across * COLUMNS)[:rows, :columns]
