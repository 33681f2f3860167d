"""accelerate: generation equals the full sequence with the pruned keys masked."""

import copy
import gc
import weakref

import pytest
import torch
import transformers
from small_models import (
    ATTENTION,
    CELLS,
    CONFIG,
    LAYERS,
    TOLERANCE,
    MaskedReference,
    generate,
    llava_onevision,
    masked,
    prompt,
)

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.cache import PrunedLayer


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("attention", ATTENTION)
def test_generation_equals_the_masked_full_sequence(attention, compact):
    model, inputs = llava_onevision(attention), prompt()
    config = adatp.AdaTPConfig(target_flops=0.4, stages=(1, 3, 6, 9), compact_cache=compact)
    with adatp.accelerate(model, config) as run:
        sequences, logits, _ = generate(model, inputs)
    report = run.report()
    expected_sequences, expected, _ = masked(inputs, report.survivors, compact=compact)
    assert len(logits) == 20
    assert (logits - expected).abs().max() <= TOLERANCE
    assert torch.equal(sequences, expected_sequences)
    # Sensitivity: the same comparison fails against a model that was not pruned.
    assert (logits - generate(llava_onevision("eager"), inputs)[1]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize(
    "options",
    [
        {"queries": "last"},
        {"spatial_dedup": "off"},
        {"spatial_dedup": "soft", "soft_weight": 0.5},
        {"schedule": "linear"},
        {"schedule": (0.5, 0.3, 0.1, 0.0), "target_flops": None},
        {"segment_threshold": -1.0},
        {"score": "random", "seed": 3},
        {"score": "uniform", "spatial_dedup": "off"},
    ],
    ids=lambda options: "-".join(f"{key}={value}" for key, value in options.items()),
)
def test_every_option_equals_the_masked_full_sequence(options):
    model, inputs = llava_onevision("sdpa"), prompt()
    with adatp.accelerate(model, adatp.AdaTPConfig(**{"target_flops": 0.4, "stages": (1, 3, 6, 9), **options})) as run:
        _, logits, _ = generate(model, inputs, max_new_tokens=4)
    _, expected, _ = masked(inputs, run.report().survivors, max_new_tokens=4)
    assert (logits - expected).abs().max() <= TOLERANCE
    assert run.report().actual_tokens[-1] < run.report().actual_tokens[0]


@pytest.mark.parametrize("queries", ["text", "last"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_survivors_are_those_of_the_materialised_attention_map(attention, queries):
    inputs = prompt()
    length = inputs["input_ids"].shape[1]
    model = llava_onevision(attention)
    with adatp.accelerate(model, adatp.AdaTPConfig(target_flops=0.4, stages=(1, 3, 6), queries=queries)) as run:
        generate(model, inputs, max_new_tokens=1)
    report = run.report()
    full = llava_onevision("eager")
    reference = MaskedReference(full)
    reference.add(report.survivors, 0, length)
    with torch.no_grad():
        maps = full(**inputs, output_attentions=True).attentions
    first, last = report.layout.key_range
    rows = slice(last, length) if queries == "text" else slice(length - 1, length)
    alive = torch.ones(length, dtype=torch.bool)
    for stage, (layer, kept) in zip(
        [s for s in report.plan.stages if s.layer in dict(report.survivors)], report.survivors, strict=True
    ):
        assert stage.layer == layer
        scores = maps[layer][0, :, rows].mean((0, 1))[first:last]
        column = alive[first:last].nonzero()[:, 0]
        segments = torch.tensor(report.segments)[report.layout.frame]
        chosen = adatp.ops.select(
            scores[None, column], segments[column], report.layout.position[column], [stage.budgets]
        )
        alive[first:last] = False
        alive[first + column[chosen[0]]] = True
        assert torch.equal(kept, alive.nonzero()[:, 0])


def test_report_tells_what_ran():
    model, inputs = llava_onevision(), prompt()
    with adatp.accelerate(model, CONFIG) as run:
        generate(model, inputs)
    report = run.report()
    text = inputs["input_ids"].shape[1] - 6 * CELLS
    assert report.segments == (0, 0, 1, 1, 2, 2)
    assert report.text_tokens == text == 9
    assert report.actual_tokens == report.planned_tokens == report.plan.tokens_per_layer
    assert len(report.actual_tokens) == LAYERS and report.actual_tokens[0] == 6 * CELLS
    assert report.actual_flops_ratio == report.planned_flops_ratio
    assert report.survivors[-1][1].tolist() == sorted(set(report.survivors[-1][1].tolist()))
    assert all(seconds > 0 for seconds in report.seconds.values()) and set(report.seconds) == {
        "score",
        "select",
        "compact",
    }
    fastest = "native" if adatp.backend_report().available["native"] else "reference"
    assert report.backends["prune"] == fastest
    assert "3 segments" in str(report) and f"{report.actual_flops_ratio:.4f}" in str(report)


def test_target_is_met_when_caps_do_not_bind():
    model, inputs = llava_onevision(), prompt(frames=24, shots=24)
    with adatp.accelerate(model, adatp.AdaTPConfig(target_flops=0.35)) as run:
        generate(model, inputs, max_new_tokens=1)
    report = run.report()
    assert not report.plan.capped
    assert abs(report.actual_flops_ratio - 0.35) <= 0.005


def test_caches_hold_what_was_left_and_report_the_logical_length():
    inputs = prompt()
    length = inputs["input_ids"].shape[1]
    for compact in (False, True):
        model = llava_onevision()
        config = adatp.AdaTPConfig(target_flops=0.4, stages=(1, 3, 6, 9), compact_cache=compact)
        with adatp.accelerate(model, config) as run:
            _, _, cache = generate(model, inputs, max_new_tokens=5)
        report = run.report()
        held = [layer.keys.shape[2] - 4 for layer in cache.layers]  # the last new token is never fed back
        entered = [report.text_tokens + tokens for tokens in report.actual_tokens]
        assert held == ([entered[-1]] * LAYERS if compact else entered)
        assert cache.get_seq_length() == length + 4


@pytest.mark.parametrize("attention", ATTENTION)
def test_sampled_generation_equals_the_masked_full_sequence(attention):
    model, inputs = llava_onevision(attention), prompt()
    options = {"do_sample": True, "temperature": 1.5, "max_new_tokens": 16}
    with adatp.accelerate(model, CONFIG) as run:
        torch.manual_seed(7)
        sequences, logits, _ = generate(model, inputs, **options)
    full = llava_onevision("eager")
    MaskedReference(full).add(run.report().survivors, 0, inputs["input_ids"].shape[1])
    torch.manual_seed(7)
    expected_sequences, expected, _ = generate(full, inputs, **options)
    assert torch.equal(sequences, expected_sequences)
    assert (logits - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("videos", [(1, 0), (1, 1), (1, 0, 1), (1, 1, 1), (0, 1, 0)], ids=str)
def test_further_turns_on_the_same_cache(attention, compact, videos):
    """Turns with a new video and without one."""

    def turns(model, between=lambda start, length: None):
        sequences, cache, logits = torch.zeros(1, 0, dtype=torch.long), None, []
        for turn, video in enumerate(videos):
            given = prompt(frames=6 - turn, shots=3 - turn, seed=turn, before=(12 + turn, 13), after=(14, 15, 16))
            new = given["input_ids"] if video else torch.tensor([[12, 13 + turn, 14]])
            # generate hands over only what the cache has not seen: the last new token and the new turn.
            start = max(0, sequences.shape[1] - 1)
            ids = torch.cat([sequences, new], dim=1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if video:
                inputs["pixel_values_videos"] = given["pixel_values_videos"]
            if cache is not None:
                inputs["past_key_values"] = cache
            sequences, of_turn, cache = generate(model, inputs, max_new_tokens=5)
            logits.append(of_turn)
            if video:
                between(start, ids.shape[1] - start)
        return torch.cat(logits)

    model = llava_onevision(attention)
    config = adatp.AdaTPConfig(target_flops=0.4, stages=(1, 3, 6, 9), compact_cache=compact)
    kept = []
    with adatp.accelerate(model, config) as run:
        logits = turns(model, lambda start, length: kept.append((run.report().survivors, start, length)))
    assert len(kept) == sum(videos)
    full = llava_onevision("eager")
    reference = MaskedReference(full, compact=compact)
    for prompt_of in kept:
        reference.add(*prompt_of)
    assert (logits - turns(full)).abs().max() <= TOLERANCE


def test_left_padding_changes_nothing():
    inputs = prompt()
    padded = dict(inputs)
    padded["input_ids"] = torch.cat([torch.zeros(1, 5, dtype=torch.long), inputs["input_ids"]], dim=1)
    padded["attention_mask"] = torch.cat([torch.zeros(1, 5, dtype=torch.long), inputs["attention_mask"]], dim=1)
    for attention in ATTENTION:
        results = []
        for one in (inputs, padded):
            model = llava_onevision(attention)
            with adatp.accelerate(model, CONFIG) as run:
                results.append((generate(model, one, max_new_tokens=6)[1], run.report().survivors[-1][1]))
        (plain, kept), (shifted, kept_padded) = results
        assert (plain - shifted).abs().max() <= TOLERANCE
        assert kept_padded.tolist() == (kept + 5).tolist()  # padding that nobody needs goes, too


def test_without_cache_and_with_the_callers_cache():
    model, inputs = llava_onevision(), prompt()
    with adatp.accelerate(model, CONFIG), torch.no_grad():
        plain = model(**inputs, use_cache=False).logits[:, -1]
        cache = transformers.DynamicCache(config=model.config)
        cached = model(**inputs, past_key_values=cache).logits[:, -1]
        positional = model.model(
            inputs["input_ids"], pixel_values_videos=inputs["pixel_values_videos"]
        ).last_hidden_state
    assert torch.allclose(plain, cached, atol=TOLERANCE)
    assert torch.allclose(model.lm_head(positional[:, -1]), plain, atol=TOLERANCE)


def test_bare_model_without_a_head():
    model, inputs = llava_onevision().model, prompt()
    with adatp.accelerate(model, CONFIG) as run, torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    assert hidden.shape[1] == run.report().text_tokens + run.report().actual_tokens[-1]


def test_pooling_head_gives_the_frame_features():
    model, inputs = llava_onevision(vision_use_head=True), prompt()
    with torch.no_grad():
        pooled = model.model.vision_tower(inputs["pixel_values_videos"][0]).pooler_output
    with adatp.accelerate(model, CONFIG) as run:
        generate(model, inputs, max_new_tokens=1)
    assert list(run.report().segments) == adatp.segment_frames(pooled, 0.95).tolist()


def test_text_only_prompts_pass_through():
    model = llava_onevision()
    ids = torch.tensor([[1, 5, 6, 7], [0, 5, 6, 7]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    expected = generate(model, inputs, max_new_tokens=6)[1]
    with adatp.accelerate(model, CONFIG) as run:
        assert torch.equal(generate(model, inputs, max_new_tokens=6)[1], expected)
        with pytest.raises(RuntimeError, match="no video prompt has run"):
            run.report()


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_cropped_cache_serves_another_question(attention):
    """The usual reuse of a video's cache: back to the end of the video, then a new question."""
    inputs = prompt()
    video_ends = 3 + 6 * CELLS + 1
    model = llava_onevision(attention)
    with adatp.accelerate(model, CONFIG) as run:
        _, _, cache = generate(model, inputs, max_new_tokens=4)
        copied = copy.deepcopy(cache)
        cache.crop(video_ends - cache.get_seq_length())
    survivors = run.report().survivors
    results = []
    # Another acceleration, or none: what the layers hold stands in the cache itself.
    for reused in (cache, copy.deepcopy(cache)):
        ids = torch.cat([inputs["input_ids"][:, :video_ends], torch.tensor([[12, 13, 14]])], dim=1)
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": reused}
        with adatp.accelerate(model, CONFIG):
            results.append(generate(model, again, max_new_tokens=5)[1])
    full = llava_onevision("eager")
    MaskedReference(full).add(survivors, 0, inputs["input_ids"].shape[1])
    _, _, full_cache = generate(full, inputs, max_new_tokens=4)
    full_cache.crop(video_ends - full_cache.get_seq_length())
    again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": full_cache}
    for hook in [h for layer in full.model.language_model.layers for h in list(layer._forward_pre_hooks)]:
        for layer in full.model.language_model.layers:
            layer._forward_pre_hooks.pop(hook, None)
            layer._forward_pre_hooks_with_kwargs.pop(hook, None)
    reference = MaskedReference(full)
    # The question is gone, so only the video's columns are still to be masked.
    reference.add([(layer, kept[kept < video_ends]) for layer, kept in survivors], 0, video_ends)
    _, expected, _ = generate(full, again, max_new_tokens=5)
    for logits in results:
        assert (logits - expected).abs().max() <= TOLERANCE
    assert copied.get_seq_length() == inputs["input_ids"].shape[1] + 3


def test_assisted_decoding_that_starts_after_the_prompt_is_right(monkeypatch):
    """It is refused when candidates come with the prompt itself; later ones only add to the cache and crop it."""
    crop, crops = PrunedLayer.crop, []
    monkeypatch.setattr(PrunedLayer, "crop", lambda layer, tokens: (crops.append(tokens), crop(layer, tokens))[1])
    for seed in range(6):
        inputs = prompt(seed=seed)
        model = llava_onevision()
        with adatp.accelerate(model, CONFIG):
            expected = generate(model, inputs, max_new_tokens=24)[0]
            assert torch.equal(generate(model, inputs, max_new_tokens=24, prompt_lookup_num_tokens=3)[0], expected)
    assert any(crops)  # some candidates were indeed refused by the model


@pytest.mark.parametrize("queries", ["text", "last"])
def test_masked_tokens_ask_nothing(queries):
    """A token that the padding mask hides after the video neither counts as a key nor scores."""
    inputs, extra = prompt(), torch.tensor([[250, 251]])
    ids = inputs["input_ids"]
    holes = {**inputs, "input_ids": torch.cat([ids[:, :-3], extra, ids[:, -3:]], dim=1)}
    holes["attention_mask"] = torch.cat(
        [torch.ones_like(ids[:, :-3]), torch.zeros_like(extra), torch.ones_like(ids[:, -3:])], 1
    )
    position_ids = (holes["attention_mask"].cumsum(1) - 1).clamp(min=0)
    config = adatp.AdaTPConfig(target_flops=0.4, stages=(1, 3, 6), queries=queries)
    for attention in ATTENTION:
        model = llava_onevision(attention)
        with adatp.accelerate(model, config), torch.no_grad():
            plain = model(**inputs).logits[:, -1]
            masked_out = model(**holes, position_ids=position_ids).logits[:, -1]
        assert (plain - masked_out).abs().max() <= TOLERANCE


@pytest.mark.parametrize("layer_first", [True, False])
def test_hidden_states_show_what_went_on(layer_first):
    """Whether transformers installs its collecting hooks before ours or after, at its first use."""
    model, inputs = llava_onevision(), prompt()
    if layer_first:
        with torch.no_grad():
            model(**inputs, output_hidden_states=True)
    with adatp.accelerate(model, CONFIG) as run, torch.no_grad():
        lengths = [hidden.shape[1] for hidden in model(**inputs, output_hidden_states=True).hidden_states]
    report = run.report()
    entered = [report.text_tokens + tokens for tokens in report.actual_tokens]
    assert lengths == [*entered, entered[-1]]


def test_nothing_of_a_prompt_is_kept_alive():
    model, inputs = llava_onevision(), prompt()
    with adatp.accelerate(model, CONFIG) as run:
        _, _, cache = generate(model, inputs, max_new_tokens=2)
        alive = [weakref.ref(cache), weakref.ref(cache.layers[5].keys), weakref.ref(inputs["pixel_values_videos"])]
        del cache, inputs
        gc.collect()
        assert [reference() for reference in alive] == [None] * 3
        assert run.report().segments


def test_prompts_do_not_influence_each_other():
    model, inputs = llava_onevision(), prompt()
    with adatp.accelerate(model, CONFIG):
        first = generate(model, inputs)[1]
        generate(model, prompt(frames=9, seed=5))
        generate(model, {"input_ids": torch.tensor([[1, 2, 3]]), "attention_mask": torch.ones(1, 3)}, max_new_tokens=3)
        assert torch.equal(generate(model, inputs)[1], first)


def test_another_model_is_untouched_meanwhile():
    inputs = prompt()
    for attention in ATTENTION:
        one, other = llava_onevision(attention), llava_onevision(attention, seed=1)
        expected = generate(other, inputs, max_new_tokens=3)[1]
        with adatp.accelerate(one, CONFIG):
            generate(one, inputs, max_new_tokens=1)
            assert torch.equal(generate(other, inputs, max_new_tokens=3)[1], expected)
