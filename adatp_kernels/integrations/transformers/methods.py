"""What stands before one method of a model and lets itself be taken away again, and what of a model is not copied."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NoReturn


class MethodWatch:
    """Runs ``around(method, args, kwargs)`` for every call of a module's method, until removed.

    Hides nothing of the method; does nothing where the module has none of that name.

    Attributes
    ----------
    stands : bool
        Whether there is such a method.
    """

    def __init__(self, module: Any, name: str, around: Callable[[Callable[..., Any], Any, Any], Any]) -> None:
        self._module, self._name, self._mine, self._removed = module, name, None, False
        # What somebody else put before the method of the class, if anything.
        self._before = vars(module).get(name)
        method = getattr(module, name, None)
        self.stands = method is not None
        if method is None:
            return

        @functools.wraps(method)
        def watched(*args: Any, **kwargs: Any) -> Any:
            return method(*args, **kwargs) if self._removed else around(method, args, kwargs)

        self._mine = watched
        vars(module)[name] = watched

    def remove(self) -> None:
        """Put the method back as it was; if somebody has put another before this one since, let all pass from now on."""
        self._removed = True
        if self._mine is not None and vars(self._module).get(self._name) is self._mine:
            del vars(self._module)[self._name]
            if self._before is not None:
                vars(self._module)[self._name] = self._before


def refuse_copy(what: str = "an accelerated model", removed: str = "the acceleration") -> NoReturn:
    """Raise, as a part of an accelerated model does that is about to be copied."""
    raise RuntimeError(f"model: {what} cannot be copied or pickled; remove() {removed} first")


class NotCopied:
    """Hangs on an accelerated model, which therefore says that it cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        self._refuse()

    def __reduce__(self) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        refuse_copy()


def positional_names(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that may come without one; asking for them costs some ten microseconds."""
    parameters = inspect.signature(function).parameters.items()
    return [name for name, parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
