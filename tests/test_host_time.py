"""The bench of the time beside the kernels still measures all it says."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import host_time

ROOT = Path(__file__).resolve().parent.parent
LINES = (
    *(f"prompt, {kind}: {what}" for kind in ("new", "again") for what in ("dense", "pruned", "extra")),
    *(f"decoded token: {what}" for what in ("dense", "accelerated", "extra a layer")),
    *("begin, new", "begin, again", "stage, triton"),
    *(f"stage, triton: {phase}" for phase in ("score", "select", "gather", "rest")),
    *("stage, native", "attention with its LSE, a layer"),
)


def test_a_process_reports_every_line():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    printed = subprocess.run(
        [sys.executable, host_time.__file__, "--worker", "--quick"],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    figures = json.loads(printed.splitlines()[-1])
    assert tuple(figures) == LINES
    assert all(math.isfinite(value) for value in figures.values())
    # A difference of two single runs may have either sign.
    assert all(value > 0 for line, value in figures.items() if "extra" not in line)


def test_a_line_that_one_of_two_trees_lacks_has_no_ratio_and_its_reason_is_given():
    old = [{"a": 2.0, "b": 1.0, "planning": "planning not measured: no"}]
    new = [{"a": 3.0, "b": 4.0, "c": 5.0}, {"a": 5.0, "b": 6.0, "c": 7.0}]
    assert host_time.table({"new": new, "old": old}).splitlines() == [
        "| µs | new | old | ratio |",
        "| --- | ---: | ---: | ---: |",
        "| a | 4.0 | 2.0 | 2.00 |",
        "| b | 5.0 | 1.0 | 5.00 |",
        "| c | 6.0 | – | – |",
        "old: planning not measured: no",
    ]
