"""The native backend on this CPU against plain torch and against the reference, as ratios of times.

    python benches/native_ratios.py [--columns 6272] [--small 784 1568] [--rounds 15] [--only NAME] [--way NAME]

One layer of LLaVA-OneVision-7B: 28 query heads, 4 key heads, head dim 128, 64 text rows. Absolute times mean little on a
shared machine, so the native backend and the others take turns in one process, A B C A B C, and medians are compared. Plain
torch is the fastest of several ways to write it, in the same turns; the row names it. Selections get other
scores at every turn: with the same ones a processor learns topk's branches by heart. Every variant is verified before it
is timed. The last column is what the native backend adds at most to the memory that is resident.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import baselines  # noqa: E402
import torch  # noqa: E402

from adatp_kernels import Stage, backend_report, ops  # noqa: E402

HEADS, KV_HEADS, DIM, ROWS, HIDDEN, CELLS, BEFORE = 28, 4, 128, 64, 3584, 196, 14

Call = Callable[[int], Any]  # with the number of the turn, which picks the inputs where there are several
INPUTS = 32


class Row(NamedTuple):
    """What the table has a row for.

    Attributes
    ----------
    torch : dict of str to callable
        Ways to do it in plain torch; the fastest is what counts.
    same : callable
        Whether a result is the reference's.
    """

    name: str
    native: Call
    torch: dict[str, Call]
    reference: Call
    same: Callable[[Any, Any], bool]


class Prompt:
    """A text, so many visual tokens and a text again, with one layer's query and key."""

    def __init__(self, visual: int, dtype: torch.dtype) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.visual, self.dtype = visual, dtype
        self.start, self.length = BEFORE + visual, BEFORE + visual + ROWS
        self.columns = slice(BEFORE, self.start)
        self.where = {"query_start": self.start, "key_range": (BEFORE, self.start)}
        self.query, self.key = self.tensor(1, HEADS, ROWS, DIM), self.tensor(1, KV_HEADS, self.length, DIM)

    def tensor(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.random).to(self.dtype)

    def scorers(self) -> dict[str, Callable[[], torch.Tensor]]:
        """Ways to score in plain torch."""
        ways = {
            "repeat_kv": baselines.text_rows,
            "grouped matmul": baselines.grouped_rows,
            "a matmul a key head": baselines.rows_by_part,
            "a matmul a key head, keys first": functools.partial(baselines.rows_by_part, keys_first=True),
            "a matmul a query head": functools.partial(baselines.rows_by_part, heads=1),
        }
        if self.dtype != torch.float32:
            ways["a matmul a key head, in float32"] = baselines.in_float32(baselines.rows_by_part)
        return {name: lambda way=way: way(self.query, self.key, ROWS, self.columns) for name, way in ways.items()}


def column_sums(prompt: Prompt) -> Iterator[Row]:
    """Scores, without an LSE and with one."""
    name = f"column_sums {str(prompt.dtype)[6:]}, {prompt.visual}"
    query, key, where = prompt.query, prompt.key, prompt.where
    lse = ops.row_lse(query, key, query_start=prompt.start)

    def close(a: torch.Tensor, b: torch.Tensor) -> bool:
        return bool((a - b).norm() <= 1e-2 * b.norm())

    def ours(backend: str, lse: torch.Tensor | None = None) -> Call:
        return lambda turn: ops.column_sums(query, key, lse=lse, backend=backend, **where)

    plain: dict[str, Call] = {name: lambda turn, way=way: way() for name, way in prompt.scorers().items()}
    yield Row(name, ours("native"), plain, ours("reference"), close)
    given: dict[str, Call] = {
        name: lambda turn, way=way: way(query, key, lse, ROWS, prompt.columns)
        for name, way in (
            ("grouped matmul", baselines.grouped_rows_given_lse),
            ("a matmul a key head", baselines.rows_by_part_given_lse),
        )
    }
    if prompt.dtype != torch.float32:
        way = baselines.in_float32(baselines.rows_by_part_given_lse)
        given["a matmul a key head, in float32"] = lambda turn: way(query, key, lse, ROWS, prompt.columns)
    yield Row(f"{name}, LSE given", ours("native", lse), given, ours("reference", lse), close)


