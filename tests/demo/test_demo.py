"""The main job through the command line: with the built-in model, with a checkpoint of one's own, and with mistakes."""

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


def test_checkpoint_and_video_of_ones_own(capsys, tmp_path, clip, checkpoint):
    picture = tmp_path / "survivors.png"
    code, printed = run(
        capsys, "--model", checkpoint, "--video", clip, "--frames", 8, "--question", "what moves", "--target-flops", 0.35,
        "--output", picture, "--repeats", 1, "--max-new-tokens", 3,
    )  # fmt: skip
    assert code == 0, printed.err
    assert f"video: {clip}: 8 frames" in printed.out
    assert "words mean nothing" not in printed.out
    for line in (
        "segments",
        "entering each layer",
        "FLOPs of the visual tokens: planned",
        "question: what moves",
        "dense",
        "pruned",
    ):
        assert line in printed.out
    image = np.asarray(Image.open(picture))
    assert (image == np.array(BORDERS[0])).all(-1).any() and (image == np.array(PAPER)).all(-1).any()


def test_untrained_model_says_what_is_real(capsys, tmp_path, clip):
    code, printed = run(
        capsys, "--video", clip, "--output", tmp_path / "p.png", "--frames", 16, "--repeats", 1, "--max-new-tokens", 2
    )
    assert code == 0, printed.err
    assert "its words mean nothing" in printed.out and "16 frames of 192×192" in printed.out
    assert "16 frames in" in printed.out and "segments" in printed.out
    assert "prefill, median of 1" in printed.out


def test_a_checkpoint_without_a_video_gets_a_film(capsys, tmp_path, checkpoint):
    code, printed = run(
        capsys, "--model", checkpoint, "--output", tmp_path / "p.png", "--repeats", 1, "--max-new-tokens", 2
    )
    assert code == 0, printed.err
    assert "rendered to H.264 just now: 32 frames of 384×384" in printed.out
    assert "question: What happens in the video?" in printed.out


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


def test_mistakes_end_with_one_line_and_code_2(capsys, tmp_path, clip, checkpoint):
    (tmp_path / "notes.mp4").write_text("this is no video")
    bert = tmp_path / "bert"
    transformers.BertConfig().save_pretrained(bert)
    mistakes = {
        ("--video", tmp_path / "missing.mp4"): "no such video file",
        ("--video", tmp_path / "notes.mp4"): "not a video",
        ("--video", clip, "--frames", 0): "--frames: expected at least 1, got 0",
        ("--video", clip, "--repeats", 0): "--repeats: expected at least 1, got 0",
        ("--video", clip, "--max-new-tokens", 0): "--max-new-tokens: expected at least 1, got 0",
        ("--video", clip, "--model", tmp_path / "nowhere"): "no such model",
        ("--video", clip, "--model", bert): "family 'bert'; supported are ['llava_onevision']",
        ("--video", clip, "--target-flops", 1.5): "target_flops: expected a number in (0.0, 1.0], got 1.5",
        ("--video", clip, "--model", checkpoint, "--target-flops", 0.01): "target_flops: 0.01 cannot be reached",
        ("--output", tmp_path / "no" / "p.png"): "no such directory",
        ("--output", tmp_path): "--output: expected a file for the picture, got a directory",
        ("--output", tmp_path / "picture"): "--output: expected a name that ends with .png",
    }
    for arguments, message in mistakes.items():
        code, printed = run(capsys, *arguments)
        assert code == 2 and message in printed.err, (arguments, printed.err)
        # Loading a model draws a progress bar on the same stream; the error is one line after it.
        assert printed.err.splitlines()[-1].startswith("error: ") and "Traceback" not in printed.err


def test_unknown_options_end_with_code_2(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--nonsense"])
    assert stopped.value.code == 2


def test_doctor_tells_the_backends(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "reference  available" in printed and "torch 2" in printed and "triton     not available" in printed
