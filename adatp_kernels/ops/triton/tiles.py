"""Tile sizes of the score kernels: a static table, so that nothing is tuned while a user waits.

`benches/derive_tiles.py` measures on a GPU and writes what it finds back into the table, under that GPU's architecture.
The entries under "any" have not been measured: they are what compiles for every target of the compile gate
without spilling a register and within the smallest shared memory among them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

# Programs that fill the largest chip of the day once: 132 multiprocessors (H200) and some to spare.
_FULL_CHIP = 256


@dataclass(frozen=True)
class Tile:
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


def tile_for(query: torch.Tensor, packed_rows: int | None = None) -> Tile:
    """The table's tile for a query's device, dtype and head dim, with no more rows than there are, if that is known.

    At least 16 rows, though: a matrix product needs them.
    """
    kind = (query.dtype.itemsize, max(64, power_of_two(query.shape[-1])))
    tile = TILES.get((architecture(query.device), *kind)) or TILES[("any", *kind)]
    rows = tile.rows if packed_rows is None else min(tile.rows, max(16, power_of_two(packed_rows)))
    return Tile(tile.columns, rows, tile.warps, tile.stages)


def ceil_div(value: int, divisor: int) -> int:
    """`value` / `divisor` rounded up; triton.cdiv costs microseconds a call, and a stage makes dozens."""
    return -(-value // divisor)


def power_of_two(value: int) -> int:
    """The smallest power of two that is at least `value`."""
    return 1 << max(0, value - 1).bit_length()


def num_splits(programs: int, num_keys: int, block: int) -> int:
    """Into how many parts, at most 8, to split the keys so that `programs` times as many fill the chip."""
    wanted = power_of_two(max(1, ceil_div(_FULL_CHIP, programs)))
    return min(8, wanted, power_of_two(max(1, num_keys // (4 * block))))
