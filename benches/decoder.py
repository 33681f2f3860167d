"""A whole prompt through the decoder of a Hugging Face model, dense and pruned: what the prefill's timings are made of.

LLaVA-OneVision-7B's decoder on a GPU, a tiny one elsewhere. The weights are random; what is timed is the decoder alone, from
its first layer to its last.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import transformers

import adatp_kernels as adatp

FRAMES, TEXT, VIDEO = 32, 64, 99
LARGE = {"width": 3584, "mlp": 18944, "layers": 28, "heads": 28, "kv": 4, "image": 378}
SMALL = {"width": 128, "mlp": 512, "layers": 16, "heads": 4, "kv": 2, "image": 98}


def build(device: torch.device) -> Any:
    """The model."""
    sizes = LARGE if device.type == "cuda" else SMALL
    config = transformers.LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": 100,
            "hidden_size": sizes["width"],
            "intermediate_size": sizes["mlp"],
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "num_key_value_heads": sizes["kv"],
            "max_position_embeddings": 32768,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": sizes["image"],
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=98,
        video_token_index=VIDEO,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.LlavaOnevisionForConditionalGeneration._from_config(
            config, attn_implementation="sdpa", dtype=torch.bfloat16 if device.type == "cuda" else torch.float32
        )
    return model.eval()


def inputs(model: Any) -> dict[str, torch.Tensor]:
    """A prompt of `FRAMES` frames and `TEXT` text tokens behind them."""
    size = model.config.vision_config.image_size
    side = -(-(size // 14) // 2)
    ids = [1] * 14 + [VIDEO] * (FRAMES * side * side + 1) + [2] * (TEXT - 1)
    pixels = torch.randn(1, FRAMES, 3, size, size)
    return {
        "input_ids": torch.tensor([ids], device=model.device),
        "pixel_values_videos": pixels.to(model.device, model.dtype),
    }


def pruning(model: Any, target: float) -> Any:
    """`accelerate` with a segment per frame, so that nothing but the target decides how much is kept."""
    return adatp.accelerate(model, adatp.AdaTPConfig(target_flops=target, segment_threshold=1.0))


def decoder_seconds(model: Any, prompt: dict[str, torch.Tensor]) -> float:
    """Seconds between the decoder's first layer and its last: by events on a GPU, which is waited for once, at the end."""
    on_gpu, marks = model.device.type == "cuda", []

    def mark(*_: Any) -> None:
        if on_gpu:
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()
        else:
            marks.append(time.perf_counter())

    decoder = model.model.language_model
    hooks = [decoder.register_forward_pre_hook(mark), decoder.register_forward_hook(mark)]
    try:
        with torch.no_grad():
            model(**prompt, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    if not on_gpu:
        return marks[1] - marks[0]
    marks[1].synchronize()
    return marks[0].elapsed_time(marks[1]) / 1e3


def dense_and_pruned(model: Any, prompt: dict[str, torch.Tensor], target: float, repeats: int) -> list[dict[str, Any]]:
    """A row of each. They take turns, A B A B, in one process, and the first turn is not counted.

    Raises
    ------
    AssertionError
        If the pruned prompt had other numbers of tokens than planned.
    """
    times: dict[str, list[float]] = {"dense": [], "pruned": []}
    for repeat in range(repeats + 1):
        dense = decoder_seconds(model, prompt)
        with pruning(model, target) as run:
            pruned = decoder_seconds(model, prompt)
        report = run.report()
        assert report.actual_tokens == report.planned_tokens, (
            f"{report.actual_tokens} tokens, not {report.planned_tokens}"
        )
        assert abs(report.actual_flops_ratio - target) <= 0.005, (
            f"{report.actual_flops_ratio} of the FLOPs, not {target}"
        )
        if repeat:
            times["dense"].append(dense)
            times["pruned"].append(pruned)
    usual = statistics.median(times["dense"])
    rows = []
    for variant, measured in times.items():
        measured.sort()
        # The floor of a prefill is what its own FLOPs' share of the dense one would take.
        least = usual * (1.0 if variant == "dense" else report.actual_flops_ratio)
        rows.append(
            {
                "suite": "prefill",
                "N": len(report.layout),
                "variant": variant,
                "ours": variant == "pruned",
                "mode": "eager",
                "median": statistics.median(measured),
                "p20": measured[len(measured) // 5],
                "p80": measured[len(measured) * 4 // 5],
                "floor": least,
                "over floor": statistics.median(measured) / least,
                "backends": report.backends,
            }
        )
    return rows
