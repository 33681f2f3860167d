"""Times `cases.select`."""

import pytest
from cases import cpu, select

CASES = list(select.suite(cpu.SCALE, cpu.SIZES))


@pytest.mark.parametrize(("case", "name"), [(case, name) for case in CASES for name in case.variants], ids=str)
def test_select(measured, case, name):
    measured(case, name)
