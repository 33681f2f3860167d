"""The cache of a pruned prompt, read without an acceleration: refused by name where its layers differ, right where they don't."""

import copy
import dataclasses

import pytest
import torch
from family_models import batch_of, build, prompt
from masked_reference import TOLERANCE, generate
from transformers import DynamicCache

import adatp_kernels as adatp

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
FAMILY = "llava_onevision"
ROWS = {"one prompt": 1, "padded rows": 2}


def inputs_of(rows):
    prompts = [prompt(FAMILY), prompt(FAMILY, shots=2, seed=1, after=(7, 8))][:rows]
    return batch_of(prompts) if rows > 1 else prompts[0]


def pruned(model, rows=1, compact=False):
    """The tokens of prompts and answers, their mask, and the cache, after the block."""
    inputs = inputs_of(rows)
    with adatp.accelerate(model, dataclasses.replace(CONFIG, compact_cache=compact)):
        sequences, _, cache = generate(model, inputs, max_new_tokens=3)
    mask = torch.cat([inputs["attention_mask"], torch.ones(rows, 3, dtype=torch.long)], 1)
    return sequences, mask, cache


def next_turn(sequences, mask, cache, added=3):
    more = torch.arange(40, 40 + added).repeat(len(sequences), 1)
    ids, mask = torch.cat([sequences, more], 1), torch.cat([mask, torch.ones_like(more)], 1)
    return {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}


def lengths(cache):
    return [layer.keys.shape[2] for layer in cache.layers]


@pytest.mark.parametrize("attention", ["eager", "sdpa", "adatp"])
@pytest.mark.parametrize(("rows", "compact"), [(1, False), (2, False), (2, True)])
def test_it_is_refused_before_it_changes_and_goes_on_under_an_acceleration(attention, rows, compact):
    """Also padded rows of a compacted cache: its layers hold the same, but not what masks are made for."""
    model = build(FAMILY, attention)
    sequences, mask, cache = pruned(model, rows, compact)
    before = lengths(cache)
    with pytest.raises(ValueError, match="past_key_values: expected to be read by an accelerated model"):
        generate(model, next_turn(sequences, mask, cache), max_new_tokens=2)
    assert lengths(cache) == before
    with adatp.accelerate(model, CONFIG):
        _, answer, _ = generate(model, next_turn(sequences, mask, copy.deepcopy(cache)), max_new_tokens=2)
    with adatp.accelerate(model, dataclasses.replace(CONFIG, compact_cache=compact)):
        within, _, held = generate(model, inputs_of(rows), max_new_tokens=3)
        _, expected, _ = generate(model, next_turn(within, mask, held), max_new_tokens=2)
    assert answer.equal(expected)


@pytest.mark.parametrize("given", ["one token", "a mask per row", "no mask", "another model"])
def test_every_way_of_reading_it(given):
    model = build(FAMILY)
    _, _, cache = pruned(model)
    past, before = cache.get_seq_length(), lengths(cache)
    length = 1 if given == "one token" else 3
    more = {"attention_mask": torch.ones(1, 1, length, past + length).bool()} if given == "a mask per row" else {}
    other = build(FAMILY) if given == "another model" else model
    with torch.no_grad(), pytest.raises(ValueError, match="past_key_values: expected to be read by an accelerated"):
        other(input_ids=torch.arange(40, 40 + length)[None], past_key_values=cache, **more)
    assert lengths(cache) == before


def test_after_an_error_inside_it_is_still_refused_outside():
    model = build(FAMILY)
    run = adatp.accelerate(model, CONFIG)
    sequences, _, cache = generate(model, prompt(FAMILY), max_new_tokens=3)
    hook = model.model.language_model.layers[0].register_forward_pre_hook(lambda *_: 1 / 0)
    inputs = next_turn(sequences, torch.ones_like(sequences), cache)
    with pytest.raises(ZeroDivisionError):
        generate(model, inputs, max_new_tokens=1)
    hook.remove()
    run.remove()
    with pytest.raises(ValueError, match="past_key_values"):
        generate(model, inputs, max_new_tokens=1)


def test_a_compacted_cache_goes_on_outside():
    model = build(FAMILY)
    sequences, mask, cache = pruned(model, compact=True)
    _, outside, _ = generate(model, next_turn(sequences, mask, copy.deepcopy(cache)), max_new_tokens=2)
    with adatp.accelerate(model, CONFIG):
        _, within, _ = generate(model, next_turn(sequences, mask, cache), max_new_tokens=2)
    assert outside.equal(within)


def test_a_cache_that_was_reset_is_anybodys():
    model = build(FAMILY)
    _, _, cache = pruned(model)
    cache.reset()
    ids = torch.tensor([[1, 2, 3, 4]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    _, expected, _ = generate(model, inputs, max_new_tokens=3)
    for under in (None, CONFIG, None):
        run = adatp.accelerate(model, under) if under else None
        _, logits, _ = generate(model, {**inputs, "past_key_values": cache}, max_new_tokens=3)
        assert (logits - expected).abs().max() <= TOLERANCE
        cache.reset()
        if run:
            run.remove()


def test_a_compacted_turn_and_then_one_that_is_not():
    """Layer 0 keeps counting what was dropped from it."""
    model, second = build(FAMILY), prompt(FAMILY, seed=3, before=(40,))
    sequences, _, cache = pruned(model, compact=True)
    with adatp.accelerate(model, CONFIG):
        ids = torch.cat([sequences, second["input_ids"]], 1)
        inputs = {**second, "input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache}
        longer, _, held = generate(model, inputs, max_new_tokens=2)
        assert held.get_seq_length() == longer.shape[1] - 1
        generate(model, next_turn(longer, torch.ones_like(longer), held), max_new_tokens=2)
    with pytest.raises(ValueError, match="past_key_values"):
        generate(model, next_turn(longer, torch.ones_like(longer), held), max_new_tokens=1)


@pytest.mark.parametrize("refused", ["a video", "a question"])
def test_what_was_refused_at_its_beginning_leaves_nothing(refused):
    """Neither the prompt that was not pruned, nor a cache that was about to be read."""
    model = build(FAMILY)
    text = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with adatp.accelerate(model, CONFIG):
        sequences, _, cache = generate(model, prompt(FAMILY), max_new_tokens=3)
        inputs = next_turn(sequences, torch.ones_like(sequences), cache)
        expected = generate(model, {**inputs, "past_key_values": copy.deepcopy(cache)}, max_new_tokens=2)[1]
        of_text = generate(model, text, max_new_tokens=2)[1]
        if refused == "a video":
            rebuilt = DynamicCache([(layer.keys, layer.values) for layer in cache.layers])
            with torch.no_grad(), pytest.raises(ValueError, match="past_key_values: expected layers of one length"):
                model(**{**prompt(FAMILY), "attention_mask": None}, past_key_values=rebuilt)
        else:
            model.model.language_model.config._attn_implementation = "flex_attention"
            with pytest.raises(ValueError, match="flex_attention"):
                generate(model, inputs, max_new_tokens=2)
            model.model.language_model.config._attn_implementation = "sdpa"
        assert generate(model, text, max_new_tokens=2)[1].equal(of_text)
        assert generate(model, inputs, max_new_tokens=2)[1].equal(expected)
