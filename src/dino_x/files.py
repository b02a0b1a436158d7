"""Files written whole or not at all, JSON read with a clear error, and texts without paths."""

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dino_x.errors import UserError

MOST_TEXT = 64 * 2**20  # bytes


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call ``write(temporary path)``, then rename: a crash leaves the old file or the new one.

    A link stays one, and what it names is replaced. A device or a pipe is written to as it is: to
    be replaced is the end of ``/dev/null``.

    Raises: OSError if it cannot be written; the old file is untouched.
    """
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if is_device(path):
        write(path)
        return
    temporary = path.with_name(f".{path.name}.partial")
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_device(path: Path) -> bool:
    """Whether a path is there and is neither a file nor a folder."""
    return path.exists() and not path.is_file() and not path.is_dir()


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk. Raises: OSError."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def open_to_group(folder: Path) -> None:
    """Give the files of a folder the permissions that new files have here.

    Some libraries write files that their owner alone may read, whatever the umask. Raises: OSError.
    """
    probe = folder / ".mode.partial"
    probe.touch()  # not by reading the umask: that would change it for other threads
    try:
        mode = stat.S_IMODE(probe.stat().st_mode)
    finally:
        probe.unlink()
    for file in folder.iterdir():
        if file.is_file():
            file.chmod(mode)


def check_place(path: Path) -> None:
    """Refuse a place that no file can be written to, before any work is done for it.

    Raises: UserError.
    """
    if not path.name:
        raise UserError("a file to write has no name: name one")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if is_device(path):
        return
    if not path.parent.is_dir():
        raise UserError(f"{path} cannot be written: there is no folder {path.parent}")
    temporary = path.with_name(f".{path.name}.partial")
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8, whole or not at all. Raises: OSError."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write an object as indented JSON in UTF-8, whole or not at all. Raises: OSError."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    if not text.isascii() and re.search("[\ud800-\udfff]", text):  # of names that are not UTF-8
        text = json.dumps(value, indent=2)
    write_text(path, text + "\n")


def read_text(path: Path) -> str:
    """A text file in UTF-8, of a size that texts have.

    Raises: OSError; ValueError for other bytes, or more of them, as a device gives without end.
    """
    with path.open("rb") as file:
        data = file.read(MOST_TEXT + 1)
    if len(data) > MOST_TEXT:
        raise OSError(errno.EFBIG, "it is larger than any text that is meant", str(path))
    return data.decode()


def parse_json(text: str | bytes) -> Any:
    """The object in a JSON text. Raises: ValueError, also for one that is nested without end."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_json(path: Path) -> Any:
    """The object in a JSON file.

    Raises: UserError if the file cannot be read or holds no valid JSON.
    """
    try:
        return parse_json(read_text(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} cannot be read: it is not valid JSON") from error


_PATH = re.compile(
    r"""(?<![\w.~/\\])           # not within a word or an address
    (?:~[\w-]*|[A-Za-z]:)?        # of a user, or a drive
    [/\\](?:[^\s/\\'":;,()<>][^/\\'":;,()<>\n]*[/\\])+  # folders, whose names may hold spaces
    ([^\s/\\'":;,()<>]*)         # the last part
    """,
    re.VERBOSE,
)


def without_paths(text: str) -> str:
    """A text for people elsewhere: of each absolute path only the last part is left.

    >>> without_paths("no such folder: /home/anna b/study/run; see https://example.org/a/b")
    'no such folder: run; see https://example.org/a/b'
    """
    return _PATH.sub(lambda found: found[1], text)


def last_part(name: str) -> str:
    """The last part of a path with folders; any other name as it is.

    >>> last_part("../anna/run/"), last_part("vit-small")
    ('run', 'vit-small')
    """
    return re.split(r"[/\\]", name.rstrip("/\\"))[-1]


def spelled_name(name: str | None) -> str | None:
    r"""A name as UTF-8 can hold it: a byte that is not UTF-8 is spelled ``\xe9``."""
    if name is None or (name.isascii() and "\\x" not in name):
        return name
    spelled = name.replace("\\x", "\\x5cx")
    return re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", spelled)


def name_of(name: str | None) -> str | None:
    """The opposite of ``spelled_name``."""
    if name is None or "\\x" not in name:
        return name
    return re.sub(r"\\x([0-9a-f]{2})", _byte, name)


def _byte(found: re.Match[str]) -> str:
    number = int(found[1], 16)
    return chr(number if number < 0x80 else 0xDC00 + number)
