"""Emulators of GCS and S3 on loopback, one of each a session, behind a proxy that fails on demand."""

import importlib
import itertools
import socket

import pytest

from jaxssl.storage import asking, patience
from tests.faults import faulty

NUMBERS = itertools.count()
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session")
def gs():
    """The port of an emulator of GCS."""
    server = pytest.importorskip("gcp_storage_emulator.server", reason="needs the extra test")
    importlib.import_module("google.cloud.storage")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    emulator = server.create_server("127.0.0.1", port, in_memory=True)
    emulator.start()
    yield port
    emulator.stop()


@pytest.fixture(scope="session")
def s3():
    """The port of an emulator of S3."""
    server = pytest.importorskip("moto.server", reason="needs the extra test")
    importlib.import_module("boto3")
    emulator = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    emulator.start()
    yield emulator.get_host_and_port()[1]
    emulator.stop()


@pytest.fixture(params=["gs", "s3"])
def store(request, monkeypatch, tmp_path):
    """A fresh bucket's URL, and the faults before it; the environment names the proxy, and a cache of the test's."""
    port = request.getfixturevalue(request.param)
    name = f"bucket-{next(NUMBERS)}"
    with faulty(port) as (address, faults):
        for key, value in KEYS.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        monkeypatch.setattr(patience, "FIRST_S", 0.01)
        asking._bucket.cache_clear()
        patience.begin(print)
        _make(request.param, name)
        faults.seen.clear()
        yield f"{request.param}://{name}", faults
    asking._bucket.cache_clear()


def _make(kind, name):
    if kind == "gs":
        from google.cloud import storage

        storage.Client(project="none").create_bucket(name)
    else:
        from jaxssl.storage.s3 import session

        session().client("s3").create_bucket(Bucket=name)
