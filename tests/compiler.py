"""What needs a C++ compiler is skipped where there is none, and only there: a compilation that fails is an error."""

import pytest

from adatp_kernels.ops.native import recipe


def compiler_or_skip():
    """The compiler's name; at a module's top it skips the module."""
    try:
        return recipe.cpu_compiler()
    except recipe.BuildError as error:
        pytest.skip(str(error), allow_module_level=True)
