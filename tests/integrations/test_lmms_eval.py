"""lmms-eval lists the pruned models, and scores a task of a few clips with them, from the command to the results."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

if importlib.util.find_spec("lmms_eval") is None:
    pytest.skip("lmms_eval is not installed", allow_module_level=True)

import av
import numpy as np
import tiny_checkpoints  # before lmms_eval: it also sees to torchvision
import torch
import transformers
from lmms_eval import models
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from loguru import logger

import adatp_kernels as adatp
from adatp_kernels.integrations.lmms_eval.arguments import split_arguments

PAGE = Path(__file__).parents[2] / "docs/lmms-eval.md"
# The harness's own model for each of ours, the arguments that suit a tiny one, and stages that it has the layers for.
QWEN = "device_map=cpu,max_num_frames=12,min_pixels=3136,max_pixels=12544"
FAMILIES = {
    "adatp_llava_onevision": ("llava_hf", "device_map=cpu,max_frames_num=6", "[1,3]"),
    "adatp_qwen2_vl": ("qwen2_vl", QWEN, "[1,3]"),
    "adatp_qwen2_5_vl": ("qwen2_5_vl", QWEN, "[1,3]"),
    "adatp_qwen3_vl": ("qwen3_vl", QWEN, "[2,4]"),
    "adatp_internvl": ("internvl_hf", "device_map=cpu,num_frames=6", "[1,3]"),
}
# Of one of the clips, by these arguments: frames, and pairs of neighbours that are of one shot, and so the same picture.
FED = {
    "adatp_llava_onevision": (6, 3),
    "adatp_qwen2_vl": (4, 1),  # two a second; one a half is the harness's least
    "adatp_qwen2_5_vl": (12, 9),
    "adatp_qwen3_vl": (12, 9),
    "adatp_internvl": (6, 3),
}
PLACED = ("adatp_qwen2_vl", "adatp_qwen2_5_vl")
QUESTIONS = ("w20 w21 w22", "w30 w31", "w40 w41 w42 w43")
TASK = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.{visual}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_new_tokens: 10}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
UTILS = """
import av

def video(doc):
    return [doc["video"]]

def picture(doc):
    return [next(av.open(doc["video"]).decode(video=0)).to_image()]
