"""Time how fast utterances come from a bucket in shuffled order: by exact ranges, in blocks, and as ArrayRecord.

    python -m benchmarks.bucket_reads
    python -m benchmarks.bucket_reads --latency 0.05 --threads 2 64

The bucket is a stand-in: a file on the disk whose every answer takes `--latency` seconds and its bytes the time that
they need at `--rate`, for each connection. Nothing is kept between two readings of an utterance, as in a first epoch,
but of blocks the newest `--kept`. ArrayRecord does not read buckets by itself; it is read from the disk, and what a
record would need there is one range of its size.
"""

import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxssl.runtime.cli import console, main
from jaxssl.runtime.ranges import Count, Positive

FRAMES = 100  # a second
BINS = 40
BLOCK = 8 << 20


@dataclass(frozen=True)
class Config:
    """Time how fast utterances come from a bucket."""

    utterances: Count[int] = 4000
    """of the corpus, of 2 to 16 s, log-uniform"""
    read: Count[int] = 400
    """of them, drawn at random"""
    latency: Positive[float] = 0.02
    """seconds from a question to its answer"""
    rate: Positive[float] = 100.0
    """MB that a connection carries in a second"""
    threads: Count[tuple[int, ...]] = (2, 16)
    """that read at once"""
    kept: Count[int] = 8
    """blocks in memory"""


@dataclass
class Store:
    """The stand-in of a bucket; it counts what it is asked for."""

    path: Path
    config: Config
    asked: int = 0
    carried: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def read(self, begin: int, end: int) -> bytes:
        """Read bytes of the file, as slowly as from a bucket."""
        time.sleep(self.config.latency + (end - begin) / 1e6 / self.config.rate)
        with self._lock:
            self.asked, self.carried = self.asked + 1, self.carried + end - begin
        with self.path.open("rb") as file:
            file.seek(begin)
            return file.read(end - begin)


def run(config: Config) -> None:
    """Print seconds of speech per second, questions and bytes of each way to read."""
    rng = np.random.default_rng(0)
    frames = np.exp(rng.uniform(np.log(2 * FRAMES), np.log(16 * FRAMES), config.utterances)).astype(int)
    offsets = 2 * BINS * np.cumsum([0, *frames])
    order = rng.permutation(config.utterances)[: config.read]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "features")
        values = rng.standard_normal(int(offsets[-1]) // 2).astype(np.float16)
        path.write_bytes(values.tobytes())
        console.print(f"{offsets[-1] / 1e6:.0f} MB, {config.latency * 1000:g} ms, {config.rate:g} MB/s a connection")
        for threads in config.threads:
            for name, way in (("exact ranges", _exact), ("blocks of 8 MiB", _blocks)):
                store = Store(path, config)
                took = _time(way(store), offsets, order, threads)
                each = store.carried / config.read / 1e3
                speed = frames[order].sum() / FRAMES / took
                console.print(f"{name}, {threads} threads: {speed:,.0f} s of speech/s, {each:,.0f} kB an utterance")
        _records(Path(folder, "records"), values, offsets, order)


def _time(read: Callable[[int, int], Any], offsets: np.ndarray, order: np.ndarray, threads: int) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda i: read(int(offsets[i]), int(offsets[i + 1])), order))
    return time.perf_counter() - began


def _exact(store: Store) -> Callable[[int, int], bytes]:
    return store.read


def _blocks(store: Store) -> Callable[[int, int], bytes]:
    size = store.path.stat().st_size

    @lru_cache(maxsize=store.config.kept)
    def block(number: int) -> bytes:
        return store.read(number * BLOCK, min((number + 1) * BLOCK, size))

    def read(begin: int, end: int) -> bytes:
        first, last = begin // BLOCK, (end - 1) // BLOCK
        joined = b"".join(block(number) for number in range(first, last + 1))
        return joined[begin - first * BLOCK : end - first * BLOCK]

    return read


def _records(path: Path, values: np.ndarray, offsets: np.ndarray, order: np.ndarray) -> None:
    """Write and read the same as ArrayRecord, one utterance a group, on the disk."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for i in range(len(offsets) - 1):
        writer.write(values[offsets[i] // 2 : offsets[i + 1] // 2].tobytes())
    writer.close()
    reader = ArrayRecordReader(str(path))
    began = time.perf_counter()
    for i in order:
        reader.read([int(i)])
    took = (time.perf_counter() - began) / len(order)
    share = path.stat().st_size / offsets[-1]
    console.print(f"ArrayRecord on the disk: {took * 1e3:.2f} ms an utterance, {share:.2f} of the size")


if __name__ == "__main__":
    main(run, Config, __doc__)
