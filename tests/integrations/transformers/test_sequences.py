"""Whatever happened to an accelerated model before, the next prompt is pruned as the first one would be.

A random user drives two accelerated models of different families. After each step what was answered, and what was kept, is
what a fresh acceleration gives for that alone; what is refused names its argument, and refuses nothing that comes later.
"""

import functools
import inspect
import os
import random
import re

import pytest
import torch
from family_models import VIDEO, build, prompt
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from snapshots import assert_unchanged, snapshot
from threads import in_a_thread

import adatp_kernels as adatp

SEED = int(os.environ.get("ADATP_SEQUENCE_SEED") or random.randrange(2**32))
SEQUENCES, STEPS = int(os.environ.get("ADATP_SEQUENCES", "130")), 8  # of each of the four pairs below
PAIRS = [
    ("llava_onevision", "qwen2_5_vl"),
    ("qwen2_vl", "video_llama_3"),
    ("qwen3_vl", "llava_onevision"),
    ("qwen2_5_vl", "internvl"),
]
CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
# Of videos with different segments, and questions; the last has another number of frames.
PROMPTS = [{"frames": 6, "shots": 2}, {"frames": 6, "shots": 6, "seed": 1}, {"frames": 4, "seed": 2, "after": (9, 8)}]
ENCODED = ("pixel_values_videos", "video_grid_thw", "video_merge_sizes")
which, families = st.integers(0, len(PROMPTS) - 1), st.integers(0, 1)


@functools.cache
def model_of(family):
    return build(family)


@functools.cache
def another_model_of(family):
    """With the same weights, for what is expected of them."""
    return build(family)


def inputs_of(family, number):
    return prompt(family, **PROMPTS[number])


def generate(model, inputs, **options):
    with torch.no_grad():
        return model.generate(**inputs, max_new_tokens=2, do_sample=False, return_dict_in_generate=True, **options)


def kept(run):
    report = run.report()
    return report.segments, tuple((layer, tuple(tokens.tolist())) for layer, tokens in report.survivors)


def next_turn(sequences, cache, turn):
    """The conversation so far and another question, on its cache."""
    ids = torch.cat([sequences, torch.tensor([[40 + turn, 41, 42]])], 1)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO).int(),
        "past_key_values": cache,
    }


def fits(family, inputs):
    return inputs if family.startswith("qwen") else {k: v for k, v in inputs.items() if k != "mm_token_type_ids"}


def crop(cache, removed):
    """Take away the newest tokens; by a negative number, which is what every version takes."""
    cache.crop(-removed)


@functools.cache
def expected(family, number, turns):
    """What a fresh acceleration answers and keeps: of a prompt, and of turns after it, each of which crops first, or not."""
    model = another_model_of(family)
    with adatp.accelerate(model, CONFIG) as run:
        output = generate(model, inputs_of(family, number))
        first = kept(run)
        for turn, removed in enumerate(turns):
            output = continued(family, model, output, turn, removed)
    return tuple(output.sequences[0].tolist()), first


def continued(family, model, output, turn, removed):
    sequences, cache = output.sequences, output.past_key_values
    if removed:
        crop(cache, removed)
        sequences = sequences[:, : sequences.shape[1] - removed]
    return generate(model, fits(family, next_turn(sequences, cache, turn)))


@functools.cache
def dense(family, ids):
    return tuple(generate(another_model_of(family), text_of(ids)).sequences[0].tolist())


def text_of(ids):
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


def result_of_a_thread(work):
    """The result of `work()`, run by a thread of its own."""
    thread, outcome = in_a_thread(work)
    thread.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