"""


def film(path, shots, each, random, rate=8):
    """A clip of so many still shots of `each` so many frames; without loss, so that the frames of a shot stay the same."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = 112
        stream.pix_fmt, stream.options = "yuv420p", {"qp": "0"}
        for picture in np.kron(random.integers(0, 256, (shots, 7, 7, 3)), np.ones((1, 16, 16, 1))).astype(np.uint8):
            for _ in range(each):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three clips of three shots each."""
    folder, random = tmp_path_factory.mktemp("clips"), np.random.default_rng(0)
    for number in range(len(QUESTIONS)):
        film(folder / f"{number}.mp4", 3, 4, random)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a tiny checkpoint of a family, made once."""
    folders = {}

    def make(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            tiny_checkpoints.save(name.removeprefix("adatp_"), folders[name])
        return folders[name]

    return make


@pytest.fixture
def task(clips, tmp_path, monkeypatch):
    """Writes a task of the harness into a folder of its own; returns the folder."""
    monkeypatch.setenv("LMMS_EVAL_DATASETS_CACHE", str(tmp_path / "cache"))

    def write(name="clips", visual="video", answers=("", "", ""), videos=("0.mp4", "1.mp4", "2.mp4")):
        data = tmp_path / f"{name}.jsonl"
        rows = [
            {"video": str(clips / video), "question": question, "answer": answer}
            for video, question, answer in zip(videos, QUESTIONS, answers, strict=True)
        ]
        data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        (tmp_path / "utils.py").write_text(UTILS, encoding="utf-8")
        (tmp_path / f"{name}.yaml").write_text(TASK.format(task=name, data=data, visual=visual), encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def log():
    """What we log, from the level on that the harness's command shows."""
    lines = []
    sink = logger.add(lines.append, level="INFO", format="{level} {message}", filter="adatp_kernels")
    yield lines
    logger.remove(sink)


def answers_of(model, arguments, folder, task="clips"):
    """The answers of a model to the task in `folder`, by the harness."""
    results = simple_evaluate(
        model,
        arguments,
        tasks=[task],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False, model_name=model),
        device="cpu",
        batch_size=1,
        bootstrap_iters=0,
        force_simple=model == "llava_hf",
    )
    return [sample["filtered_resps"][0] for sample in results["samples"][task]]


def answers_by_hand(folder, clips, config):
    """The answers of LLaVA-OneVision under `accelerate`, without the harness."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(folder)
    answers = []
    for number, question in enumerate(QUESTIONS):
        with av.open(str(clips / f"{number}.mp4")) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        frames = frames[np.linspace(0, len(frames) - 1, 6, dtype=int)]
        messages = [{"role": "user", "content": f"<video>\n{question}"}]
        text = processor.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(text=text, videos=[frames], return_tensors="pt")
        with adatp.accelerate(model, config):
            output = model.generate(**inputs, max_new_tokens=10, do_sample=False)
        answers.append(processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


@pytest.mark.parametrize("name", FAMILIES)
def test_the_harness_lists_the_models(name):
    theirs = models.get_model(FAMILIES[name][0], force_simple=name == "adatp_llava_onevision")
    assert name in models.list_available_models()
    assert issubclass(models.get_model(name), theirs)


def test_a_task_is_scored_by_one_command(checkpoint, clips, task, tmp_path):
    folder = checkpoint("adatp_llava_onevision")
    config = adatp.AdaTPConfig(target_flops=0.4, stages=(1, 3))
    first, second, third = answers_by_hand(folder, clips, config)
    assert first != second != third
    output = tmp_path / "results"
    # The page's command, with other values for some of its options.
    text = PAGE.read_text(encoding="utf-8")
    (command,) = re.findall(r"^lmms-eval (--model .*?)\n```", text, re.DOTALL | re.MULTILINE)
    words = shlex.split(command.replace("\\\n", ""))
    assert set(words[words.index("--tasks") + 1].split(",")) <= set(TaskManager().all_tasks)
    arguments = f"pretrained={folder},max_frames_num=6,target_flops=0.4,stages=[1,3]"
    for option, value in {"--model_args": arguments, "--tasks": "clips", "--output_path": str(output)}.items():
        words[words.index(option) + 1] = value
    words += ["--include_path", str(task(answers=(first, second, "w9"))), "--device", "cpu"]
    # tiny_checkpoints sees to torchvision first.
    run = "import tiny_checkpoints, runpy; runpy.run_module('lmms_eval', run_name='__main__')"
    path = os.pathsep.join([str(Path(tiny_checkpoints.__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", run, *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "of the FLOPs (target 0.400)" in done.stdout
    (results,) = output.rglob("*_results.json")
    results = json.loads(results.read_text(encoding="utf-8"))
    assert results["results"]["clips"]["exact_match,none"] == pytest.approx(2 / 3)
    (samples,) = output.rglob("*_samples_clips.jsonl")
    samples = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert [sample["filtered_resps"] for sample in samples] == [first, second, third]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name, checkpoint, task, log, monkeypatch):
    """Keeping all tokens, the harness's own answers; dropping some, others."""
    if name == "adatp_internvl":
        # Its processor reads files with torchcodec, which needs FFmpeg's libraries; PyAV brings them.
        from transformers import video_utils

        def fetch(self, videos, sample_indices_fn=None):
            loaded = [
                video_utils.load_video(one, backend="pyav", sample_indices_fn=sample_indices_fn) for one in videos
            ]
            return tuple(zip(*loaded, strict=True))

        monkeypatch.setattr(transformers.InternVLVideoProcessor, "fetch_videos", fetch)
    theirs, arguments, stages = FAMILIES[name]
    folder, arguments = task(), f"pretrained={checkpoint(name)},{arguments}"
    dense = answers_of(theirs, arguments, folder)
    assert all(dense)
    arguments += f",stages={stages}"
    # The harness reads the question behind a video where the installed transformers puts it.
    whole = arguments + (",positions=transformers" if name in PLACED else "") + ",target_flops=1,spatial_dedup=off"
    assert answers_of(name, whole, folder) == dense
    assert "1.000 of the FLOPs" in log[-1]
    frames, same = FED[name]
    assert log[-2].startswith(
        f"WARNING adatp: 3 of 3 prompts had a video; clips: 3, of {frames} / {frames} / {frames} frames (least / median / most). "
        f"{3 * same} of {3 * (frames - 1)} pairs of neighbouring frames, in 3 of the clips, are the same picture"
    )
    assert answers_of(name, f"{arguments},target_flops=0.5", folder) != dense
    assert "target 0.500" in log[-1]


def test_frames_that_the_harness_takes_twice_are_told(checkpoint, clips, task, log):
    """Its class for LLaVA-OneVision meets the number whatever a clip has."""
    film(clips / "long.mp4", 20, 1, np.random.default_rng(1))
    folder, arguments = task(videos=["long.mp4"] * 3), f"pretrained={checkpoint('adatp_llava_onevision')},stages=[1,3]"
    answers_of("adatp_llava_onevision", f"{arguments},max_frames_num=20", folder)
    assert log[-2] == (
        "INFO adatp: 3 of 3 prompts had a video; clips: 3, of 20 / 20 / 20 frames (least / median / most), none of which is the same "
        "picture as the one before it\n"
    )
    answers_of("adatp_llava_onevision", f"{arguments},max_frames_num=32", folder)
    assert (
        log[-2].startswith("WARNING adatp: 3 of 3 prompts") and "32 frames" in log[-2] and "36 of 93 pairs" in log[-2]
    )


def test_videos_that_the_harness_leaves_out_are_told(checkpoint, clips, task, log):
    """Its class for Qwen2-VL takes files of three names for videos, and passes over all others and what it cannot open."""
    film(clips / "1.mkv", 3, 4, np.random.default_rng(2))
    (clips / "broken.mp4").write_bytes(b"no video")
    arguments = f"pretrained={checkpoint('adatp_qwen2_vl')},{QWEN},stages=[1,3]"
    answers_of("adatp_qwen2_vl", arguments, task(videos=("0.mp4", "1.mkv", "broken.mp4")))
    assert log[-2].startswith("WARNING adatp: 1 of 3 prompts had a video; clips: 1, of 4 / 4 / 4 frames")


@pytest.mark.parametrize("name", PLACED)
def test_the_question_is_read_where_the_model_was_trained_to(name, checkpoint, task, tmp_path):
    """By default; in clips of twelve seconds, six frames of four by four tokens, time outruns space."""
    _, arguments, stages = FAMILIES[name]
    arguments = f"pretrained={checkpoint(name)},{arguments},stages={stages},target_flops=1,spatial_dedup=off"
    film(tmp_path / "slow.mp4", 3, 4, np.random.default_rng(0), rate=1)
    folder = task(videos=[tmp_path / "slow.mp4"] * 3)
    models.get_model(name)  # when they are imported, modules of the harness silence all warnings
    with pytest.warns(UserWarning, match=r"mrope_positions: .* was trained to read it"):
        plain = answers_of(name, f"{arguments},positions=transformers", folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        placed = answers_of(name, arguments, folder)
    assert not [warning for warning in caught if "mrope_positions" in str(warning.message)]
    assert placed == answers_of(name, f"{arguments},positions=trained", folder) != plain


@pytest.mark.parametrize("name", PLACED)
def test_positions_are_checked_before_anything_is_loaded(name):
    with pytest.raises(ValueError, match=r"positions: expected one of \['trained', 'transformers'\], got 'old'"):
        models.get_model(name).create_from_arg_string("pretrained=nowhere,positions=old")


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - set(PLACED)))
def test_positions_are_refused_where_there_is_no_choice(name):
    with pytest.raises(ValueError, match="positions: no such model argument"):
        models.get_model(name).create_from_arg_string("pretrained=nowhere,positions=transformers")


