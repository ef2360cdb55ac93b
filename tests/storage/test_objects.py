"""A bucket gives and takes what it should through failures that pass, and says in one line what does not."""

import os
import sys
import threading
import weakref

import numpy as np
import pytest

from compress.errors import InputError
from jaxssl.storage import asking, fetching, objects, patience
from jaxssl.storage.objects import Entry
from jaxssl.storage.patience import Passing, persist

CONTENT = bytes(range(256)) * 40


def written(bucket, tmp_path, key, content=CONTENT):
    file = tmp_path / "file"
    file.write_bytes(content)
    return bucket.write(key, file)


def test_what_is_written_is_read(store, tmp_path):
    url, _ = store
    bucket, _ = asking.of(f"{url}/x")
    entry = written(bucket, tmp_path, "a folder/ü+%.bin")
    assert bucket.about("a folder/ü+%.bin").tag == entry.tag
    assert entry.bytes == len(CONTENT)
    assert bucket.read("a folder/ü+%.bin", 0, 10**6) == CONTENT
    assert bucket.read("a folder/ü+%.bin", 100, 356, tag=entry.tag) == CONTENT[100:356]
    assert bucket.read("a folder/ü+%.bin", 5, 5) == b""
    written(bucket, tmp_path, "empty", b"")
    assert bucket.about("empty").bytes == 0
    bucket.remove("empty")
    bucket.remove("empty")
    assert bucket.about("empty") is None
    assert patience.told() is None


@pytest.mark.slow
def test_a_large_object_goes_and_comes_in_parts(store, tmp_path):
    url, faults = store
    content = np.random.default_rng(0).bytes(40 << 20)
    (tmp_path / "large").write_bytes(content)
    bucket, key = asking.of(f"{url}/large")
    faults.busy = faults.before = faults.cut = 0.2
    fetching.fetch(bucket, bucket.write(key, tmp_path / "large"), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == content
    assert faults.injected
    assert max(length for _, _, _, length in faults.seen) < 34 << 20


def test_pages_are_asked_one_after_the_other(store, tmp_path, monkeypatch):
    url, faults = store
    for module in ("gcs", "s3"):
        monkeypatch.setattr(f"jaxssl.storage.{module}.PAGE", 3)
    bucket, _ = asking.of(f"{url}/x")
    names = [f"many/{i:02d}" for i in range(8)]
    for name in [*names, "other"]:
        written(bucket, tmp_path, name)
    faults.seen.clear()
    pages = bucket.pages("many/")
    first = [entry.key for entry in next(pages)]
    assert len(faults.seen) == 1
    assert first + [entry.key for page in pages for entry in page] == names
    if url.startswith("gs"):  # this emulator gives all, whatever is asked for
        assert "maxResults=3" in faults.seen[0][1]
    else:
        assert first == names[:3]
        assert len(faults.seen) == 3
    assert [entry for page in bucket.pages("none/") for entry in page] == []


def test_failures_that_pass_are_waited_for_and_counted(store, tmp_path):
    url, faults = store
    bucket, _ = asking.of(f"{url}/x")
    faults.busy, faults.cut, faults.before, faults.slow, faults.slow_s = 0.2, 0.2, 0.1, 0.1, 0.01
    contents = {f"key/{i}": os.urandom(2000 + i) for i in range(20)}
    for key, content in contents.items():
        written(bucket, tmp_path, key, content)
    assert {entry.key for page in bucket.pages("key/") for entry in page} == set(contents)
    assert {key: bucket.read(key, 0, 10**6) for key in contents} == contents
    assert faults.injected > 10
    assert "503 Service Unavailable" in patience.told()
    assert "cut connection" in patience.told()


def test_what_does_not_pass_is_not_asked_again(store, tmp_path):
    url, faults = store
    bucket, _ = asking.of(f"{url}/x")
    with pytest.raises(InputError, match=rf"{url}/none: no such bucket or object; correct the URL"):
        bucket.read("none", 0, 5)
    assert len(faults.seen) == 1
    faults.refuse = 403
    with pytest.raises(InputError, match=rf"{url}/x: access refused \(.*\); give the account rights"):
        written(bucket, tmp_path, "x")
    assert len(faults.seen) == 2


def test_a_store_that_stays_down_is_given_up(store, monkeypatch):
    url, faults = store
    bucket, _ = asking.of(f"{url}/x")
    faults.busy = 1.0
    monkeypatch.setenv("JAXSSL_BUCKET_PATIENCE", "0.2")
    with pytest.raises(InputError, match=r"no answer in \d+ s and \d+ tries, the last: 503 Service Unavailable; see"):
        bucket.read("none", 0, 5)


def test_pauses_grow_and_end_at_the_limit(monkeypatch):
    slept, now, told = [], [0.0], []
    patience.begin(told.append)
    monkeypatch.setattr(patience.time, "monotonic", lambda: now[0])

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    def request():
        raise Passing("503")

    with pytest.raises(InputError, match=r"no answer in (2..|300) s and"):
        persist(request, "gs://b/k", sleep=sleep)
    longest = [min(0.1 * 2**i, 20) for i in range(len(slept))]
    assert all(most / 2 <= each <= most for each, most in zip(slept, longest, strict=True))
    assert len(set(slept)) == len(slept)
    assert 275 < sum(slept) <= 300
    assert told == ["note: gs://b/k: 503; it is tried again for 300 s in all"]


@pytest.mark.parametrize("text", ["soon", "-1", "1e9", "nan"])
def test_a_limit_that_is_none(monkeypatch, text):
    monkeypatch.setenv("JAXSSL_BUCKET_PATIENCE", text)
    with pytest.raises(InputError, match=f"JAXSSL_BUCKET_PATIENCE={text}: not a time; give seconds, 0 to 86400"):
        patience.limit_s()


def test_threads_share_a_bucket(store, tmp_path):
    url, _ = store
    bucket, _ = asking.of(f"{url}/x")
    written(bucket, tmp_path, "x")
    found = []
    threads = [threading.Thread(target=lambda: found.append(bucket.read("x", 0, 10**6))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 8


class Many:
    """A store of a million objects, which knows how many of its pages somebody still has."""

    def __init__(self):
        self.alive, self.most = weakref.WeakSet(), 0
        self.names = [Entry(f"speech/{i:07d}", 1, "t") for i in range(objects.PAGE)]

    def page(self, prefix, token):
        number = int(token or 0)
        found = Page(self.names)
        self.alive.add(found)
        self.most = max(self.most, len(self.alive))
        return found, str(number + 1) if number < 999 else None


class Page(list):
    __hash__ = object.__hash__


def test_a_million_names_are_never_in_memory_together():
    server = Many()
    assert sum(len(page) for page in asking.Bucket("gs://many", server).pages("speech/")) == 10**6
    assert server.most <= 2


def test_without_credentials_one_line_says_so(s3, monkeypatch, tmp_path):
    from jaxssl.storage.s3 import session

    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    asking._bucket.cache_clear()
    session.cache_clear()
    bucket, key = asking.of("s3://some-bucket/key")
    with pytest.raises(InputError, match=r"s3://some-bucket/key: no credentials; say aws configure, or set AWS_ACCESS"):
        bucket.about(key)
    asking._bucket.cache_clear()
    session.cache_clear()


def test_a_library_that_is_not_there_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.cloud.storage.exceptions", None)
    monkeypatch.delitem(sys.modules, "jaxssl.storage.gcs", raising=False)
    asking._bucket.cache_clear()
    with pytest.raises(InputError, match=r"gs://b: .* is not installed; say: pip install '\.\[buckets\]'"):
        asking.of("gs://b/key")
