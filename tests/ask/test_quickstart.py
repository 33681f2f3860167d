"""README's way from a video to an answer runs word for word, on tiny checkpoints with processors of transformers."""

import importlib.util
import re
from pathlib import Path

import pytest

if importlib.util.find_spec("torchvision") is None:
    pytest.skip("torchvision is not installed", allow_module_level=True)

import family_models
import tiny_checkpoints  # before transformers' processors: it sees to torchvision
from transformers.video_utils import VideoMetadata

from adatp_kernels.demo.clips.film import film
from adatp_kernels.demo.training.batches import example

README = Path(__file__).parents[2] / "README.md"
LAYERS = 16
FAMILIES = [
    "qwen2_5_vl",
    "llava_onevision",
    "llava_next_video",
    "qwen2_vl",
    "qwen3_vl",
    "internvl",
    "video_llama_3",
    pytest.param(
        "smolvlm", marks=pytest.mark.skipif(importlib.util.find_spec("num2words") is None, reason="no num2words")
    ),
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Eight seconds of 96 frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    film(path, example("held-out", 0).clip, scale=2)
    return path


def python(containing):
    """The one block of README's Python that holds some words."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if containing in block]
    return found


def checkpoint(family, folder, monkeypatch):
    """A checkpoint deep enough for the default stages."""
    monkeypatch.setitem(family_models.TEXT, "num_hidden_layers", LAYERS)
    if family == "llava_onevision":
        deep = lambda: family_models._llava_onevision(layers=LAYERS)  # noqa: E731
        monkeypatch.setitem(family_models.BUILDERS, family, deep)
    tiny_checkpoints.save(family, folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_from_a_video_to_an_answer(family, clip, tmp_path, monkeypatch, capsys):
    checkpoint(family, tmp_path / "model", monkeypatch)
    (tmp_path / "clip.mp4").symlink_to(clip)
    monkeypatch.chdir(tmp_path)
    text = python("AutoProcessor")
    assert text.count('"Qwen/Qwen2.5-VL-7B-Instruct"') == 1
    names = {}
    exec(text.replace('"Qwen/Qwen2.5-VL-7B-Instruct"', '"model"'), names)

    report = names["run"].report()
    # Pairs of frames make one of Qwen's.
    assert len(report.segments) == (16 if family.startswith("qwen") else 32)
    assert report.actual_tokens == report.planned_tokens and report.actual_tokens[-1] < report.actual_tokens[0]
    answer, *table = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"(w\d+ ?)+", answer) and "\n".join(table).strip() == str(report)
    assert Path("kept.png").read_bytes().startswith(b"\x89PNG")
    Path("kept.png").unlink()
    exec(python("report.cells()"), names)
    assert Path("kept.png").exists() and report.to_json() == names["text"]
    assert len(capsys.readouterr().out.splitlines()) == len(report.survivors)

    # Processors that tell the time tell the file's.
    video = names["video"]
    metadata = VideoMetadata(**video.metadata())
    assert metadata.timestamps == pytest.approx(video.seconds, abs=1e-3) and metadata.duration == pytest.approx(8)
    if family == "qwen2_5_vl":
        apart = (96 - 1) / 12 / (32 - 1)  # the frames, of 96 at 12 a second
        assert names["inputs"]["second_per_grid_ts"].tolist() == pytest.approx([2 * apart], abs=1e-3)
