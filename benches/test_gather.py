"""Times `cases.gather`."""

import pytest
from cases import cpu, gather

CASES = list(gather.suite(cpu.SCALE, cpu.SIZES))


@pytest.mark.parametrize(("case", "name"), [(case, name) for case in CASES for name in case.variants], ids=str)
def test_gather(measured, case, name):
    measured(case, name)
