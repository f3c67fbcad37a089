"""The records of workflows in the database: the ``StateStore`` of the scheduler.

Decided here and only here: that a change of a workflow is one transaction (read under a lock, change, write, with the
rows that lists filter by, what people are told of it, and the lease without which it must not happen), that a number is
never given twice, and what is cached.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, delete, insert, or_, select, update

from casstore.errors import ConflictError, NotFoundError
from casstore.structs import from_json
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.spec import WorkflowSpec
from casstore_orchestrator.statestore import Fence, Notes, TaskNote, no_notes
from casstore_server.db import leases, schema
from casstore_server.db.standing import Standings
from casstore_server.db.transactions import Transactions, upsert

__all__ = ["Database", "EventRow"]

_CACHED_SPECS = 16
_NO_SPEC = WorkflowSpec(name="", groups=())
_DEFAULT_CPU = 1.0
_DEFAULT_BYTES = float(2**30)


class EventRow(NamedTuple):
    """Something that happened to a task (empty: to the workflow); ``at`` in seconds since the epoch."""

    task: str
    retry_id: int
    reason: str
    message: str
    at: float


class _Static(NamedTuple):
    """The part of a record that never changes."""

    spec: WorkflowSpec
    spec_text: str
    template_text: str | None


class Database:
    """All that the server remembers; safe to use from any thread. ``close`` ends it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._transactions = Transactions(engine)
        self.standings = Standings(self.reading)
        self._static: OrderedDict[str, _Static] = OrderedDict()
        self._static_lock = threading.Lock()
        self._told: list[Callable[[WorkflowRecord, WorkflowRecord], None]] = []

    @property
    def shared(self) -> bool:
        """Whether other servers may use it at the same time."""
        return self.engine.dialect.name != "sqlite"

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    def on_change(self, told: Callable[[WorkflowRecord, WorkflowRecord], None]) -> None:
        """Call ``told(old, new)`` after each change of a workflow through here; it must be quick and not raise."""
        self._told.append(told)

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction that writes; rolled back when the block raises."""
        return self._transactions.writing()

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction that only reads."""
        return self._transactions.reading()

    def create(
        self,
        record: WorkflowRecord,
        begin: Callable[[WorkflowRecord], WorkflowRecord] = lambda record: record,
        *,
        notes: Notes = no_notes,
        fence: Fence | None = None,
        tell: bool = False,
    ) -> WorkflowRecord:
        """Store a new workflow under the next number of its name, as ``begin`` makes it; see ``ports.StateStore``."""

        def write(connection: Connection) -> WorkflowRecord:
            leases.check(connection, fence)
            counter = schema.counter
            statement = upsert(connection, counter).values(name=record.name, last=1)
            number = connection.execute(
                statement.on_conflict_do_update(index_elements=["name"], set_={"last": counter.c.last + 1}).returning(
                    counter.c.last
                )
            ).scalar_one()
            made = msgspec.structs.replace(record, id=f"{record.name}-{number}", number=number)
            new = begin(made)
            if connection.execute(select(schema.workflow.c.id).where(schema.workflow.c.uuid == new.uuid)).first():
                raise ConflictError("There is a workflow with this UUID already")
            connection.execute(
                insert(schema.workflow).values(
                    **_columns(new),
                    id=new.id,
                    uuid=new.uuid,
                    name=new.name,
                    number=number,
                    user=new.user,
                    spec=msgspec.json.encode(new.spec).decode(),
                    spec_text=new.spec_text,
                    template_text=new.template_text,
                    app_uuid=None if new.app is None else new.app.uuid,
                    app_version=None if new.app is None else new.app.version,
                )
            )
            _write_tasks(connection, None, new)
            _write_tags(connection, new.id, (), new.tags)
            _write_notes(connection, new.id, notes(made, new))
            if tell:
                leases.tell(connection, new.pool, new.id)
            return new

        return self._transactions.write(write)

    def load(self, workflow_id: str) -> WorkflowRecord:
        """The workflow of this id or uuid. Raises ``NotFoundError``."""
        with self.reading() as connection:
            return self._load(connection, workflow_id)

    def change(
        self,
        workflow_id: str,
        fn: Callable[[WorkflowRecord], WorkflowRecord],
        *,
        notes: Notes = no_notes,
        fence: Fence | None = None,
        tell: bool = False,
    ) -> WorkflowRecord:
        """Replace the record by ``fn`` of it, in one transaction; nothing changes when ``fn`` raises.

        ``fn`` must not touch the database. What identifies the workflow, and its specification, can't change. See
        ``ports.StateStore``.
        """

        def write(connection: Connection) -> tuple[WorkflowRecord, WorkflowRecord]:
            leases.check(connection, fence)
            old = self._load(connection, workflow_id, lock=True)
            new = fn(old)
            if new is old or new == old:
                return old, old
            _check_fixed(old, new)
            connection.execute(update(schema.workflow).where(schema.workflow.c.id == old.id).values(**_columns(new)))
            _write_tasks(connection, old, new)
            _write_tags(connection, new.id, old.tags, new.tags)
            _write_notes(connection, new.id, notes(old, new))
            if tell:
                leases.tell(connection, new.pool, new.id)
            return old, new

        old, new = self._transactions.write(write)
        for told in self._told if new is not old else ():
            told(old, new)
        return new

    def live(self, pool: str) -> list[str]:
        """See ``ports.StateStore``."""
        table = schema.workflow
        wanted = select(table.c.id).where(table.c.live == 1, table.c.pool == pool)
        with self.reading() as connection:
            return list(connection.execute(wanted.order_by(table.c.submit_time, table.c.id)).scalars())

    def live_pools(self) -> list[str]:
        """See ``ports.StateStore``."""
        table = schema.workflow
        with self.reading() as connection:
            return list(connection.execute(select(table.c.pool).where(table.c.live == 1).distinct()).scalars())

    def keep_leases(
        self, names: Sequence[str], owner: str, now: float, until: float, *, force: bool = False
    ) -> dict[str, Fence]:
        """See ``ports.StateStore``."""
        return self._transactions.write(
            lambda connection: leases.keep(connection, names, owner, now, until, force=force)
        )

    def release_leases(self, owner: str) -> None:
        """See ``ports.StateStore``."""
        self._transactions.write(lambda connection: leases.release(connection, owner))

    def news(self, fences: Sequence[Fence]) -> list[str]:
        """See ``ports.StateStore``."""
        with self.reading() as connection:
            if not leases.any_news(connection, fences):
                return []
        return self._transactions.write(lambda connection: leases.take_news(connection, fences))

    def events(self, workflow_id: str, *, after: int = 0) -> list[tuple[int, EventRow]]:
        """Numbered events of a workflow, in their order; those numbered above ``after``."""
        table = schema.event
        columns = (table.c.id, table.c.task, table.c.retry_id, table.c.reason, table.c.message, table.c.at)
        with self.reading() as connection:
            rows = connection.execute(
                select(*columns).where(table.c.workflow_id == workflow_id, table.c.id > after).order_by(table.c.id)
            )
            return [(row.id, EventRow(*row[1:])) for row in rows]

    def profile(self, user: str) -> dict[str, Any]:
        """The stored settings of a user; empty when nothing was ever set."""
        with self.reading() as connection:
            row = connection.execute(select(schema.profile).where(schema.profile.c.user == user)).one_or_none()
        return {} if row is None else dict(row._mapping)  # noqa: SLF001  # the public name of a row's mapping

    def set_profile(self, user: str, values: dict[str, Any]) -> None:
        """Change settings of a user."""
        initial = {"email_notification": 0, "slack_notification": 0} | values
        with self.writing() as connection:
            statement = upsert(connection, schema.profile).values(user=user, **initial)
            connection.execute(statement.on_conflict_do_update(index_elements=["user"], set_=values))

    def _load(self, connection: Connection, workflow_id: str, *, lock: bool = False) -> WorkflowRecord:
        table = schema.workflow
        query = select(table.c.id, table.c.record).where(or_(table.c.id == workflow_id, table.c.uuid == workflow_id))
        row = connection.execute(query.with_for_update() if lock else query).one_or_none()
        if row is None:
            raise NotFoundError(f"There is no workflow {workflow_id}", hint="See: osmo workflow list")
        static = self._static_part(connection, row.id)
        return msgspec.structs.replace(
            from_json(row.record, WorkflowRecord),
            spec=static.spec,
            spec_text=static.spec_text,
            template_text=static.template_text,
        )

    def _static_part(self, connection: Connection, workflow_id: str) -> _Static:
        with self._static_lock:
            found = self._static.get(workflow_id)
            if found is not None:
                self._static.move_to_end(workflow_id)
                return found
        table = schema.workflow
        row = connection.execute(
            select(table.c.spec, table.c.spec_text, table.c.template_text).where(table.c.id == workflow_id)
        ).one()
        found = _Static(from_json(row.spec, WorkflowSpec), row.spec_text, row.template_text)
        with self._static_lock:
            self._static[workflow_id] = found
            while len(self._static) > _CACHED_SPECS:
                self._static.popitem(last=False)
        return found


