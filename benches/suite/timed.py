"""Times operations and stages, case by case: the target shape, other shapes, a batch. No row without a verified result.

A variant that breaks the GPU's context leaves every later call failing, and one that never ends keeps all others waiting. So
the process is then replaced by a new one, which goes on behind the last row.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import measure
import torch
from cases import column_sums, gather, pruner, select, stage
from cases.case import Case, Scale, dry_scale, gpu_scale

from adatp_kernels import backend_report
from suite import rows
from suite.tests import cancelled

LAUNCH = [sys.executable, "-m", "suite.timed"]


@dataclass(frozen=True)
class Sizes:
    """Visual tokens of a video and of a long one; text rows, and few and many of them."""

    visual: int = 6272
    long: int = 100352
    text: int = 64
    few: int = 1
    many: int = 256


DRY = Sizes(visual=32, long=64, text=3, few=1, many=5)


def target(scale: Scale, sizes: Sizes) -> Iterator[Case]:
    """The shape that targets are set for."""
    visual, text = sizes.visual, sizes.text
    yield column_sums.column_sums(scale, visual, text)
    yield select.select(scale, visual, "strict")
    yield gather.gather(scale, visual, 25)
    yield pruner.stage(scale, visual, text, 1)
    yield pruner.stage(scale, visual, text, 2)
    yield stage.stage(scale, visual, text)
    yield select.select(scale, visual, "off")
    yield gather.gather(scale, visual, 50)
    yield gather.gather(scale, visual, 10)


def shapes(scale: Scale, sizes: Sizes) -> Iterator[Case]:
    """A long video; one text row and many; one segment, as FastV has it."""
    visual, long, text = sizes.visual, sizes.long, sizes.text
    yield column_sums.column_sums(scale, long, text)
    yield select.select(scale, long, "strict")
    yield select.select(scale, long, "off")
    yield pruner.stage(scale, long, text, 1)
    yield pruner.stage(scale, long, text, 2)
    yield gather.gather(scale, long, 25)
    for number in (sizes.few, sizes.many):
        yield column_sums.column_sums(scale, visual, number)
        yield pruner.stage(scale, visual, number, 1)
    yield pruner.stage(scale, visual, text, 1, method="fastv")
    yield pruner.stage(scale, long, text, 1, method="fastv")


def batch(scale: Scale, sizes: Sizes) -> Iterator[Case]:
    """Eight prompts side by side, and packed one after the other."""
    visual, text = sizes.visual, sizes.text
    yield stage.stage(scale, visual, text, batch=8)
    yield column_sums.column_sums(scale, visual, text, batch=8)
    yield select.select(scale, visual, "strict", batch=8)
    yield gather.gather(scale, visual, 25, batch=8)
    yield column_sums.packed(scale, visual, text)


STEPS: dict[str, Callable[[Scale, Sizes], Iterator[Case]]] = {"target": target, "shapes": shapes, "batch": batch}


def time_cases(cases: Iterable[Case], modes: Sequence[str], quick: bool, found: list[dict[str, Any]]) -> bool:
    """Write a row for every variant and mode that `found` has none of; whether all could be timed or were told not to be.

    Raises
    ------
    BrokenContextError
        After the row of the variant that broke it.
    """
    forbidden = cancelled(found)
    limits = next((row["ceilings"] for row in found if "ceilings" in row), None)
    known = {_key(row) for row in found}
    good = True
    for case in cases:
        for name, why in case.absent.items():
            row = _row(case, name)
            if _key(row) not in known:
                rows.add({**row, "status": "absent", "why": why})
        for name, variant in case.variants.items():
            row = _row(case, name)
            if _key(row) in known:
                continue
            if why := forbidden.get((variant.backend or "", case.operation)):
                rows.add({**row, "status": "not timed", "why": why})
                continue
            good &= _time(case, name, modes, quick, row, limits, known)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return good


def _time(
    case: Case, name: str, modes: Sequence[str], quick: bool, row: dict[str, Any], limits: Any, known: set[tuple]
) -> bool:
    with Watchdog(row):
        return _verify_and_time(case, name, modes, quick, row, limits, known)


def _verify_and_time(
    case: Case, name: str, modes: Sequence[str], quick: bool, row: dict[str, Any], limits: Any, known: set[tuple]
) -> bool:
    try:
        case.verify(name)
    except Exception as error:
        _add_failure(row, "wrong" if isinstance(error, AssertionError) else "failed", error)
        return False
    good = True
    if quick and case.variants[name].backend == "triton":
        modes = modes[:1]  # by the interpreter, which takes a second for a stage
    for mode in modes:
        own = {**row, "mode": mode}
        if _key(own) in known:
            continue
        try:
            timed = measure.make_round(mode, case.variants[name].call, case.make, case.bytes, quick)
            timed.verify(lambda result, inputs: case.check(name, result, inputs))
            times = measure.rounds(timed, quick)
        except Exception as error:
            _add_failure(own, "wrong" if isinstance(error, AssertionError) else "failed", error)
            good = False
            continue
        finally:
            timed = None
        rows.add(own | measure.figures(times, case.bytes, case.flop, limits))
    return good


class Watchdog:
    """Gives a variant so many seconds, compilation included; then there is a row, and a new process goes on with the next."""

    SECONDS = 60.0

    def __init__(self, row: dict[str, Any]) -> None:
        self.timer = threading.Timer(self.SECONDS, self.bite, [row])
        self.timer.daemon = True

    def bite(self, row: dict[str, Any]) -> None:
        rows.add({**row, "status": "failed", "why": f"not ready after {self.SECONDS:.0f} s"})
        start_again()

    def __enter__(self) -> None:
        self.timer.start()

    def __exit__(self, *_: object) -> None:
        self.timer.cancel()


def start_again() -> None:
    """Replace this process by one that is started the same way."""
    sys.stdout.flush()
    os.execv(sys.executable, [*LAUNCH, *sys.argv[1:]])


class BrokenContextError(RuntimeError):
    """Nothing runs on the GPU any more in this process."""


def _add_failure(row: dict[str, Any], status: str, error: Exception) -> None:
    rows.add({**row, "status": status, "why": f"{type(error).__name__}: {error}"[:300]})
    if torch.cuda.is_available() and not isinstance(error, torch.OutOfMemoryError):
        try:
            torch.cuda.synchronize()
        except RuntimeError as broken:
            raise BrokenContextError from broken


def _row(case: Case, name: str) -> dict[str, Any]:
    ours = case.variants[name].backend is not None if name in case.variants else False
    return {"suite": case.suite, "case": case.title, **case.shape, "variant": name, "ours": ours}


def _key(row: dict[str, Any]) -> tuple:
    """One for a row of a variant as a whole, and one for each of its modes."""
    return os.environ.get(rows.STEP), row.get("suite"), row.get("case"), row.get("variant"), row.get("mode")


def main(step: str, dry: bool) -> int:
    """Time a step's cases."""
    scale = _dry_scale(step) if dry else gpu_scale(cuda_library())
    sizes = DRY if dry else Sizes()
    own = [
        row for row in rows.read() if row.get("step") == os.environ.get(rows.STEP) or "test" in row or "ceilings" in row
    ]
    try:
        good = time_cases(STEPS[step](scale, sizes), measure.MODES, dry, own)
    except BrokenContextError:
        start_again()
    return 0 if good and not any(row.get("status") in ("wrong", "failed") for row in own if "suite" in row) else 1


def _dry_scale(step: str) -> Scale:
    """Triton's interpreter takes part where targets are set, and a second where a GPU takes microseconds: elsewhere none has time."""
    native = {" (native)": "native"} if backend_report().available["native"] else {}
    return dry_scale({"": "triton" if step == "target" else "auto", **native})


def cuda_library() -> bool:
    """Whether the native backend can run on the GPU."""
    from adatp_kernels.ops.native import cuda
    from adatp_kernels.ops.native.build import Library

    return isinstance(cuda.load(), Library)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--dry" in sys.argv))
