"""What came out of a comparison: tables in Markdown, a plot, and everything in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adatp_kernels.demo.clips.questions import CHANCE
from adatp_kernels.evaluation.methods import ABLATED_AT, Method
from adatp_kernels.evaluation.run import Floors, Outcome, kind_of
from adatp_kernels.evaluation.statistics import Bootstrap

FOUND_AT = (4, 8)  # layers: AdaTP's three stages are before the first, two of PyramidDrop's before the second
MATCH = 0.02  # how far from its budget the cost of a method may be, as a share of it
FOUND = f"evidence found when layers {FOUND_AT[0]} / {FOUND_AT[1]} begin, in %"


class Comparison:
    """The outcomes of all methods on the same clips.

    Parameters
    ----------
    methods : sequence of Method
    outcomes : sequence of Outcome
        Of each method.
    floors : Floors
    kinds : sequence of str
        The kinds of questions that were asked, in turn.
    """

    def __init__(
        self, methods: Sequence[Method], outcomes: Sequence[Outcome], floors: Floors, kinds: Sequence[str]
    ) -> None:
        self.methods, self.outcomes = list(methods), list(outcomes)
        self.right = np.array([outcome.right for outcome in outcomes], dtype=float)
        self.kinds = np.array([kind_of(number, kinds) for number in range(self.clips)])
        self.floors = {
            "without a video": np.array(floors.blind, dtype=float),
            "another clip's question": np.array(floors.swapped, dtype=float),
            "best guess without the question": np.array(floors.guess, dtype=float),
            "best guess without the clip": np.array([CHANCE[kind] for kind in self.kinds.tolist()]),
        }

    @property
    def clips(self) -> int:
        """How many there were."""
        return self.right.shape[1]

    @property
    def guess(self) -> float:
        """Accuracy of a policy that sees the clip or the question, for each kind of question what helps more."""
        guesses = [self._by_kind(self.floors[f"best guess without the {what}"]) for what in ("question", "clip")]
        return float(np.mean([max(guess[kind] for guess in guesses) for kind in self.kinds.tolist()]))

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """Of all questions."""
        return Bootstrap(self.right)

    def find(self, name: str, budget: float | None) -> int | None:
        """Which method has this name and budget."""
        return next((i for i, m in enumerate(self.methods) if (m.name, m.budget) == (name, budget)), None)

    @property
    def budgets(self) -> list[float]:
        """From the largest."""
        return sorted({m.budget for m in self.methods if m.group == "preset" and m.budget is not None}, reverse=True)

    def costs(self, number: int) -> tuple[float, float]:
        """Planned and actual share of the FLOPs of a method, mean over the clips."""
        return float(np.mean(self.outcomes[number].planned)), float(np.mean(self.outcomes[number].actual))

    def mismatched(self) -> list[str]:
        """Methods whose planned or actual cost, mean over the clips, is not within `MATCH` of their budget, in words."""
        return [
            f"{method.name} at {method.budget:.3f}: planned {planned:.4f}, actual {actual:.4f}"
            for number, method in enumerate(self.methods)
            if method.budget is not None
            for planned, actual in [self.costs(number)]
            if max(abs(planned - method.budget), abs(actual - method.budget)) > MATCH * method.budget
        ]

    def furthest(self) -> str:
        """The clip, of all methods, whose actual cost is furthest from its budget, in words."""
        costs = [
            (abs(cost / method.budget - 1), cost, method, outcome)
            for method, outcome in zip(self.methods, self.outcomes, strict=True)
            if method.budget is not None
            for cost in outcome.actual
        ]
        _, cost, method, outcome = max(costs, key=lambda entry: entry[0])
        return f"{method.name} at {method.budget:.3f}, {cost:.4f} for {outcome.actual.count(cost)} clips"

    def separated(self) -> list[str]:
        """Pairs of presets whose difference, at one budget and for one kind of question or all, is not zero with 95 %."""
        found = []
        for kind in (None, *self._asked):
            of_kind = np.ones(len(self.kinds), dtype=bool) if kind is None else self.kinds == kind
            bootstrap = Bootstrap(self.right[:, of_kind])
            for budget in self.budgets:
                here = [i for i, m in enumerate(self.methods) if m.group == "preset" and m.budget == budget]
                for position, one in enumerate(here):
                    for other in here[position + 1 :]:
                        mean, low, high = bootstrap.difference(one, other)
                        if low > 0 or high < 0:
                            best, worst = (one, other) if mean > 0 else (other, one)
                            low, high = sorted((abs(low), abs(high)))
                            found.append(
                                f"{kind or 'all'} at {budget:.3f}: {self.methods[best].name} above {self.methods[worst].name} by "
                                f"{100 * abs(mean):.1f} [{100 * low:.1f}, {100 * high:.1f}] points"
                            )
        return found

    # Tables.

    def table(self) -> str:
        """Accuracy of each preset, and of random scores on AdaTP's schedule, at each budget, and where the floor is."""
        columns = [f"{budget:.3f} of the FLOPs" for budget in self.budgets]
        rows = []
        for name in self._rows:
            rows.append([name, *(self._accuracy(self.find(name, budget)) for budget in self.budgets)])
        dense = self._accuracy(self.find("dense", None))
        rows.append(["not pruned", *[dense] * len(columns)])
        floors = {name: self.floors[name].mean() for name in ("without a video", "another clip's question")}
        floors["best guess without the clip or without the question"] = self.guess
        rows += [[name, *[f"{100 * share:.1f}"] * len(columns)] for name, share in floors.items()]
        return _markdown(["accuracy in %", *columns], rows)

    def recall_table(self) -> str:
        """Evidence left when the layers of `FOUND_AT` begin, for the same rows and columns."""
        rows = []
        for name in self._rows:
            cells = []
            for budget in self.budgets:
                number = self.find(name, budget)
                cells.append("—" if number is None else self._found(number))
            rows.append([name, *cells])
        columns = [f"{budget:.3f} of the FLOPs" for budget in self.budgets]
        return _markdown([FOUND, *columns], rows)

    def kinds_table(self, budget: float) -> str:
        """Accuracy by kind of question at one budget, and where the floor is."""
        shown = [
            i
            for i, m in enumerate(self.methods)
            if (m.budget == budget and m.group != "ablation") or (m.config is None and m.budget is None)
        ]
        right = [(self.methods[i].name, self.right[i]) for i in shown] + list(self.floors.items())
        rows = [[name, *(f"{100 * share:.1f}" for share in self._by_kind(values).values())] for name, values in right]
        return _markdown([f"accuracy in % at {budget:.3f}", *self._asked], rows)

    def ablation_table(self) -> str:
        """AdaTP with a part changed, and the difference to the whole."""
        whole = self.find("adatp", ABLATED_AT)
        assert whole is not None
        rows = [["adatp", self._accuracy(whole), "", self._found(whole)]]
        for number, method in enumerate(self.methods):
            if method.group == "ablation":
                mean, low, high = self.bootstrap.difference(number, whole)
                difference = f"{100 * mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
                rows.append([method.name, self._accuracy(number), difference, self._found(number)])
        return _markdown([f"at {ABLATED_AT}", "accuracy in %", "against adatp", FOUND], rows)

    def dropping_table(self) -> str:
        """Accuracy when no visual token is left after a layer."""
        return _markdown(
            ["nothing left after layer", *(str(layer) for _, layer in self._dropped)],
            [["accuracy in %", *(f"{100 * self.right[i].mean():.1f}" for i, _ in self._dropped)]],
        )

    @property
    def _asked(self) -> list[str]:
        return list(dict.fromkeys(self.kinds.tolist()))

    def _by_kind(self, values: np.ndarray) -> dict[str, float]:
        """Mean over the clips of each kind of question."""
        return {kind: float(values[self.kinds == kind].mean()) for kind in self._asked}

    @property
    def _dropped(self) -> list[tuple[int, int]]:
        """The methods that leave nothing after a layer, and the layer."""
        return [(i, m.nothing_after) for i, m in enumerate(self.methods) if m.nothing_after is not None]

    @property
    def _rows(self) -> list[str]:
        """Names of the methods that ran at several budgets."""
        return list(dict.fromkeys(m.name for m in self.methods if m.budget is not None and m.group != "ablation"))

    def _accuracy(self, number: int | None) -> str:
        if number is None:
            return "—"
        low, high = self.bootstrap.interval(number)
        return f"{100 * self.right[number].mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"

    def _found(self, number: int) -> str:
        found = np.mean(self.outcomes[number].found, axis=0)
        return " / ".join(f"{100 * found[layer]:.1f}" for layer in FOUND_AT)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON takes it."""
        results = []
        for number, (method, outcome) in enumerate(zip(self.methods, self.outcomes, strict=True)):
            planned, actual = self.costs(number)
            results.append(
                {
                    "method": method.name,
                    "group": method.group,
                    "budget": method.budget,
                    "accuracy": float(self.right[number].mean()),
                    "interval": self.bootstrap.interval(number),
                    "by_kind": self._by_kind(self.right[number]),
                    "evidence_found_by_layer": np.mean(outcome.found, axis=0).round(4).tolist(),
                    "evidence_found_by_kind": self._by_kind(np.array(outcome.found)[:, FOUND_AT[0]]),
                    "evidence_tokens_by_layer": np.mean(outcome.alive, axis=0).round(4).tolist(),
                    "planned_flops": planned,
                    "actual_flops": actual,
                }
            )
        return {
            "clips": self.clips,
            "floors": {
                name: {"accuracy": float(right.mean()), "by_kind": self._by_kind(right)}
                for name, right in self.floors.items()
            },
            "results": results,
            "separated": self.separated(),
            "mismatched": self.mismatched(),
        }

    def plot(self, path: Path) -> None:
        """Accuracy and evidence over FLOPs, and what is lost by dropping everything after a layer."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(15, 4.6), layout="constrained")
        accuracy, evidence, dropping = figure.subplots(1, 3)
        for name in self._rows:
            numbers = [i for i, m in enumerate(self.methods) if m.name == name and m.group != "ablation"]
            costs = [self.costs(i)[1] for i in numbers]
            means = 100 * self.right[numbers].mean(1)
            errors = np.abs(100 * np.array([self.bootstrap.interval(i) for i in numbers]).T - means)
            style = "--" if self.methods[numbers[0]].group == "control" else "-"
            accuracy.errorbar(
                costs, means, yerr=errors, label=name, linestyle=style, marker="o", markersize=4, capsize=3
            )
            found = [100 * np.mean(self.outcomes[i].found, axis=0)[FOUND_AT[0]] for i in numbers]
            evidence.plot(costs, found, linestyle=style, marker="o", markersize=4)
        dense = self.find("dense", None)
        assert dense is not None
        blind = self.floors["without a video"].mean()
        for height, label in ((self.right[dense].mean(), "not pruned"), (blind, "without a video")):
            accuracy.axhline(
                100 * height, color="grey", linewidth=1, linestyle=":" if label != "not pruned" else "-.", label=label
            )
            dropping.axhline(100 * height, color="grey", linewidth=1, linestyle=":" if label != "not pruned" else "-.")
        dropping.plot(
            [layer for _, layer in self._dropped],
            [100 * self.right[i].mean() for i, _ in self._dropped],
            "o-",
            markersize=4,
        )
        accuracy.set(xlabel="share of the visual FLOPs", ylabel="accuracy in %", title="answers")
        accuracy.legend(fontsize=8)
        evidence.set(
            xlabel="share of the visual FLOPs",
            ylabel="pieces found in %",
            title=f"evidence left when layer {FOUND_AT[0]} begins",
        )
        dropping.set(xlabel="no visual token after layer", ylabel="accuracy in %", title="when the video is read")
        figure.savefig(path, dpi=110)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
