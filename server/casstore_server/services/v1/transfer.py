"""Moving objects between clients and the bucket.

Decided here and only here: who may do what of it, at which addresses, and for how long. An address is for one object of
one bucket and ``LIFETIME_S``; it is one of the bucket's service where somebody can sign for it, and else one of this
server. What changes the store is told to whoever keeps an index of datasets.
"""

from __future__ import annotations

from collections.abc import Callable

from casstore.backend.base import Absent, Condition, Matches, Object
from casstore.dataset import Bucket
from casstore.errors import AccessError, NotFoundError, PreconditionError, UsageError
from casstore.remote.presign import ObjectSigner
from casstore.remote.urls import parse_url
from casstore.repo import layout
from casstore.wire.v1 import (
    MAX_BLOB,
    BucketInfo,
    IndexBody,
    ObjectReply,
    ObjectsReply,
    PackBody,
    PackWish,
    Signed,
    UrlsBody,
    UrlsReply,
    Written,
    etag_of,
)
from casstore_server.services.context import Caller, Services
from casstore_server.services.v1.guard import Rights
from casstore_server.services.v1.objects import MAX_OBJECT, Objects, hash_in, readable
from casstore_server.services.v1.packs import promote, publish, store_pack

__all__ = ["LIFETIME_S", "Blob", "Transfer", "condition_of", "open_transfer", "rights_of"]

LIFETIME_S = 900
"""Seconds for which an address works: a pack goes over a slow line in them."""
_MARGIN_S = 60
"""Seconds less that clients are told."""
_READ, _WRITE = "read", "write"


def rights_of(services: Services, caller: Caller, bucket: str) -> Rights:
    """What somebody may do in a bucket; what is declared as read-only nobody writes to."""
    writable = services.stores.is_writable(bucket)
    return Rights(
        user=caller.user,
        writable=writable,
        write=writable and caller.may("dataset:Write", bucket=bucket) and caller.may("dataset:Read", bucket=bucket),
        delete=writable and caller.may("dataset:Delete", bucket=bucket),
        manage=writable and caller.may("bucket:Manage", bucket=bucket),
    )


class Transfer:
    """One bucket, for one caller."""

    def __init__(self, services: Services, caller: Caller, name: str, changed: Callable[[str], None]) -> None:
        self._services = services
        self._name = name
        self._bucket: Bucket = services.stores.open(name, caller.user)
        self._rights = rights_of(services, caller, name)
        self._plane = services.plane
        self.objects = Objects(self._bucket, self._rights, self._plane.proofs, changed)

    def about(self) -> BucketInfo:
        """Who the caller is here."""
        rights = self._rights
        return BucketInfo(
            name=self._name, user=rights.user, write=rights.write, delete=rights.delete, manage=rights.manage
        )

    # ---- objects

    def get(self, key: str, limit: int | None) -> Object:
        """See ``Objects.get``."""
        return self.objects.get(key, MAX_OBJECT if limit is None else limit)

    def stat(self, key: str) -> ObjectReply:
        """See ``Objects.stat``."""
        return self.objects.stat(key)

    def listed(self, prefix: str, after: str, count: int) -> ObjectsReply:
        """See ``Objects.listed``."""
        return self.objects.listed(prefix, after, count)

    def put(self, key: str, data: bytes, condition: Condition) -> Written:
        """See ``Objects.put``."""
        return Written(self.objects.put(key, data, condition))

    # ---- data

    def urls(self, body: UrlsBody) -> UrlsReply:
        """Return addresses. ``NotFoundError`` for a key that clients don't read; it says nothing of what is there."""
        for key in body.read:
            if hash_in(readable(key)) is None:
                raise NotFoundError(f"{key[:100]} does not exist")
        if body.write:
            self._require_write()
        url = self._bucket.store.url
        signer = self._plane.signer(url, self._services.stores.credentials) if body.direct else None
        return UrlsReply(
            [self._read_at(signer, key) for key in body.read],
            [self._write_at(signer, wish) for wish in body.write],
            LIFETIME_S - _MARGIN_S,
        )

    def _require_write(self) -> None:
        if not self._rights.write:
            raise AccessError(
                f"{self._rights.user} can't write to bucket {self._name}",
                hint="It takes the right dataset:Write, and a bucket that is not declared as read-only.",
            )

    def _read_at(self, signer: ObjectSigner | None, key: str) -> Signed:
        if signer is None:
            return Signed(self._own(key, _READ))
        found = signer.read(self._whole(key), LIFETIME_S)
        return Signed(found.url, found.headers)

    def _write_at(self, signer: ObjectSigner | None, wish: PackWish) -> Signed:
        if signer is None:
            return Signed(self._own(layout.pack_key(bytes.fromhex(wish.pack)), f"{_WRITE} {wish.size}"))
        incoming = layout.new_id()
        found = signer.write(self._whole(layout.incoming_key(incoming)), wish.size, LIFETIME_S)
        return Signed(found.url, found.headers, incoming)

    def _own(self, key: str, what: str) -> str:
        return self._plane.signing.address(self._services.keys, self._name, key, what, LIFETIME_S)

    def _whole(self, key: str) -> str:
        prefix = parse_url(self._bucket.store.url).prefix
        return f"{prefix}/{key}" if prefix else key

    def take_pack(self, body: PackBody) -> Written:
        """See ``packs.promote``."""
        self._require_write()
        return Written(promote(self._bucket.store, bytes.fromhex(body.pack), body.incoming, fresh=body.fresh))

    def publish(self, body: IndexBody) -> None:
        """See ``packs.publish``."""
        self._require_write()
        publish(self._bucket.store, [bytes.fromhex(pack) for pack in body.packs])


