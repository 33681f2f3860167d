"""The command that measures a prior."""

import numpy as np
import pytest
import torch

import adatp_kernels as adatp
from adatp_kernels.cli import main
from adatp_kernels.demo import calibrate
from adatp_kernels.prior import load_prior


def test_a_prior_of_the_trained_model_is_written_and_used(capsys, tmp_path):
    path = tmp_path / "prior.safetensors"
    assert main(["calibrate", "--clips", "2", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "prior for 16 frames of 9 positions" in printed and f"AdaTPConfig(prior='{path}')" in printed
    prior = load_prior(path)
    assert prior.shape == (16, 9) and 0 < prior.min() < 1 < prior.max()
    assert adatp.AdaTPConfig(prior=path).prior == str(path)
    again = tmp_path / "again.safetensors"
    assert main(["calibrate", "--clips", "2", "--output", str(again)]) == 0
    assert torch.equal(load_prior(again), prior)
    assert main(["calibrate", "--clips", "2", "--frames", "3", "--output", str(again)]) == 0
    assert load_prior(again).shape == (3, 9)


def test_empty_clips_are_grey_each_another_with_grain_of_its_own():
    clips = [*calibrate._clips(3, (2, 12, 16, 3))]
    means = [clip.mean() for clip in clips]
    assert means == sorted(means) and means[0] < 50 < 200 < means[-1]
    assert not np.array_equal(clips[1][0], clips[1][1]) and 4 < clips[1].std() < 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--frames", "0"), "--frames: expected at least 1, got 0"),
        (("--clips", "0"), "--clips: expected at least 1, got 0"),
        (("--size", "640"), "--size: expected width x height, such as 640x360, got '640'"),
        (("--size", "640x0"), "--size: expected width x height, such as 640x360, got '640x0'"),
        (("--output", "/nowhere/prior"), "no such directory for the prior"),
        (("--output", "/"), "expected a file for the prior, got a directory"),
        (("--question", " "), "--question: expected words, got none"),
        (("--question", "\udcff"), "--question: expected text in UTF-8, got other bytes"),
        (("--stages", "9,1"), "stages: layers must ascend strictly, got [9, 1]"),
        (("--model", "/nowhere"), "no such folder for the model: /nowhere"),
        (("--model", ""), "--model: expected a folder or an id of a checkpoint, got nothing"),
    ],
)
def test_mistakes_end_with_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert main(["calibrate", *arguments]) == 2
    assert message in capsys.readouterr().err
