"""The parts of a parsed query.

Decided here and only here: their shape. ``casstore.dataset.query`` tells what each means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = [
    "And", "Attribute", "Comparison", "Contains", "ContainsItems", "ContainsKey", "Expression", "Field", "In", "Length",
    "Literal", "Not", "Operand", "Or", "Parsed",
]  # fmt: skip

Literal: TypeAlias = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Field:
    """``name``, ``id``, ``user``, ``created_date`` or ``is_collection``."""

    name: str


@dataclass(frozen=True, slots=True)
class Attribute:
    """A place in the labels or the metadata; without keys it is the whole tree."""

    tree: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Length:
    """``LEN(...)``: the number of items of a list."""

    of: Attribute


Operand: TypeAlias = Field | Attribute | Length


@dataclass(frozen=True, slots=True)
class Comparison:
    """``operand <op> literal``; ``op`` is one of ``= != < > <= >=``."""

    operand: Operand
    op: str
    value: Literal


@dataclass(frozen=True, slots=True)
class In:
    """``operand IN [...]``."""

    operand: Field | Attribute
    values: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class Contains:
    """``operand CONTAINS "text"``."""

    operand: Field | Attribute
    text: str


@dataclass(frozen=True, slots=True)
class ContainsItems:
    """``attribute CONTAINS [...]``."""

    operand: Attribute
    values: tuple[Literal, ...]


@dataclass(frozen=True, slots=True)
class ContainsKey:
    """``attribute CONTAINS KEY "key"``."""

    operand: Attribute
    key: str


@dataclass(frozen=True, slots=True)
class Not:
    """``NOT part``."""

    part: Expression


@dataclass(frozen=True, slots=True)
class And:
    """All parts hold."""

    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any part holds."""

    parts: tuple[Expression, ...]


Expression: TypeAlias = Comparison | In | Contains | ContainsItems | ContainsKey | Not | And | Or


@dataclass(frozen=True, slots=True)
class Parsed:
    """A whole query. ``versions``: it speaks of metadata, so that it selects versions rather than datasets."""

    where: Expression
    order_by: str | None
    descending: bool
    limit: int | None
    versions: bool
