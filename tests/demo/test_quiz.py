"""The main job with a trained model, and the comparison: here with one that knows nothing, so that only the way is tested."""

import dataclasses
import json
import re

import pytest

import adatp_kernels as adatp
from adatp_kernels.cli import main
from adatp_kernels.demo import quiz, run
from adatp_kernels.demo.clips.questions import KINDS
from adatp_kernels.demo.trained import load_trained
from adatp_kernels.demo.training import recipe
from adatp_kernels.demo.training.batches import example
from adatp_kernels.demo.training.network import build_network
from adatp_kernels.mistakes import Mistake


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    recipe.save(build_network(0), folder, {"measured": {"segments": {"threshold": 1.0}, "kinds": KINDS}})
    return folder


def test_questions_answers_and_marks(model, monkeypatch):
    trained = load_trained(model)
    one, clip = example("held-out", 1), quiz.film_clip(1, trained.kinds)
    assert [question.kind for question in one.questions] == list(KINDS)
    assert clip.questions == one.questions and clip.video.frames.shape == (16, 384, 384, 3)
    said = [word for question in one.questions for word in (question.answer, "blue")]
    really = quiz.answer

    def answer(*arguments):
        ids = trained.demo.encode(said.pop(0), 0)[0, -2:-1]
        return dataclasses.replace(really(*arguments), ids=ids)

    monkeypatch.setattr(quiz, "answer", answer)
    config = adatp.AdaTPConfig(target_flops=0.5, segment_threshold=trained.threshold)
    asked = quiz.ask(trained.demo, config, clip)
    assert said == [] and tuple(asking.question for asking in asked) == one.questions
    head, *lines, last = quiz.table(asked)
    assert head.split() == ["question", "answer", "dense", "pruned"]
    for line, asking in zip(lines, asked, strict=True):
        answer = asking.question.answer
        mark = "✓" if answer == "blue" else "✗"
        assert re.fullmatch(f"{asking.question.text} +{answer} +✓ {answer} +{mark} blue", line)
        assert asking.right("dense") and asking.right("pruned") == (answer == "blue")
        # Its own report: <user>, the newline after the video and <assistant> besides the words.
        assert asking.report.text_tokens == len(asking.question.text.split()) + 3
        assert asking.report.planned_flops_ratio == pytest.approx(0.5, abs=0.01)
    blue = sum(question.answer == "blue" for question in one.questions)
    assert re.fullmatch(f"right +8 of 8 +{blue} of 8", last)


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
        (("--model", str(model), "--output", "/proc"), "the tables cannot be written to /proc/evaluation.md"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(Mistake, match=r"demo\.training --output FOLDER trains one"):
        load_trained(tmp_path)
