"""Cache layers of pruned prompts: which columns they hold, and the length they report."""

import copy

import pytest
import torch
from family_models import batch_of
from small_models import ATTENTION, LAYERS, llava_onevision, prompt
from transformers.cache_utils import DynamicLayer

import adatp_kernels as adatp
from adatp_kernels.integrations.transformers.cache import (
    CompactedLayer,
    PrunedLayer,
    columns_held,
    mask_of,
    take_columns,
    take_rows,
)


def filled(length, batch=1):
    """A layer whose entries are their own numbers."""
    layer = DynamicLayer()
    entries = torch.arange(float(length)).view(1, 1, length, 1).expand(batch, 2, length, 4)
    layer.update(entries, entries)
    return layer


def pruned():
    """Six columns of which 0, 2, 5 are held, then three more: 6, 7, 8."""
    return PrunedLayer.of(filled(6), torch.tensor([[0, 2, 5]]), 6)


def test_compacted_layer_counts_logically_and_holds_physically():
    layer = filled(5)
    compacted = CompactedLayer.of(CompactedLayer.of(layer, 3), 4)
    assert compacted.keys is layer.keys
    assert compacted.get_seq_length() == 12
    assert compacted.get_mask_sizes(3) == (8, 7)
    compacted.update(torch.randn(1, 2, 1, 4), torch.randn(1, 2, 1, 4))
    assert compacted.get_seq_length() == 13
    with pytest.raises(ValueError, match="compact_cache"):
        compacted.crop(-1)
    compacted.reset()
    assert compacted.dropped == 0


def test_pruned_layer_reports_the_length_of_all_columns():
    layer = pruned()
    assert layer.keys.shape[2] == 6
    assert layer.get_seq_length() == 9
    assert layer.get_mask_sizes(2) == (11, 0)
    mask = torch.arange(11.0).view(1, 1, 1, 11)
    assert mask_of(layer, mask).flatten().tolist() == [0, 2, 5, 6, 7, 8, 9, 10]
    assert mask_of(layer, mask[0, 0].repeat(2, 1)[:1]).tolist() == [[0, 2, 5, 6, 7, 8, 9, 10]]


def test_columns_of_several_turns():
    kept = torch.tensor([[1, 3]])
    assert columns_held(None, 0, torch.tensor([[0, 2, 5]])).tolist() == [[0, 2, 5]]
    assert columns_held(filled(4), 4, kept).tolist() == [[0, 1, 2, 3, 5, 7]]
    assert columns_held(pruned(), 9, kept).tolist() == [[0, 2, 5, 6, 7, 8, 10, 12]]


@pytest.mark.parametrize(
    ("crop", "length", "entries"),
    [
        (0, 9, 6),
        (-1, 8, 5),
        (-3, 6, 3),  # back to the end of the prompt
        (-4, 5, 2),  # column 5 goes
        (-6, 3, 2),  # 3 and 4 were pruned already
        (-8, 1, 1),
        (-9, 0, 0),
        (-11, 0, 0),  # past the start, as a layer of transformers' own
    ],
)
def test_cropping_counts_columns_not_entries(crop, length, entries):
    layer = pruned()
    layer.crop(crop)
    assert layer.get_seq_length() == length
    assert layer.keys.shape[2] == layer.values.shape[2] == entries
    assert layer.keys[0, 0, :, 0].tolist() == list(range(entries))
    mask = torch.arange(length + 2.0).view(1, 1, 1, -1)
    assert mask_of(layer, mask).shape[-1] == entries + 2


@pytest.mark.parametrize("crop", [7, 100])
def test_a_positive_crop_is_what_it_is_to_transformers(crop):
    """The length that is to be left, or refused: which, depends on the version."""
    plain, layer, said = filled(9), pruned(), []
    for one in (plain, layer):
        try:
            one.crop(crop)
        except ValueError as error:
            said.append(str(error))
    assert len(said) in (0, 2) and len(set(said)) <= 1
    assert layer.get_seq_length() == plain.get_seq_length()
    assert layer.keys.shape[2] == min(plain.get_seq_length() - 3, 6)


def test_cropping_refuses_rows_that_would_differ():
    layer = PrunedLayer.of(filled(4, batch=2), torch.tensor([[0, 1, 2], [0, 4, 5]]), 6)
    with pytest.raises(ValueError, match="crop: the batch rows hold different numbers"):
        layer.crop(-4)


