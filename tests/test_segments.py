import pytest
import torch
from brute_force import names

from adatp_kernels import salient_segments, segment_frames


def at_angles(*degrees):
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def test_neighbours_decide_not_the_first_frame():
    # Each step turns by 10° (cosine 0.985), 40° (0.766), 10°; the ends of the first run are 20° apart (0.94).
    features = at_angles(0, 10, 20, 60, 70)
    assert segment_frames(features, 0.95).tolist() == [0, 0, 0, 1, 1]
    assert segment_frames(features, 0.99).tolist() == [0, 1, 2, 3, 4]
    assert segment_frames(features, 0.7).tolist() == [0, 0, 0, 0, 0]


def test_the_threshold_is_inclusive():
    features = torch.tensor([[1.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    assert segment_frames(features, 0.6).tolist() == [0, 0]
    assert segment_frames(features, 0.6000001).tolist() == [0, 1]


def test_default_threshold_is_the_papers():
    assert segment_frames(at_angles(0, 18.1, 36.3)).tolist() == [0, 0, 1]  # cos 18.195° = 0.95


def test_length_of_the_features_does_not_matter():
    features = at_angles(0, 10, 80, 85)
    scaled = features * torch.tensor([[1e-3], [1e3], [7.0], [0.1]])
    assert segment_frames(scaled).tolist() == segment_frames(features).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    assert segment_frames(at_angles(0, 5, 90, 95).to(dtype)).tolist() == [0, 0, 1, 1]


def test_half_precision_features_are_compared_in_float32():
    # The norm overflows float16; the cosine of the second pair, 0.9505, would round to 0.949 in bfloat16.
    assert segment_frames(torch.full((2, 8), 3e4, dtype=torch.float16)).tolist() == [0, 0]
    assert segment_frames(torch.tensor([[1.0, 0.0], [52.0, 17.0]], dtype=torch.bfloat16)).tolist() == [0, 0]


def test_minus_one_joins_opposite_frames():
    # Their cosine rounds to just below −1.
    features = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, dim=0)
    features[1::2] *= -1
    assert segment_frames(features, -1.0).tolist() == [0] * 100


def test_one_joins_equal_frames():
    # The cosine of a vector with itself rounds to just below 1.
    features = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, dim=0)
    assert segment_frames(features, 1.0).tolist() == [frame // 2 for frame in range(100)]


def test_zero_and_nan_features():
    zero, one, nan = [0.0, 0.0], [1.0, 0.0], [float("nan"), 0.0]
    assert segment_frames(torch.tensor([one, zero, zero, one])).tolist() == [0, 1, 2, 3]
    assert segment_frames(torch.tensor([one, zero, one]), 0.0).tolist() == [0, 0, 0]
    assert segment_frames(torch.tensor([one, one, nan, one, one])).tolist() == [0, 0, 1, 2, 2]


def test_one_frame():
    assert segment_frames(torch.ones(1, 3)).tolist() == [0]


def test_nothing_is_read_back_to_the_host():
    segments = segment_frames(torch.empty(7, 3, device="meta"))
    assert (segments.shape, segments.dtype, segments.device.type) == ((7,), torch.int64, "meta")


@pytest.mark.parametrize(
    ("features", "threshold", "argument"),
    [
        ([[1.0, 2.0]], 0.9, "features"),
        (None, 0.9, "features"),
        (torch.ones(2, 3, dtype=torch.int64), 0.9, "features"),
        (torch.ones(3), 0.9, "features"),
        (torch.ones(1, 2, 3), 0.9, "features"),
        (torch.ones(0, 3), 0.9, "features"),
        (torch.ones(3, 0), 0.9, "features"),
        (torch.ones(2, 3), 1.1, "threshold"),
        (torch.ones(2, 3), float("nan"), "threshold"),
        (torch.ones(2, 3), "0.9", "threshold"),
        (torch.ones(2, 3), None, "threshold"),
    ],
)
def test_segment_frames_mistakes(features, threshold, argument):
    with names(argument):
        segment_frames(features, threshold)


def test_salient_compares_segments_not_frames():
    # Means 0.9, 0.1, 0.3; their mean is 0.433. Over frames it would be 0.26, and the last would pass.
    segments = torch.tensor([0, 1, 1, 1, 1, 2])
    relevance = torch.tensor([0.9, 0.1, 0.1, 0.1, 0.1, 0.3])
    assert salient_segments(segments, relevance).tolist() == [True, False, False]


def test_a_segment_counts_by_the_mean_of_its_frames():
    assert salient_segments(torch.tensor([0, 0, 1]), torch.tensor([1.0, 0.0, 0.6])).tolist() == [False, True]


@pytest.mark.parametrize("value", [0.1, -0.3, 0.0, 1 / 3])
@pytest.mark.parametrize("count", [1, 3, 7, 49])
def test_equally_relevant_segments_are_all_salient(value, count):
    segments = torch.arange(3 * count) // 3
    assert salient_segments(segments, torch.full((3 * count,), value, dtype=torch.float64)).all()


def test_salient_takes_any_real_dtype():
    segments = torch.tensor([0, 1])
    for dtype in (torch.int64, torch.float16, torch.bfloat16, torch.float64):
        assert salient_segments(segments, torch.tensor([0, 1], dtype=dtype)).tolist() == [False, True]


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"segments": [0.0, 0.0, 1.0]}, "segments"),
        ({"segments": torch.tensor([True, False, True])}, "segments"),
        ({"segments": torch.tensor([1, 1, 2])}, "segments"),
        ({"segments": torch.tensor([0, 2, 2])}, "segments"),
        ({"segments": torch.tensor([0, 1, 0])}, "segments"),
        ({"segments": torch.tensor([[0, 0, 1]])}, "segments"),
        ({"segments": torch.tensor([], dtype=torch.int64)}, "segments"),
        ({"segments": "001"}, "segments"),
        ({"segments": None}, "segments"),
        ({"relevance": torch.ones(2)}, "relevance"),
        ({"relevance": torch.ones(3, 1)}, "relevance"),
        ({"relevance": torch.tensor([0.0, float("nan"), 1.0])}, "relevance"),
        ({"relevance": torch.tensor([0.0, float("inf"), 1.0])}, "relevance"),
        ({"relevance": torch.tensor([True, False, True])}, "relevance"),
        ({"relevance": torch.ones(3, dtype=torch.complex64)}, "relevance"),
        ({"relevance": "abc"}, "relevance"),
        ({"relevance": None}, "relevance"),
    ],
)
def test_salient_segments_mistakes(changes, argument):
    good = {"segments": torch.tensor([0, 0, 1]), "relevance": torch.ones(3)}
    salient_segments(**good)
    with names(argument):
        salient_segments(**(good | changes))
