"""YAML from people and programs that are not trusted, read without surprises.

Decided here and only here: which YAML is accepted. One document of plain data: mappings, lists, strings,
numbers, booleans and null. Rejected with one clear line that names the place: anything larger than
``max_bytes``, deeper than ``MAX_DEPTH``, with more than ``MAX_NODES`` values once aliases are expanded (so no
"billion laughs"), with a key given twice, or with a tag that asks for an object.

Two readings of YAML 1.1 are left out because they change what people wrote: dates and times stay the strings
that they were, and ``22:30`` is a string rather than a number in base sixty.
"""

from __future__ import annotations

import contextlib
import gc
import re
from collections.abc import Hashable, Iterator
from typing import Any, ClassVar, TypeAlias

import yaml

from casstore.errors import CasstoreError, UsageError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_NODES", "load"]

MAX_BYTES = 1 << 20
"""Default size limit of a document, in bytes of UTF-8."""
MAX_DEPTH = 50
"""Mappings and lists inside each other."""
MAX_NODES = 200_000
"""Scalars, mappings and lists, counted once for each place where they appear after aliases are expanded."""

MAX_DIGITS = 100
"""Of a whole number."""

_CORE = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq"))
_MERGE = "tag:yaml.org,2002:merge"

_Mark: TypeAlias = Any  # the C parser has a mark class of its own
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]  # the C loader is chosen at run time
    """The safe loader, with our scalars and without duplicate keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain value", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        result: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return result

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number, unless it is longer than anybody means."""
        if len(node.value) > MAX_DIGITS:
            raise yaml.constructor.ConstructorError(
                None, None, f"a number of more than {MAX_DIGITS} digits", node.start_mark
            )
        number: int = super().construct_yaml_int(node)
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)

# What a plain scalar is, and the characters that one may start with.
_RESOLVERS = (
    (
        "bool",
        r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)\Z",
        "yYnNtTfFoO",
    ),
    (
        "float",
        (
            r"(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
            r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
        "-+0123456789.",
    ),
    (
        "int",
        r"(?:[-+]?0b[0-1_]+|[-+]?0[0-7_]+|[-+]?(?:0|[1-9][0-9_]*)|[-+]?0x[0-9a-fA-F_]+)\Z",
        "-+0123456789",
    ),
    ("merge", r"<<\Z", "<"),
    ("null", r"(?:~|null|Null|NULL|)\Z", "~nN"),
)
for _name, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(_pattern), [*_first, ""] if _name == "null" else [*_first]
    )


class _Refused(Exception):  # noqa: N818  # never leaves this module
    def __init__(self, mark: _Mark | None, problem: str) -> None:
        super().__init__(problem)
        self.mark = mark
        self.problem = problem


class _Survey:
    """Walks the events of a document without recursion and refuses what would be dangerous to construct."""

    def __init__(self) -> None:
        self.anchors: dict[str, int] = {}  # anchor -> nodes it expands to; -1 while it is still open
        self.open: list[tuple[str | None, int]] = []  # (anchor, nodes before it)
        self.nodes = 0
        self.documents = 0

    def event(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise _Refused(event.start_mark, "more than one document")
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event)
        elif isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)):
            self._start(event)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self.open.pop()
            if anchor is not None:
                self.anchors[anchor] = self.nodes - before

    def _start(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        if event.tag is not None and event.tag not in _CORE and event.tag != "!":
            raise _Refused(event.start_mark, f"tag {event.tag!r} is not allowed, only plain data is")
        self._count(1, event)
        if isinstance(event, yaml.ScalarEvent):
            if event.anchor is not None:
                self.anchors[event.anchor] = 1
            return
        if len(self.open) >= MAX_DEPTH:
            raise _Refused(event.start_mark, f"nested deeper than {MAX_DEPTH} levels")
        if event.anchor is not None:
            self.anchors[event.anchor] = -1
        self.open.append((event.anchor, self.nodes - 1))

    def _alias(self, event: yaml.AliasEvent) -> None:
        size = self.anchors.get(event.anchor or "")
        if size is None:
            raise _Refused(event.start_mark, f"alias {event.anchor!r} names nothing")
        if size < 0:
            raise _Refused(event.start_mark, f"alias {event.anchor!r} contains itself")
        self._count(size, event)

    def _count(self, more: int, event: yaml.Event) -> None:
        self.nodes += more
        if self.nodes > MAX_NODES:
            raise _Refused(event.start_mark, f"more than {MAX_NODES} values after expanding aliases")


def load(text: str | bytes, *, what: str, max_bytes: int = MAX_BYTES, error: type[CasstoreError] = UsageError) -> Any:
    """Return the plain data in a YAML document; None for an empty one.

    ``what`` names the document in messages (a path, say). Raises ``error`` for whatever is not accepted.
    Aliased collections are shared between the places they appear in: copy before changing.
    """
    if isinstance(text, bytes):
        if len(text) > max_bytes:
            raise error(f"{what}: larger than {max_bytes} bytes")
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as exc:
            raise error(f"{what}: not UTF-8 text (byte {exc.start})") from None
    elif len(text) > max_bytes or len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise error(f"{what}: larger than {max_bytes} bytes")
    try:
        survey = _Survey()
        for event in yaml.parse(text, Loader=_Loader):
            survey.event(event)
        with _without_collection():
            return yaml.load(text, Loader=_Loader)  # noqa: S506  # a safe loader, see above
    except _Refused as exc:
        raise error(f"{what}: {_place(exc.mark)}{exc.problem}") from None
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        raise error(f"{what}: {_place(mark)}{exc.problem or exc.context or 'not valid YAML'}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as exc:
        # YAMLError without a mark: characters that YAML forbids. ValueError: a number no machine should read.
        problem = str(exc).splitlines()[0] if str(exc) else "not valid YAML"
        raise error(f"{what}: {problem}") from None


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """What is made in here is bounded, and none of it is garbage yet: looking for some would take most of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _place(mark: _Mark | None) -> str:
    return "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
