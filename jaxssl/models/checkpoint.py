"""Models on disk: a folder with `arch.json`, the arrays and where they came from.

    model/
      arch.json          what the arrays are (`jaxssl.models.arch`)
      params/            the arrays (Orbax), with the list that tells whether they are whole (`jaxssl.runtime.seal`)
      provenance.json    source, sha256, tool version, command; optional

A folder is built beside its place, read back, compared, and only then moved there: one that exists is whole.
"""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from compress.address import flatten, unflatten
from compress.errors import InputError
from jaxssl.models import arch_json
from jaxssl.models.arch import Arch
from jaxssl.models.checks import check_finite, check_pieces
from jaxssl.models.model import Params, check_params, shapes
from jaxssl.runtime import files, seal, steady

FORMAT = 1
# Bytes that are read back at once: there are three copies of them then, and Orbax reads the list of all arrays anew.
PORTION = 144 << 20
LARGE = 512 << 20  # bytes from which each array gets a file: Orbax's few files for many arrays cost copies of them all
SAMPLE = 65_536  # numbers of an array among which zeros are counted
SPARSE = 0.1  # share of zeros from which compressing float32 pays: it shrinks dense weights by 8 %, in twice the time
LONGEST = 4_000_000  # bytes of an arch.json: some 2,000 layers


def save(
    folder: str | Path,
    arch: Arch,
    params: Params,
    *,
    provenance: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None,
    extra: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model; when this returns, what is on disk has been read back and equals what was given.

    Args:
        folder: where; it must not exist, unless `overwrite` and it holds a model.
        arch: what `params` is.
        params: arrays that fit `arch`, of whatever dtype; they come back in it.
        provenance: JSON values that say where the model came from, or what returns them, asked after all else is done.
        extra: further files, relative name to bytes, that appear together with the model.
        overwrite: replace a model that is there; the old one stays until the new one is whole.

    Raises:
        InputError: the folder is taken, or `params` do not fit `arch` or are no numbers.
        OSError: the disk is full or the folder cannot be written; nothing is left behind.
    """
    check_params(arch, params)
    check_finite(params, "the model")
    folder = Path(folder)
    _check_free(folder, overwrite)
    with _staging(folder) as staging:
        (staging / "arch.json").write_text(_dump({"format": FORMAT, **arch_json.to_json(arch)}))
        for name, content in (extra or {}).items():
            target = staging / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        _write(staging / "params", _filled(params))
        with ThreadPoolExecutor(1) as beside:  # both read the files, and leave Python to each other
            sealed = beside.submit(seal.seal, staging / "params")
            _compare(staging, arch, params)
        sealed.result()
        if provenance is not None:
            told = provenance() if callable(provenance) else provenance
            (staging / "provenance.json").write_text(_dump(told))
        _replace(staging, folder)


def load(folder: str | Path) -> tuple[Arch, Params]:
    """Read a model of any shape; no flag says what was done to it.

    Raises:
        InputError: the folder holds no model, or its arrays are not what its `arch.json` says.
    """
    folder = Path(folder)
    arch = _read_arch(folder / "arch.json")
    arrays = folder / "params"
    if not arrays.is_dir():
        raise InputError(f"{folder}: arch.json is there, the arrays (params/) are not; the copy is incomplete")
    seal.check(arrays, parts=(".",))
    with _alone() as checkpointer:
        with _orbax(arrays):
            stored = _stored_shapes(checkpointer, arrays)
        try:
            check_pieces(arch, stored)
            check_params(arch, _with_empty(arch, stored))
        except InputError as error:
            raise InputError(f"{folder}: arch.json and the arrays disagree: {error}") from error
        with _orbax(arrays):
            restored = checkpointer.restore(arrays.absolute(), _targets(stored))
    params = _with_empty(arch, restored)
    check_finite(params, str(folder))
    return arch, params


def provenance(folder: str | Path) -> dict[str, Any]:
    """Read where a model came from; nothing where nothing was written.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(folder) / "provenance.json"
    if not path.is_file():
        return {}
    try:
        return files.read_object(path)
    except InputError as error:
        raise InputError(f"{error}, or remove it") from error


def is_model(folder: str | Path) -> bool:
    """Tell whether a folder looks like a saved model."""
    return (Path(folder) / "arch.json").is_file()


def size_on_disk(folder: str | Path) -> int:
    """Sum the bytes of a model's arrays as stored."""
    return sum(file.stat().st_size for file in (Path(folder) / "params").rglob("*") if file.is_file())


@contextmanager
def _orbax(arrays: Path) -> Iterator[None]:
    """Tell in one line what Orbax and TensorStore raise of damaged files, which may be any exception."""
    try:
        yield
    except MemoryError:  # says nothing of the files
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{arrays}: these arrays cannot be read ({reason}); copy the folder again") from error


def _alone() -> ocp.StandardCheckpointer:
    """Return a checkpointer that waits for no other process: one process writes a model, each reads it for itself."""
    return ocp.StandardCheckpointer(multiprocessing_options=_no_others())


def _write(folder: Path, params: Params) -> None:
    """Write arrays, compressed where that pays; those of a large model each in a file."""
    together = sum(leaf.nbytes for leaf in flatten(params).values()) < LARGE
    words = {"use_compression": not _is_noise(params), "use_ocdbt": together, "save_concurrent_gb": 1}
    with _portioned(**words) as checkpointer:
        checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(params))


