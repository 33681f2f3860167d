"""accelerate leaves the model exactly as it was, whatever happens meanwhile."""

import dataclasses

import pytest
import torch
from small_models import (
    ATTENTION,
    CONFIG,
    generate,
    llava_onevision,
    prompt,
)
from snapshots import assert_unchanged, snapshot

import adatp_kernels as adatp


@pytest.mark.parametrize("attention", ATTENTION)
def test_model_is_restored(attention):
    model, inputs = llava_onevision(attention), prompt()
    expected = generate(model, inputs, max_new_tokens=3)[1]  # transformers installs hooks of its own at the first call
    before = snapshot(model)
    with adatp.accelerate(model, CONFIG):
        generate(model, inputs, max_new_tokens=3)
    assert_unchanged(model, before)
    run = adatp.accelerate(model, CONFIG)
    run.remove()
    run.remove()
    assert_unchanged(model, before)
    assert torch.equal(generate(model, inputs, max_new_tokens=3)[1], expected)


@pytest.mark.parametrize(
    "refused",
    [
        {"config": dataclasses.replace(CONFIG, prior="nowhere.safetensors")},
        {"config": dataclasses.replace(CONFIG, stages=(1, 15))},
        {"config": CONFIG, "relevance": "much"},
        {"config": CONFIG, "images": "drop"},
    ],
    ids=lambda given: list(given)[-1],
)
def test_a_refused_accelerate_leaves_the_model_as_it_was(refused):
    model = llava_onevision()
    before = snapshot(model)
    with pytest.raises((TypeError, ValueError)):
        adatp.accelerate(model, **refused)
    assert_unchanged(model, before)


class Stop(Exception):
    pass


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("where", ["decode", "norm", "attention", "mlp", "vision", "body"])
def test_model_is_restored_when_generate_raises_half_way(attention, where):
    model, inputs = llava_onevision(attention), prompt()
    generate(model, inputs, max_new_tokens=1)  # transformers installs hooks of its own at the first call
    decoder = model.model.language_model
    target = {
        "norm": decoder.layers[3].input_layernorm,  # between the tap's opening and its reading, as is the next
        "attention": decoder.layers[3].self_attn.q_proj,
        "mlp": decoder.layers[3].mlp,
        "vision": model.model.vision_tower,
    }.get(where)

    def fail(*_):
        raise Stop

    hook = target.register_forward_hook(fail) if target is not None else None
    before = snapshot(model)
    steps = []

    def fail_in_the_third_step(ids, scores):
        steps.append(ids)
        if where == "decode" and len(steps) == 3:
            raise Stop
        return scores

    with pytest.raises(Stop), adatp.accelerate(model, CONFIG):
        generate(model, inputs, logits_processor=[fail_in_the_third_step])
        raise Stop
    assert_unchanged(model, before)
    if hook is not None:
        hook.remove()
    # After a failure the model can be accelerated again, and works.
    with adatp.accelerate(model, CONFIG):
        again = generate(model, inputs, max_new_tokens=2)[1]
    fresh = llava_onevision(attention)
    with adatp.accelerate(fresh, CONFIG):
        assert torch.equal(generate(fresh, inputs, max_new_tokens=2)[1], again)


def test_a_failed_prompt_leaves_nothing_behind():
    model, inputs = llava_onevision(), prompt()
    with adatp.accelerate(model, CONFIG) as run:
        expected = generate(model, inputs, max_new_tokens=2)[1]
        hook = model.model.language_model.layers[5].mlp.register_forward_pre_hook(
            lambda *_: (_ for _ in ()).throw(Stop())
        )
        with pytest.raises(Stop):
            generate(model, prompt(seed=9))
        hook.remove()
        assert run.report().segments == (0, 0, 1, 1, 2, 2)
        assert torch.equal(generate(model, inputs, max_new_tokens=2)[1], expected)


def test_an_interrupted_prompt_does_not_score_the_next():
    """Ctrl-C between a layer's attention and its end: no hook runs, and what the tap saw must not be used."""
    model, inputs = llava_onevision(), prompt()
    other = prompt(seed=9)
    with adatp.accelerate(model, CONFIG):
        expected = generate(model, other, max_new_tokens=1)[1]

    def interrupt(*_):
        raise KeyboardInterrupt

    with adatp.accelerate(model, CONFIG) as run:
        for layer in (1, 3, 6, 9):
            hook = model.model.language_model.layers[layer].mlp.register_forward_pre_hook(interrupt)
            with pytest.raises(KeyboardInterrupt):
                generate(model, inputs, max_new_tokens=1)
            hook.remove()
            assert torch.equal(generate(model, other, max_new_tokens=1)[1], expected)
        with pytest.raises(KeyboardInterrupt):
            hook = model.model.language_model.layers[1].mlp.register_forward_pre_hook(interrupt)
            generate(model, inputs, max_new_tokens=1)
        hook.remove()
        run.remove()
        assert all(tap.seen is None for tap in run._taps.values())
