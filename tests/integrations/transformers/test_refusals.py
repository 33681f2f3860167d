"""What accelerate does not support says so before the first token."""

import copy
import dataclasses
import inspect

import pytest
import torch
from family_models import BUILDERS, build
from family_models import prompt as family_prompt
from small_models import CONFIG, LAYERS, generate, llava_onevision, prompt
from snapshots import assert_unchanged, snapshot
from transformers import Cache, DynamicCache, GenerationConfig, StaticCache
from transformers.cache_utils import QuantizedLayer

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.cache import CompactedLayer

FAMILY_CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))


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
        with pytest.raises(ValueError, match=r"input_ids: expected .* video tokens"):
            generate(model, {**inputs, "input_ids": inputs["input_ids"][:, :-9]})
        with pytest.raises(ValueError, match="input_ids: expected more video tokens, for 1 videos"):
            model(**{**inputs, "pixel_values_videos": twice["pixel_values_videos"]})
        with pytest.raises(ValueError, match="inputs_embeds"):
            model(inputs_embeds=torch.randn(1, inputs["input_ids"].shape[1], 64), **embeddings)
        with pytest.raises(ValueError, match=r"logits_to_keep: .*tensor"):
            model(**inputs, logits_to_keep=torch.tensor([5]))
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


class Halved(QuantizedLayer):
    """The simplest of quantisers: it stores what it is given as float16."""

    def __init__(self):
        super().__init__(nbits=4, axis_key=0, axis_value=0, q_group_size=64, residual_length=4)

    def _quantize(self, tensor, axis):
        return tensor.half()

    def _dequantize(self, q_tensor):
        return q_tensor.float()


def test_refused_caches():
    model, inputs = llava_onevision(), prompt()
    sliding = copy.deepcopy(model.config.text_config)
    sliding.sliding_window, sliding.layer_types = 8, ["sliding_attention"] * LAYERS
    allowed = "past_key_values: accelerate supports a DynamicCache of full attention, got layers of "
    caches = {
        allowed + r"\['StaticLayer'\]": StaticCache(config=model.config.text_config, max_cache_len=128),
        allowed + r"\['DynamicSlidingWindowLayer'\]": DynamicCache(config=sliding),
        allowed + r"\['Halved'\]": Cache(layers=[Halved() for _ in range(LAYERS)]),
        "past_key_values: expected a transformers Cache, got tuple": (1, 2),
    }
    with adatp.accelerate(model, CONFIG), torch.no_grad():
        for message, cache in caches.items():
            with pytest.raises((ValueError, TypeError), match=message):
                model(**inputs, past_key_values=cache)
        with pytest.raises(ValueError, match=allowed + r"\['StaticLayer'\]"):
            generate(model, inputs, cache_implementation="static", disable_compile=True)
        with pytest.raises(ValueError, match="past_key_values: an offloaded cache"):
            generate(model, inputs, cache_implementation="offloaded")


@pytest.mark.parametrize("how", ["prompt_lookup_num_tokens", "configured", "assistant_model"])
@pytest.mark.parametrize("family", BUILDERS)
def test_candidates_that_come_with_the_prompt_are_refused(family, how):
    """Most families' base modules are not told how many logits are asked for, and VideoLLaMA3's head is not, either."""
    model, inputs = build(family), family_prompt(family, after=(7, 8, 9, 7, 8))
    options = {"prompt_lookup_num_tokens": 3}
    if how == "configured":
        model.generation_config.prompt_lookup_num_tokens = options.pop("prompt_lookup_num_tokens")
    if how == "assistant_model":
        options = {"assistant_model": build(family)}
    message = r"(logits_to_keep|prompt_lookup_num_tokens|assistant_model): accelerate supports .*[Aa]ssisted decoding"
    with adatp.accelerate(model, FAMILY_CONFIG), pytest.raises(ValueError, match=message):
        generate(model, inputs, **options)


@pytest.mark.parametrize("family", BUILDERS)
def test_candidates_that_come_behind_the_prompt_are_right(family):
    model, inputs, read = build(family), family_prompt(family), []
    with adatp.accelerate(model, FAMILY_CONFIG):
        expected = generate(model, inputs, max_new_tokens=20)
        model.get_input_embeddings().register_forward_hook(lambda module, args, output: read.append(args[0].shape[1]))
        assisted = generate(model, inputs, max_new_tokens=20, prompt_lookup_num_tokens=3, max_matching_ngram_size=1)
    assert max(read[1:]) > 1 and assisted[0].equal(expected[0])
    assert (assisted[1] - expected[1]).abs().max() <= 1e-5


