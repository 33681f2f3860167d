"""Turns of different configurations, padded or not, on one cache: each as the masked full sequence."""

import copy
import dataclasses

import pytest
import torch
from family_models import batch_of, build, prompt
from masked_reference import TOLERANCE, MaskedReference, survivors_of
from transformers import DynamicCache

import adatp_kernels as adatp

PLAIN = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
COMPACT = dataclasses.replace(PLAIN, compact_cache=True)
# What each turn brings (a Video, a video with padded rows, Text), and whether it compacts the cache.
TALKS = {
    "compact, padded and compact, text": [("video", COMPACT), ("padded", COMPACT), ("text", COMPACT)],
    "compact, padded, compact, text": [("video", COMPACT), ("padded", PLAIN), ("video", COMPACT), ("text", PLAIN)],
    "compact, plain, compact, text": [("video", COMPACT), ("video", PLAIN), ("video", COMPACT), ("text", PLAIN)],
    "padded and compact, compact, text": [("padded", COMPACT), ("video", COMPACT), ("text", COMPACT)],
    "plain, compact, plain, text": [("video", PLAIN), ("video", COMPACT), ("video", PLAIN), ("text", PLAIN)],
}


def turn(family, number, kind):
    if kind == "text":
        ids = torch.tensor([[40, 41, 42], [43, 44, 45]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    after = (9, 8, 7) if kind == "padded" else (7, 8, 9, 10, 11)
    return batch_of([prompt(family, seed=10 * number), prompt(family, seed=10 * number + 1, after=after)])


def turns_of(family, talk):
    """The arguments of each turn's forward, by hand: whole masks, and positions where a row is padded."""
    mask = torch.zeros(2, 0, dtype=torch.int64)
    for number, (kind, _) in enumerate(talk):
        inputs = turn(family, number, kind)
        length = inputs["input_ids"].shape[1]
        mask = torch.cat([mask, inputs["attention_mask"]], 1)
        inputs["attention_mask"] = mask
        if not mask.all():
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)[:, -length:]
        yield inputs


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("family", ["llava_onevision", "internvl"])
def test_every_turn_is_as_the_masked_full_sequence(family, talk):
    model, full, talk = build(family), build(family, "eager"), TALKS[talk]
    references = {config: MaskedReference(full, compact=config.compact_cache) for config in (PLAIN, COMPACT)}
    cache, whole, past = DynamicCache(), DynamicCache(), 0
    with torch.no_grad():
        for inputs, (kind, config) in zip(turns_of(family, talk), talk, strict=True):
            length = inputs["input_ids"].shape[1]
            with adatp.accelerate(model, config) as run:
                logits = model(**inputs, past_key_values=cache).logits[:, -1]
                if kind != "text":
                    references[config].add(survivors_of(run, 2), past, length)
            past += length
            assert cache.get_seq_length() == past
            expected = full(**inputs, past_key_values=whole).logits[:, -1]
            assert (logits - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("second", [("video", PLAIN), ("padded", COMPACT)])
def test_a_compacted_cache_is_not_cropped_after_any_turn(second):
    model = build("llava_onevision")
    cache = DynamicCache()
    talk = [("video", COMPACT), second]
    for inputs, (_, config) in zip(turns_of("llava_onevision", talk), talk, strict=True):
        with adatp.accelerate(model, config), torch.no_grad():
            model(**inputs, past_key_values=cache)
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    assert not cache.is_croppable
    with pytest.raises(ValueError, match="compact_cache: a cache that was compacted cannot be cropped"):
        cache.crop(-1)
    assert lengths == [layer.keys.shape[2] for layer in cache.layers]


def test_a_cache_made_of_a_pruned_ones_keys_and_values_is_refused():
    """It does not say which columns they stand for; a copy of the cache does."""
    model, cache = build("internvl"), DynamicCache()
    ids = {"input_ids": torch.tensor([[60, 61, 62]])}
    with torch.no_grad(), adatp.accelerate(model, PLAIN):
        model(**prompt("internvl"), past_key_values=cache)
        other = DynamicCache([(layer.keys.clone(), layer.values.clone()) for layer in cache.layers])
        with pytest.raises(ValueError, match="past_key_values: expected layers of one length, got"):
            model(**ids, past_key_values=other)
        assert model(**ids, past_key_values=copy.deepcopy(cache)).logits.equal(
            model(**ids, past_key_values=cache).logits
        )


@pytest.mark.parametrize("where", ["the first stage", "after the last layer"])
@pytest.mark.parametrize("config", [PLAIN, COMPACT])
def test_the_cache_of_an_interrupted_forward_is_refused(config, where):
    model, cache = build("llava_onevision"), DynamicCache()
    decoder = model.model.language_model
    at = decoder.layers[config.stage_layers(12)[0] + 1] if where == "the first stage" else decoder.norm
    with adatp.accelerate(model, config), torch.no_grad():
        hook = at.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**prompt("llava_onevision"), past_key_values=cache)
        hook.remove()
        for _ in range(2):
            with pytest.raises(
                ValueError, match="past_key_values: expected a cache whose prompts were read to their end"
            ):
                model(input_ids=torch.tensor([[60, 61, 62]]), past_key_values=cache)
        model(**prompt("llava_onevision"), past_key_values=DynamicCache())
