"""What lies at a URL is here as a path: small objects whole, audio and features when they are read."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile

from compress.errors import InputError
from jaxssl.data import audio, corpora, prepared
from jaxssl.data.arrays import open_rows, write_array
from jaxssl.data.manifest import Manifest, Utterance, write
from jaxssl.runtime import cli
from jaxssl.runtime.ranges import There
from jaxssl.storage import asking, fetching, kept, places


def put(url, content, tmp_path):
    file = tmp_path / "sent"
    file.write_bytes(content)
    bucket, key = asking.of(url)
    fetching.described.cache_clear()
    return bucket.write(key, file)


def asked(faults):
    """The requests since the last look, without those that list or describe."""
    seen, faults.seen[:] = [each for each in faults.seen if each[0] != "HEAD"], []
    return [each for each in seen if "alt=media" in each[1] or each[2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hf://a/b", "hf://a/b: hf:// is not known here; use gs://BUCKET/KEY, s3://BUCKET/KEY or a path"),
        ("gs://", "gs://: 'no name' is no bucket; write gs://BUCKET/KEY"),
        ("s3://Big/b", "s3://Big/b: 'Big' is no bucket; write s3://BUCKET/KEY"),
        ("gs://bucket/a//b", "gs://bucket/a//b: '' between slashes is no name of a file; rename the object"),
        ("gs://bucket/../b", "gs://bucket/../b: '..' between slashes is no name of a file; rename the object"),
        (f"gs://bucket/{'x' * 300}", "between slashes is no name of a file; rename the object"),
    ],
)
def test_a_url_that_is_none(text, message, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match=re.escape(message)):
        places.word(f"--corpus={text}")


def test_urls_and_paths_are_one_to_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = {places.word(f"--out={scheme}://bucket/a/b") for scheme in ("gs", "s3")}
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9000")
    paths |= {places.word("--out=s3://bucket/a/b")}
    assert len(paths) == 3
    for word in paths:
        path = Path(word.removeprefix("--out="))
        assert places.url(path) in ("gs://bucket/a/b", "s3://bucket/a/b")
        assert places.shown(f"error: {path}/c: no") == f"error: {places.url(path)}/c: no"
    assert os.stat(places.root()).st_mode & 0o777 == 0o700
    for word in ("--seed", "a/b", "C:/x", "runs:/8", "--out=runs", "--labels", "a b://"):
        assert places.word(word) == word
    assert places.url(tmp_path) is None


@dataclass(frozen=True)
class Config:
    corpus: There[Path | None] = None
    out: Path = Path("runs")
    labels: tuple[str, ...] = ("logmel",)


def test_a_command_line_takes_urls(store, tmp_path, capsys):
    url, faults = store
    for name in ("corpus/manifest.tsv", "corpus/labels/a.json", "model/config.json", "corpus-2/x"):
        put(f"{url}/{name}", name.encode(), tmp_path)
    faults.busy = 0.3
    values = cli.read(Config, ["--corpus", f"{url}/corpus", f"--out={url}/new/run", "--labels", f"{url}/model:8"])
    assert values.corpus == places.local(f"{url}/corpus")
    assert (values.corpus / "labels/a.json").read_text() == "corpus/labels/a.json"
    assert Path(values.labels[0].removesuffix(":8"), "config.json").is_file()
    assert not values.out.exists()
    assert not (values.corpus.parent / "corpus-2").exists()
    with pytest.raises(InputError, match="--corpus .*: no such file or folder"):
        cli.read(Config, ["--corpus", f"{url}/none"])


def test_exit_codes_and_messages_name_the_url(store, capsys):
    url, faults = store
    assert cli.command(print, Config, "", args=["--corpus", f"{url}/none"], remember=False) == 2
    assert capsys.readouterr().err == f"error: --corpus {url}/none: no such file or folder\n"
    assert cli.command(print, Config, "", args=["--corpus", f"{url}x/none"], remember=False) == 2
    assert "no such" in capsys.readouterr().err
    faults.refuse = 403
    assert cli.command(print, Config, "", args=["--out", f"{url}/none"], remember=False) == 2
    assert re.fullmatch(rf"error: {url}/none: access refused \(.*\); give the account .*\n", capsys.readouterr().err)


def test_what_changed_there_comes_again_and_nothing_else(store, tmp_path):
    url, faults = store
    for name in ("a", "b/c", "b/d"):
        put(f"{url}/run/{name}", name.encode(), tmp_path)
    fetching.bring(f"{url}/run")
    place = places.local(f"{url}/run")
    (place / "mine").write_text("not sent yet")
    (place / "a").write_text("a and more")
    put(f"{url}/run/b/c", b"other", tmp_path)
    asking.of(url)[0].remove("run/b/d")
    asked(faults)
    fetching.bring(f"{url}/run")
    assert len(asked(faults)) == 1
    assert {path.name: path.read_text() for path in place.rglob("[!.]*") if path.is_file()} == {
        "a": "a and more",
        "c": "other",
        "mine": "not sent yet",
    }


def test_audio_waits_until_it_is_read(store, tmp_path, monkeypatch):
    url, faults = store
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 8000)).astype(np.float32)
    for i, each in enumerate(samples):
        soundfile.write(tmp_path / "x.wav", each, 16_000, subtype="FLOAT")
        put(f"{url}/speech/{i % 2}/{i}.wav", (tmp_path / "x.wav").read_bytes(), tmp_path)
    put(f"{url}/speech/empty.wav", b"", tmp_path)
    put(f"{url}/speech/no.wav", b"no audio", tmp_path)
    faults.cut = 0.2
    fetching.bring(f"{url}/speech")
    assert asked(faults) == []
    place = places.local(f"{url}/speech")
    assert [path.name for path in audio.find([place])] == ["0.wav", "2.wav", "1.wav", "empty.wav", "no.wav"]
    for name in ("0/0.wav", "0/2.wav", "1/1.wav"):
        np.testing.assert_array_equal(audio.read(place / name).samples, samples[int(name[2])])
    assert asked(faults)
    for name in ("0/0.wav", "0/2.wav", "1/1.wav"):
        audio.read(place / name)
    assert asked(faults) == []
    for name, reason in (("empty.wav", "the file is empty"), ("no.wav", "not readable .*"), ("x.wav", "no .*")):
        with pytest.raises(InputError) as told:
            audio.read(place / name)
        assert re.fullmatch(f"{url}/speech/{name}: {reason}", places.shown(told.value))
    for name in ("empty", "no"):
        asking.of(url)[0].remove(f"speech/{name}.wav")
    manifest = corpora.read(place / "*/*.wav")
    assert [u.samples for u in manifest.utterances] == [8000] * 3


@pytest.mark.parametrize("store", ["gs"], indirect=True)
def test_a_manifest_elsewhere_names_urls(store, tmp_path):
    url, _ = store
    soundfile.write(tmp_path / "x.wav", np.zeros(8000, np.float32), 16_000)
    put(f"{url}/speech/x.wav", (tmp_path / "x.wav").read_bytes(), tmp_path)
    utterance = Utterance("x", places.local(f"{url}/speech/x.wav"), 8000)
    write(Manifest((utterance,)), tmp_path / "prepared")
    assert f"{url}/speech/x.wav" in (tmp_path / "prepared/manifest.tsv").read_text()
    found = corpora.read(tmp_path / "prepared")
    assert found.utterances == (utterance,)
    assert audio.find([tmp_path / "prepared/manifest.tsv"]) == (utterance.path,)
    assert len(audio.read(found.utterances[0].path).samples) == 8000


def corpus(folder, lengths, rng):
    offsets = np.cumsum([0, *lengths])
    features = rng.standard_normal((offsets[-1], 40)).astype(np.float16)
    utterances = [Utterance(f"u{i}", Path(f"/none/{i}.wav"), 160 * (n - 1) + 400) for i, n in enumerate(lengths)]
    write(Manifest(tuple(utterances)), folder)
    write_array(folder / "features.npy", features)
    write_array(folder / "offsets.npy", offsets)
    write_array(folder / "stats.npy", np.stack([np.zeros(40), np.ones(40)]).astype(np.float32))
    prepared.write_labels(folder, "a", [np.zeros(n, int) for n in lengths], clusters=2, period_ms=10, info={})


def send(folder, url, tmp_path):
    for file in folder.rglob("*"):
        if file.is_file():
            put(f"{url}/{file.relative_to(folder).as_posix()}", file.read_bytes(), tmp_path)


def test_features_are_read_by_the_utterance(store, tmp_path, monkeypatch):
    url, faults = store
    lengths = [30, 50, 20, 40]
    corpus(tmp_path / "here", lengths, np.random.default_rng(0))
    send(tmp_path / "here", f"{url}/prepared", tmp_path)
    fetching.bring(f"{url}/prepared")
    here, there = prepared.load(tmp_path / "here"), prepared.load(places.local(f"{url}/prepared"))
    asked(faults)
    faults.busy, faults.cut, faults.before = 0.2, 0.2, 0.1
    for i in (2, 0, 3, 1):
        np.testing.assert_array_equal(there.inputs(i, stack=2), here.inputs(i, stack=2))
    np.testing.assert_array_equal(there.labels()[1], here.labels()[1])
    ranges = {tuple(map(int, each[2][6:].split("-"))) for each in asked(faults)}
    assert sorted(1 + last - first for first, last in ranges) == sorted(80 * n for n in lengths)
    for i in range(4):
        there.features(i)
    assert asked(faults) == []
    write_array(tmp_path / "other.npy", np.zeros((140, 40), np.float16))
    put(f"{url}/prepared/features.npy", (tmp_path / "other.npy").read_bytes(), tmp_path)
    if url.startswith("s3"):  # the emulator of GCS does not know generations
        monkeypatch.setenv("JAXSSL_BUCKET_CACHE", "0")
        kept._make_room(0)
        with pytest.raises(InputError, match=f"{url}/prepared/features.npy: was written anew while it was read"):
            there.features(0)


@pytest.mark.parametrize("store", ["gs"], indirect=True)
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"no array" * 99])
def test_an_array_that_is_none(store, tmp_path, content):
    url, _ = store
    put(f"{url}/features.npy", content, tmp_path)
    fetching.bring(f"{url}/features.npy")
    with pytest.raises(InputError, match=rf"{url}/features.npy: not a readable .npy array \(.*\); make it again"):
        open_rows(places.local(f"{url}/features.npy"))


def test_what_is_kept_is_bounded_and_the_longest_unused_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAXSSL_BUCKET_CACHE", "0.01MB")
    reads = []

    def look(name):
        def read():
            reads.append(name)
            return name.encode() * 1000

        assert kept.content(name, read) == name.encode() * 1000
        time.sleep(0.002)

    for name in "abcdefghij":  # 10,000 bytes, which fit
        look(name)
    look("a")
    assert reads == list("abcdefghij")
    look("k")
    look("a")
    look("k")
    assert reads == list("abcdefghijk")
    look("b")
    assert reads[-1] == "b"
    with kept.file("held", ".wav", lambda part: part.write_bytes(b"x" * 9000)) as held:
        time.sleep(0.002)
        look("c")
        look("d")
        assert held.stat().st_size == 9000
    look("e")
    look("f")
    assert not held.exists()
    total = sum(path.stat().st_size for path in (places.root() / kept.FOLDER).rglob("*") if path.is_file())
    assert total <= 10_000


@pytest.mark.parametrize(("text", "bytes"), [("20GB", 20 * 10**9), ("1.5 mb", 1_500_000), ("0", 0), ("7B", 7)])
def test_the_size_of_what_is_kept(monkeypatch, text, bytes):
    monkeypatch.setenv("JAXSSL_BUCKET_CACHE", text)
    assert kept.limit() == bytes


def test_a_size_that_is_none(monkeypatch):
    monkeypatch.setenv("JAXSSL_BUCKET_CACHE", "much")
    with pytest.raises(InputError, match="JAXSSL_BUCKET_CACHE=much: not a size; write it as 20GB"):
        kept.limit()


def test_every_audio_file_waits():
    assert all(fetching.later(Path(f"a b{suffix.upper()}")) for suffix in audio.SUFFIXES)
    for name, later in (("features.npy", True), ("features/00003.npy", True), ("features-3.npy", True)):
        assert fetching.later(Path("a", name)) is later
    assert not fetching.later(Path("features/a/offsets.npy"))
    assert not fetching.later(Path("labels/a.npy"))
