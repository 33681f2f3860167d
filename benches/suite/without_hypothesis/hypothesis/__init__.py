"""Takes hypothesis's place where it is not installed: files that import it can be, and its own tests are skipped."""

from __future__ import annotations

from typing import Any

import pytest

from hypothesis import strategies

__all__ = ["HealthCheck", "assume", "example", "given", "settings", "strategies"]


class _Anything:
    """Whatever is asked of it, it is."""

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self


HealthCheck = _Anything()
assume = _Anything()


def given(*arguments: Any, **options: Any) -> Any:
    """A decorator that skips the test."""

    def skipped(test: Any) -> Any:
        @pytest.mark.skip(reason="hypothesis is not installed")
        def stand_in() -> None:
            """Has no arguments, which would be taken for fixtures."""

        stand_in.__name__ = test.__name__
        return stand_in

    return skipped


def example(*arguments: Any, **options: Any) -> Any:
    """A decorator that does nothing."""
    return lambda test: test


class settings:
    """A decorator that does nothing, with profiles that are none."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __call__(self, test: Any) -> Any:
        return test

    @staticmethod
    def register_profile(*arguments: Any, **options: Any) -> None:
        """Forget it."""

    @staticmethod
    def load_profile(*arguments: Any) -> None:
        """There is none."""
