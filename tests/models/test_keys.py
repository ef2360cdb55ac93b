"""Keys are those that Flax would give, so that what was drawn before is drawn again."""

import jax
import numpy as np
from flax import nnx

from jaxssl.models.keys import Keys, OneKey


def test_keys_are_those_of_flax(key):
    for kind in ("params", "dropout"):
        ours, theirs = Keys(key), nnx.Rngs(**{kind: key})
        for _ in range(3):
            found, wanted = getattr(ours, kind)(), getattr(theirs, kind)()
            np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(wanted))


def test_one_key_is_everyones():
    assert OneKey().params() == OneKey().dropout()
