"""What is asked of a bucket, whoever serves it, and what its answers mean."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PAGE = 1000  # names of a listing's page, which is the most that S3 gives


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as its bucket describes it.

    Attributes:
        key: its name.
        bytes: its size.
        tag: of its content; another content has another.
        md5: of its content, hexadecimal; None where the store does not tell.
        crc32c: the same, base64.
    """

    key: str
    bytes: int
    tag: str
    md5: str | None = None
    crc32c: str | None = None


class Missing(Exception):
    """There is no such object."""


class Refused(Exception):
    """The store understood, and will not: asking again does not help."""


class Server(Protocol):
    """One bucket, asked once each time; raises `Missing`, `Refused`, and `Passing` for what may be tried again."""

    def page(self, prefix: str, token: str | None) -> tuple[list[Entry], str | None]:
        """List up to PAGE objects whose key begins so, in order; also return the next page's token."""
        ...

    def about(self, key: str) -> Entry:
        """Describe an object."""
        ...

    def read(self, key: str, start: int, stop: int, tag: str | None) -> bytes:
        """Read bytes `start` to `stop` of an object, or fewer at its end; of that content only, if a tag is given."""
        ...

    def write(self, key: str, file: Path) -> Entry:
        """Make a file an object, which appears whole or not at all."""
        ...

    def remove(self, key: str) -> None:
        """Remove an object."""
        ...
