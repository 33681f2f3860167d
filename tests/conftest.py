"""Property tests that fail do so again, on every machine; the matrix of families is printed, and README's must be it."""

import matrix
from hypothesis import settings

settings.register_profile("adatp", max_examples=100, deadline=None, derandomize=True)
settings.load_profile("adatp")

_results = []


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        _results.extend(value for name, value in report.user_properties if name == "matrix")


def pytest_sessionfinish(session):
    table = matrix.table(_results)
    if table is not None and table not in matrix.README.read_text(encoding="utf-8"):
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter):
    table = matrix.table(_results)
    if table is not None:
        terminalreporter.write_line(f"\n{table}\n\nlargest difference: {max(result[-1] for result in _results):.1e}")
        if table not in matrix.README.read_text(encoding="utf-8"):
            terminalreporter.write_line("README.md shows another table than this one", red=True)
