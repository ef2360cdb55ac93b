"""A proxy before an object store that fails by a seed: 503s, cut answers, slow ones; and that counts and knows all."""

import http.client
import random
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP = {"connection", "keep-alive", "transfer-encoding", "proxy-connection"}


@dataclass
class Faults:
    """What goes wrong, as shares of the requests; what went through is counted."""

    port: int
    busy: float = 0.0
    cut: float = 0.0
    before: float = 0.0  # cut before the store has heard of it
    slow: float = 0.0
    slow_s: float = 0.3
    latency_s: float = 0.0
    refuse: int = 0  # a status that all requests get
    seed: int = 0
    seen: list = field(default_factory=list)
    injected: int = 0

    def __post_init__(self):
        self._random, self._lock = random.Random(self.seed), threading.Lock()

    def draw(self):
        with self._lock:
            lot, kind = self._random.random(), None
            for name in ("busy", "cut", "before", "slow"):
                share = getattr(self, name)
                if kind is None and lot < share:
                    kind = name
                lot -= share
            self.injected += kind is not None
            return kind


@contextmanager
def faulty(port, **how):
    """Serve before a store at `port` of this machine; gives the URL and the faults, which may be changed meanwhile."""
    faults = Faults(port, **how)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"faults": faults}))
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # connections that wait to be taken; of the usual five many were turned away


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faults: Faults

    def setup(self):
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY

    def _forward(self):
        faults = self.faults
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        faults.seen.append((self.command, self.path, self.headers.get("Range"), len(body)))
        time.sleep(faults.latency_s)
        if faults.refuse:
            return self._answer(faults.refuse, {}, b"")
        kind = faults.draw()
        if kind == "busy":
            return self._answer(503, {"Retry-After": "0"}, b"")
        if kind == "before":
            return self._hang_up()
        store = http.client.HTTPConnection("127.0.0.1", faults.port, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP}
        store.request(self.command, self.path, body=body, headers=headers)
        found = store.getresponse()
        content = found.read()
        store.close()
        if kind == "slow":
            time.sleep(faults.slow_s)
        given = {name: value for name, value in found.getheaders() if name.lower() not in {*HOP, "content-length"}}
        length = found.getheader("Content-Length") if self.command == "HEAD" else None
        self._answer(found.status, given, content, cut=kind == "cut", length=length)

    def _answer(self, status, headers, content, *, cut=False, length=None):
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(content)))
        self.end_headers()
        if cut:  # the half of it, or nothing where there is no half
            self.wfile.write(content[: len(content) // 2])
            return self._hang_up()
        self.wfile.write(content if self.command != "HEAD" else b"")

    def _hang_up(self):
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(2)

    def handle(self):
        try:
            super().handle()
        except (OSError, ValueError):
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = _forward

    def log_message(self, *_):
        pass
