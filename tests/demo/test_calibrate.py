"""The command that measures a prior."""

import pytest
import torch

import adatp_kernels as adatp
from adatp_kernels.cli import main
from adatp_kernels.prior import load_prior


def test_a_prior_is_written_and_used(capsys, tmp_path):
    path = tmp_path / "prior.safetensors"
    assert main(["calibrate", "--frames", "3", "--clips", "2", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "prior for 3 frames of 49 positions" in printed and f"AdaTPConfig(prior='{path}')" in printed
    prior = load_prior(path)
    assert prior.shape == (3, 49) and 0 < prior.min() < 1 < prior.max()
    assert adatp.AdaTPConfig(prior=path).prior == str(path)
    again = tmp_path / "again.safetensors"
    main(["calibrate", "--frames", "3", "--clips", "2", "--output", str(again)])
    assert torch.equal(load_prior(again), prior)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--frames", "0"), "--frames: expected at least 1, got 0"),
        (("--clips", "0"), "--clips: expected at least 1, got 0"),
        (("--output", "/nowhere/prior"), "no such directory for the prior"),
        (("--output", "/"), "--output: expected a file for the prior, got a directory"),
        (("--model", "/nowhere"), "no such model"),
    ],
)
def test_mistakes_end_with_code_2(capsys, arguments, message):
    assert main(["calibrate", *arguments]) == 2
    assert message in capsys.readouterr().err
