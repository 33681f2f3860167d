"""The table that README shows of test_matrix, made of that test's own results."""

from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def table(results):
    """Markdown of [family, attention, rows, error] of the tests that passed, or None if a combination is missing.

    A combination counts once all of its tests passed: as many as every other has.
    """
    errors = {}
    for family, attention, rows, error in results:
        errors.setdefault((family, attention, rows), []).append(error)
    families, attentions, batches = (list(dict.fromkeys(key[i] for key in errors)) for i in range(3))
    counts = {len(errors.get((f, a, b), ())) for f in families for a in attentions for b in batches}
    if counts != {2}:  # compact_cache off and on
        return None
    size = {1: "alone", 3: "batch of 3"}
    columns = [(attention, rows) for attention in attentions for rows in batches]
    lines = [
        "| | " + " | ".join(f"{attention}, {size[rows]}" for attention, rows in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *(f"| {family} | " + " | ".join("✓" for _ in columns) + " |" for family in families),
    ]
    return "\n".join(lines)
