"""Collects what every benchmark measured; prints the table last, and writes JSON and plots where --results says.

These suites run on a CPU, wherever they are: `gpu_suite.py` is what measures a GPU.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import measure
import pytest
import report
import torch
import triton
from report import ROWS

CPU = torch.device("cpu")


@functools.cache
def ceilings():
    return measure.ceilings(CPU)


def pytest_addoption(parser):
    parser.addoption("--results", type=Path, help="directory for the JSON and the plots")


@pytest.fixture
def measured(benchmark):
    """Times one variant of a case, after its result was verified, and files the row."""

    def run(case, name):
        variant = case.variants[name]
        case.verify(name)
        inputs = case.make(0)
        benchmark.group = f"{case.suite} {case.title}"
        benchmark.pedantic(variant.call, inputs, rounds=5, iterations=1, warmup_rounds=2)
        if benchmark.stats is None:  # --benchmark-disable
            return
        figures = measure.figures(sorted(benchmark.stats.stats.data), case.bytes, case.flop, ceilings())
        ours = variant.backend is not None
        row = {"suite": case.suite, **case.shape, "variant": name, "ours": ours, "mode": "eager", **figures}
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
        versions = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
        head = {"device": "cpu", "versions": versions, "ceilings": ceilings()}
        report.write_results(folder / "cpu.json", head, ROWS)
        written = report.plot(ROWS, folder)
        terminalreporter.write_line(f"written to {folder}: cpu.json, {', '.join(written)}")
