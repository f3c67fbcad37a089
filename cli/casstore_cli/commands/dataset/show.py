"""``osmo dataset list`` and ``info``.

Decided here and only here: their columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from casstore_cli import output
from casstore_cli.commands.dataset.options import count_option, order_option
from casstore_cli.multi import Command, ManyOption

if TYPE_CHECKING:
    from casstore.dataset import DatasetInfo

_LIST = ("Bucket", "Name", "ID", "Created Date", "Last Version Created", "Last Version", "Storage Size", "Type")
_VERSIONS = ("Version", "Status", "Created By", "Created Date", "Last Used", "Size", "Checksum")


@click.command("list", cls=Command)
@click.option("-n", "--name", help="Only names that contain this.")
@click.option("-u", "--user", cls=ManyOption, metavar="USER...", help="Only datasets these users uploaded to.")
@click.option("-b", "--bucket", cls=ManyOption, metavar="BUCKET...", help="Only in these buckets; else in all.")
@click.option("-a", "--all-users", is_flag=True, help="Whoever uploaded; else only what you uploaded to.")
@count_option(20)
@order_option
@output.format_option("text", "json")
def list_(
    *,
    name: str | None,
    user: tuple[str, ...],
    bucket: tuple[str, ...],
    all_users: bool,
    count: int,
    order: str,
    format_type: str,
) -> None:
    """List the newest datasets and collections, oldest first."""
    from casstore.errors import CasstoreError, UsageError
    from casstore_cli.commands.dataset import shapes
    from casstore_cli.remote import visible
    from casstore_cli.stores import open_bucket

    if user and all_users:
        raise UsageError("--user and --all-users exclude each other")
    config = visible()
    users = None if all_users else list(user) or [config.user]
    found = []
    names = bucket or sorted(config.buckets)
    for bucket_name in names:
        try:
            with open_bucket(bucket_name, config=config) as opened:
                found += [
                    (summary, opened.store.url)
                    for summary in opened.list(name=name, users=users, count=count, order="desc")
                ]
        except CasstoreError as error:
            if bucket or len(names) == 1:
                raise
            # One missing disk must not hide the other buckets.
            told = error.message if error.message.startswith("bucket ") else f"bucket {bucket_name!r}: {error.message}"
            output.warn(output.escape(told))
    found.sort(key=lambda item: item[0].last_created_at, reverse=True)
    del found[count:]
    if order == "asc":
        found.reverse()
    if format_type == "json":
        output.document({"datasets": [shapes.summary(summary, url) for summary, url in found]})
        return
    if not found:
        output.text("No Datasets fit your query.")
        return
    output.text(
        output.table(
            _LIST,
            [
                (
                    s.bucket,
                    s.name,
                    s.id,
                    output.date(s.created_at),
                    output.date(s.last_created_at) if s.last_version else None,
                    s.last_version,
                    output.size(s.stored_size),
                    s.type.value,
                )
                for s, _ in found
            ],
        )
    )


@click.command("info", cls=Command)
@click.argument("name")
@click.option("-a", "--all", "all_", is_flag=True, help="Versions in any state.")
@count_option(100)
@order_option
@output.format_option("text", "json")
def info(name: str, all_: bool, count: int, order: str, format_type: str) -> None:
    """Show the dataset or collection NAME and its versions, or one of them with NAME:TAG."""
    from casstore.dataset import parse_ref
    from casstore_cli.commands.dataset import shapes
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name)
    with open_bucket(ref.bucket) as bucket:
        found = bucket.info(ref.name, tag=ref.tag, all_states=all_, count=count, order=order)
        if format_type == "json":
            output.document(shapes.info(found, bucket.store.url))
        else:
            _print_info(found)


def _print_info(found: DatasetInfo) -> None:
    head = found.summary
    collection = head.type.value == "COLLECTION"
    block = [("Name", head.name), ("ID", head.id), ("Bucket", head.bucket), ("Type", head.type.value)]
    if collection:
        created = output.date(head.created_at) or "N/A"
        block += [("Created By", head.created_by), ("Create Date", created), ("Size", output.size(head.size))]
    else:
        block.append(("Stored Size", output.size(head.stored_size)))
    for key, value in block:
        output.text(f"{key}: {output.escape(value)}")
    output.text("Labels:" + ("" if head.labels else " {}"))
    for line in output.tree_text(head.labels, 2) if head.labels else ():
        output.text(line)
    if collection:
        rows = [(m.name, m.number if m.version else f"{m.number} (deleted)") for m in found.members]
        _print_table(("Dataset", "Version"), rows)
        return
    versions = found.versions
    tags = [(v.version.number, ", ".join(v.version.tags)) for v in versions if v.version.tags]
    if tags:
        _print_table(("Version", "Tags"), tags)
    collections = [(v.version.number, ", ".join(v.collections)) for v in versions if v.collections]
    if collections:
        _print_table(("Version", "Collections"), collections)
    referring = [
        (v.version.number, *_references(v.version.record.provenance["references"]))
        for v in versions
        if "references" in v.version.record.provenance
    ]
    if referring:
        _print_table(("Version", "Files Elsewhere", "Size", "At"), referring)
    rows_of_versions = []
    for item in versions:
        record = item.version.record
        used = item.version.state.last_used or record.created_at
        rows_of_versions.append(
            (
                record.number,
                item.version.status.value,
                record.created_by,
                output.date(record.created_at),
                output.date(used),
                output.size(record.totals.size),
                record.checksum,
            )
        )
    _print_table(_VERSIONS, rows_of_versions)


def _references(found: object) -> tuple[str, str, str]:
    """What a version's record says of files that it only refers to. Anything may be in it."""
    known = found if isinstance(found, dict) else {}
    at = known.get("at")
    size = known.get("size")
    return (
        output.escape(str(known.get("files", "?"))),
        output.size(size) if isinstance(size, int) else "?",
        output.escape(", ".join(map(str, at))) if isinstance(at, list) else "?",
    )


def _print_table(headers: tuple[str, ...], rows: Sequence[Sequence[object]]) -> None:
    output.text()
    output.text(output.table(headers, rows))
