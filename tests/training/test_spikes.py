"""Spikes are known by what came before, and passed over without a trace but for their count."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxssl.training.losses import means
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.spikes import ENOUGH, WINDOW, Policy, begun_anew, none_yet, step_size, watched
from jaxssl.training.step import change, make_step, start
from tests.archs import weights
from tests.training.test_step import LOSS, STILL, batch

POLICY = Policy(far=10.0, row=3, shrink=0.5)
NOISE = np.random.default_rng(0)


@partial(jax.jit, static_argnums=0)
def over(policy, losses, norms):
    def one(spikes, each):
        loss, norm, number = each
        spike, spikes = watched(spikes, policy, loss, norm, number)
        return spikes, (spike, spikes.row, spikes.first, spikes.total)

    numbers = jnp.arange(1, len(losses) + 1, dtype=jnp.int32)
    return jax.lax.scan(one, none_yet(), (losses, norms, numbers))[1]


def found(losses, norms=None, policy=POLICY):
    """Whether each update is a spike, the row, where it began, and the count, after each."""
    losses = np.concatenate([losses, np.ones(4 * WINDOW - len(losses))])  # one length, one program
    norms = np.ones_like(losses) if norms is None else np.concatenate([norms, np.ones(4 * WINDOW - len(norms))])
    return [np.asarray(each) for each in over(policy, np.float32(losses), np.float32(norms))]


def noisy(count, level=3.0):
    return level + NOISE.normal(0, 0.1, count)


def test_what_training_does_is_no_spike():
    """Noise, a falling loss, a heavy-tailed gradient: none of four hundred."""
    losses = 2 + 4 * np.exp(-np.arange(400) / 80) + NOISE.normal(0, 0.1, 400)
    norms = np.exp(NOISE.normal(0, 0.4, 400))
    assert not found(losses, norms)[0][:400].any()


@pytest.mark.parametrize("of", ["loss", "norm"])
def test_a_spike_is_found_whichever_of_both_has_it(of):
    losses, norms = noisy(200, 3.0), np.exp(NOISE.normal(0, 0.2, 200))
    (losses if of == "loss" else norms)[[100, 150]] = 8.0 if of == "loss" else 1e3
    spike, _, _, total = found(losses, norms)
    assert np.flatnonzero(spike[:200]).tolist() == [100, 150]
    assert total[199] == 2


def test_nothing_is_one_before_enough_is_known():
    losses = noisy(ENOUGH + 1)
    losses[:ENOUGH:7] = 1e6
    losses[ENOUGH] = 1e6
    assert np.flatnonzero(found(losses)[0][: ENOUGH + 1]).tolist() == [ENOUGH]


def test_batches_that_vary_by_rounding_only_have_no_spikes():
    losses = np.full(200, 3.0)
    losses[150] = 3.01
    assert not found(losses)[0][:200].any()


def test_what_lasts_is_taken_before_a_run_gives_up():
    """The window is full of the new level then; a run is given up after a hundred in a row."""
    spike = found(np.concatenate([noisy(200, 1.0), noisy(200, 5.0)]), policy=Policy(10.0, None, 0.5))[0]
    last = np.flatnonzero(spike[:400])[-1]
    assert 200 + WINDOW // 2 - 8 <= last < 200 + 100


def test_a_row_has_what_is_not_finite_in_it_and_waits_to_be_read():
    losses = noisy(120)
    losses[100:104] = [9.0, np.nan, 9.0, 9.0]
    losses[[90, 110]] = 9.0
    spike, row, first, total = found(losses)
    assert (row[90], row[91], first[90]) == (1, 0, 91)
    assert row[99:104].tolist() == [0, 1, 2, 3, 3]  # as long as the policy asks for: it stays
    assert (row[119] == 3) & (first[119] == 101)
    assert (total[119], spike[101]) == (5, False)
    assert found(losses, policy=replace(POLICY, row=None))[1][105] == 0


def test_what_is_not_finite_does_not_count_as_recent():
    losses = noisy(200)
    losses[np.arange(64, 200, 2)] = np.nan
    losses[199] = 9.0
    assert np.flatnonzero(found(losses)[0][:200]).tolist() == [199]


@pytest.fixture(scope="module")
def steps():
    optimizer = Optimizer(learning_rate=0.01).build()
    return optimizer, {each: make_step(STILL, LOSS, optimizer, spikes=each) for each in (None, POLICY)}


def equal(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


def seen(state, loss):
    """A state whose recent losses were like that, with gradients as large as any."""
    recent = jnp.stack([jnp.full(WINDOW, loss, jnp.float32), jnp.full(WINDOW, 9.0, jnp.float32)])
    return replace(state, spikes=replace(none_yet(), recent=recent, seen=jnp.int32(WINDOW)))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_spike_changes_nothing_but_its_count(key, steps, parts):
    """And without one the update is that of a step which watches nothing, to the bit."""
    params, data = weights(STILL), batch(key)
    optimizer, step = steps
    state, sums = step[POLICY](seen(start(params, optimizer, seed=0), 0.01), [data] * parts)
    fresh = start(params, optimizer, seed=0)
    equal(state.params, fresh.params)
    equal(state.optimizer.inner_state, fresh.optimizer.inner_state)
    told = means(sums)
    assert (told["spikes"], told["skipped"], int(state.spikes.row), int(state.spikes.first)) == (1, 1, 1, 1)
    assert (int(state.step), int(state.batches)) == (1, parts)
    state, sums = step[POLICY](seen(start(params, optimizer, seed=0), 100.0), [data] * parts)
    plain, _ = step[None](start(params, optimizer, seed=0), [data] * parts)
    equal(state.params, plain.params)
    equal(state.optimizer, plain.optimizer)
    assert means(sums)["spikes"] == 0
    assert np.isclose(float(state.spikes.recent[0, 0]), means(sums)["loss"])


def test_a_run_that_went_back_makes_smaller_steps(key, steps):
    params, data = weights(STILL), batch(key)
    optimizer, step = steps
    assert float(step_size(none_yet(), POLICY)) == 1.0
    moved = []
    for returns in (0, 2):
        state = start(params, optimizer, seed=0)
        state, _ = step[POLICY](replace(state, spikes=replace(state.spikes, returns=jnp.int32(returns))), [data])
        moved.append(state.params["project"]["bias"] - params["project"]["bias"])
    np.testing.assert_allclose(moved[1], moved[0] / 4, rtol=1e-3, atol=1e-7)


def test_a_change_by_hand_forgets_recent_losses_and_keeps_counts(key, steps):
    state = seen(start(weights(STILL), steps[0], seed=0), 0.5)
    counts = {"total": jnp.int32(7), "row": jnp.int32(2), "returns": jnp.int32(1)}
    state = replace(state, spikes=replace(state.spikes, **counts))
    after = change(state, lambda tree: tree).spikes
    equal(after, begun_anew(state.spikes))
    assert [int(n) for n in (after.seen, after.row, after.total, after.returns)] == [0, 0, 7, 1]
    assert not np.isfinite(after.recent).any()
