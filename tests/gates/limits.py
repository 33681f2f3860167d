"""What no kernel may exceed, whatever was committed and by whichever Triton it is compiled.

Spilled registers, more shared memory than the GPU has, and half precision without the matrix unit are never allowed.
"""

# GPU, case, kernel: the most of each number. An entry whose kernel is not compiled fails, so that none is lost in silence.
LIMITS = {
    # A loop without index arithmetic: one division of scalars, by the number of tiles that the text rows make. With it the
    # loops had 1690, 1385, 2509 and 937.
    ("sm_90", "score bfloat16 D=128, LSE given", "_column_sums_kernel"): {"loop": 450, "divisions": 1},
    ("sm_80", "score bfloat16 D=128, LSE given", "_column_sums_kernel"): {"loop": 421, "divisions": 1},
    ("sm_100", "score bfloat16 D=128, LSE given", "_column_sums_kernel"): {"loop": 700, "divisions": 1},
    ("gfx942", "score bfloat16 D=128, LSE given", "_column_sums_kernel"): {"loop": 285, "divisions": 1},
    # The host knows where segments begin and end. (On gfx942 selection is refused, and only compiled.)
    ("sm_80", "stage after the first", "_select_held_kernel"): {"instructions": 870},
    ("sm_90", "stage after the first", "_select_held_kernel"): {"instructions": 900},
    ("sm_100", "stage after the first", "_select_held_kernel"): {"instructions": 870},
    ("gfx942", "stage after the first", "_select_held_kernel"): {"instructions": 900},
}

# How often Triton may compile each kernel in the course of one of the prompts; the others once.
VARIANTS = {
    # The first stage deduplicates, and its segments are longer.
    "15 stages": {"_select_held_kernel": 2},
    "15 stages, compact_cache": {"_select_held_kernel": 2, "_gather_kernel": 4},
    "9 stages, batch 1, LSE given": {"_select_held_kernel": 2},
    "9 stages, batch 1, no LSE": {"_select_held_kernel": 2},
    "9 stages, batch 3, LSE given": {"_select_held_kernel": 2},
    "9 stages, masks": {"_select_held_kernel": 2},
    "long segments, odd and even": {"_narrow_kernel": 2},  # one of each digit
    "packed batches of 4 sizes": {"_column_sums_varlen_kernel": 2},  # with the LSE given, and from its parts
    "scores aligned and not, prior and none": {"_select_held_kernel": 2},
}

# One launch for each of two digits, and code for each.
TWICE = ("_narrow_kernel",)

LAUNCHES = {"a stage, LSE given": 3, "a stage, no LSE": 4}
