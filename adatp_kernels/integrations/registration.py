"""Makes ``attn_implementation="adatp"`` known to transformers, whichever of the two is imported first."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_MODULE = "transformers.modeling_utils"  # where transformers keeps its attention functions


def register_when_imported() -> None:
    """Register now if transformers is there, else at the moment somebody imports it.

    Importing transformers' models takes seconds, which a user of the operations alone should not pay.
    """
    if _MODULE in sys.modules:
        _register()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register() -> None:
    from adatp_kernels.integrations.transformers.attention import register

    register()


class _AfterImport(MetaPathFinder):
    """Finds one module as everybody else would, and registers once that has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
