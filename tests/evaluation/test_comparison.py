"""Running methods over clips, and what is told of it."""

import json
import re

import numpy as np
import pytest
import torch

import adatp_kernels as adatp
from adatp_kernels.demo.clips.questions import CHANCE, KINDS
from adatp_kernels.demo.training.batches import example, prompt
from adatp_kernels.demo.training.network import build_network
from adatp_kernels.evaluation import methods, run
from adatp_kernels.evaluation.methods import Method
from adatp_kernels.evaluation.report import Comparison
from adatp_kernels.evaluation.run import Floors, Outcome, compare, decoder_of, inputs_of, kind_of


@pytest.fixture(scope="module")
def model():
    return build_network(0).eval()


def test_outcomes_are_those_of_one_clip_at_a_time(model):
    chosen = [
        Method("dense", "preset", None, None),
        Method("adatp", "preset", 0.5, methods.adatp(0.5, 1.0), relevance=True),
        Method("fastv", "preset", 0.273, adatp.AdaTPConfig.preset("fastv", target_flops=0.273)),
        methods.controls(decoder_of(model), 144, 0.9)[-1],
        Method("no text relevance", "ablation", 0.5, methods.adatp(0.5, 1.0)),
    ]
    clips = 10
    outcomes, _ = compare(model, chosen, clips, KINDS)
    assert all(len(outcome.right) == clips for outcome in outcomes)
    for number in range(clips):
        one = example("held-out", number, {kind_of(number, KINDS): 1})
        inputs, (answer,) = inputs_of([one])
        assert inputs["input_ids"][0].tolist() == prompt(one.questions[0].text, 16)
        with torch.no_grad():
            assert (int(model(**inputs).logits[0, -1].argmax()) == answer) == outcomes[0].right[number]
        holds = torch.from_numpy(one.questions[0].tokens(one.clip)).flatten()
        with adatp.accelerate(model, chosen[2].config) as run, torch.no_grad():
            assert (int(model(**inputs).logits[0, -1].argmax()) == answer) == outcomes[2].right[number]
        report = run.report()
        left = torch.isin(report.layout.index, report.survivors[-1][1])
        assert outcomes[2].alive[number][:2].tolist() == [1, 1]
        assert outcomes[2].alive[number][-1] == pytest.approx(float(left[holds].float().mean()))
        assert outcomes[2].actual[number] == report.actual_flops_ratio
    assert all(row[-1] == 0 for row in outcomes[3].found + outcomes[3].alive)
    assert any((one != other).any() for one, other in zip(outcomes[1].alive, outcomes[4].alive, strict=True))
    assert outcomes[1].planned == outcomes[1].actual == pytest.approx([0.5] * clips, rel=0.02)
    assert all((one >= other).all() for one, other in zip(outcomes[2].found, outcomes[2].alive, strict=True))


def test_every_batch_draws_random_numbers_of_its_own(model, monkeypatch):
    seeds = []

    def spy(model, config, **options):
        seeds.append(config.seed)
        return adatp.accelerate(model, config, **options)

    monkeypatch.setattr(run, "accelerate", spy)
    chosen = [Method("random", "preset", 0.273, adatp.AdaTPConfig.preset("random", target_flops=0.273))] * 2
    compare(model, chosen, run.BATCH + 1, ("color",))
    assert seeds == [0, 0, run.BATCH, run.BATCH]  # the same for all methods


def comparison(clips=400):
    """Two presets at two budgets of which the first is right three times of four, and the second half as often."""
    rng = np.random.default_rng(0)
    chosen = [Method("dense", "preset", None, None)]
    outcomes = [Outcome([True] * clips, [np.ones(9)] * clips, [np.ones(9)] * clips, [1.0] * clips, [1.0] * clips)]
    for budget in (0.5, 0.25):
        for name, share in (("adatp", 0.75), ("fastv", 0.375)):
            chosen.append(Method(name, "preset", budget, adatp.AdaTPConfig(target_flops=budget)))
            right = (rng.random(clips) < share).tolist()
            actual = budget * (1.05 if (name, budget) == ("fastv", 0.25) else 1)
            outcomes.append(
                Outcome(
                    right,
                    [np.full(9, 0.1)] * clips,
                    [np.array([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25])] * clips,
                    [budget] * clips,
                    [actual] * clips,
                )
            )
    return Comparison(
        chosen, outcomes, Floors([False] * clips, [False] * (clips // 2) + [True] * (clips // 2), [0.25] * clips), KINDS
    )


def test_tables_tell_what_came_out(tmp_path):
    result = comparison()
    assert result.budgets == [0.5, 0.25]
    rows = result.table().splitlines()
    guess = f"{100 * np.mean([max(0.25, CHANCE[kind_of(number, KINDS)]) for number in range(400)]):.1f}"
    assert rows[0] == "| accuracy in % | 0.500 of the FLOPs | 0.250 of the FLOPs |"
    assert re.fullmatch(r"\| adatp( \| 7\d\.\d \[6\d\.\d, 7\d\.\d\]){2} \|", rows[2]), rows[2]
    assert rows[-4:] == [
        "| not pruned | 100.0 [100.0, 100.0] | 100.0 [100.0, 100.0] |",
        "| without a video | 0.0 | 0.0 |",
        "| another clip's question | 50.0 | 50.0 |",
        f"| best guess without the clip or without the question | {guess} | {guess} |",
    ]
    assert "| fastv | 50.0 / 25.0 | 50.0 / 25.0 |" in result.recall_table()
    assert result.kinds_table(0.25).splitlines()[0] == f"| accuracy in % at 0.250 | {' | '.join(KINDS)} |"
    assert result.mismatched() == ["fastv at 0.250: planned 0.2500, actual 0.2625"]
    overall = [line for line in result.separated() if line.startswith("all ")]
    assert len(overall) == 2 and all(
        "adatp above fastv by 3" in line or "adatp above fastv by 4" in line for line in overall
    )
    told = json.loads(json.dumps(result.to_dict()))
    assert told["results"][1]["accuracy"] == pytest.approx(np.mean(result.outcomes[1].right))
    assert told["results"][1]["evidence_found_by_layer"][-2:] == [0.5, 0.25]
    assert told["results"][1]["evidence_found_by_kind"] == dict.fromkeys(KINDS, 0.5)
    assert result.furthest() == "fastv at 0.250, 0.2625 for 400 clips"
    result.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_it_does_not_matter_which_of_two_comes_first():
    one = comparison()
    other = Comparison(one.methods[::-1], one.outcomes[::-1], Floors(*list(one.floors.values())[:3]), KINDS)
    told = [{line.split(" by ")[0] for line in result.separated()} for result in (one, other)]
    assert told[0] == told[1] != set()


def test_methods_that_are_alike_are_not_separated():
    result = comparison()
    result.right[2::2] = result.right[1::2]
    assert result.separated() == []
