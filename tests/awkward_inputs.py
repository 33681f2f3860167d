"""Inputs drawn from all that an operation must take: any shapes, strides, dtypes, ties, numbers that are none."""

import math

import torch

AWKWARD_SCORES = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-40, 0.25, 0.5, 0.5, 1.0, -1.0])

DTYPES = [
    torch.uint8,
    torch.bool,
    torch.bfloat16,
    torch.float32,
    torch.int64,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
]


def drawing(seed):
    """A generator, and a function that draws an integer from a range."""
    random = torch.Generator().manual_seed(seed)
    return random, lambda *bounds: int(torch.randint(*bounds, (), generator=random))


def awkward_selection(seed, dedup, *, dtype=torch.float32, batch=10, most_columns=80):
    """Scores, segments, positions and budgets, and `select`'s options; every batch row is a case of its own."""
    random, draw = drawing(seed)
    columns, segments, cells = draw(1, most_columns), draw(0, 5), draw(1, 12)
    scores = torch.rand(batch, columns, generator=random, dtype=dtype)
    if draw(0, 2):  # ties
        scores = (scores * 4).round() / 4
    if draw(0, 2):
        awkward = AWKWARD_SCORES[torch.randint(0, len(AWKWARD_SCORES), (batch, columns), generator=random)].to(dtype)
        scores = torch.where(torch.rand(batch, columns, generator=random) < 0.3, awkward, scores)
    ids = torch.randint(-1, segments, (columns,), generator=random) if segments else torch.full((columns,), -1)
    if draw(0, 2):
        ids = ids.sort().values
    positions = torch.randint(0, cells, (columns,), generator=random) * (10**9 if draw(0, 5) == 0 else 1)
    budgets = []
    for segment in range(segments):
        mine = positions[ids == segment]
        budgets.append(draw(0, (len(mine.unique()) if dedup == "strict" else len(mine)) + 1))
    options = {"dedup": dedup, "soft_weight": [0.0, 0.3, 1.0][draw(0, 3)]}
    if draw(0, 2):
        options["prior"] = torch.randint(0, 3, (batch, columns), generator=random).to(dtype) / 2
    if draw(0, 2):  # strides
        scores = torch.stack([scores, scores * 0], 2)[:, :, 0]
        ids = torch.stack([ids, ids * 0], 1)[:, 0]
    return scores, ids, positions, torch.tensor(budgets, dtype=torch.int64), options


def awkward_tensors(seed, *, tokens=None, batch=None, most_dims=5, most_tensors=4):
    """Indices, tensors that have those tokens, and the (batch, token) dimensions of each."""
    random, draw = drawing(seed)
    batch, tokens = batch or draw(1, 4), tokens or draw(1, 200)
    indices = torch.randint(0, tokens, (batch, draw(0, 150)), generator=random)
    tensors, dims = [], []
    for _ in range(draw(1, most_tensors)):
        shape = [draw(1, 5) for _ in range(draw(1, most_dims - 1))]
        order = torch.randperm(len(shape) + 1, generator=random).tolist()
        token, own = order[0], order[1]
        shape.insert(0, draw(1, 5))
        shape[token], shape[own] = tokens, batch if draw(0, 3) else 1
        wide = [size * (2 if draw(0, 3) == 0 else 1) for size in shape]
        dtype = DTYPES[draw(0, len(DTYPES))]
        # Bytes that make no NaN: torch.gather changes the bits of some.
        memory = torch.randint(0, 60, [*wide, dtype.itemsize], generator=random, dtype=torch.uint8)
        tensor = (memory > 30)[..., 0] if dtype == torch.bool else memory.view(dtype)[..., 0]
        tensor = tensor[tuple(slice(None, None, w // s) for w, s in zip(wide, shape, strict=True))]
        tensors.append(tensor.conj() if dtype.is_complex and draw(0, 2) else tensor)
        dims.append((own, token))
    return indices, tensors, dims


def same_bits(a, b):
    """Whether two tensors hold the same bytes, whatever their layout."""
    left, right = (tensor.resolve_conj().contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b))
    return left.equal(right)
