"""The scan by our kernel gives the plain one's values and gradients, the same bits every time, on every processor."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.inference.prepack import prepared
from jaxssl.models.mixers.selective_scan import CHUNK
from jaxssl.models.mixers.selective_scan import selective_scan as plain
from jaxssl.models.model import apply
from jaxssl.runtime.native.scan import selective_scan
from tests.archs import ARCHS, noise, weights
from tests.runtime.test_gradients import apart
from tests.runtime.test_native import _compiler, kernels, normal  # noqa: F401

SIZES = [  # batch, time, inner, state
    (3, 0, 5, 1),
    (0, 5, 4, 3),
    (2, 5, 0, 3),
    (3, 1, 5, 3),
    (1, CHUNK - 1, 17, 16),
    (3, CHUNK, 70, 1),
    (1, CHUNK + 1, 64, 3),
    (3, 200, 130, 16),
]
ours = partial(selective_scan, chunk=CHUNK)


def drawn(batch, time, inner, state):
    """What is scanned, and the gradients of what comes out."""
    x, step, to_y = (normal(seed, batch, time, inner) for seed in range(3))
    into, out = (normal(seed, batch, time, state) for seed in (3, 4))
    before, to_last = (normal(seed, batch, inner, state) for seed in (5, 6))
    decay = -jnp.exp(normal(7, inner, state))
    return (x, jax.nn.softplus(step - 2), decay, into, out, before), (to_y, to_last)


def gradients(scan, scanned, given):
    """What comes out, and the gradients of all that goes in."""

    @jax.jit
    def run(scanned, given):
        y, back = jax.vjp(lambda scanned: scan(*scanned), scanned)
        return y, back(given)[0]

    return run(scanned, given)


@cache  # for all processors
def wanted(*size):
    return gradients(plain, *drawn(*size))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_plain_scan(kernels, size):  # noqa: F811
    found, to_all = gradients(partial(ours, prefix=kernels), *drawn(*size))
    outputs, gradients_of = wanted(*size)
    for one, two in zip((*found, *to_all), (*outputs, *gradients_of), strict=True):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
        assert np.isfinite(one).all()
    assert all(apart(one, two) < 1e-5 for one, two in zip(found, outputs, strict=True))
    for name, one, two in zip(["x", "step", "decay", "into", "out", "before"], to_all, gradients_of, strict=True):
        assert apart(one, two) < 1e-4, name


def test_a_step_of_0_moves_no_state(kernels):  # noqa: F811
    """Nor its gradient, to the bit; in the middle of a chunk and over whole ones."""
    (x, step, *rest, before), (to_y, to_last) = drawn(2, 3 * CHUNK, 21, 5)
    scan = partial(ours, prefix=kernels)
    still = jnp.arange(3 * CHUNK)[None, :, None] < CHUNK // 2
    y, last = scan(x, jnp.where(still, step, jnp.zeros_like(step)), *rest, before)
    decay, into, out = rest
    part = (each[:, : CHUNK // 2] for each in (x, step))
    first, wanted_last = scan(*part, decay, into[:, : CHUNK // 2], out[:, : CHUNK // 2], before)
    np.testing.assert_array_equal(last, wanted_last)
    np.testing.assert_array_equal(y[:, : CHUNK // 2], first)
    _, to_all = gradients(scan, (x, jnp.zeros_like(step), *rest, before), (jnp.zeros_like(to_y), to_last))
    np.testing.assert_array_equal(to_all[-1], to_last)
    np.testing.assert_array_equal(to_all[0], jnp.zeros_like(x))


def test_frame_by_frame_it_is_the_same(kernels):  # noqa: F811
    """As a stream has it: to the bit, for each frame is computed alike wherever a chunk begins."""
    (x, step, decay, into, out, state), _ = drawn(2, 9, 21, 5)
    y, last = ours(x, step, decay, into, out, state, prefix=kernels)
    for t in range(9):
        one = (each[:, t : t + 1] for each in (x, step))
        found, state = ours(*one, decay, into[:, t : t + 1], out[:, t : t + 1], state, prefix=kernels)
        np.testing.assert_array_equal(found, y[:, t : t + 1])
    np.testing.assert_array_equal(state, last)


def test_the_same_bits_from_many_threads_at_once():
    """A run that was broken off and goes on comes to the same: no sum depends on who was first."""
    scanned, given = drawn(3, 150, 200, 4)
    first = jax.tree.leaves(gradients(ours, scanned, given))
    with ThreadPoolExecutor(4) as pool:
        for again in pool.map(lambda _: jax.tree.leaves(gradients(ours, scanned, given)), range(12)):
            for one, two in zip(again, first, strict=True):
                np.testing.assert_array_equal(one, two)


def test_what_is_no_number_stays_so():
    (x, *rest), _ = drawn(1, 40, 21, 3)
    y, last = ours(x.at[0, 30, 17].set(jnp.nan), *rest)
    where = np.zeros((1, 40, 21), bool)
    where[0, 30:, 17] = True
    np.testing.assert_array_equal(np.isnan(y), where)
    np.testing.assert_array_equal(np.isnan(last), np.broadcast_to(where[:, -1, :, None], last.shape))


def test_rows_of_a_batch_stay_their_own():
    scanned, _ = drawn(4, 20, 18, 3)
    decay, rows = scanned[2], [each[:, None] for each in (*scanned[:2], *scanned[3:])]
    y, last = jax.vmap(lambda x, step, *rest: ours(x, step, decay, *rest))(*rows)
    for one, two in zip((y[:, 0], last[:, 0]), ours(*scanned), strict=True):
        np.testing.assert_array_equal(one, two)


def test_prepared_models_run_it_and_others_do_not():
    arch = replace(ARCHS["mamba"], layers=ARCHS["mamba"].layers[1:2])
    params, x = weights(arch), noise(arch, 0)
    for way, arrays, scans in ((arch, params, 0), (*prepared(arch, params), 2)):  # a scan from each end
        program = str(jax.make_jaxpr(lambda arrays, way=way: apply(way, arrays, x).last)(arrays))
        assert program.count("jaxssl_scan_float32") == scans


@pytest.mark.parametrize("wrong", range(1, 6))
def test_shapes_that_do_not_belong_together_are_refused(wrong):
    scanned, _ = drawn(2, 4, 6, 3)
    with pytest.raises(InputError, match="a scan of .* make them"):
        ours(*scanned[:wrong], scanned[wrong][..., :-1], *scanned[wrong + 1 :])
    with pytest.raises(InputError, match="chunks of 0; make them .* of 1 or more"):
        selective_scan(*scanned, chunk=0)
