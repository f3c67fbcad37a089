"""Deleting versions, datasets and collections.

Decided here and only here: what is deleted when, and what a collection's claim on a version means: it is refused,
unless forced, and then the collection loses the member first. A crash in between leaves the version, in fewer
collections.
"""

from __future__ import annotations

from collections.abc import Sequence

from casstore.dataset.catalog import Catalog
from casstore.dataset.collections import Collections
from casstore.dataset.summary import DeleteResult
from casstore.errors import ConflictError, NotFoundError, UsageError
from casstore.model import DatasetType, Head, Member
from casstore.repo.refs import Refs

__all__ = ["delete"]


def delete(
    refs: Refs,
    catalog: Catalog,
    collections: Collections,
    name: str,
    *,
    tag: str | None,
    all_versions: bool,
    force: bool,
) -> DeleteResult:
    """Delete a version, all of them, or a collection. See ``Bucket.delete``."""
    head = refs.find(name)
    if head.type == DatasetType.COLLECTION:
        if tag is not None:
            raise UsageError(f"{name!r} is a collection: it has no versions to delete")
        refs.delete_dataset(head.id)
        return DeleteResult(name, head.type, (), dropped=True, collections=())
    if all_versions and tag is not None:
        raise UsageError(f"all versions of {name!r}, or the one called {tag!r}? Choose one")
    chosen = catalog.ready(head) if all_versions else [catalog.number_of(head, tag)[0]]
    members = [Member(head.id, number) for number in chosen]
    containing = catalog.containing()
    affected = {found.id: found for member in members for found in containing.get(member, ())}
    if affected and not force:
        names = ", ".join(sorted(repr(found.name) for found in affected.values()))
        raise ConflictError(
            f"a version of {name!r} that is to be deleted is in a collection: {names}",
            hint="take it out with `osmo dataset recollect`, or delete with --force",
        )
    changes = [collections.drop_members(found, members) for found in affected.values()]
    done: set[int] = set()

    def choose(_: Head, active: Sequence[int]) -> Sequence[int]:
        # All means all: a version that was committed since the look is among them.
        numbers = active if all_versions else [number for number in chosen if number in active]
        if not numbers and not all_versions:
            raise NotFoundError(f"version {chosen[0]} of {name!r} was deleted by somebody else meanwhile")
        done.clear()
        done.update(numbers)
        return numbers

    after = refs.delete_versions(head.id, choose)
    return DeleteResult(name, head.type, tuple(sorted(done)), after.deleted, tuple(changes))
