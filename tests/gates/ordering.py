"""What is missing between programs of a kernel, or wrong with float32; the interpreter, one program at a time, cannot show it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any


def unordered(kernel: Any, case: str) -> Iterator[str]:
    """What is wrong, a phrase each, with a kernel's PTX; nothing is known of other targets."""
    text = kernel.asm.get("ptx", "")
    if "float32" in case and "tf32" in text:
        yield "multiplies float32 in tf32"
    if text:
        yield from _out_of_turn(text, follows=getattr(kernel.metadata, "launch_pdl", False))
    if kernel.name == "_select_held_kernel" and text and (maximum := text.rfind(".max.u64")) > 0:
        best = text.find("ld.global.cg.b64", maximum)
        if best < 0 or "bar.sync" not in text[maximum:best]:
            yield "reads the best columns before they are"
    if kernel.name == "_select_scattered_kernel" and text:
        maximum, counter = text.rfind(".max.u64"), text.find(".acq_rel.add")
        if counter < 0:
            yield "counts arrivals without ordering memory"
        if "bar.sync" not in text[text.rfind("st.global.b8", 0, counter) : counter]:
            yield "is counted before its flags are written"
        if "ld.global.cg.b8" not in text[counter:]:
            yield "may read stale flags"
        if maximum > 0:
            best = text.find("ld.global.cg.b64", maximum)
            if best < 0:
                yield "may read stale best columns"
            elif "bar.sync" not in text[maximum:best]:
                yield "reads the best columns before they are"
        # 32-bit words are stored to `work` alone, and what one pass over the columns stores the next one loads.
        stored = False
        for step in re.findall(r"st\.global\.(?:v\d\.)?b32|ld\.global|bar\.sync", text):
            if step == "ld.global" and stored:
                yield "reads its work before it is done"
                break
            stored = step.startswith("st") or (stored and step != "bar.sync")


def _out_of_turn(text: str, *, follows: bool) -> Iterator[str]:
    """What is wrong with a kernel that is launched while the one before it runs, or lets the next one be."""
    wait, memory = text.find("griddepcontrol.wait"), re.search(r"\b(?:ld|st|atom|red)\.(?:\w+\.)*global", text)
    if follows != (wait >= 0):
        yield "is launched early and does not wait" if follows else "waits for nothing"
    if follows and memory and memory.start() < wait:
        yield "touches memory before it waits"
    if text.count("griddepcontrol.launch_dependents") > 1:
        yield "lets the next kernel come more than once"
