"""What the GPU suite promises of its rows and its time: nothing is lost, nothing unverified is timed, no failure cancels too much."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu_suite
import pytest
import torch
from cases.case import Case, Variant
from suite import rows, timed, tools
from suite.budget import Budget, Step
from suite.tests import ALL, cancelled, files, subjects

BENCHES = Path(__file__).resolve().parent.parent / "benches"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(BENCHES)}


def step(code, name="a", limit=20.0, least=0.0):
    return Step(name, [sys.executable, "-S", "-c", f"import os, time; from suite import rows; {code}"], limit, least)


@pytest.fixture
def budget(tmp_path):
    def make(seconds=60.0, **options):
        return Budget(seconds, tmp_path / "rows.jsonl", tmp_path / "log.txt", ENVIRONMENT, **options)

    return make


@pytest.fixture
def results(tmp_path, monkeypatch):
    """What was written since, while this process is a step."""
    monkeypatch.setenv(rows.FILE, str(tmp_path / "rows.jsonl"))
    monkeypatch.setenv(rows.STEP, "target")
    return lambda: rows.read(tmp_path / "rows.jsonl")


def is_running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("after", [1, 2, 3])
def test_a_kill_leaves_the_rows_so_far_and_nothing_running(after, tmp_path):
    suite = f"""
import sys
from pathlib import Path
from suite.budget import Budget, Step
budget = Budget(60, Path("rows.jsonl"), Path("log.txt"))
for number in (1, 2, 3):
    sleep = 60 if number == {after} else 0
    code = f"import os, time; from suite import rows; rows.add(dict(number={{number}}, pid=os.getpid())); time.sleep({{sleep}})"
    budget.run(Step(str(number), [sys.executable, "-S", "-c", code], 50, 0))
