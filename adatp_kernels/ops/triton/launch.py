"""Launches that remember what was compiled: for arguments of the same kinds Triton's compiled kernel is called directly.

Triton's own `kernel[grid](...)` sorts every argument anew at every launch, which takes longer than all else that a stage does
on the host. Here a launch sorts its arguments by a key at least as fine as Triton's, and only what was never
launched before goes Triton's way.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.runtime.driver import driver
from triton.runtime.interpreter import InterpretedFunction

INT32 = (1 << 31) - 1
_address, _dtype = operator.methodcaller("data_ptr"), operator.attrgetter("dtype")


class Launcher:
    """A kernel whose parameters are, in this order, tensors, numbers and constants.

    Parameters
    ----------
    kernel : triton.JITFunction
        A number that it is not to specialise on must be named so, by ``do_not_specialize``; floats are among those.
    """

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        # What Triton compiled, by what it was compiled for. AMD's compiler looks at more than the key holds.
        self._compiled: dict[tuple[Any, ...], Any] = {}
        self._remembers = not isinstance(kernel, InterpretedFunction) and torch.version.hip is None
        self._special: Callable[[Sequence[Any]], tuple[Any, ...]] | None = None

    def __call__(
        self,
        grid: tuple[int, int, int],
        tensors: Sequence[Tensor],
        numbers: Sequence[float],
        constants: dict[str, Any],
        *,
        num_warps: int = 4,
        num_stages: int | None = None,
    ) -> None:
        """Launch the kernel on the current stream.

        Parameters
        ----------
        grid : (int, int, int)
        tensors : sequence of Tensor
            On the current device.
        numbers : sequence of int or float
        constants : dict
            In the order of the kernel's parameters. A true ``FOLLOWS`` says that the kernel may be on the chip before the
            last one is done; see `overlap.py`.
        num_warps : int
        num_stages : int, optional
            Triton's choice by default.
        """
        values = (*tensors, *numbers, *constants.values())
        if not self._remembers:
            self._compile(grid, values, constants, num_warps, num_stages)
            return
        if self._special is None:
            self._special = self._specialised(len(tensors), len(numbers))
        addresses = [*map(_address, tensors)]
        unaligned = functools.reduce(operator.or_, addresses) & 15
        key = (
            tensors[0].device.index, num_warps, num_stages, *constants.values(), *map(_dtype, tensors),
            tuple([address & 15 for address in addresses]) if unaligned else None,
            _kinds_of(self._special(numbers)),
            None if max(numbers) <= INT32 else tuple([number > INT32 for number in numbers]),
        )  # fmt: skip
        self.run(key, grid, values, constants, num_warps, num_stages)

    def run(
        self,
        key: tuple[Any, ...],
        grid: tuple[int, int, int],
        values: tuple[Any, ...],
        constants: dict[str, Any],
        num_warps: int = 4,
        num_stages: int | None = None,
        typed: Callable[[], tuple[Any, ...]] | None = None,
    ) -> None:
        """Launch with all arguments' `values`, for which `key` stands; where that is new, with what `typed` makes of them."""
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compile(grid, values if typed is None else typed(), constants, num_warps, num_stages)
            if self._remembers and compiled is not None:
                self._compiled[key] = compiled
            return
        runtime = knobs.runtime
        enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
        if getattr(enter, "calls", enter) or getattr(leave, "calls", leave):  # a profiler wants to be told of launches
            compiled[grid](*values)
        else:
            active = driver.active
            stream = active.get_current_stream(active.get_current_device())
            compiled.run(*grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *values)

    def forget(self) -> None:
        """Forget what was compiled, for a test that puts another driver in the place of Triton's."""
        self._compiled.clear()

    def _compile(
        self,
        grid: tuple[int, int, int],
        values: tuple[Any, ...],
        constants: dict[str, Any],
        num_warps: int,
        num_stages: int | None,
    ) -> Any:
        names = self.kernel.arg_names[-len(constants) :]
        if names != [*constants]:
            raise RuntimeError(
                f"{self.kernel.__name__}: expected the constants {names}, in this order, got {[*constants]}"
            )
        options: dict[str, Any] = {} if num_stages is None else {"num_stages": num_stages}
        if constants.get("FOLLOWS"):
            options["launch_pdl"] = True
        return self.kernel[grid](*values[: len(values) - len(constants)], **constants, num_warps=num_warps, **options)

    def _specialised(self, tensors: int, numbers: int) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
        """A function that picks, of a launch's numbers, those that Triton compiles for."""
        chosen = [
            i for i, parameter in enumerate(self.kernel.params[tensors:][:numbers]) if not parameter.do_not_specialize
        ]
        if len(chosen) > 1:
            return operator.itemgetter(*chosen)
        return lambda values: tuple([values[i] for i in chosen])


def kinds_of(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """What Triton compiles anew for in each number: 1 is a constant, and what 16 divides is known to be so."""
    return tuple([0 if number == 1 else 1 if number & 15 else 2 for number in numbers])


_kinds_of = functools.lru_cache(maxsize=1024)(kinds_of)
