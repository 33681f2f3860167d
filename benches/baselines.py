"""What a user would otherwise do, written plainly, and what a rival would; each is checked equal before it is timed.

Two of the rivals are packages that need not be here: `flash-colreduce <https://pypi.org/project/flash-colreduce>`_ (column
sums of attention in Triton) and `FlashInfer <https://pypi.org/project/flashinfer-python>`_ (its deterministic top-k). A function
of theirs is None, and `absent` says why, where they are not installed.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def materialised_map(query: Tensor, key: Tensor, rows: int, columns: slice) -> Tensor:
    """The whole attention map, as ``output_attentions`` gives it, and then the mean of its last rows.

    Parameters
    ----------
    query : Tensor [B, Hq, N, D]
        All rows of the sequence.
    key : Tensor [B, Hkv, N, D]
    rows : int
        The last so many rows score.
    columns : slice
        The visual columns.
    """
    return text_rows(query, key, query.shape[2], columns, scoring=rows)


def text_rows(query: Tensor, key: Tensor, rows: int, columns: slice, scoring: int | None = None) -> Tensor:
    """The map's last rows alone: repeat_kv, matmul, softmax, mean. Arguments as for `materialised_map`."""
    repeated = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query[:, :, -rows:] @ repeated.transpose(-1, -2) * query.shape[-1] ** -0.5
    hidden = torch.ones(rows, key.shape[2], dtype=torch.bool, device=key.device).triu(1 + key.shape[2] - rows)
    probability = scores.masked_fill(hidden, float("-inf")).softmax(
        -1, dtype=torch.promote_types(scores.dtype, torch.float32)
    )
    return probability[:, :, -(scoring or rows) :, columns].mean((1, 2))