def test_images_are_pruned_by_an_option(checkpoint, task, log):
    folder = task("pictures", "picture")
    arguments = f"pretrained={checkpoint('adatp_llava_onevision')},stages=[1,3],target_flops=0.5"
    kept = answers_of("adatp_llava_onevision", arguments, folder, "pictures")
    assert "adatp: nothing was pruned, for none of 3 prompts had a video" in log[-1]
    assert answers_of("adatp_llava_onevision", f"{arguments},images=prune", folder, "pictures") != kept
    assert "target 0.500" in log[-1]


def test_what_cannot_be_generated_ends_the_run(checkpoint, task):
    """The harness's class would log it, and score an empty answer."""
    arguments = f"pretrained={checkpoint('adatp_llava_onevision')},max_frames_num=6,stages=[9],target_flops=0.1"
    with pytest.raises(ValueError, match=r"target_flops: 0\.1 cannot be reached"):
        answers_of("adatp_llava_onevision", arguments, task())


def test_loglikelihood_is_refused(checkpoint):
    arguments = f"pretrained={checkpoint('adatp_llava_onevision')},stages=[1,3],device=cpu"
    model = models.get_model("adatp_llava_onevision").create_from_arg_string(arguments)
    with pytest.raises(NotImplementedError, match="loglikelihood: .* generate_until"):
        model.loglikelihood([])


