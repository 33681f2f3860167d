"""A decoder of a real model's shape against the clock: its parts, on a small one."""

import numpy as np
import pytest
import torch

import adatp_kernels as adatp
from adatp_kernels.ask import answering
from adatp_kernels.demo import prefill
from adatp_kernels.demo.clips.scenes import draw_clip, render
from adatp_kernels.mistakes import Mistake

CPU = torch.device("cpu")
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 14,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIG = adatp.AdaTPConfig(target_flops=0.3)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def demo(request):
    return prefill.build(request.param, CPU, **SMALL)


@pytest.fixture(scope="module")
def clip():
    return draw_clip(np.random.default_rng(0), num_shots=3, num_frames=5)


def test_shape_is_that_of_the_real_decoder():
    with torch.device("meta"):
        demo = prefill.build(torch.bfloat16, torch.device("meta"))
    decoder = demo.model.model.language_model
    assert len(decoder.layers) == 24 and demo.model.dtype == torch.bfloat16
    # Qwen2-0.5B has 494,032,768 parameters, those of 151,936 words included, which are left out here.
    words = sum(parameter.numel() for parameter in decoder.embed_tokens.parameters())
    assert sum(parameter.numel() for parameter in decoder.parameters()) - words + 151_936 * 896 == 494_032_768


def test_runs_and_cache(demo, clip):
    frames = render(clip, 8)
    found = prefill.measure(demo, frames, "what moves", CONFIG, 2)
    assert {way: len(times) for way, times in found.seconds.items()} == {"dense": 2, "pruned": 2}
    assert min(min(times) for times in found.seconds.values()) > 0
    report = found.report
    assert report.segments == tuple(clip.shot_of_frame.tolist())
    assert len(report.layout) == 5 * 196 and report.actual_flops_ratio == pytest.approx(0.3, abs=0.01)
    token = 2 * 2 * 16 * demo.model.dtype.itemsize  # a key and a value of two heads of sixteen
    text = len("what moves") + 1
    assert found.cache["dense"] == 14 * (5 * 196 + text) * token
    # Without compact_cache a layer holds what entered it, with it what is left in the end.
    assert found.cache["pruned"] == sum(tokens + text for tokens in report.actual_tokens) * token
    assert found.cache["compacted"] == 14 * (report.actual_tokens[-1] + text) * token


def test_only_the_decoder_is_timed(demo, clip, monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(answering.time, "perf_counter", lambda: next(ticks))
    inputs, seconds = demo.inputs(render(clip, 8), "what"), []
    tower = demo.model.model.vision_tower.register_forward_hook(lambda *_: next(ticks) * 0 or None)
    with answering.timed(demo.model, seconds), torch.no_grad():
        demo.model(**inputs, logits_to_keep=1)
    demo.model(**inputs, logits_to_keep=1)
    tower.remove()
    assert seconds == [1]
    decoder = demo.model.model.language_model
    assert not decoder._forward_hooks and not decoder._forward_pre_hooks


def test_a_target_that_cannot_be_reached(demo, clip):
    with pytest.raises(Mistake, match="this prompt cannot be pruned so: target_flops: 0.01 cannot be reached"):
        prefill.measure(demo, render(clip, 8), "what", adatp.AdaTPConfig(target_flops=0.01), 1)


def test_bfloat16_only_where_it_is_faster(monkeypatch):
    for factor, expected in ((0.5, torch.bfloat16), (0.9, torch.float32), (3.0, torch.float32)):
        monkeypatch.setattr(
            prefill, "_product_seconds", lambda one, other, factor=factor: 1.0 if one.dtype == torch.float32 else factor
        )
        assert prefill.fastest_dtype(CPU) == expected
    assert prefill.fastest_dtype(torch.device("cuda")) == torch.bfloat16
