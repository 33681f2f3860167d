"""Times `cases.stage`."""

import cases
import pytest

CASES = list(cases.stage())


@pytest.mark.parametrize(("case", "variant"), [(case, name) for case in CASES for name in case.variants], ids=str)
def test_stage(measured, case, variant, mode):
    measured(case, variant, mode)
