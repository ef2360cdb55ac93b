"""Where arrays live on many devices: one mesh, and rules from an array's shape to its place.

The mesh has two axes. A batch is spread over both. Parameters and the optimiser's moments are copied along `data` and
spread along `fsdp` (ZeRO-3, Rajbhandari et al. 2020): XLA gathers each when it is used. With `fsdp = 1` every device
has all parameters and only gradients travel. The same program runs on one CPU, on eight GPUs and on a pod.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from compress.errors import InputError

BATCH = PartitionSpec(("data", "fsdp"))  # rows of a batch, over all devices
SMALL = 1 << 14  # arrays of fewer entries are copied: gathering them costs more than keeping them


def make_mesh(*, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange the devices of all processes as (data, fsdp), neighbours along `fsdp`.

    Args:
        fsdp: over how many devices each parameter is spread; it must divide the number of devices.
        devices: those to use; None is all.

    Raises:
        InputError: `fsdp` does not divide the number of devices.
    """
    count = jax.device_count() if devices is None else len(devices)
    if fsdp < 1 or count % fsdp:
        raise InputError(f"--fsdp {fsdp} does not divide the {count} devices; take one of {_divisors(count)}")
    # Explicit axes, make_mesh's default, would ask every operation of the model for its sharding.
    return jax.make_mesh((count // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def sharded_axis(shape: Sequence[int], fsdp: int, *, small: int = SMALL) -> int | None:
    """Return the axis of an array that is spread over `fsdp` devices: its largest that divides, the first of equals.

    None when the array has fewer than `small` entries or no axis divides.

    >>> sharded_axis((768, 3072), 8)
    1
    """
    dividing = [i for i, size in enumerate(shape) if size and size % fsdp == 0]
    if fsdp == 1 or math.prod(shape) < small or not dividing:
        return None
    return max(dividing, key=lambda i: shape[i])


def spec(shape: Sequence[int], mesh: Mesh, *, small: int = SMALL) -> PartitionSpec:
    """Return how an array of that shape is spread over the mesh, by `sharded_axis`."""
    axis = sharded_axis(shape, mesh.shape["fsdp"], small=small)
    return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, "fsdp")


def shardings(tree: Any, mesh: Mesh, *, small: int = SMALL) -> Any:
    """Return the sharding of every array of a tree: parameters, Adam's moments, a whole training state."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec(np.shape(leaf), mesh, small=small)), tree)


def place(tree: Any, where: Any) -> Any:
    """Put a tree of arrays, the same in every process, where its shardings say.

    Args:
        tree: arrays of NumPy or jax.
        where: shardings in the same tree, or one for all arrays.
    """
    if isinstance(where, NamedSharding):
        where = jax.tree.map(lambda _: where, tree)
    return jax.tree.map(_put, tree, where)


def fetch(tree: Any) -> Any:
    """Return whole NumPy arrays of a tree that is spread over devices; all processes must call it."""
    return jax.tree.map(_whole, tree)


def gather(tree: Any) -> Any:
    """Return what `fetch` does, in process 0; all must call it. Only arrays that process 0 has not in full travel.

    It has those in full that are copied, or spread over devices of its own.
    """
    return jax.tree.map(lambda leaf: _joined(leaf) if _in_full(leaf) else _whole(leaf), tree)


def _in_full(leaf: Any) -> bool:
    """Tell, alike in all processes, whether the devices of process 0 have all of an array."""
    if not isinstance(leaf, jax.Array):
        return True
    places: dict[Any, Any] = dict(leaf.sharding.devices_indices_map(leaf.shape))
    return {str(i) for d, i in places.items() if d.process_index == 0} == set(map(str, places.values()))


def _joined(leaf: Any) -> np.ndarray:
    if jax.process_index() or not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf) if jax.process_index() == 0 else np.zeros(0)
    whole = np.empty(leaf.shape, leaf.dtype)
    for shard in leaf.addressable_shards:
        whole[shard.index] = shard.data
    return whole


def check_rows(rows: int, devices: int) -> None:
    """Raise InputError when a global batch of `rows` cannot be spread evenly over the devices."""
    if rows % devices or rows < 1:
        below, above = rows // devices * devices, (rows // devices + 1) * devices
        near = f"{below} or {above}" if below else f"{above}"
        raise InputError(f"a global batch of {rows} rows does not divide over {devices} devices; make it {near}")


def global_batch(local: Any, mesh: Mesh) -> Any:
    """Join what every process has of a batch into arrays over all devices, rows spread over both axes of the mesh.

    Args:
        local: tree of NumPy arrays, this process's rows first axis; equally many in every process.
        mesh: of all processes' devices.

    Raises:
        InputError: the rows of all processes together do not divide over the devices, or differ within the tree.
    """
    rows = {len(leaf) for leaf in jax.tree.leaves(local)}
    if len(rows) != 1:
        raise InputError(f"the arrays of a batch have {' and '.join(map(str, sorted(rows)))} rows; they must agree")
    processes = len({device.process_index for device in mesh.devices.flat})
    check_rows(rows.pop() * processes, mesh.size)
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, leaf, (len(leaf) * processes, *leaf.shape[1:])),
        local,
    )


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    whole = np.asarray(leaf)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def _whole(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _divisors(count: int) -> str:
    return ", ".join(str(i) for i in range(1, count + 1) if count % i == 0)
