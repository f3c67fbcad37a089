"""``osmo server audit``: who changed what on a server, and who was refused.

Decided here and only here: what these print.
"""

from __future__ import annotations

import click
import msgspec

from casstore.wire.audit import AUDIT_PATH, AuditEntry, AuditReply
from casstore_cli import login, output
from casstore_cli.multi import Command

_PAGE = 1000


@click.command("audit", cls=Command)
@click.option("-c", "--count", type=click.IntRange(1), default=50, show_default=True, help="How many, the newest.")
@click.option("-u", "--user", help="Only of this user.")
@click.option("--action", help="Only what takes this right, such as workflow:Create.")
@click.option("--outcome", type=click.Choice(["done", "refused", "failed"]), help="Only with this outcome.")
@click.option("--resource", metavar="PATH", help="Only what was asked of paths that begin with this.")
@click.option("--after", metavar="TIME", help="Only since then (UTC), as YYYY-MM-DD or YYYY-MM-DDTHH:MM:SS.")
@click.option("--before", metavar="TIME", help="Only until then (UTC).")
@output.format_option("text", "json")
def audit(
    count: int,
    user: str | None,
    action: str | None,
    outcome: str | None,
    resource: str | None,
    after: str | None,
    before: str | None,
    format_type: str,
) -> None:
    """Show who changed what on the server in use, and who was refused; the newest last. It takes the right audit:Read.

    What was sent is in no entry, and no secret.
    """
    chosen = {"user": user, "action": action, "outcome": outcome, "resource": resource}
    found = _entries({**chosen, "after": after, "before": before}, count)
    if format_type == "json":
        output.document({"entries": msgspec.to_builtins(found)}, indent=2)
        return
    rows = [
        [
            output.date(entry.at) or "",
            output.escape(entry.user + (f" ({entry.token})" if entry.token else "")) or "-",
            entry.outcome,
            entry.action,
            output.escape(entry.detail.get("method", "")),
            output.escape(entry.resource),
            output.escape(entry.address),
        ]
        for entry in reversed(found)
    ]
    output.text(output.table(["Time", "User", "Outcome", "Right", "Method", "Resource", "From"], rows))


def _entries(query: dict[str, str | None], count: int) -> list[AuditEntry]:
    client = login.connect()
    found: list[AuditEntry] = []
    older_than: int | None = None
    while len(found) < count:
        page = client.get(
            AUDIT_PATH, AuditReply, {**query, "older_than": older_than, "limit": min(count - len(found), _PAGE)}
        )
        found += page.entries
        older_than = page.older_than
        if older_than is None:
            break
    return found
