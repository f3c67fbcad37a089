"""Leases, and what their holders are told.

Decided here and only here: that a lease which changes hands gets a higher token, and that a transaction under a lease
locks its row for as long as it takes, so that the lease can't change hands in between.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, insert, select, update

from casstore_orchestrator.statestore import Fence, LeaseLostError, pool_of
from casstore_server.db import schema
from casstore_server.db.transactions import upsert

__all__ = ["any_news", "check", "keep", "release", "take_news", "tell"]


def check(connection: Connection, fence: Fence | None) -> None:
    """Raise ``LeaseLostError`` unless the lease is still its holder's, and keep it so until the transaction ends."""
    if fence is None:
        return
    table = schema.lease
    found = connection.execute(
        select(table.c.token).where(table.c.name == fence.name).with_for_update(read=True)
    ).scalar_one_or_none()
    if found != fence.token:
        raise LeaseLostError(f"The lease {fence.name} is another server's now")


def keep(
    connection: Connection, names: Sequence[str], owner: str, now: float, until: float, *, force: bool
) -> dict[str, Fence]:
    """See ``ports.StateStore.keep_leases``."""
    table = schema.lease
    rows = connection.execute(select(table).where(table.c.name.in_(names)).order_by(table.c.name).with_for_update())
    found = {row.name: row for row in rows}
    kept = {name: Fence(name, row.token) for name, row in found.items() if row.owner == owner}
    if kept:
        connection.execute(update(table).where(table.c.name.in_(kept)).values(until=until))
    for name in sorted(set(names) - kept.keys()):
        row = found.get(name)
        if row is None:
            made = upsert(connection, table).values(name=name, owner=owner, token=1, until=until)
            made = made.on_conflict_do_nothing().returning(table.c.name)  # not every driver counts inserted rows
            if connection.execute(made).first() is not None:  # otherwise somebody was quicker
                kept[name] = Fence(name, 1)
        elif force or not row.owner or row.until <= now:
            connection.execute(
                update(table).where(table.c.name == name).values(owner=owner, token=row.token + 1, until=until)
            )
            kept[name] = Fence(name, row.token + 1)
    return kept


def release(connection: Connection, owner: str) -> None:
    """See ``ports.StateStore.release_leases``."""
    table = schema.lease
    free = {"owner": "", "token": table.c.token + 1, "until": 0.0}
    connection.execute(update(table).where(table.c.owner == owner).values(**free))


def tell(connection: Connection, pool: str, workflow_id: str) -> None:
    """Have the holder of a pool's lease look at a workflow."""
    connection.execute(insert(schema.news).values(pool=pool, workflow_id=workflow_id))


def any_news(connection: Connection, fences: Sequence[Fence]) -> bool:
    """Whether there is anything for ``take_news``."""
    table = schema.news
    pools = [pool_of(fence) for fence in fences]
    return connection.execute(select(table.c.id).where(table.c.pool.in_(pools)).limit(1)).first() is not None


def take_news(connection: Connection, fences: Sequence[Fence]) -> list[str]:
    """See ``ports.StateStore.news``."""
    for fence in fences:
        check(connection, fence)
    table = schema.news
    pools = [pool_of(fence) for fence in fences]
    rows = list(connection.execute(select(table.c.id, table.c.workflow_id).where(table.c.pool.in_(pools))))
    if rows:
        connection.execute(delete(table).where(table.c.id.in_([row.id for row in rows])))
    return list(dict.fromkeys(row.workflow_id for row in rows))
