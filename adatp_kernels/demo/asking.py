"""Asks a model with and without pruning, and times both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo.errors import DemoError
from adatp_kernels.demo.models import DemoModel
from adatp_kernels.integrations.transformers import accelerate, families

WAYS = ("dense", "pruned")


@contextmanager
def pruning(demo: DemoModel, config: AdaTPConfig, name: str) -> Iterator[Any]:
    """The acceleration for "pruned", nothing for "dense"."""
    if name == "dense":
        yield None
        return
    try:
        with accelerate(demo.model, config) as run:
            yield run
    except ValueError as error:
        raise DemoError(f"this prompt cannot be pruned so: {error}") from error


@torch.no_grad()
def answer(demo: DemoModel, inputs: dict[str, Tensor], max_new_tokens: int) -> str:
    """What the model says, greedily."""
    output = demo.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return demo.decode(output[0, inputs["input_ids"].shape[1] :])


@torch.no_grad()
def prefill_times(demo: DemoModel, config: AdaTPConfig, inputs: dict[str, Tensor], repeats: int) -> dict[str, float]:
    """Median seconds that the decoder takes to read the prompt, dense and pruned in turn."""
    decoder = families.find(demo.model).decoder(demo.model)
    times: dict[str, list[float]] = {way: [] for way in WAYS}

    def now() -> float:
        if demo.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    started: list[float] = []
    for _ in tqdm(range(repeats + 1), desc="timing", delay=1, leave=False):
        for name, measured in times.items():
            with pruning(demo, config, name):
                hooks = [
                    decoder.register_forward_pre_hook(lambda *_: started.append(now())),
                    decoder.register_forward_hook(lambda *_, measured=measured: measured.append(now() - started[-1])),
                ]
                demo.model(**inputs, logits_to_keep=1)
                for hook in hooks:
                    hook.remove()
    return {name: statistics.median(measured[1:]) for name, measured in times.items()}  # the first is a warm-up


def tell_times(demo: DemoModel, config: AdaTPConfig, inputs: dict[str, Tensor], repeats: int) -> None:
    """Print what `prefill_times` finds."""
    times = prefill_times(demo, config, inputs, repeats)
    dense, pruned = times["dense"], times["pruned"]
    print(f"decoder prefill, median of {repeats} interleaved runs on {demo.model.device.type}:")
    print(f"  dense {1e3 * dense:.0f} ms, pruned {1e3 * pruned:.0f} ms: {pruned / dense:.2f} × the time")
