"""Fixed sinusoids: the original tools' tables."""

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from compress.errors import InputError
from jaxssl.models.arch import Sinusoids
from jaxssl.models.keys import OneKey
from tests.golden import meets


def table(layout, frames, width):
    module = Sinusoids(layout).build(width, prepared=False, rngs=OneKey())
    return np.asarray(module(jnp.zeros((1, frames, width)), None)[0])


def test_halves_are_whispers_table(shared):
    stored = load_file(shared / "encoders/hf_whisper/model.safetensors")["encoder.embed_positions.weight"]
    # Their angles are rounded to float32 before sine and cosine too; at 1500 radians a rounding is 6e-5.
    meets({"embed_positions": table("halves", *stored.shape)}, {"embed_positions": stored}, atol=2e-4)


def test_interleaved_is_the_papers_formula():
    """PE(t, 2i) = sin(t / 10000^(2i / width)), PE(t, 2i + 1) = cos of the same (Vaswani et al. 2017, §3.5)."""
    time, wave = np.arange(400)[:, None], np.arange(6)[None]
    angles = time / 10_000 ** (2 * wave / 12)
    found = table("interleaved", 400, 12)
    np.testing.assert_allclose(found[:, 0::2], np.sin(angles), atol=5e-5)
    np.testing.assert_allclose(found[:, 1::2], np.cos(angles), atol=5e-5)


@pytest.mark.parametrize("width", [2, 7])
def test_a_width_of_no_whole_waves_is_refused(width):
    with pytest.raises(InputError, match=f"width {width} is odd or below 4"):
        Sinusoids().check(width)
