"""The query language: what a query selects.

Decided here and only here: what a test means. A query that speaks of metadata selects versions, any other
datasets and collections; only what is READY is ever looked at.

- A test on a label or a metadata key that is not there, or of another type, does not hold, and neither does
its
  ``!=``; ``NOT`` turns any test around.
- ``user`` is who uploaded the version; of a dataset, anybody who uploaded one of its versions (``!=``: nobody
who
  did); of a collection, who made it. In ``ORDER BY`` it is who created the dataset or collection.
- A date is all of the day (month, year, minute) that it names: ``<=`` includes it, ``>`` begins after it.
- ``CONTAINS "x"``: part of a text, or an item of a list. ``CONTAINS [..]``: a list with all of these items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from casstore.dataset.catalog import Catalog
from casstore.dataset.query_ast import (
    And,
    Attribute,
    Comparison,
    Contains,
    ContainsKey,
    Expression,
    Field,
    In,
    Length,
    Literal,
    Not,
    Or,
    Parsed,
)
from casstore.dataset.query_parser import parse, parse_date
from casstore.dataset.summary import DatasetSummary, QueryResult, Version
from casstore.errors import NotFoundError
from casstore.model import DatasetType, Head

__all__ = ["Row", "matches", "parse", "run"]

_T = TypeVar("_T")
_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Row:
    """What a query looks at: a dataset or collection, or a version. ``users`` as the module tells."""

    name: str
    id: str
    users: frozenset[str]
    creator: str
    created: datetime
    is_collection: bool
    label: dict[str, Any]
    metadata: dict[str, Any]


def run(parsed: Parsed, catalog: Catalog) -> QueryResult:
    """Return what fits; ``NotFoundError`` when nothing does."""
    heads = catalog.heads()
    if parsed.versions:
        rows = [
            (_version_row(head, version), version)
            for head, versions in zip(heads, catalog.versions_of(heads), strict=True)
            for version in versions
        ]
        chosen = _select(parsed, rows)
        if chosen:
            return QueryResult("VERSION", versions=tuple(chosen))
    else:
        datasets = _select(
            parsed,
            [
                (_dataset_row(head, summary), summary)
                for head, summary in catalog.summarized(heads)
                if summary.last_version is not None or head.type == DatasetType.COLLECTION
            ],
        )
        if datasets:
            return QueryResult("DATASET", datasets=tuple(datasets))
    raise NotFoundError("No Datasets Fit the Query")


def _version_row(head: Head, version: Version) -> Row:
    record = version.record
    return Row(
        name=head.name,
        id=head.id,
        users=frozenset((record.created_by,)),
        creator=record.created_by,
        created=datetime.fromisoformat(record.created_at),
        is_collection=False,
        label=head.labels,
        metadata=version.metadata,
    )


def _dataset_row(head: Head, summary: DatasetSummary) -> Row:
    return Row(
        name=head.name,
        id=head.id,
        users=frozenset(summary.users),
        creator=head.created_by,
        created=datetime.fromisoformat(head.created_at),
        is_collection=head.type == DatasetType.COLLECTION,
        label=head.labels,
        metadata={},
    )


_ORDERS: dict[str, Callable[[Row], Any]] = {
    "name": lambda row: row.name,
    "created_date": lambda row: row.created,
    "user": lambda row: row.creator,
}


def _select(parsed: Parsed, rows: Sequence[tuple[Row, _T]]) -> list[_T]:
    found = [(row, item) for row, item in rows if matches(parsed.where, row)]
    if parsed.order_by is not None:
        key = _ORDERS[parsed.order_by]
        found.sort(key=lambda pair: key(pair[0]), reverse=parsed.descending)
    return [item for _, item in found[: parsed.limit]]


def matches(where: Expression, row: Row) -> bool:
    """Whether a row fits an expression."""
    if isinstance(where, And):
        return all(matches(part, row) for part in where.parts)
    if isinstance(where, Or):
        return any(matches(part, row) for part in where.parts)
    if isinstance(where, Not):
        return not matches(where.part, row)
    if isinstance(where, Comparison):
        return _compares(row, where)
    if isinstance(where, In):
        return any(_holds(row, where.operand, value) for value in where.values)
    if isinstance(where, Contains):
        return _contains(row, where.operand, where.text)
    found = _look_up(row, where.operand)
    if isinstance(where, ContainsKey):
        return isinstance(found, dict) and where.key in found
    return isinstance(found, list) and all(_is_item(found, value) for value in where.values)


def _compares(row: Row, test: Comparison) -> bool:
    operand = test.operand
    if isinstance(operand, Field):
        return _compare_field(row, operand.name, test.op, test.value)
    if isinstance(operand, Length):
        found = _look_up(row, operand.of)
        return isinstance(found, list) and _compare(len(found), test.op, test.value)
    return _compare(_look_up(row, operand), test.op, test.value)


def _texts(row: Row, field: str) -> frozenset[str]:
    if field == "user":
        return row.users
    return frozenset((row.name if field == "name" else row.id,))


def _compare_field(row: Row, field: str, op: str, value: Literal) -> bool:
    if field == "is_collection":
        return (row.is_collection == value) == (op == "=")
    if field == "created_date":
        return _compare_date(row.created, op, str(value))
    return (value in _texts(row, field)) == (op == "=")


def _compare_date(moment: datetime, op: str, text: str) -> bool:
    span = parse_date(text)
    if span is None:
        return False
    first, after = span
    return {
        "=": first <= moment < after,
        "!=": not first <= moment < after,
        "<": moment < first,
        "<=": moment < after,
        ">": moment >= after,
        ">=": moment >= first,
    }[op]


def _look_up(row: Row, attribute: Attribute) -> Any:
    found: Any = row.label if attribute.tree == "label" else row.metadata
    for key in attribute.keys:
        if not isinstance(found, dict) or key not in found:
            return _ABSENT
        found = found[key]
    return found


def _kind(value: Any) -> type | None:
    """Return what a value can be compared with: text, a number (which a boolean is not), or a boolean."""
    if isinstance(value, bool):
        return bool
    if isinstance(value, (int, float)):
        return float
    return str if isinstance(value, str) else None


def _compare(found: Any, op: str, value: Literal) -> bool:
    if _kind(found) is None or _kind(found) is not _kind(value):
        return False
    if op in ("=", "!="):
        return bool((found == value) == (op == "="))
    return bool(
        {
            "<": lambda: found < value,
            "<=": lambda: found <= value,
            ">": lambda: found > value,
            ">=": lambda: found >= value,
        }[op]()
    )


def _holds(row: Row, operand: Field | Attribute, value: Literal) -> bool:
    if isinstance(operand, Field):
        return value in _texts(row, operand.name)
    return _compare(_look_up(row, operand), "=", value)


def _contains(row: Row, operand: Field | Attribute, text: str) -> bool:
    if isinstance(operand, Field):
        return any(text in item for item in _texts(row, operand.name))
    found = _look_up(row, operand)
    if isinstance(found, list):
        return text in found
    return isinstance(found, str) and text in found


def _is_item(found: list[Any], value: Literal) -> bool:
    return any(_compare(item, "=", value) for item in found)
