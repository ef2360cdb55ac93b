"""Whole commands on a bucket that fails, killed and gone on with, end in what they end in on a disk, to the bit."""

import shutil
import signal
import socket
import time

import jax
import numpy as np
import pytest
import soundfile

from jaxssl.models import checkpoint
from jaxssl.runtime.native import build
from jaxssl.storage import asking, fetching, places
from tests.processes import finish, start

PREPARE = ("-m", "experiments.prepare", "--clusters", 8, "--restarts", 1, "--valid", 0.3, "--shard", 0.15)
PRETRAIN = ("-m", "experiments.pretrain", "--arch", "melhubert-tiny", "--steps", 90, "--batch", 4, "--crop", 1)
OFTEN = ("--save-every", 10, "--valid-every", 30, "--log-every", 10, "--shortest", 0.5)


@pytest.fixture(scope="module")
def kernels():
    """The folder of the kernels in this user's cache, which a test's own disks get: building takes a minute of each."""
    found = build.shared_object()
    return None if found is None else found.parent


def disk(folder, kernels):
    """Make a disk of a machine that has the kernels."""
    if kernels is not None:
        shutil.copytree(kernels, folder / "jaxssl" / kernels.name, dirs_exist_ok=True)
    return folder


def speech(folder):
    rng = np.random.default_rng(0)
    for i in range(24):
        (folder / f"{i % 3}").mkdir(parents=True, exist_ok=True)
        samples = rng.normal(size=16_000 + 800 * i) * np.sin(np.arange(16_000 + 800 * i) * (0.01 + 0.01 * i))
        soundfile.write(folder / f"{i % 3}/{i}.wav", 0.1 * samples.clip(-3, 3), 16_000)


def upload(folder, url):
    bucket, key = asking.of(url)
    for path in folder.rglob("*"):
        if path.is_file():
            bucket.write(f"{key}/{path.relative_to(folder).as_posix()}", path)


def pair(*words, caches, wait=None):
    """Start two processes as one run, each with a disk of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = (*words, "--coordinator", f"127.0.0.1:{port}", "--processes", 2)
    return [start(*words, "--process", i, XDG_CACHE_HOME=str(cache)) for i, cache in enumerate(caches)]


def ended(started, *codes):
    told = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == list(codes), [errors[-3000:] for _, errors in told]
    return [output + errors for output, errors in told]


def until(condition, *started):
    deadline = time.monotonic() + 200
    while not condition():
        if time.monotonic() > deadline or any(process.poll() is not None for process in started):
            for process in started:
                process.kill()
            raise AssertionError([process.communicate() for process in started])
        time.sleep(0.02)


def kill(started):
    for process in started:
        process.send_signal(signal.SIGKILL)
    for process in started:
        process.communicate()


def objects_of(url):
    bucket, key = asking.of(url)
    return {entry.key.removeprefix(f"{key}/") for page in bucket.pages(f"{key}/") for entry in page}


def newest(url):
    """The newest checkpoint that is whole there; 0: there is none."""
    found = (name.split("/") for name in objects_of(url))
    return max((int(parts[1]) for parts in found if parts[0] == "checkpoints" and parts[-1] == "files.json"), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("store", ["s3"], indirect=True)  # what differs between stores, test_objects tries of both
def test_two_processes_with_two_disks_on_a_bucket_that_fails(kernels, store, tmp_path):
    url, faults = store
    a, b, c, d, e, f, g, home = (disk(tmp_path / name, kernels) for name in [*"abcdefg", "home"])
    speech(tmp_path / "speech")
    upload(tmp_path / "speech", f"{url}/speech")
    finish(*PREPARE, "--audio", tmp_path / "speech", "--out", tmp_path / "prepared")
    local = pair(*PRETRAIN, *OFTEN, "--corpus", tmp_path / "prepared", "--out", tmp_path / "run", caches=[home] * 2)
    ended(local, 0, 0)

    faults.busy, faults.cut, faults.before, faults.slow, faults.slow_s = 0.05, 0.05, 0.03, 0.05, 0.2
    words = (*PREPARE, "--audio", f"{url}/speech", "--out", f"{url}/prepared")
    began = pair(*words, caches=[a, b])
    until(lambda: "features/00001.npy" in objects_of(f"{url}/prepared"), *began)
    kill(began)
    ended(pair(*words, caches=[b, g]), 0, 0)  # one of them is another machine
    made = {path.relative_to(tmp_path / "prepared").as_posix(): path for path in (tmp_path / "prepared").rglob("*.npy")}
    assert len([name for name in made if name.startswith("features/")]) > 2
    assert {name for name in objects_of(f"{url}/prepared") if name.endswith(".npy")} == set(made)
    for name, path in made.items():
        bucket, key = asking.of(f"{url}/prepared/{name}")
        assert bucket.read(key, 0, 10**9) == path.read_bytes(), name

    words = (*PRETRAIN, *OFTEN, "--corpus", f"{url}/prepared", "--out", f"{url}/run")
    started = pair(*words, caches=[c, d])
    until(lambda: newest(f"{url}/run"), *started)
    kill(started)
    # Also what is sent as soon as they go on: a signal that comes before they train just ends them.
    here = (int(path.name) for path in tmp_path.glob("[cd]/**/run/checkpoints/*") if path.name.isdecimal())
    before = max(newest(f"{url}/run"), *here, 0)
    started = pair(*words, caches=[c, d])
    until(lambda: newest(f"{url}/run") > before, *started)
    started[1].send_signal(signal.SIGTERM)
    ended(started, 75, 75)
    started = pair(*words, caches=[e, f])  # two other machines
    told = ended(started, 0, 0)
    assert "resuming after update" in told[0]
    assert "requests were tried again" in told[0]
    found = objects_of(f"{url}/run")
    assert {"config.json", "report.json", "metrics.jsonl", "models/final/params/files.json"} <= found
    assert not {name for name in found if "cache" in name or ".part" in name}
    fetching.bring(f"{url}/run/models/final")
    place = places.local(f"{url}/run/models/final")
    there, here = checkpoint.load(place), checkpoint.load(tmp_path / "run/models/final")
    assert there[0] == here[0]
    jax.tree.map(np.testing.assert_array_equal, there[1], here[1])
    assert "/buckets/" not in (place / "provenance.json").read_text()
