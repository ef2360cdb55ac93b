"""Frames that say which segment they are in: by phones or by smoothed labels, in whole utterances and in crops."""

from dataclasses import replace

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.data import prepared
from jaxssl.data.batches import Loader
from jaxssl.data.feeds import MelCorpus
from jaxssl.data.manifest import Segment
from jaxssl.data.masking import Spans
from jaxssl.data.segment_ends import ends_of_labels, ends_of_phones
from jaxssl.data.segmented import Segmented
from tests.experiments import small

PHONES = (Segment(0.05, 0.21, "a"), Segment(0.21, 0.4, "b"), Segment(0.5, 0.6, "c"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    there = prepared.load(small.make(tmp_path_factory.mktemp("segments"), layers=1).corpus)
    said = tuple(replace(each, phones=PHONES if i else ()) for i, each in enumerate(there.manifest.utterances))
    there = replace(there, manifest=replace(there.manifest, utterances=said))
    return MelCorpus(there, there.labels())


def ends(numbers):
    return np.append(np.flatnonzero(np.diff(numbers)) + 1, len(numbers))


def test_segments_are_those_of_phones_and_of_smoothed_labels(corpus):
    plain, frames = corpus.labels(1), corpus.lengths[1]
    phones, smoothed = (Segmented(corpus, by, (1,)).labels(1) for by in ("phones", "smoothed"))
    np.testing.assert_array_equal(ends(phones[:, 1]), ends_of_phones(PHONES, frames, period_ms=20))
    np.testing.assert_array_equal(ends(smoothed[:, 1]), ends_of_labels(plain, shortest=3))
    for found in (phones, smoothed):
        assert (found.dtype, found.shape) == (np.int32, (frames, 2))
        np.testing.assert_array_equal(found[:, 0], plain)


def test_batches_have_both_columns_of_the_same_crop(corpus):
    among = tuple(range(1, len(corpus.lengths)))
    words = {"batch_size": 4, "crop": 25, "spans": Spans(0.5, 3), "seed": 0, "among": among, "threads": 0}
    with Loader(Segmented(corpus, "phones", among), **words) as both, Loader(corpus, **words) as plain:
        one, two = next(both), next(plain)
    np.testing.assert_array_equal(one.labels[..., 0], two.labels)
    np.testing.assert_array_equal(one.inputs, two.inputs)
    assert (one.labels[..., 1] >= 0).sum() == (two.labels >= 0).sum()


def test_phones_that_are_not_known_are_told(corpus):
    with pytest.raises(InputError, match="no phone times, and so of 1 of 3 utterances; take speech that has them"):
        Segmented(corpus, "phones", (0, 1, 2))
