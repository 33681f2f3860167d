import sys

import pytest
import torch

from adatp_kernels.ops import backend_report, column_sums, dispatch, gather, prune, row_lse, select
from adatp_kernels.plan import Stage

query, key = torch.ones(1, 2, 3, 8), torch.ones(1, 1, 9, 8)
segments, positions, indices = torch.zeros(6, dtype=torch.int64), torch.arange(6), torch.tensor([[0, 2]])

CALLS = {
    "row_lse": lambda backend: row_lse(query, key, query_start=6, backend=backend),
    "column_sums": lambda backend: column_sums(query, key, query_start=6, key_range=(0, 6), backend=backend),
    "select": lambda backend: select(torch.ones(1, 6), segments, positions, [2], backend=backend),
    "gather": lambda backend: gather(indices, torch.ones(1, 5), dims=1, backend=backend),
    "prune": lambda backend: prune(
        query, key, [torch.ones(1, 9)], Stage(1, (2,), 2), dims=1, segments=segments, positions=positions,
        query_start=6, key_range=(0, 6), backend=backend,
    ),
}  # fmt: skip


def tensors_of(result):
    return [result] if isinstance(result, torch.Tensor) else [t for part in result for t in tensors_of(part)]


@pytest.mark.parametrize("operation", CALLS)
def test_auto_and_reference_agree(operation):
    pairs = zip(tensors_of(CALLS[operation]("auto")), tensors_of(CALLS[operation]("reference")), strict=True)
    for auto, reference in pairs:
        torch.testing.assert_close(auto, reference)


@pytest.mark.parametrize("operation", CALLS)
def test_a_named_backend_that_cannot_run_says_why(operation):
    reason = "run on CUDA tensors, not on cpu"
    with pytest.raises(RuntimeError, match=rf"^backend: 'triton' cannot run {operation} here: .*{reason}"):
        CALLS[operation]("triton")


def test_a_backend_that_cannot_be_loaded_says_why(monkeypatch):
    monkeypatch.setattr(dispatch, "_loaded", {})
    monkeypatch.setitem(sys.modules, "adatp_kernels.ops.triton.backend", None)
    with pytest.raises(RuntimeError, match="^backend: 'triton' cannot run row_lse here: it cannot be loaded"):
        CALLS["row_lse"]("triton")
    assert "cannot be loaded" in backend_report().reasons["triton"]


def test_auto_does_not_load_triton_for_cpu_tensors(monkeypatch):
    monkeypatch.setattr(dispatch, "_loaded", {})
    CALLS["prune"]("auto")
    assert "triton" not in dispatch._loaded


@pytest.mark.parametrize("backend", ["cuda", "", None, 3, "Reference"])
@pytest.mark.parametrize("operation", CALLS)
def test_unknown_backends(operation, backend):
    with pytest.raises(ValueError, match="^backend: expected one of "):
        CALLS[operation](backend)


def test_report_lists_every_backend_fastest_first_with_a_reason():
    report = backend_report()
    assert list(report.available) == ["native", "triton", "reference"]
    assert report.available["reference"]
    assert set(report.reasons) == {name for name, here in report.available.items() if not here}
    assert all(report.reasons.values())
    for name, reason in report.reasons.items():
        assert f"{name:<10} not available: {reason}" in str(report)
    assert "reference  available" in str(report)


def test_report_tells_what_ran_last(monkeypatch):
    monkeypatch.setattr(dispatch, "_last", {})
    assert backend_report().last_used == {}
    assert "last used: nothing yet" in str(backend_report())
    CALLS["select"]("reference")
    assert backend_report().last_used == {"select": "reference"}
    CALLS["prune"]("reference")
    assert backend_report().last_used == dict.fromkeys(("select", "prune"), "reference")
    assert "select on reference" in str(backend_report())


def test_a_report_is_a_snapshot(monkeypatch):
    monkeypatch.setattr(dispatch, "_last", {})
    report = backend_report()
    CALLS["select"]("reference")
    assert report.last_used == {}


@pytest.mark.parametrize("operation", CALLS)
def test_auto_takes_the_fastest_backend_that_can(operation, monkeypatch):
    class Fastest:
        """Stands for the module of a faster backend."""

        able = True

        @classmethod
        def refuses(cls, operation, *tensors, moved=()):
            return None if cls.able else "it is tired"

    marker = object()
    setattr(Fastest, operation, staticmethod(lambda *args, **kwargs: marker))
    monkeypatch.setattr(dispatch, "_loaded", {"native": Fastest})
    monkeypatch.setattr(dispatch, "_last", {})
    assert CALLS[operation]("auto") is marker
    assert CALLS[operation]("native") is marker
    assert CALLS[operation]("reference") is not marker
    Fastest.able = False
    assert CALLS[operation]("auto") is not marker
    assert backend_report().last_used[operation] == "reference"
    with pytest.raises(RuntimeError, match=f"^backend: 'native' cannot run {operation} here: it is tired"):
        CALLS[operation]("native")


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_failed_check_runs_nothing(backend, monkeypatch):
    monkeypatch.setattr(dispatch, "_last", {})
    with pytest.raises(ValueError, match="^query_start"):
        row_lse(query, key, query_start=-1, backend=backend)
    assert backend_report().last_used == {}
