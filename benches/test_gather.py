"""Times `cases.gather`."""

import cases
import pytest

CASES = list(cases.gather())


@pytest.mark.parametrize(("case", "variant"), [(case, name) for case in CASES for name in case.variants], ids=str)
def test_gather(measured, case, variant, mode):
    measured(case, variant, mode)
