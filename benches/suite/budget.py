"""Steps in the order of their worth, each a process with a limit of its own within the time that all have together.

Only the standard library is needed: whoever keeps the time must hold no memory of the GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from suite import rows


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes
    ----------
    limit : float
        Seconds that it may take, even if more are left.
    least : float
        Seconds below which it is not begun.
    """

    name: str
    command: Sequence[str]
    limit: float
    least: float = 10.0
    environment: Mapping[str, str] = field(default_factory=dict)


class Budget:
    """Runs steps until the time is up, and writes a row about each: done, failed, timed out, or not begun.

    Parameters
    ----------
    seconds : float
        For all steps, from now on.
    results, log : Path
        Where rows go, and what the steps print.
    """

    def __init__(
        self,
        seconds: float,
        results: Path,
        log: Path,
        environment: Mapping[str, str] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.results, self.log, self.environment = (
            results,
            log,
            dict(os.environ if environment is None else environment),
        )
        self._now, self._end = now, now() + seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self._end - self._now())

    def run(self, step: Step) -> str:
        """Run one step, and return what its row says."""
        if self.left < step.least:
            why = f"{self.left:.0f} s are left, and it takes at least {step.least:.0f}"
            rows.add({"step": step.name, "status": "not begun", "why": why}, self.results)
            return "not begun"
        begin, limit = self._now(), min(step.limit, self.left)
        own = {**self.environment, **step.environment, rows.FILE: str(self.results), rows.STEP: step.name}
        with self.log.open("ab") as log:
            log.write(f"\n=== {step.name}, at most {limit:.0f} s\n".encode())
            log.flush()
            process = subprocess.Popen(
                step.command, env=own, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
            try:
                code: int | None = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                end_group(process.pid)  # what it left running, too
                process.wait()
        status = "timed out" if code is None else "done" if code == 0 else "failed"
        row = {"step": step.name, "status": status, "code": code, "seconds": round(self._now() - begin, 1)}
        rows.add(row, self.results)
        return status


def end_group(leader: int) -> None:
    """Kill all processes of a session that `Budget` or a step began."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _die_with_parent() -> None:
    """A step is in a session of its own, which nobody who kills the suite's group reaches."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
