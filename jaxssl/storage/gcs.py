"""Buckets of Google Cloud Storage, by its own library: ours decides what is asked again."""

import binascii
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError, TransportError
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.adapters import HTTPAdapter
from urllib3.exceptions import HTTPError

from jaxssl.storage.codes import meaning
from jaxssl.storage.objects import PAGE, Entry, Refused
from jaxssl.storage.patience import Passing

TIMEOUT = (10, 30)  # seconds to connect, and between two pieces of an answer
POOL = 64  # connections kept
PORTION = 32 << 20  # bytes that a large file is sent in


class Gcs:
    """One bucket.

    Raises:
        Refused: there are no credentials.
    """

    def __init__(self, name: str):
        os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")  # it would ask for traces' sake
        with _meaning():
            client = storage.Client(project="none")  # of the bucket's creation, which is not ours
            for scheme in ("http://", "https://"):
                client._http.mount(scheme, HTTPAdapter(pool_maxsize=POOL))
            self._client, self._bucket = client, client.bucket(name)

    def page(self, prefix: str, token: str | None) -> tuple[list[Entry], str | None]:
        """See `objects.Server`, here and below."""
        fields = "nextPageToken,items(name,size,generation,md5Hash,crc32c)"
        with _meaning():
            found = self._client.list_blobs(
                self._bucket,
                prefix=prefix,
                page_token=token,
                page_size=PAGE,
                fields=fields,
                retry=None,
                timeout=TIMEOUT,
            )
            listed = [_entry(blob) for blob in next(found.pages, ())]
            return listed, found.next_page_token

    def about(self, key: str) -> Entry:
        with _meaning():
            blob = self._bucket.blob(key)
            blob.reload(retry=None, timeout=TIMEOUT)
            return _entry(blob)

    def read(self, key: str, start: int, stop: int, tag: str | None) -> bytes:
        wanted = {} if tag is None else {"if_generation_match": int(tag)}
        if stop <= start:
            return b""
        with _meaning():
            blob = self._bucket.blob(key)
            # As it is stored: what was uploaded with gzip as its encoding would be longer than its size says.
            return blob.download_as_bytes(
                start=start, end=stop - 1, raw_download=True, checksum=None, retry=None, timeout=TIMEOUT, **wanted
            )

    def write(self, key: str, file: Path) -> Entry:
        with _meaning():
            blob = self._bucket.blob(key, chunk_size=PORTION)
            # Parts of a large file are asked again by the library: all of them would be sent anew.
            again = DEFAULT_RETRY if file.stat().st_size > PORTION else None
            blob.upload_from_filename(str(file), checksum="crc32c", retry=again, timeout=TIMEOUT)
            return _entry(blob)

    def remove(self, key: str) -> None:
        with _meaning():
            self._bucket.blob(key).delete(retry=None, timeout=TIMEOUT)


def _entry(blob: Any) -> Entry:
    md5 = None if blob.md5_hash is None else binascii.a2b_base64(blob.md5_hash).hex()
    return Entry(blob.name, int(blob.size or 0), str(blob.generation), md5, blob.crc32c)


@contextmanager
def _meaning() -> Iterator[None]:
    """Say what a failure means for who asks."""
    try:
        yield
    except (exceptions.GoogleAPICallError, InvalidResponse) as error:
        code = error.response.status_code if isinstance(error, InvalidResponse) else int(error.code or 0)
        told = str(code) if code in (401, 403) else f"{code}: {str(error).splitlines()[0][:200]}"
        raise meaning(code, told) from error
    except DataCorruption as error:
        raise Passing("damaged answer") from error
    except TransportError as error:
        raise Passing("no credentials: their server does not answer") from error
    except GoogleAuthError as error:
        reason = str(error).splitlines()[0][:200]
        remedy = "say gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS"
        raise Refused(f"no credentials ({reason}); {remedy}") from error
    except requests.exceptions.Timeout as error:
        raise Passing("no answer in time") from error
    except (requests.exceptions.RequestException, HTTPError, ConnectionError) as error:
        raise Passing(f"cut connection: {type(error).__name__}") from error
