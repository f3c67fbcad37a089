"""Plain data into typed values, with errors that a person can act on.

Decided here and only here: how a mismatch between data and a model is reported, as the path of the value,
what was expected, what was found, and the nearest legal name for an unknown key.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from casstore.errors import SpecError

__all__ = ["convert", "kind_of", "nearest", "one_line"]

T = TypeVar("T")

_MAX_MESSAGE: Final = 500


def convert(value: object, model: type[T], path: str, *, skip: Iterable[str] = ()) -> T:
    """``value`` as an instance of the Struct ``model``. ``path`` is where the value stands in the document.

    Strict: unknown keys are errors, and nothing is coerced but a number where text is expected. Keys in
    ``skip`` are ignored (the caller reads them). A list item of a union type is told apart by its ``kind``
    key. Raises SpecError.
    """
    if not isinstance(value, Mapping):
        raise _expected("a mapping", value, path)
    known = {name: entry for name, entry in _fields(cast("Any", model)).items() if name not in skip}
    arguments: dict[str, Any] = {}
    for key, item in value.items():
        if key in skip or (key == "kind" and _tag(model) is not None):
            continue
        if key not in known:
            where = f"{path}.{key}" if isinstance(key, str) else path
            msg = f"{where}: unknown key {key!r}"
            raise SpecError(msg, hint=nearest(str(key), known))
        attribute, annotation, _ = known[key]
        arguments[attribute] = _value(item, annotation, f"{path}.{key}")
    for name, (attribute, _, required) in known.items():
        if required and attribute not in arguments:
            msg = f"{path}.{name}: missing"
            raise SpecError(msg, hint=f"add '{name}:'")
    return model(**arguments)


def nearest(name: str, legal: Iterable[str]) -> str:
    """A hint that proposes the legal name nearest to ``name``, or lists them all when there are few."""
    names = list(legal)
    if len(name) > 100 or len(names) > 1000:
        return "no such name is known here"
    lowered = {candidate.lower(): candidate for candidate in names}
    close = difflib.get_close_matches(name.lower(), lowered, n=1)
    if close:
        return f"did you mean '{lowered[close[0]]}'?"
    return f"known here: {', '.join(names[:30])}{', ...' if len(names) > 30 else ''}"


def one_line(message: str) -> str:
    """A message without line breaks or other control characters, and not endless, whatever it quotes."""
    line = "".join(char if char.isprintable() else repr(char)[1:-1] for char in message[:_MAX_MESSAGE])
    return line if len(message) <= _MAX_MESSAGE else f"{line}..."


def kind_of(value: object) -> str:
    """What a person would call the value: "a list", "the number 5"."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value:g}" if isinstance(value, float) else f"the number {value}"
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) <= 40 else f"the text {value[:37]!r}..."
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


@cache
def _fields(model: Any) -> dict[str, tuple[str, Any, bool]]:
    """Name in the document -> (attribute, annotation, required)."""
    hints = get_type_hints(model)
    return {
        entry.encode_name: (entry.name, hints[entry.name], entry.required) for entry in msgspec.structs.fields(model)
    }


def _tag(model: type[Any]) -> str | None:
    config: msgspec.structs.StructConfig = model.__struct_config__
    return None if config.tag is None else str(config.tag)


def _value(value: object, annotation: Any, path: str) -> Any:
    origin = get_origin(annotation)
    if origin in {Union, types.UnionType}:
        return _union(value, get_args(annotation), path)
    if origin is tuple:
        return _sequence(value, get_args(annotation)[0], path)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _expected("a mapping", value, path)
        inner = get_args(annotation)[1]
        return {_key(key, path): _value(item, inner, f"{path}.{key}") for key, item in value.items()}
    if origin is Literal:
        if value not in get_args(annotation):
            raise _expected(" or ".join(repr(choice) for choice in get_args(annotation)), value, path)
        return value
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return convert(value, annotation, path)
    return _scalar(value, annotation, path)


def _sequence(value: object, inner: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _expected("a list", value, path)
    return tuple(_value(item, inner, f"{path}[{index}]") for index, item in enumerate(value))


def _union(value: object, choices: tuple[Any, ...], path: str) -> Any:
    if value is None and type(None) in choices:
        return None
    models = {_tag(choice): choice for choice in choices if _is_struct(choice)}
    if models:
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if kind not in models:
            raise _expected(f"one of {', '.join(str(name) for name in models)}", value, path)
        return convert(value, models[kind], path)
    rest = [choice for choice in choices if choice is not type(None)]
    if len(rest) > 1:
        mapping = [choice for choice in rest if get_origin(choice) is dict]
        rest = mapping if isinstance(value, Mapping) else [choice for choice in rest if choice not in mapping]
    return _value(value, rest[0], path)


def _is_struct(choice: Any) -> bool:
    return isinstance(choice, type) and issubclass(choice, msgspec.Struct)


def _scalar(value: object, annotation: Any, path: str) -> Any:
    if annotation is bool:
        fits, wanted = isinstance(value, bool), "true or false"
    elif annotation is int:
        fits, wanted = isinstance(value, int) and not isinstance(value, bool), "a whole number"
    elif annotation is float:
        fits, wanted = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    else:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        fits, wanted = isinstance(value, str), "text"
    if not fits:
        raise _expected(wanted, value, path)
    return value


def _key(key: object, path: str) -> str:
    if not isinstance(key, str):
        msg = f"{path}: the key {key!r} is not text"
        raise SpecError(msg, hint=f"quote it: '{key}'")
    return key


def _expected(wanted: str, value: object, path: str) -> SpecError:
    return SpecError(f"{path}: expected {wanted}, found {kind_of(value)}")
