"""Work is shared out evenly among threads, gives the same on any number of them, and is timed on those asked for."""

import ctypes
import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks import scaling
from compress.errors import InputError
from jaxssl.inference.latency import Load
from jaxssl.models import cost
from jaxssl.models.zoo import PRESETS, hubert_base
from jaxssl.runtime import native
from jaxssl.runtime.native import build

ON_MANY = """
import jax, jax.numpy as jnp, numpy as np
from jaxssl.inference.prepack import prepared
from jaxssl.inference.specialise import quantized
from tests.archs import BASE, MEL, forward, noise, weights

for arch in (BASE, MEL):
    params = weights(arch)
    for given in ((arch, params), quantized(arch, params, convolutions=True)):
        x = noise(arch, 0, frames=90)
        np.testing.assert_allclose(forward(*prepared(*given), x).last, forward(*given, x).last, atol=2e-3)
print(len([name for name in __import__("os").listdir("/proc/self/task")]))
"""


@pytest.fixture(scope="module")
def tasks():
    if not native.ready():
        pytest.skip("no compiler")
    library = ctypes.CDLL(str(build.shared_object()))
    library.tasks_of_product.restype = library.tasks_of_attention.restype = ctypes.c_int64

    def of(name, *sizes):
        return getattr(library, f"tasks_of_{name}")(*map(ctypes.c_int64, sizes))

    return of


def idle(tasks, threads):
    return 1 - tasks / (threads * math.ceil(tasks / threads))


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 8, 16, 64])
def test_tasks_are_as_many_as_keep_threads_busy(tasks, threads):
    for rows in (1, 11, 49, 249, 3000):
        for panels in (1, 2, 12, 13, 48):
            found = tasks("product", rows, panels, threads)
            most = max(math.ceil(rows / 126), rows // 12)  # pieces of rows that are worth it
            assert found % panels == 0
            assert math.ceil(rows / 126) <= found // panels <= most
            whole = [panels * pieces for pieces in range(math.ceil(rows / 126), most + 1)]
            assert idle(found, threads) <= max(0.1, min(idle(each, threads) for each in whole)) + 1e-9
    for heads in (1, 8, 12, 48):
        assert idle(tasks("attention", heads, threads), threads) <= 0.1
    assert tasks("product", 49, 12, 2) == 12, "what is even already is cut no further"


def test_on_paper_one_thread_is_busy_and_many_wait(tasks):
    arch, load = hubert_base(), Load(1.0)
    shares = [scaling.busy(arch, load, threads) for threads in (1, 2, 16, 4096)]
    assert shares[0] == 1
    assert shares[1] > 0.95
    assert shares[2] > 0.85
    assert shares[3] < 0.5
    for name in ("hubert-base", "fithubert"):  # which works on half the frames
        arch = PRESETS[name]()
        counted = cost.macs(arch, 16_000)
        first = ((16_000 - 10) // 5 + 1) * 10 * arch.front.convs[0].channels
        wanted = counted.total - counted.position - counted.reduction - first
        assert sum(macs for macs, *_ in scaling._calls(arch, load)) == pytest.approx(wanted, rel=0.001), name


def test_without_kernels_nothing_is_said_on_paper(monkeypatch):
    monkeypatch.setattr(build, "shared_object", lambda *_: None)
    assert scaling.busy(hubert_base(), Load(1.0), 2) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_many_threads_give_the_same():
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"NPROC": "16"}
    told = subprocess.run([sys.executable, "-c", ON_MANY], env=environment, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert int(told.stdout) > 16, "XLA has no threads for as many cores"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_every_number_of_threads_is_timed(tmp_path):
    config = scaling.Config(arch="melhubert-tiny", seconds=0.4, threads=(1, 2, 5), rounds=2, out=tmp_path / "out")
    scaling.run(config)
    report = json.loads((tmp_path / "out/scaling.json").read_text())
    rows = report["rows"]
    assert [row["threads"] for row in rows] == [1, 2, 5]
    assert [row["cores"] for row in rows] == [min(n, len(os.sched_getaffinity(0))) for n in (1, 2, 5)]
    assert rows[0]["speedup"] == 1
    assert all(len(row["seconds"]) == 2 and row["milliseconds"] > 0 for row in rows)
    assert report["notes"] == []


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(InputError, match="--threads: name one or more"):
        scaling.run(scaling.Config(threads=(), out=tmp_path / "out"))
    with pytest.raises(InputError, match="--threads"):
        scaling.run(replace(scaling.Config(out=tmp_path / "out"), threads=(0,)))
    assert not (tmp_path / "out").exists()
