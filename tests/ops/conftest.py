"""What the tests of single operations use to run on every backend that there is for a CPU."""

import pytest

from adatp_kernels.ops import backend_report, dispatch

CPU_BACKENDS = [name for name in ("native", "reference") if backend_report().available[name]]


@pytest.fixture(params=CPU_BACKENDS)
def backend_of_auto(request, monkeypatch):
    """What "auto" takes, where it can; the reference where not."""
    monkeypatch.setattr(dispatch, "_ON_CPU", (request.param, "reference"))
    return request.param
