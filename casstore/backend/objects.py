"""A back end in a bucket of an object storage service.

Decided here and only here: how a store's keys become keys of the service (the prefix, a slash, the key), and that only
legal keys pass, in both directions: a bucket holds other people's objects, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from casstore.backend.base import (
    MAX_KEY_LENGTH,
    Buffer,
    Capabilities,
    Condition,
    Matches,
    Object,
    ObjectInfo,
    validate_key,
    validate_prefix,
)
from casstore.errors import IntegrityError, PreconditionError, StorageError, UsageError
from casstore.remote.base import ObjectClient, RemoteInfo
from casstore.remote.urls import MAX_PATH

__all__ = ["ObjectBackend"]


class ObjectBackend:
    """A ``Backend`` below ``prefix`` (without a slash at either end; may be empty) of the bucket of ``client``.

    It owns the client. Whether the service keeps its promises about conditions is for ``probe`` to find out.
    """

    def __init__(self, client: ObjectClient, prefix: str = "") -> None:
        if len(prefix.encode()) > MAX_PATH - MAX_KEY_LENGTH - 1:
            raise UsageError(f"the path of a store is too long: {prefix[:80]!r}...")
        self._client = client
        self._prefix = f"{prefix}/" if prefix else ""
        self._closed = False

    @property
    def url(self) -> str:
        """The URL of the bucket, and the prefix."""
        return self._client.url + (f"/{self._prefix}".rstrip("/"))

    @property
    def capabilities(self) -> Capabilities:
        """Conditional writes as far as the service has them, no local files."""
        return Capabilities(conditional_put=True, local=False, probe=True)

    def get(self, key: str, *, limit: int | None = None) -> Object:
        """See ``Backend.get``."""
        return self._client.read(self._key(key), limit=limit)

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See ``Backend.read``."""
        whole = self._key(key)
        if length > 0 and not (offset < 0 and length > -offset):
            data = self._client.read(whole, offset=offset, length=length).data
            if len(data) == length:
                return data
            raise IntegrityError(f"{self.url}: {len(data)} bytes of {key} came; {length} were asked for")
        # No range of a request says "nothing", and none must go over the end.
        size = self._client.head(whole).size
        if length == 0 and -size <= offset <= size:
            return b""
        raise IntegrityError(f"{self.url}: {key} has {size} bytes; {length} from {offset} were asked for")

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``Backend.put``."""
        whole = self._key(key)
        if isinstance(condition, Matches) and not condition.etag:
            # An empty header is no condition to some services.
            raise PreconditionError(f"{self.url}: no state of {key} has an empty tag")
        return self._client.put(whole, [memoryview(part).cast("B") for part in data], condition=condition)

    def stat(self, key: str) -> ObjectInfo:
        """See ``Backend.stat``."""
        found = self._client.head(self._key(key))
        return ObjectInfo(key, found.size, found.mtime, found.etag)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """See ``Backend.list``. Objects whose names are no legal keys are passed over."""
        validate_prefix(prefix)
        self._check_open()
        start = self._prefix + after if after else ""
        return self._list(self._client.list(self._prefix + prefix, after=start), prefix, after)

    def _list(self, found: Iterator[RemoteInfo], prefix: str, after: str) -> Iterator[ObjectInfo]:
        for info in found:
            key = info.key.removeprefix(self._prefix)
            if not info.key.startswith(self._prefix + prefix) or key <= after:
                continue
            try:
                validate_key(key)
            except UsageError:
                continue
            yield ObjectInfo(key, info.size, info.mtime, info.etag)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Backend.delete``."""
        named = [self._key(key) for key in keys]
        if named:
            self._client.delete(named)

    def local_path(self, key: str) -> str | None:
        """Return None: there are no files."""
        self._key(key)
        return None

    def close(self) -> None:
        """See ``Backend.close``."""
        if not self._closed:
            self._closed = True
            self._client.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError(f"{self.url} was closed")

    def _key(self, key: str) -> str:
        validate_key(key)
        self._check_open()
        return self._prefix + key
