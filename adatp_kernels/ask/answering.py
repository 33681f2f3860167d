"""Asks a model with and without pruning, and times both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.integrations.transformers import Report, accelerate, families
from adatp_kernels.mistakes import Mistake

WAYS = ("dense", "pruned")


@dataclass(frozen=True)
class Answer:
    """What a model said, and what it took.

    Attributes
    ----------
    ids : LongTensor [n]
        Of the new tokens.
    cache_bytes : int
        What the keys and values take at the end.
    peak_bytes : int or None
        The most memory that tensors took on a GPU, the model's weights included; None elsewhere.
    report : Report or None
        What was pruned, if anything was to be.
    """

    ids: Tensor
    cache_bytes: int
    peak_bytes: int | None
    report: Report | None


@contextmanager
def pruning(model: Any, config: AdaTPConfig, way: str, images: str = "keep") -> Iterator[Any]:
    """The acceleration for "pruned", nothing for "dense".

    Raises
    ------
    Mistake
        If what happens within can't be pruned so.
    """
    if way == "dense":
        yield None
        return
    try:
        with accelerate(model, config, images=images) as run:
            yield run
    except ValueError as error:
        raise Mistake(f"this prompt cannot be pruned so: {error}") from error


@torch.no_grad()
def answer(
    model: Any, inputs: Mapping[str, Any], config: AdaTPConfig, way: str, max_new_tokens: int, images: str = "keep"
) -> Answer:
    """What the model says, greedily."""
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    with pruning(model, config, way, images) as run:
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, return_dict_in_generate=True)
        report = None if run is None else run.report()
    return Answer(
        ids=output.sequences[0, inputs["input_ids"].shape[1] :].cpu(),
        cache_bytes=cache_bytes(output.past_key_values),
        peak_bytes=torch.cuda.max_memory_allocated(model.device) if on_gpu else None,
        report=report,
    )


def cache_bytes(cache: Any) -> int:
    """What the keys and values of a cache take."""
    return sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))


@contextmanager
def timed(model: Any, seconds: list[float]) -> Iterator[None]:
    """Append how long the decoder takes in each forward, from before its first layer to behind its last."""
    decoder = families.find(model).decoder(model)

    def now() -> float:
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    started: list[float] = []
    hooks = [
        decoder.register_forward_pre_hook(lambda *_: started.append(now())),
        decoder.register_forward_hook(lambda *_: seconds.append(now() - started.pop())),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def prefill_times(
    model: Any, config: AdaTPConfig, inputs: Mapping[str, Any], repeats: int, images: str = "keep"
) -> dict[str, float]:
    """Median seconds that the decoder takes to read the prompt, dense and pruned in turn."""
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in tqdm(range(repeats + 1), desc="timing", delay=1, disable=None, leave=False):
        for way, measured in times.items():
            with pruning(model, config, way, images), timed(model, measured):
                model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return {way: statistics.median(measured[1:]) for way, measured in times.items()}  # the first is a warm-up


def told_times(model: Any, times: Mapping[str, float], repeats: int) -> str:
    """What `prefill_times` found, in words."""
    dense, pruned = times["dense"], times["pruned"]
    return (
        f"decoder prefill, median of {repeats} interleaved runs on {model.device.type}:\n"
        f"  dense {1e3 * dense:.0f} ms, pruned {1e3 * pruned:.0f} ms: {pruned / dense:.2f} × the time"
    )
