"""One writer, where the service has no conditional writes.

Decided here and only here: how conditions are kept by a machine alone. It looks at the object, compares and writes,
under a lock that all its processes share; that holds because nobody else is let write. Who may is decided by whoever
makes this (``casstore.repo.single``), and asked anew before every write that changes or removes what was there.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from casstore.backend.base import (
    Absent,
    Backend,
    Buffer,
    Capabilities,
    Condition,
    Matches,
    Object,
    ObjectInfo,
    validate_key,
)
from casstore.errors import NotFoundError, PreconditionError, StorageError

__all__ = ["SingleWriterBackend"]

_LOCKS = 64


class SingleWriterBackend:
    """A ``Backend`` that keeps conditions over one that does not.

    ``lock_dir`` is a folder on this machine's own disk, made when it is first needed. ``permit`` raises
    ``AccessError`` unless this is the writer; with ``fresh`` it has to ask the store itself.
    """

    def __init__(self, inner: Backend, lock_dir: str, permit: Callable[[bool], None]) -> None:
        self._inner = inner
        self._lock_dir = lock_dir
        self._permit = permit

    @property
    def inner(self) -> Backend:
        """The back end below."""
        return self._inner

    @property
    def url(self) -> str:
        """The URL of the inner back end."""
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        """Those of the inner back end; conditions hold among all who may write."""
        return Capabilities(conditional_put=True, local=self._inner.capabilities.local)

    def get(self, key: str, *, limit: int | None = None) -> Object:
        """See ``Backend.get``."""
        return self._inner.get(key, limit=limit)

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See ``Backend.read``."""
        return self._inner.read(key, offset, length)

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``Backend.put``. ``AccessError`` when somebody else is the writer."""
        validate_key(key)
        self._permit(False)
        if condition is None:
            # New objects under new names: one too many is garbage, and costs the store nothing.
            with self._locked(key):
                return self._inner.put(key, data)
        with self._locked(key):
            self._permit(True)
            self._expect(key, condition)
            return self._inner.put(key, data)

    def _expect(self, key: str, condition: Condition) -> None:
        try:
            if isinstance(condition, Absent):
                self._inner.stat(key)
                raise PreconditionError(f"{self.url}: {key} exists already")
            if isinstance(condition, Matches) and self._inner.get(key).etag != condition.etag:
                raise PreconditionError(f"{self.url}: {key} was changed meanwhile")
        except NotFoundError:
            if isinstance(condition, Matches):
                raise PreconditionError(f"{self.url}: {key} does not exist") from None

    def stat(self, key: str) -> ObjectInfo:
        """See ``Backend.stat``."""
        return self._inner.stat(key)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """See ``Backend.list``."""
        return self._inner.list(prefix, after=after)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Backend.delete``. ``AccessError`` when somebody else is the writer."""
        named = [validate_key(key) for key in keys]
        if not named:
            return
        self._permit(True)
        with contextlib.ExitStack() as held:
            for number in sorted({_number(key) for key in named}):
                held.enter_context(self._lock(number))
            self._inner.delete(named)

    def local_path(self, key: str) -> str | None:
        """See ``Backend.local_path``."""
        return self._inner.local_path(key)

    def close(self) -> None:
        """See ``Backend.close``."""
        self._inner.close()

    def _locked(self, key: str) -> contextlib.AbstractContextManager[None]:
        return self._lock(_number(key))

    @contextlib.contextmanager
    def _lock(self, number: int) -> Iterator[None]:
        """Keep all processes and threads of this machine from writing what has this number."""
        try:
            os.makedirs(self._lock_dir, mode=0o700, exist_ok=True)
            fd = os.open(
                os.path.join(self._lock_dir, f"{number:02x}"),
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW,
                0o600,
            )
        except OSError as error:
            raise StorageError(f"can't lock {self._lock_dir}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _number(key: str) -> int:
    return zlib.crc32(key.encode("ascii")) % _LOCKS
