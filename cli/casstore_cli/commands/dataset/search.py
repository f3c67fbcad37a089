"""``osmo dataset query``.

Decided here and only here: how what a query finds is shown. The language is ``casstore.dataset``'s.
"""

from __future__ import annotations

import click

from casstore.errors import UsageError
from casstore_cli import output
from casstore_cli.commands.dataset import trees
from casstore_cli.multi import Command

_MOST = 1 << 20


@click.command("query", cls=Command)
@click.argument("file")
@click.option("-b", "--bucket", "bucket_name", help="Search this bucket; else the default one.")
@output.format_option("text", "json")
def query(file: str, bucket_name: str | None, format_type: str) -> None:
    """Search one bucket with the query in FILE; - reads it from standard input."""
    from casstore_cli.commands.dataset import shapes
    from casstore_cli.stores import open_bucket

    command = _read(file)
    with open_bucket(bucket_name) as bucket:
        found = bucket.query(command)
        url = bucket.store.url
        if format_type == "json":
            datasets = [shapes.summary(s, url) for s in found.datasets]
            versions = [shapes.version(v, url) for v in found.versions]
            output.document({"type": found.type, "datasets": datasets + versions})
        elif found.type == "VERSION":
            rows = [
                (
                    v.dataset,
                    v.number,
                    v.record.created_by,
                    output.date(v.record.created_at),
                    output.date(v.state.last_used or v.record.created_at),
                    output.size(v.record.totals.size),
                )
                for v in found.versions
            ]
            output.text(output.table(("Name", "Version ID", "Created By", "Created Date", "Last Used", "Size"), rows))
        else:
            lines = [(s.name, s.id, output.date(s.created_at), s.type.value) for s in found.datasets]
            output.text(output.table(("Name", "ID", "Created Date", "Type"), lines))


def _read(file: str) -> str:
    if file == "-":
        import sys

        data = sys.stdin.buffer.read(_MOST + 1)
        if len(data) > _MOST:
            raise UsageError(f"the query is larger than {_MOST} bytes")
    else:
        data = trees.read_file(file, _MOST)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not UTF-8 text") from None
