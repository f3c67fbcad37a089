"""A back end in the memory of this process, for tests and for trying things out.

Decided here and only here: how ``memory://name`` is shared. Everybody in this process who opens the same name
sees the same objects; they are gone when the process ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence

from casstore.backend.base import (
    Absent,
    Buffer,
    Capabilities,
    Condition,
    Matches,
    Object,
    ObjectInfo,
    check_limit,
    validate_key,
    validate_prefix,
)
from casstore.errors import IntegrityError, NotFoundError, PreconditionError, StorageError
from casstore.hashing import digest

__all__ = ["MemoryBackend"]


class _Space:
    """The objects of one name: key -> (bytes, time)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.objects: dict[str, tuple[bytes, float]] = {}


_spaces: dict[str, _Space] = {}
_spaces_lock = threading.Lock()


class MemoryBackend:
    """A ``Backend`` over a dictionary. Without a name it is nobody else's."""

    def __init__(self, name: str = "") -> None:
        self._name = name
        self._closed = False
        if name:
            with _spaces_lock:
                self._space = _spaces.setdefault(name, _Space())
        else:
            self._space = _Space()

    @staticmethod
    def exists(name: str) -> bool:
        """Whether somebody opened this name before."""
        with _spaces_lock:
            return name in _spaces

    @property
    def url(self) -> str:
        """``memory://<name>``."""
        return f"memory://{self._name}"

    @property
    def capabilities(self) -> Capabilities:
        """Conditional writes, no local files."""
        return Capabilities(conditional_put=True, local=False)

    def get(self, key: str, *, limit: int | None = None) -> Object:
        """See ``Backend.get``."""
        data, _ = self._find(key)
        check_limit(f"{self.url}: {key}", len(data), limit)
        return Object(data, _tag(data))

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See ``Backend.read``."""
        data, _ = self._find(key)
        start = offset if offset >= 0 else len(data) + offset
        if length < 0 or start < 0 or start + length > len(data):
            raise IntegrityError(f"{self.url}: {key} has {len(data)} bytes; {length} from {offset} were asked for")
        return data[start : start + length]

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``Backend.put``."""
        self._check(key)
        whole = b"".join(data)
        tag = _tag(whole)
        with self._space.lock:
            old = self._space.objects.get(key)
            if isinstance(condition, Absent) and old is not None:
                raise PreconditionError(f"{self.url}: {key} exists already")
            if isinstance(condition, Matches) and (old is None or _tag(old[0]) != condition.etag):
                raise PreconditionError(f"{self.url}: {key} was changed meanwhile")
            self._space.objects[key] = (whole, time.time())
        return tag

    def stat(self, key: str) -> ObjectInfo:
        """See ``Backend.stat``."""
        data, mtime = self._find(key)
        return ObjectInfo(key, len(data), mtime)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """See ``Backend.list``."""
        validate_prefix(prefix)
        self._check_open()
        with self._space.lock:
            found = [
                ObjectInfo(key, len(data), mtime)
                for key, (data, mtime) in self._space.objects.items()
                if key > after and key.startswith(prefix)
            ]
        found.sort(key=lambda info: info.key)
        return iter(found)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Backend.delete``."""
        for key in keys:
            self._check(key)
            with self._space.lock:
                self._space.objects.pop(key, None)

    def local_path(self, key: str) -> str | None:
        """Return None: there are no files."""
        self._check(key)
        return None

    def close(self) -> None:
        """See ``Backend.close``. The objects stay for others of the same name."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self.url} was closed")

    def _check(self, key: str) -> None:
        validate_key(key)
        self._check_open()

    def _find(self, key: str) -> tuple[bytes, float]:
        self._check(key)
        with self._space.lock:
            found = self._space.objects.get(key)
        if found is None:
            raise NotFoundError(f"{self.url}: no object {key}")
        return found


def _tag(data: bytes) -> str:
    return digest(data).hex()
