"""accelerate: generation equals the full sequence with the pruned keys masked, and the model is left as it was."""

import copy
import gc
import weakref

import pytest
import torch
import transformers
from small_models import CELLS, LAYERS, VIDEO, MaskedReference, generate, llava_onevision, prompt
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.cache import CompactedLayer, PrunedLayer
from adatp_kernels.integrations.transformers.prefill import VideoPrefill
from adatp_kernels.ops import functional, reference

ATTENTION = ("eager", "sdpa", "adatp")
CONFIG = adatp.AdaTPConfig(target_flops=0.4, stages=(1, 3, 6, 9))
TOLERANCE = 1e-5


def masked(inputs, survivors, *, compact=False, **options):
    """Sequences and logits of the masked full-sequence model."""
    model = llava_onevision("eager")
    reference = MaskedReference(model, compact=compact)
    reference.add(survivors, 0, inputs["input_ids"].shape[1])
    return generate(model, inputs, **options)


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
    assert report.backends["column_sums"] == "reference"
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
@pytest.mark.parametrize("second_video", [False, True])
def test_second_turn_on_the_same_cache(attention, compact, second_video):
    def turns(model, before_second=lambda cache_length: None):
        inputs = prompt()
        sequences, first, cache = generate(model, inputs, max_new_tokens=4)
        before_second(sequences.shape[1] - 1)
        more = prompt(frames=4, shots=2, seed=1, before=(12, 13), after=(14, 15, 16))
        new = more["input_ids"] if second_video else torch.tensor([[12, 13, 14]])
        ids = torch.cat([sequences, new], dim=1)
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": cache}
        if second_video:
            # generate hands over only what the cache has not seen: the last new token and the new turn.
            again["pixel_values_videos"] = more["pixel_values_videos"]
        _, second, _ = generate(model, again, max_new_tokens=6)
        return first, second, ids.shape[1]

    model = llava_onevision(attention)
    config = adatp.AdaTPConfig(target_flops=0.4, stages=(1, 3, 6, 9), compact_cache=compact)
    kept = []
    with adatp.accelerate(model, config) as run:
        first, second, total = turns(
            model, lambda seen: kept.append((run.report().survivors, 0, prompt()["input_ids"].shape[1], seen))
        )
        if second_video:
            survivors, _, _, seen = kept[0]
            kept.append((run.report().survivors, seen, total - seen, None))

    full = llava_onevision("eager")
    reference = MaskedReference(full, compact=compact)
    for survivors, start, length, _ in kept:
        reference.add(survivors, start, length)
    expected_first, expected_second, _ = turns(full)
    assert (first - expected_first).abs().max() <= TOLERANCE
    assert (second - expected_second).abs().max() <= TOLERANCE


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
        # Padding counts as text, so it is never pruned: the five stay in front.
        assert kept_padded.tolist() == [*range(5), *(kept + 5).tolist()]


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


# The model is left exactly as it was.


def snapshot(model):
    """Everything a module tree holds: attributes by identity, hooks, parameters by value."""
    tree = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            tree[name, key] = dict(value) if isinstance(value, dict) else value
    return (
        tree,
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        copy.deepcopy(model.config.to_dict()),
    )


def assert_unchanged(model, before):
    tree, state, config = snapshot(model)
    assert tree.keys() == before[0].keys()
    for key, value in tree.items():
        old = before[0][key]
        assert value == old if isinstance(value, dict) else value is old, key
    assert all(torch.equal(state[name], before[1][name]) for name in state)
    assert config == before[2]


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


