"""The record of what budgets cost: as the evaluation measures it, read as it was written, and what ships of it."""

import json
from pathlib import Path

import pytest

from adatp_kernels.demo.budgets import RECORD, load_budgets
from adatp_kernels.demo.clips.questions import KINDS
from adatp_kernels.demo.trained import MODEL, load_trained
from adatp_kernels.demo.training import recipe
from adatp_kernels.demo.training.network import build_network
from adatp_kernels.evaluation import budgets
from adatp_kernels.evaluation.run import Floors, Outcome, compare
from adatp_kernels.mistakes import Mistake

EVALUATION = Path(__file__).parents[2] / "benches/results/evaluation/evaluation.json"


def test_a_record_is_read_as_it_was_written(tmp_path, capsys, monkeypatch):
    recipe.save(build_network(0), tmp_path, {"measured": {"segments": {"threshold": 0.7}, "kinds": KINDS}})
    with pytest.raises(Mistake, match=r"no record of budgets in .*evaluation\.budgets --model FOLDER writes one"):
        load_budgets(tmp_path)
    asked = []

    def compare(model, methods, clips, kinds):
        asked.append((clips, tuple(kinds), [method.relevance for method in methods]))
        # The first is right about all clips, the next about all but one, and so on.
        outcomes = [
            Outcome([clip >= number for clip in range(clips)], [], [], [1.0] * clips, [1.0] * clips)
            for number in range(len(methods))
        ]
        return outcomes, Floors([False] * clips, [False] * clips, [0.0] * clips)

    monkeypatch.setattr(budgets, "compare", compare)
    budgets.main(["--model", str(tmp_path), "--clips", "10"])
    assert asked == [(10, KINDS, [False] * 2 + [True] * 3)]
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / RECORD).read_text())
    found = load_budgets(tmp_path)
    assert found.clips == 10 and found.dense == 1.0
    assert found.shown.config == budgets.methods(0.7)[1].config
    assert [entry.config.target_flops for entry in found.others] == [0.5, 0.273, 0.15]
    for number, entry in enumerate((found.shown, *found.others), 1):
        assert entry.accuracy == pytest.approx(1 - number / 10) and entry.change == pytest.approx(-number / 10)
        assert entry.interval[0] < entry.accuracy < entry.interval[1] <= 1
        assert entry.change_interval[0] < entry.change < entry.change_interval[1] <= 0


def test_the_record_that_ships_is_of_this_model_and_agrees_with_the_evaluation():
    found, threshold = load_budgets(MODEL), load_trained(MODEL).threshold
    expected = [method.config for method in budgets.methods(threshold) if method.config is not None]
    assert [entry.config for entry in (found.shown, *found.others)] == expected
    published = json.loads(EVALUATION.read_text())["results"]
    assert found.dense == next(result["accuracy"] for result in published if result["method"] == "dense")
    for entry in found.others:
        (result,) = [r for r in published if (r["method"], r["budget"]) == ("adatp", entry.config.target_flops)]
        assert (entry.accuracy, list(entry.interval)) == (
            result["accuracy"],
            pytest.approx(result["interval"], abs=5e-4),
        )


def test_the_budget_that_is_shown_costs_less_than_half_a_point():
    found = load_budgets(MODEL)
    assert found.clips == 2048 and found.shown.change > -0.005
    # The others begin to lose: that is told apart from nothing.
    assert all(entry.change_interval[1] < -0.005 for entry in found.others)


def test_it_costs_no_more_today():
    """On fewer clips, of which one or two make the difference that the record tells."""
    clips, trained = 128, load_trained(MODEL)
    dense, shown, *_ = budgets.methods(trained.threshold)
    (unpruned, pruned), _ = compare(trained.demo.model, [dense, shown], clips, trained.kinds)
    assert sum(unpruned.right) - sum(pruned.right) <= 2
    assert pruned.actual == pytest.approx([budgets.SHOWN] * clips, rel=0.02)
