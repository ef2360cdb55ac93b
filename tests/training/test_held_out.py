"""What models make of held-out utterances, compared: pairs tell what means of noisy utterances cannot."""

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.training.corpus import HeldOut


def heard(losses, correct, frames):
    return HeldOut(*(np.asarray(values, float) for values in (losses, correct, frames)))


def test_differences_are_paired_by_utterance():
    """Utterances differ by far more than the models do."""
    rng = np.random.default_rng(0)
    frames = rng.integers(20, 60, 80).astype(float)
    dense = heard(frames * rng.normal(4, 1, 80), frames * 0.3, frames)
    other = heard(dense.losses + frames * rng.normal(0.05, 0.1, 80), frames * 0.2, frames)
    found, own = other.above(dense), other.summary()
    assert found["loss_difference"] == pytest.approx(own["valid_loss"] - dense.summary()["valid_loss"])
    assert 0 < found["loss_difference_low"] < found["loss_difference"] < found["loss_difference_high"]
    assert own["valid_loss_low"] < dense.summary()["valid_loss"] < own["valid_loss_high"]  # unpaired they are alike
    assert [found[f"accuracy_difference{end}"] for end in ("", "_low", "_high")] == pytest.approx([-0.1] * 3)
    assert set(dense.above(dense).values()) == {0.0}


def test_models_that_heard_different_speech_are_not_compared():
    one, other = (heard([1, 2], [0, 1], frames) for frames in ((3, 4), (3, 5)))
    with pytest.raises(InputError, match="7 and 8 hidden frames of different utterances"):
        one.above(other)
