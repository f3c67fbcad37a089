"""From what OSMO 6.2's client has uploaded to a version of ours.

Decided here and only here: what of an upload is believed. The manifest was written by whoever had the bucket's
credential: every file is compared with the digest that the manifest has of it, the manifest with the checksum that the
client says, and a file that is not in the upload itself is read only where ``Reach`` lets it be. A version is made of
all of it or not at all; then the upload is removed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from casstore.dataset.adopt.base import Buckets
from casstore.dataset.adopt.osmo import Locate, OsmoDataset, OsmoVersion
from casstore.dataset.adopt.take import Taking, commit_for, survey
from casstore.dataset.exchange.areas import Area, Areas
from casstore.dataset.moving import memory_dir
from casstore.dataset.summary import Version
from casstore.errors import AccessError, CasstoreError, ConflictError, NotFoundError, UsageError
from casstore.remote.urls import REMOTE_SCHEMES, parse_url, shown
from casstore.repo import layout
from casstore.transfer.foreign import Problem
from casstore.transfer.memo import Memo
from casstore.transfer.progress import Progress

if TYPE_CHECKING:
    from casstore.dataset.bucket import Bucket

__all__ = ["Reach", "made_of", "receive"]

_SHOWN = 3


class Reach:
    """Which objects outside of an upload may become part of a version: a ``Locate``.

    Those that the bucket offers or holds for other uploads, whose names nobody can guess, and what ``allowed`` says of
    the profile of a URL: that the user may read there.
    """

    def __init__(self, url: str, allowed: Callable[[str], bool]) -> None:
        self._inside = f"{url}/{layout.EXCHANGE}data/"
        self._allowed = allowed

    def locate(self, url: str) -> tuple[str, str]:
        """See ``Locate``."""
        place = parse_url(url)
        if place.scheme not in REMOTE_SCHEMES:
            raise UsageError("it is linked to something that is not object storage")
        if not place.url.startswith(self._inside) and not self._allowed(place.profile):
            raise AccessError(
                f"it is linked to {shown(place.url)}, for which you have no credential here: see osmo credential set"
            )
        return place.bucket_url, place.prefix


def receive(
    bucket: Bucket,
    area: Area,
    *,
    buckets: Buckets,
    reach: Locate,
    checksum: str,
    labels: dict[str, Any] | None = None,
    tag: str | None = None,
    progress: Progress,
) -> Version:
    """Make a version of an upload, once, and remove it. ``checksum`` is what the client says of its manifest.

    ``ConflictError`` says what is wrong with the upload; it stays, so that it can be completed.
    """
    record, areas = area.record, Areas(bucket.store.backend)
    made = _made(bucket, record.dataset, lambda adopted: adopted.get("dataset_id") == record.id)
    if made is None:
        made = _take(bucket, areas.touch(area), buckets, reach, checksum, labels, tag, progress)
    with contextlib.suppress(CasstoreError):  # what is left goes when its time is over
        now = areas.upload(record.dataset, record.number)
        if now is not None and now.record.id == record.id:
            areas.close(now)
    return made


def _take(
    bucket: Bucket,
    area: Area,
    buckets: Buckets,
    reach: Locate,
    checksum: str,
    labels: dict[str, Any] | None,
    tag: str | None,
    progress: Progress,
) -> Version:
    record = area.record
    client, prefix = buckets.open(f"{bucket.store.url}/{area.folder}")
    with OsmoDataset(client, f"{prefix}/", record.id, reach) as dataset:
        found = _manifest(dataset, area)
        looked = survey(found)
        if looked.problems:
            raise _refused(record.dataset, looked.problems)
        if checksum and found.checksum != checksum:
            raise ConflictError(
                f"the manifest of {record.dataset}:{record.number} is not the one that was announced:"
                f" its checksum is {found.checksum}, not {checksum[:64]}",
                hint="two clients may have uploaded it at once: upload again",
            )
        with Memo(memory_dir(bucket), found.url, bucket.store.id, exclusive=False) as memo:
            taking = Taking(bucket, record.dataset, buckets, memo, progress=progress)
            made = taking.take(
                found,
                lambda provenance: commit_for(
                    bucket,
                    record.dataset,
                    provenance=provenance,
                    metadata=record.metadata,
                    labels=labels,
                    tag=tag,
                    force=True,
                ),
            )
    if made.result is None:
        raise _refused(record.dataset, made.problems)
    return made.result.version


def _manifest(dataset: OsmoDataset, area: Area) -> OsmoVersion:
    number = area.record.number
    for version in dataset.versions():
        if version.number == number:
            return version
    raise ConflictError(
        f"nothing was uploaded for {area.record.dataset}:{number}: it has no manifest",
        hint="were there any files, and did they fit the regular expression?",
    )


def _refused(name: str, problems: list[Problem]) -> ConflictError:
    named = "; ".join(
        f"{one.path.decode('utf-8', 'backslashreplace')[:200]}: {one.message}" for one in problems[:_SHOWN]
    )
    more = f" (and {len(problems) - _SHOWN} more)" if len(problems) > _SHOWN else ""
    return ConflictError(
        f"no version of {name} was made, for {named}{more}", hint="the upload is kept: complete it with --resume"
    )


def made_of(bucket: Bucket, name: str, number: int, checksum: str) -> Version | None:
    """Return the version that came of an upload which is finished already, by its promised number and its checksum."""
    return _made(bucket, name, lambda said: (said.get("version"), said.get("checksum")) == (number, checksum))


def _made(bucket: Bucket, name: str, fits: Callable[[dict[str, Any]], bool]) -> Version | None:
    """The newest of the versions which came of uploads of this kind that fits what its record says of it."""
    try:
        versions = bucket.info(name, order="desc").versions
    except (NotFoundError, UsageError):
        return None
    for one in versions:
        adopted = one.version.record.provenance.get("adopted")
        if isinstance(adopted, dict) and f"/{layout.EXCHANGE}" in str(adopted.get("source")) and fits(adopted):
            return one.version
    return None
