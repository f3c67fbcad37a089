"""Uploads and downloads of OSMO 6.2's client, which moves the data itself between its disk and the bucket.

Decided here and only here: with whose credentials the objects are read that a client names, what it is told when the
work on them takes longer than it waits, and that areas whose time is over are removed when another one is begun.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

from casstore.dataset import Bucket, attributes
from casstore.dataset.adopt.base import Buckets
from casstore.dataset.catalog import require_dataset
from casstore.dataset.exchange.areas import Area, Areas
from casstore.dataset.exchange.offer import make_offer
from casstore.dataset.exchange.receive import Reach, made_of, receive
from casstore.dataset.ref import LATEST, check_name, check_tag, version_number
from casstore.dataset.summary import Version
from casstore.errors import AccessError, CancelledError, CasstoreError, ConflictError, NotFoundError, UsageError
from casstore.remote.credentials import CredentialSource, StorageCredential
from casstore.remote.urls import parse_url
from casstore.transfer.progress import Silent
from casstore.wire.dataset import DownloadReply, UploadReply
from casstore_server.services.context import Caller, Services
from casstore_server.services.datasets.access import Place, open_bucket, place_of
from casstore_server.services.datasets.asking import is_collection
from casstore_server.services.jobs import Stop

__all__ = ["Finish", "download", "finish", "start"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """What a client says of an upload that it has finished."""

    version_id: str
    checksum: str
    tag: str | None
    labels: dict[str, Any]


class _Watch(Silent):
    """Ends work from within."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop

    def advance(self, size: int, *, new: int = 0) -> None:
        """See ``Progress``."""
        if self._stop():
            raise CancelledError("the server ended before this was done")


class _Credentials:
    """A ``CredentialSource``: the server's own for the bucket, the user's for everything else."""

    def __init__(self, services: Services, caller: Caller, profile: str) -> None:
        self._stores = services.stores
        self._user = services.storage(caller.user)
        self._profile = profile

    def find(self, profile: str) -> StorageCredential | None:
        return self._stores.credential(profile) if profile == self._profile else self._user.find(profile)


def start(
    services: Services,
    caller: Caller,
    bucket_name: str,
    name: str,
    *,
    tag: str | None,
    description: str,
    metadata: dict[str, Any],
    resume: bool,
) -> UploadReply:
    """Begin an upload, or take up one again: where its files and its manifest go."""
    bucket = open_bucket(services, caller, bucket_name, write=True)
    place = place_of(services, bucket)
    place.require_remote(bucket_name)
    areas = Areas(bucket.store.backend)
    if resume:
        area = _pending(areas, name, tag)
        if services.jobs.runs(("upload", place.url, area.record.id)):
            raise ConflictError(f"{name}:{tag} is being taken over just now", hint="See: osmo dataset info --all")
        area = areas.touch(area)
    else:
        if tag and tag != LATEST:
            check_tag(tag)
        described = {"description": description} if description else {}
        checked = attributes.check({**metadata, **described}, "the metadata")
        areas.sweep(time.time())
        area = areas.begin_upload(check_name(name), _next(bucket, name), user=caller.user, metadata=checked)
    return UploadReply(
        version_id=str(area.record.number),
        region=place.region,
        storage_path=f"{place.url}/{area.hashes}",
        manifest_path=f"{place.url}/{area.manifest}",
    )


def _pending(areas: Areas, name: str, tag: str | None) -> Area:
    if not tag:
        raise UsageError("Version is required to resume.", hint=f"Name it, as {name}:3")
    number = version_number(tag)
    if number is None:
        raise UsageError(f"Version must be a number: {tag}")
    area = areas.upload(name, number)
    if area is None:
        raise UsageError(f"Dataset {name} tag {tag} does not have any PENDING versions.")
    return area


def _next(bucket: Bucket, name: str) -> int:
    """The number that the next version gets, unless another comes before."""
    try:
        head = require_dataset(bucket.refs.find(name), to="upload")
    except NotFoundError:
        return 1
    return max([head.last_version, *bucket.refs.numbers(head.id)]) + 1


