"""Where objects of a bucket lie on this machine: each URL has one path below the user's cache, and back.

    gs://BUCKET/KEY   ~/.cache/jaxssl/buckets/gs/BUCKET/KEY

The rest of the code knows paths only. What people read (messages, settings, reports) names URLs, so that a run is the
same run on every machine.
"""

import os
import re
from functools import lru_cache
from pathlib import Path

from compress.errors import InputError
from jaxssl.runtime import private

ENDPOINTS = {"gs": ("STORAGE_EMULATOR_HOST",), "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")}
WRITTEN = re.compile(r"(--[\w-]+=)?([A-Za-z][A-Za-z0-9+.-]*):/(/.*)", re.DOTALL)  # a word that is, or gives, a URL
LONGEST = 255  # bytes of a name between two slashes, in most file systems


def root() -> Path:
    """Return the folder of all that is of buckets; only this user can enter it."""
    return _made(private.cache("buckets").absolute())


@lru_cache(maxsize=4)
def _made(path: Path) -> Path:
    return private.folder(path)


def is_url(text: str) -> bool:
    """Tell whether a text is a URL, of a bucket or of anything else."""
    found = WRITTEN.fullmatch(text)
    return found is not None and not found[1]


def word(text: str) -> str:
    """Return a word of a command line with the URL in it, if any, made a local path.

    Raises:
        InputError: see `local`.
    """
    found = WRITTEN.fullmatch(text)
    return text if found is None else (found[1] or "") + str(local(f"{found[2]}:/{found[3]}"))


def local(url: str) -> Path:
    """Return the path that stands for a URL on this machine.

    Raises:
        InputError: it is of another kind, or names no bucket or what no path can.
    """
    scheme, _, rest = url.partition("://")
    if scheme not in ENDPOINTS:
        raise InputError(f"{url}: {scheme}:// is not known here; use gs://BUCKET/KEY, s3://BUCKET/KEY or a path")
    bucket, slash, key = rest.removesuffix("/").partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,221}", bucket):
        raise InputError(f"{url}: {bucket or 'no name'!r} is no bucket; write {scheme}://BUCKET/KEY")
    base = root() / (scheme + _endpoint(scheme)) / bucket
    return below(base, f"{scheme}://{bucket}", key) if slash else base


def below(base: Path, bucket: str, key: str) -> Path:
    """Return the path of an object, given those of its bucket.

    Raises:
        InputError: no path can be called so.
    """
    for part in key.split("/"):
        if part in ("", ".", "..") or "\0" in part or len(os.fsencode(part)) > LONGEST:
            raise InputError(f"{bucket}/{key}: {part[:40]!r} between slashes is no name of a file; rename the object")
    return base / key


def _endpoint(scheme: str) -> str:
    """Tell buckets of other servers than the usual one apart."""
    server = next((os.environ[name] for name in ENDPOINTS[scheme] if os.environ.get(name)), "")
    return f"@{re.sub(r'[^A-Za-z0-9.-]+', '_', server)}" if server else ""


def url(path: str | Path) -> str | None:
    """Return the URL that a path stands for; None: it is of this machine only."""
    text = os.path.abspath(path)
    found = re.fullmatch(rf"{re.escape(str(_cache()))}/(gs|s3)(?:@[\w.-]+)?/(.+)", text, re.DOTALL)
    return f"{found[1]}://{found[2]}" if found else None


def shown(text: object) -> str:
    """Return a text with the paths that stand for URLs written as these."""
    return re.sub(rf"{re.escape(str(_cache()))}/(gs|s3)(?:@[\w.-]+)?/", r"\1://", str(text))


def _cache() -> Path:
    """Return what `root` does, without making it."""
    return private.cache("buckets").absolute()