def grouped_rows(query: Tensor, key: Tensor, rows: int, columns: slice) -> Tensor:
    """`text_rows` as someone writes it who minds the time: no key is copied, and only the text's own columns are masked.

    The query heads that share a key head lie one below the other in one product.
    """
    scores = _grouped_scores(query, key, rows)
    scores[..., -rows:].masked_fill_(_future(rows, key), float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    return scores.softmax(-1, dtype=wide)[..., columns].mean((1, 2, 3))


def grouped_rows_given_lse(query: Tensor, key: Tensor, lse: Tensor, rows: int, columns: slice) -> Tensor:
    """`grouped_rows` for someone who has the rows' log-sum-exp [B, Hq, T], too: no softmax over all keys, no mask.

    The columns must come before the rows' own.
    """
    scores = _grouped_scores(query, key[:, :, columns], rows)
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return (wide - lse.unflatten(1, (key.shape[1], -1))[..., None]).exp_().mean((1, 2, 3))


def rows_by_part(
    query: Tensor, key: Tensor, rows: int, columns: slice, heads: int = 0, keys_first: bool = False
) -> Tensor:
    """`grouped_rows` of a few query heads at a time, so that their scores stay in a CPU's cache.

    Parameters
    ----------
    heads : int
        Query heads of a part, all of one key head; 0 for all of it.
    keys_first : bool
        Whether keys are the rows of the product, and the sums are along it.
    """
    packed, heads_of = _packed(query, key, rows), heads or query.shape[1] // key.shape[1]
    future = _future(rows, key).repeat(heads_of, 1)
    wide = torch.promote_types(query.dtype, torch.float32)
    total = torch.zeros(key.shape[0], key.shape[2], dtype=wide, device=key.device)
    for b, h in itertools.product(range(key.shape[0]), range(key.shape[1])):
        for part in packed[b, h].split(heads_of * rows):
            if keys_first:
                scores = key[b, h] @ part.T
                scores[-rows:].masked_fill_(future.T, float("-inf"))
                total[b] += scores.softmax(0, dtype=wide).sum(1)
            else:
                scores = part @ key[b, h].T
                scores[:, -rows:].masked_fill_(future, float("-inf"))
                total[b] += scores.softmax(1, dtype=wide).sum(0)
    return total[:, columns] / (query.shape[1] * rows)


def rows_by_part_given_lse(query: Tensor, key: Tensor, lse: Tensor, rows: int, columns: slice) -> Tensor:
    """`grouped_rows_given_lse` of one key head at a time. The columns must come before the rows' own."""
    packed = _packed(query, key, rows)
    own = lse.unflatten(1, (key.shape[1], -1)).flatten(2)[..., None]  # [B, Hkv, G · T, 1]
    total = 0
    for h in range(key.shape[1]):
        scores = (packed[:, h] @ key[:, h, columns].mT).to(own.dtype)
        total = total + scores.sub_(own[:, h]).exp_().sum(1)
    return total / (query.shape[1] * rows)


def in_float32(scores: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`scores` of a query and a key that are made float32 first, for a CPU that multiplies no halves."""
    return lambda query, key, *others: scores(query.float(), key.float(), *others)


def _packed(query: Tensor, key: Tensor, rows: int) -> Tensor:
    """[B, Hkv, G · T, D], scaled."""
    batch, heads, _, dim = query.shape
    return query[:, :, -rows:].reshape(batch, key.shape[1], heads // key.shape[1] * rows, dim) * dim**-0.5


def _grouped_scores(query: Tensor, key: Tensor, rows: int) -> Tensor:
    """[B, Hkv, G, T, N]."""
    return (_packed(query, key, rows) @ key.transpose(-1, -2)).unflatten(2, (-1, rows))


def _future(rows: int, key: Tensor) -> Tensor:
    return torch.ones(rows, rows, dtype=torch.bool, device=key.device).triu(1)


def topk_and_sort(scores: Tensor, kept: int) -> Tensor:
    """The best columns of one segment without deduplication, ascending: what FastV does."""
    return scores.topk(kept, dim=1, sorted=False).indices.sort(dim=1).values


def argsort_and_sort(scores: Tensor, kept: int) -> Tensor:
    """`topk_and_sort` by a whole sort."""
    return scores.argsort(dim=1, descending=True)[:, :kept].sort(dim=1).values


def threshold_and_nonzero(scores: Tensor, kept: int) -> Tensor:
    """`topk_and_sort` by its threshold, which keeps the order; without ties only."""
    bound = scores.kthvalue(scores.shape[1] - kept + 1, dim=1, keepdim=True).values
    return (scores >= bound).nonzero()[:, 1].view(len(scores), kept)


def deduplicate_topk_and_sort(scores: Tensor, segments: int, cells: int, kept: int) -> Tensor:
    """One column per position of every segment by amax, then each segment's best by topk, then a sort.

    It wants segments of equally many whole frames, and returns the right columns only without ties.
    """
    grid = scores.unflatten(1, (segments, -1, cells))  # [B, S, F, P]
    best, frame = grid.max(dim=2)
    position = best.topk(kept, dim=2, sorted=False).indices  # [B, S, k]
    start = torch.arange(segments, device=scores.device)[:, None] * grid.shape[2] * cells
    return (start + frame.gather(2, position) * cells + position).flatten(1).sort(dim=1).values


class SegmentTopk:
    """The best columns of segments that lie one after the other, of any sizes and budgets, and without deduplication.

    Everything that does not depend on the scores is laid out once: where in a padded table each segment's columns go, and
    which of the winners, best first, are within their segment's budget.

    Parameters
    ----------
    sizes, budgets : sequence of int
        Of every segment, its columns and how many of them it keeps.
    device : torch.device
    """

    def __init__(self, sizes: Sequence[int], budgets: Sequence[int], device: torch.device) -> None:
        self.most, widest, self.columns = max(budgets), max(sizes), sum(sizes)
        place = torch.full((len(sizes), widest), self.columns)
        first = 0
        for row, size in zip(place, sizes, strict=True):
            row[:size] = torch.arange(first, first + size)
            first += size
        within = torch.cat([row * self.most + torch.arange(budget) for row, budget in enumerate(budgets)])
        self.place, self.within = place.to(device), within.to(device)

    def __call__(self, scores: Tensor) -> Tensor:
        """Columns kept of scores [B, N], ascending."""
        padded = torch.nn.functional.pad(scores, (0, 1), value=float("-inf"))
        best = padded[:, self.place].topk(self.most, dim=2).indices  # [B, S, k]
        columns = self.place.expand(len(scores), -1, -1).gather(2, best).flatten(1)
        return columns.index_select(1, self.within).sort(dim=1).values


def index_select(indices: Tensor, tensors: list[Tensor], dims: list[int]) -> list[Tensor]:
    """A call per tensor; a batch of one."""
    return [tensor.index_select(dim, indices[0]) for tensor, dim in zip(tensors, dims, strict=True)]


def advanced_indexing(indices: Tensor, tensors: list[Tensor], dims: list[int]) -> list[Tensor]:
    """`tensor[:, indices]`, as it is mostly written; a batch of one."""
    return [tensor[(slice(None),) * dim + (indices[0],)] for tensor, dim in zip(tensors, dims, strict=True)]


def gather_each(indices: Tensor, tensors: list[Tensor], dims: list[int]) -> list[Tensor]:
    """A torch.gather per tensor; any batch."""
    moved = []
    for tensor, dim in zip(tensors, dims, strict=True):
        view = [len(indices) if d == 0 else indices.shape[1] if d == dim else 1 for d in range(tensor.dim())]
        shape = [indices.shape[1] if d == dim else size for d, size in enumerate(tensor.shape)]
        moved.append(tensor.gather(dim, indices.view(view).expand(shape)))
    return moved


def absent(package: str, module: str, device: torch.device) -> str | None:
    """Why a rival's package cannot run here; None if it can."""
    try:
        importlib.import_module(module)
    except Exception as error:  # whatever is wrong with it, it is not there
        return f"{package} is not installed" if isinstance(error, ModuleNotFoundError) else f"{package}: {error}"
    return None if device.type == "cuda" else f"{package} runs on CUDA tensors only"


def colreduce(device: torch.device) -> tuple[Callable[[Tensor, Tensor, int, slice], Tensor] | None, str | None]:
    """flash-colreduce as its user has to call it, or why not: it knows no grouped heads, so keys are repeated.

    It adds a head's sums up by atomics, in whatever order, and returns them in the query's dtype.
    """
    if reason := absent("flash-colreduce", "flash_colreduce", device):
        return None, reason
    sums = importlib.import_module("flash_colreduce").flash_colreduce

    def scores(query: Tensor, key: Tensor, rows: int, columns: slice) -> Tensor:
        repeated = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        each = sums(query[:, :, -rows:], repeated, "sum", is_causal=True)
        return each[..., columns].mean(1, dtype=torch.float32) / rows

    return scores, None


def flashinfer_topk(device: torch.device) -> tuple[Callable[[Tensor, int], Tensor] | None, str | None]:
    """FlashInfer's deterministic top-k, smaller index first where it can, and a sort; or why not. Each row is a segment."""
    if reason := absent("flashinfer-python", "flashinfer", device):
        return None, reason
    top_k = getattr(importlib.import_module("flashinfer"), "top_k", None)
    known = inspect.signature(top_k).parameters if top_k else {}
    if "deterministic" not in known:
        return None, "flashinfer-python: this version has no deterministic top_k"
    options = {"deterministic": True} | ({"tie_break": 1} if "tie_break" in known else {})

    def kept(scores: Tensor, count: int) -> Tensor:
        return top_k(scores, count, **options)[1].long().sort(dim=1).values

    return kept, None
