"""What is made at a URL goes there: each object whole, what says that others are whole last; and it comes back."""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.runtime import cli, files, locks, seal
from jaxssl.storage import asking, checkpoints, fetching, places, publishing
from jaxssl.training.resume import Checkpoints
from tests.processes import finish


def there(url):
    bucket, key = asking.of(url)
    return {entry.key.removeprefix(f"{key}/") for page in bucket.pages(f"{key}/") for entry in page}


def sent(faults):
    """What was written and removed since the last look, by name, in order."""
    seen, faults.seen[:] = list(faults.seen), []
    found = []
    for method, path, _, _ in seen:
        if method in ("PUT", "POST", "DELETE"):
            found.append(("-" if method == "DELETE" else "+") + path.rpartition("/run/")[2].replace("%2F", "/"))
    return found


@pytest.fixture
def folder(store):
    with publishing.running(print):
        place = places.local(f"{store[0]}/run")
        files.claim(place)
        files.own(place, {"steps": 3})
        yield place


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(publishing, "LOOK_S", 0.01)


def model(place, content):
    place.mkdir(parents=True, exist_ok=True)
    for name in ("a", "b"):
        (place / name).write_text(content + name)
    seal.seal(place)


def checkpoint(folder, number, content="x"):
    part = folder / f"checkpoints/{number}.orbax-checkpoint-tmp"
    for name in ("state/d/1", "record/metadata"):
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).write_text(f"{content}{number}")
    seal.seal(part, parts=("state", "record"))
    part.rename(folder / f"checkpoints/{number}")


