"""How accelerate runs: what it reuses, what other software gets to see, and that nothing waits."""

import dataclasses

import pytest
import torch
from small_models import CELLS, CONFIG, LAYERS, TOLERANCE, VIDEO, generate, llava_onevision, masked, prompt
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.prefill import VideoPrefill
from adatp_kernels.integrations.transformers.tap import AttentionTap
from adatp_kernels.ops import reference


def test_adatp_attention_reuses_its_lse(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the LSE was recomputed")

    monkeypatch.setattr(reference, "row_lse", refuse)
    inputs, config = prompt(), dataclasses.replace(CONFIG, backend="reference")
    model = llava_onevision("adatp")
    with adatp.accelerate(model, config):
        generate(model, inputs, max_new_tokens=1)
    model = llava_onevision("sdpa")
    with adatp.accelerate(model, config), pytest.raises(AssertionError, match="recomputed"):
        generate(model, inputs, max_new_tokens=1)


def test_flash_attention_2_never_sees_gapped_position_ids(monkeypatch):
    """Without flash-attn here, a stand-in checks what the real one would be handed."""
    calls = []

    def flash(module, query, key, value, attention_mask, scaling=None, position_ids=None, **_):
        assert attention_mask is None
        assert module.config._attn_implementation == "flash_attention_2"
        if position_ids is not None:  # gaps would make it take the prompt for packed sequences
            assert bool((position_ids.diff() == 1).all())
        calls.append(query.shape[2])
        causal = query.shape[2] > 1
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).contiguous(), None

    monkeypatch.setitem(type(ALL_ATTENTION_FUNCTIONS)._global_mapping, "flash_attention_2", flash)
    model, inputs = llava_onevision("sdpa"), prompt()
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    with adatp.accelerate(model, CONFIG) as run:
        _, logits, _ = generate(model, inputs, max_new_tokens=5)
    assert calls[:LAYERS] == [run.report().text_tokens + tokens for tokens in run.report().actual_tokens]
    assert (logits - masked(inputs, run.report().survivors, max_new_tokens=5)[1]).abs().max() <= TOLERANCE


def test_each_prompt_looks_up_its_attention_anew(monkeypatch):
    """An attention function that is registered between two prompts runs in every layer of the second."""
    calls, functions = [], type(ALL_ATTENTION_FUNCTIONS)._global_mapping
    sdpa = functions["sdpa"]

    def other(module, *tensors, **options):
        calls.append(getattr(module, "layer_idx", None))
        return sdpa(module, *tensors, **options)

    model, inputs = llava_onevision("sdpa"), prompt()
    with adatp.accelerate(model, CONFIG) as run:
        generate(model, inputs, max_new_tokens=1)
        monkeypatch.setitem(functions, "sdpa", other)
        generate(model, inputs, max_new_tokens=1)
        assert run.report().survivors
    # The vision tower's come first.
    assert calls[-LAYERS:] == list(range(LAYERS))


def test_no_stage_waits_for_the_device(monkeypatch):
    """What would read a device's values back raises while a stage runs."""
    model, inputs = llava_onevision("adatp"), prompt()
    stage = VideoPrefill.after_layer
    waiting = ("item", "tolist", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
    stages = []

    def refuse(*_, **__):
        raise AssertionError("a stage waits for the device")

    def guarded(*args, **kwargs):
        stages.append(args[1])
        with monkeypatch.context() as patch:
            for name in waiting:
                patch.setattr(torch.Tensor, name, refuse)
            return stage(*args, **kwargs)

    monkeypatch.setattr(VideoPrefill, "after_layer", guarded)
    with adatp.accelerate(model, CONFIG) as run:
        generate(model, inputs, max_new_tokens=1)
    assert stages == [layer for layer, _ in run.report().survivors] and stages


def test_while_it_is_tapped_a_layer_has_its_own_configuration_but_for_the_attention():
    module = llava_onevision("eager").model.language_model.layers[0].self_attn
    config, tap = module.config, AttentionTap(module)
    for _ in range(2):
        tap.open()
        assert module.config._attn_implementation == "adatp_tap" != config._attn_implementation
        assert module.config.hidden_size == config.hidden_size and module.config.to_dict() == config.to_dict()
        with pytest.raises(AttributeError, match="no_such_field"):
            _ = module.config.no_such_field
        tap.close()
        assert module.config is config and config._attn_implementation == "eager"


def test_every_frame_is_its_own_video_token_block():
    """Guards the fixture itself: the prompt holds one newline after the frames, which is text."""
    ids = prompt()["input_ids"][0]
    assert int((ids == VIDEO).sum()) == 6 * CELLS + 1
