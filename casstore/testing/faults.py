"""Back ends and clients of object storage that fail on demand, always at the same place.

Decided here and only here: the faults that a back end, or a client, is tested with. A plan names the number of the
call that it hits, so that a test can walk through all calls of an operation: run it once with an empty plan, take
``calls``, and run it again for every number.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import BinaryIO, TypeVar

from casstore.backend.base import Backend, Buffer, Capabilities, Condition, Object, ObjectInfo
from casstore.errors import OutOfSpaceError, StorageError, TransientError
from casstore.remote.base import Advance, ObjectClient, RemoteInfo

__all__ = ["ALL_OPERATIONS", "Fault", "FaultBackend", "FaultClient", "FaultPlan", "InjectedCrash"]

ALL_OPERATIONS = frozenset(
    {"get", "read", "put", "stat", "list", "delete", "local_path"}  # of a back end
    | {"head", "upload"}  # of a client, besides
)
_WRITING = frozenset({"put", "upload"})
_DAMAGED = frozenset({"get", "read", "put"})

T = TypeVar("T")


class Fault(StrEnum):
    """What happens to a call."""

    ERROR_BEFORE = "error_before"
    """``StorageError``, and nothing was done."""
    ERROR_AFTER = "error_after"
    """It was done, but the reply is lost: ``StorageError``."""
    TRANSIENT = "transient"
    """``TransientError``, and nothing was done: what a client tries again."""
    LOST = "lost"
    """It was done, but the reply is lost: ``TransientError``."""
    DELAY = "delay"
    """It is done after ``FaultPlan.seconds``."""
    STALL = "stall"
    """Nothing happens until the test calls ``release()``; then it is done."""
    CRASH_BEFORE = "crash_before"
    """The process dies: ``InjectedCrash``, now and at every later call. Nothing was done."""
    CRASH_AFTER = "crash_after"
    """The process dies right after the effect."""
    NO_SPACE = "no_space"
    """``OutOfSpaceError`` from a put or upload, nothing was done; other operations are not hit."""
    TRUNCATE = "truncate"
    """The second half of the bytes is gone: silently, from what is read or what is stored."""
    FLIP = "flip"
    """One bit is another: silently, in what is read or what is stored."""


class InjectedCrash(BaseException):
    """The end of the process. No ``except Exception`` stops it, as none would stop ``kill -9``."""


@dataclass(frozen=True, slots=True)
class FaultPlan:
    """Which calls are hit: number ``at`` (from 1) and the ``times - 1`` after it; 0 hits none.

    Only calls of ``operations`` whose key starts with ``prefix`` are counted. ``bit`` is the bit that
    ``FLIP`` turns, counted from the start of the bytes and taken modulo their length.
    """

    at: int = 0
    fault: Fault = Fault.ERROR_BEFORE
    times: int = 1
    operations: frozenset[str] = field(default=ALL_OPERATIONS)
    prefix: str = ""
    bit: int = 0
    seconds: float = 0.01


class _Faulty:
    """What the two have in common: counting calls, and hitting them."""

    def __init__(self, plan: FaultPlan | None) -> None:
        self._plan = plan or FaultPlan()
        self._lock = threading.Lock()
        self._calls = 0
        self._hits = 0
        self._dead = False
        self._stalled = threading.Event()
        self._released = threading.Event()

    @property
    def calls(self) -> int:
        """How many calls the plan has counted."""
        return self._calls

    @property
    def hits(self) -> int:
        """How many calls were hit. A test that expects a fault checks it."""
        return self._hits

    def wait_stalled(self, timeout: float) -> bool:
        """Wait until a call stands still; whether one does."""
        return self._stalled.wait(timeout)

    def release(self) -> None:
        """Let go what stands still, now and later."""
        self._released.set()

    def _hit(self, operation: str, key: str) -> Fault | None:
        """Count a call; the fault that hits it, if one does."""
        plan = self._plan
        with self._lock:
            if self._dead:
                raise InjectedCrash(f"{operation} {key}: this process has ended")
            if operation not in plan.operations or not key.startswith(plan.prefix):
                return None
            self._calls += 1
            if not plan.at <= self._calls < plan.at + plan.times or not plan.at:
                return None
            if plan.fault is Fault.NO_SPACE and operation not in _WRITING:
                return None
            if plan.fault in {Fault.TRUNCATE, Fault.FLIP} and operation not in _DAMAGED:
                return None
            self._hits += 1
            self._dead = plan.fault in {Fault.CRASH_BEFORE, Fault.CRASH_AFTER}
            return plan.fault

    def _call(
        self, operation: str, key: str, call: Callable[[], T], damage: Callable[[T, Fault], T] | None = None
    ) -> T:
        fault = self._hit(operation, key)
        result = self._run(operation, key, fault, call)
        if damage is not None and fault in {Fault.TRUNCATE, Fault.FLIP}:
            return damage(result, fault)
        return result

    def _run(self, operation: str, key: str, fault: Fault | None, call: Callable[[], T]) -> T:
        what = f"injected at call {self._calls}: {operation} {key}"
        if fault is Fault.ERROR_BEFORE:
            raise StorageError(what)
        if fault is Fault.NO_SPACE:
            raise OutOfSpaceError(what)
        if fault is Fault.TRANSIENT:
            raise TransientError(what)
        if fault is Fault.CRASH_BEFORE:
            raise InjectedCrash(what)
        if fault is Fault.DELAY:
            self._released.wait(self._plan.seconds)
        if fault is Fault.STALL:
            self._stalled.set()
            self._released.wait()
        result = call()
        if fault is Fault.LOST:
            raise TransientError(f"{what} (it was done)")
        if fault is Fault.ERROR_AFTER:
            raise StorageError(f"{what} (it was done)")
        if fault is Fault.CRASH_AFTER:
            raise InjectedCrash(f"{what} (it was done)")
        return result

    def _damaged(self, data: bytes, fault: Fault) -> bytes:
        if fault is Fault.TRUNCATE or not data:
            return data[: len(data) // 2]
        changed = bytearray(data)
        place = self._plan.bit % (len(changed) * 8)
        changed[place // 8] ^= 1 << place % 8
        return bytes(changed)


class FaultBackend(_Faulty):
    """A ``Backend`` that does what its plan says, and passes everything else on. Thread-safe."""

    def __init__(self, inner: Backend, plan: FaultPlan | None = None) -> None:
        super().__init__(plan)
        self._inner = inner

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

        def damage(found: Object, fault: Fault) -> Object:
            return Object(self._damaged(found.data, fault), found.etag)

        return self._call("get", key, lambda: self._inner.get(key, limit=limit), damage)

    def read(self, key: str, offset: int, length: int) -> bytes:
        """See ``Backend.read``."""
        return self._call("read", key, lambda: self._inner.read(key, offset, length), self._damaged)

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``Backend.put``."""
        fault = self._hit("put", key)
        if fault in {Fault.TRUNCATE, Fault.FLIP}:
            data = [self._damaged(b"".join(data), fault)]
        return self._run("put", key, fault, lambda: self._inner.put(key, data, condition=condition))

    def stat(self, key: str) -> ObjectInfo:
        """See ``Backend.stat``."""
        return self._call("stat", key, lambda: self._inner.stat(key))

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """See ``Backend.list``. Hit when it starts."""
        return self._call("list", prefix, lambda: self._inner.list(prefix, after=after))

    def delete(self, keys: Iterable[str]) -> None:
        """See ``Backend.delete``. One call, whatever the number of keys."""
        named = list(keys)
        self._call("delete", named[0] if named else "", lambda: self._inner.delete(named))

    def local_path(self, key: str) -> str | None:
        """See ``Backend.local_path``."""
        return self._call("local_path", key, lambda: self._inner.local_path(key))

    def close(self) -> None:
        """See ``Backend.close``. Never hit."""
        self._inner.close()