@pytest.mark.parametrize("kept", [2, -1, torch.tensor([3])], ids=str)
@pytest.mark.parametrize("family", BUILDERS)
def test_chosen_logits_are_refused(family, kept):
    """They would be those of other tokens than were chosen, for some are gone."""
    model, inputs = build(family), family_prompt(family)
    with adatp.accelerate(model, FAMILY_CONFIG), torch.no_grad():
        with pytest.raises(ValueError, match=r"logits_to_keep: accelerate supports 0 \(all\) and 1"):
            model(**inputs, logits_to_keep=kept)
        assert model(**inputs, logits_to_keep=1).logits.shape[1] in (1, model(**inputs).logits.shape[1])
        assert model(input_ids=torch.tensor([[1, 5, 6, 7]]), logits_to_keep=kept) is not None  # text has all its logits


@pytest.mark.parametrize("score", ["attention", "random"])
@pytest.mark.parametrize("size", [1, 4, 13, 58, 1000])
def test_chunked_prefill_is_refused(size, score):
    """Chunks of 13 end with a frame, those of 58 with the video."""
    model, inputs = llava_onevision(), prompt()
    message = f"prefill_chunk_size: .* in one forward, so it has to be None, got {size}"
    with adatp.accelerate(model, dataclasses.replace(CONFIG, score=score)):
        with pytest.raises(ValueError, match=message):
            generate(model, inputs, prefill_chunk_size=size)
        ids, rest = inputs["input_ids"], {name: value for name, value in inputs.items() if name != "input_ids"}
        given = GenerationConfig(prefill_chunk_size=size)
        with pytest.raises(ValueError, match=message):
            model.generate(ids, given, **rest)
        with pytest.raises(ValueError, match=message):
            model.generate(ids, generation_config=given, **rest)
        model.generation_config.prefill_chunk_size = size
        with pytest.raises(ValueError, match=message):
            generate(model, inputs)
        with pytest.raises(ValueError, match=message):  # where the one that comes says nothing
            generate(model, inputs, generation_config=GenerationConfig(max_new_tokens=2))
        assert generate(model, inputs, max_new_tokens=1, prefill_chunk_size=None)
        model.generation_config.prefill_chunk_size = None
        generate(model, inputs, max_new_tokens=1)  # nothing of it stays


def test_text_in_chunks_passes_through():
    model, ids = llava_onevision(), torch.tensor([list(range(1, 20))])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = generate(model, inputs, max_new_tokens=3, prefill_chunk_size=8)[1]
    with adatp.accelerate(model, CONFIG):
        assert generate(model, inputs, max_new_tokens=3, prefill_chunk_size=8)[1].equal(expected)


def test_training_is_refused_with_and_without_gradient_checkpointing():
    model, inputs = llava_onevision(), prompt()
    with adatp.accelerate(model, CONFIG) as run:
        expected = generate(model, inputs, max_new_tokens=2)[1]
        model.gradient_checkpointing_enable()
        with pytest.raises(RuntimeError, match=r"inference only; call model\.eval\(\)"):
            model.train()(**inputs)
        model.eval()  # where checkpointing does nothing
        assert generate(model, inputs, max_new_tokens=2)[1].equal(expected)
        assert run.report().actual_tokens == run.report().planned_tokens


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


def test_an_attention_that_is_set_later_is_refused_too():
    """Before the first layer of a prompt, and before a pruned cache is read."""
    model, inputs = llava_onevision(), prompt()
    padded = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    padded["attention_mask"][0, 1] = 0
    with adatp.accelerate(model, CONFIG):
        sequences, _, cache = generate(model, padded, max_new_tokens=1)
        model.set_attn_implementation({"text_config": "flex_attention"})
        mask = torch.nn.functional.pad(padded["attention_mask"], (0, 1), value=1)
        for given in (inputs, {"input_ids": sequences[:, -1:], "attention_mask": mask, "past_key_values": cache}):
            with pytest.raises(ValueError, match=r"model: accelerate supports .*got 'flex_attention'"), torch.no_grad():
                model(**given)
        model.set_attn_implementation({"text_config": "sdpa"})
        generate(model, inputs, max_new_tokens=1)  # nothing of it stays


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