"""
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", suite],
        cwd=tmp_path,
        env=ENVIRONMENT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while not (found := [row for row in rows.read(tmp_path / "rows.jsonl") if row.get("number") == after]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = [("number" in row, row["step"]) for row in rows.read(tmp_path / "rows.jsonl")]
    finished = [(what, str(number)) for number in range(1, after) for what in (True, False)]
    assert before == [*finished, (True, str(after))]
    while is_running(found[0]["pid"]):
        assert time.monotonic() < deadline, "a step outlives the suite"
        time.sleep(0.02)


def test_a_torn_row_costs_no_other(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"step": "a", "n": 1}\n{"step": "b", "n"')
    rows.add({"step": "c", "n": 3}, path)
    assert [row["n"] for row in rows.read(path)] == [1, 3]


def test_a_step_ends_with_its_limit_and_so_does_all_it_began(budget, tmp_path):
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    began = time.monotonic()
    limited = budget()
    assert limited.run(step(code + "rows.add({'pid': p.pid}); time.sleep(60)", limit=1.5)) == "timed out"
    assert time.monotonic() - began < 20
    child, outcome = rows.read(limited.results)
    assert outcome["status"] == "timed out"
    assert outcome["code"] is None
    time.sleep(0.1)
    assert not is_running(child["pid"])


def test_a_step_gets_no_more_than_what_is_left(budget):
    began = time.monotonic()
    assert budget(1.5).run(step("time.sleep(60)", limit=50)) == "timed out"
    assert time.monotonic() - began < 20


def test_a_step_that_does_not_fit_is_a_row(budget):
    clock = iter([0.0, *[51.0] * 9])
    late = budget(60, now=lambda: next(clock))
    assert late.run(step("rows.add({'began': True})", name="late", least=10)) == "not begun"
    (row,) = rows.read(late.results)
    assert row == {"step": "late", "status": "not begun", "why": "9 s are left, and it takes at least 10"}


def test_a_failing_step_says_so_and_the_next_runs(budget):
    going_on = budget()
    assert going_on.run(step("print('why'); raise SystemExit(3)")) == "failed"
    assert going_on.run(step("pass", name="b")) == "done"
    assert [(row["status"], row["code"]) for row in rows.read(going_on.results)] == [("failed", 3), ("done", 0)]
    assert "why" in going_on.log.read_text()


def case(**calls):
    """Doubles its input; `calls` are variants, ours by the backend that their names begin with."""

    def check(name, result, inputs):
        assert result.equal(2 * inputs[0]), f"{name} is wrong"

    backends = {"triton": "triton", "native": "native"}
    variants = {name: Variant(call, backends.get(name.split("_")[0])) for name, call in calls.items()}
    make = lambda seed: (torch.rand(8, generator=torch.Generator().manual_seed(seed)),)  # noqa: E731
    return Case("select", {"N": 8}, make, variants, check, 64, 8)


def test_no_row_is_timed_whose_result_was_not_verified(results):
    calls = []

    def forgetful(x):
        return torch.empty_like(x)  # which may well be what was freed before

    def only_once(x):
        calls.append(x)
        return 2 * x if len(calls) == 1 else x

    def broken(x):
        raise RuntimeError("no")

    wrong = case(
        triton=lambda x: x + x, native=lambda x: x, triton_forgetful=forgetful, only_once=only_once, broken=broken
    )
    assert not timed.time_cases([wrong], ["graph warm"], True, [])
    found = {row["variant"]: row for row in results()}
    assert {name for name, row in found.items() if "median" in row} == {"triton"}
    assert {name: row["status"] for name, row in found.items() if name != "triton"} == {
        "native": "wrong", "triton_forgetful": "wrong", "only_once": "wrong", "broken": "failed",
    }  # fmt: skip


def test_memory_that_nobody_wrote_is_no_result(monkeypatch):
    """Not even where what was there before happens to be right."""
    lucky = case(torch=lambda x: torch.empty(8))
    monkeypatch.setattr(torch, "empty", lambda *shape: 2 * lucky.make(1234)[0])
    with pytest.raises(AssertionError):
        lucky.verify("torch")


def failure(test, **more):
    return {"test": f"{test}::test_a", "file": test, "status": "failed", **more}


def test_a_failed_test_cancels_only_what_it_tests(results):
    failed = [failure("tests/triton_kernels/test_select.py")]
    double = lambda x: 2 * x  # noqa: E731
    assert timed.time_cases([case(triton=double, native=double, torch=double)], ["eager"], True, failed)
    found = {row["variant"]: row for row in results()}
    assert {name for name, row in found.items() if "median" in row} == {"native", "torch"}
    assert found["triton"]["why"] == "tests/triton_kernels/test_select.py::test_a fails"


@pytest.mark.parametrize(
    ("file", "operations"),
    [
        ("triton_kernels/test_scores.py", {"column_sums", "stage", "prefill", "tiles"}),
        ("triton_kernels/test_scores_varlen.py", {"column_sums_varlen"}),
        ("triton_kernels/test_gather.py", {"gather", "stage", "prefill"}),
        ("triton_kernels/test_stage.py", {"stage", "prefill"}),
        ("triton_kernels/test_acceleration.py", {"prefill"}),
        ("triton_kernels/test_something_new.py", ALL),
    ],
)
def test_what_a_file_is_about(file, operations):
    assert set(cancelled([failure(file)])) == {("triton", operation) for operation in operations}


def test_failures_of_the_native_backend_leave_triton_alone():
    assert {backend for backend, _ in subjects("tests/ops/native/test_cuda_edges.py")} == {"native"}


def test_a_failure_that_does_not_come_again_cancels_nothing():
    """After a fault of the GPU, whatever the same process tested later failed, too."""
    first = failure("triton_kernels/test_select.py")
    assert not cancelled([first, {**first, "status": "passed", "repeated": True}])
    assert cancelled([first, {**first, "repeated": True}])


def test_rows_that_are_there_are_not_timed_again(results):
    """A process that takes another's place goes on behind the last row."""
    double = lambda x: 2 * x  # noqa: E731
    timed.time_cases([case(torch=double)], ["eager"], True, [])
    timed.time_cases([case(torch=double)], ["eager", "graph warm"], True, results())
    assert [row["mode"] for row in results()] == ["eager", "graph warm"]


@pytest.mark.parametrize(
    ("code", "output", "status"),
    [
        (0, "verified 9\n========= ERROR SUMMARY: 0 errors\n", "passed"),
        (0, "verified 9\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n", "passed"),
        (9, "verified 9\n========= ERROR SUMMARY: 2 errors\n", "found errors"),
        (0, "========= ERROR SUMMARY: 0 errors\n", "failed"),
        (0, "verified 0\n========= ERROR SUMMARY: 0 errors\n", "failed"),
        (0, "verified 9\n", "failed"),
        (1, "verified 9\n========= ERROR SUMMARY: 0 errors\n", "failed"),
    ],
)
def test_what_counts_as_a_pass_of_a_sanitizer(code, output, status):
    assert tools.verdict(code, output)[0] == status


def test_a_sanitizer_whose_time_is_up_leaves_no_pass(budget):
    limited = budget()
    limited.run(step("time.sleep(60)", name="memcheck", limit=0.5))
    assert [row["status"] for row in rows.read(limited.results)] == ["timed out"]


