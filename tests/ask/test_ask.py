"""Any family's checkpoint with its own processor answers about a video file, as transformers would by hand, and says what was kept."""

import importlib.util
import json

import pytest

if importlib.util.find_spec("torchvision") is None or importlib.util.find_spec("num2words") is None:
    pytest.skip("torchvision and num2words, which processors need, are not installed", allow_module_level=True)

import av
import numpy as np
import tiny_checkpoints  # it also sees to torchvision
import torch
import transformers
from PIL import Image
from small_clips import write_clip

import adatp_kernels as adatp
from adatp_kernels.ask.checkpoint import Checkpoint
from adatp_kernels.cli import main

FAMILIES = sorted(tiny_checkpoints.PROCESSORS)
QUESTIONS = ("w20 w21 w22", "w33 w40")
FRAMES, NEW = 6, 5
CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 4))
ARGUMENTS = ("--frames", str(FRAMES), "--stages", "2,4", "--target-flops", "0.5", "--max-new-tokens", str(NEW))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of every family, made when first asked for."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            tiny_checkpoints.save(family, made[family])
        return made[family]

    return folder


@pytest.fixture
def towers(monkeypatch):
    """How often the vision tower of the model that is loaded really runs."""
    calls = []
    load = Checkpoint.load

    def counted(checkpoint, *arguments):
        model = load(checkpoint, *arguments)
        tower = checkpoint.family.base(model).get_encoder(modality=checkpoint.family.modality)
        assert tower is not checkpoint.family.base(model)
        forward = tower.forward
        tower.forward = lambda *args, **kwargs: (calls.append(checkpoint.name), forward(*args, **kwargs))[1]
        return model

    monkeypatch.setattr(Checkpoint, "load", counted)
    return calls


