"""A net of weights is fitted to where labels change, nothing else moves, and what fires is counted as it is run."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from compress.address import flatten
from compress.errors import InputError
from jaxssl.models import checkpoint
from jaxssl.models.arch import IntegrateAndFire
from jaxssl.models.shorten import shortened
from jaxssl.training import corpus
from jaxssl.training.segment_guidance import SegmentGuidance, label_runs
from jaxssl.training.settings import Training
from jaxssl.training.sharding import make_mesh
from jaxssl.training.weight_net import Fired, fitted, heard_fire
from tests.archs import forward
from tests.experiments import small

SETTINGS = Training(batch=4, shortest=0.5, crop=0.6, buckets=1)


@pytest.fixture(scope="module", params=[None, 1], ids=["front", "layer"])
def given(request, tmp_path_factory):
    """A model of two layers that fires every fourth frame, and labelled speech."""
    made = small.make(tmp_path_factory.mktemp("weights"), layers=2)
    arch, params = checkpoint.load(made.model)
    data = corpus.load_data(made.corpus, arch, labels=None, valid=None)
    part, at = IntegrateAndFire(3), request.param
    return *shortened(arch, params, *((part, {}) if at is None else (None, {at: part}))), data


def guided(arch, params, data):
    """Guidance's loss of held-out speech, what the model makes of it, and which rows are utterances."""
    [batch] = corpus.held_out(data, SETTINGS)
    out = forward(arch, params, batch.inputs, batch.lengths)
    loss, _ = SegmentGuidance()(out.weights, out.last_lengths, *label_runs(batch.labels, out.last_lengths))
    return float(loss), out, batch.index >= 0


def test_the_net_alone_learns_where_labels_change(given, monkeypatch):
    one = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(corpus, "make_mesh", lambda fsdp: one)
    arch, params, data = given
    learned = fitted(arch, params, data, SETTINGS, updates=60)
    (before, *_), (after, out, real) = guided(arch, params, data), guided(arch, learned, data)
    assert after < 0.8 * before
    same = flatten(jax.tree.map(lambda one, two: one is two, params, learned))
    assert all(same[path] for path in same if "shortening/" not in path)
    found = heard_fire(arch, learned, data, SETTINGS)
    np.testing.assert_array_equal(found.counts, np.asarray(out.lengths[-1])[real])
    np.testing.assert_array_equal(found.frames, np.asarray(out.last_lengths)[real])
    assert len(heard_fire(arch, learned, data, SETTINGS, among="train").counts) > len(found.counts)


def test_room_is_for_the_most_that_fired():
    fired = Fired(np.array([10.0, 12, 3]), np.array([50.0, 30, 30]), weight=0.3)
    assert (fired.room(1.0), fired.room(1.1), fired.room(9.0)) == (40, 45, 100)
    for most, lost in ((40, 0), (39, 0), (36, 1), (16, 2)):  # room is rounded up to whole frames
        assert fired.lost(IntegrateAndFire(most=most)) == lost


def test_a_model_that_weighs_nothing_is_refused(given):
    arch, params, data = given
    with pytest.raises(InputError, match="the model weighs no frames; give its arch a part that fires"):
        heard_fire(replace(arch, shortening=None, layers=()), params, data, SETTINGS)
