"""Measures the score kernels' tile sizes on the GPU at hand and writes the best ones into the static table.

    python benches/derive_tiles.py [--dry]

For every element size and head dim it times all candidates that run, at 6,272 columns and 64 text rows, verifies each
against the reference, and puts the fastest under this GPU's architecture into adatp_kernels/ops/triton/tiles.py. Commit the
result together with the figures it prints. With --dry it lists what it would try and writes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import measure  # noqa: E402
import torch  # noqa: E402

from adatp_kernels import ops  # noqa: E402
from adatp_kernels.ops.triton import tiles  # noqa: E402

TABLE = ROOT / "adatp_kernels/ops/triton/tiles.py"
CANDIDATES = [tiles.Tile(*sizes) for sizes in itertools.product((32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3))]
# Those that compiled code makes likely for two-byte elements and head dim 128.
SHORTLIST = [
    tiles.Tile(columns=columns, rows=rows, warps=warps, stages=stages)
    for columns, rows, warps in ((64, 64, 4), (64, 128, 4), (128, 64, 8), (128, 128, 8))
    for stages in (1, 2, 3)
]
KINDS = [(dtype, dim) for dtype in (torch.bfloat16, torch.float32) for dim in (64, 128, 256)]
VISUAL, TEXT, HEADS, KV_HEADS = 6272, 64, 28, 4


@contextlib.contextmanager
def instead(tile: tiles.Tile, device: torch.device, dtype: torch.dtype, dim: int) -> Iterator[None]:
    """Within this, the score kernels run with `tile`. No other file of the benchmarks looks behind the operations' public face."""
    key = (tiles.architecture(device), dtype.itemsize, max(64, tiles.power_of_two(dim)))
    usual = tiles.TILES.get(key)
    tiles.TILES[key] = tile
    tiles.tile_for.cache_clear()
    try:
        yield
    finally:
        tiles.tile_for.cache_clear()
        tiles.TILES.pop(key)
        if usual is not None:
            tiles.TILES[key] = usual


def best_of(dtype: torch.dtype, dim: int) -> tuple[tiles.Tile, float] | None:
    """The fastest candidate for one kind of input, and its median in seconds."""
    device = torch.device("cuda")
    where = {"query_start": VISUAL, "key_range": (0, VISUAL)}

    def make(seed: int) -> tuple:
        random = {"generator": torch.Generator(device).manual_seed(seed), "device": device, "dtype": dtype}
        query = torch.randn(1, HEADS, TEXT, dim, **random)
        key = torch.randn(1, KV_HEADS, VISUAL + TEXT, dim, **random)
        return query, key, ops.row_lse(query, key, query_start=VISUAL, backend="reference")

    inputs, best = make(0), None
    expected = ops.column_sums(*inputs[:2], backend="reference", **where)
    for tile in CANDIDATES:
        with instead(tile, device, dtype, dim):
            try:
                with measure.poisoned_memory():
                    actual = ops.column_sums(*inputs[:2], backend="triton", **where)  # both kernels
                error = ((actual - expected).norm() / expected.norm()).item()
                if not error <= 1e-2:
                    print(f"  {tile}: off by {error:.1e}")
                    continue
                run = lambda q, k, lse: ops.column_sums(q, k, lse=lse, backend="triton", **where)  # noqa: E731
                times = measure.rounds(measure.make_round("graph warm", run, make, 1))
            except Exception as error:  # most likely it does not fit the multiprocessor
                print(f"  {tile}: {type(error).__name__}")
                continue
        median = times[len(times) // 2]
        print(f"  {tile}: {1e6 * median:.1f} µs")
        if best is None or median < best[1]:
            best = (tile, median)
    return best


def write(name: str, found: dict[tuple[int, int], tiles.Tile], text: str) -> str:
    """The table's source with the entries of one architecture replaced."""
    text = re.sub(rf'    \("{re.escape(name)}", .*\n', "", text)
    entries = "".join(
        f'    ("{name}", {size}, {dim}): Tile(columns={t.columns}, rows={t.rows}, warps={t.warps}, stages={t.stages}),\n'
        for (size, dim), t in sorted(found.items())
    )
    return re.sub(r"(TILES = \{\n(?:.*\n)*?)\}\n", lambda match: match[1] + entries + "}\n", text, count=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="list the candidates and check the writing; change nothing")
    if parser.parse_args().dry:
        example = write("sm_0", {(2, 128): CANDIDATES[0]}, TABLE.read_text())
        assert f'("sm_0", 2, 128): {CANDIDATES[0]}' in example
        assert write("sm_0", {}, example) == TABLE.read_text()
        print(f"{len(CANDIDATES)} candidates for each of {[(str(dtype)[6:], dim) for dtype, dim in KINDS]}")
        return 0
    if not torch.cuda.is_available():
        print("error: no CUDA device to measure on", file=sys.stderr)
        return 2
    name = tiles.architecture(torch.device("cuda", torch.cuda.current_device()))
    found = {}
    for dtype, dim in KINDS:
        print(f"{name} {dtype} D={dim}")
        best = best_of(dtype, dim)
        if best is not None:
            found[dtype.itemsize, dim] = best[0]
            print(f"  best: {best[0]}, {1e6 * best[1]:.1f} µs", flush=True)
    TABLE.write_text(write(name, found, TABLE.read_text()))
    print(f"written to {TABLE}: {len(found)} entries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
