"""Which of a model's arguments are the pruner's, checked before any weights are loaded."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable
from typing import Any

from adatp_kernels.config import PRESETS, AdaTPConfig
from adatp_kernels.errors import choice

FIELDS = [field.name for field in dataclasses.fields(AdaTPConfig)]
IMAGES = ("keep", "prune")


def split_arguments(arguments: dict[str, Any], harness: Callable[..., Any]) -> tuple[dict[str, Any], AdaTPConfig, str]:
    """Tell the pruner's arguments from the harness's own.

    Parameters
    ----------
    arguments : dict
        What came in ``--model_args``: the fields of `AdaTPConfig`, ``preset`` (whose fields the others
        change), ``images`` as `accelerate` takes it, and what `harness` takes. Lists are JSON, as in
        ``stages=[1,3,5]``.
    harness : callable
        The constructor of the harness's class.

    Returns
    -------
    arguments : dict
        Those for `harness`.
    config : AdaTPConfig
    images : {"keep", "prune"}

    Raises
    ------
    TypeError, ValueError
        If an argument is unknown, or its value is not allowed; the message names the argument.
    """
    theirs = [
        name
        for name, parameter in inspect.signature(harness).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    ours = {"preset", "images", *FIELDS}
    for name in arguments:
        if name not in ours and name not in theirs:
            raise ValueError(
                f"{name}: no such model argument; the pruner takes {sorted(ours)}, the model {sorted(theirs)}"
            )
    preset = choice("preset", arguments.get("preset", "adatp"), PRESETS)
    images = choice("images", arguments.get("images", "keep"), IMAGES)
    fields = {name: _listed(name, arguments[name]) for name in FIELDS if name in arguments}
    if not isinstance(fields.get("schedule", ""), str):
        fields.setdefault("target_flops", None)  # such a schedule decides the FLOPs itself
    config = dataclasses.replace(AdaTPConfig.preset(preset), **fields)
    return {name: value for name, value in arguments.items() if name not in ours}, config, images


def _listed(name: str, value: Any) -> Any:
    """`value`, or the list that it is the JSON of."""
    if not isinstance(value, str) or not value.startswith("["):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError(f"{name}: expected a list in JSON, such as [1,3,5], got {value!r}: {error}") from error
