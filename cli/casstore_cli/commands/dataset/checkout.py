"""``osmo dataset status``: what a downloaded folder is.

Decided here and only here: how that is told.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from casstore_cli import output
from casstore_cli.commands.dataset.options import existing_folder
from casstore_cli.multi import Command

if TYPE_CHECKING:
    from casstore.dataset.checkout import FolderStatus
    from casstore.transfer.survey import LocalChange

_LETTERS = {"added": "A", "modified": "M", "removed": "D"}


@click.command("status", cls=Command)
@click.argument("path", metavar="DIR")
@click.option("--against", metavar="NAME", help="Compare with this version, whatever was downloaded.")
@click.option("--verify", is_flag=True, help="Read every file, also those that nobody has touched.")
@output.format_option("text", "json")
def status(path: str, against: str | None, verify: bool, format_type: str) -> None:
    """Show which version was downloaded to the folder DIR, what was changed there, and whether there is a newer one.

    A is added, D deleted, M modified. Only files that were touched since the download are read.
    """
    from casstore.config import find_paths
    from casstore.dataset import checkout, parse_ref
    from casstore_cli.caching import open_files
    from casstore_cli.commands.dataset.transfer import working
    from casstore_cli.stores import open_bucket

    existing_folder(path)
    ref = None if against is None else parse_ref(against)
    if ref is not None:
        name = ref.bucket
    else:
        known = checkout.find(find_paths().state, path)
        name = None if known is None else known.bucket
    with open_bucket(name) as bucket:
        other = None if ref is None else bucket.resolve(ref.name, ref.tag)
        with working("Comparing", "nothing was changed") as meter:
            found = checkout.status(bucket, path, against=other, verify=verify, files=open_files(), progress=meter)
        bucket_name = bucket.name
    if format_type == "json":
        output.document(_object(path, bucket_name, found))
        return
    since = f", downloaded {output.date(found.made_at)}" if found.made_at else ""
    output.text(f"{found.version} of bucket {bucket_name}{since}")
    if found.regexes is not None:
        output.text(f"Only what matches {output.escape(' or '.join(found.regexes))}")
    if found.unfinished:
        output.text("An update of this folder was stopped: download again to complete it.")
    for change in sorted(found.changes, key=lambda change: change.path.split(b"/")):
        output.text(_line(change))
    counts = {word: sum(change.status == word for change in found.changes) for word in _LETTERS}
    output.text(
        f"{counts['added']} added, {counts['removed']} deleted, {counts['modified']} modified"
        if found.changes
        else "Nothing was changed."
    )
    if found.newest is not None and found.newest.number > found.version.number:
        output.text(f"Version {found.newest.number} is newer.")


def _line(change: LocalChange) -> str:
    folder = "/" if change.kind is not None and change.kind.name == "DIRECTORY" else ""
    details = f"  ({', '.join(change.what)})" if change.what else ""
    return f"{_LETTERS[change.status]}  {output.escape(change.path)}{folder}{details}"


def _object(path: str, bucket: str, found: FolderStatus) -> dict[str, Any]:
    newest = found.newest
    return {
        "path": os.path.realpath(path),
        "bucket": bucket,
        "name": found.version.dataset,
        "version": str(found.version.number),
        "checksum": found.version.record.checksum,
        "downloaded": found.made_at,
        "regexes": None if found.regexes is None else list(found.regexes),
        "unfinished": found.unfinished,
        "clean": not found.changes,
        "latest": None if newest is None else str(newest.number),
        "newer": newest is not None and newest.number > found.version.number,
        "changes": [
            {
                "status": change.status,
                "path": os.fsdecode(change.path),
                "type": "other" if change.kind is None else change.kind.name.lower(),
                "what": list(change.what),
            }
            for change in found.changes
        ],
    }