@pytest.mark.parametrize("how", ["forward", "generate"])
def test_options_are_scored_one_after_the_other_without_a_cache(how):
    """Prompt, prompt and an option, prompt: each is a prompt of its own, whatever came before."""
    model, inputs = llava_onevision(), prompt()

    def score(tail):
        ids = torch.cat([inputs["input_ids"], torch.tensor([tail], dtype=torch.long)], 1)
        given = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        if how == "generate":
            return generate(model, given, max_new_tokens=1)[1]
        with torch.no_grad():
            return model(**given).logits[:, -1]

    with adatp.accelerate(model, CONFIG) as run:
        tails = ((), (50,), (51,), (51, 52), ())
        scores = [score(tail) for tail in tails]
        with pytest.raises(ValueError, match="use_cache: False would prune anew"):
            generate(model, inputs, use_cache=False, max_new_tokens=2)
        assert score(()).equal(scores[0]) and scores[-1].equal(scores[0])
        assert run.report().actual_tokens[-1] < run.report().actual_tokens[0]
    for tail, expected in zip(tails, scores, strict=True):
        with adatp.accelerate(model, CONFIG):
            assert score(tail).equal(expected)


def test_layers_without_a_self_attn_are_refused():
    model = llava_onevision()
    layer = model.model.language_model.layers[2]
    layer.attention, layer._modules["self_attn"] = layer.self_attn, torch.nn.Identity()
    del layer._modules["self_attn"]
    with pytest.raises(ValueError, match=r"model: .* each decoder layer's self_attn, which Qwen2DecoderLayer has not"):
        adatp.accelerate(model, CONFIG)


@pytest.mark.parametrize("family", BUILDERS)
def test_labels_are_refused_where_logits_come_back_shorter(family):
    model, inputs, ran = build(family), family_prompt(family), []
    text = {"input_ids": torch.tensor([[1, 5, 6, 7]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.no_grad():
        loss, of_text = (model(**given, labels=given["input_ids"]).loss for given in (inputs, text))
        before = snapshot(model)
        with adatp.accelerate(model, FAMILY_CONFIG) as run:
            hook = run._layers[0].register_forward_pre_hook(lambda *_: ran.append(0))
            with pytest.raises(ValueError, match=r"labels: expected None with a prompt that is pruned.*got \[1, \d+\]"):
                model(**inputs, labels=inputs["input_ids"])
            with pytest.raises(ValueError, match=r"labels: expected None with a prompt that is pruned.*got \[1, \d+\]"):
                names = list(inspect.signature(type(model).forward).parameters)[1:]
                by_place = names[: names.index("labels")]
                rest = {name: value for name, value in inputs.items() if name not in by_place}
                model(*[inputs.get(name) for name in by_place], inputs["input_ids"], **rest)
            assert not ran
            assert model(**text, labels=text["input_ids"]).loss.equal(of_text)
            model(**inputs)
            hook.remove()
        if "rope_deltas" in vars(model.model):  # transformers' own, of the last prompt
            model.model.rope_deltas = before[0]["model", "rope_deltas"]
        assert_unchanged(model, before)
        assert model(**inputs, labels=inputs["input_ids"]).loss.equal(loss)


@pytest.mark.parametrize("shape", ["[1, T]", "[1, T, 3]"])
def test_layers_that_are_given_another_entry_for_each_token(shape):
    """As those of some mixtures of experts are: it would not fit what is left."""
    model, inputs = llava_onevision(), prompt()
    length = inputs["input_ids"].shape[1]
    more = torch.zeros(1, length) if shape == "[1, T]" else torch.zeros(1, length, 3)
    add = lambda _, args, kwargs: (args, {**kwargs, "token_kinds": more})  # noqa: E731
    for layer in model.model.language_model.layers:
        layer.register_forward_pre_hook(add, with_kwargs=True)
    refused = pytest.raises(ValueError, match=rf"model: .* also given token_kinds \[1, {length}")
    with torch.no_grad(), adatp.accelerate(model, CONFIG), refused:
        model(**inputs)
