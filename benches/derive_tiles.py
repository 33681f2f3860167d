"""Measures the score kernels' tile sizes on the GPU at hand and writes the best ones into the static table.

    python benches/derive_tiles.py [--dry]

For every element size and head dim it times all candidates that compile without spilling, at 6,272 columns and 64
text rows, verifies each against the reference, and puts the fastest under this GPU's architecture into
adatp_kernels/ops/triton/tiles.py. Commit the result together with the figures it prints. With --dry it lists what it
would try and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import triton  # noqa: E402

from adatp_kernels import ops  # noqa: E402
from adatp_kernels.ops.triton import column_sums, tiles  # noqa: E402

TABLE = ROOT / "adatp_kernels/ops/triton/tiles.py"
CANDIDATES = [tiles.Tile(*sizes) for sizes in itertools.product((32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3))]
KINDS = [(dtype, dim) for dtype in (torch.bfloat16, torch.float32) for dim in (64, 128, 256)]
VISUAL, TEXT, HEADS, KV_HEADS = 6272, 64, 28, 4


def measure(dtype: torch.dtype, dim: int, name: str) -> tuple[tiles.Tile, float] | None:
    """The fastest candidate for one kind of input, and its median in milliseconds."""
    query = torch.randn(1, HEADS, TEXT, dim, device="cuda", dtype=dtype)
    key = torch.randn(1, KV_HEADS, VISUAL + TEXT, dim, device="cuda", dtype=dtype)
    where = {"query_start": VISUAL, "key_range": (0, VISUAL)}
    expected = ops.column_sums(query, key, backend="reference", **where)
    lse = ops.row_lse(query, key, query_start=VISUAL, backend="reference")
    best = None
    for tile in CANDIDATES:
        tiles.TILES[name, dtype.itemsize, dim] = tile
        run = lambda: column_sums.partial_column_sums(  # noqa: E731
            query, key, scale=dim**-0.5, lse=lse, key_mask=None, query_mask=None, **where
        )
        try:
            actual = ops.column_sums(query, key, backend="triton", **where)  # both kernels
        except (triton.OutOfResources, triton.CompilationError, RuntimeError) as error:
            print(f"  {tile}: {type(error).__name__}")
            continue
        compiled = [k for cache in column_sums._column_sums_kernel.device_caches.values() for k in cache[0].values()]
        error = ((actual - expected).norm() / expected.norm()).item()
        if error > 1e-2 or compiled[-1].n_spills:
            print(f"  {tile}: error {error:.1e}, {compiled[-1].n_spills} spills")
            continue
        milliseconds = triton.testing.do_bench(run, return_mode="median")
        print(f"  {tile}: {1e3 * milliseconds:.1f} µs")
        if best is None or milliseconds < best[1]:
            best = (tile, milliseconds)
    tiles.TILES.pop((name, dtype.itemsize, dim), None)
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
        best = measure(dtype, dim, name)
        if best is not None:
            found[dtype.itemsize, dim] = best[0]
            print(f"  best: {best[0]}, {1e3 * best[1]:.1f} µs", flush=True)
    TABLE.write_text(write(name, found, TABLE.read_text()))
    print(f"written to {TABLE}: {len(found)} entries")
    return 0


if __name__ == "__main__":
    sys.exit(main())
