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
        self._able: dict[tuple[str, Traits], tuple[Candidate, ...]] = {}

    def run(self, name: str, call: Call | PackedCall) -> tuple[Tensor, Tensor]:
        """Run `call` by the provider of that name, or by the first that can for ``"auto"``.

        Raises
        ------
        RuntimeError
            If the named provider cannot; the message says why.
        """
        if torch.compiler.is_compiling():  # what is traced remembers nothing, and catches nothing
            return self._consider(name, call.traits)[0].run(call)
        key = (name, call.traits)
        able = self._able.get(key)
        if able is None:
            able = self._able[key] = self._consider(*key)
        while True:
            try:
                return able[0].run(call)
            except Exception as error:
                if is_fault(error) or (name == "auto" and len(able) == 1):
                    raise
                if len(able) == 1:
                    raise RuntimeError(f"provider: {name!r} cannot run this call: {_said(error)}") from error
            able = self._able[key] = able[1:]

    def _consider(self, name: str, traits: Traits) -> tuple[Candidate, ...]:
        kind = kind_of(traits)
        chosen = [candidate for candidate in self.candidates if name in ("auto", candidate.provider)]
        reasons = [candidate.refuses(kind) for candidate in chosen]
        able = tuple(candidate for candidate, reason in zip(chosen, reasons, strict=True) if reason is None)
        if not able:
            said = "; ".join(dict.fromkeys(reason for reason in reasons if reason is not None))
            raise RuntimeError(f"provider: {name!r} cannot run this call: {said}")
        return able

    def forget(self) -> None:
        """Think about every kind of call anew, as in a new process."""
        self._able.clear()


def is_fault(error: Exception) -> bool:
    """Whether an error says that the device failed or memory ran out, which no other provider mends."""
    if isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError, MemoryError)):
        return True
    # Packages that launch kernels by themselves have error types of their own.
    return any(
        words in str(error) for words in ("CUDA error", "CUDA_ERROR", "cudaError", "out of memory", "allocate memory")
    )


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".removesuffix(": ")


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
