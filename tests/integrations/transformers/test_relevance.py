"""Text relevance: scores from outside, or SigLIP's own, and what they do to the budgets."""

import pytest
import torch
from small_models import generate, llava_onevision, prompt
from small_siglip import WordTokenizer, siglip

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.relevance import siglip_relevance

CONFIG = adatp.AdaTPConfig(target_flops=0.25, stages=(1, 3, 6))


def run_with(relevance, **options):
    model = llava_onevision()
    with adatp.accelerate(model, CONFIG, relevance=relevance, **options) as run:
        generate(model, prompt(), max_new_tokens=1)
    return run.report()


def test_scores_from_outside_raise_what_their_segment_keeps():
    plain = run_with(None)
    report = run_with(torch.tensor([0.1, 0.1, 0.9, 0.9, 0.2, 0.2]))
    assert plain.salient == () and report.salient == (1,)
    last = report.plan.stages[-1].budgets
    assert last[1] > last[0] == last[2]
    assert sum(last) == plain.plan.stages[-1].total
    assert run_with([0.1, 0.1, 0.9, 0.9, 0.2, 0.2]).plan == report.plan


def test_siglip_scores_are_the_cosine_of_its_two_towers():
    model, tokenizer, frames = siglip(), WordTokenizer(), prompt()["pixel_values_videos"][0]
    scores = siglip_relevance(model, tokenizer, frames, "a red ball")
    with torch.no_grad():
        images = model.get_image_features(pixel_values=frames).pooler_output
        ids = tokenizer(["a red ball"], "max_length", True, 16, "pt")["input_ids"]
        words = model.get_text_features(input_ids=ids).pooler_output
    images, words = (x / x.norm(dim=-1, keepdim=True) for x in (images, words))
    assert torch.allclose(scores, (images @ words.T)[:, 0], atol=1e-6)
    assert not torch.allclose(scores, siglip_relevance(model, tokenizer, frames, "two green cubes"), atol=1e-4)


@pytest.mark.parametrize("image_size", [42, 28])
def test_siglip_pair_runs_on_frames_and_question(image_size):
    pair = (siglip(image_size), WordTokenizer())
    report = run_with(pair, question="a red ball")
    frames = prompt()["pixel_values_videos"][0]
    scores = siglip_relevance(*pair, frames, "a red ball")
    expected = adatp.salient_segments(torch.tensor(report.segments), scores)
    assert report.salient == tuple(expected.nonzero()[:, 0].tolist()) != ()


def test_relevance_may_change_between_prompts():
    model = llava_onevision()
    with adatp.accelerate(model, CONFIG) as run:
        for salient in (0, 2):
            run.relevance = torch.eye(3)[salient].repeat_interleave(2)
            generate(model, prompt(), max_new_tokens=1)
            assert run.report().salient == (salient,)


def test_a_change_between_prompts_is_checked_too():
    model = llava_onevision()
    with adatp.accelerate(model, CONFIG) as run:
        run.relevance = (siglip(), WordTokenizer())
        with pytest.raises(ValueError, match="question: "):
            generate(model, prompt(), max_new_tokens=1)
        run.question = "a red ball"
        generate(model, prompt(), max_new_tokens=1)
        assert run.report().salient


def test_mistakes_are_named():
    with pytest.raises(
        ValueError, match=r"relevance: expected one score for each of the video's 6 frames, got shape \[4\]"
    ):
        run_with(torch.ones(4))
    with pytest.raises(ValueError, match="relevance: expected finite scores"):
        run_with(torch.full((6,), float("nan")))
    with pytest.raises(ValueError, match="question: .*needs the question"):
        run_with((siglip(), WordTokenizer()))
    with pytest.raises(TypeError, match="relevance: expected a SiglipModel first"):
        run_with((WordTokenizer(), siglip()), question="a red ball")
    with pytest.raises(TypeError, match="relevance: expected a tokenizer second"):
        run_with((siglip(), "tokenizer"), question="a red ball")
    with pytest.raises(TypeError, match="relevance: expected None"):
        run_with("the red ball")