def finish(
    services: Services, caller: Caller, bucket_name: str, name: str, said: Finish
) -> tuple[UploadReply, list[str]]:
    """Make a version of an upload. Done again it says the same again."""
    bucket = open_bucket(services, caller, bucket_name, write=True)
    place = place_of(services, bucket)
    place.require_remote(bucket_name)
    number = version_number(said.version_id)
    if number is None:
        raise UsageError(f"{said.version_id[:40]!r} is not a version")
    area = Areas(bucket.store.backend).upload(name, number)
    if area is None:
        before = made_of(bucket, name, number, said.checksum)
        if before is None:
            raise NotFoundError(
                f"Dataset version {number} of {name} is not being uploaded", hint="Begin again: osmo dataset upload"
            )
        return UploadReply(version_id=str(before.number)), []
    return _taken(services, caller, bucket, place, area, said)


def _taken(
    services: Services, caller: Caller, bucket: Bucket, place: Place, area: Area, said: Finish
) -> tuple[UploadReply, list[str]]:
    record, profile = area.record, parse_url(place.url).profile
    labels = attributes.check(said.labels, "the labels")
    tag = None if not said.tag or said.tag == LATEST or said.tag.isdigit() else check_tag(said.tag)
    credentials: CredentialSource = _Credentials(services, caller, profile)
    owner = caller.user == services.settings.user

    def allowed(wanted: str) -> bool:
        # What lies beside the store in its bucket would be read as the server: that is for its owner alone.
        try:
            return (wanted != profile or owner) and credentials.find(wanted) is not None
        except AccessError:
            return False

    def work(stop: Stop) -> Version:
        with Buckets(credentials) as buckets:
            made = receive(
                bucket,
                area,
                buckets=buckets,
                reach=Reach(place.url, allowed),
                checksum=said.checksum,
                labels=labels,
                tag=tag,
                progress=_Watch(stop),
            )
        services.index.changed(bucket.name, made.dataset)
        return made

    done = services.jobs.ask(("upload", place.url, record.id), work)
    if done is None:
        text = (
            f"{record.dataset}:{record.number} is still being taken over; osmo dataset info shows it when it is there"
        )
        return UploadReply(version_id=str(record.number)), [text]
    made = done.number
    warnings = [] if made == record.number else [f"Others made versions meanwhile: this one is {record.dataset}:{made}"]
    return UploadReply(version_id=str(made)), warnings


def download(
    services: Services, caller: Caller, bucket_name: str, name: str, *, tag: str | None
) -> tuple[DownloadReply, list[str]]:
    """Offer a version, or each member of a collection whatever the tag, in OSMO's layout."""
    bucket = open_bucket(services, caller, bucket_name)
    place = place_of(services, bucket)
    place.require_remote(bucket_name)
    if not services.stores.is_writable(bucket_name):
        raise AccessError(
            f"Bucket {bucket_name} is declared as read-only, and what OSMO's client downloads is written there first",
            hint="Use casstore's own osmo command.",
        )
    together = is_collection(bucket, name)
    versions = bucket.resolve_all(name, None if together else tag)
    for version in versions:
        bucket.stamp_use(version)
    offers = [_offered(services, caller, bucket, place, version) for version in versions]
    warnings = [
        f"{version}: {area.record.left_out} links and paths that are not text are left out: OSMO's layout has none"
        for version, area in zip(versions, offers, strict=True)
        if area.record.left_out
    ]
    reply = DownloadReply(
        dataset_names=[version.dataset for version in versions],
        dataset_versions=[str(version.number) for version in versions],
        locations=[f"{place.url}/{area.manifest}" for area in offers],
        new_locations=[""] * len(versions),
        is_collection=together,
    )
    return reply, warnings


def _offered(services: Services, caller: Caller, bucket: Bucket, place: Place, version: Version) -> Area:
    credentials = _Credentials(services, caller, parse_url(place.url).profile)

    def work(stop: Stop) -> Area:
        with Buckets(credentials) as buckets:
            _swept(bucket)
            return make_offer(bucket, version, buckets, place.link, _Watch(stop))

    found = services.jobs.ask(("download", place.url, version.manifest), work)
    if found is None:
        raise ConflictError(
            f"{version} is being laid out for OSMO's client, which takes a while", hint="Ask again in a minute."
        )
    return found


def _swept(bucket: Bucket) -> None:
    try:
        Areas(bucket.store.backend).sweep(time.time())
    except CasstoreError as error:
        _log.warning("%s: what is over was not removed: %s", bucket.store.url, error.message)
