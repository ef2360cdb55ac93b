"""What was written is read again and compared with what was given, before anything older is given up.

A training state is reused by the next update while it is still being written, so that of what was given only check sums
are kept. Each process knows those of its own shards, and the main one compares these.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

PORTION = 96 << 20  # bytes that are read back at once

Place = tuple[slice, ...]


@dataclass(frozen=True)
class Sums:
    """CRC-32 of the parts of an array that this process has.

    Attributes:
        bytes: of the whole array.
        dtype: of it.
        parts: where each part is, and its sum.
    """

    bytes: int
    dtype: np.dtype
    parts: tuple[tuple[Place, int], ...]

    def fits(self, array: np.ndarray) -> bool:
        """Tell whether an array is that one, as far as this process had it."""
        return array.dtype == self.dtype and all(_sum(array[place]) == wanted for place, wanted in self.parts)


def sums(arrays: Mapping[str, Any]) -> dict[str, Sums]:
    """Return the check sums of arrays by name; takes about as long as copying them to the host."""
    return {name: Sums(leaf.nbytes, np.dtype(leaf.dtype), tuple(_parts(leaf))) for name, leaf in arrays.items()}


def differing(folder: Path, wanted: Mapping[str, Sums]) -> str | None:
    """Read arrays that Orbax wrote, some at a time, and say which is not what was given; None: all are."""
    try:
        return next(_other(folder, wanted), None)
    except MemoryError:  # says nothing of the files
        raise
    except Exception as error:  # Orbax and TensorStore raise whatever they meet
        return (str(error).splitlines() or [type(error).__name__])[0]


def _other(folder: Path, wanted: Mapping[str, Sums]) -> Iterator[str]:
    here = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(here, {here}, barrier_sync_key_prefix=f"read-back-{here}")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        for names in _portions(wanted):
            how = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray))
            args = ocp.args.PyTreeRestore(item=dict.fromkeys(names, 0), restore_args=how, partial_restore=True)
            found = checkpointer.restore(folder.absolute(), args=args)
            yield from (f"{name} differs" for name in names if not wanted[name].fits(found[name]))


def _parts(leaf: Any) -> Iterator[tuple[Place, int]]:
    if not isinstance(leaf, jax.Array):
        yield (), _sum(np.asarray(leaf))
        return
    seen = set[str]()
    for shard in leaf.addressable_shards:
        if str(shard.index) not in seen:  # replicas are alike
            seen.add(str(shard.index))
            yield tuple(shard.index), _sum(np.asarray(shard.data))


def _sum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _portions(wanted: Mapping[str, Sums]) -> Iterator[list[str]]:
    """List names in runs of about as many bytes as one reading may take."""
    run: list[str] = []
    size = 0
    for name, each in wanted.items():
        if run and size + each.bytes > PORTION:
            yield run
            run, size = [], 0
        run.append(name)
        size += each.bytes
    if run:
        yield run
