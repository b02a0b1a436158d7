"""Bytes of archives (tar and Parquet files), on a disk or in an object store.

An address such as ``s3://bucket/ct.tar`` is kept as a `Path`, whose double slash becomes one;
`address` restores it. What is behind an address is read through fsspec.

After an error that may pass, a read is tried again with growing pauses (fsspec's own file systems
differ in this: that of HTTP never tries again). If the error stays and the store still answers, the
error is the image's own. If the store does not answer, the run ends with one line: a lost store
must not look like thousands of unreadable images.
"""

from __future__ import annotations

import errno
import io
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

from dino_x.data.image import Unreadable
from dino_x.errors import UserError
from dino_x.machine.system import read_at

# Seconds to wait before the second try and before each later one: 7.5 s in all.
PAUSES = (0.5, 1.0, 2.0, 4.0)

# An archive in an object store is looked through, and a large member of it is read, in blocks of
# this size: 4 MB take about as long to transfer as a request has to wait anyway.
BLOCK_BYTES = 4 * 2**20
_BLOCKS_KEPT = 4

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+(?=[^/]|$)")
_PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs",
    "http": "aiohttp", "https": "aiohttp",
}  # fmt: skip
# The keys under which file systems report the state of an object; the first that is there counts.
_STATES = (
    *("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "updated", "mtime"),
    "created",
)
_PASSING = {errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ECONNRESET}
_OPEN_FILES = 128
_CONNECTIONS = 128


@dataclass(frozen=True, slots=True)
class Archive:
    """A file that holds many images, in the state in which it was looked through.

    Attributes:
        path: the path or the address of the file.
        size: its size in bytes.
        mtime_ns: when it was last changed; 0 in an object store.
        etag: how an object store identifies its state; None on a disk.
    """

    path: Path
    size: int
    mtime_ns: int = 0
    etag: str | None = None


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address, and not a path on a disk.

    >>> is_remote(Path("s3://bucket/ct.tar")), is_remote("/data/ct.tar")
    (True, False)
    """
    return _SCHEME.match(str(path)) is not None


def address(path: str | Path) -> str:
    """A path as the user wrote it: an address gets its two slashes back.

    >>> address(Path("s3://bucket/ct.tar")), address("/data/ct.tar")
    ('s3://bucket/ct.tar', '/data/ct.tar')
    """
    text = str(path)
    return _SCHEME.sub(r"\1://", text, count=1) if is_remote(text) else text


def location(path: Path) -> str:
    """The absolute path of a file, or its address."""
    return address(path) if is_remote(path) else os.path.abspath(path)


def filesystem(path: str | Path) -> Any:
    """The fsspec file system of an address. Raises UserError if it cannot be used."""
    return _filesystem(address(path).partition("://")[0])


@cache
def _filesystem(protocol: str) -> Any:
    import fsspec  # runs on a disk need not wait for this import

    settings: dict[str, Any] = {}
    if _PACKAGES.get(protocol) == "s3fs":  # its default allows only 10 fetches at a time
        of_user = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
        settings["config_kwargs"] = {"max_pool_connections": _CONNECTIONS} | of_user
    try:
        return fsspec.filesystem(protocol, **settings)
    except ImportError:
        package = _PACKAGES.get(protocol)
        needed = f"pip install {package}" if package else "fsspec's documentation names it"
        raise UserError(f"{protocol}:// needs a package that is not installed: {needed}") from None
    except ValueError:
        raise UserError(
            f"{protocol}:// is not a known kind of storage; known are s3://, gs://, hf://,"
            " https://, file://"
        ) from None
    except Exception as error:  # such as missing credentials
        raise UserError(f"cannot use {protocol}://: {reason_of(error)}") from None


def state_of(path: Path) -> Archive:
    """An archive in its present state. Raises OSError, or what fsspec raises."""
    if not is_remote(path):
        status = os.stat(path)
        return Archive(path, status.st_size, status.st_mtime_ns)
    info = filesystem(path).info(address(path))
    return archive_from(path, info)


def archive_from(path: Path, info: dict[str, Any]) -> Archive:
    """An archive as the `info` of its file system describes it."""
    etag = next((str(info[name]) for name in _STATES if info.get(name)), None)
    return Archive(path, int(info.get("size") or 0), 0, etag)


def read_range(archive: Archive, start: int, length: int) -> bytes:
    """Exactly `length` bytes of an archive, from `start` on.

    Raises:
        Unreadable: they cannot be read, though the store answers.
        UserError: the archive is gone, has changed, or its store does not answer. `raise_lost`
            raises it again.
    """
    try:
        return _read_range(archive, start, length)
    except UserError as error:
        _thread.lost = error
        raise


_thread = threading.local()


def none_lost() -> None:
    """Forget the UserError that `read_range` raised last in this thread."""
    _thread.lost = None


def raise_lost() -> None:
    """Raise the UserError that `read_range` raised last in this thread, once.

    It may have been lost in between: libraries that decode take any error for a damaged image.
    """
    lost: UserError | None = getattr(_thread, "lost", None)
    none_lost()
    if lost is not None:
        raise lost


def _read_range(archive: Archive, start: int, length: int) -> bytes:
    remote = is_remote(archive.path)
    read = _read_remote if remote else _read_local
    for pause in (*PAUSES, None):
        try:
            return read(archive, start, length)
        except (UserError, Unreadable, RecursionError):  # of those that called us
            raise
        except FileNotFoundError:
            raise UserError(
                f"{address(archive.path)} is gone: put it back, and {_RESUME}"
            ) from None
        except PermissionError as error:
            raise UserError(
                f"{address(archive.path)} may not be read ({reason_of(error)}): correct the"
                f" permissions or the credentials, and {_RESUME}"
            ) from None
        except Exception as error:
            may_pass = remote or getattr(error, "errno", None) in _PASSING
            if pause is not None and may_pass:
                time.sleep(pause)
                continue
            _check_there(archive, error)
            raise Unreadable(f"cannot be read: {reason_of(error)}") from None
    raise AssertionError("the last try returns or raises")


_RESUME = "continue the run with --resume: nothing is lost"


def reason_of(error: BaseException) -> str:
    """A phrase for an error without its message, which can hold an address with a secret."""
    phrase = getattr(error, "strerror", None)
    return str(phrase) if phrase else type(error).__name__


def _check_there(archive: Archive, error: BaseException) -> None:
    """Raise UserError unless the archive's store answers that the archive is there."""
    try:
        state_of(archive.path)
    except Exception:
        raise UserError(
            f"{address(archive.path)} cannot be read any more ({reason_of(error)}), and its store"
            f" does not answer, {1 + len(PAUSES)} tries in {sum(PAUSES):.3g} s; {_RESUME}"
        ) from None


def _changed(archive: Archive) -> UserError:
    return UserError(
        f"{address(archive.path)} has changed since its images were indexed: run `dino-x index`"
        " again, or start without an index"
    )


@lru_cache(maxsize=_OPEN_FILES)
def _opened(archive: Archive) -> io.FileIO:
    """The open file of an archive on a disk. When it is dropped here, its last reader closes it."""
    file = io.FileIO(archive.path, "r")
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != (archive.size, archive.mtime_ns):
        raise _changed(archive)
    return file


def _read_local(archive: Archive, start: int, length: int) -> bytes:
    file = _opened(archive)
    data = read_at(file.fileno(), length, start)
    while len(data) < length:
        more = read_at(file.fileno(), length - len(data), start + len(data))
        if not more:
            if os.fstat(file.fileno()).st_size != archive.size:
                raise _changed(archive)
            raise Unreadable("truncated: its archive ends before its last byte")
        data += more
    return data


@cache
def _confirmed(archive: Archive) -> None:
    """Raise UserError unless an object is as it was indexed; each process asks once."""
    if state_of(archive.path) != archive:
        raise _changed(archive)


def _read_remote(archive: Archive, start: int, length: int) -> bytes:
    _confirmed(archive)
    if length == 0:
        return b""
    url = address(archive.path)
    data: bytes = filesystem(url).cat_file(url, start=start, end=start + length)
    if len(data) > length:
        raise UserError(f"{url}: its server sends whole files only, not ranges of bytes")
    if len(data) < length:
        raise OSError(errno.EIO, "fewer bytes than requested")
    return data


Read = Callable[[int, int], bytes]  # from a place, and a number of bytes, to the bytes there


def reader_of(archive: Archive) -> Read:
    """What reads bytes of an archive for one thread: in ranges from a disk, in blocks from a store.

    It raises as `read_range` does. From a store it gives fewer bytes where the archive ends.
    """
    if is_remote(archive.path):
        return _reader_in_blocks(archive)
    return partial(read_range, archive)


def _reader_in_blocks(archive: Archive) -> Read:
    """What reads an archive in blocks and keeps the last few of them."""

    @lru_cache(maxsize=_BLOCKS_KEPT)
    def block(number: int) -> bytes:
        begin = number * BLOCK_BYTES
        return read_range(archive, begin, min(BLOCK_BYTES, archive.size - begin))

    def read(start: int, length: int) -> bytes:
        stop = min(start + length, archive.size)
        if start >= stop:
            return b""
        first, last = start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES
        data = b"".join(map(block, range(first, last + 1)))
        return data[start - first * BLOCK_BYTES : stop - first * BLOCK_BYTES]

    return read


class Span(io.RawIOBase):
    """A part of an archive as a file that can be read and sought in.

    Args:
        read: what reads bytes of the archive, see `reader_of`.
        start: where the part begins.
        length: its length in bytes.
    """

    name = ""  # pydicom asks for it

    def __init__(self, read: Read, start: int, length: int) -> None:
        super().__init__()
        self._read, self._start, self._length, self._at = read, start, length, 0

    def readable(self) -> bool:
        """Return True: this file can be read."""
        return True

    def seekable(self) -> bool:
        """Return True: this file can be sought in."""
        return True

    def tell(self) -> int:
        """The position of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position, also to one behind the end, as files allow; return it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "before the beginning")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as there are bytes; return their number."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._length - self._at))
        data = self._read(self._start + self._at, count) if count else b""
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


def opened_span(read: Read, start: int, length: int, buffer: int = 16_384) -> io.BufferedReader:
    """A part of an archive as a buffered file."""
    return io.BufferedReader(Span(read, start, length), buffer)


def forget() -> None:
    """Close all open archives and ask object stores again, as another process would."""
    _opened.cache_clear()
    _confirmed.cache_clear()
