"""Bytes of shards (tar and Parquet files), on a disk or in an object store.

An address such as ``s3://bucket/ct.tar`` is kept as a `Path`, whose double slash becomes one;
`address` gives it back as it was. What is behind an address is read through fsspec.

Errors that pass are tried again with growing pauses. One that stays is the image's own if the store
still answers; if it does not, the run ends with a line: a store that is lost must not look like
thousands of unreadable images.
"""

from __future__ import annotations

import errno
import io
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from dino_x.data.image import Unreadable
from dino_x.errors import UserError

# Seconds before the second try and each later one: 7.5 s in all.
PAUSES = (0.5, 1.0, 2.0, 4.0)

# What is read at once from an object store while a shard is looked through, or of a large member:
# 4 MB take about as long as a request has to wait anyway.
BLOCK_BYTES = 4 * 2**20
_BLOCKS_KEPT = 4

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+(?=[^/]|$)")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
# What tells the state of an object, by the names that file systems have for it: the first is taken.
_STATES = (
    *("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "updated", "mtime"),
    "created",
)
_PASSING = {errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ECONNRESET}
_OPEN_FILES = 128
_CONNECTIONS = 128


@dataclass(frozen=True, slots=True)
class Archive:
    """A file that holds many images, in the state that it was looked through.

    Attributes:
        path: of the file, or its address.
        size: in bytes.
        mtime_ns: when it was last changed; 0 in an object store.
        etag: what an object store says of its state; None on a disk.
    """

    path: Path
    size: int
    mtime_ns: int = 0
    etag: str | None = None


def is_remote(path: str | Path) -> bool:
    """Whether it is an address and no path on a disk.

    >>> is_remote(Path("s3://bucket/ct.tar")), is_remote("/data/ct.tar")
    (True, False)
    """
    return _SCHEME.match(str(path)) is not None


def address(path: str | Path) -> str:
    """A path as it was written: an address with two slashes, other paths as they are.

    >>> address(Path("s3://bucket/ct.tar")), address("/data/ct.tar")
    ('s3://bucket/ct.tar', '/data/ct.tar')
    """
    text = str(path)
    return _SCHEME.sub(r"\1://", text, count=1) if is_remote(text) else text


def location(path: Path) -> str:
    """Where a file is, whatever the folder that one is in: its whole path, or its address."""
    return address(path) if is_remote(path) else os.path.abspath(path)


def filesystem(path: str | Path) -> Any:
    """The fsspec file system of an address. Raises UserError if it cannot be used."""
    return _filesystem(address(path).partition("://")[0])


@cache
def _filesystem(protocol: str) -> Any:
    import fsspec  # half a second that runs on a disk need not wait for

    settings: dict[str, Any] = {}
    if _EXTRAS.get(protocol) == "s3":  # or no more than 10 are fetched at a time
        of_user = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
        settings["config_kwargs"] = {"max_pool_connections": _CONNECTIONS} | of_user
    try:
        return fsspec.filesystem(protocol, **settings)
    except ImportError:
        extra = _EXTRAS.get(protocol)
        how = f"dino-x-ssl[{extra}]" if extra else f"what fsspec needs for {protocol}"
        raise UserError(
            f"{protocol}:// needs a package that is not installed: pip install '{how}'"
        ) from None
    except ValueError:
        raise UserError(
            f"{protocol}:// is no storage that is known: try s3://, gs://, hf://, https://, file://"
        ) from None
    except Exception as error:  # credentials that are not there, and the like
        raise UserError(f"cannot use {protocol}://: {reason_of(error)}") from None


def state_of(path: Path) -> Archive:
    """A shard in the state that it is in now. Raises OSError, or what fsspec raises."""
    if not is_remote(path):
        status = os.stat(path)
        return Archive(path, status.st_size, status.st_mtime_ns)
    info = filesystem(path).info(address(path))
    return shard_from(path, info)


def shard_from(path: Path, info: dict[str, Any]) -> Archive:
    """A shard from what its file system says of it."""
    etag = next((str(info[name]) for name in _STATES if info.get(name)), None)
    return Archive(path, int(info.get("size") or 0), 0, etag)


def read_range(shard: Archive, start: int, length: int) -> bytes:
    """Some bytes of a shard, all of them.

    Raises:
        Unreadable: they cannot be read, though the store answers.
        UserError: the shard is gone, has changed, or its store does not answer. It is kept for
            `raise_lost`, too.
    """
    try:
        return _read_range(shard, start, length)
    except UserError as error:
        _thread.lost = error
        raise


_thread = threading.local()


def none_lost() -> None:
    """Forget what `read_range` raised in this thread."""
    _thread.lost = None


def raise_lost() -> None:
    """Raise what `read_range` raised last in this thread, once.

    Libraries that decode, and readers around them, take any error for damage of the image.
    """
    lost: UserError | None = getattr(_thread, "lost", None)
    none_lost()
    if lost is not None:
        raise lost


def _read_range(shard: Archive, start: int, length: int) -> bytes:
    remote = is_remote(shard.path)
    read = _read_remote if remote else _read_local
    for pause in (*PAUSES, None):
        try:
            return read(shard, start, length)
        except (UserError, Unreadable):
            raise
        except FileNotFoundError:
            raise UserError(f"{address(shard.path)} is gone; put it back{_RESUME}") from None
        except PermissionError as error:
            raise UserError(
                f"{address(shard.path)} may not be read ({reason_of(error)}): mend the"
                f" permissions or the credentials{_RESUME}"
            ) from None
        except Exception as error:
            passing = remote or getattr(error, "errno", None) in _PASSING
            if pause is not None and passing:
                time.sleep(pause)
                continue
            _check_there(shard, error)
            raise Unreadable(f"cannot be read: {reason_of(error)}") from None
    raise AssertionError("the last try returns or raises")


_RESUME = "; nothing is lost: go on with --resume"


def reason_of(error: BaseException) -> str:
    """The kind of an error and its system's phrase; messages can hold addresses with secrets."""
    phrase = getattr(error, "strerror", None)
    return str(phrase) if phrase else type(error).__name__


def _check_there(shard: Archive, error: BaseException) -> None:
    """Raise UserError if the shard's store does not even say that the shard is there."""
    try:
        state_of(shard.path)
    except Exception:
        raise UserError(
            f"{address(shard.path)} cannot be read any more ({reason_of(error)}), and its store"
            f" does not answer, {1 + len(PAUSES)} tries in {sum(PAUSES):.3g} s{_RESUME}"
        ) from None


def _changed(shard: Archive) -> UserError:
    return UserError(
        f"{address(shard.path)} has changed since its images were indexed: run `dino-x index`"
        " again, or start without an index, which looks at it anew"
    )


@lru_cache(maxsize=_OPEN_FILES)
def _opened(shard: Archive) -> io.FileIO:
    """The open file of a shard on a disk. One that is dropped closes when nobody reads it."""
    file = io.FileIO(shard.path, "r")
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != (shard.size, shard.mtime_ns):
        raise _changed(shard)
    return file


def on_disk(shard: Archive) -> io.FileIO:
    """The open file of a shard on a disk; nobody may rely on its position. Raises UserError."""
    read_range(shard, 0, 0)  # which says what is wrong
    return _opened(shard)


def _read_local(shard: Archive, start: int, length: int) -> bytes:
    file = _opened(shard)
    data = os.pread(file.fileno(), length, start)
    while len(data) < length:
        more = os.pread(file.fileno(), length - len(data), start + len(data))
        if not more:
            if os.fstat(file.fileno()).st_size != shard.size:
                raise _changed(shard)
            raise Unreadable("truncated: its shard ends before it")
        data += more
    return data


@cache
def _confirmed(shard: Archive) -> None:
    """Raise UserError unless an object is as it was indexed; asked once a process."""
    if state_of(shard.path) != shard:
        raise _changed(shard)


def _read_remote(shard: Archive, start: int, length: int) -> bytes:
    _confirmed(shard)
    if length == 0:
        return b""
    url = address(shard.path)
    data: bytes = filesystem(url).cat_file(url, start=start, end=start + length)
    if len(data) > length:
        raise UserError(f"{url}: its server sends whole files only, and no ranges of bytes")
    if len(data) < length:
        raise OSError(errno.EIO, "fewer bytes came than were asked for")
    return data


class Blocks:
    """A shard's bytes, read in blocks of which the last few are kept. For one thread at a time."""

    def __init__(self, shard: Archive) -> None:
        self.shard = shard
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def __call__(self, start: int, length: int) -> bytes:
        """Bytes from `start` on, as many as there are up to `length`."""
        stop = min(start + length, self.shard.size)
        if start >= stop:
            return b""
        first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        data = b"".join(self._block(number) for number in range(first, last + 1))
        return data[start - first * BLOCK_BYTES : stop - first * BLOCK_BYTES]

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            begin = number * BLOCK_BYTES
            length = min(BLOCK_BYTES, self.shard.size - begin)
            self._blocks[number] = read_range(self.shard, begin, length)
            if len(self._blocks) > _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]


def reader_of(shard: Archive) -> Callable[[int, int], bytes]:
    """What reads bytes of a shard for one thread: ranges from a disk, blocks from a store."""
    return Blocks(shard) if is_remote(shard.path) else lambda s, n: read_range(shard, s, n)


class Span(io.RawIOBase):
    """A part of a shard as a file that can be read and sought in.

    Args:
        read: bytes of the shard from a place on, see `reader_of`.
        start: where the part begins.
        length: how long it is.
    """

    def __init__(self, read: Callable[[int, int], bytes], start: int, length: int) -> None:
        super().__init__()
        self._read, self._start, self._length, self._at = read, start, length, 0

    name = ""  # pydicom asks for it

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Where the next byte comes from."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; one behind the end is allowed, as in files."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there are bytes; how many they were."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._length - self._at))
        data = self._read(self._start + self._at, count) if count else b""
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def opened_span(
    read: Callable[[int, int], bytes], start: int, length: int, buffer: int = 16_384
) -> io.BufferedReader:
    """A part of a shard as a buffered file."""
    return io.BufferedReader(Span(read, start, length), buffer)


def forget() -> None:
    """Close what is open and ask object stores anew, as another process would."""
    _opened.cache_clear()
    _confirmed.cache_clear()
