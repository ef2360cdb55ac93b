"""A run does not depend on how many devices it is spread over, nor on how."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from compress.address import flatten
from compress.errors import InputError
from jaxssl.models.arch import Dropout, hubert_large
from jaxssl.models.model import shapes
from jaxssl.training.losses import MaskedPrediction, means
from jaxssl.training.optimizer import Optimizer
from jaxssl.training.sharding import (
    BATCH,
    check_rows,
    fetch,
    global_batch,
    make_mesh,
    place,
    sharded_axis,
    shardings,
    spec,
)
from jaxssl.training.step import make_step, start
from tests.archs import MEL, noise, weights

STILL = replace(MEL, dropout=Dropout(0.0, 0.0), layers=MEL.layers[:1])


def test_the_mesh_has_all_devices_and_lets_xla_choose():
    mesh = make_mesh(fsdp=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert sorted(d.id for d in mesh.devices.flat) == sorted(d.id for d in jax.devices())
    assert dict(make_mesh(devices=jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1}


@pytest.mark.parametrize(
    ("shape", "fsdp", "axis"),
    [
        ((768, 3072), 8, 1),
        ((3072, 768), 8, 0),
        ((768, 12, 64), 8, 0),
        ((768, 12, 64), 5, None),
        ((768, 500), 500, 1),
        ((128, 128), 8, 0),  # the first of equals
        ((128, 127), 8, None),  # small
        ((20000,), 8, 0),
        ((20001,), 8, None),
        ((768, 3072), 1, None),
        ((0, 1 << 15), 8, None),
        ((), 8, None),
    ],
)
def test_the_rule(shape, fsdp, axis):
    assert sharded_axis(shape, fsdp) == axis
    found = spec(shape, SimpleNamespace(shape={"data": 3, "fsdp": fsdp}))
    assert found == (PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, "fsdp"))


def test_nearly_all_of_a_large_model_is_spread():
    """At 8 devices each holds an eighth, but for biases and norms: less than 0.2 % more."""
    leaves = jax.tree.leaves(shapes(hubert_large()))
    here = [leaf.size // (1 if sharded_axis(leaf.shape, 8) is None else 8) for leaf in leaves]
    assert sum(here) < 1.02 * sum(leaf.size for leaf in leaves) / 8


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(jnp.asarray, weights(STILL))


def test_place_and_fetch_are_inverse(params):
    mesh = make_mesh(fsdp=4)
    where = shardings(params, mesh, small=1)
    placed = place(params, where)
    for path, leaf in flatten(placed).items():
        assert leaf.sharding == flatten(where)[path]
        fraction = 1 if leaf.sharding.spec == PartitionSpec() else 4
        assert leaf.addressable_shards[0].data.size * fraction == leaf.size
    jax.tree.map(np.testing.assert_array_equal, fetch(placed), params)
    copied = place(params, NamedSharding(mesh, PartitionSpec()))
    assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(copied))


def test_a_batch_is_spread_over_both_axes():
    mesh = make_mesh(fsdp=2)
    local = {"inputs": np.arange(24.0, dtype=np.float32).reshape(8, 3), "lengths": np.arange(8, dtype=np.int32)}
    batch = global_batch(local, mesh)
    for name, leaf in batch.items():
        np.testing.assert_array_equal(leaf, local[name])
        assert leaf.sharding.spec == BATCH
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {2}


def update(params, mesh):
    """Two updates of a small model on a mesh: what the loss reports, and the parameters after."""
    draw = np.random.default_rng(0)
    local = {
        "inputs": np.asarray(noise(STILL, 0, batch=4)),
        "lengths": np.asarray([30, 22, 30, 9], np.int32),
        "labels": draw.integers(0, 11, (4, 30), np.int32),
        "mask": draw.random((4, 30)) < 0.5,
    }
    optimizer = Optimizer(learning_rate=1e-2).build()
    state = start(params, optimizer, seed=0)
    where = shardings(state, mesh, small=1)
    step = make_step(STILL, MaskedPrediction((11,)), optimizer, shardings=where)
    state, found = place(state, where), []
    for _ in range(2):
        state, sums = step(state, [global_batch(local, mesh)])
        found.append(means(sums))
    return found, state, where


def test_training_does_not_depend_on_the_devices(params):
    """Two along each axis: gradients are summed over one, parameters gathered over the other."""
    expected, single, _ = update(params, make_mesh(devices=jax.devices()[:1]))
    found, state, where = update(params, make_mesh(fsdp=2))
    for one, other in zip(expected, found, strict=True):
        for name in ("loss", "gradient_norm", "masked_loss", "masked_accuracy"):
            np.testing.assert_allclose(other[name], one[name], rtol=1e-5, err_msg=name)
    placed = jax.tree.map(lambda leaf, sharding: leaf.sharding.is_equivalent_to(sharding, leaf.ndim), state, where)
    assert all(jax.tree.leaves(placed))
    for path, leaf in flatten(single.params).items():
        if not path.endswith("/k/bias"):  # its gradient is 0 but for rounding, which Adam brings to full size
            np.testing.assert_allclose(flatten(state.params)[path], leaf, rtol=0, atol=1e-4, err_msg=path)


@pytest.mark.parametrize(("rows", "near"), [(6, "4 or 8"), (3, "4"), (0, "4")])
def test_a_batch_that_does_not_divide(rows, near):
    with pytest.raises(InputError, match=f"{rows} rows does not divide over 4 devices; make it {near}"):
        check_rows(rows, 4)
    with pytest.raises(InputError, match="does not divide over 4 devices"):
        global_batch({"x": np.zeros((rows, 2))}, make_mesh())


def test_other_bad_input():
    with pytest.raises(InputError, match="--fsdp 3 does not divide the 4 devices; take one of 1, 2, 4"):
        make_mesh(fsdp=3)
    with pytest.raises(InputError, match="--fsdp 0"):
        make_mesh(fsdp=0)
    with pytest.raises(InputError, match="have 4 and 8 rows"):
        global_batch({"x": jnp.zeros(4), "y": jnp.zeros(8)}, make_mesh())
