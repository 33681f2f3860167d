"""Who runs a call: the providers in the order in which they are tried, and what is remembered of their refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adatp_kernels.attention import flash_attn, flashinfer, reference, torch_operators
from adatp_kernels.attention.call import Call, Kind, PackedCall, Traits, kind_of


class Candidate(NamedTuple):
    """One way to run a call. A provider may have several, one behind the other."""

    provider: str
    refuses: Callable[[Kind], str | None]
    run: Callable[[Any], tuple[Tensor, Tensor]]


class Providers:
    """The candidates of one operation, best first; the last one runs anything.

    A kind of call is thought about once: what its candidates say of it is remembered, and so is one that accepted the call
    and then raised, which is a refusal that no table knew. What says that the device is at fault, or out of memory, is never
    taken for one.
    """

    def __init__(self, *candidates: Candidate) -> None:
        self.candidates = candidates
        self.names = ("auto", *dict.fromkeys(candidate.provider for candidate in candidates))
        self._chosen: dict[tuple[str, Traits], int] = {}

    def run(self, name: str, call: Call | PackedCall) -> tuple[Tensor, Tensor]:
        """Run `call` by the provider of that name, or by the first that can for ``"auto"``.

        Raises
        ------
        RuntimeError
            If the named provider cannot; the message says why.
        """
        if torch.compiler.is_compiling():  # what is traced remembers nothing, and catches nothing
            return self.candidates[self._first(name, call.traits)].run(call)
        key = (name, call.traits)
        place = self._chosen.get(key)
        if place is None:
            place = self._chosen[key] = self._first(*key)
        while True:
            try:
                return self.candidates[place].run(call)
            except Exception as error:
                later = None if is_fault(error) else self._next(*key, place + 1)
                if later is None:
                    if is_fault(error) or name == "auto":
                        raise
                    said = f"{type(error).__name__}: {str(error).strip()}"
                    raise RuntimeError(f"provider: {name!r} cannot run this call: {said}") from error
            place = self._chosen[key] = later

    def _first(self, name: str, traits: Traits) -> int:
        place = self._next(name, traits, 0)
        if place is None:
            kind = kind_of(traits)
            reasons = [candidate.refuses(kind) for candidate in self.candidates if candidate.provider == name]
            said = "; ".join(dict.fromkeys(reason for reason in reasons if reason is not None))
            raise RuntimeError(f"provider: {name!r} cannot run this call: {said}")
        return place

    def _next(self, name: str, traits: Traits, start: int) -> int | None:
        """The first candidate from `start` on that does not refuse; those behind it are not asked, for that imports."""
        kind = kind_of(traits)
        for place in range(start, len(self.candidates)):
            candidate = self.candidates[place]
            if name in ("auto", candidate.provider) and candidate.refuses(kind) is None:
                return place
        return None

    def forget(self) -> None:
        """Think about every kind of call anew, as in a new process."""
        self._chosen.clear()


def is_fault(error: Exception) -> bool:
    """Whether an error says that the device failed or memory ran out, which no other provider mends."""
    if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)):
        return True
    # Packages that launch kernels by themselves have error types of their own.
    return any(
        words in str(error) for words in ("CUDA error", "CUDA_ERROR", "cudaError", "out of memory", "allocate memory")
    )


def _flash_attn(version: int, packed: bool, *architectures: int) -> Candidate:
    module = flash_attn.MODULES[version]
    return Candidate(
        f"flash_attn_{version}",
        partial(flash_attn.refuses, module, packed, architectures),
        partial(flash_attn.run_packed if packed else flash_attn.run, module),
    )


# FlashAttention 4 also runs on compute capability 8 and 12; there it comes last, for those who name it: PyTorch's own flash
# operator takes the same calls, and needs no compiler at run time.
DENSE = Providers(
    _flash_attn(4, False, 9, 10, 11),
    _flash_attn(3, False, 9),
    _flash_attn(2, False, 8, 9, 10, 12),
    Candidate("torch", torch_operators.refuses_flash, torch_operators.run_flash),
    _flash_attn(4, False, 8, 12),
    Candidate("torch", torch_operators.refuses_efficient, torch_operators.run_efficient),
    Candidate("torch", torch_operators.refuses_cudnn, torch_operators.run_cudnn),
    Candidate("reference", lambda kind: None, reference.run),
)

PACKED = Providers(
    _flash_attn(4, True, 9, 10, 11),
    _flash_attn(3, True, 9),
    _flash_attn(2, True, 8, 9, 10, 12),
    Candidate("torch", torch_operators.refuses_packed, torch_operators.run_packed),
    _flash_attn(4, True, 8, 12),
    Candidate("flashinfer", flashinfer.refuses, flashinfer.run_packed),
    Candidate("torch", torch_operators.refuses_each_sequence, torch_operators.run_each_sequence),
    Candidate("reference", lambda kind: None, partial(reference.each_sequence, reference.run)),
)