@pytest.mark.parametrize("name", ["adatp_llava_onevision", "adatp_qwen2_vl"])
def test_the_model_is_left_when_all_answers_are_there(name, checkpoint):
    arguments = f"pretrained={checkpoint(name)},stages=[1,3],device=cpu,device_map=cpu"
    model = models.get_model(name).create_from_arg_string(arguments)
    inner = model.model
    assert ("get_rope_index" in vars(inner.model)) == (name in PLACED)
    model.clean()
    assert "get_rope_index" not in vars(inner.model)
    adatp.accelerate(inner, adatp.AdaTPConfig(stages=(1, 3))).remove()  # it is accelerated no more
    assert not [value for value in vars(model).values() if isinstance(value, (torch.nn.Module, adatp.Acceleration))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("target_flop=0.3", "target_flop: no such model argument; the pruner takes .*'target_flops'.*'max_frames_num'"),
        ("target_flops=little", "target_flops: expected a number, got 'little'"),
        ("target_flops=0", r"target_flops: expected a number in \(0.0, 1.0\], got 0"),
        ("target_flops=nan", "target_flops: expected a number"),
        ("preset=best", "preset: expected one of .*'fastv'.* got 'best'"),
        ("images=drop", "images: expected one of .*'prune'.* got 'drop'"),
        ("stages=[1,", r"stages: expected a list in JSON, such as \[1,3,5\], got '\[1,'"),
        ("stages=[3,1]", "stages: layers must ascend strictly"),
        ("stages=all", "stages: expected one of .*'progressive'.* got 'all'"),
        ("schedule=[0.5],target_flops=0.5", "target_flops: an explicit schedule"),
        ("compact_cache=yes", "compact_cache: expected a bool, got 'yes'"),
        ("seed=1.5", "seed: expected an integer, got 1.5"),
        ("backend=cuda", "backend: expected one of .* got 'cuda'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_loaded(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        models.get_model("adatp_llava_onevision").create_from_arg_string(f"pretrained=nowhere,{arguments}")


def test_right_arguments_are_the_configuration():
    def harness(pretrained, device="cuda", **others):
        raise AssertionError

    config = lambda **arguments: split_arguments(arguments, harness)[1]  # noqa: E731
    assert config() == adatp.AdaTPConfig()
    assert config(target_flops=1) == adatp.AdaTPConfig(target_flops=1.0)
    assert config(preset="fastv", target_flops=0.2) == adatp.AdaTPConfig.preset("fastv", target_flops=0.2)
    assert config(preset="fastv", queries="text").queries == "text"
    assert config(prior="prior.safetensors") == adatp.AdaTPConfig(prior="prior.safetensors")
    assert config(stages="[1,5]", schedule="[0.5,0.25]", compact_cache=True) == adatp.AdaTPConfig(
        target_flops=None, stages=(1, 5), schedule=(0.5, 0.25), compact_cache=True
    )
    rest, _, images = split_arguments({"pretrained": "here", "device": "cpu", "images": "prune"}, harness)
    assert rest == {"pretrained": "here", "device": "cpu"} and images == "prune"
