"""Prompts of videos and images for M-RoPE, written down by their sizes, and the positions that a model gives them."""

import torch
from family_models import IMAGE, VIDEO, VISION_END, VISION_START


def video(frames, height, width, seconds=1.0):
    return VIDEO, frames, height, width, seconds


def image(height, width):
    return IMAGE, 1, height, width, None


# Prompts row by row: how many tokens of text, what is seen (in tokens: time, height, width), text again. Each thing seen stands
# between two tokens of its own, which are text.
SHAPES = {
    "square": [[3, video(16, 2, 2), 5]],
    "short": [[3, video(2, 4, 4), 5]],
    "wide": [[1, video(9, 2, 7), 4]],
    "tall": [[0, video(10, 8, 3), 2]],
    "one frame": [[2, video(1, 3, 3), 3]],
    "two videos": [[2, video(6, 2, 3, 2.0), 3, video(12, 3, 2), 4]],
    "images": [[2, image(5, 3), 1, image(2, 6), 4]],
    "images and videos": [[2, image(6, 4), 1, video(11, 2, 2, 3.0), 2, image(9, 2), 0, video(3, 2, 2), 6]],
    "batch": [
        [3, video(16, 2, 2), 5],
        [2, image(3, 3), 2, video(5, 4, 2, 2.0), 1],
        [7, video(7, 2, 2, 4.0), 3, video(2, 1, 9), 2],
    ],
    "fractions": [[1, video(8, 2, 2, 2.5), 2, video(4, 2, 2), 3, video(6, 1, 2, 0.5), 2]],
}


def given(rows):
    """What a processor makes of prompts, padded on the left; seconds of all videos or, where each is one, of none."""
    ids, kinds, grids, seconds = [], [], {IMAGE: [], VIDEO: []}, []
    for row in rows:
        ids.append([])
        for part in row:
            if isinstance(part, int):
                ids[-1] += [7] * part
                continue
            token, frames, height, width, apart = part
            ids[-1] += [VISION_START, *[token] * (frames * height * width), VISION_END]
            grids[token].append([frames, 2 * height, 2 * width])
            if token == VIDEO:
                seconds.append(apart)
    longest = max(map(len, ids))
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in ids])
    kinds = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds}
    inputs |= {
        name: torch.tensor(grids[token])
        for token, name in ((IMAGE, "image_grid_thw"), (VIDEO, "video_grid_thw"))
        if grids[token]
    }
    if any(apart != 1 for apart in seconds):
        inputs["second_per_grid_ts"] = torch.tensor(seconds)
    return inputs


def positions_of(model, inputs):
    """Of each row the positions [3, n] of its tokens, and what is next."""
    positions, deltas = model.model.get_rope_index(**inputs)
    rows = [positions[:, row, mask.bool()] for row, mask in enumerate(inputs["attention_mask"])]
    assert deltas.shape == (len(rows), 1) and deltas.dtype == positions.dtype == torch.int64
    return rows, [delta + row.shape[1] for delta, row in zip(deltas[:, 0].tolist(), rows, strict=True)]
