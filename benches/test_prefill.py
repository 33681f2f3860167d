"""Times a whole prompt through the decoder, dense and pruned: LLaVA-OneVision-7B's on a GPU, a tiny one on a CPU.

The weights are random; what is timed is the decoder alone, from its first layer to its last.
"""

import statistics
import time

import pytest
import torch
from measure import ON_GPU, synchronize
from report import ROWS

import adatp_kernels as adatp

transformers = pytest.importorskip("transformers")

FRAMES = 32
LENGTHS = {"width": 3584, "mlp": 18944, "layers": 28, "heads": 28, "kv": 4, "image": 378}
if not ON_GPU:
    LENGTHS = {"width": 128, "mlp": 512, "layers": 16, "heads": 4, "kv": 2, "image": 98}
VIDEO = 99
# Two layers run before the first stage, so with few layers no plan is as cheap as the last of these.
TARGETS = [target for target in (0.273, 0.15, 0.08) if target > 2 / LENGTHS["layers"]]


@pytest.fixture(scope="module")
def model():
    config = transformers.LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": 100,
            "hidden_size": LENGTHS["width"],
            "intermediate_size": LENGTHS["mlp"],
            "num_hidden_layers": LENGTHS["layers"],
            "num_attention_heads": LENGTHS["heads"],
            "num_key_value_heads": LENGTHS["kv"],
            "max_position_embeddings": 32768,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": LENGTHS["image"],
            "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=98,
        video_token_index=VIDEO,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if ON_GPU else "cpu"):
        model = transformers.LlavaOnevisionForConditionalGeneration._from_config(
            config, attn_implementation="sdpa", dtype=torch.bfloat16 if ON_GPU else torch.float32
        )
    return model.eval()


@pytest.fixture(scope="module")
def inputs(model):
    side = -(-(LENGTHS["image"] // 14) // 2)
    ids = [1] * 14 + [VIDEO] * (FRAMES * side * side + 1) + [2] * 63
    pixels = torch.randn(1, FRAMES, 3, LENGTHS["image"], LENGTHS["image"])
    return {
        "input_ids": torch.tensor([ids], device=model.device),
        "pixel_values_videos": pixels.to(model.device, model.dtype),
    }


def pruning(model, target):
    # One segment per frame, so that nothing but the target decides how much is kept.
    config = adatp.AdaTPConfig(target_flops=target, segment_threshold=1.0)
    return adatp.accelerate(model, config)


def decoder_seconds(model, inputs):
    """Seconds of one forward between the decoder's first layer and its last."""
    marks = []

    def mark(*_):
        synchronize()
        marks.append(time.perf_counter())

    decoder = model.model.language_model
    hooks = [decoder.register_forward_pre_hook(mark), decoder.register_forward_hook(mark)]
    with torch.no_grad():
        model(**inputs, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return marks[1] - marks[0]


@pytest.mark.parametrize("attention", ["sdpa", "adatp"])
@pytest.mark.parametrize("target", TARGETS)
def test_prefill(benchmark, model, inputs, target, attention):
    """Dense and pruned in turn, A B A B, in one process; `benchmark` times the pruned one as a whole."""
    model.set_attn_implementation({"text_config": attention})
    times = {"dense": [], "pruned": []}
    for repeat in range(6 if ON_GPU else 4):
        dense = decoder_seconds(model, inputs)
        with pruning(model, target) as run:
            pruned = decoder_seconds(model, inputs)
        if repeat:  # the first is a warm-up
            times["dense"].append(dense)
            times["pruned"].append(pruned)
    report = run.report()
    assert report.actual_tokens == report.planned_tokens
    assert abs(report.actual_flops_ratio - target) <= 0.005

    def whole():
        with pruning(model, target):
            decoder_seconds(model, inputs)

    benchmark.pedantic(whole, rounds=2)
    for variant, measured in times.items():
        measured.sort()
        median = statistics.median(measured)
        ratio = 1.0 if variant == "dense" else report.actual_flops_ratio
        ROWS.append(
            {
                "suite": "prefill",
                "N": len(report.layout),
                "target": f"{target} {attention}",
                "variant": variant,
                "ours": variant == "pruned",
                "mode": "eager",
                "median": median,
                "p20": measured[len(measured) // 5],
                "p80": measured[len(measured) * 4 // 5],
                # The floor of a prefill is what its own FLOPs share of the dense one would take.
                "floor": statistics.median(times["dense"]) * ratio,
                "over floor": median / (statistics.median(times["dense"]) * ratio),
            }
        )
