"""Caches of Qwen models that are continued after other prompts: positions are those of the cache's own prompt."""

import copy
import dataclasses
import pickle

import pytest
import torch
from family_models import VIDEO, batch_of, build, prompt
from masked_reference import TOLERANCE, generate
from snapshots import assert_unchanged, snapshot

import adatp_kernels as adatp

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
QUESTION = (12, 13, 14)
TEXT = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


def again(model, sequences, cache, question=QUESTION, **options):
    """The logits of an answer to another question on a copy of the cache."""
    ids = torch.cat([sequences, torch.tensor([question]).expand(len(sequences), -1)], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": copy.deepcopy(cache)}
    return generate(model, inputs, max_new_tokens=3, **options)[1]


def others(family):
    """What may go through the model between two questions."""
    return {"text": TEXT, "a video": prompt(family, frames=3, seed=4, before=(1, 5, 6, 7, 8)), "a batch": batch_of(
        [prompt(family, frames=2, seed=5), prompt(family, frames=3, seed=6)]
    )}  # fmt: skip


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_another_question_after_other_prompts(family, compact):
    model = build(family)
    with adatp.accelerate(model, dataclasses.replace(CONFIG, compact_cache=compact)):
        sequences, _, cache = generate(model, prompt(family), max_new_tokens=2)
        own = model.model.rope_deltas
        expected = again(model, sequences, cache)
        changed = 0
        for inputs in others(family).values():
            generate(model, inputs, max_new_tokens=2)
            left = model.model.rope_deltas
            changed += not left.equal(own)
            assert again(model, sequences, cache).equal(expected)
            assert model.model.rope_deltas is left  # what another cache goes on with
        assert changed >= 2
        # Without positions that generate made, forward makes them.
        step = {"input_ids": torch.tensor([[12, 13]])}
        with torch.no_grad():
            after = model(**step, past_key_values=copy.deepcopy(cache)).logits
            assert model.model.rope_deltas is left
            model.model.rope_deltas = own
            assert model(**step, past_key_values=copy.deepcopy(cache)).logits.equal(after)
    # In another process, on a model that has read nothing.
    fresh = build(family)
    with adatp.accelerate(fresh, dataclasses.replace(CONFIG, compact_cache=compact)):
        assert again(fresh, sequences, pickle.loads(pickle.dumps(cache))).equal(expected)
        assert fresh.model.rope_deltas is None


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_of_a_batch_taken_apart_and_swapped(family):
    model = build(family)
    prompts = [prompt(family, frames=6), prompt(family, frames=4, seed=1, after=(7, 8))]
    with adatp.accelerate(model, CONFIG):
        sequences, _, cache = generate(model, batch_of(prompts), max_new_tokens=2)
        mask = torch.nn.functional.pad(batch_of(prompts)["attention_mask"], (0, 2 + len(QUESTION)), value=1)
        assert len(set(model.model.rope_deltas.flatten().tolist())) == 2

        def asked(rows, held):
            ids = torch.cat([sequences[rows], torch.tensor([QUESTION]).expand(len(rows), -1)], 1)
            inputs = {"input_ids": ids, "attention_mask": mask[rows], "past_key_values": held}
            return generate(model, inputs, max_new_tokens=2)[1]

        expected = asked([0, 1], copy.deepcopy(cache))
        generate(model, TEXT, max_new_tokens=1)
        swapped, single = copy.deepcopy(cache), copy.deepcopy(cache)
        swapped.reorder_cache(torch.tensor([1, 0]))
        assert (asked([1, 0], swapped) - expected[:, [1, 0]]).abs().max() <= TOLERANCE
        single.batch_select_indices(torch.tensor([1]))
        assert (asked([1], single) - expected[:, [1]]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_copies_of_one_prompt(family):
    """Of what the rows of a cache carry, a prompt that is still to be copied gets one."""
    model = build(family)
    with adatp.accelerate(model, CONFIG):
        sequences, _, cache = generate(model, prompt(family), max_new_tokens=2)
        cache.batch_repeat_interleave(3)
        expected = again(model, sequences, cache, num_beams=3)
        generate(model, others(family)["a video"], max_new_tokens=1)
        assert again(model, sequences, cache, num_beams=3).equal(expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", ["the video's end", "the text before it", "the start"])
def test_a_cropped_cache(family, where):
    """Behind the video positions are its own; before it, columns."""
    model, inputs = build(family), prompt(family)
    ids = inputs["input_ids"]
    ends = int((ids[0] == VIDEO).nonzero()[-1]) + 2
    left = {"the video's end": ends, "the text before it": 2, "the start": 0}[where]
    with adatp.accelerate(model, CONFIG):
        _, _, cache = generate(model, inputs, max_new_tokens=2)
        if where == "the video's end":
            whole = copy.deepcopy(cache)
            whole.crop(left - whole.get_seq_length())
            expected = again(model, ids[:, :left], whole)
        else:  # causal: as if the rest had never been there
            start = torch.cat([ids[:, :left], torch.tensor([QUESTION])], 1)
            expected = generate(
                model, {"input_ids": start, "attention_mask": torch.ones_like(start)}, max_new_tokens=3
            )[1]
        generate(model, others(family)["a video"], max_new_tokens=1)
        cache.crop(left - 3 - cache.get_seq_length() if left == 0 else left - cache.get_seq_length())
        assert cache.get_seq_length() == left
        assert (again(model, ids[:, :left], cache) - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_of_two_turns(family):
    """What the second video changes is carried, too, and is gone with it."""

    def second(model, sequences, cache):
        more = prompt(family, frames=4, shots=2, seed=1, before=(12, 13), after=(14, 15, 16))
        ids = torch.cat([sequences, more["input_ids"]], dim=1)
        both = {**more, "input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache}
        return generate(model, {**both, "mm_token_type_ids": 2 * (ids == VIDEO).int()}, max_new_tokens=2)

    model = build(family)
    with adatp.accelerate(model, CONFIG):
        sequences, _, cache = generate(model, prompt(family), max_new_tokens=2)
        first = again(model, sequences, cache)
        try:
            longer, _, held = second(model, sequences, copy.deepcopy(cache))
        except ValueError as error:
            if not isinstance(error.__cause__, StopIteration):
                raise
            pytest.skip("this version of transformers cannot place a second video, pruned or not")
        expected = again(model, longer, held)
        generate(model, TEXT, max_new_tokens=1)
        assert again(model, longer, held).equal(expected)
        held.crop(cache.get_seq_length() - held.get_seq_length())
        assert (again(model, sequences, held) - first).abs().max() <= TOLERANCE


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_an_interrupted_continuation_leaves_the_model_as_it_was(error):
    model = build("qwen2_vl")

    def fail(*_):
        raise error

    run = adatp.accelerate(model, CONFIG)
    sequences, _, cache = generate(model, prompt("qwen2_vl"), max_new_tokens=2)
    generate(model, TEXT, max_new_tokens=1)
    left = model.model.rope_deltas
    hook = model.model.language_model.layers[4].mlp.register_forward_pre_hook(fail)
    with pytest.raises(error):
        again(model, sequences, cache)
    assert model.model.rope_deltas is left
    with pytest.raises(error):
        model(input_ids=torch.tensor([[12, 13]]), past_key_values=copy.deepcopy(cache))
    assert model.model.rope_deltas is left
    with pytest.raises(ValueError, match="no pixels came"):
        model(input_ids=torch.tensor([[12, VIDEO]]), past_key_values=copy.deepcopy(cache))
    assert model.model.rope_deltas is left
    hook.remove()
    run.remove()


def test_the_model_is_left_as_it_was():
    model = build("qwen2_vl")
    with adatp.accelerate(model, CONFIG):
        sequences, _, cache = generate(model, prompt("qwen2_vl"), max_new_tokens=2)
    generate(model, TEXT, max_new_tokens=1)
    before = snapshot(model)
    with adatp.accelerate(model, CONFIG), torch.no_grad():
        again(model, sequences, cache)
        model(input_ids=torch.tensor([[12, 13]]), past_key_values=copy.deepcopy(cache))
    assert_unchanged(model, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_which_nothing_is_dropped(family):
    """Its cache is one of transformers' own, and goes on as that does."""
    model, config = build(family), adatp.AdaTPConfig(target_flops=1.0, stages=(2, 3), spatial_dedup="off")
    sequences, _, cache = generate(model, prompt(family), max_new_tokens=2)
    expected = again(model, sequences, cache)
    with adatp.accelerate(model, config) as run:
        sequences, _, cache = generate(model, prompt(family), max_new_tokens=2)
        assert run.report().actual_tokens[-1] == run.report().actual_tokens[0]
        assert (again(model, sequences, cache) - expected).abs().max() <= TOLERANCE
