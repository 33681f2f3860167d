"""Whatever device and precision new tensors have by default, an accelerated model answers as without that."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from default_contexts import DEFAULTS, answers, check_same, of_defaults
from family_models import BUILDERS, IMAGE, batch_of, build, prompt
from small_siglip import WordTokenizer, siglip

import adatp_kernels as adatp

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
COMPACT = dataclasses.replace(CONFIG, compact_cache=True)
# Above their mean, which all of them equal in bfloat16, are the first two.
RELEVANCE = [0.3004, 0.3004, 0.2998, 0.2998, 0.2998, 0.2998]


@of_defaults
@pytest.mark.parametrize("family", BUILDERS)
def test_every_family_answers_the_same(family, default):
    if family == "qwen2_5_vl" and default is DEFAULTS["device"]:
        pytest.skip("not pruned, it needs its default device to have values, too")
    model, one, other = build(family), prompt(family), prompt(family, seed=1, after=(7, 8, 9))
    check_same(default, lambda: answers(model, one, CONFIG))
    check_same(default, lambda: answers(model, batch_of([one, other]), COMPACT))
    check_same(default, lambda: answers(model, one, CONFIG, relevance=RELEVANCE))


@of_defaults
def test_choices(default, tmp_path):
    model, inputs = build("qwen2_vl"), prompt("qwen2_vl")
    adatp.save_prior(torch.rand(6, 4, generator=torch.Generator().manual_seed(0)), tmp_path / "prior")
    for choices in (
        {"prior": tmp_path / "prior"},
        {"score": "random"},
        {"score": "uniform"},
        {"spatial_dedup": "soft"},
    ):
        config = dataclasses.replace(CONFIG, **choices)
        check_same(default, lambda config=config: answers(model, inputs, config))


@of_defaults
def test_images_between_videos(default):
    model, inputs = build("llava_onevision", "adatp"), prompt("llava_onevision")
    picture = torch.randn(1, 2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    inputs |= {"pixel_values": picture, "image_sizes": torch.tensor([[28, 28]])}
    with torch.no_grad():
        features = model.model.get_image_features(picture, inputs["image_sizes"]).pooler_output
    ids = F.pad(inputs["input_ids"], (len(features[0]), 0), value=IMAGE)
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    check_same(default, lambda: answers(model, inputs, CONFIG, images="prune"))


@of_defaults
def test_turns_on_one_cache(default):
    model, first = build("internvl"), prompt("internvl")
    second = prompt("internvl", seed=1)
    ids = torch.cat([first["input_ids"], second["input_ids"]], 1)

    def act():
        with adatp.accelerate(model, COMPACT) as run, torch.no_grad():
            cache = model(**first, use_cache=True).past_key_values
            mask = torch.ones_like(ids)
            answer = model(**second | {"attention_mask": mask}, past_key_values=cache).logits
        return [answer, *[kept for _, kept in run.report().survivors]]

    check_same(default, act)


@of_defaults
def test_packed_prompts_are_refused_by_name(default):
    model, inputs = build("llava_onevision"), prompt("llava_onevision")
    del inputs["attention_mask"]
    inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1])[None] % 20
    refused = pytest.raises(ValueError, match="^position_ids: expected those of one prompt in a row")
    with default(), adatp.accelerate(model, CONFIG), refused:
        model(**inputs)


@of_defaults
def test_siglip(default):
    model, inputs = build("llava_onevision"), prompt("llava_onevision")
    pair = (siglip(28), WordTokenizer())
    check_same(default, lambda: answers(model, inputs, CONFIG, relevance=pair, question="a red ball"))


@of_defaults
def test_reports_and_priors(default):
    model, inputs = build("internvl"), prompt("internvl")

    def act():
        report = adatp.bias_report(model, inputs, CONFIG)
        shares = (report.frames_before, report.frames_after, report.positions_before, report.positions_after)
        return [adatp.calibrate_prior(model, inputs, CONFIG), *shares]

    check_same(default, act)
