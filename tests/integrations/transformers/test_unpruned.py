"""Accelerated, and not pruned: refused, or told when the block is left."""

import re
import warnings

import pytest
import torch
import transformers
from family_models import BUILDERS, IMAGE, TEXT, VIDEO, VISION, build, for_tests, prompt
from masked_reference import generate

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import families

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
IDS = torch.tensor([[1, 5, 6, 7, 8]])
TEXT_ONLY = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


@pytest.fixture(autouse=True)
def _own_families(monkeypatch):
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))


def told(use, model, **options):
    """What is told when a block is left in which `use` was called with the model."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with adatp.accelerate(model, CONFIG, **options) as run, torch.no_grad():
            use(model)
        run.remove()
    mine = [warning for warning in caught if str(warning.message).startswith("accelerate:")]
    assert all(warning.category is UserWarning and warning.filename == __file__ for warning in mine)
    return [str(warning.message) for warning in mine]


@pytest.mark.parametrize("how", ["generate", "forward"])
@pytest.mark.parametrize("family", BUILDERS)
def test_embeddings_alone_are_refused(family, how):
    """A video may be merged into them already."""
    model, inputs = build(family), prompt(family)
    given = {"inputs_embeds": torch.randn(*inputs["input_ids"].shape, 64), "attention_mask": inputs["attention_mask"]}
    call = model if how == "forward" else lambda **options: model.generate(**options, max_new_tokens=2)
    with pytest.raises(ValueError, match="inputs_embeds: expected input_ids"), adatp.accelerate(model, CONFIG):
        call(**given)


def test_one_embedding_is_no_prompt():
    """Token by token, a cache goes on with either."""
    model, inputs = build("llava_onevision"), prompt("llava_onevision")
    token = torch.tensor([[9]])
    with adatp.accelerate(model, CONFIG), torch.no_grad():
        logits = []
        for step in ({"input_ids": token}, {"inputs_embeds": model.get_input_embeddings()(token)}):
            cache = model(**inputs).past_key_values
            logits.append(model(**step, past_key_values=cache).logits)
    assert logits[0].equal(logits[1])


@pytest.mark.parametrize("family", BUILDERS)
def test_nothing_is_told_of_text_nor_of_what_was_pruned(family):
    model = build(family)
    assert told(lambda model: None, model) == []
    assert told(lambda model: generate(model, TEXT_ONLY, max_new_tokens=2), model) == []
    assert told(lambda model: model(**TEXT_ONLY), model) == []
    assert told(lambda model: generate(model, prompt(family), max_new_tokens=2), model) == []


def picture():
    """A question about an image."""
    ids = torch.tensor([[1, *[IMAGE] * 4, 7, 8, 9]])
    kinds = (ids == IMAGE).int()
    pixels = torch.randn(16, 3 * 2 * 49, generator=torch.Generator().manual_seed(5))
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }  # fmt: skip


@pytest.mark.parametrize("how", ["generate", "forward"])
def test_images_that_are_kept_are_told_once(how):
    def use(model):
        for _ in range(3):
            if how == "forward":
                model(**picture())
            else:
                generate(model, picture(), max_new_tokens=2)

    model = build("qwen2_vl")
    (message,) = told(use, model)
    assert message.count('images="keep" leaves them whole') == 1 and "generate was given" not in message
    assert told(use, model, images="prune") == []

    def beside_a_video(model):
        use(model)
        generate(model, prompt("qwen2_vl"), max_new_tokens=1)

    assert told(beside_a_video, model) == []


def test_what_is_left_in_an_except_block_is_told_all_the_same():
    try:
        raise KeyError
    except KeyError:
        assert len(told(lambda model: model(**picture()), build("qwen2_vl"))) == 1


def test_an_error_says_enough():
    model = build("qwen2_vl")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(KeyError), adatp.accelerate(model, CONFIG), torch.no_grad():
            model(**picture())
            raise KeyError


def instruct_blip():
    """A model whose generate merges the video into embeddings and hands them to the language model's."""
    qformer = {
        "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
        "encoder_hidden_size": 48,
    }  # fmt: skip
    torch.manual_seed(0)
    config = transformers.InstructBlipVideoConfig(
        vision_config={**VISION, "image_size": 28, "patch_size": 7}, qformer_config=qformer,
        text_config={"model_type": "llama", **TEXT}, num_query_tokens=4, video_token_index=VIDEO,
    )  # fmt: skip
    model = transformers.InstructBlipVideoForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    ids, question = torch.tensor([[1, *[VIDEO] * 16, 7, 8, 9]]), torch.tensor([[1, 2, 3]])
    inputs = {
        "pixel_values": torch.randn(1, 4, 3, 28, 28), "input_ids": ids, "attention_mask": torch.ones_like(ids),
        "qformer_input_ids": question, "qformer_attention_mask": torch.ones_like(question),
    }  # fmt: skip
    return for_tests(model, "sdpa"), inputs


