"""A dozen tile sizes of the score kernel, in bfloat16 with head dim 128, at the target shape; each is verified before it is timed.

`derive_tiles.py` is what measures all of them and writes the table; this says in a minute whether that is worth while.
"""

from __future__ import annotations

import sys

import measure
from cases import column_sums
from cases.case import dry_scale, gpu_scale
from derive_tiles import SHORTLIST, instead

from suite import rows
from suite.tests import cancelled
from suite.timed import DRY, Sizes


def main(dry: bool) -> int:
    """A row for every tile."""
    found = rows.read()
    if why := cancelled(found).get(("triton", "tiles")):
        rows.add({"suite": "tiles", "status": "not timed", "why": why})
        return 0
    limits = next((row["ceilings"] for row in found if "ceilings" in row), None)
    scale = dry_scale({"": "triton"}) if dry else gpu_scale(native=False)
    sizes, good, name = DRY if dry else Sizes(), True, "adatp, LSE given"
    for tile in SHORTLIST[:2] if dry else SHORTLIST:
        case = column_sums.column_sums(scale, sizes.visual, sizes.text)
        row = {
            "suite": "tiles",
            "case": case.title,
            **case.shape,
            "variant": str(tile),
            "ours": True,
            "mode": "graph warm",
        }
        with instead(tile, scale.device, scale.dtype, scale.head_dim):
            try:
                case.verify(name)
                timed = measure.make_round("graph warm", case.variants[name].call, case.make, case.bytes, dry)
                times = measure.rounds(timed, dry)
            except Exception as error:  # most likely it does not fit
                status = "wrong" if isinstance(error, AssertionError) else "failed"
                rows.add({**row, "status": status, "why": f"{type(error).__name__}: {error}"[:300]})
                good &= status == "failed"
                continue
        rows.add(row | measure.figures(times, case.bytes, case.flop, limits))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main("--dry" in sys.argv))
