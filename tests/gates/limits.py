"""What no kernel may exceed, whatever was committed and by whichever Triton it is compiled.

Spilled registers, more shared memory than the GPU has, and half precision without the matrix unit are never allowed.
"""

# GPU, case, kernel: the most of each number. An entry whose kernel is not compiled fails, so that none is lost in silence.
LIMITS = {
    # What is asked for is 450: a loop without index arithmetic.
    ("sm_90", "score bfloat16 D=128, LSE given", "_column_sums_kernel"): {"loop": 1690},
    # What is asked for is 900, of a stage after the first, where the host knows where segments begin and end.
    ("sm_90", "stage", "_select_kernel"): {"instructions": 2628},
}

# How often Triton may compile each kernel in the course of one of the prompts; the others once.
VARIANTS = {
    "15 stages, compact_cache": {"_gather_kernel": 15},  # asked for: 4
    "scores aligned and not, prior and none": {"_select_kernel": 2},
}

LAUNCHES = {"a stage, LSE given": 3, "a stage, no LSE": 4}
