"""How a case is timed: what one round is in each mode, the machine's two ceilings, and the floor they give."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

ON_GPU = torch.cuda.is_available()
MODES = ("graph cold", "graph warm", "eager")
# Inputs are rotated through more than this before one is read again, so that no cache holds it: the L2 of an H200 is 60 MB.
COLD_BYTES = 160 << 20


@dataclass
class Round:
    """One timed round: call it, and it has done `calls` calls and waited for them."""

    run: Callable[[], None]
    calls: int

    def __call__(self) -> None:
        self.run()


def make_round(mode: str, variant: Callable[..., Any], make: Callable[[int], tuple], bytes_read: int) -> Round:
    """A round of `variant` in one of `MODES`.

    Cold replays go through fresh inputs that together exceed the cache, warm ones see the same inputs again, both
    without the host; eager is what a caller pays who launches every call from Python.
    """
    if mode == "eager":
        inputs = make(0)
        variant(*inputs)
        calls = 20 if ON_GPU else 1

        def eager() -> None:
            for _ in range(calls):
                variant(*inputs)
            synchronize()

        return Round(eager, calls)
    sets = max(2, math.ceil(COLD_BYTES / max(bytes_read, 1)))
    sets = min(sets, 64) if mode == "graph cold" else 1
    inputs_of = [make(seed) for seed in range(sets)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for inputs in inputs_of[:2]:
            variant(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph, calls = torch.cuda.CUDAGraph(), max(sets, 16)
    with torch.cuda.graph(graph):
        for number in range(calls):
            variant(*inputs_of[number % sets])

    def replay(keep: Any = inputs_of) -> None:
        graph.replay()
        synchronize()

    return Round(replay, calls)


def synchronize() -> None:
    """Wait for the device, if there is one."""
    if ON_GPU:
        torch.cuda.synchronize()


def device_name() -> str:
    """The device's name, as results are filed under it."""
    return torch.cuda.get_device_name().replace(" ", "-").lower() if ON_GPU else "cpu"


@functools.cache
def ceilings() -> dict[str, float]:
    """What this device can do at best: bytes per second of a copy (read and written), FLOP per second of a product."""
    device = "cuda" if ON_GPU else "cpu"
    source = torch.empty((4 << 30) if ON_GPU else (64 << 20), dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    size, dtype = (8192, torch.bfloat16) if ON_GPU else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return {
        "bytes per second": 2 * source.numel() / _best(lambda: target.copy_(source)),
        "flop per second": 2 * size**3 / _best(lambda: a @ b),
    }


def _best(function: Callable[[], Any]) -> float:
    times = []
    for _ in range(10):
        synchronize()
        start = time.perf_counter()
        function()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def floor(bytes_moved: int, flop: int) -> float:
    """Seconds below which no version can run: the bytes at the copy's rate or the products at the matmul's."""
    limits = ceilings()
    return max(bytes_moved / limits["bytes per second"], flop / limits["flop per second"])