def layout(visual: int) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Segments of four frames: how many, and of every column its segment and position."""
    frames = visual // CELLS
    ids = torch.arange(frames).div(4, rounding_mode="floor").repeat_interleave(CELLS)
    return frames // 4, ids, torch.arange(CELLS).repeat(frames)


def stage(prompt: Prompt) -> Row:
    """Scores, choice and moving together; half of every segment's positions stay."""
    segments, ids, positions = layout(prompt.visual)
    each, length = CELLS // 2, prompt.length
    shapes = [(1, length, HIDDEN), *[(1, length, DIM)] * 2, *[(1, KV_HEADS, length, DIM)] * 2]
    tensors, dims = [prompt.tensor(*shape) for shape in shapes], [1, 1, 1, 2, 2]
    chosen, budgets = Stage(1, (each,) * segments, each * segments), torch.full((segments,), each)

    def ours(backend: str) -> Call:
        return lambda turn: ops.prune(
            prompt.query, prompt.key, tensors, chosen, dims=dims, segments=ids, positions=positions, budgets=budgets,
            num_selected=chosen.total, num_positions=CELLS, backend=backend, **prompt.where,
        )  # fmt: skip

    def plain(score: Callable[[], torch.Tensor]) -> Any:
        kept = baselines.deduplicate_topk_and_sort(score(), segments, CELLS, each) + BEFORE
        indices = torch.cat([torch.arange(BEFORE)[None], kept, torch.arange(prompt.start, length)[None]], dim=1)
        return indices, baselines.index_select(indices, tensors, dims)

    def alike(a: Any, b: Any) -> bool:
        """Scores of different rounding may rank neighbours differently at the edge of a budget."""
        return len(set(a[0][0].tolist()) & set(b[0][0].tolist())) >= 0.99 * b[0].numel()

    ways: dict[str, Call] = {name: lambda turn, way=way: plain(way) for name, way in prompt.scorers().items()}
    return Row(f"stage {str(prompt.dtype)[6:]}, {prompt.visual}", ours("native"), ways, ours("reference"), alike)