class Blob:
    """One object at an address of the server itself: whoever has the address may."""

    def __init__(
        self, services: Services, bucket: str, key: str, *, what: str, until: str, by: str, signature: str
    ) -> None:
        services.plane.signing.check(services.keys, bucket, key, what, until, by, signature)
        self._store = services.stores.open(bucket, "").store
        self._key = key
        self._what = what

    @property
    def announced(self) -> int:
        """Bytes that are to be put here. ``AccessError`` when this is no address to put something at."""
        kind, _, size = self._what.partition(" ")
        if kind != _WRITE:
            raise AccessError("this address is for reading")
        return min(int(size), MAX_BLOB)

    def put(self, data: bytes | bytearray, *, fresh: bool) -> Written:
        """See ``packs.store_pack``."""
        if len(data) != self.announced:
            raise UsageError(f"{self.announced} bytes were announced, and {len(data)} came")
        return Written(store_pack(self._store, layout.id_of(self._key), bytes(data), fresh=fresh))

    def size(self) -> int:
        """Bytes of the object. ``AccessError`` when this is no address to read at."""
        if self._what != _READ:
            raise AccessError("this address is for writing")
        try:
            return self._store.backend.stat(self._key).size
        except NotFoundError:
            raise NotFoundError(f"{self._key} does not exist") from None

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the object."""
        return self._store.backend.read(self._key, offset, length)


def open_transfer(services: Services, caller: Caller, name: str) -> Transfer:
    """The bucket ``name`` for a caller. ``NotFoundError``."""

    def changed(dataset: str) -> None:
        services.index.changed(name, dataset)

    return Transfer(services, caller, name, changed)


def condition_of(if_match: str | None, if_none_match: str | None) -> Condition:
    """The condition that the headers of a request state. ``UsageError`` for one that there is not."""
    if if_match is not None and if_none_match is not None:
        raise UsageError("If-Match and If-None-Match exclude each other")
    if if_none_match is not None:
        if if_none_match.strip() != "*":
            raise UsageError("If-None-Match is understood for * alone")
        return Absent()
    if if_match is None:
        return None
    tag = etag_of(if_match)
    if not tag:
        raise PreconditionError("If-Match must hold one tag, in quotes")
    return Matches(tag)
