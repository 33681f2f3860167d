"""The table that README shows of test_matrix, made of that test's own results."""

from pathlib import Path

from family_models import BUILDERS
from small_models import ATTENTION

README = Path(__file__).parents[1] / "README.md"
BATCHES = {1: "alone", 3: "batch of 3"}


def table(results):
    """Markdown of [family, attention, rows, error] of the tests that passed, or None if some did not run or failed."""
    columns = [(attention, rows) for attention in ATTENTION for rows in BATCHES]
    passed = [(family, attention, rows) for family, attention, rows, _ in results]
    # compact_cache off and on
    if any(passed.count((family, *column)) != 2 for family in BUILDERS for column in columns):
        return None
    lines = [
        "| | " + " | ".join(f"{attention}, {BATCHES[rows]}" for attention, rows in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {family} | " + " | ".join("✓" for _ in columns) + " |" for family in BUILDERS),
    ]
    return "\n".join(lines)
