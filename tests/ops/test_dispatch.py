import sys

import pytest
import torch

from adatp_kernels.ops import backend_report, column_sums, dispatch, gather, prune, row_lse, select
from adatp_kernels.ops.native import measured
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


def on_a_gpu(*shape, dtype=torch.bfloat16):
    return torch.empty(shape, dtype=dtype, device="meta")


PROMPT = (on_a_gpu(1, 28, 64, 128), on_a_gpu(1, 4, 6272, 128))
SCORES = on_a_gpu(1, 6272, dtype=torch.float32)
ENTRIES = {
    ("sm_90", "prune", torch.bfloat16, 128): measured.UpTo(batch=1, rows=64, columns=6272),
    ("sm_90", "prune", torch.float32, 0): measured.UpTo(batch=1, rows=0, columns=6272),
    ("sm_90", "select", torch.float32, 0): measured.UpTo(batch=1, rows=0, columns=6272),
}


class StandIn:
    """Stands for a backend's module; its operations are its name."""

    def __init__(self, name):
        self.column_sums = self.select = self.prune = name
        self.reason = None

    def refuses(self, operation, *tensors, moved=()):
        return self.reason


@pytest.fixture
def backends(monkeypatch):
    """The backends of a GPU that is not here; those that dispatch has loaded are in `dispatch._loaded`."""
    backends = {name: StandIn(name) for name in ("native", "triton", "reference")}
    monkeypatch.setattr(dispatch, "_loaded", {})
    monkeypatch.setattr(dispatch, "_last", {})
    monkeypatch.setattr(dispatch, "_load", backends.get)
    monkeypatch.setattr(measured, "architecture", lambda device: "sm_90")
    return backends


def test_nothing_has_been_measured():
    assert measured.FASTER == {}


def test_auto_takes_native_on_a_gpu_where_it_was_measured(backends, monkeypatch):
    monkeypatch.setattr(measured, "FASTER", ENTRIES)
    query, key = PROMPT
    for operation, tensors in [
        ("prune", PROMPT),
        ("prune", (query[:, :, :1], key[:, :, :37])),
        ("prune", (on_a_gpu(1, 28, 999, 80), key, SCORES)),  # the query is not read
        ("select", (SCORES,)),
    ]:
        assert dispatch.implementation(operation, "auto", *tensors) == "native"
        assert dispatch.last_used()[operation] == "native"
    assert list(dispatch._loaded) == ["native"]


def test_auto_takes_triton_on_a_gpu_where_nothing_was_measured(backends, monkeypatch):
    monkeypatch.setattr(measured, "FASTER", ENTRIES)
    query, key = PROMPT
    for operation, tensors in [
        ("column_sums", PROMPT),
        ("prune", (query.half(), key.half())),
        ("prune", (query[..., :64], key[..., :64])),
        ("prune", (on_a_gpu(1, 28, 65, 128), key)),
        ("prune", (query, on_a_gpu(1, 4, 6273, 128))),
        ("prune", (on_a_gpu(2, 28, 64, 128), on_a_gpu(2, 4, 6272, 128))),
        ("prune", (*PROMPT, SCORES.double())),
        ("select", (on_a_gpu(1, 6273, dtype=torch.float32),)),
        ("select", (on_a_gpu(2, 6272, dtype=torch.float32),)),
    ]:
        assert dispatch.implementation(operation, "auto", *tensors) == "triton", (operation, tensors)
    monkeypatch.setattr(measured, "architecture", lambda device: "sm_100")
    assert dispatch.implementation("prune", "auto", *PROMPT) == "triton"
    assert "native" not in dispatch._loaded


@pytest.mark.parametrize("operation", ["column_sums", "select", "prune"])
def test_auto_asks_nothing_of_native_on_a_gpu_while_nothing_was_measured(operation, backends, monkeypatch):
    def never(*_):
        raise AssertionError("asked for")

    monkeypatch.setattr(measured, "is_faster", never)
    monkeypatch.setattr(measured, "architecture", never)
    tensors = (SCORES,) if operation == "select" else PROMPT
    assert dispatch.implementation(operation, "auto", *tensors) == "triton"
    backends["triton"].reason = "it is tired"
    assert dispatch.implementation(operation, "auto", *tensors) == "reference"
    assert "native" not in dispatch._loaded


def test_auto_falls_back_in_silence_where_native_refuses(backends, monkeypatch, recwarn):
    monkeypatch.setattr(measured, "FASTER", ENTRIES)
    backends["native"].reason = "no CUDA compiler"
    assert dispatch.implementation("prune", "auto", *PROMPT) == "triton"
    backends["native"] = "it cannot be loaded: no C++ compiler"
    dispatch._loaded.clear()
    assert dispatch.implementation("prune", "auto", *PROMPT) == "triton"
    backends["triton"].reason = "it is tired"
    assert dispatch.implementation("prune", "auto", *PROMPT) == "reference"
    assert not recwarn.list


def test_cpu_tensors_are_never_looked_up(backends, monkeypatch):
    monkeypatch.setattr(measured, "FASTER", ENTRIES)
    monkeypatch.setattr(measured, "is_faster", None)
    assert dispatch.implementation("column_sums", "auto", query, key) == "native"


@pytest.mark.parametrize("operation", ["column_sums", "select", "prune"])
def test_auto_never_looks_for_the_cuda_library_unless_told(operation, monkeypatch):
    """With the modules as they are."""
    asked = []
    cuda = pytest.importorskip("adatp_kernels.ops.native.cuda")
    monkeypatch.setattr(cuda, "load", lambda: asked.append(1) or "its CUDA library cannot be loaded")
    monkeypatch.setattr(cuda, "_DEVICE", "meta")
    monkeypatch.setattr(measured, "architecture", lambda device: "sm_90")
    tensors = (SCORES,) if operation == "select" else PROMPT
    dispatch.implementation(operation, "auto", *tensors)
    assert not asked
    entries = ENTRIES | {("sm_90", "column_sums", torch.bfloat16, 128): measured.UpTo(1, 64, 6272)}
    monkeypatch.setattr(measured, "FASTER", entries)
    dispatch.implementation(operation, "auto", *tensors)
    assert asked or isinstance(dispatch._loaded["native"], str)  # which it is without a C++ compiler
