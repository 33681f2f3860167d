"""RecentStates: the first states of the last few prompts, so that a prompt like one of them is not planned again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adatp_kernels.schedule import RecentSchedules
from adatp_kernels.state import PruningState

MAX_STATES = 8
MAX_BYTES = 1 << 25  # of what is known of every token, on the device; 24 to 32 bytes a column


class _Entry(NamedTuple):
    key: tuple[Any, ...]
    inputs: tuple[Tensor, ...]
    state: PruningState
    versions: int
    bytes: int


class RecentStates:
    """States by what they were made from, compared by value; what was not used for longest is forgotten first.

    At most `MAX_STATES`, and `MAX_BYTES` of them all together.
    There is no lock: threads exchange one immutable tuple, and at worst forget what another has just added.
    A copy, and what comes back from a pickle, is empty.
    """

    def __init__(self) -> None:
        self.schedules = RecentSchedules()  # for the prompts that are like none of them
        self._entries: tuple[_Entry, ...] = ()

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[type[RecentStates], tuple[()]]:
        return RecentStates, ()

    def find(self, key: tuple[Any, ...], inputs: Sequence[Tensor]) -> PruningState | None:
        """The state that was made from equal arguments, or None.

        Parameters
        ----------
        key : tuple
            Everything the state depends on but `inputs`; it settles how many there are.
        inputs : sequence of Tensor
            On the host, each always of the same dtype.
        """
        entries = self._entries
        for entry in entries:
            if entry.key == key and all(map(torch.equal, entry.inputs, inputs)):
                # A state never changes, but a caller can write to its tensors; then it is made anew.
                intact = _versions(entry.state) == entry.versions
                if not intact or entry is not entries[0]:
                    others = tuple(other for other in entries if other is not entry)
                    self._entries = (entry, *others) if intact else others
                return entry.state if intact else None
        return None

    def add(self, key: tuple[Any, ...], inputs: Sequence[Tensor], state: PruningState) -> None:
        """Remember `state`, unless it is too large; `inputs` are tensors that nobody else writes to."""
        size = sum([values.untyped_storage().nbytes() for values in _of_tokens(state)])
        if size > MAX_BYTES:
            return
        entries = (_Entry(key, tuple(inputs), state, _versions(state), size), *self._entries)[:MAX_STATES]
        while sum(entry.bytes for entry in entries) > MAX_BYTES:
            entries = entries[:-1]
        self._entries = entries


def _versions(state: PruningState) -> int:
    """How often the tensors of `state` were written to; a view counts what is written to any view of the same."""
    return sum([tensor._version for tensor in _tensors(state)])


def _tensors(state: PruningState) -> list[Tensor]:
    tensors = [*state.segments, *_of_tokens(state)]
    if state._remaining:
        tensors.append(state._remaining[0].budgets)  # a view of what all of a state's budgets and ranges are views of
    if state._asking is not None:
        tensors.append(state._asking)
    return tensors


def _of_tokens(state: PruningState) -> list[Tensor]:
    return [values for values in (state._tokens, state._prior, state._scores) if values is not None]