class Stop(Exception):
    pass


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("where", ["decode", "attention", "mlp", "vision", "body"])
def test_model_is_restored_when_generate_raises_half_way(attention, where):
    model, inputs = llava_onevision(attention), prompt()
    generate(model, inputs, max_new_tokens=1)  # transformers installs hooks of its own at the first call
    decoder = model.model.language_model
    target = {
        "attention": decoder.layers[3].self_attn.q_proj,  # between the tap's opening and its reading
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


# What is not supported says so before the first token.


def test_refusals_name_what_is_wrong():
    model, inputs = llava_onevision(), prompt()
    twice = {name: torch.cat([tensor] * 2) for name, tensor in inputs.items()}
    embeddings = {name: tensor for name, tensor in inputs.items() if name != "input_ids"}
    padded = {**inputs, "attention_mask": inputs["attention_mask"].clone().index_fill_(1, torch.tensor([0]), 0)}
    with adatp.accelerate(model, CONFIG):
        with pytest.raises(RuntimeError, match="accelerated already"):
            adatp.accelerate(model, CONFIG)
        with pytest.raises(ValueError, match=r"input_ids: .*batch of 2"):
            generate(model, twice)
        with pytest.raises(ValueError, match=r"input_ids: .*num_beams"):
            generate(model, inputs, num_beams=2)
        with pytest.raises(ValueError, match=r"past_key_values: .*StaticLayer"):
            generate(model, inputs, cache_implementation="static", disable_compile=True)
        with pytest.raises(ValueError, match=r"past_key_values: an offloaded cache"):
            generate(model, inputs, cache_implementation="offloaded")
        with pytest.raises(ValueError, match=r"input_ids: expected 6 frames"):
            generate(model, {**inputs, "input_ids": inputs["input_ids"][:, :-9]})
        with pytest.raises(ValueError, match=r"pixel_values_videos: expected one video"):
            model(**{**inputs, "pixel_values_videos": twice["pixel_values_videos"]})
        with pytest.raises(ValueError, match="inputs_embeds"):
            model(inputs_embeds=torch.randn(1, inputs["input_ids"].shape[1], 64), **embeddings)
        with pytest.raises(ValueError, match=r"logits_to_keep: .*Assisted decoding"):
            generate(model, prompt(after=(7, 8, 9, 7, 8)), prompt_lookup_num_tokens=3)
        with pytest.raises(ValueError, match=r"logits_to_keep: .*tensor"):
            model(**inputs, logits_to_keep=torch.tensor([5]))
        with pytest.raises(ValueError, match=r"pixel_values_videos: .*prefill_chunk_size"):
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
    with (
        adatp.accelerate(model, adatp.AdaTPConfig(target_flops=0.4, stages=(1, 3), compact_cache=True)),
        pytest.raises(ValueError, match=r"compact_cache: .*padding"),
    ):
        generate(model, padded)


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


# How it runs.


def test_adatp_attention_reuses_its_lse(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the LSE was recomputed")

    monkeypatch.setattr(reference, "row_lse", refuse)
    inputs = prompt()
    model = llava_onevision("adatp")
    with adatp.accelerate(model, CONFIG):
        generate(model, inputs, max_new_tokens=1)
    model = llava_onevision("sdpa")
    with adatp.accelerate(model, CONFIG), pytest.raises(AssertionError, match="recomputed"):
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


def test_no_stage_waits_for_the_device(monkeypatch):
    """What would read a device's values back raises while a stage runs."""
    model, inputs = llava_onevision("adatp"), prompt()
    stage, range_check = VideoPrefill.after_layer, functional.checks.gather_inputs
    waiting = ("item", "tolist", "nonzero", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__")
    stages = []

    def refuse(*_, **__):
        raise AssertionError("a stage waits for the device")

    def guarded(*args, **kwargs):
        stages.append(args[1])
        with monkeypatch.context() as patch:
            for name in waiting:
                patch.setattr(torch.Tensor, name, refuse)
            # On the CPU, and only there, gather looks at the largest index; skip that look here.
            patch.setattr(
                functional.checks,
                "gather_inputs",
                lambda i, tensors, dims, **_: [d if isinstance(d, tuple) else (0, d) for d in dims],
            )
            return stage(*args, **kwargs)

    monkeypatch.setattr(VideoPrefill, "after_layer", guarded)
    with adatp.accelerate(model, CONFIG) as run:
        generate(model, inputs, max_new_tokens=1)
    assert stages == [layer for layer, _ in run.report().survivors] and stages
    assert functional.checks.gather_inputs is range_check


def test_every_frame_is_its_own_video_token_block():
    """Guards the fixture itself: the prompt holds one newline after the frames, which is text."""
    ids = prompt()["input_ids"][0]
    assert int((ids == VIDEO).sum()) == 6 * CELLS + 1
