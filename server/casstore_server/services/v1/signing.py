"""Addresses of the server itself at which one object can be read, or one put, by whoever has them.

Decided here and only here: what is signed, and with what: secrets that are derived from the keys in the database with
which id tokens are signed, so that all servers of it accept what one of them signed, and there is nothing else to make,
seal and change. Where a bucket is a folder of the server's machine, or its service can't be reached or has nobody who
signs, such an address stands in for one of the bucket.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable
from typing import Final, Protocol
from urllib.parse import quote, urlencode

from casstore.errors import AccessError
from casstore_server.identity.keys import Key

__all__ = ["KeySource", "Signing"]

_PURPOSE: Final = "casstore address of a blob 1"
_DENIED = "this address is not valid, or no longer"


class KeySource(Protocol):
    """What is asked of ``identity.keys.Keys``."""

    def signing(self) -> Key:
        """The key to sign with."""

    def find(self, kid: str) -> Key | None:
        """The key of this id, if what it signed is to be accepted."""


class Signing:
    """Makes and checks addresses. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def address(self, keys: KeySource, bucket: str, key: str, what: str, seconds: int) -> str:
        """Return the path and query of an address for ``seconds``; ``what`` says what it is for."""
        until = str(int(self._clock()) + seconds)
        by = keys.signing()
        query = {"for": what, "until": until, "by": by.kid, "sig": _signature(by, bucket, key, what, until)}
        return f"/api/v1/bucket/{quote(bucket, safe='')}/blob/{quote(key)}?{urlencode(query)}"

    def check(self, keys: KeySource, bucket: str, key: str, what: str, until: str, by: str, signature: str) -> None:
        """Raise ``AccessError`` unless this is what was signed, and still good."""
        signer = keys.find(by)
        right = "" if signer is None else _signature(signer, bucket, key, what, until)
        if not right or not hmac.compare_digest(right.encode(), signature.encode("utf-8", "replace")):
            raise AccessError(_DENIED, hint="Ask for another one.")
        if not until.isascii() or not until.isdigit() or int(until) < self._clock():
            raise AccessError(_DENIED, hint="Ask for another one.")


def _signature(by: Key, *parts: str) -> str:
    said = b"".join(len(part).to_bytes(8, "little") + part.encode("utf-8", "replace") for part in parts)
    return hmac.digest(by.derive(_PURPOSE), said, hashlib.sha256).hex()
