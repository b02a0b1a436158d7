"""Keys of patients and series: the same for what belongs together, and no way back to a name.

A key is a keyed hash (BLAKE2b) of the identifier with a salt: 32 random bytes that are made once
for a user and kept in a file that only the user may read. Without the salt a list of all possible
patient numbers could be hashed and compared; so it never enters an index, a run or a log. With it,
a second run over the same files finds the same keys.

Nothing may sort or sample by a key: the salt differs between users, and so would the training.
What needs an order takes the order in which the keys first appear.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import threading
from functools import lru_cache
from pathlib import Path

from dino_x.errors import UserError

SALT_BYTES = 32
_KEY_BYTES = 10  # 80 bits: among ten million series two collide with a chance of 4e-11

_lock = threading.Lock()
_salt: bytes | None = None


def key(kind: str, *parts: str) -> str | None:
    """A salted hash of an identifier, 20 hexadecimal digits.

    Args:
        kind: "patient" or "series": equal numbers of two kinds get different keys.
        parts: the identifier, and what makes it unique, such as who issued it.

    Returns: the key; None if the first part is empty, which says that it is not known.
    """
    parts = tuple(part.strip(" \0") for part in parts)
    if not parts[0]:
        return None
    return _hash(salt(), kind, parts)


@lru_cache(maxsize=4096)  # the files of one patient or series come one after another
def _hash(salt: bytes, kind: str, parts: tuple[str, ...]) -> str:
    # Each part with its length, so that ("ab", "c") and ("a", "bc") differ.
    message = "".join(f"{len(part)}:{part}" for part in parts).encode(errors="surrogatepass")
    person = kind.encode()
    return hashlib.blake2b(message, key=salt, person=person, digest_size=_KEY_BYTES).hexdigest()


def fingerprint() -> str:
    """A short hash of the salt, kept in an index: it tells salts apart and reveals none."""
    return hashlib.blake2b(b"", key=salt(), person=b"fingerprint", digest_size=8).hexdigest()


def salt_file() -> Path:
    """The file that keeps the salt: ``dino-x/salt`` in the user's folder of configurations."""
    folder = os.environ.get("XDG_CONFIG_HOME") or Path("~/.config").expanduser()
    return Path(folder, "dino-x", "salt")


def salt() -> bytes:
    """The user's salt, made at its first use.

    Where it can be neither read nor kept (no home, a read-only one) it lasts as long as the
    process: keys then still tell patients apart, and an index is made from the beginning.

    Raises: UserError if its file is damaged.
    """
    global _salt
    with _lock:
        if _salt is None:
            try:
                _salt = _kept(salt_file())
            except (OSError, RuntimeError):  # RuntimeError: there is no home
                _salt = secrets.token_bytes(SALT_BYTES)
        return _salt


def use_salt(value: bytes) -> None:
    """Use this salt from now on: that of the process which started this one."""
    global _salt
    with _lock:
        _salt = value


def _kept(path: Path) -> bytes:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_name(f".salt-{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(secrets.token_bytes(SALT_BYTES))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was first: take its salt
                os.link(new, path)
        finally:
            new.unlink(missing_ok=True)
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)
    value = path.read_bytes()
    if len(value) != SALT_BYTES:
        raise UserError(
            f"{path} is damaged ({len(value)} of {SALT_BYTES} bytes): remove it; patients then get"
            " new keys, and indexes are made from the beginning"
        )
    return value


def patient_key(number: str, issuer: str) -> str | None:
    """The key of a patient: that of the number, and that of the issuer if it is named.

    Numbers that stand for nobody, as de-identification leaves them, have none.
    """
    if is_placeholder(number):
        return None
    patient, by = key("patient", number), key("issuer", issuer)
    return f"{patient}-{by}" if patient and by else patient


def is_placeholder(number: str) -> bool:
    """Whether a PatientID is a word or a number that is written where there is none.

    >>> is_placeholder("Anonymous"), is_placeholder("0000"), is_placeholder("PAT-0000")
    (True, True, False)
    """
    bare = re.sub(r"[^A-Z0-9]", "", number.upper())
    return bool(number.strip(" \0")) and (not bare or set(bare) <= {"0", "X"} or bare in _NOBODY)


_NOBODY = {
    "ANON", "ANONYM", "ANONYMOUS", "ANONYMIZED", "ANONYMISED", "ANONYMIZE", "ANONYMOUSPATIENT",
    "ANONPATIENT", "DEIDENTIFIED", "DEID", "REMOVED", "REDACTED", "UNKNOWN", "UNKNOWNPATIENT",
    "NONE", "NULL", "NAN", "NA", "NOID", "NOPATIENTID", "PATIENT", "PATIENTID", "ID", "TEST",
    "TESTPATIENT", "DUMMY", "DEFAULT", "EMPTY", "UNDEFINED", "NOTAVAILABLE", "HIDDEN", "PSEUDONYM",
    "NONAME", "NOBODY",
}  # fmt: skip
