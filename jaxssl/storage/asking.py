"""A bucket that is asked until it answers, or until waiting longer makes no sense."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TypeVar

from compress.errors import InputError
from jaxssl.storage.objects import Entry, Missing, Refused, Server
from jaxssl.storage.patience import Passing, persist

T = TypeVar("T")


@dataclass(frozen=True)
class Bucket:
    """A bucket that is asked until it answers.

    Attributes:
        url: `gs://NAME` or `s3://NAME`.
        server: who answers.
    """

    url: str
    server: Server

    def pages(self, prefix: str) -> Iterator[list[Entry]]:
        """List objects whose key begins so, a page at a time; only one page is in memory.

        Raises:
            InputError: the bucket cannot be listed.
        """
        token: str | None = None
        while True:
            found, token = self._ask(prefix, partial(self.server.page, prefix, token))
            yield found
            if token is None:
                return

    def about(self, key: str) -> Entry | None:
        """Describe an object; None: there is none."""
        try:
            return self._ask(key, lambda: self.server.about(key), missing=True)
        except Missing:
            return None

    def read(self, key: str, start: int, stop: int, *, tag: str | None = None) -> bytes:
        """Read bytes of an object, as `Server.read`."""
        return self._ask(key, lambda: self.server.read(key, start, stop, tag))

    def exactly(self, key: str, start: int, stop: int, *, tag: str | None = None) -> bytes:
        """Read bytes `start` to `stop` of an object that has them: a shorter answer was cut, and is asked for again."""

        def whole() -> bytes:
            found = self.server.read(key, start, stop, tag)
            if len(found) != stop - start:
                raise Passing(f"short answer: {len(found)} of {stop - start} bytes")
            return found

        return self._ask(key, whole)

    def write(self, key: str, file: Path) -> Entry:
        """Make a file an object, which appears whole or not at all; who writes the same twice changes nothing."""
        return self._ask(key, lambda: self.server.write(key, file))

    def remove(self, key: str) -> None:
        """Remove an object, if it is there."""
        try:
            self._ask(key, lambda: self.server.remove(key), missing=True)
        except Missing:
            return

    def _ask(self, key: str, request: Callable[[], T], *, missing: bool = False) -> T:
        where = f"{self.url}/{key}"
        try:
            return persist(request, where)
        except Missing as error:
            if missing:
                raise
            raise InputError(f"{where}: {error}") from error
        except Refused as error:
            raise InputError(f"{where}: {error}") from error


def of(url: str) -> tuple[Bucket, str]:
    """Return the bucket of a URL, and the key.

    Raises:
        InputError: what speaks to such buckets is not installed.
    """
    scheme, _, rest = url.partition("://")
    name, _, key = rest.partition("/")
    return _bucket(scheme, name), key


@lru_cache(maxsize=32)
def _bucket(scheme: str, name: str) -> Bucket:
    url = f"{scheme}://{name}"
    try:
        if scheme == "gs":
            from jaxssl.storage.gcs import Gcs  # each brings a library that is an extra

            return Bucket(url, Gcs(name))
        from jaxssl.storage.s3 import S3

        return Bucket(url, S3(name))
    except ModuleNotFoundError as error:
        raise InputError(f"{url}: {error.name} is not installed; say: pip install '.[buckets]'") from error
    except Refused as error:
        raise InputError(f"{url}: {error}") from error
