"""The part of a bucket where clients of OSMO 6.2 put what they upload, and find what they download.

Decided here and only here: where that is, how long it lasts, and who may remove it.

    exchange/uploads/<digest of the name>/<number>   an upload that was begun, and the number it was promised
    exchange/offers/<manifest>/<id>                  a version in OSMO's layout
    exchange/data/<id>/hashes/, manifests/           the objects of one of them

An upload lasts a week after it was begun or taken up again, an offer a day after it was last asked for, by the time of
its record. Whoever removes one says so in the record first, by compare-and-swap: of several one does it, and whoever
wants to use it meanwhile sees that it goes. Nothing here is a version: the garbage collector of the store passes over
it, and nothing is lost with it but the work of an upload that was not finished.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from casstore import hashing
from casstore.backend.base import Absent, Backend, Matches, ObjectInfo
from casstore.errors import ConflictError, FormatError, NotFoundError, PreconditionError
from casstore.repo import layout
from casstore.repo.records import Records, now, write_id

__all__ = ["OFFER_TERM", "UPLOAD_TERM", "Area", "AreaRecord", "Areas"]

UPLOAD_TERM = 7 * 24 * 3600
"""Seconds that an upload may take."""
OFFER_TERM = 24 * 3600
"""Seconds that an offer is there after it was last asked for."""
_STUCK = 3600
"""Seconds after which somebody who removes an area counts as gone."""
_UPLOADS = layout.EXCHANGE + "uploads/"
_OFFERS = layout.EXCHANGE + "offers/"
_DATA = layout.EXCHANGE + "data/"
_KIND = "exchange"
_BATCH = 1000
_MOST_UPLOADS = 1000
"""Uploads of one dataset that are under way."""
_NUMBER = re.compile(r"[1-9][0-9]{0,11}\Z", re.ASCII)


class AreaRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``id`` names the folder of the objects; ``number`` is the version's. ``ready``: an offer is complete.

    ``metadata`` is that of the version that an upload makes.
    """

    id: str
    dataset: str
    number: int
    user: str
    started_at: str
    write_id: str
    ready: bool = False
    closing: bool = False
    left_out: int = 0
    metadata: dict[str, Any] = {}


class Area(NamedTuple):
    """A record as it was read: its key, and the tag of its state."""

    key: str
    record: AreaRecord
    etag: str

    @property
    def folder(self) -> str:
        """Where its objects are: a prefix of keys, without a slash at the end."""
        return _DATA + self.record.id

    @property
    def hashes(self) -> str:
        """Where files are, by their ETags."""
        return f"{self.folder}/hashes"

    @property
    def manifest(self) -> str:
        """Where the list of files is."""
        return f"{self.folder}/manifests/{self.record.number}.json"


