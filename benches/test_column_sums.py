"""Times `cases.column_sums`."""

import pytest
from cases import column_sums, cpu

CASES = list(column_sums.suite(cpu.SCALE, cpu.SIZES, cpu.TEXT))


@pytest.mark.parametrize(("case", "name"), [(case, name) for case in CASES for name in case.variants], ids=str)
def test_column_sums(measured, case, name):
    measured(case, name)
