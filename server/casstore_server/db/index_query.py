"""Queries over the index: the parts of a parsed query as expressions of SQLAlchemy.

Decided here and only here: which rows and keys a test is about, so that the answer is that of
``casstore.dataset.query`` for the same datasets; and which index a query is answered with. Nothing of a query ever
becomes text of SQL.

*How it is answered.* Tests that an index answers have a *source*: the ids of all rows that fit them, read from that
index. The sources of what has to hold at all events are counted, each up to ``PROBED``. When the smallest has fewer,
its rows are looked at; otherwise more than one row in a few dozen fits each of them, or no index helps, and rows are
looked at in the order of the answer until there are enough. That does not depend on what a database believes
of its tables.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    text,
    true,
    union_all,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.elements import Grouping

from casstore.dataset.query_ast import (
    And,
    Attribute,
    Comparison,
    Contains,
    ContainsItems,
    ContainsKey,
    Expression,
    Field,
    In,
    Length,
    Not,
    Or,
    Parsed,
)
from casstore.dataset.query_parser import parse_date
from casstore.errors import UsageError
from casstore.model import DatasetType
from casstore_server.db import attributes
from casstore_server.db import index_tables as tables
from casstore_server.db.index import since_epoch
from casstore_server.db.index_lists import has
from casstore_server.db.transactions import among, by_index, in_order

__all__ = ["PROBED", "limited", "run"]

PROBED = 20_000
"""Rows that are sorted rather than looked for in the order of the answer."""
LONGEST_S = 30.0
_CANCELLED = "57014"
_FEW = 200
_MOST_PROBES = 16
_MOST_UNITED = 100
_WIDEST = 32
_LONG = 5_000
_Condition = ColumnElement[bool]
_Fits = Callable[[ColumnElement[bytes]], _Condition]
"""From the column of a key to whether it is one that a test is about."""


def run(connection: Connection, parsed: Parsed, bucket: int, most: int) -> list[Row[Any]]:
    """The datasets of a bucket that fit, or its versions; at most ``most``. Rows have all columns of their tables."""
    by_index(connection)
    level: _Level = (_Versions if parsed.versions else _Datasets)(connection, bucket, parsed.order_by)
    parts = parsed.where.parts if isinstance(parsed.where, And) else (parsed.where,)
    source = _best_source(connection, level, parts)
    if source is None:
        if parsed.versions:
            in_order(connection)
        conditions = [level.in_order(part) for part in parts]
    else:
        conditions = [among(connection, level.id, source), *(level.condition(part) for part in parts)]
    query = level.rows(by_id=source is not None).where(_joined(conditions, and_))
    if parsed.order_by is not None:
        column = level.order(parsed.order_by)
        query = query.order_by(column.desc() if parsed.descending else column)
    limit = most if parsed.limit is None else min(most, parsed.limit)
    # A long query is hardly asked twice, and what is remembered of it is large.
    options: dict[str, Any] = {} if len(str(parsed)) < _LONG else {"compiled_cache": None}
    return list(connection.execute(query.order_by(*level.base).limit(limit), execution_options=options))


@contextmanager
def limited(connection: Connection, seconds: float = LONGEST_S) -> Iterator[None]:
    """Give up what takes longer than so many seconds: ``UsageError``."""
    until = time.monotonic() + seconds
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name == "sqlite":
        driver.set_progress_handler(lambda: time.monotonic() > until, 100_000)
    else:
        connection.execute(text(f"SET LOCAL statement_timeout = {int(seconds * 1000)}"))
    try:
        yield
    except DBAPIError as error:
        if "interrupted" in str(error.orig) or getattr(error.orig, "sqlstate", "") == _CANCELLED:
            raise UsageError(
                f"The query was given up after {seconds:g} seconds", hint="Ask for less: a name, a time, a user, LIMIT."
            ) from None
        raise
    finally:
        if connection.dialect.name == "sqlite":
            driver.set_progress_handler(None, 0)


def _best_source(connection: Connection, level: _Level, parts: Sequence[Expression]) -> Select[Any] | None:
    """The source with the fewest rows, of those with no more than ``PROBED``."""
    best, fewest = None, PROBED + 1
    sources = [found for found in map(level.source, parts) if found is not None]
    for source in sources[:_MOST_PROBES]:
        counted = select(func.count()).select_from(source.limit(fewest).subquery())
        count = int(connection.execute(counted).scalar_one())
        if count < fewest:
            best, fewest = source, count
        if fewest <= _FEW:
            break
    return best


class _Level(ABC):
    """What a query selects from."""

    id: ColumnElement[int]
    base: Sequence[ColumnElement[Any]]
    """The order of the answer, within the one that was asked for."""

    def __init__(self, connection: Connection, bucket: int, order_by: str | None) -> None:
        self.connection = connection
        self.bucket = bucket
        self.order_by = order_by

    @abstractmethod
    def rows(self, *, by_id: bool) -> Select[Any]:
        """All rows; with ``by_id`` no index but that of their ids is good for it."""

    @abstractmethod
    def order(self, field: str) -> ColumnElement[Any]:
        """The column of a field that can be ordered by."""

    @abstractmethod
    def owner(self, tree: str) -> tuple[Any, ColumnElement[int], ColumnElement[int]]:
        """The table of the keys of labels or metadata, its column with the owner, and the same of a row."""

    @abstractmethod
    def owned(self, tree: str, owners: Select[Any]) -> Select[Any]:
        """The ids of the rows that belong to these owners."""

    @abstractmethod
    def field(self, name: str, fits: Callable[[ColumnElement[str]], _Condition]) -> _Condition:
        """Whether any value of a field of text fits."""

    @abstractmethod
    def created(self) -> ColumnElement[int]:
        """When it was made, in microseconds since the epoch."""

    @abstractmethod
    def is_collection(self, value: bool) -> _Condition:
        """Whether it is one."""

    def in_order(self, where: Expression) -> _Condition:
        """As ``condition``, where rows are looked at in the order of the answer."""
        return self.condition(where)

    def condition(self, where: Expression, *, negated: bool = False) -> _Condition:
        """Whether a row fits, or does not."""
        if isinstance(where, Not):
            return self.condition(where.part, negated=not negated)
        if isinstance(where, And | Or):
            parts = [self.condition(part, negated=negated) for part in where.parts]
            return _joined(parts, and_ if isinstance(where, And) is not negated else or_)
        found = self._test(where)
        return not_(found) if negated else found

    def _test(self, where: Expression) -> _Condition:
        if isinstance(where, Comparison) and isinstance(where.operand, Field):
            return self._compare_field(where.operand.name, where.op, where.value)
        if isinstance(where, In | Contains) and isinstance(where.operand, Field):
            return self.field(where.operand.name, _text_fits(where))
        table, owner, mine = self.owner(_tree(where))
        return and_(*(
            select(table.c.key).where(owner == mine, fits(table.c.key)).exists() for fits in _fits(where, self.bucket)
        ))  # fmt: skip

    def _compare_field(self, field: str, op: str, value: object) -> _Condition:
        if field == "is_collection":
            return self.is_collection((value is True) == (op == "="))
        if field == "created_date":
            return _date_fits(self.created(), op, str(value))
        found = self.field(field, _text_fits(In(Field(field), (str(value),))))
        return found if op == "=" else not_(found)

    def source(self, where: Expression) -> Select[Any] | None:
        """The ids of all rows that fit, and maybe of others, as an index has them; None when none has."""
        if isinstance(where, And):
            return next((found for found in map(self.source, where.parts) if found is not None), None)
        if isinstance(where, Or):
            found = [self.source(part) for part in where.parts[:_MOST_UNITED]]
            parts = [part for part in found if part is not None]
            if len(parts) < len(where.parts):
                return None
            return select(union_all(*parts).subquery().c[0])
        if isinstance(where, Not):
            return None
        if isinstance(where, Comparison | In | Contains) and isinstance(where.operand, Field):
            return self.field_source(where)
        table, owner, _ = self.owner(_tree(where))
        fits = _fits(where, self.bucket)[0]
        return self.owned(_tree(where), select(owner).where(table.c.bucket == self.bucket, fits(table.c.key)))

    def field_source(self, where: Comparison | In | Contains) -> Select[Any] | None:
        """As ``source``, for a test of a field."""
        del where
        return None


class _Datasets(_Level):
    """Datasets with a version that is ready, and collections."""

    def __init__(self, connection: Connection, bucket: int, order_by: str | None) -> None:
        super().__init__(connection, bucket, order_by)
        table = self._table = tables.dataset
        self.id = table.c.id
        self.base = (table.c.name,)

    def rows(self, *, by_id: bool) -> Select[Any]:
        table = self._table
        bucket = table.c.bucket + 0 if by_id else table.c.bucket
        return select(table).where(bucket == self.bucket, table.c.last_created.is_not(None))

    def order(self, field: str) -> ColumnElement[Any]:
        return self._table.c[{"name": "name", "created_date": "created", "user": "created_by"}[field]]

    def owner(self, tree: str) -> tuple[Any, ColumnElement[int], ColumnElement[int]]:
        if tree != "label":
            raise ValueError("a query about metadata selects versions")
        return tables.dataset_label, tables.dataset_label.c.dataset, self.id

    def owned(self, tree: str, owners: Select[Any]) -> Select[Any]:
        del tree
        return owners

    def field(self, name: str, fits: Callable[[ColumnElement[str]], _Condition]) -> _Condition:
        if name != "user":
            return fits(self._table.c.name if name == "name" else self._table.c.key)
        user = tables.dataset_user
        return select(user.c.user).where(user.c.dataset == self.id, fits(user.c.user)).exists()

    def created(self) -> ColumnElement[int]:
        return self._table.c.created

    def is_collection(self, value: bool) -> _Condition:
        collection = self._table.c.type == DatasetType.COLLECTION.value
        return collection if value else not_(collection)


class _Versions(_Level):
    """Versions that are ready."""

    def __init__(self, connection: Connection, bucket: int, order_by: str | None) -> None:
        super().__init__(connection, bucket, order_by)
        table = self._table = tables.version
        self.id = table.c.id
        self._here = (table.c.bucket == bucket, table.c.ready == 1)
        self.base = (table.c.name, table.c.number)
        self._shown = False

    def rows(self, *, by_id: bool) -> Select[Any]:
        if not by_id:
            return select(self._table).where(*self._here)
        return select(self._table).where(self._table.c.bucket + 0 == self.bucket, self._table.c.ready + 0 == 1)

    def order(self, field: str) -> ColumnElement[Any]:
        return self._table.c[{"name": "name", "created_date": "created", "user": "created_by"}[field]]

    def owner(self, tree: str) -> tuple[Any, ColumnElement[int], ColumnElement[int]]:
        if tree == "label":
            return tables.dataset_label, tables.dataset_label.c.dataset, self._table.c.dataset
        return tables.version_metadata, tables.version_metadata.c.version, self.id

    def owned(self, tree: str, owners: Select[Any]) -> Select[Any]:
        return owners if tree == "metadata" else self._of(owners)

    def _of(self, datasets: Select[Any]) -> Select[Any]:
        owned = among(self.connection, self._table.c.dataset, datasets)
        return select(self.id).where(owned, self._table.c.ready == 1)

    def _datasets(self, fits: _Condition) -> Select[Any]:
        return select(tables.dataset.c.id).where(tables.dataset.c.bucket == self.bucket, fits)

    def in_order(self, where: Expression) -> _Condition:
        # An index that has this order too may be used for a test; one that has another would have all be sorted.
        field = where.operand.name if isinstance(where, Comparison) and isinstance(where.operand, Field) else ""
        alike = {"name": (None, "name"), "created_date": ("created_date",), "user": (None, "name", "user")}
        self._shown = self.order_by in alike.get(field, ())
        found = self.condition(where)
        self._shown = False
        return found

    def field(self, name: str, fits: Callable[[ColumnElement[str]], _Condition]) -> _Condition:
        if name == "id":
            return self._table.c.dataset.in_(self._datasets(fits(tables.dataset.c.key)))
        column = self._table.c.name if name == "name" else self._table.c.created_by
        return fits(column if self._shown else column.concat(""))

    def created(self) -> ColumnElement[int]:
        return self._table.c.created if self._shown else self._table.c.created + 0

    def is_collection(self, value: bool) -> _Condition:
        return false() if value else true()

    def field_source(self, where: Comparison | In | Contains) -> Select[Any] | None:
        """See ``_Level``."""
        assert isinstance(where.operand, Field)
        field, table = where.operand.name, self._table
        if isinstance(where, Comparison):
            if field == "created_date" and where.op != "!=":
                return select(self.id).where(*self._here, _date_fits(table.c.created, where.op, str(where.value)))
            if field in ("created_date", "is_collection") or where.op != "=":
                return None
            where = In(where.operand, (where.value,))
        fits = _text_fits(where)
        if field == "id":
            return self._of(self._datasets(fits(tables.dataset.c.key)))
        if field == "name":
            return self._of(self._datasets(fits(tables.dataset.c.name)))
        users = select(tables.dataset_user.c.user).where(fits(tables.dataset_user.c.user)).distinct()
        return select(self.id).where(*self._here, among(self.connection, table.c.created_by, users))


def _joined(parts: Sequence[_Condition], how: Callable[..., _Condition]) -> _Condition:
    """All or any of the parts; many of them as a tree: databases bound the depth of an expression."""
    if len(parts) <= _WIDEST:
        return how(*parts)
    width = -(-len(parts) // _WIDEST)
    groups = [_joined(parts[at : at + width], how) for at in range(0, len(parts), width)]
    return how(*(Grouping(group) for group in groups))


def _text_fits(where: In | Contains) -> Callable[[ColumnElement[str]], _Condition]:
    """Whether a text of a column is one of the values, or has one in it."""
    if isinstance(where, Contains):
        part = where.text
        return lambda column: has(column, part) if _storable(part) else false()
    values = [value for value in where.values if isinstance(value, str) and _storable(value)]
    return lambda column: column.in_(values) if values else false()


def _storable(text: str) -> bool:
    """Whether a column of text can have this in it."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _date_fits(column: ColumnElement[int], op: str, text: str) -> _Condition:
    span = parse_date(text)
    if span is None:
        return false()
    first, after = map(since_epoch, span)
    if op in ("=", "!="):
        inside = and_(column >= first, column < after)
        return inside if op == "=" else not_(inside)
    return {"<": column < first, "<=": column < after, ">": column >= after, ">=": column >= first}[op]


