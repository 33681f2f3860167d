"""AdaTPConfig: every choice of the method in one frozen, validated, serialisable object."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adatp_kernels.errors import choice, integer, number

STAGES = ("progressive", "single", "three")
SCHEDULES = ("geometric", "linear")
SCORES = ("attention", "random", "uniform")
QUERIES = ("text", "last")
DEDUPLICATION = ("strict", "soft", "off")
BACKENDS = ("auto", "reference", "triton", "native")
PRESETS = ("adatp", "fastv", "pyramiddrop", "random", "uniform")


@dataclass(frozen=True)
class AdaTPConfig:
    """How many visual tokens to keep, where to drop them, and by what score.

    The defaults are the method of the paper as ``algorithm.md`` defines it. The object is frozen;
    derive a variant with ``dataclasses.replace``.

    Parameters
    ----------
    target_flops : float or None
        Share of the visual tokens' FLOPs that pruning leaves, in ``(0, 1]``. ``None`` only, and
        always, together with an explicit `schedule`.
    stages : {"progressive", "single", "three"} or sequence of int
        Decoder layers (from zero) after which tokens are dropped. ``"progressive"`` is 1 … N−13 of
        N layers, ``"single"`` is 1, ``"three"`` is 1/4, 1/2 and 3/4 of the depth.
    schedule : {"geometric", "linear"} or sequence of float
        How the number kept falls from stage to stage: ``V·α^i``, or a straight line, with the free
        number solved from `target_flops`; or the kept share of V after each stage, in ``[0, 1]``.
    segment_threshold : float
        Neighbouring frames whose features' cosine is at least this are one segment. In ``[-1, 1]``;
        −1 makes the whole video one segment.
    salient_boost : float
        Weight of a text-relevant segment's tokens against the others' when budgets are shared out.
        From 1 to a million.
    spatial_dedup : {"strict", "soft", "off"}
        Local debiasing: keep one token per spatial position of a segment, or multiply the score of
        the others by `soft_weight`, or neither.
    soft_weight : float
        The factor of ``"soft"``, in ``[0, 1]``.
    prior : str or None
        Path of a positional prior, as ``adatp calibrate`` writes it: a factor on the score of every frame and position.
    queries : {"text", "last"}
        The rows that score: all text tokens after the last visual token, or the last token alone.
    score : {"attention", "random", "uniform"}
        The score itself; the last two are baselines that ignore the model.
    seed : int
        Seed of ``score="random"``.
    compact_cache : bool
        Also drop pruned tokens from the KV cache of the layers that ran before they were pruned.
    backend : {"auto", "reference", "triton", "native"}
        Which implementation of the operations runs.

    Raises
    ------
    TypeError, ValueError
        If a field has the wrong type or lies outside its range; the message names the field.
    """

    target_flops: float | None = 0.273
    stages: str | tuple[int, ...] = "progressive"
    schedule: str | tuple[float, ...] = "geometric"
    segment_threshold: float = 0.95
    salient_boost: float = 2.0
    spatial_dedup: Literal["strict", "soft", "off"] = "strict"
    soft_weight: float = 0.0
    prior: str | None = None
    queries: Literal["text", "last"] = "text"
    score: Literal["attention", "random", "uniform"] = "attention"
    seed: int = 0
    compact_cache: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        set_field = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731 - the dataclass is frozen
        set_field("stages", _stages(self.stages))
        set_field("schedule", _schedule(self.schedule))
        if isinstance(self.schedule, str):
            if self.target_flops is None:
                raise ValueError(
                    f"target_flops: None is allowed only with an explicit schedule; schedule is {self.schedule!r}"
                )
            set_field("target_flops", number("target_flops", self.target_flops, low=0.0, high=1.0, open_low=True))
        elif self.target_flops is not None:
            raise ValueError(
                f"target_flops: an explicit schedule decides the FLOPs itself, so target_flops must be None; got {self.target_flops!r}"
            )
        elif not isinstance(self.stages, str) and len(self.stages) != len(self.schedule):
            raise ValueError(
                f"schedule: {len(self.schedule)} kept shares for {len(self.stages)} stages; one per stage is needed"
            )
        set_field("segment_threshold", number("segment_threshold", self.segment_threshold, low=-1.0, high=1.0))
        set_field("salient_boost", number("salient_boost", self.salient_boost, low=1.0, high=1e6))
        choice("spatial_dedup", self.spatial_dedup, DEDUPLICATION)
        set_field("soft_weight", number("soft_weight", self.soft_weight, low=0.0, high=1.0))
        if self.prior is not None:
            if not isinstance(self.prior, (str, os.PathLike)):
                raise TypeError(f"prior: expected the path of a file, got {self.prior!r}")
            set_field("prior", os.fspath(self.prior))
        choice("queries", self.queries, QUERIES)
        choice("score", self.score, SCORES)
        set_field("seed", integer("seed", self.seed, low=0))
        if not isinstance(self.compact_cache, bool):
            raise TypeError(f"compact_cache: expected a bool, got {self.compact_cache!r}")
        choice("backend", self.backend, BACKENDS)

    @classmethod
    def preset(cls, name: str, *, target_flops: float = 0.273) -> AdaTPConfig:
        """A published method, or a baseline, in the terms of this package, at a chosen cost.

        Parameters
        ----------
        name : {"adatp", "fastv", "pyramiddrop", "random", "uniform"}
            ``fastv``: one stage after layer 1, scored by the last row, one segment, no
            deduplication. ``pyramiddrop``: the same at 1/4, 1/2 and 3/4 of the depth. ``random`` and
            ``uniform``: FastV's one stage with random scores, or an even stride.
        target_flops : float
            As in the constructor, so that all presets can be compared at the same cost.
        """
        choice("name", name, PRESETS)
        if name == "adatp":
            return cls(target_flops=target_flops)
        plain = cls(
            target_flops=target_flops, stages="single", segment_threshold=-1.0, spatial_dedup="off", queries="last"
        )
        if name == "fastv":
            return plain
        if name == "pyramiddrop":
            return dataclasses.replace(plain, stages="three")
        return dataclasses.replace(plain, score="random" if name == "random" else "uniform")

    def stage_layers(self, num_layers: int) -> tuple[int, ...]:
        """The decoder layers, from zero, after which this configuration drops tokens.

        Raises
        ------
        ValueError
            If `num_layers` is too small for the chosen stages.
        """
        integer("num_layers", num_layers, low=2)
        if self.stages == "progressive":
            if num_layers < 14:
                raise ValueError(
                    f"stages: 'progressive' prunes after layers 1 … num_layers-13 and so needs at least 14 layers; the decoder has "
                    f"{num_layers}. Give the layers explicitly, e.g. stages=(1, 2)"
                )
            layers = tuple(range(1, num_layers - 12))
        elif self.stages == "single":
            layers = (1,)
        elif self.stages == "three":
            layers = tuple(sorted({max(0, num_layers * quarter // 4 - 1) for quarter in (1, 2, 3)}))
        else:
            layers = tuple(int(layer) for layer in self.stages)
        if layers[-1] > num_layers - 2:
            raise ValueError(
                f"stages: tokens are dropped after a layer and before the next, so the last stage may be layer {num_layers - 2} of "
                f"{num_layers}; got {layers[-1]}"
            )
        if not isinstance(self.schedule, str) and len(self.schedule) != len(layers):
            raise ValueError(
                f"schedule: {len(self.schedule)} kept shares for {len(layers)} stages; one per stage is needed"
            )
        return layers

    def to_json(self) -> str:
        """This configuration as a JSON object with every field."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> AdaTPConfig:
        """The configuration that `to_json` wrote.

        Raises
        ------
        ValueError
            If `text` is no JSON object or has a key that is no field.
        """
        try:
            fields: Any = json.loads(text)
        except (TypeError, ValueError) as error:
            raise ValueError(f"text: not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise ValueError(f"text: expected a JSON object, got {type(fields).__name__}")
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ValueError(f"text: unknown keys {unknown}; known are {sorted(known)}")
        return cls(**fields)


def _stages(value: Any) -> str | tuple[int, ...]:
    if isinstance(value, str):
        return choice("stages", value, STAGES)
    if not isinstance(value, Sequence) or not value:
        raise TypeError(f"stages: expected one of {list(STAGES)} or a non-empty sequence of layers, got {value!r}")
    layers = tuple(integer("stages", layer, low=0) for layer in value)
    if any(later <= earlier for earlier, later in itertools.pairwise(layers)):
        raise ValueError(f"stages: layers must ascend strictly, got {list(value)}")
    return layers


def _schedule(value: Any) -> str | tuple[float, ...]:
    if isinstance(value, str):
        return choice("schedule", value, SCHEDULES)
    if not isinstance(value, Sequence) or not value:
        raise TypeError(
            f"schedule: expected one of {list(SCHEDULES)} or a non-empty sequence of kept shares, got {value!r}"
        )
    shares = tuple(number("schedule", share, low=0.0, high=1.0) for share in value)
    if any(later > earlier for earlier, later in itertools.pairwise(shares)):
        raise ValueError(f"schedule: kept shares may not rise, got {list(value)}")
    return shares
