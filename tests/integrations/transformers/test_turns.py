"""Threads and interruptions: whoever is in the middle of a forward, and whoever was, harms nobody else."""

import asyncio
import threading
import time

import pytest
import torch
from small_models import CONFIG, generate, llava_onevision, prompt
from snapshots import assert_unchanged, snapshot
from threads import in_a_thread

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers import turns


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, MemoryError])
@pytest.mark.parametrize("where", ["prompt", "decode", "vision", "forward"])
def test_after_an_interruption_everybody_is_answered(error, where):
    model, inputs = llava_onevision(), prompt()
    part = model.model.vision_tower if where == "vision" else model.model.language_model.layers[5].mlp
    calls = []

    def stop(module, args):
        calls.append(args[0].shape[1])
        if where != "decode" or calls[-1] == 1:
            raise error

    def cancelled():
        hook = part.register_forward_pre_hook(stop)
        try:
            if where == "forward":
                with torch.no_grad():
                    model(**inputs)
            else:
                generate(model, inputs, max_new_tokens=3)
        finally:
            hook.remove()
            ended.set()
            lives_on.wait(30)  # as a pool's worker does

    with adatp.accelerate(model, CONFIG) as run:
        expected = generate(model, inputs, max_new_tokens=3)[1]
        survivors = run.report().survivors
        ended, lives_on = threading.Event(), threading.Event()
        worker, outcome = in_a_thread(cancelled)
        assert ended.wait(30)
        before = snapshot(model)
        for request in range(2):
            thread, answer = in_a_thread(lambda: generate(model, inputs, max_new_tokens=3)[1])
            thread.join()
            assert isinstance(answer[0], torch.Tensor), (request, answer[0])
            assert answer[0].equal(expected)
        assert generate(model, inputs, max_new_tokens=3)[1].equal(expected)
        assert_unchanged(model, before)
        assert all(a[1].equal(b[1]) for a, b in zip(survivors, run.report().survivors, strict=True))
        lives_on.set()
        worker.join()
        assert isinstance(outcome[0], error)


@pytest.mark.parametrize("where", ["prompt", "decode", "forward"])
def test_the_end_of_the_block_waits_for_another_thread(where, monkeypatch):
    """The idiom of streamers, with the loop behind the block."""
    monkeypatch.setattr(turns, "_PATIENCE", 40.0)
    model, inputs = llava_onevision(), prompt()

    @torch.no_grad()
    def work():
        return model(**inputs).logits if where == "forward" else generate(model, inputs, max_new_tokens=6)[1]

    with adatp.accelerate(model, CONFIG):
        expected = work()
    before = snapshot(model)
    reached, leaving = threading.Event(), threading.Event()

    def pause(module, args):
        if (args[0].shape[1] == 1) == (where == "decode") and not reached.is_set():
            reached.set()
            assert leaving.wait(30)

    hook = model.model.language_model.layers[5].mlp.register_forward_pre_hook(pause)
    with adatp.accelerate(model, CONFIG) as run:
        thread, outcome = in_a_thread(work)
        assert reached.wait(30)
        threading.Timer(0.2, leaving.set).start()
        begun = time.monotonic()
    assert time.monotonic() - begun < 20  # it was told, and did not look again when its patience ended
    hook.remove()
    run.remove()
    assert_unchanged(model, before)
    thread.join()
    assert isinstance(outcome[0], torch.Tensor), outcome[0]
    assert outcome[0].equal(expected)


def test_whoever_waits_long_says_for_what(monkeypatch):
    monkeypatch.setattr(turns, "_PATIENCE", 0.05)
    model, inputs, reached, leaving = llava_onevision(), prompt(), threading.Event(), threading.Event()

    def pause(*_):
        reached.set()
        assert leaving.wait(30)

    run = adatp.accelerate(model, CONFIG)
    hook = model.model.language_model.layers[5].mlp.register_forward_pre_hook(pause)
    thread, outcome = in_a_thread(lambda: generate(model, inputs, max_new_tokens=1)[1])
    assert reached.wait(30)
    threading.Timer(0.5, leaving.set).start()
    with pytest.warns(UserWarning, match="another thread is still generating with this model"):
        run.remove()
    hook.remove()
    thread.join()
    assert isinstance(outcome[0], torch.Tensor)


def test_removing_from_within_is_refused_and_harms_nothing():
    model, inputs = llava_onevision(), prompt()
    with adatp.accelerate(model, CONFIG) as run:
        expected = generate(model, inputs, max_new_tokens=3)[1]
        errors = []

        def within(*_):
            with pytest.raises(
                RuntimeError, match="remove: this thread is in the middle of a forward or a generate"
            ) as caught:
                run.remove()
            errors.append(caught.value)

        hook = model.model.language_model.layers[3].register_forward_pre_hook(within)
        assert generate(model, inputs, max_new_tokens=3)[1].equal(expected)
        hook.remove()
        assert len(errors) == 3

        def between(ids, scores):
            within()
            return scores

        assert generate(model, inputs, max_new_tokens=3, logits_processor=[between])[1].equal(expected)
        assert len(errors) == 6


def test_a_forward_within_a_forward_is_refused():
    model, inputs = llava_onevision(), prompt()
    text = {"input_ids": torch.tensor([[1, 5, 6]])}
    with adatp.accelerate(model, CONFIG), torch.no_grad():
        expected = model(**inputs).logits

        def within(*_):
            hook.remove()
            with pytest.raises(RuntimeError, match="called from within another one"):
                model(**text)

        hook = model.model.language_model.layers[3].register_forward_pre_hook(within)
        assert model(**inputs).logits.equal(expected)
        assert model(**text).logits.shape[1] == 3


def test_a_forward_that_begins_while_the_acceleration_ends_is_a_plain_one():
    model, inputs = llava_onevision(), prompt()
    with torch.no_grad():
        dense = model(**inputs).logits
        run = adatp.accelerate(model, CONFIG)
        assert model(**inputs).logits.shape[1] < dense.shape[1]
        run._turns.close()  # as remove() begins, and another thread comes by
        assert model(**inputs).logits.equal(dense)
