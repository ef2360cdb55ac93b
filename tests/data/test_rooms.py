"""A room adds what it says and moves nothing."""

from dataclasses import replace

import numpy as np
import pytest

from jaxssl.data import rooms
from jaxssl.data.rooms import Room

PLAIN = Room(decay=0.0, direct=6.0, curve=(0.0,) * rooms.POINTS, noise=200.0, colour=0.0, peak=0.5)


@pytest.fixture
def speech():
    rng = np.random.default_rng(0)
    return (rng.standard_normal(16000) * np.hanning(16000)).astype(np.float32)


def record(samples, room, seed=0):
    return rooms.record(samples, room, np.random.default_rng(seed))


def test_a_room_without_anything_only_sets_the_level(speech):
    np.testing.assert_allclose(record(speech, PLAIN), speech * (0.5 / np.abs(speech).max()), atol=1e-6)


def test_noise_is_as_far_below_as_it_says(speech):
    for colour in (0.0, 1.0):
        loud = record(speech, replace(PLAIN, noise=10.0, colour=colour), seed=5)
        clean = record(speech, PLAIN)
        scale = (loud @ clean) / (clean @ clean)
        ratio = 10 * np.log10(np.mean((scale * clean) ** 2) / np.mean((loud - scale * clean) ** 2))
        assert ratio == pytest.approx(10, abs=0.3)


def test_the_direct_sound_comes_first_and_the_tail_decays():
    click = np.zeros(16000, np.float32)
    click[2000] = 1
    heard = np.abs(record(click, replace(PLAIN, decay=0.3)))
    assert heard.argmax() == 2000
    assert heard[:2000].max() < 1e-4
    early, late = (np.sum(heard[2100 + start : 2100 + start + 1600] ** 2) for start in (0, 2400))
    assert 10 * np.log10(early / late) == pytest.approx(60 * 0.15 / 0.3, abs=6)


def test_rooms_are_drawn_by_seed_and_silence_stays_a_number():
    one, two, other = (rooms.draw(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one == two != other
    assert np.isfinite(record(np.zeros(4000, np.float32), one)).all()
