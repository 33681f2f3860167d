"""Makes Triton's interpreter fail where a kernel leaves the tensors it was given, or two programs store to one address."""

import numpy as np
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

_ranges = []
_writers = {}


def _collect(value):
    if isinstance(value, tuple):
        for item in value:
            _collect(item)
    elif hasattr(value, "data_ptr") and value.numel():
        last = sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        _ranges.append((value.data_ptr(), value.data_ptr() + (last + 1) * value.element_size()))


def _check(pointers, mask, what):
    touched = pointers.data[np.broadcast_to(mask.data.astype(bool), pointers.data.shape)].astype(np.uint64)
    inside = np.zeros(touched.shape, bool)
    for low, high in _ranges:
        inside |= (touched >= low) & (touched < high)
    assert inside.all(), f"{what} outside every argument"


def check_bounds():
    """Wrap the interpreter, once per process, so that no unmasked lane loads or stores beyond an argument's elements."""
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    atomic, call = InterpreterBuilder.create_atomic_rmw, GridExecutor.__call__

    def create_masked_load(self, pointers, mask, *options, **named):  # named for descriptors, otherwise for each Triton
        _check(pointers, mask, "load")
        return load(self, pointers, mask, *options, **named)

    def create_masked_store(self, pointers, value, mask, *options):
        _check(pointers, mask, "store")
        program = tuple(int(i) for i in self.grid_idx)
        for address in pointers.data[np.broadcast_to(mask.data.astype(bool), pointers.data.shape)].tolist():
            assert _writers.setdefault(address, program) == program, "two programs store to one address"
        return store(self, pointers, value, mask, *options)

    def create_atomic_rmw(self, operation, pointers, value, mask, *options):
        _check(pointers, mask, "atomic")
        return atomic(self, operation, pointers, value, mask, *options)

    def run(self, *args, **kwargs):
        _ranges.clear()
        _writers.clear()
        _collect(args)
        return call(self, *args, **kwargs)

    InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store = (
        create_masked_load,
        create_masked_store,
    )
    InterpreterBuilder.create_atomic_rmw, GridExecutor.__call__ = create_atomic_rmw, run
