"""Every family, in every attention implementation, alone and in a padded batch: generation equals the masked full sequence.

The table that README prints of it comes from `pytest tests/integrations/transformers/test_matrix.py` (tests/matrix.py).
"""

import dataclasses

import pytest
from family_models import ALONG_TOKENS, BUILDERS, CELLS, batch_of, build, prompt
from masked_reference import TOLERANCE, MaskedReference, generate, survivors_of
from small_models import ATTENTION

import adatp_kernels as adatp

CONFIG = adatp.AdaTPConfig(target_flops=0.5, stages=(2, 3, 6, 9))
SHOTS = [(0, 0, 1, 1, 2, 2), (0, 0, 0, 1, 1, 1), (0, 0, 1, 1, 2, 2)]


def rows_of(family, count):
    """Different videos, and questions of different lengths."""
    return [
        prompt(family),
        prompt(family, shots=2, seed=1, before=(1, 4), after=(9, 8, 7)),
        prompt(family, seed=2, after=tuple(range(7, 20))),
    ][:count]


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", BUILDERS)
def test_generation_equals_the_masked_full_sequence(family, attention, rows, compact, record_property):
    model, prompts = build(family, attention), rows_of(family, rows)
    inputs = batch_of(prompts)
    length = inputs["input_ids"].shape[1]
    with adatp.accelerate(model, dataclasses.replace(CONFIG, compact_cache=compact)) as run:
        sequences, logits, cache = generate(model, inputs, max_new_tokens=16)
    for row, one in enumerate(prompts):
        report = run.report(row)
        assert report.segments == SHOTS[row]
        assert report.text_tokens == (one["input_ids"].shape[1] - 6 * CELLS)
        # One total for all rows.
        assert report.planned_tokens == report.actual_tokens == run.report().planned_tokens
        assert report.actual_tokens[0] == 6 * CELLS and report.actual_tokens[-1] < CELLS * 3
    survivors = survivors_of(run, rows)
    if compact:
        assert {layer.keys.shape[2] for layer in cache.layers} == {survivors[-1][1].shape[1] + 15}

    full = build(family, "eager")
    MaskedReference(full, compact=compact).add(survivors, 0, length)
    expected_sequences, expected, _ = generate(full, inputs, max_new_tokens=16)
    error = (logits - expected).abs().max()
    assert error <= TOLERANCE
    assert sequences.equal(expected_sequences)
    # Sensitivity: the same comparison fails against a model that was not pruned.
    dense = generate(build(family, "eager"), inputs, max_new_tokens=16)[1]
    assert (logits - dense).abs().amax((0, 2)).min() > 100 * TOLERANCE
    record_property("matrix", [family, attention, rows, float(error)])


def test_padding_is_where_the_batch_is_tested():
    batch = batch_of(rows_of("llava_onevision", 3))
    assert (batch["attention_mask"] == 0).sum(1).tolist() == [8, 11, 0]
    assert all(len(batch[name]) == 3 for name in ALONG_TOKENS if name in batch)