def _check_fixed(old: WorkflowRecord, new: WorkflowRecord) -> None:
    fixed = ("id", "uuid", "name", "number", "user", "pool", "submit_time", "spec", "spec_text", "template_text")
    if any(getattr(new, name) != getattr(old, name) for name in fixed):
        raise ConflictError(f"workflow {old.id}: its identity and specification can't change")


def _columns(record: WorkflowRecord) -> dict[str, Any]:
    """The columns that change with a record."""
    small = msgspec.structs.replace(record, spec=_NO_SPEC, spec_text="", template_text=None)
    return {
        "pool": record.pool,
        "status": str(record.status),
        "priority": str(record.priority),
        # A record is stored just before the event that gives it the exact time.
        "submit_time": time.time() if record.submit_time is None else record.submit_time,
        "start_time": record.start_time,
        "end_time": record.end_time,
        "live": int(record.live),
        "record": msgspec.json.encode(small).decode(),
    }


def _task_rows(record: WorkflowRecord | None) -> dict[tuple[str, int], dict[str, Any]]:
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for position, task in enumerate(record.all_tasks() if record is not None else ()):
        rows[task.name, task.retry_id] = {
            "position": position,
            "status": str(task.status),
            "node": task.node,
            "start_time": task.start_time,
            "end_time": task.end_time,
        }
    return rows


