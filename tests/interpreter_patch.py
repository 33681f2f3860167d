"""Mends bfloat16 in Triton's interpreter, which computes on the bit patterns where hardware computes on numbers."""

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _to_float(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bits(floats):
    """Round to the nearest bfloat16, ties to even."""
    wide = np.ascontiguousarray(floats, dtype=np.float32).view(np.uint32)
    rounded = ((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(floats), np.uint16(0x7FC0), rounded).astype(np.uint16)


def _is_bfloat16(handle):
    return handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16


def apply():
    """Patch `tl.dot`, conversions and arithmetic, once per process."""
    dot, cast, binary = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl, InterpreterBuilder.binary_op

    def create_dot(self, a, b, d, *options):
        a, b = (TensorHandle(_to_float(x.data), tl.float32) if _is_bfloat16(x) else x for x in (a, b))
        return dot(self, a, b, d, *options)

    def cast_impl(self, source, target_type):
        target = target_type.scalar
        if source.dtype.scalar == tl.float32 and target == tl.bfloat16:
            return TensorHandle(_to_bits(source.data), target)
        if _is_bfloat16(source) and target == tl.float32:
            return TensorHandle(_to_float(source.data), target)
        return cast(self, source, target_type)

    def binary_op(self, a, b, operation):
        if _is_bfloat16(a) and _is_bfloat16(b):
            result = operation(_to_float(a.data), _to_float(b.data))
            if result.dtype == np.bool_:
                return TensorHandle(result, tl.int1)
            return TensorHandle(_to_bits(result), a.dtype.scalar)
        return binary(self, a, b, operation)

    InterpreterBuilder.create_dot = create_dot
    InterpreterBuilder.cast_impl = cast_impl
    InterpreterBuilder.binary_op = binary_op
