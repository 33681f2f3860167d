"""Times a real Video LLM's decoder, of random weights, as it reads a clip: dense against pruned, and what its cache holds."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from torch import Tensor
from tqdm import tqdm

from adatp_kernels.ask.answering import WAYS, cache_bytes, pruning, timed
from adatp_kernels.config import AdaTPConfig
from adatp_kernels.demo.models import IMAGE, PAD, VIDEO, DemoModel
from adatp_kernels.integrations.transformers import Report

# LLaVA-OneVision-0.5B's decoder; its vocabulary is left out, as no layer depends on it.
DECODER = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
}
IMAGE_SIZE = 384  # as its tower takes frames: 27 × 27 patches, pooled to 196 tokens
PROBED, TRIES = 512, 3  # rows of the products that are compared, and how often
WORTH_IT = 0.8  # how much of float32's time bfloat16 may take, if it is to be used


@dataclass(frozen=True)
class Prefill:
    """What a prompt took and left.

    Attributes
    ----------
    seconds : dict of str to list of float
        In the decoder, of each run, dense and pruned.
    cache : dict of str to int
        Bytes of the cache's keys and values after the prompt: dense, pruned, and pruned with ``compact_cache=True``.
    report : Report
        Of the last pruned run.
    """

    seconds: dict[str, list[float]]
    cache: dict[str, int]
    report: Report


def build(dtype: torch.dtype, device: torch.device, **sizes: int) -> DemoModel:
    """A LLaVA-OneVision whose decoder has the shape of `DECODER`, but for `sizes`, behind a small tower; all weights random."""
    torch.manual_seed(0)
    config = transformers.LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": VIDEO + 1,
            "max_position_embeddings": 32768,
            "pad_token_id": PAD,
            **DECODER,
            **sizes,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": IMAGE_SIZE,
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    model = transformers.LlavaOnevisionForConditionalGeneration._from_config(
        config, attn_implementation={"text_config": "adatp", "vision_config": "sdpa"}, dtype=dtype
    )

    def encode(question: str, video_tokens: int) -> Tensor:
        return torch.tensor([[*[VIDEO] * video_tokens, *question.encode()]], device="cpu")

    return DemoModel(model.to(device).eval(), encode, decode=lambda _: "", image_size=IMAGE_SIZE, trained=False)


@torch.no_grad()
def measure(demo: DemoModel, frames: np.ndarray, question: str, config: AdaTPConfig, pairs: int) -> Prefill:
    """Read a prompt `pairs` times by each way in turn, after one that is not timed.

    Parameters
    ----------
    demo : DemoModel
    frames : uint8 array [num_frames, H, W, 3]
    question : str
    config : AdaTPConfig
    pairs : int
        At least one.

    Raises
    ------
    Mistake
        If the configuration cannot prune this prompt.
    """
    inputs = demo.inputs(frames, question)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    cache: dict[str, int] = {}
    with tqdm(total=1 + 2 * pairs, desc="reading the prompt", delay=1, disable=None, leave=False) as progress:
        # The warm-up is the shorter of the two, and compacts, which is as good for that and tells one more figure.
        with pruning(demo.model, dataclasses.replace(config, compact_cache=True), "pruned"):
            cache["compacted"] = cache_bytes(demo.model(**inputs, logits_to_keep=1).past_key_values)
        progress.update()
        for _ in range(pairs):
            for way in WAYS:
                with pruning(demo.model, config, way) as run, timed(demo.model, seconds[way]):
                    cache[way] = cache_bytes(demo.model(**inputs, logits_to_keep=1).past_key_values)
                    if run is not None:
                        report = run.report()
                progress.update()
    return Prefill(seconds, cache, report)


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the machine multiplies it faster than float32, by a product as large as the decoder's; else float32.

    CPUs without instructions for bfloat16 compute it, too, but slower.
    """
    if device.type == "cuda":
        return torch.bfloat16
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        one = torch.ones(PROBED, DECODER["hidden_size"], dtype=dtype, device=device)
        other = torch.ones(DECODER["intermediate_size"], DECODER["hidden_size"], dtype=dtype, device=device)
        times[dtype] = min(_product_seconds(one, other) for _ in range(TRIES))
    return torch.bfloat16 if times[torch.bfloat16] < WORTH_IT * times[torch.float32] else torch.float32


def _product_seconds(one: Tensor, other: Tensor) -> float:
    started = time.perf_counter()
    torch.nn.functional.linear(one, other)
    return time.perf_counter() - started
