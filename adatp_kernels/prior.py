"""Positional priors in files: a factor for every frame and position (``algorithm.md``, step 5)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from adatp_kernels.ops import checks

_NAME = "prior"


def load_prior(path: str | Path) -> Tensor:
    """The prior that `save_prior` wrote, float32 [num_frames, positions].

    Raises
    ------
    ValueError
        If `path` is no such file, or what it holds is no prior.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"prior: expected a safetensors file, got {str(path)!r}: {error}") from error
    if _NAME not in tensors:
        raise ValueError(f"prior: expected a tensor {_NAME!r} in {str(path)!r}, got {sorted(tensors)}")
    return check_prior(tensors[_NAME])


def save_prior(prior: Tensor, path: str | Path, about: dict[str, str] | None = None) -> None:
    """Write a prior that `AdaTPConfig` takes by its path.

    Parameters
    ----------
    prior : Tensor [num_frames, positions]
        Finite, not negative.
    path : str or Path
    about : dict of str to str, optional
        What it was made of; the file's metadata.

    Raises
    ------
    TypeError, ValueError
        If `prior` is no such tensor.
    """
    from safetensors.torch import save_file

    save_file({_NAME: check_prior(prior).contiguous()}, path, metadata=about)


def check_prior(prior: Tensor) -> Tensor:
    """`prior` in float32 on the host, or an error that says what is wrong with it."""
    checks.tensor("prior", prior, checks.FLOATS)
    if prior.dim() != 2 or prior.numel() == 0:
        raise ValueError(f"prior: expected shape [num_frames, positions], got {list(prior.shape)}")
    if not bool((prior.isfinite() & (prior >= 0)).all()):
        raise ValueError("prior: expected finite factors of at least 0")
    return prior.detach().to("cpu", torch.float32)