class FaultClient(_Faulty):
    """An ``ObjectClient`` that does what its plan says, and passes everything else on. Thread-safe.

    A silently damaged upload is not among the faults.
    """

    def __init__(self, inner: ObjectClient, plan: FaultPlan | None = None) -> None:
        super().__init__(plan)
        self._inner = inner

    @property
    def url(self) -> str:
        """The URL of the inner client."""
        return self._inner.url

    def head(self, key: str) -> RemoteInfo:
        """See ``ObjectClient.head``."""
        return self._call("head", key, lambda: self._inner.head(key))

    def read(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int | None = None,
        if_match: str | None = None,
        limit: int | None = None,
    ) -> Object:
        """See ``ObjectClient.read``."""

        def damage(found: Object, fault: Fault) -> Object:
            return Object(self._damaged(found.data, fault), found.etag)

        def read() -> Object:
            return self._inner.read(key, offset=offset, length=length, if_match=if_match, limit=limit)

        return self._call("read", key, read, damage)

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        """See ``ObjectClient.put``."""
        fault = self._hit("put", key)
        if fault in {Fault.TRUNCATE, Fault.FLIP}:
            data = [self._damaged(b"".join(data), fault)]
        return self._run("put", key, fault, lambda: self._inner.put(key, data, condition=condition))

    def upload(self, key: str, source: BinaryIO, *, size: int | None = None, advance: Advance | None = None) -> str:
        """See ``ObjectClient.upload``."""
        return self._call("upload", key, lambda: self._inner.upload(key, source, size=size, advance=advance))

    def list(self, prefix: str, *, after: str = "", recursive: bool = True) -> Iterator[RemoteInfo]:
        """See ``ObjectClient.list``. Every object that is asked for is a call, and the end of the listing is one."""
        found = iter(self._inner.list(prefix, after=after, recursive=recursive))
        while True:
            info = self._call("list", prefix, lambda: next(found, None))
            if info is None:
                return
            yield info

    def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectClient.delete``. One call, whatever the number of keys."""
        named = list(keys)
        self._call("delete", named[0] if named else "", lambda: self._inner.delete(named))

    def close(self) -> None:
        """See ``ObjectClient.close``. Never hit."""
        self._inner.close()
