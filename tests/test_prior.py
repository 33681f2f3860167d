"""Positional priors in files."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import adatp_kernels as adatp
from adatp_kernels.prior import load_prior

DECODER = {"num_layers": 6, "hidden_size": 8, "key_width": 4, "mlp_width": 16}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_saved_is_loaded(tmp_path, dtype):
    path, prior = tmp_path / "prior.safetensors", torch.rand(3, 4).to(dtype)
    adatp.save_prior(prior.T.contiguous().T, path, {"model": "none"})
    assert load_prior(path).equal(prior.float())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"model": "none"}


def test_what_is_no_prior_is_refused(tmp_path):
    path = tmp_path / "prior.safetensors"
    for bad, error, message in (
        ([[1.0]], TypeError, "prior: expected a tensor"),
        (torch.ones(2, 2).long(), TypeError, "prior: expected .*int64"),
        (torch.ones(4), ValueError, r"prior: expected shape \[num_frames, positions\], got \[4\]"),
        (torch.ones(0, 4), ValueError, r"prior: expected shape .*, got \[0, 4\]"),
        (torch.tensor([[1.0, -1.0]]), ValueError, "prior: expected finite factors of at least 0"),
        (torch.tensor([[1.0, float("nan")]]), ValueError, "prior: expected finite factors"),
    ):
        with pytest.raises(error, match=message):
            adatp.save_prior(bad, path)
    assert not path.exists()
    path.write_text("no tensors")
    save_file({"other": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    for where, message in (
        (tmp_path / "missing", "prior: expected a safetensors file, got .*missing"),
        (path, "prior: expected a safetensors file"),
        (tmp_path / "other.safetensors", r"prior: expected a tensor 'prior' in .*, got \['other'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            adatp.AdaTPPruner(adatp.AdaTPConfig(stages=(1,), prior=where), **DECODER)
    with pytest.raises(TypeError, match="prior: expected the path of a file, got 3"):
        adatp.AdaTPConfig(prior=3)


def test_the_callers_prior_comes_before_the_configured_one(tmp_path):
    adatp.save_prior(torch.full((2, 3), 2.0), tmp_path / "prior.safetensors")
    config = adatp.AdaTPConfig(target_flops=0.5, stages=(1,), prior=str(tmp_path / "prior.safetensors"))
    layout = adatp.VisualLayout.grid(2, 3, start=1)
    pruner = adatp.AdaTPPruner(config, **DECODER)
    begin = lambda **options: pruner.begin(layout, 9, segments=torch.tensor([0, 1]), **options)  # noqa: E731
    text = [1.0], [1.0, 1.0]
    assert begin()._prior.tolist() == [[*text[0], *[2.0] * 6, *text[1]]]
    assert begin(prior=torch.full((2, 3), 5.0))._prior.tolist() == [[*text[0], *[5.0] * 6, *text[1]]]
