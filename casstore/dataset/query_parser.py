"""From the text of a query to its parts.

Decided here and only here: the grammar. Keywords are upper or lower case, ``#`` begins a comment, ``NOT``
binds tighter than ``AND`` and ``AND`` tighter than ``OR``.

    query    := expr [ORDER BY (name | created_date | user) [ASC | DESC]] [LIMIT number]
    expr     := term (OR term)*         term := factor (AND factor)*
    factor   := NOT factor | ( expr ) | test
    test     := operand op literal | literal op operand | operand IN [literal, ...]
              | operand CONTAINS "text" | attribute CONTAINS [literal, ...] | tree CONTAINS KEY "key"
    operand  := name | id | user | created_date | is_collection | attribute | LEN(attribute)
    tree     := label | metadata | attribute
    attribute := (label | metadata) (. key)+       key := letters, digits, _ and - | "quoted"
    op       := = | != | < | > | <= | =< | >= | =>  literal := "text" | number | true | false
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, NoReturn

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
    Literal,
    Not,
    Operand,
    Or,
    Parsed,
)
from casstore.errors import UsageError

__all__ = ["parse", "parse_date"]

MAX_LENGTH = 1 << 16
MAX_DEPTH = 100
"""Parentheses and ``NOT`` inside each other."""

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n\f\v]+|\#[^\n]*)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<number>[-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?![A-Za-z0-9_]))
      | (?P<op>!=|<=|>=|=<|=>|=|<|>)
      | (?P<punct>[()\[\],])
      | (?P<word>[A-Za-z_][A-Za-z0-9_-]*)
      | (?P<path>\.)""",
    re.VERBOSE | re.ASCII,
)
_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_KEYWORDS = frozenset(
    {"AND", "OR", "NOT", "IN", "CONTAINS", "KEY", "LEN", "ORDER", "BY", "ASC", "DESC", "LIMIT", "TRUE", "FALSE"}
)
_FLIPPED = {"=": "=", "!=": "!=", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
_SPELLINGS = {"=<": "<=", "=>": ">="}
_TEXT_FIELDS = ("name", "id", "user")
_FIELDS = (*_TEXT_FIELDS, "created_date", "is_collection")
_TREES = ("label", "metadata")
_ORDERS = ("name", "created_date", "user")
_DATE = re.compile(
    r"\d{4}(?:-\d\d(?:-\d\d(?:[T ]\d\d(?::\d\d(?::\d\d(?:\.\d{1,6})?)?)?(?:Z|[+-]\d\d:?\d\d)?)?)?)?\Z", re.ASCII
)


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


def parse(text: str) -> Parsed:
    """Parse a query; ``UsageError`` says where and why it can't be."""
    if len(text) > MAX_LENGTH:
        raise UsageError(f"the query is longer than {MAX_LENGTH} characters")
    return _Parser(text).query()


def _unquote(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1])


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._scan())
        self._at = 0
        self._depth = 0
        self._metadata = False

    # ---- tokens

    def _scan(self) -> Iterator[_Token]:
        at, text = 0, self._text
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                if text[at] == '"':
                    self._fail(at, "the text is not closed on its line")
                hint = ": text is written in double quotes" if text[at] == "'" else ""
                self._fail(at, f"unexpected {text[at]!r}{hint}")
            kind = match.lastgroup or ""
            if kind == "path":
                # What follows a dot is a key, even when it looks like a number or a keyword.
                key = _KEY.match(text, match.end())
                if key is not None:
                    yield _Token("key", key.group(), at)
                    at = key.end()
                    continue
                quoted = _TOKEN.match(text, match.end())
                if quoted is None or quoted.lastgroup != "string":
                    self._fail(at, "a key must follow the dot")
                yield _Token("key", _unquote(quoted.group()), at)
                at = quoted.end()
                continue
            word = match.group()
            if kind == "word" and (word.isupper() or word.islower()) and word.upper() in _KEYWORDS:
                yield _Token("keyword", word.upper(), at)
            elif kind != "space":
                yield _Token(kind, word, at)
            at = match.end()
        yield _Token("end", "", len(text))

    def _fail(self, at: int, problem: str) -> NoReturn:
        line = self._text.count("\n", 0, at) + 1
        column = at - (self._text.rfind("\n", 0, at) + 1) + 1
        raise UsageError(f"the query can't be understood at line {line}, column {column}: {problem}")

    @property
    def _token(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._token
        self._at += token.kind != "end"
        return token

    def _take(self, kind: str, *texts: str) -> bool:
        token = self._token
        if token.kind == kind and (not texts or token.text in texts):
            self._next()
            return True
        return False

    def _expect(self, kind: str, *texts: str, what: str) -> _Token:
        token = self._token
        if token.kind != kind or (texts and token.text not in texts):
            self._unexpected(what)
        return self._next()

    def _unexpected(self, what: str) -> NoReturn:
        token = self._token
        found = "the end" if token.kind == "end" else repr(token.text[:60])
        self._fail(token.at, f"expected {what}, not {found}")

    # ---- grammar

    def query(self) -> Parsed:
        where = self._expression()
        order_by, descending, limit = None, False, None
        if self._take("keyword", "ORDER"):
            self._expect("keyword", "BY", what="BY")
            order_by = self._expect("word", *_ORDERS, what="name, created_date or user").text
            descending = self._token.text == "DESC" and self._token.kind == "keyword"
            self._take("keyword", "ASC", "DESC")
        if self._take("keyword", "LIMIT"):
            token = self._expect("number", what="a number")
            if not token.text.isdigit() or len(token.text) > 12 or int(token.text) == 0:
                self._fail(token.at, "the limit must be a whole number from 1 on")
            limit = int(token.text)
        if self._token.kind != "end":
            self._unexpected("AND, OR, ORDER BY, LIMIT or the end")
        return Parsed(where, order_by, descending, limit, self._metadata)

    def _expression(self) -> Expression:
        parts = [self._term()]
        while self._take("keyword", "OR"):
            parts.append(self._term())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _term(self) -> Expression:
        parts = [self._factor()]
        while self._take("keyword", "AND"):
            parts.append(self._factor())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _factor(self) -> Expression:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._fail(self._token.at, f"nested deeper than {MAX_DEPTH} levels")
        if self._take("keyword", "NOT"):
            found: Expression = Not(self._factor())
        elif self._take("punct", "("):
            found = self._expression()
            self._expect("punct", ")", what="')'")
        else:
            found = self._test()
        self._depth -= 1
        return found

    def _test(self) -> Expression:
        start = self._token
        if start.kind in ("string", "number") or (start.kind == "keyword" and start.text in ("TRUE", "FALSE")):
            value = self._literal()
            op = self._operator()
            return self._comparison(start.at, self._operand(), _FLIPPED[op], value)
        operand = self._operand()
        if isinstance(operand, Attribute) and not operand.keys:
            self._expect("keyword", "CONTAINS", what="'.' and a key, or CONTAINS KEY")
            self._expect("keyword", "KEY", what="KEY")
            return self._contains_key(operand)
        if self._take("keyword", "IN"):
            return self._in(start.at, operand)
        if self._take("keyword", "CONTAINS"):
            return self._contains(start.at, operand)
        op = self._operator()
        return self._comparison(start.at, operand, op, self._literal())

    def _operator(self) -> str:
        token = self._expect("op", what="=, !=, <, >, <=, >=, IN or CONTAINS")
        return _SPELLINGS.get(token.text, token.text)

    def _operand(self) -> Operand:
        token = self._token
        if self._take("keyword", "LEN"):
            self._expect("punct", "(", what="'('")
            inner = self._operand()
            if not isinstance(inner, Attribute) or not inner.keys:
                self._fail(token.at, "LEN takes a label or a metadata key")
            self._expect("punct", ")", what="')'")
            return Length(inner)
        word = self._expect("word", *_FIELDS, *_TREES, what=f"{', '.join(_FIELDS)}, label, metadata or LEN").text
        if word not in _TREES:
            return Field(word)
        self._metadata |= word == "metadata"
        keys: list[str] = []
        while self._token.kind == "key":
            keys.append(self._next().text)
        return Attribute(word, tuple(keys))

    def _literal(self) -> Literal:
        token = self._token
        if self._take("string"):
            return _unquote(token.text)
        if self._take("number"):
            if len(token.text) > 100:
                self._fail(token.at, "the number is too long")
            return float(token.text) if set(token.text).intersection(".eE") else int(token.text)
        if self._take("keyword", "TRUE", "FALSE"):
            return token.text == "TRUE"
        return self._unexpected('"text", a number, true or false')

    def _list(self) -> tuple[Literal, ...]:
        self._expect("punct", "[", what="'['")
        values = [self._literal()]
        while self._take("punct", ","):
            values.append(self._literal())
        self._expect("punct", "]", what="',' or ']'")
        return tuple(values)

    def _in(self, at: int, operand: Operand) -> Expression:
        if isinstance(operand, Length) or (isinstance(operand, Field) and operand.name not in _TEXT_FIELDS):
            self._fail(at, "IN takes name, id, user, a label or a metadata key")
        values = self._list()
        if isinstance(operand, Field) and not all(isinstance(value, str) for value in values):
            self._fail(at, f"{operand.name} is text: write the values in double quotes")
        return In(operand, values)

    def _contains(self, at: int, operand: Operand) -> Expression:
        if isinstance(operand, Length) or (isinstance(operand, Field) and operand.name not in _TEXT_FIELDS):
            self._fail(at, "CONTAINS takes name, id, user, a label or a metadata key")
        if self._take("keyword", "KEY"):
            if isinstance(operand, Field):
                self._fail(at, f"{operand.name} has no keys")
            return self._contains_key(operand)
        if self._token.kind == "punct":
            if isinstance(operand, Field):
                self._fail(at, f"{operand.name} is no list")
            return ContainsItems(operand, self._list())
        token = self._expect("string", what='"text", a list or KEY')
        return Contains(operand, _unquote(token.text))

    def _contains_key(self, operand: Attribute) -> Expression:
        return ContainsKey(operand, _unquote(self._expect("string", what='"key"').text))

    def _comparison(self, at: int, operand: Operand, op: str, value: Literal) -> Expression:
        problem = _comparison_problem(operand, op, value)
        if problem:
            self._fail(at, problem)
        return Comparison(operand, op, value)


def _comparison_problem(operand: Operand, op: str, value: Literal) -> str | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    problem = None
    if isinstance(operand, Length):
        problem = None if number else "LEN is a number"
    elif isinstance(operand, Attribute):
        if not operand.keys:
            problem = f"a key must follow {operand.tree}: {operand.tree}.KEY"
        elif not number and op not in ("=", "!="):
            problem = f"{op} takes a number: text has only = and !="
    elif operand.name == "is_collection":
        problem = None if isinstance(value, bool) and op in ("=", "!=") else "is_collection takes = true or = false"
    elif not isinstance(value, str):
        problem = f"{operand.name} is text: write the value in double quotes"
    elif operand.name == "created_date":
        problem = (
            None
            if parse_date(value)
            else f"{value[:40]!r} is no date: write it like 2026-11-21 or 2026-11-21T10:30:00Z"
        )
    elif op not in ("=", "!="):
        problem = f"{operand.name} has only = and !=, IN and CONTAINS"
    return problem


def parse_date(text: str) -> tuple[datetime, datetime] | None:
    """Return the first moment of a date and the first one after it, UTC unless it says otherwise; None for no
    date.

    ``2026-11`` is a whole month, ``2026-11-21 10:30`` a whole minute.
    """
    if not _DATE.match(text):
        return None
    try:
        if len(text) == 4:
            year = int(text)
            return datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
        if len(text) == 7:
            year, month = int(text[:4]), int(text[5:])
            following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)
            return datetime(year, month, 1, tzinfo=UTC), following
        start = datetime.fromisoformat(text)
        if start.tzinfo is None:
            start = start.replace(tzinfo=UTC)
        clock = re.split(r"[Z+-]", text[10:], maxsplit=1)[0]
        span = {0: timedelta(days=1), 3: timedelta(hours=1), 6: timedelta(minutes=1), 9: timedelta(seconds=1)}
        return start, start + span.get(len(clock), timedelta(microseconds=1))
    except (ValueError, OverflowError):
        return None
