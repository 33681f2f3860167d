"""How many threads decode: a thread of its own for a frame is fast, and holds that frame and those it refers to."""

from __future__ import annotations

import os

import av

# Four of 4K: decoding those then holds about 100 MB more than one thread does.
_PIXELS_AT_ONCE = 4 * 3840 * 2160


def frames_at_once(stream: av.video.stream.VideoStream) -> int:
    """Threads for a stream that is to be decoded frame by frame in parallel."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pixels = max(stream.codec_context.width * stream.codec_context.height, 1)
    return max(min(cores, _PIXELS_AT_ONCE // pixels, 16), 1)
