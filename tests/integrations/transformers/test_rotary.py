"""Decoders whose layers are given different position embeddings: each layer's own are cut."""

import dataclasses

import pytest
import torch
from family_models import batch_of, build, prompt
from masked_reference import TOLERANCE, MaskedReference, generate, survivors_of

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.rotary import OtherRotaries, parts_of

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))


def with_rotaries(model, kinds):
    """Give layer i of the decoder rotary embeddings ``kinds[i % len(kinds)]``: 0 are its own, 1 and 2 turn by other angles.

    Layers with the same are given the same object, as decoders have it.
    """
    made = {}

    def other(kind):
        def give(layer, args, kwargs):
            own = kwargs["position_embeddings"]
            if made.get(0) is not own:
                made.clear()
                made[0] = own
            if kind not in made:
                angle = torch.atan2(own[1], own[0]) * (0.5 + kind)
                made[kind] = (angle.cos(), angle.sin())
            return args, {**kwargs, "position_embeddings": made[kind]}

        return give

    for number, layer in enumerate(model.model.language_model.layers):
        layer.register_forward_pre_hook(other(kinds[number % len(kinds)]), with_kwargs=True)
    return model


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("kinds", [(0, 1), (1, 0, 2), (0, 0, 0, 0, 1)], ids=str)
@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_every_layer_keeps_its_own_rotary(family, kinds, compact):
    inputs = batch_of([prompt(family), prompt(family, shots=2, seed=1, after=(7, 8))])
    model = with_rotaries(build(family), kinds)
    with adatp.accelerate(model, dataclasses.replace(CONFIG, compact_cache=compact)) as run:
        _, logits, _ = generate(model, inputs, max_new_tokens=4)
        survivors = survivors_of(run, 2)
    full = with_rotaries(build(family, "eager"), kinds)
    MaskedReference(full, compact=compact).add(survivors, 0, inputs["input_ids"].shape[1])
    expected = generate(full, inputs, max_new_tokens=4)[1]
    assert (logits - expected).abs().max() <= TOLERANCE
    # Sensitivity: with one rotary for all layers other logits come out.
    plain = build(family, "eager")
    MaskedReference(plain, compact=compact).add(survivors, 0, inputs["input_ids"].shape[1])
    assert (generate(plain, inputs, max_new_tokens=4)[1] - expected).abs().max() > 100 * TOLERANCE


def test_another_turn_on_a_cache_of_such_a_model():
    """The first layers hold every column, the others a part, before anything of the second prompt is dropped."""
    family, kinds = "llava_onevision", (0, 1)
    model, first, second = with_rotaries(build(family), kinds), prompt(family), prompt(family, seed=3, before=(40,))
    with adatp.accelerate(model, CONFIG) as run:
        sequences, _, cache = generate(model, first, max_new_tokens=2)
        before = survivors_of(run, 1)
        ids = torch.cat([sequences, second["input_ids"]], 1)
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache}
        _, logits, _ = generate(model, {**second, **again}, max_new_tokens=3)
        after = survivors_of(run, 1)
    full = with_rotaries(build(family, "eager"), kinds)
    reference = MaskedReference(full)
    length = first["input_ids"].shape[1]
    reference.add(before, 0, length)
    _, _, cache = generate(full, first, max_new_tokens=2)
    reference.add(after, length + 1, second["input_ids"].shape[1] + 1)
    expected = generate(full, {**second, **again, "past_key_values": cache}, max_new_tokens=3)[1]
    assert (logits - expected).abs().max() <= TOLERANCE


def test_layers_that_share_position_embeddings_share_what_is_left():
    generator = torch.Generator().manual_seed(0)
    cos, sin = (torch.randn(3, 2, 9, 8, generator=generator) for _ in range(2))
    kept, fewer = torch.tensor([[0, 2, 5], [1, 2, 8]]), torch.tensor([[0, 5], [1, 8]])
    rotaries, given = OtherRotaries(), (cos, sin)
    left = rotaries.left(given, kept)
    for part, whole in zip(left, given, strict=True):
        assert part.equal(torch.stack([whole[:, row, tokens] for row, tokens in enumerate(kept)], 1))
    assert rotaries.left(given, kept) is left and rotaries.left((cos, sin), kept) is not left
    assert rotaries.left(given, fewer)[0].shape == (3, 2, 2, 8)
    assert rotaries.left(None, kept) is None  # a layer without any


@pytest.mark.parametrize("given", [torch.ones(1, 9, 4), (torch.ones(9, 4),), "none", [1, 2]], ids=str)
def test_what_is_no_cos_and_sin_is_refused(given):
    with pytest.raises(TypeError, match=r"model: .*position_embeddings are cos and sin, .* got "):
        parts_of(given)


def test_layers_without_position_embeddings_are_refused():
    model = build("llava_onevision")
    for layer in model.model.language_model.layers:
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {k: v for k, v in kwargs.items() if k != "position_embeddings"}),
            with_kwargs=True,
        )
    with (
        adatp.accelerate(model, CONFIG),
        torch.no_grad(),
        pytest.raises(TypeError, match="model: accelerate supports decoder layers that are given position_embeddings"),
    ):
        model(**prompt("llava_onevision"))
