"""Objects in a bucket of an S3 server, through the `minio` SDK.

The key of an object is its name in the bucket. Everything used here is plain S3: signed requests, multipart uploads,
ranges, `start-after`, and `If-None-Match: *` for writes that must not replace.
"""

import asyncio
import base64
import hashlib
import itertools
import random
import re
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar
from xml.etree import ElementTree

import certifi
import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError

from tidemill import errors
from tidemill.artifacts import timing
from tidemill.artifacts.config import ArtifactsConfig
from tidemill.artifacts.stores.base import CHUNK, SMALL, Entry, Store, check_key, check_prefix, check_small

T = TypeVar("T")
THREADS = 16
ATTEMPTS = 3
"""How often a read is tried."""
BACKOFF = 0.1
"""Seconds before a read is tried again; doubled each time."""
CONNECT_TIMEOUT = 3.0
PART = 16 << 20
"""Smallest part of a multipart upload, in bytes; a smaller object is sent in one request."""
MOST_PARTS = 10_000
MOST_PUTS = 4
"""Large objects sent at a time: a part of each is in memory."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MISSING = ("NoSuchKey", "NoSuchObject", "ResourceNotFound")
_DENIED = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "RequestTimeTooSkewed")
_FULL = ("EntityTooLarge", "QuotaExceeded", "XMinioStorageFull", "InsufficientStorage")


class S3Store(Store):
    """Objects in one bucket.

    Args:
        client: the SDK, with retries switched off.
        http: its connections.
        bucket: name of the bucket.
        create_bucket: make the bucket when it does not exist.
    """

    def __init__(self, client: Minio, http: urllib3.PoolManager, bucket: str, *, create_bucket: bool = False) -> None:
        self._client = client
        self._http = http
        self._bucket = bucket
        self._create_bucket = create_bucket
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="s3")
        self._puts = asyncio.Semaphore(MOST_PUTS)
        self._checking: asyncio.Future[None] | None = None

    @classmethod
    def open(cls, config: ArtifactsConfig) -> Self:
        """The store at the endpoint of the settings."""
        for field in ("s3_endpoint", "s3_bucket", "s3_access_key", "s3_secret_key"):
            if not getattr(config, field):
                raise errors.invalid(field, "is required by the store `s3`")
        if not _BUCKET.fullmatch(config.s3_bucket):
            raise errors.invalid("s3_bucket", "must be 3 to 63 of a-z 0-9 . -")
        http = urllib3.PoolManager(
            maxsize=THREADS,
            # Reads are tried again below, writes nowhere.
            retries=False,
            timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, config.s3_timeout), read=config.s3_timeout),
            cert_reqs="CERT_REQUIRED",
            ca_certs=config.s3_ca_file or certifi.where(),
        )
        try:
            client = Minio(
                config.s3_endpoint,
                access_key=config.s3_access_key,
                secret_key=config.s3_secret_key,
                region=config.s3_region or None,
                secure=config.s3_secure,
                http_client=http,
            )
        except ValueError as error:
            raise errors.invalid("s3_endpoint", str(error)) from error
        return cls(client, http, config.s3_bucket, create_bucket=config.s3_create_bucket)

    async def start(self) -> None:
        """Nothing is on this machine."""

    async def _write(self, what: str, work: Callable[[], T]) -> T:
        """The result of `work`, done once in a thread, to its end."""

        def translated() -> T:
            with _translated(what):
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._threads, translated)

    async def _read(self, what: str, work: Callable[[], T]) -> T:
        """The result of `work`, done in a thread, several times if need be, within the caller's deadline."""
        return await _retried(lambda: _timed(what, self._write(what, work)))

    async def put(self, key: str, source: Path) -> None:
        """Send the bytes of a local file, in parts when there are many."""
        name = check_key(key)

        def put() -> None:
            with source.open("rb") as file:
                size = source.stat().st_size
                part = max(PART, -(-size // (MOST_PARTS << 20)) << 20)
                self._client.put_object(self._bucket, name, file, size, part_size=part, num_parallel_uploads=1)

        async with self._puts:
            await self._write(key, put)

    async def put_small(self, key: str, data: bytes) -> bool:
        """Send a few bytes if there is no such object yet; whether it was absent."""
        name = check_key(key)
        check_small(data)
        headers = {
            "If-None-Match": "*",
            "Content-MD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode(),
        }

        def put() -> bool:
            # The SDK cannot send this header with a body; a URL that it signed can be used with any.
            url = self._client.get_presigned_url("PUT", self._bucket, name, expires=timedelta(minutes=15))
            response = self._http.request("PUT", url, body=data, headers=headers)
            if response.status == 412:
                return False
            if response.status == 409:
                raise errors.Unavailable("somebody else writes the same object", reason="STORE_BUSY")
            if response.status >= 300:
                raise _error_in(response)
            return True

        return await self._write(key, put)

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on; a connection that breaks is begun again where it broke."""
        size = (await self.stat(key)).size
        if offset > size:
            raise errors.OutOfRange(f"offset {offset} lies beyond the end at {size}")
        end = size if length is None else min(size, offset + length)
        reader = _Reader(lambda at: self._client.get_object(self._bucket, key, at, end - at), offset, end)
        try:
            while chunk := await self._read(key, reader.read):
                yield chunk
        finally:
            try:
                self._threads.submit(reader.close)
            except RuntimeError:  # the store is closed
                reader.close()

    async def read_small(self, key: str) -> bytes:
        """All bytes of a small object, by one request."""
        name = check_key(key)

        def read() -> bytes:
            response = self._client.get_object(self._bucket, name)
            try:
                return bytes(response.read(SMALL + 1))
            finally:
                response.close()
                response.release_conn()

        data = await self._read(key, read)
        if len(data) > SMALL:
            raise errors.DataLoss(f"{key} is larger than it can have been", reason="OBJECT_DAMAGED")
        return data

    async def stat(self, key: str) -> Entry:
        """Describe one object."""
        name = check_key(key)
        return await self._read(key, lambda: _entry(self._client.stat_object(self._bucket, name)))

    async def entries(self, prefix: str, start_after: str = "", limit: int = 1000) -> list[Entry]:
        """At most `limit` objects whose key starts with `prefix`, in order of key."""
        check_prefix(prefix)

        def entries() -> list[Entry]:
            found = self._client.list_objects(self._bucket, prefix, recursive=True, start_after=start_after or None)
            return [_entry(item) for item in itertools.islice(found, limit)]

        return await self._read(prefix, entries)

    async def delete(self, key: str) -> None:
        """Delete an object; deleting what is absent changes nothing."""
        name = check_key(key)
        await self._write(key, lambda: self._client.remove_object(self._bucket, name))

    async def check(self) -> None:
        """Return when the bucket is there, or could be made. One request at a time, however often this is called."""
        if self._checking is None or self._checking.done():
            self._checking = asyncio.ensure_future(self._write("the bucket", self._look))
            self._checking.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._checking)

    def _look(self) -> None:
        if self._client.bucket_exists(self._bucket):
            return
        if not self._create_bucket:
            raise errors.Unavailable(f"there is no bucket {self._bucket!r}", reason="BUCKET_MISSING")
        try:
            self._client.make_bucket(self._bucket)
        except S3Error as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise

    async def close(self) -> None:
        """End the threads and the connections."""
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self._http.clear()


class _Reader:
    """Bytes `at` to `end` of one object, from a response that is opened at the first read and after each break."""

    def __init__(self, open: Callable[[int], Any], at: int, end: int) -> None:
        self._open = open
        self._at = at
        self._end = end
        self._response: Any = None
        self._closed = False
        self._lock = threading.Lock()

    def read(self) -> bytes:
        """The next piece; empty at the end."""
        with self._lock:
            if self._closed or self._at >= self._end:
                return b""
            try:
                if self._response is None:
                    self._response = self._open(self._at)
                chunk = bytes(self._response.read(min(CHUNK, self._end - self._at)))
            except BaseException:
                self._drop()
                raise
            if not chunk:
                self._drop()
                raise errors.Unavailable("the S3 server sent less than it has", reason="STORE_UNREACHABLE")
            self._at += len(chunk)
            return chunk

    def _drop(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response.release_conn()
            self._response = None

    def close(self) -> None:
        """Give the connection back."""
        with self._lock:
            self._closed = True
            self._drop()


def _entry(item: Any) -> Entry:
    return Entry(item.object_name, item.size, item.last_modified.timestamp())


async def _retried(work: Callable[[], Awaitable[T]]) -> T:
    for attempt in range(ATTEMPTS):
        try:
            return await work()
        except errors.Unavailable as error:
            pause = BACKOFF * 2**attempt * random.uniform(0.5, 1)
            left = timing.limit()
            hopeless = error.reason in ("BUCKET_MISSING", "STORE_DENIED") or (left is not None and left < 2 * pause)
            if hopeless or attempt == ATTEMPTS - 1:
                raise
            await asyncio.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


async def _timed(what: str, work: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(timing.limit()):
            return await work
    except TimeoutError as error:
        raise errors.Unavailable(
            f"{what} could not be read in time: the S3 server does not answer", reason="STORE_TIMEOUT"
        ) from error


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        raise _mapped(what, error.code or "", error.response.status) from error
    except ServerError as error:
        raise _mapped(what, "", error.status_code) from error
    except (InvalidResponseError, ElementTree.ParseError, ValueError) as error:  # a proxy's page, mostly
        raise errors.Unavailable(
            "what answers at the endpoint does not speak S3", reason="STORE_UNREACHABLE"
        ) from error
    except MinioException as error:
        raise errors.Internal(f"the SDK failed at {what}", reason="STORE_ERROR") from error
    except FileNotFoundError:  # a local file: not the server's fault
        raise
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise errors.Unavailable("the S3 server cannot be reached", reason="STORE_UNREACHABLE") from error


def _mapped(what: str, code: str, status: int) -> errors.TidemillError:
    if code in _MISSING:
        return errors.NotFound(f"{what} does not exist")
    if code == "NoSuchBucket":
        return errors.Unavailable("the bucket does not exist", reason="BUCKET_MISSING")
    if code in _DENIED or status in (401, 403):
        return errors.Unavailable("the S3 server refuses our credentials", reason="STORE_DENIED")
    if code in _FULL or status == 507:
        return errors.Exhausted("the S3 server has no space for this", reason="DISK_FULL")
    if code == "InvalidRange":
        return errors.OutOfRange(f"{what} is shorter than that")
    if status >= 500 or status == 429:
        return errors.Unavailable(f"the S3 server answered {code or status}", reason="STORE_BUSY")
    return errors.Internal(f"the S3 server answered {code or status} at {what}", reason="STORE_ERROR")


def _error_in(response: urllib3.BaseHTTPResponse) -> MinioException:
    try:
        return S3Error.fromxml(response)
    except (ElementTree.ParseError, UnicodeDecodeError, ValueError):
        return ServerError(f"status {response.status}", response.status)