def wait(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_says_that_others_are_whole_goes_last_and_comes_off_first(store, folder):
    url, faults = store
    model(folder / "models/final", "old")
    (folder / "x.part").write_text("visible")
    (folder / "work").mkdir()
    (folder / "work/z").write_text("in a folder that goes")
    (folder / ".y.part").write_text("half")
    faults.busy = faults.cut = 0.1
    publishing.now(folder)
    assert there(f"{url}/run") == {
        "config.json",
        "x.part",
        "work/z",
        *(f"models/final/{n}" for n in ("a", "b", "files.json")),
    }
    faults.busy = faults.cut = 0
    sent(faults)
    publishing.now(folder)
    assert sent(faults) == []
    model(folder / "models/final", "new")
    (folder / "x.part").unlink()
    shutil.rmtree(folder / "work")
    (folder / ".features.json").write_text("{}")
    bucket, _ = asking.of(url)
    bucket.write("run/models/final/of-before", folder / "config.json")
    sent(faults)
    publishing.now(folder)
    if url.startswith("s3"):
        order = sent(faults)
        assert order[:4] == ["-work/z", "-x.part", "-models/final/files.json", "-models/final/of-before"]
        assert order[4] == "+.features.json"
        assert sorted(order[5:7]) == ["+models/final/a", "+models/final/b"]
        assert order[7:] == ["+models/final/files.json"]
    assert bucket.read("run/models/final/a", 0, 99) == b"newa"
    assert "models/final/of-before" not in there(f"{url}/run")


def test_checkpoints_go_beside_the_work_and_old_ones_after_newer(store, folder):
    url, faults = store
    publishing.watch(folder / "checkpoints")
    faults.busy = faults.cut = 0.05
    (folder / "metrics.jsonl").write_text("1\n")
    checkpoint(folder, 10)
    wait(lambda: "checkpoints/10/files.json" in there(f"{url}/run"))
    assert {"metrics.jsonl", "config.json", "checkpoints/10/state/d/1"} <= there(f"{url}/run")
    checkpoint(folder, 20)
    shutil.rmtree(folder / "checkpoints/10")
    wait(lambda: "checkpoints/10/state/d/1" not in there(f"{url}/run"))
    assert "checkpoints/20/files.json" in there(f"{url}/run")
    faults.busy = faults.cut = 0
    shutil.rmtree(folder / "checkpoints/20")  # as a run that goes back does
    checkpoint(folder, 20, "other")
    publishing.now(folder)
    bucket, _ = asking.of(url)
    assert bucket.read("run/checkpoints/20/state/d/1", 0, 99) == b"other20"


def test_a_checkpoint_that_is_not_whole_is_none(store, folder, monkeypatch, tmp_path):
    """What a killed process left in the bucket is not brought, and goes when the next is sent."""
    url, _ = store
    publishing.watch(folder / "checkpoints")
    checkpoint(folder, 10)
    publishing.now(folder)
    bucket, _ = asking.of(url)
    bucket.write("run/checkpoints/20/state/d/stale", folder / "config.json")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    place = places.local(f"{url}/run")
    fetching.bring(f"{url}/run")
    fetching.bring(f"{url}/run")
    assert json.loads((place / "config.json").read_text()) == {"steps": 3}
    assert not (place / "checkpoints").exists()
    checkpoints.bring(place / "checkpoints")
    assert [path.name for path in (place / "checkpoints").glob("[!.]*")] == ["10"]
    seal.check(place / "checkpoints/10", parts=("state", "record"))
    checkpoint(place, 20)
    with publishing.running(print):
        publishing.watch(place / "checkpoints")
    assert {name for name in there(f"{url}/run") if "/20/" in name} == {
        f"checkpoints/20/{name}" for name in ("files.json", "record/metadata", "state/d/1")
    }


@pytest.mark.parametrize("store", ["gs"], indirect=True)
def test_what_somebody_removed_there_goes_here_and_own_work_stays(store, folder):
    url, _ = store
    publishing.watch(folder / "checkpoints")
    checkpoint(folder, 10)
    publishing.now(folder)
    publishing._publishers.pop(folder).close()
    checkpoint(folder, 20)
    bucket, _ = asking.of(url)
    for name in there(f"{url}/run"):
        bucket.remove(f"run/{name}")
    fetching.bring(f"{url}/run")
    assert not (folder / "config.json").exists()
    assert set(checkpoints.here(folder / "checkpoints")) == {20}


@pytest.mark.parametrize("store", ["gs"], indirect=True)
def test_a_run_that_somebody_removed_there_begins_anew(store, folder):
    url, _ = store
    publishing.watch(folder / "checkpoints")
    checkpoint(folder, 10)
    publishing.now(folder)
    publishing._publishers.pop(folder).close()
    for name in there(f"{url}/run"):
        asking.of(url)[0].remove(f"run/{name}")
    (folder / ".lock").unlink(missing_ok=True)
    fetching.bring(f"{url}/run")
    assert not folder.exists()


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_while_checkpoints_come_none_there_is_taken_for_gone(store, folder, monkeypatch, tmp_path):
    """Nor are those that came sent once more."""
    url, faults = store
    publishing.watch(folder / "checkpoints")
    for number in (10, 20, 30):
        checkpoint(folder, number)
    publishing.now(folder)
    names = there(f"{url}/run")
    publishing._publishers.pop(folder).close()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    place = places.local(f"{url}/run")
    publishing.begin(place)
    faults.latency_s = 0.02
    sent(faults)
    publishing.watch(place / "checkpoints")
    time.sleep(0.2)
    assert sent(faults) == []
    assert there(f"{url}/run") == names
    assert set(checkpoints.here(place / "checkpoints")) == {10, 20, 30}


@pytest.mark.parametrize("store", ["gs"], indirect=True)
def test_what_another_command_works_on_stays(store, folder):
    url, _ = store
    publishing.now(folder)
    with locks.holding(print):
        locks.take(folder)
        (folder / "config.json").write_text("newer")
        look = f"""if True:
            from jaxssl.storage import fetching
            fetching.bring({f"{url}/run"!r})
        """
        assert finish("-c", look).returncode == 0
    assert (folder / "config.json").read_text() == "newer"


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_bucket_that_takes_no_more_ends_the_run_at_its_next_checkpoint(store, folder, capsys):
    _, faults = store
    publishing.now(folder)
    with Checkpoints(folder / "checkpoints") as saves:
        saves.save(1, {"a": jnp.zeros(3)}, {"at": 1})
        faults.refuse = 403
        wait(lambda: publishing._publishers[folder]._failure)
        assert "note: " in capsys.readouterr().out
        with pytest.raises(InputError, match=r"checkpoints.*: access refused"):
            saves.save(2, {"a": jnp.zeros(3)}, {"at": 2})
    faults.refuse = 0


@pytest.mark.parametrize("store", ["gs"], indirect=True)
def test_states_go_on_on_another_machine(store, folder, monkeypatch, tmp_path):
    url, _ = store
    state = {"a": jnp.arange(1000, dtype=jnp.float32)}
    with Checkpoints(folder / "checkpoints", keep=2) as saves:
        for number in (2, 3):
            saves.save(number, state, {"at": number})
    publishing.now(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    with Checkpoints(places.local(f"{url}/run/checkpoints")) as saves:
        assert saves.newest()[:2] == (3, {"at": 3})
        assert saves.last_until(2)[0] == 2
        np.testing.assert_array_equal(saves.restore(3, state)["a"], state["a"])


@dataclass(frozen=True)
class Config:
    out: Path = Path("runs")


def test_a_command_sends_what_it_wrote_when_it_ends_well_or_was_told_to_stop(store):
    url, _ = store

    def write(config):
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text("model")

    def stopped(config):
        files.claim(config.out)
        files.own(config.out, config)
        raise cli.Preempted("after update 3")

    def failed(config):
        files.claim(config.out)
        files.own(config.out, config)
        raise InputError("no")

    assert cli.command(stopped, Config, "", args=["--out", url], remember=False) == 75
    run = [("one.onnx", write, 0), ("stopped", stopped, 75), ("failed", failed, 2)]
    assert [cli.command(do, Config, "", args=["--out", f"{url}/a/{name}"], remember=False) for name, do, _ in run] == [
        code for _, _, code in run
    ]
    assert {entry.key for page in asking.of(url)[0].pages("") for entry in page} > {"config.json"}
    assert there(f"{url}/a") == {"one.onnx", "stopped/config.json"}
    bucket, _ = asking.of(url)
    assert json.loads(bucket.read("a/stopped/config.json", 0, 99)) == {"out": f"{url}/a/stopped"}