class InstructBlip(adatp.Family):
    model_type = "instructblipvideo"
    pixels = "pixel_values"

    def base(self, model):
        return model

    def decoder(self, model):
        return model.language_model.model

    def token_id(self, model):
        return VIDEO

    def frame_sizes(self, model, arguments, counts):
        return [[4] * (count // 4) for count in counts]


@pytest.mark.parametrize("positional", [False, True])
def test_a_generate_that_goes_to_the_inner_model_is_told(positional):
    adatp.register_family(InstructBlip())
    model, inputs = instruct_blip()
    rest = {name: value for name, value in inputs.items() if name != "pixel_values"}

    def use(model):
        for _ in range(2):
            if positional:
                model.generate(inputs["pixel_values"], **rest, max_new_tokens=2)
            else:
                model.generate(**inputs, max_new_tokens=2)

    (message,) = told(use, model)
    assert message.count("generate was given pixel_values, but read no prompt by the forward of InstructBlip") == 1


class Elsewhere(adatp.Family):
    """It takes another argument for the video's, and another token."""

    model_type = "llava_onevision"
    pixels = "pixel_values"
    modality = "image"

    def token_id(self, model):
        return IMAGE

    def frame_sizes(self, model, arguments, counts):
        return [[4] * (count // 4) for count in counts]


@pytest.mark.parametrize("how", ["generate", "forward"])
def test_a_family_that_looks_elsewhere_is_told(how):
    adatp.register_family(Elsewhere())
    inputs = prompt("llava_onevision")

    def use(model):
        model(**inputs) if how == "forward" else generate(model, inputs, max_new_tokens=2)

    (message,) = told(use, build("llava_onevision"))
    assert re.search(
        r"(pixel_values_videos|mm_encoder_outputs\['video'\]) came, .* it looks for pixel_values$", message
    )


@pytest.mark.parametrize("family", BUILDERS)
def test_pixels_without_their_tokens_are_refused(family):
    model, inputs = build(family), prompt(family)
    kinds = {"mm_token_type_ids": torch.zeros_like(inputs["input_ids"]).int()} if family.startswith("qwen") else {}
    text = inputs["input_ids"].masked_fill((inputs["input_ids"] == VIDEO) | (inputs["input_ids"] == IMAGE), 30)
    with adatp.accelerate(model, CONFIG), pytest.raises(ValueError, match="input_ids: expected .* got (none|0|.0.)"):
        generate(model, {**inputs, **kinds, "input_ids": text}, max_new_tokens=1)


def test_images_without_their_tokens_are_refused():
    model, inputs = build("qwen2_vl"), picture()
    text = {**inputs, "input_ids": inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, 30)}
    with (
        adatp.accelerate(model, CONFIG, images="prune"),
        pytest.raises(ValueError, match=f"input_ids: expected tokens {IMAGE}, as pixel_values came .*, got none"),
    ):
        generate(model, {**text, "mm_token_type_ids": torch.zeros_like(text["input_ids"])}, max_new_tokens=1)
