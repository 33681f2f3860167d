"""How the gate for compiled CUDA kernels reads machine code, and what it calls worse."""

import cuda_gate
import pytest

CODE = """
.text.kernel:
        /*0000*/                   I2F.U32.RP R4, R10 ;
.L_x_0:
        /*0010*/                   LDGSTS.E.BYPASS.128 [R15], desc[UR8][R6.64], !P0 ;
        /*0020*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
.L_x_1:
        /*0030*/                   HMMA.16816.F32.BF16 R88, R12, R80.reuse, RZ ;
        /*0040*/                   NOP ;
        /*0050*/              @!P0 HMMA.16816.F32.BF16 R88, R16, R82, R88 ;
        /*0060*/               @P0 BRA `(.L_x_1) ;
.L_x_2:
        /*0070*/               @P2 BRA `(.L_x_0) ;
        /*0080*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64) ;
        /*0090*/                   CALL.REL.NOINC `($__internal_1_$__cuda_sm3x_div_rn_noftz_f32_slowpath) ;
        /*00a0*/                   MEMBAR.SC.GPU ;
        /*00b0*/                   EXIT ;
.L_x_3:
        /*00c0*/                   SHFL.UP P3, R44, R31, R30, R29 ;
        /*00d0*/                   BRA `(.L_x_2) ;
.L_x_4:
        /*00e0*/                   BRA `(.L_x_4);
"""
NUMBERS = {
    "instructions": 14, "barriers": 1, "fences": 1, "divisions": 2, "product 1": 1.5, "tile 1": 3,
}  # fmt: skip


def test_what_is_counted():
    assert cuda_gate.measure(cuda_gate.instructions(CODE)) == NUMBERS


def test_loops_are_found_by_branches_that_go_back():
    code = cuda_gate.instructions(CODE)
    assert [loop[0] for loop in cuda_gate.loops(code)] == [".L_x_4:", ".L_x_1:", ".L_x_0:", ".L_x_2:"]


def test_a_loop_that_was_unrolled_is_the_one_around_it():
    code = cuda_gate.instructions(CODE.replace("@P0 BRA `(.L_x_1) ;", "FADD R1, R1, R2 ;"))
    numbers = cuda_gate.measure(code)
    assert (numbers["product 1"], numbers["tile 1"]) == (3, 0)


@pytest.mark.parametrize(
    ("number", "value", "fails"),
    [
        ("divisions", 3, True),
        ("barriers", 2, True),
        ("fences", 2, True),
        ("divisions", 0, False),
        ("product 1", 1.57, False),
        ("product 1", 1.58, True),
        ("instructions", 15, True),
    ],
)
def test_what_is_worse(number, value, fails):
    problems = cuda_gate.worse("sm_90a D 128", NUMBERS | {number: value}, NUMBERS)
    assert problems == [f"sm_90a D 128: {number} {value}, was {NUMBERS[number]}"] * fails


def test_numbers_without_others_to_compare_with():
    assert "is not in cuda.json" in cuda_gate.worse("new", NUMBERS, None)[0]
    assert "other loops" in cuda_gate.worse("lost", {"instructions": 1}, NUMBERS)[0]


def test_what_is_written_is_read_again(tmp_path, monkeypatch):
    cuda_gate.write(tmp_path / "gates" / "cuda.json", "13.0.88", {"b": NUMBERS, "a": NUMBERS})
    text = (tmp_path / "gates" / "cuda.json").read_text()
    assert cuda_gate.json.loads(text) == {"nvcc": "13.0.88", "kernels": {"a": NUMBERS, "b": NUMBERS}}
    assert len(text.splitlines()) == 7
