"""The roll that the processes of a run call before jax joins them, so that who is missing has a name.

Process 0 listens on the coordinator's port, which jax's own service takes over afterwards; the others connect and say
who they are. When all have come, or the time is up, everyone learns it. The connections stay open as lifelines.
"""

import socket
import time
from contextlib import suppress
from dataclasses import dataclass

from compress.errors import InputError
from jaxssl.training.lifeline import LINE, Link, message_of


@dataclass(frozen=True)
class Place:
    """Where a process stands in a run.

    Attributes:
        coordinator: HOST:PORT of process 0.
        processes: how many there are.
        process: which of them this is.
        devices: local devices it may use; None is all.
    """

    coordinator: str
    processes: int
    process: int
    devices: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of process 0."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def call_roll(place: Place, *, timeout_s: float) -> list[Link]:
    """Wait until all processes are there, and return the lifelines: in process 0 to every other, else to process 0.

    Raises:
        InputError: some process did not come within `timeout_s`, or two contradict each other; in all that came.
    """
    deadline = time.monotonic() + timeout_s
    return _gather(place, deadline, timeout_s) if place.process == 0 else [_join(place, deadline, timeout_s)]


def _gather(place: Place, deadline: float, timeout_s: float) -> list[Link]:
    """Wait, in process 0, until all the others have called; then let them go."""
    links: dict[int, Link] = {}
    try:
        with _listen(place.address[1]) as listener:
            while not _complete(place, links):
                if (left := deadline - time.monotonic()) <= 0:
                    raise InputError(_missing(place, links, timeout_s))
                listener.settimeout(left)
                with suppress(TimeoutError):
                    _admit(place, links, listener.accept()[0])
    except InputError as error:
        for link in links.values():
            link.dismiss(str(error))
        raise
    for link in links.values():
        link.tell(start=socket.gethostname())
    return list(links.values())


def _complete(place: Place, links: dict[int, Link]) -> bool:
    """Return whether all are there, after striking off who gave up while waiting."""
    for process in [process for process, link in links.items() if not _open(link)]:
        links.pop(process).socket.close()
    return len(links) == place.processes - 1


def _admit(place: Place, links: dict[int, Link], connection: socket.socket) -> None:
    """Take a caller into the roll; what is no process of a run is sent away.

    Raises:
        InputError: it cannot be of this run.
    """
    try:
        connection.settimeout(5)
        hello = message_of(_line(connection))
        process, processes, host = int(hello["process"]), int(hello["processes"]), str(hello["host"])
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        connection.close()
        return
    link = Link(connection, process, host)
    connection.settimeout(None)
    _complete(place, links)
    before = links.get(process)
    error = ""
    if processes != place.processes:
        error = f"{link} was started with --processes {processes}, process 0 with {place.processes}; they must agree"
    elif before is not None:
        error = f"two processes are number {process}: on {before.host} and on {host}; give each its own --process"
    elif not 0 < process < processes:
        error = f"{link}: another than process 0 must have a number from 1 to {processes - 1}"
    if error:
        link.dismiss(error)
        raise InputError(error)
    links[process] = link


def _join(place: Place, deadline: float, timeout_s: float) -> Link:
    """Call process 0 and wait until all the others have."""
    silent = f"process 0 did not answer at {place.coordinator} within {timeout_s:g} s; start it, or open that port"
    stranger = f"{place.coordinator} is not waiting for this run; is another one using the port?"
    try:
        connection = connect(place.address, deadline)
    except OSError as error:
        raise InputError(silent) from error
    link = Link(connection, 0, place.address[0])
    link.tell(process=place.process, processes=place.processes, host=socket.gethostname())
    try:
        connection.settimeout(timeout_s + 5)  # process 0 came before this connection: its own time is up sooner
        answer = message_of(_line(connection))
        link.host = str(answer.get("start"))
        connection.settimeout(None)
    except (OSError, ValueError) as error:
        connection.close()
        raise InputError(silent if isinstance(error, TimeoutError) else stranger) from error
    if "stop" in answer:
        connection.close()
        raise InputError(str(answer["stop"]))
    return link


def _line(connection: socket.socket) -> bytes:
    """Read one message and nothing after it."""
    with connection.makefile("rb", buffering=0) as file:
        return file.readline(LINE)


def _missing(place: Place, links: dict[int, Link], timeout_s: float) -> str:
    absent = [str(i) for i in range(1, place.processes) if i not in links]
    here = ", ".join(str(links[i]) for i in sorted(links)[:8])
    came = f"{len(links)} came ({here}{', …' if len(links) > 8 else ''})" if links else "none came"
    return (
        f"process {', '.join(absent)} of {place.processes} did not come within {timeout_s:g} s, {came}; "
        f"start what is missing, or see that it reaches {place.coordinator}"
    )


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise InputError(f"port {port} of process 0: {error.strerror}; give another --coordinator port") from error


def connect(address: tuple[str, int], deadline: float) -> socket.socket:
    """Connect as soon as somebody listens there, at the latest at `deadline` (`time.monotonic`)."""
    while True:
        left = deadline - time.monotonic()
        try:
            return socket.create_connection(address, timeout=max(left, 0.1))
        except OSError:
            if left <= 0:
                raise
            time.sleep(min(0.2, left))


def _open(link: Link) -> bool:
    """Return whether the other end still holds the connection, of which nothing is to be read yet."""
    try:
        return link.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
