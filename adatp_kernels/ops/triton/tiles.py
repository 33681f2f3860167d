"""Tile sizes of the score kernels: a static table, so that nothing is tuned while a user waits.

No entry has been measured on a GPU yet: they are what compiles for every target of the compile gate without
spilling a register and within the smallest shared memory among them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton

# Programs that fill the largest chip of the day once: 132 multiprocessors (H200) and some to spare.
_FULL_CHIP = 256


@dataclass(frozen=True)
class Tile:
    """One matrix product: `columns` keys × `rows` packed rows, by `warps` warps, loads `stages` deep."""

    columns: int
    rows: int
    warps: int
    stages: int


# By bytes per element and head dimension, rounded up to a power of two.
TILES = {
    (2, 64): Tile(columns=64, rows=64, warps=4, stages=2),
    (2, 128): Tile(columns=64, rows=64, warps=4, stages=2),
    (2, 256): Tile(columns=64, rows=64, warps=8, stages=1),
    (4, 64): Tile(columns=32, rows=32, warps=4, stages=1),
    (4, 128): Tile(columns=16, rows=16, warps=4, stages=1),
    (4, 256): Tile(columns=32, rows=16, warps=4, stages=1),
}


def tile_for(dtype: torch.dtype, head_dim: int, packed_rows: int) -> Tile:
    """The table's tile, with no more rows than there are (but the 16 that a matrix product needs)."""
    tile = TILES[dtype.itemsize, max(64, triton.next_power_of_2(head_dim))]
    rows = min(tile.rows, max(16, triton.next_power_of_2(packed_rows)))
    return Tile(tile.columns, rows, tile.warps, tile.stages)


def num_splits(programs: int, num_keys: int, block: int) -> int:
    """Into how many parts, at most 8, to split the keys so that `programs` times as many fill the chip."""
    wanted = triton.next_power_of_2(max(1, triton.cdiv(_FULL_CHIP, programs)))
    return min(8, wanted, triton.next_power_of_2(max(1, num_keys // (4 * block))))
