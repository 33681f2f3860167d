"""One forward of an accelerated model at a time, and no end of the acceleration while one is under way."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

_PATIENCE = 10.0  # seconds after which whoever waits says for what


class Turns:
    """Who is in a forward of the model, and who in a `generate`, of which a forward is a part."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._closing = self._closed = False
        self._forward: int | None = None
        self._generates: Counter[int] = Counter()

    def begin_forward(self) -> bool:
        """This thread's forward begins; False if the acceleration has ended meanwhile.

        Raises
        ------
        RuntimeError
            If one is under way.
        """
        thread = threading.get_ident()
        with self._changed:
            if self._closed:
                return False
            if self._forward is None:
                self._forward = thread
                return True
            mine = self._forward == thread
        if mine:
            raise RuntimeError(
                "model: a forward of this accelerated model was called from within another one; that is not supported"
            )
        raise RuntimeError(
            "model: another thread is in the middle of a forward of this accelerated model; accelerate serves one at a time. "
            "Let the threads take turns, or give each a model of its own"
        )

    def end_forward(self) -> None:
        """This thread's forward has ended, or was given up."""
        with self._changed:
            self._forward = None
            self._tell()

    @contextmanager
    def generate(self) -> Iterator[None]:
        """Around a `generate` of this thread."""
        thread = threading.get_ident()
        with self._changed:
            self._generates[thread] += 1
        try:
            yield
        finally:
            with self._changed:
                self._generates[thread] -= 1
                self._generates += Counter()  # drops those that are zero
                self._tell()

    def _tell(self) -> None:
        """Somebody has ended something; only `close` waits for that."""
        if self._closing:
            self._changed.notify_all()

    def in_forward(self) -> bool:
        """Whether this thread is."""
        return self._forward == threading.get_ident()

    def close(self) -> None:
        """No forward begins any more from when no other thread is within one or a `generate`, which is waited for, in silence only
        for a while.

        Raises
        ------
        RuntimeError
            If this thread itself is within one.
        """
        thread = threading.get_ident()
        with self._changed:
            if self._forward == thread or self._generates[thread]:
                raise RuntimeError(
                    "remove: this thread is in the middle of a forward or a generate of the accelerated model, which goes on pruned; "
                    "remove the acceleration after it"
                )
            self._closing = True
            free = lambda: self._forward is None and not +self._generates  # noqa: E731
            if not self._changed.wait_for(free, _PATIENCE):
                warnings.warn(
                    "accelerate: another thread is still generating with this model; its acceleration is removed when that has "
                    "ended, which remove() and the end of the with-block wait for",
                    stacklevel=4,
                )
                self._changed.wait_for(free)
            self._closed = True
