"""Queries, for any query: what is written is what is understood, and nothing but clear errors comes out of noise."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from casstore.dataset import query_ast as ast
from casstore.dataset.query import Row, matches
from casstore.dataset.query_parser import parse
from casstore.errors import UsageError

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=8)
NUMBERS = st.integers(-1000, 1000) | st.floats(-1e6, 1e6)
KEYS = st.text("abAB019_-", min_size=1, max_size=4)
ATTRIBUTES = st.builds(
    ast.Attribute, st.sampled_from(["label", "metadata"]), st.lists(KEYS | TEXTS, min_size=1, max_size=3).map(tuple)
)
FIELDS = st.sampled_from(["name", "id", "user"]).map(ast.Field)
EQUAL = st.sampled_from(["=", "!="])
ORDERED = st.sampled_from(["=", "!=", "<", ">", "<=", ">="])
LITERALS = TEXTS | NUMBERS | st.booleans()
TESTS = st.one_of(
    st.builds(ast.Comparison, FIELDS, EQUAL, TEXTS),
    st.builds(ast.Comparison, st.just(ast.Field("is_collection")), EQUAL, st.booleans()),
    st.builds(ast.Comparison, st.just(ast.Field("created_date")), ORDERED, st.sampled_from(["2026", "2026-01-02"])),
    st.builds(ast.Comparison, ATTRIBUTES, ORDERED, NUMBERS),
    st.builds(ast.Comparison, ATTRIBUTES, EQUAL, TEXTS | st.booleans()),
    st.builds(ast.Comparison, st.builds(ast.Length, ATTRIBUTES), ORDERED, NUMBERS),
    st.builds(ast.In, FIELDS, st.lists(TEXTS, min_size=1, max_size=3).map(tuple)),
    st.builds(ast.In, ATTRIBUTES, st.lists(LITERALS, min_size=1, max_size=3).map(tuple)),
    st.builds(ast.Contains, FIELDS | ATTRIBUTES, TEXTS),
    st.builds(ast.ContainsItems, ATTRIBUTES, st.lists(LITERALS, min_size=1, max_size=3).map(tuple)),
    st.builds(ast.ContainsKey, ATTRIBUTES | st.builds(ast.Attribute, st.just("label"), st.just(())), TEXTS),
)
EXPRESSIONS: st.SearchStrategy[ast.Expression] = st.recursive(
    TESTS,
    lambda inner: (
        st.builds(ast.Not, inner)
        | st.builds(ast.And, st.lists(inner, min_size=2, max_size=3).map(tuple))
        | st.builds(ast.Or, st.lists(inner, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=6,
)
FLIPPED = {"=": "=", "!=": "!=", "<": ">", ">": "<", "<=": "=>", ">=": "=<"}


class Writer:
    """Writes an expression in one of the many ways in which it can be written."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def yes(self) -> bool:
        return self.draw(st.booleans())

    def word(self, word: str) -> str:
        return f" {word.lower() if self.yes() else word}{self.draw(st.sampled_from([' ', chr(10), ' # ! ' + chr(10)]))}"

    def text(self, text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    def literal(self, value: ast.Literal) -> str:
        if isinstance(value, bool):
            return "true" if value else "FALSE"
        return self.text(value) if isinstance(value, str) else repr(value)

    def literals(self, values: tuple[ast.Literal, ...]) -> str:
        return "[" + " ,".join(self.literal(value) for value in values) + "]"

    def operand(self, operand: ast.Operand) -> str:
        if isinstance(operand, ast.Field):
            return operand.name
        if isinstance(operand, ast.Length):
            return f"{self.word('LEN')}({self.operand(operand.of)})"
        plain = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
        keys = [key if key and set(key) <= plain and self.yes() else self.text(key) for key in operand.keys]
        return ".".join([operand.tree, *keys])

    def write(self, where: ast.Expression, binding: int = 0) -> str:
        """``binding``: 0 inside OR, 1 inside AND, 2 inside NOT."""
        if isinstance(where, ast.Or):
            return self.group(self.word("OR").join(self.write(part, 1) for part in where.parts), binding > 0)
        if isinstance(where, ast.And):
            return self.group(self.word("AND").join(self.write(part, 2) for part in where.parts), binding > 1)
        if isinstance(where, ast.Not):
            return self.group(self.word("NOT") + self.write(where.part, 2), False)
        return self.group(self.test(where), False)

    def group(self, text: str, needed: bool) -> str:
        return f"({text})" if needed or self.draw(st.integers(0, 4)) == 0 else text

    def test(self, where: ast.Expression) -> str:
        if isinstance(where, ast.Comparison):
            left, right = self.operand(where.operand), self.literal(where.value)
            if self.yes():
                return f"{right} {FLIPPED[where.op]}{left}"
            return f"{left} {where.op}{right}"
        if isinstance(where, ast.In):
            return self.operand(where.operand) + self.word("IN") + self.literals(where.values)
        if isinstance(where, ast.Contains):
            return self.operand(where.operand) + self.word("CONTAINS") + self.text(where.text)
        if isinstance(where, ast.ContainsItems):
            return self.operand(where.operand) + self.word("CONTAINS") + self.literals(where.values)
        assert isinstance(where, ast.ContainsKey)
        return self.operand(where.operand) + self.word("CONTAINS") + self.word("KEY") + self.text(where.key)


def flat(where: ast.Expression) -> ast.Expression:
    """AND inside AND is one AND, when no parentheses were written; so compare without them."""
    if isinstance(where, ast.Not):
        return ast.Not(flat(where.part))
    if isinstance(where, ast.And | ast.Or):
        parts: list[ast.Expression] = []
        for part in map(flat, where.parts):
            parts += part.parts if isinstance(part, type(where)) else (part,)
        return type(where)(tuple(parts))
    return where


@st.composite
def written(draw: st.DrawFn) -> tuple[ast.Expression, str]:
    where = draw(EXPRESSIONS)
    return where, Writer(draw).write(where)


@given(written())
def test_what_is_written_is_what_is_understood(pair: tuple[ast.Expression, str]) -> None:
    where, text = pair
    assert flat(parse(text).where) == flat(where)


ROWS = st.builds(
    Row,
    name=st.sampled_from(["a", "ab"]),
    id=st.just("x"),
    users=st.frozensets(st.sampled_from(["a", "b"]), min_size=1),
    creator=st.just("a"),
    created=st.just(datetime(2026, 1, 2, tzinfo=UTC)),
    is_collection=st.booleans(),
    label=st.dictionaries(KEYS, LITERALS | st.lists(NUMBERS, max_size=2), max_size=3),
    metadata=st.dictionaries(KEYS, LITERALS, max_size=2),
)


@given(EXPRESSIONS, EXPRESSIONS, ROWS)
def test_the_laws_of_logic_hold(left: ast.Expression, right: ast.Expression, row: Row) -> None:
    a, b = matches(left, row), matches(right, row)
    assert matches(ast.Not(left), row) is not a
    assert matches(ast.And((left, right)), row) is (a and b)
    assert matches(ast.Or((left, right)), row) is (a or b)


WORDS = "name label . metadata.a = != < ( ) [ ] , 5 - AND not IN CONTAINS KEY LEN ORDER BY LIMIT true created_date"
NOISE = st.lists(st.sampled_from([*WORDS.split(), '"', '"x"', "\\", "#", "\n", "'", "é"]), max_size=12).map(" ".join)


def complaint(text: str) -> str | None:
    try:
        parse(text)
    except UsageError as error:
        return error.message
    return None


@given(NOISE | st.text(max_size=30))
def test_noise_is_refused_clearly(text: str) -> None:
    message = complaint(text)
    assert message is None or message.startswith("the query can't be understood at line ")
