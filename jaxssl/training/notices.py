"""Notices of Google Compute Engine that a machine will be taken away, before its SIGTERM comes or instead of it.

The metadata server of each machine says `instance/preempted`, and `instance/maintenance-event` of those that cannot be
moved while they run (with GPUs or TPUs). A request with `wait_for_change` is answered when the value changes.
https://cloud.google.com/compute/docs/metadata/querying-metadata has the protocol.
"""

import http.client
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from threading import Event
from urllib.parse import quote

SERVER = "metadata.google.internal"
PRODUCT = Path("/sys/class/dmi/id/product_name")  # "Google Compute Engine" there, which no request has to find out
SAYING = {"preempted": "TRUE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}
FLAVOR = ("Metadata-Flavor", "Google")  # without it the server answers nobody, and nobody else answers with it
HANG_S = 60  # a request is answered then, if nothing has changed
CONNECT_S = 5.0
SOONEST_S, PAUSE_S = 1.0, 60.0  # from one request that failed to the next: doubled each time, up to a minute
FAILURES = 5  # in a row after which it is told
LONGEST = 1024  # bytes of a value


def server() -> str | None:
    """Return the metadata server's HOST or HOST:PORT; None: this machine is not of GCE, and nothing is asked.

    As Google's own clients do, `GCE_METADATA_HOST` names it, and `NO_GCE_CHECK=true` leaves it alone.
    """
    if named := os.environ.get("GCE_METADATA_HOST"):
        return named
    if os.environ.get("NO_GCE_CHECK", "").lower() == "true":
        return None
    with suppress(OSError):
        return SERVER if PRODUCT.read_text(errors="replace").startswith("Google") else None
    return None


@contextmanager
def heard(leave: Event, tell: Callable[[str], object]) -> Iterator[None]:
    """Set `leave` when GCE is about to take the machine, as long as the body of `with` runs.

    Elsewhere nothing is asked and nothing started. `tell` shows a line, from another thread.
    """
    with ExitStack() as stack:
        if (host := server()) is not None:
            for key in SAYING:
                notice = Notice(host, key, leave, tell)
                notice.start()
                stack.callback(notice.close)
        yield


class Notice(threading.Thread):
    """A thread that waits for one value of the metadata server to say that the machine goes."""

    def __init__(self, host: str, key: str, leave: Event, tell: Callable[[str], object]):
        super().__init__(name=f"notice of {key}", daemon=True)
        self._host, self._key, self._leave, self._tell = host, key, leave, tell
        self._ended = Event()
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Stop waiting."""
        self._ended.set()
        with suppress(OSError):  # it may be between two requests
            if (connection := self._connection) is not None and connection.sock is not None:
                connection.sock.shutdown(socket.SHUT_RDWR)
        self.join(1)

    def run(self) -> None:
        etag, failures = None, 0
        while not self._ended.is_set():
            before, asked = etag, time.monotonic()
            try:
                value, etag = self._ask(etag)
            except _Foreign:
                self._tell(
                    f"note: {self._host} is no metadata server of GCE; notices that this machine goes are not heard"
                )
                return
            except (OSError, http.client.HTTPException, ValueError) as error:
                etag, failures = None, failures + 1
                if failures == FAILURES and not self._ended.is_set():
                    self._tell(f"note: metadata server {self._host}: {error}; notices are not heard until it answers")
                self._ended.wait(min(SOONEST_S * 2 ** (failures - 1), PAUSE_S))
                continue
            failures = 0
            if value == SAYING[self._key]:
                self._leave.set()
                self._tell(f"note: {self._key} is {value}, says GCE: this machine goes; saving, then leaving")
                return
            at_once = time.monotonic() - asked < SOONEST_S
            if at_once and (before is not None or etag is None):  # a server that does not wait is not asked without end
                self._ended.wait(SOONEST_S)

    def _ask(self, etag: str | None) -> tuple[str, str | None]:
        """Return the value and its tag: at once, or, given the tag of a value, when it is another or the time is up."""
        query = f"?wait_for_change=true&timeout_sec={HANG_S}&last_etag={quote(etag)}" if etag else ""
        connection = self._connection = http.client.HTTPConnection(self._host, timeout=CONNECT_S)
        with closing(connection):
            connection.connect()
            connection.sock.settimeout(HANG_S + CONNECT_S)
            connection.request("GET", f"/computeMetadata/v1/instance/{self._key}{query}", headers=dict([FLAVOR]))
            answer = connection.getresponse()
            value = answer.read(LONGEST).decode(errors="replace").strip()
            if answer.status != http.client.OK:
                raise OSError(f"{answer.status} {answer.reason}")
            if answer.getheader(FLAVOR[0]) != FLAVOR[1]:
                raise _Foreign
            return value, answer.getheader("ETag")


class _Foreign(Exception):
    """Something answers that is no metadata server."""