def by_hand(folder, clip, question):
    """What transformers says about the frames of a clip of two a second, dense and pruned, and the report."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    with av.open(str(clip)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    chosen = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}
    apart = (chosen[-1] - chosen[0]) / 2 / (FRAMES - 1)
    inputs = processor(
        text=[processor.apply_chat_template([turn], add_generation_prompt=True)],
        videos=[[frames[chosen]]],
        # Frames of two a second, and as many of them in all as say how far the chosen ones are apart.
        video_metadata=[
            [{"total_num_frames": 2 * apart * FRAMES, "fps": 2, "frames_indices": chosen.tolist(), "duration": 6}]
        ],
        do_sample_frames=False,
        return_tensors="pt",
    )
    words, report = {}, None
    with adatp.mrope_positions(model), torch.no_grad():
        for way in ("dense", "pruned"):
            if way == "pruned":
                run = adatp.accelerate(model, CONFIG)
            output = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            words[way] = processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    report = run.report()
    run.remove()
    return words, report


@pytest.mark.parametrize("family", FAMILIES)
def test_two_questions_about_a_video(capsys, tmp_path, folders, clip, towers, family):
    folder = folders(family)
    questions = [part for question in QUESTIONS for part in ("--question", question)]
    outputs = ["--output", str(tmp_path / "kept.png"), "--json", str(tmp_path / "kept.json")]
    code = main(["ask", "--model", str(folder), "--video", str(clip), *questions, *ARGUMENTS, *outputs])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert len(towers) == 1  # for two questions, each of them dense and pruned, and the timing
    told = json.loads((tmp_path / "kept.json").read_text())
    assert [one["question"] for one in told["questions"]] == list(QUESTIONS)
    for number, one in enumerate(told["questions"]):
        words, report = by_hand(folder, clip, one["question"])
        assert one["answers"] == words
        assert one["pruned"]["tokens_per_layer"]["actual"] == list(report.actual_tokens)
        assert one["pruned"]["kept"] == report.to_dict()["kept"] and one["pruned"]["kept"]
        assert one["cache_bytes"]["pruned"] < one["cache_bytes"]["dense"]
        for way, text in words.items():
            assert f"  {way:<7} {text!r}" in printed.out
        assert Image.open(tmp_path / f"kept-{number + 1}.png").size[0] > 100
    (video,) = told["videos"]
    assert (video["frames"], video["source_frames"], video["width"], video["height"]) == (FRAMES, 12, 64, 48)
    assert video["seconds"] == pytest.approx([0, 1, 2, 3.5, 4.5, 5.5])
    assert told["model"]["model_type"] == family and told["model"]["dtype"] == "float32"
    assert told["config"]["stages"] == [2, 4] and told["config"]["target_flops"] == 0.5
    assert told["prefill_seconds"]["dense"] > 0 and "of 3 interleaved runs on cpu" in printed.out


def image(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_images_alone_are_pruned_and_beside_a_video_they_are_kept(capsys, tmp_path, folders, clip, family):
    told = tmp_path / "told.json"
    shared = [
        "--model",
        folders(family),
        "--image",
        image(tmp_path / "i.png"),
        *ARGUMENTS,
        "--repeats",
        0,
        "--json",
        told,
    ]
    assert main(["ask", *map(str, shared)]) == 0, capsys.readouterr().err
    (alone,) = json.loads(told.read_text())["questions"]
    assert alone["pruned"]["tokens_per_layer"]["actual"][-1] < alone["pruned"]["visual_tokens"]
    assert json.loads(told.read_text())["images_pruned"] is True
    code = main(["ask", *map(str, shared), "--video", str(clip)])
    if family == "smolvlm":
        assert code == 2 and "SmolVLM's processor takes one or the other" in capsys.readouterr().err
        return
    assert code == 0, capsys.readouterr().err
    (beside,) = json.loads(told.read_text())["questions"]
    found = json.loads(told.read_text())
    assert found["images"] == [str(tmp_path / "i.png")] and found["images_pruned"] is False
    frames = {"qwen2_vl": 3, "qwen2_5_vl": 3, "qwen3_vl": 3, "internvl": FRAMES + alone["pruned"]["frames"]}
    assert beside["pruned"]["frames"] == frames.get(family, FRAMES)
    code = main(["ask", *map(str, shared), "--video", str(clip), "--output", str(tmp_path / "kept.png")])
    assert code == (2 if family == "internvl" else 0), capsys.readouterr().err


@pytest.mark.parametrize("family", FAMILIES)
def test_a_single_frame(capsys, folders, clip, tmp_path, family):
    folder = folders(family)
    capsys.readouterr()
    words = f"--model {folder} --video {clip} --frames 1 --stages 2,4 --target-flops 0.7 --repeats 0 --max-new-tokens 2"
    assert main(["ask", *words.split(), "--output", str(tmp_path / "kept.png")]) == 0, capsys.readouterr().err
    printed = capsys.readouterr()
    assert "1 frame in 1 segment; " in printed.out
    assert printed.err == ""  # nothing of transformers' own, and no bars but on a terminal


def test_settings_arrive(capsys, tmp_path, folders, clip):
    """Those that the command line names, over those of a file; several videos, and pruning alone."""
    config, told = tmp_path / "config.json", tmp_path / "told.json"
    config.write_text(adatp.AdaTPConfig(spatial_dedup="off", target_flops=0.6, stages=(1,)).to_json())
    words = f"--model {folders('llava_onevision')} --video {clip} --video {clip} --fps 1 --config {config} --stages 1,3"
    words += f" --dtype bfloat16 --attn adatp --device cpu --no-dense --json {told} --max-new-tokens 2"
    assert main(["ask", *words.split()]) == 0, capsys.readouterr().err
    found = json.loads(told.read_text())
    assert found["config"] | {"spatial_dedup": "off", "target_flops": 0.6, "stages": [1, 3]} == found["config"]
    assert found["model"]["dtype"] == "bfloat16" and found["model"]["attention"] == "adatp"
    assert [video["frames"] for video in found["videos"]] == [6, 6]
    (one,) = found["questions"]
    assert list(one["answers"]) == ["pruned"] and one["question"] == "What happens in the video?"
    assert one["pruned"]["frames"] == 12 and found["prefill_seconds"] is None


def test_paths_of_any_bytes_are_told_somehow(capsys, tmp_path, folders, clip):
    odd, told = tmp_path / "\udcff.mp4", tmp_path / "told.json"
    odd.symlink_to(clip)
    words = [
        "ask",
        "--model",
        str(folders("llava_onevision")),
        "--video",
        str(odd),
        "--repeats",
        "0",
        "--json",
        str(told),
    ]
    assert main([*words, *ARGUMENTS]) == 0, capsys.readouterr().err
    assert json.loads(told.read_text(encoding="utf-8"))["videos"][0]["path"] == f"{tmp_path}/?.mp4"


def test_presets_and_what_they_refuse(capsys, tmp_path, folders, clip):
    told = tmp_path / "told.json"
    arguments = ["--model", folders("llava_onevision"), "--video", clip, "--frames", 6, "--repeats", 0, "--json", told]
    assert main(["ask", *map(str, arguments), "--preset", "fastv", "--target-flops", "0.5"]) == 0, (
        capsys.readouterr().err
    )
    assert json.loads(told.read_text())["config"]["queries"] == "last"
    assert main(["ask", *map(str, arguments), "--preset", "fastv", "--target-flops", "0.01"]) == 2
    assert "target_flops: 0.01 cannot be reached" in capsys.readouterr().err.splitlines()[-1]


def test_a_processor_that_refuses_the_words(capsys, folders, clip):
    """A placeholder in a question stands for a video that is not there."""
    arguments = ["--model", folders("llava_onevision"), "--video", clip, "--question", "what is <video> ?", *ARGUMENTS]
    assert main(["ask", *map(str, arguments)]) == 2
    assert "refuses this prompt" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("family", ["llava_onevision", "qwen2_5_vl"])
def test_a_prior_for_any_family(capsys, tmp_path, folders, clip, family):
    """Measured on frames of the video's size, it fits the video."""
    folder, prior = folders(family), tmp_path / "prior.safetensors"
    words = f"--model {folder} --frames {FRAMES} --clips 2 --size 64x48 --stages 2,4 --output {prior}"
    assert main(["calibrate", *words.split()]) == 0, capsys.readouterr().err
    words = f"--model {folder} --video {clip} --prior {prior} --repeats 0"
    assert main(["ask", *words.split(), *ARGUMENTS]) == 0, capsys.readouterr().err
    words = f"--model {folder} --frames {FRAMES} --clips 2 --size 640x640 --stages 2,4 --output {prior}"
    assert main(["calibrate", *words.split()]) == 0, capsys.readouterr().err
    words = f"--model {folder} --video {clip} --prior {prior} --repeats 0"
    code, larger = main(["ask", *words.split(), *ARGUMENTS]), family == "qwen2_5_vl"
    assert code == (2 if larger else 0)  # LLaVA-OneVision makes all frames square
    assert not larger or "adatp calibrate --frames 6 --size 64x48" in capsys.readouterr().err
