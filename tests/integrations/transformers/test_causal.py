"""Decoders whose tokens see what comes behind them are refused: by what they say, or at the first prompt by their mask."""

import pytest
import torch
import transformers
from family_models import VIDEO, batch_of, build, prompt
from masked_reference import generate
from snapshots import assert_unchanged, snapshot

import adatp_kernels as adatp
from adatp_kernels import VisualLayout
from adatp_kernels.integrations.transformers.causal import check_causal_mask

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
MASKED = ["eager", "sdpa", "adatp"]


def masks_by_kinds(
    config, inputs_embeds, attention_mask, past_key_values, position_ids, mm_token_type_ids=None, **more
):
    """As models have it whose visual tokens see each other; it is only looked at."""


SAYS = {
    "is_causal=False": lambda model: setattr(model.model.language_model.config, "is_causal", False),
    "use_bidirectional_attention='vision'": lambda model: setattr(
        model.model.language_model.config, "use_bidirectional_attention", "vision"
    ),
    "an attention with is_causal=False": lambda model: setattr(
        model.model.language_model.layers[3].self_attn, "is_causal", False
    ),
    "whose masks depend on mm_token_type_ids": lambda model: setattr(
        model, "create_masks_for_generate", masks_by_kinds
    ),
}


@pytest.mark.parametrize("says", SAYS)
def test_what_a_model_says(says):
    model = build("llava_onevision")
    SAYS[says](model)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"model: accelerate supports decoders that are causal only, got .*{says}"):
        adatp.accelerate(model, CONFIG)
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", ["PaliGemma", "Gemma3", "Molmo2"])
def test_what_models_of_transformers_say(name, monkeypatch):
    kind = getattr(transformers, f"{name}ForConditionalGeneration", None)
    if kind is None:
        pytest.skip(f"this version of transformers has no {name}")
    model = build("llava_onevision")
    monkeypatch.setattr(type(model), "create_masks_for_generate", kind.create_masks_for_generate, raising=False)
    with pytest.raises(ValueError, match="whose masks depend on (mm_)?token_type_ids"):
        adatp.accelerate(model, CONFIG)


def seeing_each_other(model, block):
    """Let tokens ``block(ids)`` [B, T] of a prompt see each other, as masks of newer models do, before the layers get it."""
    held = {}

    def remember(_, args, kwargs):
        held["ids"] = kwargs["input_ids"]

    def change(_, args, kwargs):
        mask, among = kwargs["attention_mask"], block(held["ids"])
        if among.shape[1] > 1:
            length = among.shape[1]
            past = 0 if mask is None else mask.shape[-1] - length
            if mask is None:
                mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
            both = torch.nn.functional.pad(among[:, None, :, None] & among[:, None, None, :], (past, 0))
            mask = mask | both if mask.dtype == torch.bool else mask.masked_fill(both, 0)
        return args, {**kwargs, "attention_mask": mask}

    model.model.register_forward_pre_hook(remember, with_kwargs=True)
    for layer in model.model.language_model.layers:
        layer.register_forward_pre_hook(change, with_kwargs=True)
    return model


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("block", ["video", "two tokens of it", "the question"])
@pytest.mark.parametrize("attention", MASKED)
def test_what_a_mask_says(attention, block, padded):
    two = lambda ids: (ids == VIDEO) & ((ids == VIDEO).cumsum(1).clamp(max=7) < 7) & ((ids == VIDEO).cumsum(1) > 4)  # noqa: E731
    blocks = {
        "video": lambda ids: ids == VIDEO,
        "two tokens of it": two,
        "the question": lambda ids: (ids > 6) & (ids < 20),
    }
    model = seeing_each_other(build("llava_onevision", attention), blocks[block])
    inputs = prompt("llava_onevision")
    if padded:
        inputs = batch_of([inputs, prompt("llava_onevision", after=(9, 8))])
    with adatp.accelerate(model, CONFIG):
        with pytest.raises(ValueError, match="attention_mask: accelerate supports decoders that are causal only"):
            generate(model, inputs, max_new_tokens=1)
        text = torch.tensor([[1, 2, 3, 4]])
        generate(model, {"input_ids": text, "attention_mask": torch.ones_like(text)}, max_new_tokens=1)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float16])
@pytest.mark.parametrize("past", [0, 3])
def test_every_place_of_a_mask(dtype, past):
    """From the first visual token on; padding before it may see whatever keeps its softmax finite."""
    length, first = 6, 2
    layouts = [VisualLayout.grid(1, 1, start) for start in (1, first)]
    causal = torch.ones(2, 1, length, past + length, dtype=torch.bool).tril(past)
    for row in range(length - 1):
        mask = causal.clone()
        mask[1, 0, row, past + row + 1] = True
        if dtype != torch.bool:
            mask = torch.zeros(mask.shape, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
        if row < first:
            check_causal_mask(mask, layouts, past)
        else:
            with pytest.raises(ValueError, match="attention_mask"):
                check_causal_mask(mask, layouts, past)
    for unclear in (None, torch.ones(2, length), causal[..., :-1]):
        check_causal_mask(unclear, layouts, past)
