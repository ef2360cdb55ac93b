"""Buckets of S3 and of what speaks like it, by Amazon's own library: ours decides what is asked again."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore import exceptions
from botocore.config import Config
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from jaxssl.storage.codes import meaning
from jaxssl.storage.objects import PAGE, Entry, Refused
from jaxssl.storage.patience import Passing

POOL = 64  # connections kept
PORTION = 32 << 20  # bytes that a large file is sent in
LARGE = TransferConfig(multipart_threshold=PORTION, multipart_chunksize=PORTION, max_concurrency=4)


class S3:
    """One bucket."""

    def __init__(self, name: str):
        self._name = name
        with _meaning():
            # Nothing is asked again but by us, who count it; parts of a large file are, which would all be sent anew.
            self._client, self._sender = _client(tries=1), _client(tries=8)

    def page(self, prefix: str, token: str | None) -> tuple[list[Entry], str | None]:
        """See `objects.Server`, here and below."""
        more = {} if token is None else {"ContinuationToken": token}
        with _meaning():
            found = self._client.list_objects_v2(Bucket=self._name, Prefix=prefix, MaxKeys=PAGE, **more)
            listed = [Entry(each["Key"], each["Size"], each["ETag"]) for each in found.get("Contents", ())]
            return listed, found.get("NextContinuationToken")

    def about(self, key: str) -> Entry:
        with _meaning():
            return _entry(key, self._client.head_object(Bucket=self._name, Key=key))

    def read(self, key: str, start: int, stop: int, tag: str | None) -> bytes:
        wanted = {} if tag is None else {"IfMatch": tag}
        if stop <= start:
            return b""
        with _meaning():
            found = self._client.get_object(Bucket=self._name, Key=key, Range=f"bytes={start}-{stop - 1}", **wanted)
            return found["Body"].read()

    def write(self, key: str, file: Path) -> Entry:
        with _meaning():
            if (size := file.stat().st_size) > PORTION:
                self._sender.upload_file(str(file), self._name, key, Config=LARGE)
                return self.about(key)
            with file.open("rb") as body:
                found = self._client.put_object(Bucket=self._name, Key=key, Body=body)
            return Entry(key, size, found["ETag"])

    def remove(self, key: str) -> None:
        with _meaning():
            self._client.delete_object(Bucket=self._name, Key=key)


def _client(*, tries: int) -> Any:
    how = Config(
        retries={"total_max_attempts": tries, "mode": "standard"},
        connect_timeout=10,
        read_timeout=30,
        max_pool_connections=POOL,
    )
    return session().client("s3", config=how)


@lru_cache(maxsize=1)
def session() -> boto3.session.Session:
    """Return what knows the credentials and the service's description, which takes 0.3 s to read."""
    return boto3.session.Session()


def _entry(key: str, found: dict[str, Any]) -> Entry:
    # The tag is the content's MD5, unless it came in parts or is encrypted by a key of the user's.
    plain = found.get("ServerSideEncryption") in (None, "AES256") and not found.get("SSECustomerAlgorithm")
    md5 = re.fullmatch(r'"([0-9a-f]{32})"', found["ETag"])
    return Entry(key, found["ContentLength"], found["ETag"], md5[1] if md5 and plain else None)


@contextmanager
def _meaning() -> Iterator[None]:
    """Say what a failure means for who asks."""
    try:
        yield
    except exceptions.ClientError as error:
        raise _meant(error) from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise Refused("no credentials; say aws configure, or set AWS_ACCESS_KEY_ID and its secret") from error
    except (exceptions.ReadTimeoutError, exceptions.ConnectTimeoutError) as error:
        raise Passing("no answer in time") from error
    except (exceptions.FlexibleChecksumError, ResponseParserError) as error:
        raise Passing("damaged answer") from error
    except (exceptions.HTTPClientError, exceptions.IncompleteReadError, HTTPError, ConnectionError) as error:
        raise Passing(f"cut connection: {type(error).__name__}") from error
    except S3UploadFailedError as error:
        if isinstance(error.__context__, exceptions.ClientError):
            raise _meant(error.__context__) from error
        raise Passing("cut connection: of a part") from error
    except (exceptions.BotoCoreError, ValueError) as error:
        raise Refused(f"not possible ({str(error).splitlines()[0][:200]})") from error


def _meant(error: exceptions.ClientError) -> Exception:
    code = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    reason = str(error.response.get("Error", {}).get("Code", code))
    if reason in ("SlowDown", "RequestTimeout", "Throttling"):
        return Passing(f"{code} {reason}")
    return meaning(code, reason if code in (401, 403) else f"{code}: {reason}")
