"""The model that ships: it loads as any checkpoint does, answers as often as its record says, and reads real files."""

import json

import numpy as np
import pytest
import torch

from adatp_kernels.demo.clips.film import film
from adatp_kernels.demo.clips.questions import CHANCE, KINDS, best_guess
from adatp_kernels.demo.clips.scenes import draw_clip
from adatp_kernels.demo.models import load_model
from adatp_kernels.demo.trained import MODEL
from adatp_kernels.demo.training import gates
from adatp_kernels.demo.training.answering import accuracy
from adatp_kernels.demo.training.batches import example
from adatp_kernels.demo.training.network import build_tokenizer
from adatp_kernels.demo.training.recipe import GATE
from adatp_kernels.demo.video import read_frames
from adatp_kernels.evaluation.methods import Method
from adatp_kernels.evaluation.run import compare
from adatp_kernels.segments import segment_frames


@pytest.fixture(scope="module")
def record():
    return json.loads((MODEL / "training.json").read_text())


@pytest.fixture(scope="module")
def demo():
    return load_model(str(MODEL))


def test_it_is_small():
    assert (MODEL / "model.safetensors").stat().st_size <= 8e6


def test_tokenizer_is_that_of_the_training(demo):
    text = "Where is the red circle?"
    assert demo.encode(text, 145).tolist()[0][-6:] == build_tokenizer()(text + " <assistant>")["input_ids"]


def test_it_answers_what_it_learned(demo, record):
    found = accuracy(demo.model, "held-out", range(10_000, 10_200), kinds=record["measured"]["kinds"])
    assert set(found) == set(KINDS)
    # 200 questions of a kind that is answered right 95 times in 100: three standard deviations are 0.046.
    assert {kind: share for kind, share in found.items() if share < GATE - 0.046} == {}


@torch.no_grad()
def test_it_listens_to_the_question(demo, record):
    """Asked another clip's question, it answers that; the comparison shows it as it is, and a guess explains the rest."""
    kinds = record["measured"]["kinds"]
    clips = 20 * len(kinds)
    dense = Method("dense", "preset", None, None)
    (outcome,), floors = compare(demo.model, [dense], clips, kinds, "calibration")
    swapped = []
    for number in range(clips):
        kind = kinds[number % len(kinds)]
        one, other = (example("calibration", n, {kind: 1}) for n in (number, number + len(kinds)))
        reply = demo.model(**demo.inputs(one.frames, other.questions[0].text), logits_to_keep=1).logits[0, -1].argmax()
        swapped.append(demo.decode(reply[None]).strip() == one.questions[0].answer)
        assert floors.guess[number] == best_guess(one.clip, kind)
    assert floors.swapped == swapped
    assert np.mean(outcome.right) > GATE - 3 * np.sqrt(GATE * (1 - GATE) / clips)
    assert np.mean(swapped) < np.mean(floors.guess) + 3 * np.sqrt(0.25 / clips)
    assert np.mean(floors.blind) < np.mean([CHANCE[kind] for kind in kinds]) + 3 * np.sqrt(0.25 / clips)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_it_reads_the_answer_from_the_evidence(demo, kind):
    """With nothing but the evidence left it still answers; with all but the evidence left, it guesses."""
    right = {"only": [], "all but": []}
    for number in range(20):
        one = example("calibration", number, {kind: 1})
        question = one.questions[0]
        inputs = demo.inputs(one.frames, question.text)
        cells = (inputs["input_ids"][0] == demo.model.config.video_token_id).nonzero()[: 16 * 9, 0]
        holds = torch.from_numpy(question.tokens(one.clip)).flatten()
        for name, dropped in (("only", ~holds), ("all but", holds)):
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            inputs["attention_mask"][0, cells[dropped]] = 0
            positions = torch.arange(inputs["input_ids"].shape[1])[None]
            reply = demo.model(**inputs, position_ids=positions, logits_to_keep=1).logits[0, -1].argmax()
            right[name].append(demo.decode(reply[None]).strip() == question.answer)
    assert np.mean(right["only"]) >= 0.7
    assert np.mean(right["all but"]) <= CHANCE[kind] + 3 * np.sqrt(CHANCE[kind] * (1 - CHANCE[kind]) / 20)


@torch.no_grad()
def test_it_answers_about_a_video_file(demo, record, tmp_path):
    right = []
    for number in range(5):
        one = example("held-out", 20_000 + number, dict.fromkeys(record["measured"]["kinds"], 1))
        film(tmp_path / "clip.mp4", one.clip, scale=4, repeats=2)
        frames = read_frames(tmp_path / "clip.mp4", 16)
        for question in one.questions:
            inputs = demo.inputs(frames, question.text)
            output = demo.model.generate(**inputs, max_new_tokens=4, do_sample=False)
            right.append(demo.decode(output[0, inputs["input_ids"].shape[1] :]).strip() == question.answer)
    assert np.mean(right) > 0.85


@torch.no_grad()
def test_its_threshold_finds_the_shots(demo, record):
    for seed in range(10):
        clip = draw_clip(np.random.default_rng([3, seed]))
        features = gates.features_of(demo.model, clip)
        found = segment_frames(features, record["measured"]["segments"]["threshold"])
        assert found.tolist() == clip.shot_of_frame.tolist()
