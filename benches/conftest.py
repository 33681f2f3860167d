"""Collects what every benchmark measured; prints the table last, and writes JSON and plots where --results says."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path

import pytest
import report
import torch
import triton
from measure import MODES, ON_GPU, ceilings, device_name, floor, make_round
from report import ROWS


def pytest_addoption(parser):
    parser.addoption("--results", type=Path, help="directory for the JSON and the plots")
    parser.addoption("--mode", action="append", choices=MODES, help="time in this mode only (may be repeated)")


def pytest_generate_tests(metafunc):
    if "mode" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--mode") or (MODES if ON_GPU else ("eager",))
        metafunc.parametrize("mode", chosen)


@pytest.fixture
def measured(benchmark, request):
    """Times one variant of a case in one mode, after its result was verified, and files the row."""

    def run(case, name, mode):
        variant = case.variants[name]
        case.verify(name)
        timed = make_round(mode, variant, case.make, case.bytes)
        rounds = 12 if ON_GPU else 5
        benchmark.group = f"{case.suite} {case.title}"
        benchmark.pedantic(timed, rounds=rounds, iterations=1, warmup_rounds=2)
        if benchmark.stats is None:  # --benchmark-disable
            return
        times = sorted(seconds / timed.calls for seconds in benchmark.stats.stats.data)
        least = floor(case.bytes, case.flop)
        row = {
            "suite": case.suite,
            **case.shape,
            "variant": name,
            "ours": name in case.ours,
            "mode": mode,
            "median": times[len(times) // 2],
            "p20": times[len(times) // 5],
            "p80": times[len(times) * 4 // 5],
            "bytes": case.bytes,
            "flop": case.flop,
            "floor": least,
            "over floor": times[len(times) // 2] / least,
        }
        benchmark.extra_info.update(row)
        ROWS.append(row)

    return run


def pytest_terminal_summary(terminalreporter, config):
    if not ROWS:
        return
    report.add_speedups(ROWS)
    terminalreporter.write_line("")
    for line in report.table(ROWS):
        terminalreporter.write_line(line)
    folder = config.getoption("--results")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
        results = {
            "device": device_name(),
            "commit": commit.stdout.strip() or None,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__},
            "ceilings": ceilings(),
            "rows": ROWS,
        }
        (folder / f"{device_name()}.json").write_text(json.dumps(results, indent=1))
        written = report.plot(ROWS, folder)
        terminalreporter.write_line(f"written to {folder}: {device_name()}.json, {', '.join(written)}")
