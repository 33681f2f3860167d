"""The attention implementation "adatp" computes what sdpa computes, masks included, and refuses the rest."""

import pytest
import torch
from memory import largest_allocation
from small_models import llava_onevision, prompt

from adatp_kernels.integrations.transformers.attention import adatp_attention


@pytest.mark.parametrize("padding", [0, 4])
def test_model_gives_the_same_logits_as_with_sdpa(padding):
    inputs = prompt()
    inputs["input_ids"] = torch.cat([torch.zeros(1, padding, dtype=torch.long), inputs["input_ids"]], dim=1)
    inputs["attention_mask"] = (inputs["input_ids"] > 0).long()
    with torch.no_grad():
        expected = llava_onevision("sdpa")(**inputs).logits[:, padding:]
        actual = llava_onevision("adatp")(**inputs).logits[:, padding:]
    assert (actual - expected).abs().max() <= 1e-5


def test_it_serves_a_vision_tower_too():
    model, inputs = llava_onevision("sdpa"), prompt()
    with torch.no_grad():
        expected = model(**inputs).logits
        model.set_attn_implementation("adatp")  # the text model's and the tower's
        assert model.model.vision_tower.config._attn_implementation == "adatp"
        assert (model(**inputs).logits - expected).abs().max() <= 1e-5


def test_a_padded_batch_of_prompts_has_no_map_of_every_head():
    rows, length = 2, 600
    ids = torch.randint(3, 200, (rows, length), generator=torch.Generator().manual_seed(0))
    padding = torch.arange(length) >= torch.tensor([0, 97])[:, None]
    inputs = {"input_ids": ids.where(padding, 0), "attention_mask": padding.long(), "logits_to_keep": 1}
    one_head = rows * length * length * 4

    def room(implementation):
        model = llava_onevision(implementation)
        with torch.no_grad():
            return largest_allocation(lambda: model(**inputs))

    assert room("adatp") <= 1.1 * one_head  # its bias, in rows of whole 16 elements
    assert room("eager") >= llava_onevision("eager").config.text_config.num_attention_heads * one_head


@pytest.mark.parametrize("option", [{"sliding_window": 8}, {"softcap": 30.0}, {"dropout": 0.1}])
def test_what_it_does_not_do_it_refuses(option):
    tensor = torch.randn(1, 2, 3, 8)
    with pytest.raises(ValueError, match=next(iter(option))):
        adatp_attention(torch.nn.Identity(), tensor, tensor, tensor, None, **option)