def test_what_a_profiler_prints_becomes_rows():
    metric = tools.METRICS[0]
    text = f'==PROF== Connected\n"ID","Kernel Name","{metric}"\n"","","us"\n"0","_select_kernel","4.5"\nbye\n'
    assert tools.parse_profile(text) == [{"kernel": "_select_kernel", metric: "4.5 us"}]
    assert tools.parse_profile("==ERROR== ERR_NVGPUCTRPERM\n") == []


def test_the_order_of_the_steps_is_that_of_their_worth():
    names = [step.name for step in gpu_suite.plan(dry=False)]
    assert names == [
        "library", "tests", "target", "shapes", "prefill", "tiles", "profile score", "profile select", "profile native",
        "memcheck", "racecheck", "synccheck", "batch",
    ]  # fmt: skip
    assert names == [step.name for step in gpu_suite.plan(dry=True)]
    assert all(step.least <= step.limit for step in gpu_suite.plan(dry=False))
    everything = files(dry=False)
    assert {Path(file).parent.name for file in everything} == {"triton_kernels", "native"}
    assert set(files(dry=True)) < set(everything)


def test_the_results_name_device_commit_versions_and_time_over_floor(tmp_path, results, capsys):
    limits = {"bytes per second": 64e6, "flop per second": 1e12}
    rows.add({"device": "some-gpu", "versions": {"torch": "2"}, "step": "device"})
    rows.add({"ceilings": limits, "step": "device"})
    timed.time_cases([case(triton=lambda x: 2 * x, torch=lambda x: x + x)], ["eager"], True, results())
    rows.add({"step": "target", "status": "done", "code": 0, "seconds": 1.0})
    rows.add({"step": "batch", "status": "not begun", "why": "0 s are left"})
    written = gpu_suite.write_results(tmp_path)
    found = json.loads(written.read_text())
    assert written.name == "some-gpu.json"
    assert (found["device"], found["versions"], found["ceilings"]) == ("some-gpu", {"torch": "2"}, limits)
    assert {"commit", "changed", "sources"} <= found.keys()
    assert [step["status"] for step in found["steps"]] == ["done", "not begun"]
    ours, theirs = found["rows"]
    assert ours["floor"] == pytest.approx(1e-6)
    assert ours["over floor"] == pytest.approx(ours["median"] / 1e-6)
    assert ours["speed-up"] == pytest.approx(theirs["median"] / ours["median"])
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "some-gpu.json"}


def test_a_variant_that_never_ends_makes_way_for_the_next(results, tmp_path):
    code = """
import time, torch
from cases.case import Case, Variant
from suite import rows, timed
timed.Watchdog.SECONDS = 0.5
timed.LAUNCH = [timed.LAUNCH[0], __file__]
variants = {"stuck": Variant(lambda x: time.sleep(60), "triton"), "torch": Variant(lambda x: 2 * x)}
case = Case("select", {"N": 8}, lambda seed: (torch.ones(8),), variants, lambda name, result, inputs: None, 64, 8)
timed.time_cases([case], ["eager"], True, rows.read())
"""
    (tmp_path / "stuck.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": f"{BENCHES}{os.pathsep}{BENCHES.parent}"}
    subprocess.run([sys.executable, str(tmp_path / "stuck.py")], env=environment, check=True, timeout=60)
    stuck, other = results()
    assert (stuck["variant"], stuck["status"], stuck["why"]) == ("stuck", "failed", "not ready after 0 s")
    assert other["variant"] == "torch"
    assert "median" in other


def test_without_hypothesis_its_tests_are_skipped_and_the_others_run():
    root, stand_in = BENCHES.parent, BENCHES / "suite" / "without_hypothesis"
    path = os.pathsep.join(map(str, [stand_in, root]))
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    chosen = [
        "tests/triton_kernels/test_select.py",
        "tests/ops/native/test_cuda.py",
        "-k",
        "reference or the_report_says",
    ]
    done = subprocess.run([*command, *chosen], cwd=root, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "hypothesis is not installed" in done.stdout
    assert " passed" in done.stdout


def test_a_tile_that_is_tried_is_the_one_that_runs():
    """Also where another one ran before."""
    tiles = pytest.importorskip("adatp_kernels.ops.triton.tiles", reason="Triton exists for Linux only")
    derive_tiles = pytest.importorskip("derive_tiles")
    kind = (torch.device("cpu"), torch.bfloat16, 128)
    usual, tried = tiles.tile_for(*kind), tiles.Tile(columns=32, rows=16, warps=2, stages=5)
    with derive_tiles.instead(tried, *kind):
        assert tiles.tile_for(*kind) == tried
    assert tiles.tile_for(*kind) == usual != tried
