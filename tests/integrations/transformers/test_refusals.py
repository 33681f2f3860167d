"""What accelerate does not support says so before the first token."""

import copy
import dataclasses

import pytest
import torch
from small_models import (
    CONFIG,
    generate,
    llava_onevision,
    prompt,
)

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.cache import CompactedLayer


def test_refusals_name_what_is_wrong():
    model, inputs = llava_onevision(), prompt()
    twice = {name: torch.cat([tensor] * 2) for name, tensor in inputs.items()}
    without = {**twice, "input_ids": twice["input_ids"].clone()}
    without["input_ids"][1] = 4
    without["pixel_values_videos"] = inputs["pixel_values_videos"]
    embeddings = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}
    with adatp.accelerate(model, CONFIG):
        with pytest.raises(RuntimeError, match="accelerated already"):
            adatp.accelerate(model, CONFIG)
        with pytest.raises(ValueError, match="input_ids: row 1 of the batch has no video, but others have"):
            generate(model, without)
        with pytest.raises(ValueError, match="pixel_values_videos: input_ids hold video tokens"):
            model(**{name: tensor for name, tensor in inputs.items() if name != "pixel_values_videos"})
        with pytest.raises(ValueError, match=r"past_key_values: .*StaticLayer"):
            generate(model, inputs, cache_implementation="static", disable_compile=True)
        with pytest.raises(ValueError, match=r"past_key_values: an offloaded cache"):
            generate(model, inputs, cache_implementation="offloaded")
        with pytest.raises(ValueError, match=r"input_ids: expected .* video tokens"):
            generate(model, {**inputs, "input_ids": inputs["input_ids"][:, :-9]})
        with pytest.raises(ValueError, match="input_ids: expected more video tokens, for 1 videos"):
            model(**{**inputs, "pixel_values_videos": twice["pixel_values_videos"]})
        with pytest.raises(ValueError, match="inputs_embeds"):
            model(inputs_embeds=torch.randn(1, inputs["input_ids"].shape[1], 64), **embeddings)
        with pytest.raises(ValueError, match=r"logits_to_keep: .*Assisted decoding"):
            generate(model, prompt(after=(7, 8, 9, 7, 8)), prompt_lookup_num_tokens=3)
        with pytest.raises(ValueError, match=r"logits_to_keep: .*tensor"):
            model(**inputs, logits_to_keep=torch.tensor([5]))
        with pytest.raises(ValueError, match=r"^(pixel_values_videos|input_ids): .*prefill_chunk_size"):
            generate(model, inputs, prefill_chunk_size=16)
        with pytest.raises(ValueError, match=r"use_cache: False"):
            generate(model, inputs, use_cache=False)
        with pytest.raises(ValueError, match=r"attention_mask: .*padding on the left"):
            model(**{**inputs, "attention_mask": inputs["attention_mask"].flip(0).index_fill(1, torch.tensor([-1]), 0)})
        with pytest.raises(ValueError, match=r"attention_mask: .*not a mask per row"):
            model(**{**inputs, "attention_mask": torch.ones(1, 1, 4, 4)})
        with pytest.raises(RuntimeError, match="cannot be copied"):
            copy.deepcopy(model)
        with pytest.raises(RuntimeError, match="inference"):
            model.train()(**inputs)
        model.eval()
        generate(model, inputs, max_new_tokens=1)


def test_refused_models_and_arguments():
    with pytest.raises(TypeError, match="model: expected a transformers model"):
        adatp.accelerate("llava", CONFIG)
    with pytest.raises(ValueError, match=r"model: Linear .*llava_onevision"):
        adatp.accelerate(torch.nn.Linear(2, 2), CONFIG)
    model = llava_onevision()
    with pytest.raises(TypeError, match="config: expected an AdaTPConfig"):
        adatp.accelerate(model, {"target_flops": 0.3})
    with pytest.raises(ValueError, match="stages: .*last stage may be layer 14"):
        adatp.accelerate(model, adatp.AdaTPConfig(stages=(1, 15)))
    with pytest.raises(ValueError, match="stages: 'progressive'.*at least 14 layers"):
        adatp.accelerate(llava_onevision(layers=8), adatp.AdaTPConfig())
    with pytest.raises(AttributeError):
        adatp.accelerate(llava_onevision(), CONFIG).config = CONFIG
    gone = adatp.accelerate(llava_onevision(), CONFIG)
    gone.remove()
    with pytest.raises(RuntimeError, match="was removed"), gone:
        pass
    flex = llava_onevision()
    flex.config.text_config._attn_implementation_internal = "flex_attention"
    with pytest.raises(ValueError, match="model: .*'flex_attention'"):
        adatp.accelerate(flex, CONFIG)
    model.config.text_config.layer_types[3] = "sliding_attention"
    with pytest.raises(ValueError, match="model: .*sliding_attention"):
        adatp.accelerate(model, CONFIG)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_attention_that_was_not_seen_is_an_error():
    """A compiled model, or an attention module of its own making, would otherwise just not be pruned."""
    model, inputs = llava_onevision(), prompt()
    attention = model.model.language_model.layers[3].self_attn
    attention.forward = lambda hidden_states, **_: (attention.o_proj(hidden_states), None)
    with adatp.accelerate(model, CONFIG), torch.no_grad():
        with pytest.raises(RuntimeError, match="the attention of layer 3 was not seen"):
            model(**inputs, use_cache=False)
        model.model.language_model.forward = torch.compile(model.model.language_model.forward, backend="eager")
        with pytest.raises(RuntimeError, match="not seen by accelerate"):
            model(**inputs, use_cache=False)
    torch._dynamo.reset()


def test_compacted_cache_cannot_be_cropped():
    model, inputs = llava_onevision(), prompt()
    config = adatp.AdaTPConfig(target_flops=0.4, stages=(1, 3), compact_cache=True)
    with adatp.accelerate(model, config):
        _, _, cache = generate(model, inputs, max_new_tokens=2)
    assert all(type(layer) is CompactedLayer for layer in cache.layers)
    with pytest.raises(ValueError, match="compact_cache"):
        cache.layers[0].crop(-1)


def test_a_backend_that_cannot_run_says_why():
    model = llava_onevision()
    message = "backend: 'triton' cannot run prune here: .*CUDA tensors, not on cpu"
    with (
        adatp.accelerate(model, dataclasses.replace(CONFIG, backend="triton")),
        pytest.raises(RuntimeError, match=message),
    ):
        generate(model, prompt())
