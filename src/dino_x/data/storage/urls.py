"""Archives behind addresses: braces, wildcards and folders of object stores."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from dino_x.data.storage.archives import (
    Archive,
    address,
    archive_from,
    filesystem,
    reason_of,
    state_of,
)
from dino_x.data.storage.listing import is_archive
from dino_x.data.storage.member import Address
from dino_x.errors import UserError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?\[]")
_ASKED_AT_A_TIME = 16
_MOST = 1_000_000  # names that braces may stand for


def expand(text: str) -> list[str]:
    """The names that a name with braces stands for, by the rules of a shell.

    Raises: UserError for more than a million names.

    >>> expand("ct-{008..010}.tar"), expand("{a,b}/x.tar")
    (['ct-008.tar', 'ct-009.tar', 'ct-010.tar'], ['a/x.tar', 'b/x.tar'])
    """
    parts = _BRACES.split(text)  # text, inside, text, inside, ..., text
    choices = [_inside(part) if number % 2 else [part] for number, part in enumerate(parts)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _MOST:
        raise UserError(f"{text} stands for {count:,} names, more than {_MOST:,}")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _inside(text: str) -> list[str]:
    if span := _RANGE.fullmatch(text):
        first, last = (int(end) for end in span.groups())
        if abs(last - first) >= _MOST:
            raise UserError(f"{{{text}}} stands for more than {_MOST:,} names")
        step = 1 if last >= first else -1
        digits = len(span[1])
        return [f"{n:0{digits}d}" for n in range(first, last + step, step)]
    if "," in text:
        return text.split(",")
    return [f"{{{text}}}"]


def is_pattern(text: str) -> bool:
    """Whether a name has braces or wildcards."""
    return _WILD.search(text) is not None or expand(text) != [text]


def folder_of(path: Path) -> Path:
    """The folder that all files of an address lie in: the part before the first wildcard."""
    parts = path.parts
    for number, part in enumerate(parts):
        if is_pattern(part):
            return Address(*parts[:number])
    return Address(path.parent if is_archive(path.name) else path)


def find_archives(path: Path) -> Iterator[Archive]:
    """Find the archives behind an address, which may be an archive, a pattern or a folder.

    Raises: UserError if there are none, or if the store does not answer.
    """
    url = address(path)
    files = filesystem(path)
    files.invalidate_cache()
    with ThreadPoolExecutor(_ASKED_AT_A_TIME) as pool:
        try:
            archives = list(chain.from_iterable(pool.map(partial(_asked, files), expand(url))))
        except UserError:  # a thousand may be waiting, and the first does not exist
            pool.shutdown(cancel_futures=True)
            raise
    yield from archives
    if not archives:
        raise UserError(
            f"no archives in {url}: only .tar and .parquet files are read from an address;"
            " docs/archives.md says how to make them from a folder"
        )


def _asked(files: Any, url: str) -> list[Archive]:
    """Call `_archives`, and turn what goes wrong into a UserError."""
    try:
        return _archives(files, url)
    except FileNotFoundError:
        raise UserError(f"{url} does not exist") from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot read {url} ({reason_of(error)}): is the address right, and are you allowed"
            " to read it?"
        ) from None


def _archives(files: Any, url: str) -> list[Archive]:
    """The archives behind one address without braces."""
    if _WILD.search(url) and not (url.startswith("http") and "*" not in url):
        found = files.glob(url, detail=True)
    else:
        info = files.info(url)
        if info.get("type") != "directory":
            return [archive_from(Address(url), info)] if is_archive(url) else []
        found = files.find(url, detail=True)
    protocol = url.partition("://")[0]
    wanted = {}
    for name, info in sorted(found.items()):
        if info.get("type") == "directory" or not is_archive(name) or _hidden(name):
            continue
        whole = name if "://" in name else f"{protocol}://{name.lstrip('/')}"
        wanted[whole] = info
    with ThreadPoolExecutor(_ASKED_AT_A_TIME) as pool:
        return list(pool.map(_archive, wanted, wanted.values()))


def _archive(url: str, info: dict[str, Any]) -> Archive:
    """A listed archive; where the list does not give its state, the store is asked for it."""
    path = Address(url)
    if info.get("ETag") or info.get("etag"):
        return archive_from(path, info)
    return state_of(path)


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
