"""A back end that tells what is done with it.

Decided here and only here: what one call is, for counting and for logs. Nothing of an object's content is in
it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from casstore.backend.base import Backend, Buffer, Capabilities, Condition, Object, ObjectInfo

__all__ = ["Call", "CallLog", "TraceBackend"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One finished call of a method of a back end.

    ``key`` is the key, the prefix of a ``list``, or the first key of a ``delete``; ``size`` the bytes that
    were read or written, for ``delete`` the number of keys; ``error`` the name of the class of the error that
    ended it.
    """

    operation: str
    key: str
    size: int = 0
    error: str | None = None


class CallLog:
    """Collects calls: pass it as ``on_call``. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[Call] = []

    def __call__(self, call: Call) -> None:
        with self._lock:
            self._calls.append(call)

    @property
    def calls(self) -> list[Call]:
        """The calls so far, in the order in which they ended."""
        with self._lock:
            return list(self._calls)

    def count(self, operation: str, prefix: str = "") -> int:
        """How many calls of this operation there were with keys that start with ``prefix``."""
        return sum(call.operation == operation and call.key.startswith(prefix) for call in self.calls)

    def counts(self) -> Counter[str]:
        """Number of calls for each operation."""
        return Counter(call.operation for call in self.calls)

    def bytes(self, operation: str, prefix: str = "") -> int:
        """Sum of the sizes of the calls of this operation with keys that start with ``prefix``."""
        return sum(call.size for call in self.calls if call.operation == operation and call.key.startswith(prefix))

    def clear(self) -> None:
        """Forget the calls so far."""
        with self._lock:
            self._calls.clear()


class TraceBackend:
    """A ``Backend`` that reports every call to ``on_call`` when it has ended, and passes everything on
    unchanged.

    ``on_call`` is called from the thread of the caller; what it raises reaches the caller.
    """

    def __init__(self, inner: Backend, on_call: Callable[[Call], None]) -> None:
        self._inner = inner
        self._on_call = on_call

    @property
    def url(self) -> str:
        """The URL of the inner back end."""
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        """Those of the inner back end."""
        return self._inner.capabilities

    def get(self, key: str, *, limit: int | None = None) -> Object:
        """See ``Backend.get``."""
        return self._report("get", key, lambda: self._inner.get(key, limit=limit), lambda found: len(found.data))

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See ``Backend.read``."""
        return self._report("read", key, lambda: self._inner.read(key, offset, length), len)

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``Backend.put``."""
        return self._report(
            "put",
            key,
            lambda: self._inner.put(key, data, condition=condition),
            lambda _: sum(memoryview(part).nbytes for part in data),
        )

    def stat(self, key: str) -> ObjectInfo:
        """See ``Backend.stat``."""
        return self._report("stat", key, lambda: self._inner.stat(key), lambda _: 0)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """See ``Backend.list``. Reported when the listing starts, not when it ends."""
        return self._report("list", prefix, lambda: self._inner.list(prefix, after=after), lambda _: 0)

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Backend.delete``."""
        named = list(keys)
        self._report("delete", named[0] if named else "", lambda: self._inner.delete(named), lambda _: len(named))

    def local_path(self, key: str) -> str | None:
        """See ``Backend.local_path``."""
        return self._report("local_path", key, lambda: self._inner.local_path(key), lambda _: 0)

    def close(self) -> None:
        """See ``Backend.close``."""
        self._report("close", "", self._inner.close, lambda _: 0)

    def _report(self, operation: str, key: str, call: Callable[[], T], size: Callable[[T], int]) -> T:
        try:
            result = call()
        except BaseException as error:
            self._on_call(Call(operation, key, error=type(error).__name__))
            raise
        self._on_call(Call(operation, key, size(result)))
        return result
