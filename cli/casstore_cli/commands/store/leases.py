"""``osmo store leases``.

Decided here and only here: how running operations are shown.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from casstore.errors import AccessError, UsageError
from casstore_cli import output
from casstore_cli.multi import Command
from casstore_cli.progress import duration

if TYPE_CHECKING:
    from casstore.backend.base import Backend
    from casstore.repo.leases import LeaseInfo


@click.command("leases", cls=Command)
@click.option("-b", "--bucket", "bucket_name", help="Look at this bucket; else the default one.")
@output.format_option("text", "json")
def leases(bucket_name: str | None, format_type: str) -> None:
    """Show who is storing something, or collecting garbage, right now.

    A lease that is not renewed runs out, and keeps nothing from then on.
    """
    from casstore_cli.stores import open_bucket

    with open_bucket(bucket_name) as bucket:
        found = _leases(bucket.store.backend)
    if format_type == "json":
        output.document({"leases": [_document(lease) for lease in found]})
        return
    rows = [
        (
            lease.record.kind if lease.record else "unreadable",
            (lease.record.dataset if lease.record else "") or None,
            (lease.record.user if lease.record else "") or None,
            f"{lease.record.host} ({lease.record.pid})" if lease.record else None,
            output.date(datetime.fromtimestamp(lease.begun, UTC)),
            f"{duration(lease.age)} ago",
            "run out" if lease.expired else "running",
        )
        for lease in found
    ]
    output.text(output.table(("Kind", "Dataset", "User", "Host (process)", "Since", "Renewed", "State"), rows))


def _leases(backend: Backend) -> list[LeaseInfo]:
    from casstore.repo.leases import list_leases

    try:
        return list_leases(backend)
    except (AccessError, UsageError):  # nothing may be written: then it is told by this machine's clock
        return list_leases(backend, now=time.time())


def _document(lease: LeaseInfo) -> dict[str, object]:
    record = lease.record
    return {
        "id": lease.id,
        "kind": record.kind if record else None,
        "dataset": record.dataset if record else None,
        "user": record.user if record else None,
        "host": record.host if record else None,
        "pid": record.pid if record else None,
        "since": datetime.fromtimestamp(lease.begun, UTC).isoformat(),
        "renewed_seconds_ago": round(lease.age, 3),
        "term_seconds": record.term if record else None,
        "expired": lease.expired,
    }
