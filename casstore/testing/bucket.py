"""A bucket in memory for tests of what works on plain objects.

Decided here and only here: a service that takes any key, gives tags that are MD5 digests as S3 does, and remembers what
it was asked. Tests override a method to make it fail, lie or change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

from casstore.errors import NotFoundError, PreconditionError
from casstore.model import Buffer
from casstore.remote.base import Advance, Condition, Object, RemoteInfo, check_limit

__all__ = ["MemoryBucket"]


class MemoryBucket:
    """Implements ``ObjectClient``, without conditions of ``put``.

    ``reads`` has key and offset of each request, ``puts`` the keys; ``salt`` makes tags that are no digests.
    """

    url = "s3://double"

    def __init__(self, objects: dict[str, bytes] | None = None) -> None:
        self.objects = dict(objects or {})
        self.reads: list[tuple[str, int]] = []
        self.puts: list[str] = []
        self.closed = False
        self.salt = b""

    def tag(self, key: str) -> str:
        """The tag of an object."""
        return hashlib.md5(self.objects[key] + self.salt, usedforsecurity=False).hexdigest()

    def info(self, key: str) -> RemoteInfo:
        """What a listing says of an object."""
        return RemoteInfo(key, len(self.objects[key]), 1700000000.0, self.tag(key))

    def head(self, key: str) -> RemoteInfo:
        """See ``ObjectClient``."""
        if key not in self.objects:
            raise NotFoundError(f"{key} does not exist")
        return self.info(key)

    def read(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
        limit: int | None = None,
    ) -> Object:
        """See ``ObjectClient``."""
        self.reads.append((key, offset))
        if key not in self.objects:
            raise NotFoundError(f"{key} does not exist")
        if if_match is not None and if_match != self.tag(key):
            raise PreconditionError(f"{key} was changed meanwhile")
        data = self.objects[key][offset : None if length is None else offset + length]
        check_limit(key, len(data), limit)
        return Object(data, self.tag(key))

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``ObjectClient``."""
        self.puts.append(key)
        self.objects[key] = b"".join(bytes(part) for part in data)
        return self.tag(key)

    def upload(self, key: str, source: BinaryIO, *, size: int | None = None, advance: Advance | None = None) -> str:
        """See ``ObjectClient``."""
        data = b""
        while block := source.read(1 << 20):
            data += block
            if advance is not None:
                advance(len(block))
        return self.put(key, [data])

    def list(self, prefix: str, *, after: str = "", recursive: bool = True) -> Iterator[RemoteInfo]:
        """See ``ObjectClient``."""
        shown: set[str] = set()
        for key in sorted(self.objects, key=lambda key: key.encode("utf-8", "surrogatepass")):
            if not key.startswith(prefix) or key <= after:
                continue
            head, slash, _ = key[len(prefix) :].partition("/")
            if recursive or not slash:
                yield self.info(key)
            elif (folder := prefix + head + "/") not in shown:
                shown.add(folder)
                yield RemoteInfo(folder, 0, 0.0, "")

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectClient``."""
        for key in keys:
            self.objects.pop(key, None)

    def close(self) -> None:
        """See ``ObjectClient``."""
        self.closed = True
