"""Transactions on SQLite and PostgreSQL alike.

Decided here and only here: who waits for whom. On SQLite a transaction that writes takes the one write lock at its
start; threads of this process queue for it fairly. On PostgreSQL rows are locked one by one, and a transaction that
the database ended because of another one (a deadlock, a failed serialisation) is made again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from casstore_server.db.engine import WRITES

__all__ = ["Transactions", "by_index", "upsert"]

T = TypeVar("T")

_ATTEMPTS: Final = 10
_AGAIN: Final = frozenset({"40001", "40P01"})


def upsert(connection: Connection, table: Table) -> Any:
    """An insertion that can say what happens when the row exists (``on_conflict_do_update``)."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def by_index(connection: Connection) -> None:
    """Have the rest of a transaction that reads look rows up one by one, in the order of an index.

    PostgreSQL can't guess how few rows a page takes, and would read whole tables to join and sort them.
    """
    if connection.dialect.name == "postgresql":
        off = ", ".join(f"set_config('enable_{way}', 'off', true)" for way in ("hashjoin", "mergejoin", "seqscan"))
        connection.exec_driver_sql(f"SELECT {off}")


class Transactions:
    """The transactions of one engine; safe to use from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        alone = engine.dialect.name == "sqlite"  # there threads queue here instead of polling the database's lock
        self._turn: Any = threading.Lock() if alone else nullcontext()

    def write(self, fn: Callable[[Connection], T]) -> T:
        """``fn`` in a transaction that writes; it may be called several times."""
        for attempt in range(_ATTEMPTS):
            try:
                with self._opened(writes=True) as connection:
                    return fn(connection)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in _AGAIN or attempt + 1 == _ATTEMPTS:
                    raise
        raise AssertionError

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; rolled back when the block raises."""
        with self._opened(writes=True) as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        with self._opened(writes=False) as connection:
            yield connection

    @contextmanager
    def _opened(self, *, writes: bool) -> Iterator[Connection]:
        with (
            self._turn if writes else nullcontext(),
            self._engine.connect().execution_options(**(WRITES if writes else {})) as connection,
            connection.begin(),
        ):
            yield connection
