"""A video is encoded once however often it is asked about, and the model is left as it was."""

import pytest
import torch
from family_models import BUILDERS, build, prompt

import adatp_kernels as adatp
from adatp_kernels.ask.once import encode_once
from adatp_kernels.integrations.transformers import families

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 4))


def tower_of(model):
    family = families.find(model)
    return family.base(model).get_encoder(modality=family.modality)


def answers(model, inputs):
    dense = model.generate(
        **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    with adatp.accelerate(model, CONFIG) as run:
        pruned = model.generate(
            **inputs, max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
    return [*dense.logits, *pruned.logits], run.report()


@torch.no_grad()
@pytest.mark.parametrize("family", sorted(BUILDERS))
def test_answers_are_the_same_and_the_tower_runs_once(family):
    model, inputs = build(family), prompt(family)
    other = prompt(family, seed=1)
    tower, ran, hooked = tower_of(model), [], []
    forward = tower.forward
    tower.forward = lambda *args, **kwargs: (ran.append(1), forward(*args, **kwargs))[1]
    counting = tower.forward
    tower.register_forward_hook(lambda *_: hooked.append(1))
    alone = [answers(model, one) for one in (inputs, other)]
    assert (len(ran), len(hooked)) == (4, 4)
    with encode_once(model):
        together = [answers(model, one) for one in (inputs, other, inputs)]
    assert (len(ran), len(hooked)) == (4 + 2, 4 + 6)
    assert tower.forward is counting
    for (logits, report), (other_logits, other_report) in zip([*alone, alone[0]], together, strict=True):
        assert all(map(torch.equal, logits, other_logits))
        assert report.segments == other_report.segments and report.actual_tokens == other_report.actual_tokens
    assert not torch.equal(alone[0][0][0], alone[1][0][0])


def test_the_model_is_left_as_it_was():
    model = build("llava_onevision")
    tower = tower_of(model)
    with pytest.raises(RuntimeError, match="on purpose"), encode_once(model):
        assert "forward" in vars(tower)
        raise RuntimeError("on purpose")
    assert "forward" not in vars(tower)


@torch.no_grad()
def test_of_the_hidden_states_those_are_kept_that_the_decoder_is_fed_from():
    model, inputs = build("llava_onevision"), prompt("llava_onevision")
    seen = []
    tower_of(model).register_forward_hook(lambda module, args, output: seen.append(output.hidden_states))
    model.config.vision_feature_layer = [-2, 1]
    model.model.multi_modal_projector.linear_1 = torch.nn.Linear(96, 64)
    with encode_once(model):
        for _ in range(2):
            model(**inputs)
    for states in seen:
        assert [number for number, state in enumerate(states) if state is not None] == [1]
    assert len(seen) == 2
