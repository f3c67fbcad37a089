"""Reading chunks that a store only refers to: ranges of objects elsewhere.

Decided here and only here: where a reference may lead a reader, and how ranges become few reads. What a store says is
not trusted: it can send a reader only to where that user has a credential of their own for, or to what they have
allowed by name; never to a local file, never to a web address, and to an endpoint that it names itself only with the
credential that was configured for that endpoint. Every object is read in the state that its ETag names, and every chunk
is compared with its id.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from casstore import hashing
from casstore.compression import REFERENCE
from casstore.errors import (
    AccessError,
    CasstoreError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    UsageError,
)
from casstore.format.index import Location
from casstore.format.reference import Pointer, parse_pointer
from casstore.model import Buffer
from casstore.remote.urls import parse_url, shown
from casstore.repo import layout

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from casstore.remote.base import ObjectClient
    from casstore.remote.credentials import CredentialSource
    from casstore.repo.store import Store

__all__ = ["READ_MAX", "Part", "References", "Wanted", "allowed_prefixes", "follow"]

GAP = 256 << 10
"""Bytes between two wanted ranges of an object that are rather read than skipped."""
READ_MAX = 8 << 20
"""Bytes that one read covers at most, unless one chunk is longer."""
PARALLEL = 8
"""Reads that are under way at once."""
_VENDORS = frozenset({"s3", "gs", "azure"})
"""Schemes whose host is the vendor's, whatever the URL says: the machine's own identity may be used there."""

_A = TypeVar("_A")
_B = TypeVar("_B")

Opener: TypeAlias = "Callable[[str, CredentialSource | None], tuple[ObjectClient, str]]"
"""``casstore.remote.open.open_objects``, or what a test puts in its place."""

Wanted: TypeAlias = tuple[bytes, Location, Buffer]
"""A chunk id, the place of its frame, and the frame's bytes: a pointer."""


class Part(NamedTuple):
    """A chunk that is wanted, ``raw`` bytes long, and one place where it is referred to."""

    chunk_id: bytes
    raw: int
    pointer: Pointer
    place: Location


class _Run:
    """One read: a range of one object, and the chunks in it."""

    __slots__ = ("end", "parts", "pointer")

    def __init__(self, part: Part) -> None:
        self.pointer = part.pointer
        self.end = part.pointer.offset + part.raw
        self.parts = [part]

    def takes(self, part: Part) -> bool:
        """Add a chunk that does not begin before the others, if it belongs into the same read."""
        first, other = self.pointer, part.pointer
        end = max(self.end, other.offset + part.raw)
        if first[:3] != other[:3] or other.offset - self.end > GAP or end - first.offset > READ_MAX:
            return False
        self.end = end
        self.parts.append(part)
        return True


def allowed_prefixes(urls: Iterable[str]) -> tuple[str, ...]:
    """Return URLs that a user allows, in their normal form; ``UsageError`` for one that can't be one."""
    found: list[str] = []
    for url in urls:
        place = parse_url(url)
        if place.scheme == "file":
            raise UsageError(f"{shown(url)} is a local folder: references lead to object storage alone")
        found.append(place.url)
    return tuple(found)


