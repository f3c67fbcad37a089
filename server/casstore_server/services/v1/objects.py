"""The objects of a store, for clients that have no credentials of its bucket.

Decided here and only here: which objects are read and written through the server, by their keys. What has its content's
name is data: packs and segments of the index are read at signed addresses, packs come in by ``packs``, segments are the
server's own, and the root of a manifest is stored when it is one. Names, heads, versions and leases are records: each
change of one is compared with what was there (``guard``), what it points to must exist, and it is written by the
compare-and-swap that the client asked for, so that clients of servers and those with credentials of the bucket can
work on one store. Everything else is nobody's business.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeVar

import msgspec

from casstore import hashing
from casstore.backend.base import Absent, Condition, Matches, Object, ObjectInfo, validate_key, validate_prefix
from casstore.dataset import Bucket
from casstore.errors import AccessError, CasstoreError, FormatError, NotFoundError, PreconditionError, UsageError
from casstore.format import record
from casstore.format.manifest import MAX_NODE, decode_root
from casstore.model import Head, VersionRecord
from casstore.repo import layout
from casstore.repo.leases import MAX_LEASE, LeaseInfo, LeaseRecord, read_lease
from casstore.repo.records import NameRecord, Records, is_active
from casstore.repo.records import head_problem as sound_head
from casstore.repo.records import version_problem as sound_version
from casstore.wire.v1 import MAX_LISTED, ObjectReply, ObjectsReply
from casstore_server.services.v1.guard import Rights, head_problem, lease_problem, name_problem, version_problem
from casstore_server.services.v1.trees import Proofs, require_whole

__all__ = ["MAX_OBJECT", "Objects", "bases_of", "hash_in", "readable"]

MAX_OBJECT = record.MAX_RECORD
"""Bytes of an object that is read through the server, at most."""
_BASES = 4
"""Versions of a dataset that a new one is taken to share parts with."""
_READABLE = (
    *(layout.PACKS, layout.INDEX, layout.MANIFESTS, layout.NAMES, layout.DATASETS),
    *(layout.LEASES, layout.TRASH),
)
_T = TypeVar("_T", bound=msgspec.Struct)
_HASH = re.compile(r"(?:packs/([0-9a-f]{2})/|manifests/([0-9a-f]{2})/|index/)([0-9a-f]{64})\Z", re.ASCII)
_AFTER = re.compile(r"[!-~]{0,512}\Z", re.ASCII)
_HEAD = re.compile(r"datasets/([A-Za-z0-9_-]{22})/head\Z", re.ASCII)
_VERSION = re.compile(r"datasets/([A-Za-z0-9_-]{22})/versions/[1-9][0-9]{0,11}\Z", re.ASCII)


class Objects:
    """The objects of one bucket, as somebody with these rights sees and changes them."""

    def __init__(
        self, bucket: Bucket, rights: Rights, proofs: Proofs, changed: Callable[[str], None] = lambda _: None
    ) -> None:
        """``changed`` is told the id or the name of each dataset that has changed."""
        self._bucket = bucket
        self._store = bucket.store
        self._backend = bucket.store.backend
        self._records = Records(bucket.store.backend)
        self._rights = rights
        self._proofs = proofs
        self._changed = changed

    # ---- reading

    def get(self, key: str, limit: int = MAX_OBJECT) -> Object:
        """Return an object that is not data. ``FormatError`` for one of more than ``limit`` bytes."""
        try:
            return self._backend.get(readable(key), limit=min(limit, MAX_OBJECT))
        except NotFoundError:
            raise NotFoundError(f"{key} does not exist") from None  # where the bucket is, is not said

    def stat(self, key: str) -> ObjectReply:
        """Return size and time of an object."""
        try:
            found = self._backend.stat(readable(key))
        except NotFoundError:
            raise NotFoundError(f"{key} does not exist") from None
        return ObjectReply(found.key, found.size, found.mtime)

    def listed(self, prefix: str, after: str, count: int) -> ObjectsReply:
        """Return a page of a listing."""
        validate_prefix(prefix)
        if not _AFTER.match(after):
            raise UsageError(f"no key is like {after[:80]!r}")
        count = min(max(1, count), MAX_LISTED)
        found = [*islice(self._found(prefix, after), count + 1)]
        rows = [(info.key, info.size, info.mtime) for info in found[:count]]
        return ObjectsReply(rows, more=len(found) > count)

    def _found(self, prefix: str, after: str) -> Iterable[ObjectInfo]:
        return (info for info in self._backend.list(prefix, after=after) if _is_readable(info.key))

    # ---- writing

    def put(self, key: str, data: bytes, condition: Condition) -> str:
        """Store an object, if it may be; returns its tag. ``AccessError`` for what may not."""
        validate_key(key)
        self._require_writable()
        if key.startswith(layout.MANIFESTS):
            return self._put_manifest(key, data, condition)
        if found := _VERSION.match(key):
            return self._put_version(key, found[1], data, condition)
        if found := _HEAD.match(key):
            return self._put_head(key, found[1], data, condition)
        if key.startswith(layout.NAMES):
            return self._put_name(key, data, condition)
        if key.startswith(layout.LEASES):
            return self._put_lease(key, data, condition)
        raise AccessError(
            f"{key} is not written through a server",
            hint="What changes a store as a whole is for whoever has credentials of its bucket.",
        )

    def _require_writable(self) -> None:
        if not self._rights.writable:
            raise AccessError(f"Bucket {self._bucket.name} is declared as read-only", hint="Use another bucket.")

    def _refuse(self, key: str, problem: str | None) -> None:
        if problem is not None:
            raise AccessError(f"{key} can't be written through the server: {problem}")

    def _put_manifest(self, key: str, data: bytes, condition: Condition) -> str:
        self._require_write(key)
        if hash_in(key) != hashing.digest(data) or len(data) > MAX_NODE:
            raise UsageError(f"{key} is not the name of what was sent")
        decode_root(data)
        return self._backend.put(key, [data], condition=condition)

    def _require_write(self, key: str) -> None:
        self._refuse(key, None if self._rights.write else "it takes the right dataset:Write")

    def _put_version(self, key: str, dataset_id: str, data: bytes, condition: Condition) -> str:
        self._require_write(key)
        _require_absent(key, condition)
        version = _decoded(key, data, "version", VersionRecord)
        number = layout.version_number(key)
        if version.number != number or (unsound := sound_version(version)):
            said = unsound if version.number == number else f"it says that it is version {version.number}"
            raise UsageError(f"{key} can't be right: {said}")
        head = self._live(dataset_id)
        if head is None:
            raise NotFoundError(f"{key}: its dataset is gone")
        self._refuse(key, version_problem(version, head, self._rights, time.time()))
        if number <= head.last_version:
            raise PreconditionError(f"{key}: version {number} was there already")
        if number > head.last_version + 1 and not self._is_there(layout.version_key(dataset_id, number - 1)):
            raise PreconditionError(f"{key}: there is no version {number - 1}")
        if not self._proofs.knows(self._store, dataset_id, head.epoch, version):
            require_whole(self._store, version, bases_of(self._records, head))
            self._proofs.note(self._store, dataset_id, head.epoch, version)
        # Its head is written next, and then everybody is told.
        return self._backend.put(key, [data], condition=condition)

    def _put_head(self, key: str, dataset_id: str, data: bytes, condition: Condition) -> str:
        new = _decoded(key, data, "head", Head)
        if new.id != dataset_id or (unsound := sound_head(new)):
            raise UsageError(f"{key} can't be right: {unsound if new.id == dataset_id else 'it is of another dataset'}")
        old: Head | None = None
        if isinstance(condition, Matches):
            old, etag = self._records.head(dataset_id)
            if etag != condition.etag:
                raise PreconditionError(f"{key} was changed meanwhile")
        else:
            _require_absent(key, condition)
        numbers = frozenset(self._records.numbers(dataset_id)) if old is not None else frozenset[int]()

        def is_void(number: int) -> bool:
            epoch = 0 if old is None else old.epoch
            return number in numbers and self._records.version(dataset_id, number).epoch < epoch

        problem = head_problem(old, new, self._rights, time.time(), is_void=is_void, numbers=numbers)
        self._refuse(key, problem)
        if old is not None and old.name != new.name:
            self._refuse(key, None if self._leads_to(new.name) == dataset_id else "its new name is not its own")
        tag = self._backend.put(key, [data], condition=condition)
        self._changed(dataset_id)
        return tag

    def _put_name(self, key: str, data: bytes, condition: Condition) -> str:
        name = layout.name_of(key)
        new = _decoded(key, data, "name", NameRecord)
        if new.name != name or not (new.id is None or layout.is_dataset_id(new.id)):
            raise UsageError(f"{key} can't be right: it belongs to the name {new.name[:80]!r}")
        old: NameRecord | None = None
        if isinstance(condition, Matches):
            old, etag = self._records.read(key, "name", NameRecord)
            if etag != condition.etag:
                raise PreconditionError(f"{key} was changed meanwhile")
        else:
            _require_absent(key, condition)
        self._require_write(key)
        problem = name_problem(old, new, live=self._live)
        if problem is not None:
            raise PreconditionError(f"{key} can't be written: {problem}")
        tag = self._backend.put(key, [data], condition=condition)
        self._changed(name)
        return tag

    def _put_lease(self, key: str, data: bytes, condition: Condition) -> str:
        if len(data) > MAX_LEASE:
            raise UsageError(f"{key} has {len(data)} bytes, more than a lease may have")
        new = _decoded(key, data, "lease", LeaseRecord)
        if layout.lease_key(new.id) != key:
            raise UsageError(f"{key} can't be right: it is another lease")
        old = self._lease(key)
        if isinstance(condition, Matches) and old is None:
            raise PreconditionError(f"{key} does not exist")
        self._refuse(key, lease_problem(old, new, self._rights, time.time()))
        return self._backend.put(key, [data], condition=condition)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete leases that are the caller's own, and the head of a dataset that never came to be."""
        self._require_writable()
        for key in keys:
            validate_key(key)
            if key.startswith(layout.LEASES):
                self._delete_lease(key)
            elif found := _HEAD.match(key):
                self._delete_head(key, found[1])
            else:
                raise AccessError(
                    f"{key} is not deleted through a server", hint="What nothing refers to is collected as garbage."
                )

    def _delete_lease(self, key: str) -> None:
        old = self._lease(key)
        if old is None:
            return
        if old.record is None or old.record.user != self._rights.user:
            raise AccessError(f"{key} is somebody else's")
        self._backend.delete([key])

    def _delete_head(self, key: str, dataset_id: str) -> None:
        """Of two who make a dataset of one name, one has to take its own back: nothing leads to it."""
        self._require_write(key)
        try:
            head, _ = self._records.head(dataset_id)
        except NotFoundError:
            return
        ours = head.created_by == self._rights.user and not (head.last_version or head.versions or head.members)
        if not ours or self._records.numbers(dataset_id) or self._leads_to(head.name) == dataset_id:
            raise AccessError(f"{key} is in use")
        self._backend.delete([key])

    # ---- looking

    def _is_there(self, key: str) -> bool:
        try:
            self._backend.stat(key)
        except NotFoundError:
            return False
        return True

    def _leads_to(self, name: str) -> str | None:
        try:
            return self._records.read(layout.name_key(name), "name", NameRecord)[0].id
        except NotFoundError:
            return None

    def _live(self, dataset_id: str) -> Head | None:
        try:
            head, _ = self._records.head(dataset_id)
        except NotFoundError:
            return None
        return None if head.deleted else head

    def _lease(self, key: str) -> LeaseInfo | None:
        try:
            info = self._backend.stat(key)
            found = read_lease(self._backend, layout.random_id(key))
        except NotFoundError:
            return None
        except FormatError:
            return LeaseInfo(id="", record=None, begun=0.0, age=0.0, expired=False)
        begun = info.mtime if found.begun is None else min(found.begun, info.mtime)
        return LeaseInfo(id=found.id, record=found, begun=begun, age=0.0, expired=False)


