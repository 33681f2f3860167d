"""Packed questions: their answers are those of one question per prompt, and controls drop what they say they drop."""

import pytest
import torch

from adatp_kernels.demo.training.answering import answer_logits
from adatp_kernels.demo.training.batches import ONE_EACH, example, pack, pixels, prompt, words
from adatp_kernels.demo.training.network import VIDEO, build_network, build_tokenizer


@pytest.fixture(scope="module")
def model():
    model = build_network(0).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)  # biases that are zero at first hide mistakes
    return model


@torch.no_grad()
def single(model, one, question):
    ids = torch.tensor([prompt(question.text, len(one.frames))])
    return model(input_ids=ids, pixel_values_videos=pixels(one.frames)[None]).logits[0, -1]


@torch.no_grad()
def test_packed_answers_are_those_of_single_prompts(model):
    examples = [example("train", number, num_shots=4) for number in range(2)]
    packed = answer_logits(model, pack(examples))[::2]  # every other one is of the end of an answer
    alone = torch.stack([single(model, one, question) for one in examples for question in one.questions])
    torch.testing.assert_close(packed, alone, atol=2e-5, rtol=1e-4)
    assert model.config.text_config._attn_implementation == "sdpa"


@torch.no_grad()
def test_a_question_that_sees_no_video_answers_the_same_about_any(model):
    one, other = (example("train", number, num_shots=4) for number in range(2))
    swapped = [type(one)(one.clip, frames, one.questions) for frames in (one.frames, other.frames)]
    blind = [answer_logits(model, pack([each]), last=-1) for each in swapped]
    torch.testing.assert_close(*blind)
    late = [answer_logits(model, pack([each]), last=3) for each in swapped]
    assert not torch.allclose(*late)


@torch.no_grad()
def test_reading_from_the_first_layer_on_is_reading(model):
    packed = pack([example("train", number, num_shots=2) for number in range(2)])
    always = answer_logits(model, packed)
    torch.testing.assert_close(answer_logits(model, packed, first=torch.tensor([0, 0])), always)
    mixed = answer_logits(model, packed, first=torch.tensor([0, 4]))
    of_first = packed.where[:, 0] == 0
    torch.testing.assert_close(mixed[of_first], always[of_first])
    assert not torch.allclose(mixed[~of_first], always[~of_first])


def test_prompts_are_what_the_tokenizer_makes_of_the_chat_template():
    tokenizer = build_tokenizer()
    for question in example("train", 0).questions:
        turn = {
            "role": "user",
            "content": [{"type": "video"}, {"type": "text", "text": question.text.capitalize() + "?"}],
        }
        text = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text)["input_ids"]
        place = ids.index(VIDEO)
        assert [*ids[:place], *[VIDEO] * 145, *ids[place + 1 :]] == prompt(question.text, 16)
        assert tokenizer.decode(words(question.answer)) == question.answer
    assert set(ONE_EACH.values()) == {1}
