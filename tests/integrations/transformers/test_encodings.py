"""What is remembered of an encoded video belongs to the prompt that comes with it, whoever encoded what in between."""

import inspect
import threading

import pytest
import torch
from family_models import batch_of, build, prompt
from small_models import generate

import adatp_kernels as adatp

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
PIXELS = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")
TOWERS = ("llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "video_llama_3")


def encode(model, given):
    pixels, *rest = [given[name] for name in PIXELS if name in given]
    return model.model.get_video_features(pixels, *rest, return_dict=True)


def takes_encodings(model):
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def ask(model, given, encoded):
    """`generate` about a video that was encoded before."""
    rest = {name: value for name, value in given.items() if name != "pixel_values_videos"}
    return generate(model, {**rest, "mm_encoder_outputs": {"video": encoded}}, max_new_tokens=2)


def chosen(run):
    report = run.report()
    return report.segments, [(layer, kept.tolist()) for layer, kept in report.survivors]


@pytest.mark.parametrize("family", TOWERS)
@torch.no_grad()
def test_videos_encoded_beforehand_are_told_apart(family):
    model = build(family)
    if not takes_encodings(model):
        pytest.skip("this version of transformers encodes within the forward")
    prompts = [prompt(family, frames=6, shots=shots, seed=seed) for seed, shots in ((0, 2), (1, 6), (2, 3))]
    if family == "qwen2_vl":  # as many tokens, but 3 frames of 4 × 8 patches instead of 6 of 4 × 4
        prompts[1]["video_grid_thw"] = torch.tensor([[3, 4, 8]])
    with adatp.accelerate(model, CONFIG) as run:
        expected = []
        for given in prompts:
            generate(model, given, max_new_tokens=2)
            expected.append(chosen(run))
        assert len({str(one) for one in expected}) == 3
        encoded = [encode(model, given) for given in prompts]
        tower_of(family, model, prompts[0])()
        for number in (2, 0, 1, 1, 0, 2):
            ask(model, prompts[number], encoded[number])
            assert chosen(run) == expected[number]
            model(**prompts[0], use_cache=False)  # with pixels of its own
            assert chosen(run) == expected[0]


@pytest.mark.parametrize("family", TOWERS)
@torch.no_grad()
def test_an_encoding_made_within_a_forward_may_be_asked_about_later(family):
    """The output hands it to the user."""
    model, given, other = build(family), prompt(family, frames=6, shots=2), prompt(family, frames=6, seed=1, shots=6)
    if not takes_encodings(model):
        pytest.skip("this version of transformers encodes within the forward")
    with adatp.accelerate(model, CONFIG) as run:
        encoded = model(**given).video_outputs
        expected = chosen(run)
        model(**other)
        assert chosen(run) != expected
        ask(model, given, encoded)
        assert chosen(run) == expected


@torch.no_grad()
def test_an_encoding_that_nobody_saw_is_refused_or_needs_no_seeing():
    for family, refused in (("llava_onevision", True), ("qwen2_vl", False)):
        model, given = build(family), prompt(family)
        if not takes_encodings(model):
            pytest.skip("this version of transformers encodes within the forward")
        encoded = encode(model, given)
        with adatp.accelerate(model, CONFIG) as run:
            generate(model, prompt(family, seed=1, frames=6), max_new_tokens=1)
            if refused:
                with pytest.raises(RuntimeError, match="mm_encoder_outputs: accelerate did not see this video"):
                    ask(model, given, encoded)
                generate(model, given, max_new_tokens=1)  # nothing stays behind
            else:
                expected = encode(model, given)
                forward = {name: value for name, value in given.items() if name != "pixel_values_videos"}
                model(**forward, mm_encoder_outputs={"video": expected})
                before = chosen(run)
                model(**forward, mm_encoder_outputs={"video": encoded})
                assert chosen(run) == before


@torch.no_grad()
def test_a_grid_that_is_not_the_encodings_is_refused():
    model, given = build("qwen2_vl"), prompt("qwen2_vl", frames=6)
    if not takes_encodings(model):
        pytest.skip("this version of transformers encodes within the forward")
    with adatp.accelerate(model, CONFIG):
        encoded = encode(model, given)
        forward = {name: value for name, value in given.items() if name != "pixel_values_videos"}
        forward["video_grid_thw"] = torch.tensor([[3, 4, 8]])
        with pytest.raises(ValueError, match=r"video_grid_thw: expected \[\[6, 4, 4\]\].*got \[\[3, 4, 8\]\]"):
            model(**forward, mm_encoder_outputs={"video": encoded})


def tower_of(family, model, given):
    """A call of the vision tower by itself, as frame selectors make it, its arguments by position."""
    pixels = given["pixel_values_videos"]
    if family == "llava_onevision":
        return lambda: model.model.vision_tower(pixels[0])
    if family == "video_llama_3":
        return lambda: model.model.vision_model(pixels, given["video_grid_thw"], given["video_merge_sizes"])
    return lambda: model.model.visual(pixels, given["video_grid_thw"])


@pytest.mark.parametrize("family", TOWERS)
@torch.no_grad()
def test_a_call_of_the_tower_alone_passes_and_changes_nothing(family):
    model, given, other = build(family), prompt(family), prompt(family, seed=1, shots=1)
    expected = tower_of(family, model, other)()[0]
    with adatp.accelerate(model, CONFIG) as run:
        generate(model, given, max_new_tokens=1)
        before = chosen(run)
        assert tower_of(family, model, other)()[0].equal(expected)
        generate(model, given, max_new_tokens=1)
        assert chosen(run) == before
        # In the middle of a prompt, after its own encoding, by this thread and by another.
        results = []

        def meanwhile(*_):
            results.append(tower_of(family, model, other)()[0])
            thread = threading.Thread(target=lambda: results.append(tower_of(family, model, other)()[0]))
            thread.start()
            thread.join()

        hook = run._layers[0].register_forward_pre_hook(meanwhile)
        model(**given, use_cache=False)
        hook.remove()
        assert chosen(run) == before and len(results) == 2 and all(one.equal(expected) for one in results)


@torch.no_grad()
def test_an_encoding_is_remembered_as_long_as_it_lives():
    model, given = build("llava_onevision"), prompt("llava_onevision")
    with adatp.accelerate(model, CONFIG) as run:
        encoded = encode(model, given)
        assert len(run._encodings._known) == (2 if takes_encodings(model) else 0)  # none could come back
        del encoded
        assert len(run._encodings._known) == 0
        model(**given, use_cache=False)
        assert not run._encodings._here.seen


@torch.no_grad()
def test_encodings_that_were_put_together_anew():
    """What is remembered of one video is not taken for two, nor what is remembered of two for one."""
    model = build("qwen2_5_vl")
    if not takes_encodings(model):
        pytest.skip("this version of transformers encodes within the forward")
    prompts = [prompt("qwen2_5_vl", frames=6, seed=seed, shots=2 + seed) for seed in (0, 1)]
    prompts[1]["video_grid_thw"] = torch.tensor([[3, 4, 8]])  # as many tokens
    batch = batch_of(prompts)
    given, first = (
        {name: value for name, value in one.items() if name != "pixel_values_videos"} for one in (batch, prompts[0])
    )

    def survivors(row):
        return [kept.tolist() for _, kept in run.report(row).survivors]

    with adatp.accelerate(model, CONFIG) as run:
        model(**batch)
        expected = survivors(0), survivors(1)
        one, other = (encode(model, own) for own in prompts)
        one.pooler_output = [*one.pooler_output, *other.pooler_output]
        model(**given, mm_encoder_outputs={"video": one})
        assert (survivors(0), survivors(1)) == expected
        both = encode(model, batch)
        both.pooler_output = both.pooler_output[:1]
        model(**first, mm_encoder_outputs={"video": both})
        assert run.report().segments == (0, 0, 0, 1, 1, 1)
        given["position_ids"] = torch.arange(given["input_ids"].shape[1]).expand(3, 2, -1)
        del given["video_grid_thw"]
        with pytest.raises((KeyError, ValueError), match="video_grid_thw"):
            model(**given, mm_encoder_outputs={"video": one})