def bases_of(records: Records, head: Head) -> list[VersionRecord]:
    """Return the latest versions of a dataset: a new one may share parts with them."""
    numbers = [number for number in records.numbers(head.id) if is_active(head, number)]
    found: list[VersionRecord] = []
    for number in reversed(numbers[-_BASES:]):
        try:
            found.append(records.version(head.id, number))
        except (NotFoundError, FormatError):
            continue
    return found


def _decoded(key: str, data: bytes, kind: str, cls: type[_T]) -> _T:
    try:
        found = record.decode(kind, data, cls)
    except CasstoreError as error:
        raise UsageError(f"{key}: {error.message}") from None
    if record.encode(kind, found) != data:
        raise UsageError(f"{key}: the {kind} record is not written as records are")
    return found


def _require_absent(key: str, condition: Condition) -> None:
    if not isinstance(condition, Absent):
        raise UsageError(f"{key} is written only where nothing is, or over a state that is known")


def readable(key: str) -> str:
    """Return a key that clients may read; ``NotFoundError`` for any other, as for one that is not there."""
    validate_key(key)
    if not _is_readable(key):
        raise NotFoundError(f"{key} does not exist")
    return key


def _is_readable(key: str) -> bool:
    return key == layout.STORE or key.startswith(_READABLE)


def hash_in(key: str) -> bytes | None:
    """Return the id in the key of what has its content's name; None for another key."""
    found = _HASH.match(key)
    if found is None or (found[1] or found[2] or found[3][:2]) != found[3][:2]:
        return None
    return hashing.from_hex(found[3])
