"""The main job with a trained model, and the comparison: here with one that knows nothing, so that only the way is tested."""

import dataclasses
import json
import re

import numpy as np
import pytest
from PIL import Image

import adatp_kernels as adatp
from adatp_kernels.cli import main
from adatp_kernels.demo import quiz, run
from adatp_kernels.demo.clips.questions import KINDS
from adatp_kernels.demo.errors import DemoError
from adatp_kernels.demo.trained import load_trained
from adatp_kernels.demo.training import recipe
from adatp_kernels.demo.training.batches import example
from adatp_kernels.demo.training.network import build_network


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    recipe.save(build_network(0), folder, {"measured": {"segments": {"threshold": 1.0}, "kinds": KINDS}})
    return folder


def test_questions_answers_and_marks(capsys, tmp_path, model, monkeypatch):
    one = example("held-out", quiz.CLIP)
    assert [question.kind for question in one.questions] == list(KINDS)
    said = [word for question in one.questions for word in (question.answer, "blue")]
    really = quiz.answer
    monkeypatch.setattr(quiz, "answer", lambda *arguments: (really(*arguments), said.pop(0))[1])
    monkeypatch.setattr(run, "MODEL", model)
    assert main(["demo", "--output", str(tmp_path / "kept.png"), "--repeats", "1"]) == 0
    printed = capsys.readouterr().out
    for question in one.questions:
        mark = "✓" if question.answer == "blue" else "✗"
        assert re.search(f"{question.text} +{question.answer} +✓ {question.answer} +{mark} blue", printed)
    blue = sum(question.answer == "blue" for question in one.questions)
    assert f"right: dense {len(KINDS)} of {len(KINDS)}, pruned {blue} of {len(KINDS)}" in printed
    (drawn,) = [question.text for question in one.questions if question.kind == quiz.DRAWN]
    assert f'what was left for "{drawn}"' in printed
    # <user>, the newline after the video and <assistant> besides; all other questions are shorter
    assert f"{len(drawn.split()) + 3} text tokens" in printed
    assert "16 frames of 384×384" in printed and "prefill, median of 1" in printed
    assert np.asarray(Image.open(tmp_path / "kept.png")).ndim == 3


def test_it_is_the_trained_model_that_answers(tmp_path, model):
    trained = load_trained(model)
    demo = trained.demo
    assert trained.threshold == 1.0 and trained.kinds == KINDS and demo.image_size == 48
    one = example("held-out", 1, {"color": 1})
    inputs = demo.inputs(one.frames, one.questions[0].text)
    assert inputs["input_ids"].shape == (1, 16 * 9 + 1 + len(one.questions[0].text.split()) + 2)
    config = dataclasses.replace(adatp.AdaTPConfig(), segment_threshold=trained.threshold)
    with adatp.accelerate(demo.model, config) as acceleration:
        demo.model(**inputs)
    assert acceleration.report().segments == tuple(range(16))  # no two of its frames are the same


def test_the_questions_are_the_clips_own(capsys, model, monkeypatch):
    monkeypatch.setattr(run, "MODEL", model)
    for arguments in (("--question", "what moves"), ("--frames", "8")):
        assert main(["demo", *arguments]) == 2
        assert (
            "the built-in model has a clip and questions of its own; give --model or --video" in capsys.readouterr().err
        )


def test_comparison_from_the_command_line(capsys, tmp_path, model):
    output = tmp_path / "results"
    arguments = ["evaluate", "--quick", "--clips", "3", "--model", str(model), "--output", str(output)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    text = (output / "evaluation.md").read_text()
    assert text.strip() in printed and "3 clips, a question each" in text
    for words in (
        "| adatp |",
        "| random scores, adatp's schedule |",
        "| with a calibrated prior |",
        "nothing left after layer",
    ):
        assert words in text
    told = json.loads((output / "evaluation.json").read_text())
    assert told["clips"] == 3 and told["mismatched"] == []
    for picture in ("evaluation.png", "bias.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")


def test_mistakes(capsys, tmp_path, model):
    (tmp_path / "file").write_text("")
    for arguments, message in (
        (("--clips", "0", "--model", str(model)), "--clips: expected at least 1, got 0"),
        (("--model", str(tmp_path)), f"no trained model in {tmp_path}"),
        (("--model", str(model), "--output", str(tmp_path / "file")), "the folder for the results cannot be made"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(DemoError, match=r"demo\.training --output FOLDER trains one"):
        load_trained(tmp_path)
