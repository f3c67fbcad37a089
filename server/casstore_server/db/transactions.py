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

from sqlalchemy import ColumnElement, Connection, Engine, Select, Table, any_, func
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from casstore_server.db.engine import WRITES

__all__ = ["Transactions", "among", "by_index", "in_order", "upsert"]

T = TypeVar("T")

_ATTEMPTS: Final = 10
_AGAIN: Final = frozenset({"40001", "40P01"})


def upsert(connection: Connection, table: Table) -> Any:
    """An insertion that can say what happens when the row exists (``on_conflict_do_update``)."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def by_index(connection: Connection) -> None:
    """Have the rest of a transaction that reads look rows up one by one, in indexes.

    PostgreSQL can't guess how few rows a page takes: it would read whole tables to join and sort them, and start other
    processes or compile the statement for what is over in milliseconds.
    """
    ways = dict.fromkeys(("enable_hashjoin", "enable_mergejoin", "enable_seqscan", "jit"), "off")
    _set(connection, ways | {"max_parallel_workers_per_gather": "0"})


def in_order(connection: Connection) -> None:
    """After ``by_index``, for a page that ends long before the rows that fit: have them read in the order of the page.

    PostgreSQL believes that few fit, and would find and sort all of them.
    """
    _set(connection, {"enable_sort": "off"})


def among(connection: Connection, column: ColumnElement[T], wanted: Select[Any]) -> ColumnElement[bool]:
    """Whether a column has one of the values of another query, which is made first and once.

    PostgreSQL would else join the two, and may begin with all rows that the column has.
    """
    if connection.dialect.name != "postgresql":
        return column.in_(wanted)
    values = func.array(wanted.correlate(None).scalar_subquery(), type_=postgresql.ARRAY(column.type))
    return column == any_(values)


def _set(connection: Connection, settings: dict[str, str]) -> None:
    """Until the transaction ends; other databases have no such settings."""
    if connection.dialect.name == "postgresql":
        values = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
        connection.exec_driver_sql(f"SELECT {values}")


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