def machine(pair):
    """The machine for two families."""

    class Sequences(RuleBasedStateMachine):
        @initialize()
        def accelerate(self):
            self.runs = [adatp.accelerate(model_of(family), CONFIG) for family in pair]
            self.encoded, self.talks = [{}, {}], [{}, {}]

        def check(self, at, number, output):
            answer, survivors = expected(pair[at], number, ())
            assert kept(self.runs[at]) == survivors
            assert tuple(output.sequences[0].tolist()) == answer

        @rule(at=families, number=which, threaded=st.booleans())
        def ask(self, at, number, threaded):
            work = functools.partial(generate, model_of(pair[at]), inputs_of(pair[at], number))
            output = result_of_a_thread(work) if threaded else work()
            self.check(at, number, output)
            self.talks[at][number] = (output, ())

        @rule(at=families, number=which, removed=st.sampled_from([0, 2]), threaded=st.booleans())
        def another_turn(self, at, number, removed, threaded):
            if number not in self.talks[at] or len(self.talks[at][number][1]) == 2:
                return
            output, turns = self.talks[at].pop(number)
            work = functools.partial(continued, pair[at], model_of(pair[at]), output, len(turns), removed)
            output = result_of_a_thread(work) if threaded else work()
            assert tuple(output.sequences[0].tolist()) == expected(pair[at], number, (*turns, removed))[0]
            self.talks[at][number] = (output, (*turns, removed))

        @rule(at=families)
        def ask_without_a_video(self, at):
            output = generate(model_of(pair[at]), text_of((1, 5, 6, 7)))
            assert tuple(output.sequences[0].tolist()) == dense(pair[at], (1, 5, 6, 7))

        @rule(at=families, number=which, threaded=st.booleans())
        def encode(self, at, number, threaded):
            model, given = model_of(pair[at]), inputs_of(pair[at], number)
            if not hasattr(model.model, "get_video_features"):
                return
            call = [given[name] for name in ENCODED if name in given]

            @torch.no_grad()
            def work():
                return model.model.get_video_features(*call, return_dict=True)

            self.encoded[at][number] = result_of_a_thread(work) if threaded else work()

        @precondition(lambda self: "mm_encoder_outputs" in inspect.signature(self.runs[0]._model.forward).parameters)
        @rule(at=families, number=which)
        def ask_about_what_was_encoded(self, at, number):
            if number in self.encoded[at]:
                rest = {k: v for k, v in inputs_of(pair[at], number).items() if k != "pixel_values_videos"}
                encoded = {"video": self.encoded[at][number]}
                self.check(at, number, generate(model_of(pair[at]), {**rest, "mm_encoder_outputs": encoded}))

        @rule(at=families, number=which)
        def call_the_tower(self, at, number):
            model, given = model_of(pair[at]), inputs_of(pair[at], number)
            call = [given[name] for name in ENCODED if name in given]
            tower = next(
                getattr(model.model, n) for n in ("visual", "vision_model", "vision_tower") if hasattr(model.model, n)
            )
            with torch.no_grad():
                tower(*(call or [given["pixel_values"]])) if len(call) != 1 else tower(call[0][0])

        @rule(
            at=families,
            number=which,
            error=st.sampled_from([SystemExit, KeyboardInterrupt, ValueError]),
            layer=st.sampled_from([0, 2, 3, 11]),
            length=st.sampled_from(["prompt", "token"]),
            threaded=st.booleans(),
        )
        def interrupt(self, at, number, error, layer, length, threaded):
            model = model_of(pair[at])

            def stop(module, args):
                if (args[0].shape[1] == 1) == (length == "token"):
                    raise error

            hook = self.runs[at]._layers[layer].mlp.register_forward_pre_hook(stop)
            work = functools.partial(generate, model, inputs_of(pair[at], number))
            try:
                with pytest.raises(error):
                    result_of_a_thread(work) if threaded else work()
            finally:
                hook.remove()

        @rule(at=families, number=which, how=st.sampled_from(["few tokens", "no pixels", "mask", "chunks"]))
        def ask_wrongly(self, at, number, how):
            given, options = inputs_of(pair[at], number), {}
            if how == "few tokens":
                where = (given["input_ids"][0] == self.runs[at]._family.token_id(model_of(pair[at]))).nonzero()[0, 0]
                given["input_ids"] = torch.cat([given["input_ids"][:, :where], given["input_ids"][:, where + 1 :]], 1)
                for name in ("attention_mask", "mm_token_type_ids"):
                    if name in given:
                        given[name] = torch.cat([given[name][:, :where], given[name][:, where + 1 :]], 1)
            elif how == "no pixels":
                given = {k: v for k, v in given.items() if "pixel" not in k}
            elif how == "mask":
                given["attention_mask"][0, -1] = 0
            else:
                options = {"prefill_chunk_size": 4}
            with pytest.raises((ValueError, TypeError, RuntimeError)) as caught:
                generate(model_of(pair[at]), given, **options)
            named = {*given, "prefill_chunk_size", "pixel_values", "pixel_values_videos"}
            if str(caught.value).split(":")[0] not in named:  # then it is transformers that does not take it
                with pytest.raises(type(caught.value), match=re.escape(str(caught.value))):
                    generate(another_model_of(pair[at]), given, **options)

        @rule(at=families)
        def begin_anew(self, at):
            run, model = self.runs[at], model_of(pair[at])
            with pytest.raises(RuntimeError, match="model: it is accelerated already"):
                adatp.accelerate(model, CONFIG)
            run.remove()
            self.talks[at], self.encoded[at] = {}, {}
            assert tuple(generate(model, text_of((1, 5, 6, 7))).sequences[0].tolist()) == dense(pair[at], (1, 5, 6, 7))
            self.runs[at] = adatp.accelerate(model, CONFIG)

        def teardown(self):
            for run in getattr(self, "runs", ()):
                run.remove()

    return Sequences


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_no_sequence_of_steps_changes_what_is_kept(pair):
    print(f"ADATP_SEQUENCE_SEED={SEED}")
    for family in pair:  # transformers installs hooks of its own at the first call
        generate(model_of(family), inputs_of(family, 0))
    rope = [
        vars(model_of(family).model).get("rope_deltas") for family in pair
    ]  # which transformers itself leaves there
    unchanged = [snapshot(model_of(family)) for family in pair]
    kind = seed(SEED)(machine(pair))
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            suppress_health_check=checks,
        ),
    )
    for family, before, deltas in zip(pair, unchanged, rope, strict=True):
        if "rope_deltas" in vars(model_of(family).model):
            model_of(family).model.rope_deltas = deltas
        assert_unchanged(model_of(family), before)