class Areas:
    """The areas of one bucket. Thread-safe; keeps no state of its own."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._records = Records(backend)

    # ---- uploads

    def begin_upload(self, name: str, least: int, *, user: str, metadata: dict[str, Any] | None = None) -> Area:
        """Begin an upload under the first free number from ``least`` on. ``ConflictError`` when there are too many."""
        taken = {int(info.key.rpartition("/")[2]) for info in self._upload_keys(name)}
        number = max([least - 1, *taken]) + 1
        while len(taken) < _MOST_UPLOADS:
            record = AreaRecord(
                id=layout.new_id(),
                dataset=name,
                number=number,
                user=user,
                started_at=now(),
                write_id=write_id(),
                metadata=metadata or {},
            )
            key = f"{_of_name(name)}{number}"
            try:
                self._records.put(key, _KIND, record, Absent())
            except PreconditionError:
                taken.add(number)
                number += 1
                continue
            return self._read(key)
        raise ConflictError(
            f"{len(taken)} uploads to {name!r} are under way", hint="finish them; they are forgotten after a week"
        )

    def upload(self, name: str, number: int) -> Area | None:
        """Return the upload that was promised this number, if it is under way."""
        return self._open(f"{_of_name(name)}{number}")

    def uploads(self, name: str) -> list[Area]:
        """Return the uploads to this dataset that are under way, in the order of their numbers."""
        keys = [info.key for info in self._upload_keys(name)]
        found = [area for area in self._records.each(self._open, keys) if area is not None]
        return sorted(found, key=lambda area: area.record.number)

    def _upload_keys(self, name: str) -> list[ObjectInfo]:
        found = islice(self._backend.list(_of_name(name)), _MOST_UPLOADS)
        return [info for info in found if _NUMBER.match(info.key.rpartition("/")[2])]

    # ---- offers

    def begin_offer(self, manifest: bytes, name: str, number: int, *, user: str) -> Area:
        """Begin to offer a version; nobody finds it before ``ready`` was called."""
        record = AreaRecord(
            id=layout.new_id(), dataset=name, number=number, user=user, started_at=now(), write_id=write_id()
        )
        key = f"{_OFFERS}{manifest.hex()}/{record.id}"
        self._records.put(key, _KIND, record, Absent())
        return self._read(key)

    def ready(self, area: Area, *, left_out: int) -> Area:
        """Let an offer be found. ``left_out`` entries are not part of it."""
        return self._change(area, ready=True, left_out=left_out)

    def offer(self, manifest: bytes) -> Area | None:
        """Return an offer of the version with this manifest, which lasts for the whole term from now on."""
        for info in self._backend.list(f"{_OFFERS}{manifest.hex()}/"):
            area = self._open(info.key)
            if area is None or not area.record.ready:
                continue
            try:
                return self.touch(area)
            except (NotFoundError, PreconditionError):
                touched = self._open(info.key)
                if touched is not None:  # somebody else asked for it just now
                    return touched
        return None

    # ---- both

    def touch(self, area: Area) -> Area:
        """Let an area last for the whole term from now on. ``PreconditionError`` when somebody else changed it."""
        return self._change(area)

    def close(self, area: Area) -> bool:
        """Remove an area and its objects; False when somebody else does."""
        try:
            area = self._change(area, closing=True)
        except (NotFoundError, PreconditionError):
            return False
        keys = (info.key for info in self._backend.list(area.folder + "/"))
        while batch := list(islice(keys, _BATCH)):
            self._backend.delete(batch)
        self._backend.delete([area.key])
        return True

    def expired(self, moment: float) -> list[str]:
        """Return the keys of areas that are over at this moment of the back end's clock, or whose removal stopped."""
        found: list[str] = []
        for prefix, term in ((_UPLOADS, UPLOAD_TERM), (_OFFERS, OFFER_TERM)):
            for info in self._backend.list(prefix):
                age = moment - info.mtime
                if age > term or (age > _STUCK and self._stopped(info.key)):
                    found.append(info.key)
        return found

    def sweep(self, moment: float) -> int:
        """Remove areas whose term is over; returns how many."""
        removed = 0
        for key in self.expired(moment):
            try:
                removed += self.close(self._read(key))
            except (NotFoundError, FormatError):
                continue
        return removed

    def sweep_orphans(self, moment: float) -> int:
        """Remove objects of areas whose record is gone or can't be read; returns how many. Lists all objects."""
        known: set[str] = set()
        for prefix in (_UPLOADS, _OFFERS):
            for info in self._backend.list(prefix):
                try:
                    known.add(self._read(info.key).record.id)
                except NotFoundError:
                    continue
                except FormatError:
                    if moment - info.mtime > UPLOAD_TERM:
                        self._backend.delete([info.key])
        # A record is written before its objects, and outlasts them: what is as old as an upload can be has none.
        orphans = (
            info.key
            for info in self._backend.list(_DATA)
            if moment - info.mtime > UPLOAD_TERM and info.key.removeprefix(_DATA).partition("/")[0] not in known
        )
        removed = 0
        while batch := list(islice(orphans, _BATCH)):
            self._backend.delete(batch)
            removed += len(batch)
        return removed

    def _stopped(self, key: str) -> bool:
        try:
            return self._read(key).record.closing
        except (NotFoundError, FormatError):
            return False

    def _open(self, key: str) -> Area | None:
        try:
            found = self._read(key)
        except NotFoundError:
            return None
        return None if found.record.closing else found

    def _read(self, key: str) -> Area:
        record, etag = self._records.read(key, _KIND, AreaRecord)
        if not layout.is_id(record.id) or record.number < 1 or not layout.is_name(record.dataset):
            raise FormatError(f"{key} can't be right")
        return Area(key, record, etag)

    def _change(self, area: Area, **fields: Any) -> Area:
        changed = msgspec.structs.replace(area.record, write_id=write_id(), **fields)
        self._records.put(area.key, _KIND, changed, Matches(area.etag))
        found = self._read(area.key)
        if found.record.write_id != changed.write_id:
            raise PreconditionError(f"{area.key} was changed meanwhile")
        return found


def _of_name(name: str) -> str:
    """Names may begin with a dash, which no part of a key may."""
    return f"{_UPLOADS}{hashing.digest(name.encode()).hex()[:32]}/"
