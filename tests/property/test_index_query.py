"""The index answers every query as the bucket itself would, in each database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine

from casstore.dataset import query
from casstore.dataset import query_ast as ast
from casstore.dataset.catalog import Catalog
from casstore.dataset.summary import DatasetSummary, MemberInfo, Version
from casstore.errors import NotFoundError
from casstore.model import DatasetType, Head, Totals, VersionRecord, VersionState, VersionStatus
from casstore.repo.refs import is_active
from casstore_server.db import attributes, index, index_query
from casstore_server.db.engine import open_database, open_postgres

BUCKET = "file:///b"
USERS = ["ann", "bob", "Bob", "b%", "b_b", "é"]
NAMES = ["a", "ab", "A-b", "b_c", "bXc", "z9"]
TIMES = [
    "2026-01-02T00:00:00.000000Z", "2026-01-02T23:59:59.999999Z", "2026-01-03T00:00:00Z", "2025-12-31T23:30:00-01:00",
    "1999-06-15T12:00:00.5+02:00", "2026-01-02T10:30:00.123456Z",
]  # fmt: skip
DATES = [
    "2026", "2026-01", "2026-01-02", "2026-01-02T10:30", "2026-01-03T00:00:00Z", "1999", "0001",
    "2026-01-02T10:30:00.123456Z",
]  # fmt: skip
TEXTS = st.text(max_size=3) | st.sampled_from(
    ["", "a", "A", "ab", "aé%", "100%", "a_b", "x\0y", "\\", "'\"", "1", "true", "%", "_"]
)
NUMBERS = (
    st.sampled_from([0, -0.0, 1, 1.0, 0.1, 0.5, 2**53, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63), 1e300, 5e-324])
    | st.integers(-3, 3)
    | st.floats(-4, 4)
)  # fmt: skip
LITERALS = TEXTS | NUMBERS | st.booleans()
KEYS = st.sampled_from(["k", "a", "K", "a.b", "é", "", "0"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    LITERALS | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=4,
)
TREES = st.dictionaries(KEYS, VALUES, max_size=3)


@st.composite
def datasets(draw: st.DrawFn) -> list[tuple[Head, list[VersionRecord]]]:
    """Some datasets and collections with their versions."""
    found = []
    for at, name in enumerate(draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=4))):
        collection = draw(st.integers(0, 4)) == 0
        records = [] if collection else [_record(draw, number + 1) for number in range(draw(st.integers(0, 3)))]
        head = Head(
            id=f"{'xYz_-0'[at]}{'d' * 21}",
            name=name,
            type=DatasetType.COLLECTION if collection else DatasetType.DATASET,
            created_at=draw(st.sampled_from(TIMES)),
            created_by=draw(st.sampled_from(USERS)),
            write_id="",
            labels=draw(TREES),
            versions={record.number: draw(STATES) for record in records if draw(st.booleans())},
            last_version=len(records),
        )
        found.append((head, records))
    return found


STATES = st.builds(
    VersionState,
    status=st.sampled_from([VersionStatus.READY, VersionStatus.PENDING_DELETE]),
    metadata=TREES | st.none(),
)


def _record(draw: st.DrawFn, number: int) -> VersionRecord:
    return VersionRecord(
        number=number,
        manifest="0" * 64,
        checksum="0" * 64,
        totals=Totals(),
        created_at=draw(st.sampled_from(TIMES)),
        created_by=draw(st.sampled_from(USERS)),
        write_id="",
        new_bytes=number,
        metadata=draw(TREES),
    )


class Made(Catalog):
    """Datasets that are in no bucket."""

    def __init__(self, made: Sequence[tuple[Head, list[VersionRecord]]]) -> None:
        super().__init__(cast("Any", None), "b")
        self._made = {head.id: (head, records) for head, records in made}

    def heads(self) -> list[Head]:
        return sorted((head for head, _ in self._made.values()), key=lambda head: head.name)

    def members(self, collection: Head) -> list[MemberInfo]:
        return []

    def versions_of(self, heads: Sequence[Head], *, deleted: bool = False) -> list[list[Version]]:
        return [
            [
                Version(head.name, head.id, record, head.versions.get(record.number, VersionState()), ())
                for record in self._made[head.id][1]
                if deleted or is_active(head, record.number)
            ]
            for head in heads
        ]

    def summarized(self, heads: Sequence[Head]) -> list[tuple[Head, DatasetSummary]]:
        found = self.versions_of(heads, deleted=True)
        return [(head, self.summarize(head, versions)) for head, versions in zip(heads, found, strict=True)]


def in_the_index(connection: Connection, made: Sequence[tuple[Head, list[VersionRecord]]]) -> int:
    bucket = index.clear(connection, BUCKET, BUCKET, "s")
    for head, records in made:
        reading = index.Reading(
            name=head.name,
            before=None,
            key=head.id,
            head=head,
            there=[record.number for record in records],
            versions={record.number: record for record in records},
        )
        assert index.applied(connection, bucket, reading, 1)
    return bucket


def expected(parsed: ast.Parsed, made: Sequence[tuple[Head, list[VersionRecord]]]) -> list[tuple[str, int]]:
    try:
        found = query.run(parsed, Made(made))
    except NotFoundError:
        return []
    return [(one.name, 0) for one in found.datasets] + [(one.dataset, one.number) for one in found.versions]


PLACES = st.lists(KEYS, min_size=1, max_size=3).map(tuple)
ATTRIBUTES = st.builds(ast.Attribute, st.sampled_from(["label", "metadata"]), PLACES)
EQUAL, ORDERED = st.sampled_from(["=", "!="]), st.sampled_from(["=", "!=", "<", ">", "<=", ">="])
FIELDS = st.sampled_from(["name", "id", "user"]).map(ast.Field)
WORDS = st.sampled_from([*USERS, *NAMES, "x" + "d" * 21, "", "%", "_", "b", "\0", "B", "d"])
SOME = st.lists(LITERALS, min_size=1, max_size=3).map(tuple)
BARE = st.sampled_from([ast.Attribute("label", ()), ast.Attribute("metadata", ())])
TESTS: st.SearchStrategy[ast.Expression] = st.one_of(
    st.builds(ast.Comparison, FIELDS, EQUAL, WORDS),
    st.builds(ast.Comparison, st.just(ast.Field("is_collection")), EQUAL, st.booleans()),
    st.builds(ast.Comparison, st.just(ast.Field("created_date")), ORDERED, st.sampled_from(DATES)),
    st.builds(ast.Comparison, ATTRIBUTES, ORDERED, NUMBERS | st.just(float("inf"))),
    st.builds(ast.Comparison, ATTRIBUTES, EQUAL, TEXTS | st.booleans()),
    st.builds(ast.Comparison, st.builds(ast.Length, ATTRIBUTES), ORDERED, NUMBERS),
    st.builds(ast.In, FIELDS, st.lists(WORDS, min_size=1, max_size=3).map(tuple)),
    st.builds(ast.In, ATTRIBUTES, SOME),
    st.builds(ast.Contains, FIELDS, WORDS),
    st.builds(ast.Contains, ATTRIBUTES, TEXTS),
    st.builds(ast.ContainsItems, ATTRIBUTES, SOME),
    st.builds(ast.ContainsKey, ATTRIBUTES | BARE, KEYS),
)
WHERE: st.SearchStrategy[ast.Expression] = st.recursive(
    TESTS,
    lambda inner: (
        st.builds(ast.Not, inner)
        | st.builds(ast.And, st.lists(inner, min_size=2, max_size=3).map(tuple))
        | st.builds(ast.Or, st.lists(inner, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=5,
)
ORDERS = st.sampled_from([None, "name", "created_date", "user"])


def speaks_of_metadata(where: ast.Expression) -> bool:
    if isinstance(where, ast.Not):
        return speaks_of_metadata(where.part)
    if isinstance(where, ast.And | ast.Or):
        return any(map(speaks_of_metadata, where.parts))
    operand = where.operand.of if isinstance(where.operand, ast.Length) else where.operand
    return isinstance(operand, ast.Attribute) and operand.tree == "metadata"


@st.composite
def queries(draw: st.DrawFn) -> ast.Parsed:
    where = draw(WHERE)
    return ast.Parsed(
        where, draw(ORDERS), draw(st.booleans()), draw(st.none() | st.integers(1, 3)), speaks_of_metadata(where)
    )


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, postgres: Callable[[], str]
) -> Iterator[Engine]:
    made = (
        open_database(tmp_path_factory.mktemp("index") / "db")
        if request.param == "sqlite"
        else open_postgres(postgres())
    )
    yield made
    made.dispose()


@given(made=datasets(), asked=st.lists(queries(), min_size=1, max_size=6), few=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
def test_any_query(
    engine: Engine, made: list[tuple[Head, list[VersionRecord]]], asked: list[ast.Parsed], few: bool
) -> None:
    with engine.connect() as connection, pytest.MonkeyPatch.context() as patch:
        if few:  # with and without an index that has the rows
            patch.setattr(index_query, "PROBED", -1)
        bucket = in_the_index(connection, made)
        for parsed in asked:
            found = index_query.run(connection, parsed, bucket, 1000)
            rows = [(row.name, row.number if parsed.versions else 0) for row in found]
            assert rows == expected(parsed, made), parsed
        connection.rollback()


@given(NUMBERS, NUMBERS)
def test_numbers_compare_as_their_bytes(left: float, right: float) -> None:
    a, b = attributes.number(left), attributes.number(right)
    assert ((a < b), (a == b)) == ((left < right), (left == right))
