"""calibrate_prior: what a model attends to where there is nothing to see, as a positional prior that evens it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adatp_kernels.config import AdaTPConfig
from adatp_kernels.integrations.transformers import families
from adatp_kernels.integrations.transformers.observe import observe, prompts_of


def calibrate_prior(
    model: nn.Module, prompts: Mapping[str, Any] | Iterable[Mapping[str, Any]], config: AdaTPConfig | None = None
) -> Tensor:
    """The positional prior that makes attention to content-free videos even (``algorithm.md``, step 5).

    What is attended where all frames show the same nothing is the model's habit. The prior is the mean of it over its
    value at each frame and position, so that a token's score becomes how much more it is attended than habit has it.

    Parameters
    ----------
    model : transformers model
        As for `accelerate`.
    prompts : dict, or iterable of dict
        What the model's forward takes: a prompt with a content-free video (grey, noise), or several with the same layout.
    config : AdaTPConfig, optional
        Its stages say in which layers the habit is measured, its queries which rows ask; the published ones by default.

    Returns
    -------
    Tensor [num_frames, positions]
        float32, 1 on average if weighted by the habit; 1 where a frame has no such position. `save_prior` writes it.

    Raises
    ------
    TypeError, ValueError
        If there is no prompt, or the prompts' layouts differ.
    """
    config = AdaTPConfig() if config is None else config
    if not isinstance(config, AdaTPConfig):
        raise TypeError(f"config: expected an AdaTPConfig, got {type(config).__name__}")
    whole = families.unwrap(model)
    layers = config.stage_layers(len(families.find(whole).decoder(whole).layers))
    habit = layout = None
    for inputs in prompts_of("prompts", prompts):
        seen = observe(model, inputs, config, layers)
        shares = (seen.scores / seen.scores.sum(1, keepdim=True)).double().mean(0)
        if layout is None or habit is None:
            layout, habit = seen.layout, shares
            continue
        same = len(layout) == len(seen.layout) and layout.frame.equal(seen.layout.frame)
        if not same or not layout.position.equal(seen.layout.position):
            raise ValueError(
                f"prompts: expected the same layout in all, got {layout.num_frames} frames of {len(layout)} tokens, then "
                f"{seen.layout.num_frames} of {len(seen.layout)}"
            )
        habit = habit + shares
    if layout is None or habit is None:
        raise ValueError("prompts: expected at least one, got none")
    prior = torch.ones(layout.num_frames, int(layout.position.max()) + 1, dtype=torch.float32, device="cpu")
    prior[layout.frame, layout.position] = (habit.mean() / habit.clamp(min=habit.mean() * 1e-6)).float()
    return prior
