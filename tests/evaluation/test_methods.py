"""What is compared costs what it says."""

import pytest
import torch

import adatp_kernels as adatp
from adatp_kernels.evaluation import methods
from adatp_kernels.evaluation.methods import Decoder

DECODER = Decoder(num_layers=16, hidden_size=96, key_width=48, mlp_width=192)
WIDTHS = {"num_layers": 16, "hidden_size": 96, "key_width": 48, "mlp_width": 192}


def planned(config, frames=16, cells=9):
    layout = adatp.VisualLayout.grid(frames, cells, start=1)
    whole = config.segment_threshold < 0
    segments = torch.zeros(frames, dtype=torch.int64) if whole else torch.arange(frames) // 2
    return adatp.make_plan(config, layout, segments, **WIDTHS)


def test_every_preset_meets_every_budget_that_it_can():
    budgets = methods.budgets_of(DECODER, 144)
    assert budgets[:3] == (0.5, 0.273, 0.15) and 0.125 < budgets[3] < 0.135
    chosen = methods.presets(DECODER, 144, 0.8)
    assert chosen[0] == methods.Method("dense", "preset", None, None)
    for method in chosen[1:]:
        assert planned(method.config).flops_ratio == pytest.approx(method.budget, rel=0.02), method.name
    names = {budget: [m.name for m in chosen if m.budget == budget] for budget in budgets}
    every = ["adatp", "fastv", "pyramiddrop", "random", "uniform"]
    without = [name for name in every if name != "pyramiddrop"]  # a quarter of the layers comes before its first stage
    assert list(names.values()) == [every, every, without, without]


def test_controls_and_ablations_differ_from_adatp_in_one_thing():
    budgets = methods.budgets_of(DECODER, 144)
    controls = methods.controls(DECODER, 144, 0.8)
    for method, budget in zip(controls[:4], budgets, strict=True):
        assert planned(method.config) == planned(methods.adatp(budget, 0.8))
        assert method.config.score == "random"
    for layer, method in enumerate(controls[4:]):
        assert planned(method.config).tokens_per_layer == tuple([144] * (layer + 1) + [0] * (15 - layer))
    assert len(controls) == 4 + 15
    whole = methods.Method("adatp", "ablation", 0.273, methods.adatp(0.273, 0.8), relevance=True)
    for method in methods.ablations(0.8, "prior"):
        fields = {name for name, value in vars(method.config).items() if value != getattr(whole.config, name)}
        changed = fields | ({"relevance"} if not method.relevance else set())
        follows = {"soft_weight"} | ({"spatial_dedup"} if "segment_threshold" in changed else set())
        assert len(changed - follows) == 1 + (method.name == "no text relevance, no deduplication"), method.name
        # The cost is the same, but for the prior, which is no file here.
        if method.config.prior is None:
            assert planned(method.config).flops_ratio == pytest.approx(0.273, rel=0.02), method.name
