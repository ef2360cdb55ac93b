"""Connections between the processes of a run that tell at once when one of them is gone.

A process that dies closes its lifeline, one that hangs falls silent, one that fails says so. The others then stop,
whatever they are doing, with one line that names it. Process 0 holds a lifeline to every other one and passes on what
it learns.
"""

import json
import os
import selectors
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn

from compress.errors import one_line
from jaxssl.runtime import files

LOST = 3  # exit code of a process that stops because another one did
LINE = 4096  # longest message, in bytes


@dataclass
class Link:
    """A lifeline to another process.

    Attributes:
        socket: the connection.
        process: who is at its other end.
        host: on which machine.
        heard: when something last came.
        left: when it said that its work is done.
    """

    socket: socket.socket
    process: int
    host: str
    heard: float = field(default_factory=time.monotonic)
    left: float | None = None
    unread: bytes = b""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"

    def tell(self, **message: Any) -> None:
        """Send a message; a peer that cannot be reached is noticed elsewhere."""
        with suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def dismiss(self, reason: str) -> None:
        """Tell the other end to stop, and close."""
        self.tell(stop=reason)
        self.socket.close()

    def read(self) -> list[dict[str, Any]] | None:
        """Return the messages that came; None when the other end is closed."""
        try:
            data = self.socket.recv(LINE)
        except OSError:
            return None
        if not data:
            return None
        self.heard = time.monotonic()
        *lines, self.unread = (self.unread + data).split(b"\n")
        try:
            if len(self.unread) > LINE:
                raise ValueError("a message without an end")
            return [message_of(line) for line in lines]
        except ValueError:  # what speaks so is no process of ours, or no longer
            return None


def message_of(line: bytes) -> dict[str, Any]:
    """Read one message.

    Raises:
        ValueError: it is none.
    """
    return files.named(files.parsed(line, "another process"), "another process")


class Watch(threading.Thread):
    """The thread that listens on the lifelines and stops the process when another one is gone.

    Attributes:
        name: this process, as "process 1 of 4".
        links: the lifelines.
        silence_s: how long another process may be silent.
        grace_s: how long this process may work on after another one has ended.
    """

    def __init__(self, name: str, links: list[Link], *, silence_s: float, grace_s: float):
        super().__init__(name=name, daemon=True)
        self.links, self.silence_s, self.grace_s = links, silence_s, grace_s
        self.left = self.failed = False
        self.exit_code = 0

    def run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for link in self.links:
                link.heard = time.monotonic()
                selector.register(link.socket, selectors.EVENT_READ, link)
            checked = -self.silence_s
            while True:
                for key, _ in selector.select(self.silence_s / 8):
                    if not self.listen(key.data):
                        selector.unregister(key.fileobj)
                if time.monotonic() - checked > self.silence_s / 4:  # not at every message: each would answer each
                    checked = time.monotonic()
                    self.check(checked)

    def listen(self, link: Link) -> bool:
        """Read what came on a lifeline; return whether it stays open."""
        messages = link.read()
        if messages is None:
            if link.left is None:
                self.stop(f"{link} is gone; its own log may say why")
            self.links.remove(link)
            return False
        for message in messages:
            if "stop" in message:
                self.stop(str(message["stop"]))
            if "left" in message:
                link.left = time.monotonic()
        return True

    def check(self, now: float) -> None:
        """Say that this process lives, and find those that do not."""
        for link in list(self.links):
            link.tell(alive=True)
            if now - link.heard > self.silence_s:
                self.stop(f"{link} has been silent for {self.silence_s:g} s; see whether it hangs or its host is down")
            if link.left is not None and not self.left and now - link.left > self.grace_s:
                self.stop(f"{link} ended {self.grace_s:g} s ago, while others still work; see why in its log")

    def stop(self, reason: str) -> None:
        """Tell the others and end this process, whatever it is doing: a collective cannot be interrupted."""
        if self.failed:  # it has told its own reason, which is the cause of theirs
            return
        self.tell(stop=reason)
        leave(f"error: {self.name} stops: {reason}", LOST)

    def tell(self, **message: Any) -> None:
        """Send a message to all the others."""
        for link in list(self.links):
            link.tell(**message)

    def fail(self, reason: str, *, exit_code: int) -> None:
        """Stop the others because this process failed; it ends with `exit_code` after its own error was printed."""
        self.failed, self.exit_code = True, exit_code
        self.tell(stop=reason)

    def finish(self) -> None:
        """Say goodbye, so that closing the lifelines alarms nobody."""
        self.left = True
        if self.failed:  # the others are gone: jax's own end would wait for them
            leave("", self.exit_code)
        self.tell(left=True)


def leave(line: str, code: int) -> NoReturn:
    """End the process now, after `line` on standard error; exit handlers do not run."""
    with suppress(OSError, ValueError):
        os.write(2, f"{one_line(line)}\n".encode() if line else b"")  # it quotes what came over the network
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