def _asked(record: WorkflowRecord, name: str) -> dict[str, Any]:
    """What a task asks for, with the defaults of a fresh pool where it does not say."""
    try:
        asked = record.spec.resource_of(record.spec.task(name))
    except KeyError:  # a record whose groups are not those of its specification: nothing is known
        return {"cpu": 0.0, "memory": 0.0, "storage": 0.0, "gpu": 0}
    return {
        "cpu": _DEFAULT_CPU if asked.cpu is None else asked.cpu,
        "memory": _DEFAULT_BYTES if asked.memory is None else float(asked.memory),
        "storage": _DEFAULT_BYTES if asked.storage is None else float(asked.storage),
        "gpu": asked.gpu or 0,
    }


def _write_tasks(connection: Connection, old: WorkflowRecord | None, new: WorkflowRecord) -> None:
    before, after = _task_rows(old), _task_rows(new)
    table = schema.task
    added = []
    for (name, retry_id), row in after.items():
        known = before.get((name, retry_id))
        if known is None:
            added.append({"workflow_id": new.id, "name": name, "retry_id": retry_id, **row, **_asked(new, name)})
        elif known != row:
            where = (table.c.workflow_id == new.id, table.c.name == name, table.c.retry_id == retry_id)
            connection.execute(update(table).where(*where).values(**row))
    if added:
        connection.execute(insert(table), added)


def _write_tags(connection: Connection, workflow_id: str, old: Sequence[str], new: Sequence[str]) -> None:
    table = schema.tag
    gone = set(old) - set(new)
    if gone:
        connection.execute(delete(table).where(table.c.workflow_id == workflow_id, table.c.tag.in_(gone)))
    added = sorted(set(new) - set(old))
    if added:
        connection.execute(insert(table), [{"workflow_id": workflow_id, "tag": tag} for tag in added])


def _write_notes(connection: Connection, workflow_id: str, notes: Sequence[TaskNote]) -> None:
    rows = [
        {
            **note._asdict(),
            "workflow_id": workflow_id,
            "message": note.message.replace("\0", "\N{REPLACEMENT CHARACTER}"),
        }
        for note in notes
    ]
    if rows:
        connection.execute(insert(schema.event), rows)
