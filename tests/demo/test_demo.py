"""The demo with a video of one's own, and with mistakes; and a LLaVA-OneVision that is loaded without its processor."""

import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from PIL import Image
from small_models import CELLS, VIDEO, llava_onevision

from adatp_kernels.cli import main
from adatp_kernels.demo import models
from adatp_kernels.demo.clips.film import film
from adatp_kernels.demo.training.batches import example
from adatp_kernels.integrations.transformers.picture import BORDERS, PAPER


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    film(path, example("held-out", 0).clip, scale=4, repeats=3)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A local checkpoint as a user has it: configuration, weights, tokenizer, pixel statistics."""
    path = tmp_path_factory.mktemp("checkpoint")
    model = llava_onevision()
    model.generation_config.suppress_tokens = None
    model.save_pretrained(path)
    words = {"<unk>": 0, "what": 1, "moves": 2, "user": 3, "assistant": 4, "ball": 5}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    fast.add_tokens([f"<extra{i}>" for i in range(len(words), VIDEO)] + ["<video>"], special_tokens=True)
    assert fast.convert_tokens_to_ids("<video>") == VIDEO
    fast.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2]})
    )
    return path


def run(capsys, *arguments):
    code = main(["demo", *map(str, arguments)])
    return code, capsys.readouterr()


def test_a_video_of_ones_own_and_a_model_that_says_what_is_real(capsys, tmp_path, clip):
    picture = tmp_path / "survivors.png"
    code, printed = run(
        capsys, "--video", clip, "--output", picture, "--frames", 16, "--question", "what moves", "--target-flops", 0.35,
        "--repeats", 1, "--max-new-tokens", 2,
    )  # fmt: skip
    assert code == 0, printed.err
    assert "its words mean nothing" in printed.out and "16 frames in" in printed.out
    for line in (
        "segments",
        "entering each layer",
        "FLOPs of the visual tokens: planned",
        "question: what moves",
        "dense",
        "pruned",
        "prefill, median of 1",
    ):
        assert line in printed.out
    image = np.asarray(Image.open(picture))
    assert (image == np.array(BORDERS[0])).all(-1).any() and (image == np.array(PAPER)).all(-1).any()


def test_prompt_and_pixels_of_a_checkpoint(checkpoint):
    demo = models.load_model(str(checkpoint))
    inputs = demo.inputs(np.full((3, 50, 80, 3), 255, np.uint8), "what moves")
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(VIDEO) == 3 * CELLS + 1 and ids[-2:] != [VIDEO, VIDEO]
    assert [i for i in ids if i != VIDEO].index(1) > 0  # the question stands after "user"
    assert inputs["pixel_values_videos"].shape == (1, 3, 3, 42, 42)
    assert torch.allclose(inputs["pixel_values_videos"], torch.tensor((1 - 0.4) / 0.2))


def test_chat_template_is_used_where_there_is_one(checkpoint):
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {% for c in m.content %}{{ '<video>' if c.type == 'video' else c.text }} {% endfor %}"
        "{% endfor %}assistant"
    )
    assert models._encode(tokenizer, VIDEO, "what moves", 2).tolist() == [[3, VIDEO, VIDEO, 1, 2, 4]]


def test_mistakes_end_with_one_line_and_code_2(capsys, tmp_path, clip, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.mp4").write_text("this is no video")
    mistakes = {
        ("--video", tmp_path / "missing.mp4"): "no such video file",
        ("--video", tmp_path / "notes.mp4"): "notes.mp4",
        ("--video", clip, "--frames", 0): "--frames: expected at least 1, got 0",
        ("--video", clip, "--repeats", 0): "--repeats: expected at least 1, got 0",
        ("--video", clip, "--max-new-tokens", 0): "--max-new-tokens: expected at least 1, got 0",
        ("--video", clip, "--target-flops", 1.5): "target_flops: expected a number in (0.0, 1.0], got 1.5",
        ("--video", clip, "--target-flops", 0.01): "target_flops: 0.01 cannot be reached",
        ("--video", clip, "--question", ""): "--question: expected words, got none",
        ("--video", clip, "--question", "\udcff"): "--question: expected text in UTF-8, got other bytes",
        ("--video", ""): "no video file named: the path is empty",
        ("--target-flops", 1.5): "target_flops: expected a number in (0.0, 1.0], got 1.5",
        (
            "--question",
            "what moves",
        ): "the built-in model has a clip and questions of its own; give --model or --video, too",
        ("--frames", 8): "the built-in model has a clip and questions of its own; give --model or --video, too",
        ("--output", tmp_path / "no" / "p.png"): "no such directory",
        ("--output", tmp_path): "expected a file for the picture, got a directory",
        ("--output", tmp_path / "picture"): "the picture's name must end with .png",
        ("--output", tmp_path / "picture.svg"): "the picture's name must end with .png",
        ("--output", "/proc/x.png"): "the picture cannot be written to /proc/x.png",
    }
    for arguments, message in mistakes.items():
        code, printed = run(capsys, *arguments)
        assert code == 2 and message in printed.err, (arguments, printed.err)
        assert printed.err.splitlines()[-1].startswith("error: ") and "Traceback" not in printed.err
