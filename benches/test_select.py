"""Times `cases.select`."""

import cases
import pytest

CASES = list(cases.select())


@pytest.mark.parametrize(("case", "variant"), [(case, name) for case in CASES for name in case.variants], ids=str)
def test_select(measured, case, variant, mode):
    measured(case, variant, mode)
