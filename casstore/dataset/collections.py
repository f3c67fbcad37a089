"""Collections: named sets of versions of datasets.

Decided here and only here: how members are named, flattened and told apart, and what happens to a collection
whose members go away. A collection holds one version of a dataset at most; one that is emptied is deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from casstore.dataset.catalog import Catalog, require_dataset
from casstore.dataset.ref import Ref, parse_ref
from casstore.dataset.summary import CollectionChange
from casstore.errors import ConflictError, NotFoundError, UsageError
from casstore.model import DatasetType, Head, Member
from casstore.repo.refs import Refs, is_active

__all__ = ["Collections"]


class Collections:
    """Creates and changes the collections of one bucket."""

    def __init__(self, refs: Refs, catalog: Catalog, bucket: str) -> None:
        self._refs = refs
        self._catalog = catalog
        self._bucket = bucket

    def ref(self, text: str) -> Ref:
        """Parse a reference to something in this bucket."""
        ref = parse_ref(text)
        if ref.bucket not in (None, self._bucket):
            raise UsageError(
                f"{text!r} is in another bucket than {self._bucket!r}", hint="a collection stays within one bucket"
            )
        return ref

    def members(self, refs: Iterable[str]) -> dict[str, Member]:
        """Return the members that these references name, by dataset id: versions, and the members of
        collections.

        ``ConflictError`` when two of them are different versions of one dataset.
        """
        found: dict[str, Member] = {}
        for text in refs:
            ref = self.ref(text)
            for version in self._catalog.resolve_all(self._refs.find(ref.name), ref.tag):
                member = Member(version.dataset_id, version.number)
                if found.setdefault(member.dataset_id, member) != member:
                    other = found[member.dataset_id].version
                    raise ConflictError(
                        f"versions {other} and {member.version} of {version.dataset!r} can't be in one collection",
                        hint="a collection holds one version of a dataset: name only one",
                    )
        return found

    def create(self, name: str, refs: Sequence[str], user: str) -> Head:
        """Create a collection; ``ConflictError`` when the name is taken."""
        if not refs:
            raise UsageError(f"collection {name!r} needs at least one dataset")
        members = self.members(refs)
        head = self._refs.create_dataset(
            name,
            created_by=user,
            type=DatasetType.COLLECTION,
            members=members.values(),
            exclusive=True,
        )
        # Whoever deleted one of them just now did not see this collection.
        gone = [member for member in members.values() if not self._is_there(member)]
        if gone:
            self._refs.delete_dataset(head.id)
            raise ConflictError("one of the datasets was deleted meanwhile", hint="collect again")
        return head

    def change(self, name: str, add: Sequence[str], remove: Sequence[str]) -> Head:
        """Remove members, then add members; the head comes back ``deleted`` when none is left."""
        if not add and not remove:
            raise UsageError("nothing to add and nothing to remove")
        head = self.find(name)
        added = self.members(add)
        removals = [self._removal(text) for text in remove]

        def change(head: Head) -> Head:
            kept = {member.dataset_id: member for member in head.members}
            for text, ids, only in removals:
                named = ids or self._ids_named(text, kept)
                chosen = [kept[key] for key in named if key in kept]
                if only is not None:
                    chosen = [member for member in chosen if member in only]
                if not chosen:
                    raise NotFoundError(
                        f"{text!r} is not in collection {name!r}", hint=f"see `osmo dataset info {name}`"
                    )
                for member in chosen:
                    del kept[member.dataset_id]
            for member in added.values():
                if kept.setdefault(member.dataset_id, member) != member:
                    dataset = self._name_of(member.dataset_id)
                    raise ConflictError(
                        f"collection {name!r} has version {kept[member.dataset_id].version} of {dataset!r} already,"
                        f" not {member.version}",
                        hint=f"add `--remove {dataset}` to the same command",
                    )
            members = sorted(kept.values(), key=lambda member: member.dataset_id)
            return msgspec.structs.replace(head, members=members, deleted=not members)

        return self._refs.update_head(head.id, change)

    def drop_members(self, collection: Head, members: Iterable[Member]) -> CollectionChange:
        """Take versions that are going to be deleted out of a collection."""
        going = set(members)

        def change(head: Head) -> Head:
            kept = [member for member in head.members if member not in going]
            if len(kept) == len(head.members):
                return head
            return msgspec.structs.replace(head, members=kept, deleted=not kept)

        try:
            changed = self._refs.update_head(collection.id, change)
        except NotFoundError:
            return CollectionChange(collection.name, deleted=True)
        return CollectionChange(changed.name, deleted=changed.deleted)

    def find(self, name: str) -> Head:
        """Return the head of a collection; ``UsageError`` when the name is a dataset's."""
        head = self._refs.find(name)
        if head.type != DatasetType.COLLECTION:
            raise UsageError(f"{name!r} is a dataset, not a collection")
        return head

    def _removal(self, text: str) -> tuple[str, list[str], set[Member] | None]:
        """Return what to remove: the reference, the dataset ids it means, and the members when versions are meant."""
        ref = self.ref(text)
        try:
            head = self._refs.find(ref.name)
        except NotFoundError:
            return text, [], None  # a dataset that was deleted: found by its old name among the members
        if head.type == DatasetType.COLLECTION:
            if ref.tag is not None:
                require_dataset(head, to="choose a version of")
            return text, [member.dataset_id for member in head.members], set(head.members)
        if ref.tag is None:
            return text, [head.id], None
        number, _ = self._catalog.number_of(head, ref.tag, any_state=True)
        return text, [head.id], {Member(head.id, number)}

    def _ids_named(self, text: str, members: Iterable[str]) -> list[str]:
        name = parse_ref(text).name
        return [key for key in members if name in (key, self._name_of(key))]

    def _name_of(self, dataset_id: str) -> str:
        """Return the name of a dataset, deleted or not; its id when nothing of it is left."""
        try:
            return self._refs.read_head(dataset_id)[0].name
        except NotFoundError:
            return dataset_id

    def _is_there(self, member: Member) -> bool:
        head, _ = self._refs.read_head(member.dataset_id)
        return not head.deleted and is_active(head, member.version)