class References:
    """Where one user's references may lead, and the clients for it. Thread-safe. Close it.

    ``allowed`` are URLs below which everything may be read, see ``allowed_prefixes``.
    """

    def __init__(
        self, credentials: CredentialSource | None = None, allowed: Sequence[str] = (), opener: Opener | None = None
    ) -> None:
        self._credentials = credentials
        self._allowed = tuple(allowed)
        self._opener = opener
        self._lock = threading.Lock()
        self._clients: dict[str, ObjectClient] = {}
        self._pool: Executor | None = None

    def check(self, pointer: Pointer) -> None:
        """``AccessError`` unless this user's references may lead there."""
        place = parse_url(pointer.bucket)
        if self._credentials is not None and self._credentials.find(place.profile) is not None:
            return
        if any(pointer.url == prefix or pointer.url.startswith(prefix + "/") for prefix in self._allowed):
            if place.scheme in _VENDORS:
                return
            raise AccessError(
                f"{shown(pointer.url)} is on an endpoint that only a credential of its own may be used for",
                hint=f"osmo credential set NAME --type DATA --payload endpoint={place.profile} ...",
            )
        raise AccessError(
            f"the data is referred to at {shown(pointer.url)}, where you have not allowed references to lead",
            hint=f"set a credential for {place.profile}, or add the URL to casstore.references in config.yaml",
        )

    def _client(self, bucket: str) -> ObjectClient:
        with self._lock:
            found = self._clients.get(bucket)
            if found is None:
                if self._opener is None:
                    from casstore.remote.open import open_objects  # noqa: PLC0415 - most stores have no references

                    self._opener = open_objects
                found = self._clients[bucket] = self._opener(bucket, self._credentials)[0]
        return found

    def read(self, pointer: Pointer, length: int) -> bytes:
        """Return bytes of an object from the pointer on, of the state that it names.

        ``AccessError``; ``IntegrityError`` when the object was changed or removed; what a client raises.
        """
        self.check(pointer)
        try:
            return (
                self._client(pointer.bucket)
                .read(pointer.key, offset=pointer.offset, length=length, if_match=pointer.etag)
                .data
            )
        except NotFoundError:
            raise _lost(pointer, "removed") from None
        except (PreconditionError, IntegrityError):
            raise _lost(pointer, "changed") from None

    def confirm(self, pointer: Pointer) -> None:
        """Ask whether an object is in the state that a pointer names. Errors as of ``read``."""
        self.check(pointer)
        try:
            info = self._client(pointer.bucket).head(pointer.key)
        except NotFoundError:
            raise _lost(pointer, "removed") from None
        if info.etag != pointer.etag:
            raise _lost(pointer, "changed")

    def confirm_all(self, pointers: Sequence[Pointer]) -> list[CasstoreError | None]:
        """The same for many, side by side: what is wrong with each."""
        return self._each(lambda pointer: _attempt(lambda: self.confirm(pointer)), pointers)

    def fetch(self, parts: Iterable[Part]) -> dict[Part, Buffer | CasstoreError]:
        """Return chunks, or why they can't be had, each verified. Neighbours in an object are read together."""
        runs: list[_Run] = []
        for part in sorted(parts, key=lambda part: part.pointer):
            if not runs or not runs[-1].takes(part):
                runs.append(_Run(part))
        found: dict[Part, Buffer | CasstoreError] = {}
        for run, data in zip(runs, self._each(self._read_run, runs), strict=True):
            for part in run.parts:
                if isinstance(data, CasstoreError):
                    found[part] = data
                    continue
                start = part.pointer.offset - run.pointer.offset
                chunk = memoryview(data)[start : start + part.raw]
                found[part] = chunk if hashing.digest(chunk) == part.chunk_id else _lost(part.pointer, "changed")
        return found

    def _read_run(self, run: _Run) -> bytes | CasstoreError:
        try:
            return self.read(run.pointer, run.end - run.pointer.offset)
        except CasstoreError as error:
            return error

    def _each(self, work: Callable[[_A], _B], items: Sequence[_A]) -> list[_B]:
        if len(items) < 2:
            return [work(item) for item in items]
        with self._lock:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - slow to load

                self._pool = ThreadPoolExecutor(PARALLEL, thread_name_prefix="casstore-reference")
            pool = self._pool
        return list(pool.map(work, items))

    def close(self) -> None:
        """Release clients and threads."""
        with self._lock:
            pool, self._pool = self._pool, None
            clients, self._clients = self._clients, {}
        if pool is not None:
            pool.shutdown(cancel_futures=True)
        for client in clients.values():
            with contextlib.suppress(Exception):
                client.close()


def follow(store: Store, wanted: Iterable[Wanted]) -> dict[bytes, Buffer | CasstoreError]:
    """Return the chunks that these frames refer to, verified, or for each why it can't be had.

    When one object was changed, other references to the same chunk are tried.
    """
    found: dict[bytes, Buffer | CasstoreError] = {}
    parts: list[Part] = []
    for chunk_id, place, payload in wanted:
        try:
            parts.append(Part(chunk_id, place.raw, parse_pointer(payload, place.raw), place))
        except IntegrityError as error:
            found[chunk_id] = _elsewhere(store, chunk_id, place) or error
    for part, data in store.references.fetch(parts).items():
        lost = isinstance(data, CasstoreError)
        found[part.chunk_id] = (lost and _elsewhere(store, part.chunk_id, part.place, part.pointer)) or data
    return found


def _elsewhere(store: Store, chunk_id: bytes, tried: Location, pointer: Pointer | None = None) -> Buffer | None:
    for place in store.index.places(chunk_id):
        if place.codec != REFERENCE or place == tried or place.raw != tried.raw:
            continue
        try:
            payload = store.backend.read(layout.pack_key(place.pack_id), place.offset, place.stored)
            part = Part(chunk_id, place.raw, parse_pointer(payload, place.raw), place)
        except (NotFoundError, IntegrityError):
            continue
        if part.pointer != pointer:
            data = store.references.fetch([part])[part]
            if not isinstance(data, CasstoreError):
                return data
    return None


def _attempt(work: Callable[[], None]) -> CasstoreError | None:
    try:
        work()
    except CasstoreError as error:
        return error
    return None


def _lost(pointer: Pointer, what: str) -> IntegrityError:
    return IntegrityError(
        f"{shown(pointer.url)} was {what} since it was adopted",
        hint="put that object back as it was, or adopt the data again; `osmo store check` names what is lost",
    )
