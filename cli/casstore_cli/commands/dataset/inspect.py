"""``osmo dataset inspect`` and ``diff``: what is in versions.

Decided here and only here: how files are listed. Text and JSON are written entry by entry, whatever their number;
the tree holds the entries that it shows, ``--count`` at most.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import UsageError
from casstore_cli import output
from casstore_cli.commands.dataset.options import count_option, regex_option
from casstore_cli.multi import Command

if TYPE_CHECKING:
    from casstore.dataset import Version
    from casstore.dataset.diff import Diff
    from casstore.model import Entry


@click.command("inspect", cls=Command)
@click.argument("name")
@regex_option
@count_option(1000)
@click.option("-a", "--all", "all_", is_flag=True, help="List folders too; a tree always shows them.")
@output.format_option("text", "tree", "json")
def inspect(name: str, regex: str | None, count: int, all_: bool, format_type: str) -> None:
    """List the files and links of the version NAME[:TAG], or of all members of a collection."""
    from casstore.dataset import parse_ref
    from casstore.model import Kind
    from casstore_cli.commands.dataset import shapes
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name)
    with open_bucket(ref.bucket) as bucket:
        entries: Iterator[Entry] = bucket.entries(ref.name, tag=ref.tag, regex=regex)
        if not all_ and format_type != "tree":
            entries = (entry for entry in entries if entry.kind != Kind.DIRECTORY)
        shown = islice(entries, count)
        if format_type == "json":
            array = output.Array()
            for entry in shown:
                array.add(shapes.entry(entry, bucket.store.url))
            array.close()
        elif format_type == "tree":
            for line in draw_tree(shown):
                output.text(line)
        else:
            for entry in shown:
                output.text(output.escape(entry.path) + ("/" if entry.kind == Kind.DIRECTORY else ""))
        if next(entries, None) is not None:
            output.message(f"There are more than these {count}; see all with a larger --count.")


def draw_tree(entries: Iterable[Entry]) -> Iterator[str]:
    """The lines of a tree. Folders on the way to an entry are drawn whether or not they are among the entries."""
    root: dict[bytes, Any] = {}
    links: dict[bytes, bytes] = {}
    for entry in entries:
        node = root
        for part in entry.path.split(b"/"):
            node = node.setdefault(part, {})
        if entry.target:
            links[entry.path] = entry.target
    pending: list[tuple[str, bytes, Iterator[tuple[bytes, Any]], int]] = [
        ("", b"", iter(sorted(root.items())), len(root))
    ]
    while pending:
        indent, folder, children, left = pending.pop()
        found = next(children, None)
        if found is None:
            continue
        name, below = found
        pending.append((indent, folder, children, left - 1))
        path = folder + name
        target = f" -> {output.escape(links[path])}" if path in links else ""
        yield f"{indent}{'├── ' if left > 1 else '└── '}{output.escape(name)}{target}"
        more = indent + ("│   " if left > 1 else "    ")
        pending.append((more, path + b"/", iter(sorted(below.items())), len(below)))


@click.command("diff", cls=Command)
@click.argument("name")
@click.argument("others", nargs=-1, required=True)
@click.option("-a", "--all", "all_", is_flag=True, help="Show every path; JSON always does.")
@output.format_option("text", "json")
def diff(name: str, others: tuple[str, ...], all_: bool, format_type: str) -> None:
    """Compare two versions: NAME:TAG OTHER[:TAG], or NAME TAG TAG.

    A is added, D deleted, M modified, R renamed. A folder that was added, deleted or renamed as a whole is one line.
    """
    from casstore.dataset import parse_ref
    from casstore_cli.stores import open_bucket

    old = parse_ref(name)
    if len(others) == 2 and old.tag is None:
        old, new = old._replace(tag=others[0]), old._replace(tag=others[1])
    elif len(others) == 1:
        new = parse_ref(others[0])
    else:
        raise UsageError("give two versions: NAME:TAG OTHER:TAG, or NAME TAG TAG")
    if (new.bucket or old.bucket) != old.bucket:
        raise UsageError("versions in two buckets can't be compared", hint="their chunks are not in one store")
    with open_bucket(old.bucket) as bucket:
        before, after = bucket.resolve(old.name, old.tag), bucket.resolve(new.name, new.tag)
        found = bucket.diff(before, after)
    if format_type == "json":
        output.document(_diff_object(found) | {"old": _version(before), "new": _version(after)})
        return
    from casstore_cli.commands.dataset import changes

    for line in changes.every_line(found.changes) if all_ else changes.lines(found.changes):
        output.text(line)
    counts = f"{found.added} added, {found.removed} deleted, {found.modified} modified, {found.renamed} renamed"
    output.text(f"{before} -> {after}: {'no difference' if found.identical else counts}")
    output.text(f"{output.size(found.shared_bytes)} shared, {output.size(found.new_bytes)} new")


def _version(version: Version) -> dict[str, str]:
    return {"name": version.dataset, "version": str(version.number), "checksum": version.record.checksum}


def _diff_object(found: Diff) -> dict[str, Any]:
    return {
        "identical": found.identical,
        "added": found.added,
        "removed": found.removed,
        "modified": found.modified,
        "renamed": found.renamed,
        "shared_bytes": found.shared_bytes,
        "new_bytes": found.new_bytes,
        "changes": [
            {
                "status": change.status,
                "path": os.fsdecode(change.path),
                "old_path": None if change.old_path is None else os.fsdecode(change.old_path),
                "type": change.kind.name.lower(),
                "what": list(change.what),
                "old_size": change.old_size,
                "new_size": change.new_size,
            }
            for change in found.changes
        ],
    }
