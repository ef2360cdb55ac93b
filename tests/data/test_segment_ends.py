"""Segments: ends by phone times and by labels, and the weights that fire at them."""

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data.manifest import Segment
from jaxssl.data.segment_ends import ends_of_labels, ends_of_phones, even_weights


def test_phones_end_where_the_next_frame_s_middle_is_behind_them():
    """Frames of 20 ms have their middles at 17.5, 37.5, 57.5 ms and so on."""
    phones = (Segment(0.0, 0.04, "A"), Segment(0.04, 0.05, "B"), Segment(0.05, 0.1, "A"), Segment(0.12, 0.5, "C"))
    # B has the middle of no frame; from 0.10 to 0.12 nothing is spoken, which is one frame's middle
    np.testing.assert_array_equal(ends_of_phones(phones, 10, period_ms=20), [2, 5, 6, 10])


def test_without_phones_there_are_no_segments():
    with pytest.raises(InputError, match="0 phones"):
        ends_of_phones((), 10, period_ms=20)


@pytest.mark.parametrize(
    ("labels", "shortest", "ends"),
    [
        ("aabbbc", 1, [2, 5, 6]),
        ("aabbbc", 2, [2, 6]),  # into the neighbour
        ("aabbbc", 3, [6]),  # then aa is the shortest
        ("aabaa", 2, [5]),  # those on both sides are one then
        ("bbbcdddd", 2, [3, 8]),  # into the longer neighbour
        ("bbbcddd", 2, [4, 7]),  # into the earlier of equally long ones
        ("abc", 9, [3]),
        ("a", 1, [1]),
        ("", 1, []),
    ],
)
def test_short_runs_of_labels_go_into_their_neighbours(labels, shortest, ends):
    found = ends_of_labels(np.array([ord(label) for label in labels], np.int32), shortest=shortest)
    np.testing.assert_array_equal(found, ends)


def test_random_runs_are_long_enough_and_cover_the_utterance():
    labels = np.random.default_rng(0).integers(0, 3, 200)
    for shortest in (1, 2, 5):
        ends = ends_of_labels(labels, shortest=shortest)
        assert np.diff(ends, prepend=0).min() >= shortest
        assert ends[-1] == 200
    np.testing.assert_array_equal(ends_of_labels(labels), [*np.flatnonzero(np.diff(labels)) + 1, 200])


def test_runs_of_no_frames_are_refused():
    with pytest.raises(InputError, match="1 or more"):
        ends_of_labels(np.zeros(3, np.int32), shortest=0)


def test_even_weights_add_up_to_one_in_each_segment():
    weights = even_weights(np.array([2, 5, 6], np.int32), 8)
    np.testing.assert_allclose(weights, [1 / 2, 1 / 2, 1 / 3, 1 / 3, 1 / 3, 1, 0, 0], rtol=1e-6)
    assert not even_weights(np.zeros(0, np.int32), 3).any()
