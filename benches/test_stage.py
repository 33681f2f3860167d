"""Times `cases.stage`."""

import pytest
from cases import cpu, stage

CASES = list(stage.suite(cpu.SCALE, cpu.SIZES))


@pytest.mark.parametrize(("case", "name"), [(case, name) for case in CASES for name in case.variants], ids=str)
def test_stage(measured, case, name):
    measured(case, name)
