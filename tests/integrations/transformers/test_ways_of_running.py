"""Ways of running an accelerated model other than one greedy `generate`."""

import threading

import pytest
import torch
from small_models import CELLS, CONFIG, LAYERS, TOLERANCE, generate, llava_onevision, masked, prompt

import adatp_kernels as adatp


class Streamer:
    """Collects what `generate` streams."""

    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, tokens):
        self.tokens += tokens.flatten().tolist()

    def end(self):
        self.ended = True


def test_streaming_yields_the_same_tokens():
    model, inputs, streamer = llava_onevision(), prompt(), Streamer()
    with adatp.accelerate(model, CONFIG):
        sequences, _, _ = generate(model, inputs, max_new_tokens=5, streamer=streamer)
    assert streamer.ended and streamer.tokens == sequences[0].tolist()


def test_attentions_and_hidden_states_have_the_shapes_of_what_ran():
    model, inputs = llava_onevision("eager"), prompt()
    with adatp.accelerate(model, CONFIG) as run, torch.no_grad():
        output = model(**inputs, output_attentions=True, output_hidden_states=True)
    report = run.report()
    entered = [report.text_tokens + tokens for tokens in report.actual_tokens]
    assert [tuple(weights.shape[1:]) for weights in output.attentions] == [(4, n, n) for n in entered]
    assert [states.shape[1] for states in output.hidden_states] == [*entered, entered[-1]]
    assert output.logits.shape[1] == entered[-1] < report.text_tokens + 6 * CELLS
    assert len(entered) == LAYERS


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """What is kept need not be what float32 keeps; that it is kept and masked alike shows in the logits."""
    model, inputs = llava_onevision().to(dtype), prompt()
    inputs["pixel_values_videos"] = inputs["pixel_values_videos"].to(dtype)
    with adatp.accelerate(model, CONFIG) as run:
        _, logits, _ = generate(model, inputs, max_new_tokens=1)
    assert run.report().actual_tokens == run.report().planned_tokens
    exact = prompt()
    _, expected, _ = masked(exact, run.report().survivors, max_new_tokens=1)
    dense = generate(llava_onevision(), exact, max_new_tokens=1)[1]
    error = (logits.float() - expected).norm() / expected.norm()
    assert error < 0.3 * (dense - expected).norm() / expected.norm()


def test_two_models_accelerated_at_once():
    first, second = llava_onevision(), llava_onevision(seed=1)
    inputs, other = prompt(), prompt(frames=4, shots=2, seed=3)
    alone = []
    for model, given, config in (
        (first, inputs, CONFIG),
        (second, other, adatp.AdaTPConfig(target_flops=0.6, stages=(2, 5))),
    ):
        with adatp.accelerate(model, config):
            alone.append(generate(model, given, max_new_tokens=4)[1])
    with (
        adatp.accelerate(first, CONFIG) as run,
        adatp.accelerate(second, adatp.AdaTPConfig(target_flops=0.6, stages=(2, 5))) as other_run,
    ):
        together = [generate(second, other, max_new_tokens=4)[1], generate(first, inputs, max_new_tokens=4)[1]][::-1]
    assert all(a.equal(b) for a, b in zip(alone, together, strict=True))
    assert len(run.report().segments) == 6 and len(other_run.report().segments) == 4


def test_the_same_video_again_on_a_new_cache():
    model, inputs = llava_onevision(), prompt()
    with adatp.accelerate(model, CONFIG):
        first = generate(model, inputs, max_new_tokens=4)[1]
        assert generate(model, inputs, max_new_tokens=4)[1].equal(first)


def test_threads_that_overlap_are_refused_and_those_that_take_turns_are_right():
    model, inputs = llava_onevision(), prompt()
    errors, results = [], []

    def run_one():
        try:
            results.append(generate(model, inputs, max_new_tokens=2)[1])
        except RuntimeError as error:
            errors.append(str(error))

    def meanwhile(*_):
        """In the middle of the first thread's prompt, once."""
        handle.remove()
        thread = threading.Thread(target=run_one)
        thread.start()
        thread.join()

    with adatp.accelerate(model, CONFIG) as run:
        expected = generate(model, inputs, max_new_tokens=2)[1]
        handle = model.model.language_model.layers[4].register_forward_hook(meanwhile)
        run_one()
        assert len(errors) == 1 and "another thread is in the middle of a forward" in errors[0]
        assert len(results) == 1 and results[0].equal(expected)
        thread = threading.Thread(target=run_one)
        thread.start()
        thread.join()
        assert results[1].equal(expected)
        survivors = run.report().survivors
    assert (results[0] - masked(inputs, survivors, max_new_tokens=2)[1]).abs().max() <= TOLERANCE
