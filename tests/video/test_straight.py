"""A file decoded from its beginning to where it breaks."""

import av
import pytest
from numbered_videos import B_FRAMES, numbers, write

from adatp_kernels.video.picture import Canvas
from adatp_kernels.video.straight import Decoded, Trust, _frames, decode_straight


class Breaks:
    """A container whose file can be read no further after so many packets."""

    def __init__(self, container, packets):
        self.container, self.packets = container, packets

    def demux(self, stream):
        for _, packet in zip(range(self.packets), self.container.demux(stream), strict=False):
            yield packet
        raise av.InvalidDataError(1094995529, "Invalid data found when processing input")


@pytest.fixture
def clip(tmp_path):
    return write(tmp_path / "clip.mp4", 20, gop=10, options=B_FRAMES)


@pytest.mark.parametrize("trust", list(Trust))
def test_a_file_that_breaks_off_gives_what_the_decoder_still_holds(clip, trust):
    found = Decoded()
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        frames = _frames(Breaks(container, 10), stream, trust, found)
        if trust is Trust.WHOLE:
            with pytest.raises(av.InvalidDataError):
                list(frames)
        else:
            assert numbers(frame.to_ndarray(format="rgb24") for frame in frames) == list(range(10))
            assert found.damaged == 1


@pytest.mark.parametrize("trust", list(Trust))
def test_frames_wanted_beyond_the_last_are_not_kept(clip, trust):
    canvas = Canvas(None)
    found = decode_straight(clip, 0, 20, [3, 19, 20, 25], canvas, trust)
    assert (found.kept, len(found.stamps), found.damaged) == (2, 20, 0)
    assert numbers(canvas.frames[:2]) == [3, 19]
