"""Opening the segments of an index.

Decided here and only here: how a segment gets into memory, verified. A local one is mapped. One that is far away is
fetched in parts, side by side with others; a large one goes into a file without a name and is mapped there, so that
the memory it takes can be given back. Where there is a cache, it is fetched once and mapped there.
"""

from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from casstore import hashing
from casstore.backend.base import Backend
from casstore.errors import FormatError, NotFoundError, StorageError
from casstore.format.index import NONCE_SIZE, Segment
from casstore.repo import layout
from casstore.repo.limits import check_size

if TYPE_CHECKING:
    from concurrent.futures import Future

    from casstore.cache.remote import RemoteCache

__all__ = ["MAX_SEGMENT", "cached_segment", "each", "new_nonce", "open_segment"]

MAX_SEGMENT = 1 << 30
"""Bytes of a segment, at most: a writer's are a twentieth of that."""
PARALLEL = 4
"""Segments that are fetched at once."""
_PART = 8 << 20
"""Bytes that are fetched at once; a segment that is larger goes into a file."""

_A = TypeVar("_A")
_B = TypeVar("_B")


def new_nonce() -> bytes:
    """Return what makes a segment unlike any other.

    Whoever deletes a segment has stored what it holds under another name before. Were a name ever used again, one who
    stood still before the deletion would delete the later one, too.
    """
    return os.urandom(NONCE_SIZE)


def open_segment(backend: Backend, key: str, cache: RemoteCache | None = None) -> Segment:
    """Return the verified segment. ``NotFoundError``; ``IntegrityError`` for one that is not what its name says.

    ``cache`` is for segments that are far away.
    """
    segment_id = layout.id_of(key)
    path = backend.local_path(key)
    kept = cached_segment(segment_id, cache) if path is None else None
    if kept is not None:
        return kept
    data = _fetched(backend, key) if path is None else _mapped(key, path)
    if segment_id != hashing.digest(memoryview(data)):
        raise FormatError(f"{key} is damaged")
    if path is None and cache is not None:
        cache.keep(segment_id, memoryview(data))
    return Segment(data)


def cached_segment(segment_id: bytes, cache: RemoteCache | None) -> Segment | None:
    """Return a segment if it is in the cache, verified."""
    data = None if cache is None else cache.mapped(segment_id, MAX_SEGMENT)
    return None if data is None else Segment(data)


def each(backend: Backend, work: Callable[[_A], _B], items: Iterable[_A]) -> Iterator[_B]:
    """Yield ``work(item)`` for all items in order, some side by side where the back end is far away."""
    if backend.capabilities.local:
        yield from map(work, items)
        return
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - slow to load, and local stores never need it

    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="casstore-index") as pool:
        ahead: deque[Future[_B]] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) >= 2 * PARALLEL:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _fetched(backend: Backend, key: str) -> bytes | mmap.mmap:
    size = check_size(key, backend.stat(key).size, MAX_SEGMENT)
    if size <= _PART:
        return backend.read(key, 0, size)
    import tempfile  # noqa: PLC0415 - the same

    try:
        with tempfile.TemporaryFile(prefix="casstore-index-") as file:
            for start in range(0, size, _PART):
                file.write(backend.read(key, start, min(_PART, size - start)))
            file.flush()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StorageError(
            f"can't keep {key} in a temporary file: {error.strerror or error}", hint="free some space, or set TMPDIR"
        ) from None


def _mapped(key: str, path: str) -> mmap.mmap:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"{key} is gone") from None
    except OSError as error:
        raise StorageError(f"{key}: {error.strerror or error}", hint="look at the disk of the store") from None
    try:
        if not 0 < os.fstat(descriptor).st_size <= MAX_SEGMENT:
            raise FormatError(f"{key} has an impossible size")
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise StorageError(f"{key}: {error.strerror or error}", hint="look at the disk of the store") from None
    finally:
        os.close(descriptor)
