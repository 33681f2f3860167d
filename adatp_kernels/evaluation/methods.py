"""What is compared: published methods at one cost, controls that show what a gain is not, and AdaTP with a part taken out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from adatp_kernels.config import PRESETS, AdaTPConfig
from adatp_kernels.plan import flops_ratio

BUDGETS = (0.5, 0.273, 0.15)
ABLATED_AT = 0.273


@dataclass(frozen=True)
class Method:
    """One way of pruning.

    Attributes
    ----------
    name : str
    group : {"preset", "control", "ablation"}
    budget : float or None
        Share of the FLOPs it is to cost; None where the schedule itself is the point.
    config : AdaTPConfig or None
        None prunes nothing.
    relevance : bool
        Whether it is told how relevant each frame is to the question.
    """

    name: str
    group: str
    budget: float | None
    config: AdaTPConfig | None
    relevance: bool = False

    @property
    def nothing_after(self) -> int | None:
        """The layer after which it leaves no visual token, of the controls that do just that."""
        if self.group != "control" or self.budget is not None or self.config is None:
            return None
        return int(self.config.stages[0])


@dataclass(frozen=True)
class Decoder:
    """The widths that FLOPs are counted from, and the number of layers; see `visual_flops`."""

    num_layers: int
    hidden_size: int
    key_width: int
    mlp_width: int

    def least(self, config: AdaTPConfig, tokens: int) -> float:
        """The least share of the FLOPs that a configuration's stages can reach: one token left by the first of them."""
        first = config.stage_layers(self.num_layers)[0] + 1
        widths = {name: width for name, width in dataclasses.asdict(self).items() if name != "num_layers"}
        return flops_ratio([tokens] * first + [1] * (self.num_layers - first), **widths)


def adatp(budget: float, threshold: float) -> AdaTPConfig:
    """The method as published, with the threshold that finds this model's shots."""
    return dataclasses.replace(AdaTPConfig.preset("adatp", target_flops=budget), segment_threshold=threshold)


def budgets_of(decoder: Decoder, tokens: int) -> tuple[float, ...]:
    """The budgets that are compared: `BUDGETS`, and the least that AdaTP's stages reach."""
    return (*BUDGETS, decoder.least(AdaTPConfig(), tokens))


def presets(decoder: Decoder, tokens: int, threshold: float) -> list[Method]:
    """Every preset at every budget that it can reach; a random choice before the decoder, at the least, can reach all."""
    methods = [Method("dense", "preset", None, None)]
    for budget in budgets_of(decoder, tokens):
        for name in PRESETS:
            config = adatp(budget, threshold) if name == "adatp" else AdaTPConfig.preset(name, target_flops=budget)
            if decoder.least(config, tokens) <= budget:
                methods.append(Method(name, "preset", budget, config, relevance=name == "adatp"))
    return methods


def controls(decoder: Decoder, tokens: int, threshold: float) -> list[Method]:
    """Random scores on AdaTP's own schedule, and no visual token at all after each of the layers."""
    schedule = [
        Method(
            "random scores, adatp's schedule",
            "control",
            budget,
            dataclasses.replace(adatp(budget, threshold), score="random"),
            True,
        )
        for budget in budgets_of(decoder, tokens)
    ]
    nothing = AdaTPConfig(target_flops=None, stages=(0,), schedule=(0.0,), segment_threshold=-1.0, score="uniform")
    return schedule + [
        Method(f"nothing after layer {layer}", "control", None, dataclasses.replace(nothing, stages=(layer,)))
        for layer in range(decoder.num_layers - 1)
    ]


def ablations(threshold: float, prior: str) -> list[Method]:
    """AdaTP with one part changed, at `ABLATED_AT`; `prior` is the path of a calibrated one."""
    whole = adatp(ABLATED_AT, threshold)
    changed: dict[str, dict[str, Any]] = {
        "no spatial deduplication": {"spatial_dedup": "off"},
        "soft deduplication (½)": {"spatial_dedup": "soft", "soft_weight": 0.5},
        # One token per position of the whole video would be too few to spend the budget on.
        "no segments, so no deduplication and no relevance": {"segment_threshold": -1.0, "spatial_dedup": "off"},
        "last row for all rows": {"queries": "last"},
        "single stage": {"stages": "single"},
        "with a calibrated prior": {"prior": prior},
    }
    methods = [
        Method(name, "ablation", ABLATED_AT, dataclasses.replace(whole, **changes), relevance=True)
        for name, changes in changed.items()
    ]
    alone = dataclasses.replace(whole, spatial_dedup="off")
    return [
        *methods,
        Method("no text relevance", "ablation", ABLATED_AT, whole),
        Method("no text relevance, no deduplication", "ablation", ABLATED_AT, alone),
    ]
