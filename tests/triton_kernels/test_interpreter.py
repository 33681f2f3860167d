"""The helper that watches Triton's interpreter is in force, by whichever Triton: it replaces parts of its inside."""

import pytest
import torch
import triton
import triton.language as tl

from adatp_kernels.ops.triton.backend import INTERPRETED

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="a GPU computes on numbers, and needs no helper")


@triton.jit
def _copy_kernel(source, target, offset, SIZE: tl.constexpr, MASKED: tl.constexpr):
    at = tl.arange(0, SIZE) + tl.program_id(0) * SIZE
    if MASKED:
        mask = at < SIZE - 1
        tl.store(target + at + offset, tl.load(source + at, mask=mask, other=0), mask=mask)
    else:
        tl.store(target + at + offset, tl.load(source + at))


@triton.jit
def _add_up_kernel(source, target, SIZE: tl.constexpr):
    tl.atomic_add(target + tl.arange(0, SIZE), tl.load(source + tl.arange(0, SIZE)))


@triton.jit
def _store_one_kernel(target):
    tl.store(target, tl.program_id(0))


@pytest.mark.parametrize("masked", [False, True])
def test_a_store_beyond_the_end_is_caught(masked):
    # One element of 16 bytes beside another tensor's: neither may be written from here.
    source, memory = torch.arange(8.0), torch.zeros(24)
    _copy_kernel[(1,)](source, memory[8:16], 0, 8, masked)
    with pytest.raises(Exception, match="store outside every argument"):
        _copy_kernel[(1,)](source, memory[8:16], 2, 8, masked)
    with pytest.raises(Exception, match="store outside every argument"):
        _copy_kernel[(1,)](source, memory[8:16], -1, 8, masked)


def test_a_load_beyond_the_end_is_caught():
    with pytest.raises(Exception, match="load outside every argument"):
        _copy_kernel[(1,)](torch.zeros(16)[:7], torch.zeros(8), 0, 8, False)
    _copy_kernel[(1,)](torch.zeros(16)[:7], torch.zeros(8), 0, 8, True)


def test_an_atomic_beyond_the_end_is_caught():
    _add_up_kernel[(1,)](torch.ones(8), torch.zeros(8), 8)
    with pytest.raises(Exception, match="atomic outside every argument"):
        _add_up_kernel[(1,)](torch.ones(8), torch.zeros(16)[:7], 8)


def test_two_programs_that_store_to_one_address_are_caught():
    _store_one_kernel[(1,)](torch.zeros(1, dtype=torch.int32))
    with pytest.raises(Exception, match="two programs store to one address"):
        _store_one_kernel[(2,)](torch.zeros(1, dtype=torch.int32))
