"""How one variant is timed: what a round is in each mode, the machine's two ceilings, and the floor they give.

**Warm** calls see the same inputs again and again. **Cold** calls go through so many sets of inputs that more than any cache
holds is read before one comes round again. That is how it is done for small operations, too, whose inputs are some 100 kB:
a selection takes some thousand sets, which one graph holds well. The other way, a write in between that flushes the cache,
would be wrong here: within a graph it could only be taken off afterwards, as the difference of two times of which the write's
is ten times the operation's; and it leaves the cache full of lines that have yet to be written back, for which the operation
would pay. **Eager** calls are launched one by one from Python, which is what a caller pays who has no graph.

On a GPU warm and cold calls are replays of a CUDA graph, and the clock is the device's own: an event before the first call of
a round and one after its last. On a CPU there are no graphs, and all three modes are loops.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

MODES = ("graph warm", "graph cold", "eager")
# Read between two uses of the same input on a GPU, but at least so many times its L2 if that is larger; an H200 has 60 MB.
COLD_BYTES, COLD_CACHES = 160 << 20, 3
ROUND_SECONDS = 0.005  # a round lasts so long at least: far above what an event resolves
FEWEST_CALLS, MOST_CALLS = 20, 2000


class Round:
    """Some calls of a variant that are timed together."""

    def __init__(
        self, body: Callable[[], Any], calls: int, last_inputs: tuple, device: torch.device, captured: bool = False
    ) -> None:
        self.body, self.calls, self.last_inputs, self.device, self.captured = body, calls, last_inputs, device, captured

    def seconds(self) -> float:
        """Seconds of one call, by a round of them."""
        return clock(self.device, self.body) / self.calls

    def verify(self, check: Callable[[Any, tuple], None]) -> None:
        """Check what the last call of a round returns; a graph's is poisoned before, so that one that computes nothing shows."""
        if self.captured:
            poison(self.body())
        check(self.body(), self.last_inputs)


def make_round(
    mode: str, variant: Callable[..., Any], make: Callable[[int], tuple], read: int, quick: bool = False
) -> Round:
    """A round of `variant` in one of `MODES`.

    Parameters
    ----------
    mode : str
    variant : callable (*inputs) -> result
    make : callable (seed) -> inputs
    read : int
        Bytes that one call touches at least; a cold round has so many sets of inputs that together they exceed the cache.
    quick : bool
        Walk through all of it, but spend no time: a call, or where it is cold one for each of two sets.
    """
    first = make(0)
    device = device_of(first)
    sets = 1
    if mode == "graph cold":
        sets = 2 if quick else max(2, math.ceil(cold_bytes(device) / max(read, 1)))
    calls = 1
    if not quick:
        variant(*first)  # compiles what is yet to be compiled
        single = clock(device, lambda: variant(*first))
        calls = min(MOST_CALLS, max(FEWEST_CALLS, math.ceil(ROUND_SECONDS / max(single, 1e-6))))
    calls = math.ceil(calls / sets) * sets
    inputs = [first, *(make(seed) for seed in range(1, sets))]

    def loop() -> Any:
        for number in range(calls):
            result = variant(*inputs[number % sets])
        return result

    captured = device.type == "cuda" and mode != "eager"
    return Round(_captured(loop) if captured else loop, calls, inputs[-1], device, captured)


def _captured(loop: Callable[[], Any]) -> Callable[[], Any]:
    """`loop` as a CUDA graph; what it returned at its capture is where every replay writes."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = loop()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


def rounds(timed: Round, quick: bool = False) -> list[float]:
    """Seconds of a call in each of several rounds, ascending; the first two rounds are not counted."""
    if quick:
        return [timed.seconds()]
    return sorted([timed.seconds() for _ in range(22)][2:])


def clock(device: torch.device, body: Callable[[], Any]) -> float:
    """Seconds that `body` takes on its device: by events on a GPU, where nothing but the last of them is waited for."""
    if device.type == "cpu":
        begin = time.perf_counter()
        body()
        return time.perf_counter() - begin
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    body()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def cold_bytes(device: torch.device) -> int:
    """How many bytes a cold round reads before one set of inputs comes round again."""
    if device.type == "cpu":
        return COLD_BYTES
    return max(COLD_BYTES, COLD_CACHES * torch.cuda.get_device_properties(device).L2_cache_size)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_of(item)


def device_of(inputs: Any) -> torch.device:
    """Where the inputs are."""
    return next(tensors_of(inputs)).device


def poison(value: Any) -> Any:
    """Fill all tensors with NaN, or with a number that no result has."""
    for tensor in tensors_of(value):
        tensor.fill_(float("nan") if tensor.is_floating_point() else 77)
    return value


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within this, memory that PyTorch hands out uninitialised from Python is poisoned: what a kernel forgets to write shows."""
    original = {name: getattr(torch, name) for name in ("empty", "empty_like", "empty_strided")}
    method = Tensor.new_empty
    for name, function in original.items():
        setattr(torch, name, lambda *shape, _function=function, **options: poison(_function(*shape, **options)))
    Tensor.new_empty = lambda self, *shape, **options: poison(method(self, *shape, **options))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for name, function in original.items():
            setattr(torch, name, function)
        Tensor.new_empty = method  # type: ignore[method-assign]


def device_name(device: torch.device) -> str:
    """The device's name, as results are filed under it."""
    return torch.cuda.get_device_name(device).replace(" ", "-").lower() if device.type == "cuda" else "cpu"


def ceilings(device: torch.device, quick: bool = False) -> dict[str, float]:
    """What this device can do at best: bytes per second of a copy (read and written), FLOP per second of a product."""
    on_gpu = device.type == "cuda"
    source = torch.empty((4 << 30) if on_gpu else (4 << 20) if quick else (64 << 20), dtype=torch.uint8, device=device)
    target = torch.empty_like(source.random_())
    size, dtype = (8192, torch.bfloat16) if on_gpu else (256 if quick else 1024, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    return {
        "bytes per second": 2 * source.numel() / _best(device, lambda: target.copy_(source)),
        "flop per second": 2 * size**3 / _best(device, lambda: torch.mm(a, b, out=product)),
    }


def _best(device: torch.device, function: Callable[[], Any]) -> float:
    """The least of ten rounds of as many calls as fill one."""
    function()
    calls = max(1, min(100, math.ceil(ROUND_SECONDS / clock(device, function)))) if device.type == "cuda" else 1
    return min(clock(device, lambda: [function() for _ in range(calls)]) for _ in range(10)) / calls


def floor(bytes_moved: int, flop: int, limits: dict[str, float]) -> float:
    """Seconds below which no version can run: the bytes at the copy's rate or the products at the matmul's."""
    return max(bytes_moved / limits["bytes per second"], flop / limits["flop per second"])


def figures(times: Sequence[float], bytes_moved: int, flop: int, limits: dict[str, float] | None) -> dict[str, Any]:
    """Median and percentiles of ascending times, and what they are to be held against."""
    median = times[len(times) // 2]
    row = {"median": median, "p20": times[len(times) // 5], "p80": times[len(times) * 4 // 5]}
    row |= {"bytes": bytes_moved, "flop": flop}
    if limits:
        least = floor(bytes_moved, flop, limits)
        row |= {"floor": least, "over floor": median / least}
    return row