def test_batches_and_copies_keep_their_columns():
    layer = PrunedLayer.of(filled(3, batch=2), torch.tensor([[0, 1, 2], [0, 4, 5]]), 6)
    copied = copy.deepcopy(layer)
    layer.batch_repeat_interleave(2)
    assert layer.columns.tolist() == [[0, 1, 2], [0, 1, 2], [0, 4, 5], [0, 4, 5]]
    layer.reorder_cache(torch.tensor([2, 0, 0, 3]))
    assert layer.columns.tolist() == [[0, 4, 5], [0, 1, 2], [0, 1, 2], [0, 4, 5]]
    layer.batch_select_indices(torch.tensor([1]))
    assert layer.columns.tolist() == [[0, 1, 2]] and len(layer.keys) == 1
    assert copied.columns.tolist() == [[0, 1, 2], [0, 4, 5]] and copied.covered == 6
    layer.reset()
    assert layer.covered == 0


@pytest.mark.parametrize("kind", [PrunedLayer, CompactedLayer])
def test_what_a_layer_carries_follows_its_rows(kind):
    layer = PrunedLayer.of(filled(3, batch=2), torch.tensor([[0, 1, 2], [0, 4, 5]]), 6)
    if kind is CompactedLayer:
        layer = CompactedLayer.of(filled(3, batch=2), 3)
    layer.rope_deltas = ((0, torch.tensor([[0], [0]])), (2, torch.tensor([[-5], [-7]])))
    copied = copy.deepcopy(layer)
    layer.batch_repeat_interleave(2)
    layer.reorder_cache(torch.tensor([2, 0, 0, 3]))
    assert [deltas.flatten().tolist() for _, deltas in layer.rope_deltas] == [[0] * 4, [-7, -5, -5, -7]]
    layer.batch_select_indices(torch.tensor([1]))
    assert [(start, deltas.tolist()) for start, deltas in layer.rope_deltas] == [(0, [[0]]), (2, [[-5]])]
    assert [deltas.flatten().tolist() for _, deltas in copied.rope_deltas] == [[0, 0], [-5, -7]]
    again = kind.of(layer, *((layer.columns, 6) if kind is PrunedLayer else (1,)))
    assert again.rope_deltas is layer.rope_deltas
    if kind is PrunedLayer:
        layer.crop(-4)
        assert [start for start, _ in layer.rope_deltas] == [0]
    layer.reset()
    assert layer.rope_deltas == ()


def test_rows_and_columns_of_a_mask():
    mask = torch.arange(2 * 3 * 4).view(2, 1, 3, 4)
    rows, columns = torch.tensor([[0, 2], [1, 2]]), torch.tensor([[3], [0]])
    picked = take_columns(take_rows(mask, rows), columns)
    assert picked.flatten().tolist() == [mask[0, 0, 0, 3], mask[0, 0, 2, 3], mask[1, 0, 1, 0], mask[1, 0, 2, 0]]
    assert take_columns(mask[:1, 0, 0], torch.tensor([[1, 2], [3, 0]])).tolist() == [[1, 2], [3, 0]]


def bytes_of(cache):
    """What a cache keeps alive: whole storages, for a view of a long tensor frees nothing."""
    storages = [part.untyped_storage() for layer in cache.layers for part in (layer.keys, layer.values)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_compacted_cache_takes_the_memory_that_the_plan_predicts(attention, rows):
    prompts = [prompt(frames=24, shots=8, seed=row, after=tuple(range(7, 12 + row))) for row in range(rows)]
    model, inputs = llava_onevision(attention), batch_of(prompts)
    text = model.config.text_config
    per_token = 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * 4  # float32
    held = {}
    for compact in (None, False, True):
        config = adatp.AdaTPConfig(target_flops=0.4, compact_cache=bool(compact))
        run = adatp.accelerate(model, config)
        if compact is None:
            run.remove()
        with torch.no_grad():
            cache = model(**inputs, logits_to_keep=1).past_key_values
        held[compact] = bytes_of(cache)
        run.remove()
    report = run.report(rows - 1)  # of the longest text
    planned = rows * LAYERS * per_token * (report.text_tokens + report.plan.tokens_per_layer[-1])
    assert held[True] == pytest.approx(planned, rel=0.05)
    assert held[None] == rows * LAYERS * per_token * inputs["input_ids"].shape[1]
    assert held[True] < 0.9 * held[False] < 0.9 * held[None]
