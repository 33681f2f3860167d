"""What cannot be used is refused in one line, before a video is read or weights are loaded."""

import importlib.util
import sys

import numpy as np
import pytest
import transformers
from PIL import Image

from adatp_kernels.ask import checkpoint, command
from adatp_kernels.ask.checkpoint import Checkpoint
from adatp_kernels.cli import main
from adatp_kernels.demo.trained import MODEL


@pytest.fixture
def untouched(monkeypatch):
    """Neither the video nor the weights may be looked at."""

    def never(*arguments, **keywords):
        raise AssertionError("too late")

    monkeypatch.setattr(command, "read_video", never)
    monkeypatch.setattr(Checkpoint, "load", never)


def refused(capsys, *arguments):
    """The one line of a command that ends with 2."""
    code = main(["ask", *map(str, arguments)])
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if not line.startswith("[transformers]")]
    assert code == 2, printed
    assert len(lines) == 1 and lines[0].startswith("error: "), printed.err
    return lines[0].removeprefix("error: ")


NO_MODEL = ("--model", "none", "--video", "clip.mp4")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--video, --image: expected at least one of either, got none"),
        (("--video", "a", "--frames", "0"), "--frames: expected at least 1, got 0"),
        (("--video", "a", "--max-new-tokens", "0"), "--max-new-tokens: expected at least 1, got 0"),
        (("--video", "a", "--repeats", "-1"), "--repeats: expected at least 0, got -1"),
        (("--video", "a", "--fps", "0"), "--fps: expected more than 0, got 0.0"),
        (("--video", "a", "--fps", "nan"), "--fps: expected more than 0, got nan"),
        (("--video", "a", "--fps", "2", "--frames", "3"), "--frames, --fps: expected one of the two, got both"),
        (("--video", "a", "--question", ""), "--question: expected words, got none"),
        (("--video", "a", "--question", " \n"), "--question: expected words, got none"),
        (("--video", "a", "--output", "."), "expected a file for the picture, got a directory: ."),
        (("--video", "a", "--output", ""), "expected a file for the picture, got a directory: ."),
        (("--video", "a", "--output", "x.svg"), "the picture's name must end with .png, got x.svg"),
        (("--video", "a", "--output", "/proc/x.png"), "the picture cannot be written to /proc/x.png"),
        (("--video", "a", "--output", "no/x.png"), "no such directory for the picture: no"),
        (("--video", "a", "--json", "."), "expected a file for the JSON, got a directory: ."),
        (("--video", "a", "--json", "/dev/null"), "expected a file for the JSON, got something else: /dev/null"),
        (("--image", "a", "--output", "x.png"), "--output: the picture shows a video's frames"),
        (("--video", "a.png", "--output", "a.png"), "--output, --json: a.png would be written over a.png"),
        (("--video", "a", "--config", "x.json", "--json", "x.json"), "--output, --json: x.json would be written over x.json"),
        (("--video", "a", "--output", "x.png", "--json", "./x.png"), "--output, --json: x.png would be written over x.png"),
        (("--video", "a", "--dtype", "int8"), "--dtype: expected one of ['auto', 'float32', 'bfloat16', 'float16'], got"),
        (("--video", "a", "--attn", "flash"), "--attn: expected one of ['eager', 'sdpa', 'flash_attention_2', 'adatp']"),
        (("--video", "a", "--attn", "flash_attention_2"), "--attn: flash_attention_2 needs flash-attn: pip install"),
        (("--video", "a", "--device", "cuda:77"), "--device: 'cuda:77' is not here"),
        (("--video", "a", "--device", "toaster"), "--device: 'toaster' is not here (expected auto, cpu, cuda or cuda:NUMBER)"),
        (("--video", "a", "--target-flops", "1.5"), "target_flops: expected a number in (0.0, 1.0], got 1.5"),
        (("--video", "a", "--stages", "a,b"), "stages: expected one of ['progressive', 'single', 'three'], got 'a,b'"),
        (("--video", "a", "--stages", "3,1"), "stages: layers must ascend strictly, got [3, 1]"),
        (("--video", "a", "--prior", "none"), "prior: expected a safetensors file, got 'none': No such file"),
        (("--video", "a", "--output", "a.png", "--json", "a.json", "--prior", "none"), "prior: expected a safetensors"),
        (("--video", "a", "--config", "none"), "--config: none holds no AdaTPConfig ([Errno 2] No such file"),
        (("--video", "a", "--config", "x", "--preset", "fastv"), "--config, --preset: expected one of the two, got both"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("untouched")
def test_settings(capsys, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, "--model", "none", *arguments).startswith(said)
    assert not list(tmp_path.iterdir())  # what was opened to see whether it can be is gone again


@pytest.mark.usefixtures("untouched")
def test_models(capsys, tmp_path):
    bert = tmp_path / "bert"
    transformers.BertConfig().save_pretrained(bert)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    for model, said in (
        ("", "--model: expected a folder or an id of a checkpoint, got nothing"),
        (tmp_path / "none", f"no such folder for the model: {tmp_path / 'none'}"),
        ("./none", "no such folder for the model: ./none"),
        ("a/b/c", "no such model, in a folder or on the Hugging Face Hub: a/b/c ("),
        (tmp_path / "bad", f"no checkpoint in {tmp_path / 'bad'} ("),
        (bert, f"unsupported model: {bert} is of the family 'bert'; supported are ['llava_onevision', "),
    ):
        assert refused(capsys, "--model", model, "--video", "clip.mp4").startswith(said)


class Anything(Checkpoint):
    """A checkpoint whose processor is not asked."""

    num_layers = 12

    def __init__(self, name):
        self.name = name

    def max_pixels(self, num_frames):
        return 10_000

    def load(self, *arguments):
        raise AssertionError("too late")


def test_videos_images_and_layers(capsys, monkeypatch, tmp_path):
    """Before weights are loaded."""
    monkeypatch.setattr(command, "Checkpoint", Anything)
    (tmp_path / "notes.txt").write_text("no picture, and no film\n" * 20)
    image = tmp_path / "image.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image)
    layers = ("--stages", "1,2")
    for arguments, said in (
        (("--video", tmp_path / "none.mp4", *layers), "no such video file"),
        (("--video", "", *layers), "no video file named: the path is empty"),
        (("--video", tmp_path / "notes.txt", *layers), "not a video but text: "),
        (("--video", "https://example.org/clip.mp4", *layers), "an address, not a file: https://example.org/clip.mp4"),
        (("--video", tmp_path, *layers), "a folder, not a video file: "),
        (("--image", tmp_path / "none.png", *layers), "no such image file"),
        (("--image", tmp_path / "notes.txt", *layers), "not an image that can be read"),
        (("--image", "", *layers), "no such image file: an empty name"),
        (
            ("--image", image),
            "stages: 'progressive' prunes after layers 1 … num_layers-13 and so needs at least 14 layers",
        ),
        (("--image", image, "--stages", "1,11"), "stages: tokens are dropped after a layer and before the next"),
    ):
        assert refused(capsys, "--model", "any", *arguments).startswith(said)


def test_a_link_to_a_file_that_is_not_there_yet_stays(capsys, tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "told.json")
    refused(capsys, "--model", "none", "--video", "a", "--json", link, "--prior", "none")
    assert link.is_symlink() and not link.exists()


def test_outputs_are_compared_with_inputs_by_the_file_that_they_are(capsys, tmp_path):
    film, link = tmp_path / "film.mp4", tmp_path / "link.json"
    film.write_bytes(b"a film")
    link.symlink_to(film)
    said = refused(capsys, "--model", "none", "--video", film, "--json", link)
    assert said == f"--output, --json: {link} would be written over {film}" and film.read_bytes() == b"a film"


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is not None, reason="it is installed")
@pytest.mark.usefixtures("untouched")
def test_a_package_that_the_processor_lacks_is_named(capsys):
    """With the release that fits the torch that is here, for the Python that runs."""
    said = refused(capsys, "--model", MODEL, "--video", "clip.mp4")
    assert said.startswith(f"the processor of {MODEL} needs a package: {sys.executable} -m pip install torchvision==0.")
    assert checkpoint._pinned("num2words") == "num2words"


def test_the_torchvision_of_a_torch(monkeypatch):
    for torch_version, fits in (("2.13.0+cpu", "0.28"), ("2.11.0+cu130", "0.26"), ("2.0.1", "0.15")):
        monkeypatch.setattr(checkpoint.torch, "__version__", torch_version)
        assert checkpoint._pinned("torchvision") == f"torchvision=={fits}.*"
