"""What the gate reads from compiled code is what is there: kernels whose loops are known, compiled for every GPU."""

import re

import pytest
import torch
import triton
import triton.language as tl
from gates import listing, measure
from gates.compile_only import GPUS, compiled, compiling_for


@triton.jit
def _products_kernel(a, b, out, steps, divisor, DIVISIONS: tl.constexpr, ELSEWHERE: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    b_out = tl.zeros((SIZE, SIZE), tl.float32)
    first = steps // divisor if ELSEWHERE else 0
    for step in range(first, steps):
        row = step
        if DIVISIONS:
            row = step // divisor
            row += (step + row) % divisor
        if ELSEWHERE:
            row += step // 7  # by a constant
        b_a, b_b = tl.load(a + at + row * SIZE), tl.load(b + at + row * SIZE)
        b_out += tl.dot(b_a, b_b)
        for inner in range(step):  # without a product
            b_out += inner
    tl.store(out + at, b_out)


def numbers_of(gpu, divisions, elsewhere):
    half, out = torch.empty(1 << 16, dtype=torch.bfloat16), torch.empty(4096)
    with compiling_for(gpu, [_products_kernel]):
        _products_kernel[(1,)](half, half, out, 100, 37, divisions, elsewhere, 64)
        return measure.numbers(compiled([_products_kernel])[0], GPUS[gpu])


@pytest.mark.parametrize("gpu", GPUS)
def test_a_kernel_in_numbers(gpu):
    plain = numbers_of(gpu, divisions=False, elsewhere=False)
    assert plain.divisions == 0
    assert 0 < plain.loop < plain.instructions
    assert plain.products > 0
    assert plain.barriers > 0  # between those that write and those that read shared memory
    assert plain.spilled == 0
    assert 0 < plain.registers <= 512
    assert 8192 <= plain.shared <= 65536
    divided = numbers_of(gpu, divisions=True, elsewhere=True)
    assert divided.divisions == 2
    assert divided.loop > plain.loop
    assert divided.products == plain.products
    assert numbers_of(gpu, divisions=False, elsewhere=True).divisions == 0


SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   HMMA.16816.F32.BF16 R4, R4, R8, R4 ;
        /*0020*/               @P0 BRA `(.L_x_3) ;
.L_x_1:
        /*0030*/                   IADD3 R1, R1, 0x1, RZ ;
        /*0040*/               @P1 BRA `(.L_x_1) ;
.L_x_2:
        /*0050*/               @P2 BRA `(.L_x_0) ;
        /*0060*/                   EXIT ;
.L_x_3:
        /*0070*/                   NOP ;
        /*0080*/                   SYNCS R3, [UR4] ;
        /*0090*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*00a0*/                   BRA `(.L_x_4) ;
"""


def test_what_stands_behind_a_loop_may_belong_to_it():
    found = listing.read(SASS, "sass")
    assert len(found.instructions()) == 10
    # Not the one that never ends: nothing leads there.
    assert sorted(len(found.instructions(loop)) for loop in found.loops) == [2, 7]
    loop = found.loop_with(re.compile("HMMA"))
    assert [line.split()[0] for line in loop] == ["HMMA.16816.F32.BF16", "@P0", "IADD3", "@P1", "@P2", "SYNCS", "BRA"]
    assert found.loop_with(re.compile("FFMA")) == []


def test_a_switch_leads_to_each_of_its_cases():
    text = "\n".join(
        [
            "  br label %top",
            "top:",
            "  %x = sdiv i32 %a, %b",
            "  switch i32 %x, label %out [",
            "    i32 0, label %again",
            "    i32 1, label %top",
            "  ]",
            "again:",
            "  br label %top",
            "out:",
            "  ret void",
        ]
    )
    (loop,) = listing.read(text, "llir").loops
    assert len(listing.read(text, "llir").instructions(loop)) == 3
