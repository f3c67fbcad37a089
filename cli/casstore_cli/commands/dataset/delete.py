"""``osmo dataset delete``.

Decided here and only here: what is asked before something is deleted, and what is told afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from casstore.errors import UsageError
from casstore.model import DatasetType, VersionStatus
from casstore_cli import output
from casstore_cli.multi import Command

if TYPE_CHECKING:
    from casstore.dataset import Bucket, DeleteResult, Ref, VersionInfo

_ALL = 1 << 62


@click.command("delete", cls=Command)
@click.argument("name")
@click.option("-a", "--all", "all_", is_flag=True, help="All versions, and with them the dataset.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@output.format_option("text", "json")
def delete(name: str, all_: bool, force: bool, format_type: str) -> None:
    """Delete the version NAME[:TAG], all of them, or the collection NAME.

    Versions leave the collections that contain them. The data of what is deleted is removed later, as far as nothing
    else uses it.
    """
    from casstore.dataset import parse_ref
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name)
    if all_ and ref.tag is not None:
        raise UsageError(f"--all means every version: name the dataset without :{ref.tag}")
    with open_bucket(ref.bucket, write=True) as bucket:
        chosen = [] if force else _chosen(bucket, ref, all_=all_)
        if not force and not _confirmed(ref.name, bucket.name, chosen, all_=all_):
            if format_type == "json":
                output.document({"name": ref.name, "versions": [], "deleted": False, "collections": []})
            else:
                output.text("Nothing was deleted.")
            return
        # Collections that were shown may lose members; one that is made meanwhile stops the deletion.
        shown = any(version.collections for version in chosen)
        result = bucket.delete(ref.name, tag=ref.tag, all_versions=all_, force=force or shown)
        if format_type == "json":
            output.document(
                {
                    "name": result.name,
                    "versions": [str(number) for number in result.versions],
                    "deleted": result.dropped,
                    "collections": [{"name": c.name, "deleted": c.deleted} for c in result.collections],
                }
            )
        else:
            _tell(result, bucket.name)


def _chosen(bucket: Bucket, ref: Ref, *, all_: bool) -> Sequence[VersionInfo]:
    """The versions that are going to be deleted; none for a collection."""
    info = bucket.info(ref.name, count=_ALL)
    if info.summary.type == DatasetType.COLLECTION or all_:
        return info.versions
    number = bucket.resolve(ref.name, ref.tag).number
    return [version for version in info.versions if version.version.number == number]


def _confirmed(name: str, bucket: str, chosen: Sequence[VersionInfo], *, all_: bool) -> bool:
    if not chosen:
        return output.confirm(f"Are you sure you want to delete collection {name} from bucket {bucket}?")
    contained = [(v.version.number, ", ".join(v.collections)) for v in chosen if v.collections]
    if contained:
        output.message("These versions are in collections, which lose them:")
        output.message(output.table(("Version", "Collections"), contained))
    numbers = ", ".join(str(v.version.number) for v in chosen[:20]) + (", ..." if len(chosen) > 20 else "")
    what = f"all versions ({numbers})" if all_ else f"version {numbers}"
    return output.confirm(f"Are you sure you want to delete {what} of dataset {name} from bucket {bucket}?")


def _tell(result: DeleteResult, bucket: str) -> None:
    if result.type == DatasetType.COLLECTION:
        output.text(f"Collection {result.name} has been deleted from bucket {bucket}.")
        return
    for number in result.versions:
        output.text(
            f"Dataset {result.name} version {number} bucket {bucket} has been marked as "
            f"{VersionStatus.PENDING_DELETE.value}."
        )
    if result.dropped:
        output.text(f"Dataset {result.name} has been deleted.")
    for collection in result.collections:
        what = "has been deleted with it" if collection.deleted else "lost it"
        output.text(f"Collection {collection.name} {what}.")
