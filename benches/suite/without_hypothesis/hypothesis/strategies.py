"""Strategies that draw nothing."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *arguments, **options: _Strategy()


class _Strategy:
    """Whatever is made of it is one, too."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: self

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self

    def __or__(self, other: Any) -> Any:
        return self
