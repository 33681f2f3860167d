"""What needs a C++ compiler is skipped where there is none, and only there: a compilation that fails is an error."""

import pytest

from adatp_kernels.ops.native import build


def compiler_or_skip():
    """The compiler's name; at a module's top it skips the module."""
    try:
        return build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error), allow_module_level=True)
