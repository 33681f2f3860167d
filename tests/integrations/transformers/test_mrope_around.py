"""mrope_positions around a model: with accelerate, asked for twice, by threads, removed, copied, compiled, adapted, refused."""

import copy
import inspect
import pickle
import threading

import pytest
import torch
import transformers
from family_models import build, prompt
from masked_reference import TOLERANCE, MaskedReference, generate
from mrope_prompts import SHAPES, given, positions_of
from snapshots import assert_unchanged, snapshot

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import families

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
BY_TIME = ("qwen2_vl", "qwen2_5_vl")


@pytest.mark.parametrize("family", BY_TIME)
@pytest.mark.parametrize("outer", ["accelerate", "mrope_positions"])
def test_with_accelerate(family, outer):
    """What is kept is chosen from the right places, and read from them, however the two are nested."""
    inputs, more = prompt(family, frames=9), prompt(family, frames=4, seed=2)
    model = build(family)
    generate(model, more, max_new_tokens=1)  # transformers installs hooks of its own at the first call
    model.model.rope_deltas = None
    before = snapshot(model)
    entered = [lambda: adatp.accelerate(model, CONFIG), lambda: adatp.mrope_positions(model)]
    first, second = entered if outer == "accelerate" else reversed(entered)
    with first() as one, second() as other:
        run = one if outer == "accelerate" else other
        sequences, logits, cache = generate(model, inputs, max_new_tokens=5)
        survivors = run.report().survivors
        generate(model, more, max_new_tokens=1)
        ids = torch.cat([sequences, torch.tensor([[12, 13]])], 1)
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache}
        following = generate(model, again, max_new_tokens=3)[1]
    model.model.rope_deltas = None
    assert_unchanged(model, before)
    full = build(family, "eager")
    reference = MaskedReference(full)
    reference.add(survivors, 0, inputs["input_ids"].shape[1])
    with adatp.mrope_positions(full):
        expected_sequences, expected, cache = generate(full, inputs, max_new_tokens=5)
        assert sequences.equal(expected_sequences) and (logits - expected).abs().max() <= TOLERANCE
        expected = generate(full, {**again, "past_key_values": cache}, max_new_tokens=3)[1]
        assert (following - expected).abs().max() <= TOLERANCE
    reference.remove()
    reference = MaskedReference(full)
    reference.add(survivors, 0, inputs["input_ids"].shape[1])
    assert (logits - generate(full, inputs, max_new_tokens=5)[1]).abs().max() > 1e-2  # transformers' own places


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [None, Stop, KeyboardInterrupt])
def test_the_model_is_left_as_it_was(error):
    model = build("qwen2_5_vl")
    inputs = prompt("qwen2_5_vl", frames=9)
    before = snapshot(model)

    def fail(*_):
        raise error

    with pytest.raises(error) if error else adatp.mrope_positions(model):
        if error:
            with adatp.mrope_positions(model):
                hook = model.model.visual.register_forward_pre_hook(fail)
                try:
                    model(**inputs)
                finally:
                    hook.remove()
    model.model.rope_deltas = None
    assert_unchanged(model, before)
    run = adatp.mrope_positions(model)
    assert "get_rope_index" in vars(model.model)
    run.remove()
    run.remove()
    assert_unchanged(model, before)
    with pytest.raises(RuntimeError, match="mrope_positions: these were removed"), run:
        pass


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_who_asked_twice_is_served_until_both_have_left(order):
    model, inputs = build("qwen2_vl"), given(SHAPES["square"])
    before = snapshot(model)
    runs = [adatp.mrope_positions(model) for _ in range(2)]
    runs[order[0]].remove()
    runs[order[0]].remove()
    assert positions_of(model, inputs)[1] == [26]
    runs[order[1]].remove()
    assert_unchanged(model, before)


def test_threads_come_and_go():
    model, inputs, wrong = build("qwen2_vl"), given(SHAPES["square"]), []
    before = snapshot(model)

    def ask():
        for _ in range(30):
            with adatp.mrope_positions(model):
                wrong.extend(end for end in positions_of(model, inputs)[1] if end != 26)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert_unchanged(model, before)


def test_a_model_is_not_copied_meanwhile():
    model = build("qwen2_vl")
    with adatp.mrope_positions(model):
        for use in (copy.deepcopy, pickle.dumps):
            with pytest.raises(RuntimeError, match="model: a model under mrope_positions cannot be copied"):
                use(model)
    assert "get_rope_index" not in vars(copy.deepcopy(model).model)


def test_what_was_compiled_before_notices():
    model, inputs = build("qwen2_vl"), given(SHAPES["square"])
    names = ("input_ids", "mm_token_type_ids", "video_grid_thw", "attention_mask")
    rest = {"image_grid_thw": None, "inputs_embeds": None, "past_key_values": None}
    if "cache" in inspect.signature(model.model.compute_3d_position_ids).parameters:
        rest["cache"] = rest.pop("past_key_values")
    arguments = {**{name: inputs[name] for name in names}, **rest}
    compiled = torch.compile(model.model.compute_3d_position_ids, backend="eager")
    for _ in range(2):
        assert compiled(**arguments)[0, 0, -1] == 11
        with adatp.mrope_positions(model):
            assert compiled(**arguments)[0, 0, -1] == 25


def test_adapted_and_bare_models():
    peft = pytest.importorskip("peft")
    model, inputs = build("qwen2_vl"), given(SHAPES["square"])
    with adatp.mrope_positions(model.model):
        assert positions_of(model, inputs)[1] == [26]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    with adatp.mrope_positions(adapted):
        assert positions_of(model, inputs)[1] == [26]


def test_unknown_models_are_refused(monkeypatch):
    with pytest.raises(TypeError, match="model: expected a transformers model, got str"):
        adatp.mrope_positions("qwen2_vl")
    with pytest.raises(ValueError, match="model: LlamaModel .* is of no supported family"):
        adatp.mrope_positions(transformers.LlamaModel(transformers.LlamaConfig(
            hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=32
        )))  # fmt: skip

    class Mine(adatp.Family):
        model_type = "mine"

    monkeypatch.setattr(families, "FAMILIES", {**families.FAMILIES, "mine": Mine()})
    model = build("qwen3_vl")
    monkeypatch.setattr(type(model.config), "model_type", "mine")
    with pytest.raises(ValueError, match=r"model: mrope_positions knows .*qwen2_vl.* got Qwen3VLModel .*'mine'"):
        adatp.mrope_positions(model)
