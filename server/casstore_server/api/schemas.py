"""JSON schemas of the types that are sent and answered.

Decided here and only here: what such a type may be made of, the names of their schemas (those of the types; where two
have the same, with the module's before it), and which fields have to be there: in what is sent those without a default,
in what is answered all, since the server always writes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

__all__ = ["BINARY", "Schemas", "parts_of", "prose"]

BINARY: Final[Mapping[str, Any]] = {"type": "string", "format": "binary"}
_REFERENCE: Final = "#/components/schemas/"
_PLAIN: Final[Mapping[Any, Mapping[str, Any]]] = {
    Any: {},
    object: {},
    NoneType: {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bytes: BINARY,
}


class Schemas:
    """The schemas of all types in a document, by reference where they have names."""

    def __init__(self, sent: Iterable[Any], answered: Iterable[Any]) -> None:
        self._sent = _named(sent)
        kinds = list(dict.fromkeys([*self._sent, *_named(answered)]))
        short = [kind.__name__ for kind in kinds]
        self._names = {kind: _name(kind, alone=short.count(kind.__name__) == 1) for kind in kinds}

    def components(self) -> dict[str, Any]:
        """All that have names."""
        found = {name: self._struct(kind) for kind, name in self._names.items()}
        return dict(sorted(found.items()))

    def of(self, kind: Any) -> dict[str, Any]:
        """The schema of a type. Raises ``TypeError`` for one that is not made of JSON's."""
        if kind in self._names:
            return {"$ref": _REFERENCE + self._names[kind]}
        if kind in _PLAIN:
            return dict(_PLAIN[kind])
        if isinstance(kind, type) and issubclass(kind, Enum):
            return {"type": "string", "enum": sorted(str(one.value) for one in kind)}
        return self._made(kind, get_origin(kind), get_args(kind))

    def _made(self, kind: Any, origin: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """The schema of a type that is made of others."""
        if origin in {Union, UnionType}:
            return _any_of([self.of(one) for one in arguments])
        if origin is Literal:
            return {"enum": list(arguments)}
        if origin is Annotated:
            return self.of(arguments[0]) | _limits(arguments[1:])
        if origin is tuple and Ellipsis not in arguments:  # not prefixItems: too few programs know it
            places = {"minItems": len(arguments), "maxItems": len(arguments)}
            return {"type": "array", "items": _any_of([self.of(one) for one in arguments])} | places
        if origin in {list, tuple}:
            return {"type": "array", "items": self.of(arguments[0])}
        if origin is dict:
            values = self.of(arguments[1])
            return {"type": "object"} | ({"additionalProperties": values} if values else {})
        raise TypeError(f"{kind} can't be part of a request or reply: see api.schemas")

    def _struct(self, kind: type[msgspec.Struct]) -> dict[str, Any]:
        config, hints = kind.__struct_config__, get_type_hints(kind, include_extras=True)
        always = kind not in self._sent and not config.omit_defaults
        properties, required = {}, []
        for field in msgspec.structs.fields(kind):
            schema = self.of(hints[field.name])
            if field.required or always:
                required.append(field.encode_name)
            elif isinstance(field.default, str | bool | int | float):
                schema["default"] = field.default
            properties[field.encode_name] = schema
        found: dict[str, Any] = {"type": "object", "description": prose(inspect.getdoc(kind) or "")}
        found |= {"properties": properties} | ({"required": required} if required else {})
        return found | ({"additionalProperties": False} if config.forbid_unknown_fields else {})


def parts_of(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one that it is."""
    return get_args(kind) if get_origin(kind) in {Union, UnionType} else (kind,)


def prose(text: str) -> str:
    """A docstring as Markdown."""
    return text.replace("``", "`")


def _name(kind: type[msgspec.Struct], *, alone: bool) -> str:
    module = kind.__module__.rpartition(".")[2]
    return kind.__name__ if alone else f"{module.title()}{kind.__name__}"


def _named(kinds: Iterable[Any]) -> dict[Any, None]:
    """The structs in these types, and in those."""
    found: dict[Any, None] = {}
    todo = list(kinds)
    while todo:
        kind = todo.pop()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if kind not in found:
                found[kind] = None
                todo.extend(get_type_hints(kind, include_extras=True).values())
        else:
            todo.extend(get_args(kind))
    return found


def _any_of(schemas: list[dict[str, Any]]) -> dict[str, Any]:
    """One of several; plain types are told together."""
    plain = [one["type"] for one in schemas if one.keys() == {"type"} and isinstance(one["type"], str)]
    if len(plain) == len(schemas):
        return {"type": plain}
    return {"anyOf": schemas}


def _limits(given: Iterable[Any]) -> dict[str, Any]:
    words = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum", "pattern": "pattern"}
    metas = [one for one in given if isinstance(one, msgspec.Meta)]
    told = [(word, getattr(meta, name)) for meta in metas for name, word in words.items()]
    return {word: value for word, value in told if value is not None}
