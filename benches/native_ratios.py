"""The native backend on this CPU against plain torch and against the reference, as ratios of times.

    python benches/native_ratios.py [--columns 6272] [--rounds 15]

One layer of LLaVA-OneVision-7B: 28 query heads, 4 key heads, head dim 128, 64 text rows. Absolute times mean little on a
shared machine, so the native backend and one other take turns in one process, A B A B, and their medians are compared.
Selections get other scores at every turn: with the same ones a processor learns topk's branches by heart. Every variant
is verified before it is timed. The last column is what the native backend adds at most to the memory that is resident.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benches")]

import baselines  # noqa: E402
import torch  # noqa: E402

from adatp_kernels import Stage, backend_report, ops  # noqa: E402

HEADS, KV_HEADS, DIM, ROWS, HIDDEN, CELLS, BEFORE = 28, 4, 128, 64, 3584, 196, 14

# Called with the number of the turn, which picks the inputs where there are several.
Variants = dict[str, Callable[[int], Any]]
INPUTS = 32


def cases(visual: int) -> Iterator[tuple[str, Variants, Callable[[Any, Any], bool]]]:
    """Name, variants (the native one, the best plain torch, the reference), and when two results are the same."""
    random = torch.Generator().manual_seed(0)
    start, length = BEFORE + visual, BEFORE + visual + ROWS
    columns = slice(BEFORE, start)
    frames = visual // CELLS
    segments = frames // 4
    ids = torch.arange(frames).div(4, rounding_mode="floor").repeat_interleave(CELLS)
    positions = torch.arange(CELLS).repeat(frames)
    each = CELLS // 2
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        query = torch.randn(1, HEADS, ROWS, DIM, generator=random).to(dtype)
        key = torch.randn(1, KV_HEADS, length, DIM, generator=random).to(dtype)
        where = {"query_start": start, "key_range": (BEFORE, start)}
        close = lambda a, b: bool((a - b).norm() <= 1e-2 * b.norm())  # noqa: E731
        variants: Variants = {
            "native": lambda i, q=query, k=key, w=where: ops.column_sums(q, k, backend="native", **w),
            "plain torch": lambda i, q=query, k=key: baselines.text_rows(q, k, ROWS, columns),
            "reference": lambda i, q=query, k=key, w=where: ops.column_sums(q, k, backend="reference", **w),
        }
        yield f"column_sums {str(dtype)[6:]}", variants, close
        lse = ops.row_lse(query, key, query_start=start)
        given = variants | {
            "native": lambda i, q=query, k=key, w=where, lse=lse: ops.column_sums(q, k, lse=lse, backend="native", **w),
            "reference": lambda i, q=query, k=key, w=where, lse=lse: ops.column_sums(
                q, k, lse=lse, backend="reference", **w
            ),
        }
        yield f"column_sums {str(dtype)[6:]}, LSE given", given, close
        if dtype == torch.float16:
            continue
        shapes = [(1, length, HIDDEN), *[(1, length, DIM)] * 2, *[(1, KV_HEADS, length, DIM)] * 2]
        tensors, dims = [torch.randn(shape, generator=random).to(dtype) for shape in shapes], [1, 1, 1, 2, 2]
        chosen = Stage(1, (each,) * segments, each * segments)
        budgets = torch.full((segments,), each)

        def stage(backend: str, q=query, k=key, t=tensors, d=dims, c=chosen, b=budgets) -> Any:
            return ops.prune(
                q, k, t, c, dims=d, segments=ids, positions=positions, query_start=start, key_range=(BEFORE, start),
                budgets=b, num_selected=c.total, num_positions=CELLS, backend=backend,
            )  # fmt: skip

        def plain(turn: int, q=query, k=key, t=tensors, d=dims) -> Any:
            scores = baselines.text_rows(q, k, ROWS, columns)
            kept = baselines.deduplicate_topk_and_sort(scores, segments, CELLS, each) + BEFORE
            indices = torch.cat([torch.arange(BEFORE)[None], kept, torch.arange(start, length)[None]], dim=1)
            return indices, baselines.index_select(indices, t, d)

        # Scores of different rounding may rank neighbours differently at the edge of a budget.
        alike = lambda a, b: len(set(a[0][0].tolist()) & set(b[0][0].tolist())) >= 0.99 * b[0].numel()  # noqa: E731
        stages: Variants = {
            "native": lambda i, s=stage: s("native"), "plain torch": plain, "reference": lambda i, s=stage: s("reference"),
        }  # fmt: skip
        yield f"stage {str(dtype)[6:]}", stages, alike
    # No ties: the baselines have no rule for them.
    scores = [(torch.rand(1, visual, generator=random).argsort(1) + 1).float() for _ in range(INPUTS)]
    for dedup, count, own in (("strict", segments, ids), ("off", 1, torch.zeros_like(ids))):
        kept = visual // 8 // count
        known = {"num_selected": count * kept, "num_positions": CELLS, "dedup": dedup}
        budgets = torch.full((1, count), kept)

        def chosen_by(backend: str, turn: int, own=own, budgets=budgets, known=known) -> torch.Tensor:
            return ops.select(scores[turn % INPUTS], own, positions, budgets, backend=backend, **known)

        def best(turn: int, dedup=dedup, count=count, kept=kept) -> torch.Tensor:
            if dedup == "off":
                return baselines.topk_and_sort(scores[turn % INPUTS], kept)
            return baselines.deduplicate_topk_and_sort(scores[turn % INPUTS], count, CELLS, kept)

        variants = {
            "native": lambda i, by=chosen_by: by("native", i),
            "plain torch": best,
            "reference": lambda i, by=chosen_by: by("reference", i),
        }
        yield f"select {dedup}", variants, lambda a, b: a.equal(b)
        if dedup == "strict":  # the one that research code has, which chooses other tokens
            variants["plain torch"] = lambda i, k=visual // 8: baselines.topk_and_sort(scores[i % INPUTS], k)
            yield "select strict, against topk + sort of all", variants, lambda a, b: a.shape == b.shape
    for share in (10, 50):
        indices = torch.randperm(visual, generator=random)[: visual * share // 100].sort().values[None]
        shapes = [(1, visual, HIDDEN), *[(1, visual, DIM)] * 2, *[(1, KV_HEADS, visual, DIM)] * 2]
        tensors = [torch.randn(shape, generator=random).bfloat16() for shape in shapes]
        same = lambda a, b: all(x.equal(y) for x, y in zip(a, b, strict=True))  # noqa: E731
        yield (
            f"gather {share} %, bfloat16",
            {
                "native": lambda turn, i=indices, t=tensors: ops.gather(i, *t, dims=[1, 1, 1, 2, 2], backend="native"),
                "plain torch": lambda turn, i=indices, t=tensors: baselines.index_select(i, t, [1, 1, 1, 2, 2]),
                "reference": lambda turn, i=indices, t=tensors: ops.gather(
                    i, *t, dims=[1, 1, 1, 2, 2], backend="reference"
                ),
            },
            same,
        )


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


def medians(native: Callable[[int], Any], other: Callable[[int], Any], rounds: int) -> tuple[float, float]:
    """Seconds of each, taken in turns: `rounds`, or more where they are short."""
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    while len(times[0]) < rounds or time.perf_counter() - begin < 0.3:
        for variant, own in zip((native, other), times, strict=True):
            before = time.perf_counter()
            variant(len(own))
            own.append(time.perf_counter() - before)
    return statistics.median(times[0]), statistics.median(times[1])


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=6272, help="visual tokens (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each variant, at least (default: %(default)s)")
    options = parser.parse_args()
    report = backend_report()
    if not report.available["native"]:
        print(f"error: no native backend: {report.reasons['native']}", file=sys.stderr)
        return 2
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, native {report.details['native']}")
    print(f"{'case':<42} {'native':>11} {'plain torch ÷':>14} {'reference ÷':>12} {'memory':>9}")
    for name, variants, same in cases(options.columns):
        results = {variant: run(0) for variant, run in variants.items()}
        for variant, result in results.items():
            if not same(result, results["reference"]):
                print(f"error: {name}: {variant} is wrong", file=sys.stderr)
                return 1
        del results
        memory = added_memory(variants["native"])
        native, plain = medians(variants["native"], variants["plain torch"], options.rounds)
        again, reference = medians(variants["native"], variants["reference"], options.rounds)
        added = "?" if memory is None else f"{memory / 2**20:.1f} MB"
        print(
            f"{name:<42} {1e3 * native:>8.3f} ms {plain / native:>12.1f} × {reference / again:>10.1f} × {added:>9}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