def _is_noise(params: Params) -> bool:
    """Tell whether all weights are float32 and few of them zero, which compressing hardly makes smaller."""
    leaves = flatten(params).values()
    if any(leaf.dtype != np.float32 for leaf in leaves):
        return False
    dense = sum(leaf.size * float(np.count_nonzero(some := _some(leaf))) / some.size for leaf in leaves if leaf.size)
    return dense > (1 - SPARSE) * sum(leaf.size for leaf in leaves)


def _some(leaf: Any) -> np.ndarray:
    """Return numbers of an array, evenly taken, of whose widths an odd step is no multiple; of a small one all."""
    return np.asarray(leaf).reshape(-1)[:: leaf.size // SAMPLE | 1]


def _portioned(**words: Any) -> ocp.Checkpointer:
    """Return a checkpointer that need not hold a model's arrays all at once."""
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_no_others(), **words)
    return ocp.Checkpointer(handler, multiprocessing_options=_no_others())


def _no_others() -> ocp.options.MultiprocessingOptions:
    here = jax.process_index()
    steady.by_monotonic_clock()
    return ocp.options.MultiprocessingOptions(here, {here}, barrier_sync_key_prefix=f"process-{here}")


def _stored_shapes(checkpointer: ocp.StandardCheckpointer, arrays: Path) -> Params:
    metadata = checkpointer.metadata(arrays.absolute())
    stored = getattr(metadata, "item_metadata", metadata)
    leaves = [None] if stored is None else flatten(stored).values()
    if not all(hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves):
        raise InputError("the arrays' list is damaged or missing")
    return stored


def _targets(stored: Params) -> Params:
    """Say how to restore: every array on this process's first device, wherever it was saved."""
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    flat = {path: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place) for path, s in flatten(stored).items()}
    return unflatten(flat)


def _filled(params: Params) -> Params:
    """Leave out arrays without entries (a layer without heads has some): Orbax does not store them."""
    return unflatten({path: leaf for path, leaf in flatten(params).items() if leaf.size})


def _with_empty(arch: Arch, params: Params) -> Params:
    """Put back the arrays that have no entries, as the arch lists them, where none are that do have some."""
    empty = {path: jnp.zeros(s.shape, s.dtype) for path, s in flatten(shapes(arch)).items() if not s.size}
    return unflatten({**empty, **flatten(params)})


def _read_arch(path: Path) -> Arch:
    if not path.is_file():
        raise InputError(
            f"{path.parent}: no model here (arch.json is missing); convert_torch or experiments.* write one"
        )
    try:
        values = files.read_json(path, most=LONGEST)
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise InputError(f"not written in format {FORMAT}")
        return arch_json.from_json(values)
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise InputError(f"{folder}: already there; choose another folder or remove it")
    if not is_model(folder):
        raise InputError(f"{folder}: will not overwrite what is not a model; choose another folder")


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Give a folder beside the target; whatever happens, it is gone afterwards."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield staging
    finally:
        for _ in range(400):  # threads of a save that failed may still write for a moment, longer on a busy machine
            shutil.rmtree(staging, ignore_errors=True)
            if not staging.exists():
                break
            time.sleep(0.05)


def _replace(staging: Path, folder: Path) -> None:
    staging.chmod(0o755)  # mkdtemp's folders are private
    old = staging.with_name(f"{staging.name}.old")
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    for left in folder.parent.iterdir():  # the old model, and what a killed process could not remove
        if re.fullmatch(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}(\.old)?", left.name):
            shutil.rmtree(left, ignore_errors=True)


def _compare(folder: Path, arch: Arch, params: Params) -> None:
    """Read a model back, some arrays at a time, so that no second copy of it is ever in memory."""
    if _read_arch(folder / "arch.json") != arch:
        raise OSError("the arch read back is not the arch written")
    given = flatten(_filled(params))
    with _alone() as checkpointer:
        check_params(arch, _with_empty(arch, _stored_shapes(checkpointer, folder / "params")))
    with _portioned() as checkpointer:
        for paths in _portions(given):
            item = unflatten(dict.fromkeys(paths, 0))
            wanted = unflatten(dict.fromkeys(paths, ocp.RestoreArgs(restore_type=np.ndarray)))
            args = ocp.args.PyTreeRestore(item=item, restore_args=wanted, partial_restore=True)
            found = flatten(checkpointer.restore((folder / "params").absolute(), args=args))
            for path in paths:
                if not _same(found[path], np.asarray(given[path])):
                    raise OSError(f"{path}: read back after writing, it is not what was written; is the disk full?")


def _same(one: np.ndarray, two: np.ndarray) -> bool:
    """Tell whether arrays are equal bit by bit, which is much faster than by numbers of which some may be none."""
    alike = one.shape == two.shape and one.dtype == two.dtype
    return alike and np.array_equal(_bits(one), _bits(two))


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")


def _portions(arrays: Mapping[str, Any]) -> Iterator[list[str]]:
    """List the paths of arrays in runs of about as many bytes as one reading may take."""
    run: list[str] = []
    for path, leaf in arrays.items():
        if run and sum(arrays[each].nbytes for each in run) + leaf.nbytes > PORTION:
            yield run
            run = []
        run.append(path)
    yield run


def _dump(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"
