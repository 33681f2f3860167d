"""Times `cases.column_sums`."""

import cases
import pytest

CASES = list(cases.column_sums())


@pytest.mark.parametrize(("case", "variant"), [(case, name) for case in CASES for name in case.variants], ids=str)
def test_column_sums(measured, case, variant, mode):
    measured(case, variant, mode)
