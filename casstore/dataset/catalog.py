"""Looking things up: versions by tag or number, datasets by name, collections by member.

Decided here and only here: which version a tag means, which states of versions are shown, and what a list of
datasets holds: what can't be read of it is told, and left out. Nothing here writes.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

from casstore.dataset.ref import LATEST, version_number
from casstore.dataset.summary import DatasetInfo, DatasetSummary, MemberInfo, Version, VersionInfo
from casstore.errors import CasstoreError, IntegrityError, NotFoundError, UsageError
from casstore.model import DatasetType, Head, Member, VersionState, VersionStatus
from casstore.repo.refs import Refs, is_active

__all__ = ["Catalog", "Containing", "require_dataset"]

Containing: TypeAlias = Mapping[Member, tuple[Head, ...]]
"""The collections that contain a member."""


def require_dataset(head: Head, *, to: str) -> Head:
    """Return the head unless it is a collection's: ``UsageError`` says that ``to`` do this it takes a dataset."""
    if head.type == DatasetType.COLLECTION:
        raise UsageError(
            f"{head.name!r} is a collection: to {to} it takes a dataset",
            hint=f"see its members with `osmo dataset info {head.name}`",
        )
    return head


class Catalog:
    """Reads the refs of one bucket."""

    def __init__(self, refs: Refs, bucket: str, warn: Callable[[str], None] | None = None) -> None:
        """``warn`` is told what was left out of a list because it can't be read; without it a logger is."""
        self._refs = refs
        self._bucket = bucket
        self._warn = warn or logging.getLogger("casstore").warning

    def _damaged(self, error: CasstoreError) -> None:
        self._warn(f"{error.message}: left out; run `osmo dataset verify`")

    # ---- versions

    def ready(self, head: Head) -> list[int]:
        """Return the numbers of the versions that are ready, ascending."""
        return [number for number in self._refs.versions(head.id, head) if is_active(head, number)]

    def version(self, head: Head, number: int, *, latest: int | None) -> Version:
        """Return one version, whatever its state; ``latest`` is the number of the latest."""
        tags = [tag for tag, tagged in head.tags.items() if tagged == number]
        if number == latest:
            tags.append(LATEST)
        return Version(
            dataset=head.name,
            dataset_id=head.id,
            record=self._refs.read_version(head.id, number),
            state=head.versions.get(number, VersionState()),
            tags=tuple(sorted(tags)),
        )

    def number_of(self, head: Head, tag: str | None, *, any_state: bool = False) -> tuple[int, int | None]:
        """Return the number that a tag or version number means, and that of the latest version.

        ``NotFoundError`` when there is none such, or (unless ``any_state``) when it was deleted.
        """
        listed = self._refs.versions(head.id, head)
        ready = [number for number in listed if is_active(head, number)]
        latest = ready[-1] if ready else None
        if tag is None or tag == LATEST:
            if latest is None:
                raise NotFoundError(f"dataset {head.name!r} has no version that is ready")
            return latest, latest
        number = version_number(tag)
        number = head.tags.get(tag) if number is None else number
        if number is None or number not in listed:
            known = ", ".join([*sorted(head.tags)[:10], *(["latest"] if ready else [])])
            raise NotFoundError(
                f"dataset {head.name!r} has no version or tag {tag!r}",
                hint=f"its tags are {known}" if known else "no version of it is ready",
            )
        if number not in ready and not any_state:
            raise NotFoundError(f"version {number} of {head.name!r} was deleted", hint="choose another version")
        return number, latest

    def resolve(self, head: Head, tag: str | None, *, any_state: bool = False) -> Version:
        """Return the version that a tag or version number means, the latest by default."""
        number, latest = self.number_of(head, tag, any_state=any_state)
        return self.version(head, number, latest=latest)

    def members(self, collection: Head) -> list[MemberInfo]:
        """Return the members of a collection, sorted by name."""

        def look_up(member: Member) -> MemberInfo:
            number = member.version
            try:
                head, _ = self._refs.read_head(member.dataset_id)
            except NotFoundError:  # deleted, and collected as garbage since
                return MemberInfo(member.dataset_id, member.dataset_id, number, None)
            gone = head.deleted or not is_active(head, number)
            ready = [] if gone else self.ready(head)
            version = None if gone else self.version(head, number, latest=ready[-1] if ready else None)
            return MemberInfo(head.name, head.id, number, version)

        return sorted(self._refs.each(look_up, collection.members), key=lambda member: member.name)

    def resolve_all(self, head: Head, tag: str | None) -> list[Version]:
        """Return the version of a dataset, or those of all members of a collection."""
        if head.type == DatasetType.DATASET:
            return [self.resolve(head, tag)]
        if tag is not None:
            raise UsageError(f"{head.name!r} is a collection: it has no tags and no versions")
        versions: list[Version] = []
        for member in self.members(head):
            if member.version is None:
                raise NotFoundError(
                    f"version {member.number} of {member.name!r}, a member of {head.name!r}, was deleted",
                    hint=f"take it out with `osmo dataset recollect {head.name} --remove {member.name}`",
                )
            versions.append(member.version)
        return versions

    # ---- datasets

    def containing(self, heads: Iterable[Head] | None = None) -> Containing:
        """Return for each member of any collection the collections that contain it, sorted by name."""
        found: dict[Member, list[Head]] = defaultdict(list)
        for head in self._refs.heads() if heads is None else heads:
            for member in head.members:
                found[member].append(head)
        return {member: tuple(collections) for member, collections in found.items()}

    def heads(self) -> list[Head]:
        """Return the heads of all datasets and collections that can be read, sorted by name."""
        return self._refs.heads(self._damaged)

    def versions_of(self, heads: Sequence[Head], *, deleted: bool = False) -> list[list[Version]]:
        """Return the versions of each of these that can be read, ascending; those that are ready, or all."""
        listed = self._refs.each(self._listed, heads)
        wanted: list[tuple[int, Head, int, int | None]] = []
        for at, (head, numbers) in enumerate(zip(heads, listed, strict=True)):
            ready = [number for number in numbers if is_active(head, number)]
            latest = ready[-1] if ready else None
            wanted += [(at, head, number, latest) for number in (numbers if deleted else ready)]

        def read(item: tuple[int, Head, int, int | None]) -> Version | None:
            _, head, number, latest = item
            try:
                return self.version(head, number, latest=latest)
            except IntegrityError as error:
                self._damaged(error)
            except NotFoundError:
                pass  # collected as garbage just now
            return None

        found: list[list[Version]] = [[] for _ in heads]
        for item, version in zip(wanted, self._refs.each(read, wanted), strict=True):
            if version is not None:
                found[item[0]].append(version)
        return found

    def _listed(self, head: Head) -> list[int]:
        if head.type == DatasetType.COLLECTION:
            return []
        try:
            return self._refs.versions(head.id, head)
        except IntegrityError as error:
            self._damaged(error)
            return []

    def all_versions(self, head: Head, *, deleted: bool = False) -> list[Version]:
        """Return the versions of one dataset. See ``versions_of``."""
        return self.versions_of([head], deleted=deleted)[0]

    def summarized(self, heads: Sequence[Head]) -> list[tuple[Head, DatasetSummary]]:
        """Return those of these that can be read, each with its line of a list."""
        found: list[tuple[Head, DatasetSummary]] = []
        for head, versions in zip(heads, self.versions_of(heads, deleted=True), strict=True):
            try:
                found.append((head, self.summarize(head, versions)))
            except IntegrityError as error:
                self._damaged(error)
        return found

    def summarize(self, head: Head, versions: Sequence[Version]) -> DatasetSummary:
        """Return the line of a dataset with all its versions, deleted ones included, or of a collection."""
        ready = [version for version in versions if version.status == VersionStatus.READY]
        latest = ready[-1] if ready else None
        size, last_created = 0, head.created_at
        if latest is not None:
            size, last_created = latest.record.totals.size, latest.record.created_at
        elif head.type == DatasetType.COLLECTION:
            size = sum(member.version.record.totals.size for member in self.members(head) if member.version)
        return DatasetSummary(
            name=head.name,
            id=head.id,
            bucket=self._bucket,
            type=head.type,
            created_at=head.created_at,
            created_by=head.created_by,
            labels=head.labels,
            last_version=latest.number if latest else None,
            last_created_at=last_created,
            size=size,
            stored_size=sum(version.record.new_bytes for version in versions),
            users=tuple(sorted({version.record.created_by for version in ready})) or (head.created_by,),
        )

    def summaries(
        self,
        *,
        name: str | None,
        users: Sequence[str] | None,
        count: int | None,
        order: str,
        type: DatasetType | None,  # noqa: A002 - the word of the format
    ) -> list[DatasetSummary]:
        """Return the newest ``count`` that fit, in order of time. See ``Bucket.list``."""
        heads = [
            head for head in self.heads() if (not name or name in head.name) and (type is None or head.type == type)
        ]
        found = [
            summary
            for _, summary in self.summarized(heads)
            if (summary.last_version is not None or summary.type == DatasetType.COLLECTION)
            and (users is None or not set(users).isdisjoint(summary.users))
        ]
        found.sort(key=lambda summary: (summary.last_created_at, summary.name))
        if count is not None:
            found = found[max(0, len(found) - count) :]
        return found if order == "asc" else found[::-1]

    def info(self, head: Head, *, tag: str | None, all_states: bool, count: int, order: str) -> DatasetInfo:
        """Return everything about one dataset or collection. See ``Bucket.info``."""
        if head.type == DatasetType.COLLECTION:
            if tag is not None:
                raise UsageError(f"{head.name!r} is a collection: it has no tags and no versions")
            return DatasetInfo(self.summarize(head, ()), (), tuple(self.members(head)))
        versions = self.all_versions(head, deleted=True)
        shown = [version for version in versions if all_states or version.status == VersionStatus.READY]
        if tag is not None:
            number, _ = self.number_of(head, tag, any_state=True)
            shown = [version for version in versions if version.number == number]
        shown = shown[max(0, len(shown) - count) :]
        containing = self.containing(self.heads())
        infos = [
            VersionInfo(
                version,
                tuple(collection.name for collection in containing.get(Member(head.id, version.number), ())),
            )
            for version in (shown if order == "asc" else shown[::-1])
        ]
        return DatasetInfo(self.summarize(head, versions), tuple(infos), ())
