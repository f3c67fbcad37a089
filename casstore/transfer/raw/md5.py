"""Tags that are MD5 digests.

Decided here and only here: when a tag is taken for the MD5 of an object's bytes, and what follows when it is not.
S3 and what is compatible give such tags to objects that were stored in one piece, but with server-side encryption by
customers' keys a tag looks the same and is something else. So a tag that does not fit is not yet damage: the bytes are
read once more, and when they are the same both times, tags of this place are no MD5s and no longer looked at.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable

__all__ = ["Tags", "md5", "plain"]

_MD5 = re.compile(r"[0-9a-f]{32}", re.ASCII)


def md5(data: bytes = b"") -> hashlib._Hash:
    """Begin a digest."""
    return hashlib.md5(data, usedforsecurity=False)


def plain(tag: str) -> str | None:
    """The digest in a tag that can be one, else None."""
    text = tag.strip('"').lower()
    return text if _MD5.fullmatch(text) else None


class Tags:
    """What is known of the tags of one place. Thread-safe."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._lock = threading.Lock()
        self._trusted = True

    def expected(self, tag: str) -> str | None:
        """The MD5 that the bytes of an object with this tag must have, None when that can't be known."""
        return plain(tag) if self._trusted else None

    def distrust(self) -> None:
        """Tags turned out to be something else."""
        with self._lock:
            told, self._trusted = not self._trusted, False
        if not told:
            self._warn("ETags here are not MD5 digests (encryption by a key service?): sizes alone are compared")
