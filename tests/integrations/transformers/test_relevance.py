"""Text relevance: scores from outside, or SigLIP's own, and what they do to the budgets."""

import pytest
import torch
from family_models import batch_of
from small_models import generate, llava_onevision, prompt
from small_siglip import WordTokenizer, siglip
from transformers import CLIPConfig, CLIPModel

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


def clip():
    size = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**size, "vocab_size": 20, "max_position_embeddings": 16}
    return CLIPModel(CLIPConfig(text_config=text, vision_config={**size, "image_size": 28, "patch_size": 14}))


SCORES = torch.tensor([0.1, 0.1, 0.9, 0.9, 0.2, 0.2])


def answer(inputs, relevance, question=None, **options):
    """What `generate` kept of each row."""
    model = llava_onevision()
    with adatp.accelerate(model, CONFIG, relevance=relevance, question=question) as run:
        sequences = generate(model, inputs, max_new_tokens=2, **options)[0]
        return [run.report(row).salient for row in range(len(sequences) if "num_beams" not in options else 1)]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_return_sequences": 3, "num_beams": 3}])
def test_one_score_for_each_frame_is_enough_for_all_copies_of_a_prompt(options):
    assert answer(prompt(), SCORES, **options)[0] == (1,)
    two = batch_of([prompt(), prompt(seed=1)])
    assert answer(two, torch.cat([SCORES, SCORES.flip(0)]), **options)[0] == (1,)


@pytest.mark.parametrize("two", ["two prompts", "the same question about two videos", "one prompt twice"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, "a forward"])
def test_one_prompts_scores_are_not_anothers(two, options):
    """Prompts of as many frames are no copies of each other, whatever their tokens say."""
    other = {"two prompts": {"seed": 1, "after": (9, 8)}, "the same question about two videos": {"seed": 1}}.get(
        two, {}
    )
    inputs = batch_of([prompt(), prompt(**other)])
    pair = (siglip(), WordTokenizer())
    model = llava_onevision()
    for relevance, question, name in ((SCORES, None, "relevance"), (pair, ["a red ball"], "question")):
        refused, run = pytest.raises(ValueError, match=f"{name}: expected one"), adatp.accelerate(model, CONFIG)
        run.relevance, run.question = relevance, question
        with run, torch.no_grad(), refused:
            model(**inputs) if options == "a forward" else generate(model, inputs, max_new_tokens=1, **options)
    with adatp.accelerate(model, CONFIG, relevance=torch.cat([SCORES, SCORES])) as run, torch.no_grad():
        model(**inputs) if options == "a forward" else generate(model, inputs, max_new_tokens=1, **options)
        assert run.report(1).salient


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
    other, processor = clip(), WordTokenizer()
    processor.tokenizer = WordTokenizer()
    with pytest.raises(
        TypeError, match="relevance: expected a SiglipModel first, got CLIPModel"
    ):  # whose frames look otherwise
        run_with((other, WordTokenizer()), question="a red ball")
    with pytest.raises(TypeError, match="relevance: expected a tokenizer second, such as a processor's tokenizer"):
        run_with((siglip(), processor), question="a red ball")
    with pytest.raises(TypeError, match="relevance: expected None"):
        run_with("the red ball")
