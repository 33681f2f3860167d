"""What stands before the decoder layers' forward: it costs nothing while it is idle, and goes without a trace."""

import copy
import pickle

import pytest
import torch
from small_models import CONFIG, TOLERANCE, generate, llava_onevision, masked, prompt
from snapshots import assert_unchanged, snapshot

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.layers import LayerWatch


def layers_of(model):
    return model.model.language_model.layers


def test_layers_get_no_hooks():
    """A module with any takes microseconds longer for every token, whatever its hooks do."""
    model = llava_onevision()
    with adatp.accelerate(model, CONFIG):
        generate(model, prompt(), max_new_tokens=1)
        for layer in layers_of(model):
            for module in layer.modules():
                assert not module._forward_pre_hooks and not module._forward_hooks


def test_only_a_prompt_and_a_pruned_cache_with_a_mask_are_looked_at():
    model, inputs, seen = llava_onevision(), prompt(), []
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.int64), inputs["attention_mask"][:, 2:]], 1)
    with adatp.accelerate(model, CONFIG) as run, torch.no_grad():
        layer = layers_of(model)[7]

        def note(module, args, kwargs):
            seen.append((run._watch.around is not None, kwargs["attention_mask"]))

        handle = layer.register_forward_pre_hook(note, with_kwargs=True)
        model(input_ids=torch.tensor([[1, 5, 6]]))
        assert not seen.pop()[0]
        for mask in (inputs["attention_mask"], padded):
            cache = model(**{**inputs, "attention_mask": mask}).past_key_values
            assert seen.pop()[0]
            longer = torch.cat([mask, torch.ones(1, 1, dtype=torch.int64)], 1)
            model(input_ids=torch.tensor([[5]]), attention_mask=longer, past_key_values=cache)
            looked_at, given = seen.pop()
            assert looked_at == (mask is padded) == (given is not None)
        handle.remove()


def test_a_forward_that_was_there_before_is_called_and_put_back():
    model, inputs, calls = llava_onevision(), prompt(), []
    plain = llava_onevision()
    with adatp.accelerate(plain, CONFIG):
        expected = generate(plain, inputs, max_new_tokens=3)[1]
    for number, layer in enumerate(layers_of(model)):

        def counted(*args, forward=layer.forward, number=number, **kwargs):
            calls.append(number)
            return forward(*args, **kwargs)

        layer.forward = counted
    generate(model, inputs, max_new_tokens=1)  # transformers installs hooks of its own at the first call
    before = snapshot(model)
    calls.clear()
    with adatp.accelerate(model, CONFIG):
        assert generate(model, inputs, max_new_tokens=3)[1].equal(expected)
    assert calls == 3 * list(range(len(layers_of(model))))
    assert_unchanged(model, before)


def test_a_forward_that_came_later_stays_and_lets_pass():
    model, inputs = llava_onevision(), prompt()
    dense = generate(model, inputs, max_new_tokens=3)[1]
    with adatp.accelerate(model, CONFIG) as run:
        pruned = generate(model, inputs, max_new_tokens=3)[1]
        layer = layers_of(model)[3]
        layer.forward = later = lambda *args, forward=layer.forward, **kwargs: forward(*args, **kwargs)
        assert generate(model, inputs, max_new_tokens=3)[1].equal(pruned)
    assert layer.forward is later and all(
        "forward" not in vars(other) for other in layers_of(model) if other is not layer
    )
    assert generate(model, inputs, max_new_tokens=3)[1].equal(dense)
    with adatp.accelerate(model, CONFIG) as run:
        assert generate(model, inputs, max_new_tokens=3)[1].equal(pruned)
    assert (pruned - masked(inputs, run.report().survivors, max_new_tokens=3)[1]).abs().max() <= TOLERANCE
    assert layer.forward is later


def test_models_that_share_layers_are_left_in_any_order():
    model, other, inputs = llava_onevision(), llava_onevision(), prompt()
    other.model.language_model = model.model.language_model
    generate(model, inputs, max_new_tokens=1)  # what transformers itself leaves behind at first
    before = snapshot(model)
    with adatp.accelerate(model, CONFIG):
        expected = generate(model, inputs, max_new_tokens=3)[1]
    first, second = adatp.accelerate(model, CONFIG), adatp.accelerate(other, CONFIG)
    for accelerated in (model, other):
        assert generate(accelerated, inputs, max_new_tokens=3)[1].equal(expected)
    first.remove()
    assert generate(other, inputs, max_new_tokens=3)[1].equal(expected)
    second.remove()
    assert_unchanged(model, before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_watch_that_somebody_puts_back_after_its_removal_is_not_copied_but_passed(copied):
    layer = torch.nn.Linear(2, 2)
    expected = layer(torch.ones(2))
    watch = LayerWatch([layer])
    theirs = layer.forward
    layer.forward = lambda value: theirs(value)
    watch.remove()
    layer.forward = theirs
    twin = copied(layer)
    assert twin(torch.ones(2)).equal(expected)
    with torch.no_grad():
        layer.weight.zero_()
    assert twin(torch.ones(2)).equal(expected)
    again = LayerWatch([layer])
    again.remove()
    assert "forward" not in vars(layer)


def test_layers_that_were_not_seen_are_reported():
    model, inputs = llava_onevision(), prompt()
    with adatp.accelerate(model, CONFIG):
        for layer in layers_of(model):
            del layer.forward  # as somebody does who puts back what was there before
        with pytest.raises(RuntimeError, match="the decoder's layers were not seen by accelerate"):
            generate(model, inputs, max_new_tokens=1)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_watched_layer_is_not_copied(copied):
    model = llava_onevision()
    with adatp.accelerate(model, CONFIG), pytest.raises(RuntimeError, match="cannot be copied or pickled"):
        copied(layers_of(model)[0])
    copied(layers_of(model)[0])


def test_what_is_left_of_a_watch_that_was_removed_in_the_middle_of_a_prompt_lets_pass():
    layer = torch.nn.Identity()
    watch = LayerWatch([layer])
    layer.forward = later = lambda value, forward=layer.forward: forward(value)
    watch.around = lambda number, forward, args, kwargs: "pruned"
    assert layer(5) == "pruned"
    watch.remove()
    assert layer(5) == 5 and layer.forward is later