def select(visual: int) -> Iterator[Row]:
    """An eighth of the columns; without ties, for which the baselines have no rule."""
    random = torch.Generator().manual_seed(0)
    scores = [(torch.rand(1, visual, generator=random).argsort(1) + 1).float() for _ in range(INPUTS)]
    segments, ids, positions = layout(visual)
    whole: dict[str, Call] = {
        name: lambda turn, way=way: way(scores[turn % INPUTS], visual // 8)
        for name, way in (
            ("topk + sort", baselines.topk_and_sort),
            ("argsort + sort", baselines.argsort_and_sort),
            ("kthvalue + nonzero", baselines.threshold_and_nonzero),
        )
    }

    def ours(backend: str, dedup: str, ids: torch.Tensor, count: int) -> Call:
        budgets = torch.full((1, count), visual // 8 // count)
        known = {"num_selected": visual // 8 // count * count, "num_positions": CELLS, "dedup": dedup}
        return lambda turn: ops.select(scores[turn % INPUTS], ids, positions, budgets, backend=backend, **known)

    def best(turn: int) -> torch.Tensor:
        return baselines.deduplicate_topk_and_sort(scores[turn % INPUTS], segments, CELLS, visual // 8 // segments)

    strict, reference = (ours(backend, "strict", ids, segments) for backend in ("native", "reference"))
    yield Row(f"select strict, {visual}", strict, {"max + topk + sort": best}, reference, torch.equal)
    # The one that research code has, which chooses other tokens.
    shaped = lambda a, b: a.shape == b.shape  # noqa: E731
    yield Row(f"select strict, {visual}, against any", strict, whole, reference, shaped)
    off, reference = (ours(backend, "off", torch.zeros_like(ids), 1) for backend in ("native", "reference"))
    yield Row(f"select off, {visual}", off, whole, reference, torch.equal)


def gather(visual: int, share: int) -> Row:
    """Hidden states, cos, sin and one layer's keys and values, bfloat16."""
    random = torch.Generator().manual_seed(0)
    indices = torch.randperm(visual, generator=random)[: visual * share // 100].sort().values[None]
    shapes = [(1, visual, HIDDEN), *[(1, visual, DIM)] * 2, *[(1, KV_HEADS, visual, DIM)] * 2]
    tensors, dims = [torch.randn(shape, generator=random).bfloat16() for shape in shapes], [1, 1, 1, 2, 2]
    ways: dict[str, Call] = {
        name: lambda turn, way=way: way(indices, tensors, dims)
        for name, way in (
            ("index_select", baselines.index_select),
            ("tensor[:, indices]", baselines.advanced_indexing),
            ("torch.gather", baselines.gather_each),
        )
    }

    def ours(backend: str) -> Call:
        return lambda turn: ops.gather(indices, *tensors, dims=dims, backend=backend)

    same = lambda a, b: all(x.equal(y) for x, y in zip(a, b, strict=True))  # noqa: E731
    return Row(f"gather {share} %, {visual}", ours("native"), ways, ours("reference"), same)


def rows(visual: int, small: Sequence[int]) -> Iterator[Row]:
    """The table, from top to bottom."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        prompt = Prompt(visual, dtype)
        yield from column_sums(prompt)
        if dtype != torch.float16:
            yield stage(prompt)
    for columns in small:
        yield from column_sums(Prompt(columns, torch.float32))
    for columns in (*small, visual):
        yield from select(columns)
    for columns in (*small, visual):
        yield from (gather(columns, share) for share in (10, 50))


def added_memory(run: Callable[[int], Any]) -> int | None:
    """By how many bytes the resident memory rises at most while `run` runs, its result included; Linux only."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what earlier calls left, which would serve this one unseen
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _status("VmRSS")
        run(0)
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


def medians(calls: Sequence[Call], rounds: int, at_least: float = 0.3) -> list[float]:
    """Seconds of each, taken in turns: `rounds`, or more where they are short."""
    times: list[list[float]] = [[] for _ in calls]
    begin = time.perf_counter()
    while len(times[0]) < rounds or time.perf_counter() - begin < at_least:
        for call, own in zip(calls, times, strict=True):
            before = time.perf_counter()
            call(len(own))
            own.append(time.perf_counter() - before)
    return [statistics.median(own) for own in times]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=6272, help="visual tokens (default: %(default)s)")
    parser.add_argument("--small", type=int, nargs="*", default=[784, 1568], help="shorter videos (default: 784 1568)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each variant, at least (default: %(default)s)")
    parser.add_argument("--only", default="", help="rows whose name holds this")
    parser.add_argument("--way", help="compare with this way to write plain torch, and not with the fastest")
    options = parser.parse_args()
    report = backend_report()
    if not report.available["native"]:
        print(f"error: no native backend: {report.reasons['native']}", file=sys.stderr)
        return 2
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, native {report.details['native']}\n")
    print("| | native | plain torch ÷ native | which | reference ÷ native | memory added |\n|---|---|---|---|---|---|")
    for row in rows(options.columns, options.small):
        if options.only not in row.name or (options.way and options.way not in row.torch):
            continue
        right = row.reference(0)
        for variant, call in {"native": row.native, **row.torch}.items():
            if not row.same(call(0), right):
                print(f"error: {row.name}: {variant} is wrong", file=sys.stderr)
                return 1
        del right
        memory = added_memory(row.native)
        ways = {options.way: row.torch[options.way]} if options.way else row.torch
        native, *others = medians([row.native, *ways.values()], options.rounds)
        plain, best = min(zip(others, ways, strict=True))
        again, reference = medians([row.native, row.reference], options.rounds)
        added = "?" if memory is None else f"{memory / 2**20:.1f} MB"
        ratios = f"{plain / native:.1f} × | {best} | {reference / again:.1f} ×"
        print(f"| {row.name} | {1e3 * native:.3f} ms | {ratios} | {added} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
