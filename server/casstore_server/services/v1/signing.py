"""Addresses of the server itself at which one object can be read, or one put, by whoever has them.

Decided here and only here: what is signed, and with what: a key that servers which share a state folder share, made
when it is first needed. Where a bucket is a folder of the server's machine, or its service can't be reached or has
nobody who signs, such an address stands in for one of the bucket.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlencode

from casstore.errors import AccessError, StorageError

__all__ = ["KEY_FILE", "Signing"]

KEY_FILE = "transfer.key"
"""In the state folder."""
_BYTES = 32
_DENIED = "this address is not valid, or no longer"


class Signing:
    """Makes and checks addresses. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: dict[Path, bytes] = {}

    def address(self, folder: Path, bucket: str, key: str, what: str, seconds: int) -> str:
        """Return the path and query of an address for ``seconds``; ``what`` says what it is for."""
        until = str(int(self._clock()) + seconds)
        query = urlencode({"for": what, "until": until, "sig": self._signature(folder, bucket, key, what, until)})
        return f"/api/v1/bucket/{quote(bucket, safe='')}/blob/{quote(key)}?{query}"

    def check(self, folder: Path, bucket: str, key: str, what: str, until: str, signature: str) -> None:
        """Raise ``AccessError`` unless this is what was signed, and still good."""
        right = self._signature(folder, bucket, key, what, until)
        if not hmac.compare_digest(right.encode(), signature.encode("utf-8", "replace")):
            raise AccessError(_DENIED, hint="Ask for another one.")
        if not until.isascii() or not until.isdigit() or int(until) < self._clock():
            raise AccessError(_DENIED, hint="Ask for another one.")

    def _signature(self, folder: Path, *parts: str) -> str:
        said = b"".join(len(part).to_bytes(8, "little") + part.encode("utf-8", "replace") for part in parts)
        return hmac.digest(self._key(folder), said, hashlib.sha256).hex()

    def _key(self, folder: Path) -> bytes:
        with self._lock:
            if folder not in self._keys:
                self._keys[folder] = _read(folder / KEY_FILE) or _made(folder)
            return self._keys[folder]


def _read(path: Path) -> bytes | None:
    try:
        found = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path} can't be read: {error.strerror}") from None
    return found if len(found) == _BYTES else None


def _made(folder: Path) -> bytes:
    """Write the key, unless another server was faster."""
    path, temporary = folder / KEY_FILE, folder / f".{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
        try:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink()
    except OSError as error:
        raise StorageError(f"{path} can't be written: {error.strerror}") from None
    found = _read(path)
    if found is None:
        raise StorageError(f"{path} is damaged", hint="Remove it: another one is made.")
    return found
