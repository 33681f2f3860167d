"""Tile sizes of the score kernels: a static table, so that nothing is tuned while a user waits.

`benches/derive_tiles.py` measures on a GPU and writes what it finds back into the table, under that GPU's architecture.
The entries under "any" have not been measured: they are what compiles for every target of the compile gate
without spilling a register and within the smallest shared memory among them.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

# Programs that fill the largest chip of the day once: 132 multiprocessors (H200) and some to spare.
_FULL_CHIP = 256


class Tile(NamedTuple):
    """One matrix product: `columns` keys × `rows` packed rows, by `warps` warps, loads `stages` deep."""

    columns: int
    rows: int
    warps: int
    stages: int


# By architecture ("any" where it has no entry of its own), bytes per element, and head dimension rounded up to a
# power of two. The heads of a group and the text rows are packed into the rows, so a group needs no entry of its own.
TILES = {
    ("any", 2, 64): Tile(columns=64, rows=64, warps=4, stages=2),
    ("any", 2, 128): Tile(columns=64, rows=64, warps=4, stages=2),
    ("any", 2, 256): Tile(columns=64, rows=64, warps=8, stages=1),
    ("any", 4, 64): Tile(columns=32, rows=32, warps=4, stages=1),
    ("any", 4, 128): Tile(columns=16, rows=16, warps=4, stages=1),
    ("any", 4, 256): Tile(columns=32, rows=16, warps=4, stages=1),
}


@functools.cache
def architecture(device: torch.device) -> str:
    """The name of a device's architecture as the table has it: sm_90, gfx942; "any" for a CPU."""
    if device.type != "cuda":
        return "any"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def tile_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> Tile:
    """The table's tile; whoever changes the table has to clear this function's cache."""
    kind = (dtype.itemsize, max(64, power_of_two(head_dim)))
    return TILES.get((architecture(device), *kind)) or TILES[("any", *kind)]


def row_tile(tile: Tile, group: int, rows: int) -> tuple[int, int]:
    """How many heads × text rows, powers of two, make a tile of rows for `group` heads that share a key head.

    Of two ways, which are all that is ever compiled beside the one for a single text row, the one that wastes less: all
    of the tile for one head, or 16 text rows of several. A matrix product needs 16 rows.
    """
    if rows == 1:
        return max(16, min(power_of_two(group), tile.rows)), 1
    shared = packed_tile(tile, group)
    return min((1, tile.rows), shared, key=lambda t: ceil_div(group, t[0]) * t[0] * ceil_div(rows, t[1]) * t[1])


def packed_tile(tile: Tile, group: int) -> tuple[int, int]:
    """The same where the number of text rows is not known on the host: 16 of several heads."""
    return min(power_of_two(group), tile.rows // 16), 16


def ceil_div(value: int, divisor: int) -> int:
    """`value` / `divisor` rounded up; triton.cdiv costs microseconds a call, and a stage makes dozens."""
    return -(-value // divisor)


def power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << max(0, value - 1).bit_length()


def num_splits(programs: int, num_keys: int, block: int) -> tuple[int, int]:
    """Into how many parts to split the keys so that `programs` times as many fill the chip, at least two blocks each.

    Also the most parts, a power of two, that there can be for so many programs: compiled code may depend on that one only.
    """
    most = min(64, power_of_two(ceil_div(_FULL_CHIP, programs)))
    return max(1, min(most, num_keys // (2 * block))), most
