"""A pytest plugin that turns outcomes into rows: a failure at once, and of every file the counts when all is over.

With ADATP_SUITE_REPEAT set, the run repeats single failures, and says of each what became of it. With ADATP_SUITE_FIRST=n,
only the first n tests of every file run.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict

import pytest

from suite import rows

REPEAT, FIRST = "ADATP_SUITE_REPEAT", "ADATP_SUITE_FIRST"
_counts: dict[str, Counter] = defaultdict(Counter)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the first tests of every file, in the same order."""
    if FIRST not in os.environ:
        return
    seen: Counter = Counter()
    kept, dropped = [], []
    for item in items:
        seen[item.path] += 1
        (kept if seen[item.path] <= int(os.environ[FIRST]) else dropped).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Called where results come together: with xdist, in the process that has the workers."""
    if os.environ.get("PYTEST_XDIST_WORKER") or (report.when != "call" and report.passed):
        return
    file = _file(report.nodeid)
    _counts[file][report.outcome] += 1
    if report.failed or REPEAT in os.environ:
        _add(report.nodeid, report.outcome, str(report.longrepr or ""))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """A file that cannot be imported fails as a whole."""
    if report.failed and not os.environ.get("PYTEST_XDIST_WORKER"):
        _counts[_file(report.nodeid)]["failed"] += 1
        _add(report.nodeid, "failed", str(report.longrepr or ""))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The counts by file."""
    if not os.environ.get("PYTEST_XDIST_WORKER") and REPEAT not in os.environ:
        for file, counts in sorted(_counts.items()):
            rows.add({"tests": file, **{name: counts[name] for name in ("passed", "failed", "skipped")}})


def _file(nodeid: str) -> str:
    return nodeid.split("::")[0]


def _add(nodeid: str, outcome: str, text: str) -> None:
    why = next((line for line in reversed(text.splitlines()) if line.startswith("E  ")), text[-200:])
    repeated = {"repeated": True} if REPEAT in os.environ else {}
    rows.add({"test": nodeid, "file": _file(nodeid), "status": outcome, **repeated, "why": why[:300]})
