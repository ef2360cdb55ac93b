"""Notices of GCE are heard from a stand-in of its metadata server, and nowhere else is anything asked."""

import http.server
import socket
import threading
import time
from contextlib import contextmanager
from urllib.parse import parse_qs, urlsplit

import pytest

from jaxssl.training import notices, told
from jaxssl.training.notices import SAYING


class Metadata(http.server.ThreadingHTTPServer):
    """Answers as the metadata server does; `faults` are what becomes of the next requests instead."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.values = {"preempted": "FALSE", "maintenance-event": "NONE"}
        self.changed, self.waiting = threading.Condition(), 0
        self.faults, self.asked, self.flavor, self.patient = [], [], "Google", True

    @property
    def host(self):
        return f"127.0.0.1:{self.server_port}"

    def say(self, key, value):
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def until(self, true, what):
        with self.changed:
            assert self.changed.wait_for(true, 20), what

    def handle_error(self, request, client_address):
        pass  # of those who hung up


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server, parts = self.server, urlsplit(self.path)
        key, query = parts.path.removeprefix("/computeMetadata/v1/instance/"), parse_qs(parts.query)
        with server.changed:
            server.asked.append((key, self.headers.get("Metadata-Flavor"), query))
            server.changed.notify_all()
            fault = server.faults.pop(0) if server.faults else None
            if fault == "cut":
                return
            if fault == "503":
                self.send_error(503)
                return
            if query and server.patient:
                server.waiting += 1
                server.changed.notify_all()
                tag = query["last_etag"][0]
                server.changed.wait_for(lambda: server.values[key] != tag.removeprefix("of-"), 20)
            value = server.values[key]
        self.send_response(200)
        self.send_header("Content-Length", str(len(value)))
        self.send_header("ETag", f"of-{value}")
        if server.flavor:
            self.send_header("Metadata-Flavor", server.flavor)
        self.end_headers()
        self.wfile.write(value.encode())

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    with Metadata() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        for key in SAYING:
            server.say(key, "the end")  # to those that wait still
        server.shutdown()
        thread.join()


@pytest.fixture
def metadata(monkeypatch):
    with serving() as server:
        monkeypatch.setenv("GCE_METADATA_HOST", server.host)
        monkeypatch.setattr(notices, "SOONEST_S", 0.01)
        yield server


@contextmanager
def hearing():
    leave, lines = threading.Event(), []
    with notices.heard(leave, lines.append):
        yield leave, lines


def threads():
    return [each for each in threading.enumerate() if isinstance(each, notices.Notice)]


@pytest.mark.parametrize(("key", "value"), SAYING.items())
@pytest.mark.parametrize("when", ["before", "later"])
def test_a_notice_lets_the_run_leave(metadata, key, value, when):
    """Whether it is there when the run begins or comes while it waits, and both values are watched."""
    if when == "before":
        metadata.say(key, value)
    with hearing() as (leave, lines):
        if when == "later":
            metadata.until(lambda: metadata.waiting == 2, "nobody waits for changes")
            assert not leave.is_set()
            metadata.say(key, value)
        assert leave.wait(20)
        for each in threads():
            if each.name == f"notice of {key}":
                each.join(20)  # it tells after it has set the flag
        metadata.until(lambda: {key for key, *_ in metadata.asked} == set(SAYING), "one value is not watched")
    assert lines == [f"note: {key} is {value}, says GCE: this machine goes; saving, then leaving"]
    assert {flavor for _, flavor, _ in metadata.asked} == {"Google"}


def test_a_machine_that_is_moved_while_it_runs_trains_on(metadata):
    with hearing() as (leave, lines):
        metadata.until(lambda: metadata.waiting == 2, "nobody waits for changes")
        metadata.say("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE")
        metadata.until(lambda: metadata.waiting == 3, "it is not waited on")
        assert (leave.is_set(), lines) == (False, [])
        metadata.say("maintenance-event", SAYING["maintenance-event"])
        assert leave.wait(20)


def test_faults_of_the_server_are_outlived(metadata, monkeypatch):
    """503, as in its own maintenance, and connections that are cut: asked again, and told after some in a row."""
    monkeypatch.setattr(notices, "FAILURES", 3)
    metadata.faults[:] = ["503", "cut", "cut", "503"] * 2
    with hearing() as (leave, lines):
        metadata.until(lambda: metadata.waiting == 2, "it gave up")
        metadata.say("preempted", "TRUE")
        assert leave.wait(20)
    assert 1 <= len([line for line in lines if "notices are not heard until it answers" in line]) <= 2
    assert metadata.host in lines[0]


def test_a_server_that_does_not_wait_is_not_asked_without_end(metadata, monkeypatch):
    monkeypatch.setattr(notices, "SOONEST_S", 0.2)
    metadata.patient = False
    with hearing():
        time.sleep(1)
    assert 3 <= len([key for key, *_ in metadata.asked if key == "preempted"]) <= 7


def test_another_server_there_is_told_and_left_alone(metadata):
    metadata.flavor = None
    with hearing() as (leave, lines):
        for each in threads():
            each.join(20)
        assert threads() == []
    assert len(metadata.asked) == len(SAYING)
    assert (
        lines
        == [f"note: {metadata.host} is no metadata server of GCE; notices that this machine goes are not heard"] * 2
    )
    assert not leave.is_set()


def test_waiting_ends_with_the_run(metadata):
    begun = time.monotonic()
    with hearing():
        metadata.until(lambda: metadata.waiting == 2, "nobody waits for changes")
    assert threads() == []
    assert time.monotonic() - begun < notices.HANG_S / 2


def test_nothing_is_asked_where_the_machine_is_not_of_gce(monkeypatch, tmp_path):
    """It is asked by its name plate; and of GCE not if the user forbids it."""
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(notices, "PRODUCT", plate := tmp_path / "product_name")
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("the network was asked"))
    for product, forbidden, expected in (
        (None, "", None),
        ("Standard PC (Q35)\n", "", None),
        ("Google Compute Engine\n", "true", None),
        ("Google Compute Engine\n", "", notices.SERVER),
    ):
        if product:
            plate.write_text(product)
        monkeypatch.setenv("NO_GCE_CHECK", forbidden)
        assert notices.server() == expected
        if expected is None:
            with told.listening():
                assert threads() == []
    monkeypatch.setenv("GCE_METADATA_HOST", "here:8080")
    assert notices.server() == "here:8080"


def test_a_run_is_told(metadata):
    """As by SIGTERM, and in any thread."""
    with told.listening() as heard:
        metadata.say("preempted", "TRUE")
        assert heard.leave.wait(20)
        heard.agree(1)
        assert heard.leaving