def _tree(where: Expression) -> str:
    """Whether a test is about labels or about metadata."""
    operand = where.operand.of if isinstance(where.operand, Length) else where.operand  # type: ignore[union-attr]
    assert isinstance(operand, Attribute)
    return operand.tree


def _fits(where: Expression, bucket: int) -> list[_Fits]:
    """What keys a tree must have for a test of it to hold: for each of these, one that fits."""
    if isinstance(where, ContainsKey):
        return [_between(attributes.anything(attributes.place((*where.operand.keys, where.key))))]
    if isinstance(where, ContainsItems):
        here = attributes.place(where.operand.keys)
        items = [here + attributes.ITEM + attributes.scalar(value) for value in where.values]
        return [_one_of([item]) for item in items] or [_between(attributes.kind(here, attributes.LIST))]
    if isinstance(where, Contains):
        assert isinstance(where.operand, Attribute)
        return [_contains(attributes.place(where.operand.keys), where.text, bucket)]
    if isinstance(where, In):
        assert isinstance(where.operand, Attribute)
        here = attributes.place(where.operand.keys)
        return [_one_of([here + attributes.scalar(value) for value in where.values])]
    assert isinstance(where, Comparison)
    return [_compares(where)]


def _compares(where: Comparison) -> _Fits:
    if isinstance(where.operand, Length):
        here, kind = attributes.place(where.operand.of.keys), attributes.LIST
        key = here + kind + attributes.scalar(where.value)[1:]
    else:
        assert isinstance(where.operand, Attribute)
        here, value = attributes.place(where.operand.keys), attributes.scalar(where.value)
        kind, key = value[:1], here + value
    first, after = attributes.kind(here, kind)
    # One bound on each side: SQLite looks for the first of several, whichever is closer.
    found: dict[str, _Fits] = {
        "=": lambda column: column == key,
        "!=": lambda column: and_(column >= first, column < after, column != key),
        "<": lambda column: and_(column >= first, column < key),
        "<=": lambda column: and_(column >= first, column <= key),
        ">": lambda column: and_(column > key, column < after),
        ">=": lambda column: and_(column >= key, column < after),
    }
    return found[where.op]


def _contains(here: bytes, part: str, bucket: int) -> _Fits:
    """The item, or a text with it in it: texts are kept once each, however many have them."""
    table = tables.text
    texts = select(table.c.key).where(
        table.c.bucket == bucket,
        _between(attributes.kind(here, attributes.TEXT))(table.c.key),
        has(table.c.text, attributes.text_bytes(part)),
    )
    item = here + attributes.ITEM + attributes.scalar(part)
    keys = union_all(texts, select(literal(item, table.c.key.type)))
    return lambda column: column.in_(keys)


def _one_of(keys: Sequence[bytes]) -> _Fits:
    return lambda column: column == keys[0] if len(keys) == 1 else column.in_(keys)


def _between(span: attributes.Span) -> _Fits:
    return lambda column: and_(column >= span.first, column < span.after)
