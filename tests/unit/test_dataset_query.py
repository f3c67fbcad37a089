"""The query language: every production, what each means, and where errors point."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from casstore.dataset.query import Row, matches
from casstore.dataset.query_parser import MAX_DEPTH, MAX_LENGTH, parse, parse_date
from casstore.errors import UsageError

ROW = Row(
    name="robot-data",
    id="AbC_123",
    users=frozenset({"ann", "bob"}),
    creator="ann",
    created=datetime(2026, 3, 5, 12, 30, 15, tzinfo=UTC),
    is_collection=False,
    label={
        "env": "prod",
        "n": 3,
        "x": -1.5,
        "ok": True,
        "tags": ["a", "b", "c"],
        "nums": [1, 2.5],
        "empty": [],
        "deep": {"er": {"k-1": "v"}, "dot.ted": 7},
        "nothing": None,
        "and": 1,
        "007": "bond",
    },
    metadata={"description": 'say "hi"', "score": 0.5},
)


def fits(text: str) -> bool:
    return matches(parse(text).where, ROW)


TRUE = [
    'name = "robot-data"',
    'name != "other"',
    'id = "AbC_123"',
    'id != "x"',
    'user = "ann"',
    'user = "bob"',
    'user != "eve"',
    'name IN ["x", "robot-data"]',
    'id IN ["AbC_123"]',
    'user IN ["eve", "bob"]',
    'name CONTAINS "bot-"',
    'id CONTAINS "_1"',
    'user CONTAINS "nn"',
    'created_date = "2026-03-05"',
    'created_date = "2026-03"',
    'created_date = "2026"',
    'created_date = "2026-03-05T12:30"',
    'created_date = "2026-03-05 12:30:15"',
    'created_date = "2026-03-05T13:30:15+01:00"',
    'created_date = "2026-03-05T12:30:15.000000Z"',
    'created_date != "2026-03-06"',
    'created_date < "2026-03-06"',
    'created_date <= "2026-03-05"',
    'created_date =< "2026-03-05"',
    'created_date > "2026-03-04"',
    'created_date >= "2026-03-05"',
    'created_date => "2026-03-05"',
    "is_collection = false",
    "is_collection != TRUE",
    'label.env = "prod"',
    'label.env != "dev"',
    'label.env IN ["dev", "prod"]',
    'label.env CONTAINS "ro"',
    "label.n = 3",
    "label.n = 3.0",
    "label.n != 4",
    "label.n < 4",
    "label.n <= 3",
    "label.n =< 3",
    "label.n > -1",
    "label.n >= 3",
    "label.n IN [1, 3]",
    "label.x = -1.5",
    "label.x < -1e0",
    "label.ok = true",
    "label.ok != false",
    "LEN(label.tags) = 3",
    "LEN(label.tags) != 2",
    "LEN(label.tags) > 2",
    "LEN(label.tags) >= 3",
    "LEN(label.tags) < 4",
    "LEN(label.tags) <= 3",
    "LEN(label.empty) = 0",
    "len ( label.tags )=3",
    'label.tags CONTAINS ["a"]',
    'label.tags CONTAINS ["c", "a"]',
    "label.nums CONTAINS [1, 2.5]",
    'label.tags CONTAINS "b"',
    'label CONTAINS KEY "env"',
    'label CONTAINS KEY "nothing"',
    'label.deep CONTAINS KEY "er"',
    'label.deep CONTAINS KEY "dot.ted"',
    'label.deep.er CONTAINS KEY "k-1"',
    'metadata CONTAINS KEY "score"',
    'label.deep.er.k-1 = "v"',
    'label.deep."dot.ted" = 7',
    "label.and = 1",
    'label.007 = "bond"',
    'metadata.description = "say \\"hi\\""',
    "metadata.score < 1",
    '"robot-data" = name',
    '"x" != id',
    '"ann" = user',
    '"prod" = label.env',
    '"dev" != label.env',
    '"2026-03-05" = created_date',
    '"2026-03-04" < created_date',
    '"2026-03-06" >= created_date',
    "false = is_collection",
    "true != is_collection",
    "4 > label.n",
    "3 = LEN(label.tags)",
    "2 < LEN(label.tags)",
    'NOT name = "x"',
    'NOT NOT name = "robot-data"',
    'not (name = "x" or id = "x")',
    'name = "x" OR id = "AbC_123"',
    'name = "robot-data" and id = "AbC_123"',
    'name = "robot-data" AND NOT id = "x"',
    # AND binds tighter than OR, NOT tighter than AND
    'name = "robot-data" OR name = "x" AND name = "y"',
    'name = "y" AND name = "x" OR name = "robot-data"',
    'NOT name = "x" AND name = "robot-data"',
    '((name = "robot-data"))',
    'name="robot-data"AND(id="AbC_123")',
    '# all of it\nname = "robot-data" # the name\n  # and no more\n',
    'NOT label.missing = "x"',
]

FALSE = [
    'name = "robot"',
    'name != "robot-data"',
    'user != "ann"',
    'user = "eve"',
    'name IN ["x"]',
    'name CONTAINS "BOT"',
    'created_date = "2026-03-06"',
    'created_date < "2026-03-05"',
    'created_date > "2026-03-05"',
    'created_date > "2026"',
    'created_date >= "2026-04"',
    "is_collection = true",
    'label.env = "dev"',
    "label.env = 3",
    "label.env != 3",
    'label.n = "3"',
    "label.ok = 1",
    "label.n = true",
    'label.missing = "x"',
    'label.missing != "x"',
    "label.missing < 5",
    'label.env.deeper = "x"',
    'label.tags = "a"',
    'label.nothing = "x"',
    "label.nothing != 5",
    "LEN(label.env) > 0",
    "LEN(label.missing) = 0",
    "LEN(label.deep) > 0",
    'label.tags CONTAINS ["a", "z"]',
    'label.env CONTAINS ["prod"]',
    "label.nums CONTAINS [true]",
    'label.tags CONTAINS "bc"',
    'label.n CONTAINS "3"',
    'label CONTAINS KEY "er"',
    'label.env CONTAINS KEY "x"',
    'label.deep.dot CONTAINS KEY "ted"',
    'metadata CONTAINS KEY "env"',
    'name = "x" AND name = "robot-data" OR name = "y"',
    'NOT name = "robot-data" OR name = "x"',
    'NOT (name = "robot-data" OR name = "x")',
]


@pytest.mark.parametrize("text", TRUE)
def test_true(text: str) -> None:
    assert fits(text)


@pytest.mark.parametrize("text", FALSE)
def test_false(text: str) -> None:
    assert not fits(text)


@pytest.mark.parametrize("keyword", ["AND", "and"])
def test_keywords_are_upper_or_lower_case(keyword: str) -> None:
    assert fits(f'name = "robot-data" {keyword} label.n > 1')
    with pytest.raises(UsageError):
        parse(f'name = "robot-data" {keyword.title()} label.n > 1')


@pytest.mark.parametrize(
    ("text", "order_by", "descending", "limit"),
    [
        ("", None, False, None),
        ("ORDER BY name ASC", "name", False, None),
        ("order by created_date desc", "created_date", True, None),
        ("ORDER BY user", "user", False, None),
        ("LIMIT 3", None, False, 3),
        ("ORDER BY name DESC LIMIT 10", "name", True, 10),
    ],
)
def test_clauses(text: str, order_by: str | None, descending: bool, limit: int | None) -> None:
    found = parse(f'name = "x" {text}')
    assert (found.order_by, found.descending, found.limit) == (order_by, descending, limit)


def test_metadata_anywhere_makes_it_about_versions() -> None:
    assert not parse('name = "metadata.x"').versions
    assert not parse('label.metadata = "x"').versions
    for text in (
        'metadata.a = "x"',
        'name = "x" OR NOT (id = "y" AND "x" = metadata.a)',
        "LEN(metadata.a) > 1",
        'metadata CONTAINS KEY "a"',
        'metadata.a IN ["x"]',
    ):
        assert parse(text).versions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: expected name, .* not the end"),
        ("# nothing\n", "line 2, column 1: expected"),
        ("name", "line 1, column 5: expected =, .* not the end"),
        ("name =", 'column 7: expected "text", .* not the end'),
        ("name = x", "column 8: expected .* not 'x'"),
        ("name = 'x'", "column 8: unexpected \"'\": text is written in double quotes"),
        ('name = "x', "column 8: the text is not closed"),
        ('name = "x\ny"', "column 8: the text is not closed"),
        ('nam = "x"', "column 1: expected name, id, user, .* label, metadata or LEN, not 'nam'"),
        ('name = "x" name = "y"', "column 12: expected AND, OR"),
        ('name = "x" AND', "column 15: expected"),
        ('name = "x" AND OR', "column 16: expected"),
        ('(name = "x"', r"column 12: expected '\)', not the end"),
        ('name = "x")', r"column 11: expected AND.* not '\)'"),
        ('name < "x"', "column 1: name has only = and !="),
        ("name = 5", "column 1: name is text"),
        ("name IN []", "column 10: expected"),
        ('name IN ["a" "b"]', r"column 14: expected ',' or '\]'"),
        ("name IN [1]", "name is text"),
        ('name IN "a"', r"expected '\['"),
        ('created_date IN ["2026"]', "column 1: IN takes"),
        ('created_date CONTAINS "2026"', "column 1: CONTAINS takes"),
        ('created_date > "soon"', "'soon' is no date: write it like"),
        ('created_date = "2026-13"', "is no date"),
        ('created_date = "2026-02-30"', "is no date"),
        ("created_date = 2026", "created_date is text"),
        ('is_collection = "true"', "is_collection takes"),
        ("is_collection < true", "is_collection takes"),
        ('label = "x"', "column 7: expected '.' and a key, or CONTAINS KEY"),
        ("label. = 1", "column 6: a key must follow the dot"),
        ('label CONTAINS "x"', "expected KEY"),
        ('label.x < "a"', "< takes a number"),
        ("LEN(name) = 1", "LEN takes a label or a metadata key"),
        ("LEN(label) = 1", "LEN takes"),
        ('LEN(label.x) = "a"', "LEN is a number"),
        ("LEN label.x = 1", r"expected '\('"),
        ("LEN(label.x) IN [1]", "IN takes"),
        ('name CONTAINS KEY "x"', "name has no keys"),
        ('name CONTAINS ["x"]', "name is no list"),
        ("label.x CONTAINS KEY 5", 'expected "key"'),
        ("label.x CONTAINS 5", 'expected "text", a list or KEY'),
        ('"x" < name', "name has only = and !="),
        ('"x" = "y"', "expected name, id"),
        ('"x" IN ["x"]', "expected =, "),
        ('name = "x" ORDER name ASC', "expected BY"),
        ('name = "x" ORDER BY id ASC', "expected name, created_date or user, not 'id'"),
        ('name = "x" LIMIT', "expected a number"),
        ('name = "x" LIMIT 0', "whole number from 1 on"),
        ('name = "x" LIMIT -1', "whole number from 1 on"),
        ('name = "x" LIMIT 1.5', "whole number from 1 on"),
        ('name = "x" LIMIT 1 ORDER BY name', "expected"),
        ('name = "x"\nAND\n  id = 7', "line 3, column 3: id is text"),
        ('name = "x" ; DROP TABLE dataset', "column 12: unexpected ';'"),
        ("label.n = 12abc", "unexpected '1'"),
        ("label.n = .5", "expected"),
        ("label.n = " + "9" * 200, "number is too long"),
    ],
)  # fmt: skip
def test_errors_point_at_the_place(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse(text)
    assert "\n" not in caught.value.message


def test_limits() -> None:
    nested = "(" * (MAX_DEPTH - 1) + 'name = "robot-data"' + ")" * (MAX_DEPTH - 1)
    assert fits(nested)
    for text in ("(" + nested + ")", "NOT " * 5000 + 'name = "x"', "(" * 60_000):
        with pytest.raises(UsageError, match="nested deeper"):
            parse(text)
    assert fits(" OR ".join(['name = "x"'] * 2000 + ['name = "robot-data"']))
    with pytest.raises(UsageError, match="longer than"):
        parse(" " * (MAX_LENGTH + 1))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026", 365 * 86400),
        ("2024", 366 * 86400),
        ("2026-02", 28 * 86400),
        ("2026-12", 31 * 86400),
        ("2026-12-31", 86400),
        ("2026-12-31T23", 3600),
        ("2026-12-31 23:59", 60),
        ("2026-12-31T23:59:59", 1),
        ("2026-12-31T23:59:59Z", 1),
        ("2026-12-31T23:59-05:00", 60),
        ("2026-12-31T23:59:59.5", 1e-6),
    ],
)
def test_a_date_is_all_of_what_it_names(text: str, seconds: float) -> None:
    span = parse_date(text)
    assert span is not None
    assert (span[1] - span[0]).total_seconds() == seconds
    assert span[0].tzinfo is not None


@pytest.mark.parametrize(
    "text", ["", "26", "2026-1", "2026-00", "0000", "9999", "2026-01-01T25", "2026-01-01x", "٢٠٢٦"]
)
def test_dates_that_are_none(text: str) -> None:
    assert parse_date(text) is None
