"""Labels and metadata: trees of plain values.

Decided here and only here: what such a tree may hold, how it is written on a command line
(``key[.sub...]:string|numeric:value[,value...]``), how two are merged, and what deleting a key means.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec

from casstore.errors import NotFoundError, UsageError

__all__ = ["Attributes", "change", "check", "load", "load_keys", "merge", "parse_key", "parse_set"]

Attributes: TypeAlias = dict[str, Any]

MAX_SIZE = 1 << 20
"""Bytes of one tree as JSON."""
MAX_DEPTH = 32

_KEY = re.compile(r"[A-Za-z0-9_-]+\Z", re.ASCII)
_KEY_HINT = "the parts of a key have letters, digits, '_' and '-'"
_SET_HINT = "write key[.sub]:string:value[,value] or key[.sub]:numeric:value[,value]"


def check(tree: object, what: str) -> Attributes:
    """Return a deep copy of a tree of attributes after checking it; ``UsageError`` names the key that is
    wrong.

    Mappings with legal keys; strings, finite numbers, booleans and null; lists that are all strings, all
    numbers or all booleans. ``what`` names the tree in messages.
    """
    if not isinstance(tree, Mapping):
        raise UsageError(f"{what} must be a mapping of keys to values")
    checked = _mapping(tree, what, ())
    if len(msgspec.json.encode(checked)) > MAX_SIZE:
        raise UsageError(f"{what}: larger than {MAX_SIZE} bytes", hint="keep large data in a file of the dataset")
    return checked


def _mapping(tree: Mapping[Any, Any], what: str, path: tuple[str, ...]) -> Attributes:
    if len(path) >= MAX_DEPTH:
        raise UsageError(f"{what}: nested deeper than {MAX_DEPTH} levels at {_show(path[:4])}...")
    result: Attributes = {}
    for key, value in tree.items():
        if not isinstance(key, str) or not _KEY.match(key):
            raise UsageError(f"{what}: illegal key {str(key)[:80]!r} in {_show(path)}", hint=_KEY_HINT)
        result[key] = _value(value, what, (*path, key))
    return result


def _value(value: object, what: str, path: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return _mapping(value, what, path)
    if isinstance(value, (list, tuple)):
        for kinds in ((str,), (int, float), (bool,)):
            if all(isinstance(item, kinds) and (bool in kinds or not isinstance(item, bool)) for item in value):
                return [_scalar(item, what, path) for item in value]
        raise UsageError(f"{what}: the items of the list {_show(path)} must all be strings, or all be numbers")
    return _scalar(value, what, path)


def _scalar(value: object, what: str, path: tuple[str, ...]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{what}: {_show(path)} is not valid text") from None
        return value
    if isinstance(value, (int, float)):
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{what}: {_show(path)} is not a finite number")
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise UsageError(f"{what}: {_show(path)} is a number beyond 64 bits")
        return value
    raise UsageError(f"{what}: {_show(path)} is neither text, a number, a boolean, a list nor a mapping")


def merge(old: Attributes, new: Attributes) -> Attributes:
    """Return ``old`` changed by ``new``: mappings are merged key by key, anything else is replaced."""
    result = dict(old)
    for key, value in new.items():
        before = result.get(key)
        both = isinstance(before, dict) and isinstance(value, dict)
        result[key] = merge(before, value) if both else value  # type: ignore[arg-type]  # both are dicts
    return result


def change(tree: Attributes, what: str, *, delete: Sequence[str], set: Attributes | None) -> Attributes:  # noqa: A002 - the word of the command
    """Return ``tree`` without the dotted keys in ``delete`` and then merged with ``set``.

    ``NotFoundError`` for a key that is not there. A mapping that is left empty stays.
    """
    for key in delete:
        tree = _without(tree, parse_key(key), key, what)
    return check(merge(tree, set or {}), what)


def _without(tree: Attributes, parts: Sequence[str], key: str, what: str) -> Attributes:
    if parts[0] not in tree:
        raise NotFoundError(f"{what} have no key {key!r}")
    if len(parts) == 1:
        return {name: value for name, value in tree.items() if name != parts[0]}
    below = tree[parts[0]]
    if not isinstance(below, dict):
        raise NotFoundError(f"{what} have no key {key!r}")
    return {**tree, parts[0]: _without(below, parts[1:], key, what)}


def parse_key(key: str) -> list[str]:
    """Return the parts of a dotted key; ``UsageError`` for an illegal one."""
    parts = key.split(".")
    if len(parts) > MAX_DEPTH or not all(_KEY.match(part) for part in parts):
        raise UsageError(f"illegal key {key[:80]!r}", hint=_KEY_HINT)
    return parts


def parse_set(items: Iterable[str]) -> Attributes:
    """Return the tree that ``key[.sub...]:string|numeric:value[,value...]`` items describe; later ones win.

    A comma makes a list. ``UsageError`` names the item that is wrong.
    """
    result: Attributes = {}
    for item in items:
        key, _, rest = item.partition(":")
        kind, colon, text = rest.partition(":")
        if not colon or kind not in ("string", "numeric"):
            raise UsageError(f"{item[:120]!r} is not a key, a type and a value", hint=_SET_HINT)
        values: list[Any] = text.split(",")
        if kind == "numeric":
            values = [_number(value, item) for value in values]
        tree: Any = values if len(values) > 1 else values[0]
        for part in reversed(parse_key(key)):
            tree = {part: tree}
        result = merge(result, tree)
    return result


def _number(text: str, item: str) -> int | float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{item[:120]!r}: {text[:40]!r} is not a number", hint=_SET_HINT)
    return value


def load(texts: Iterable[tuple[str, str | bytes]], what: str) -> Attributes:
    """Return the merger, left to right, of YAML documents given as ``(name, text)``."""
    result: Attributes = {}
    for name, text in texts:
        tree = _load_yaml(text, what=name)
        result = merge(result, check({} if tree is None else tree, f"{what} in {name}"))
    return result


def load_keys(name: str, text: str | bytes) -> list[str]:
    """Return the dotted keys in a YAML document: a list of keys, one key, or a mapping whose leaves are meant."""
    found = _load_yaml(text, what=name)
    keys = _leaves(found, ()) if isinstance(found, dict) else [found] if isinstance(found, str) else found
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UsageError(f"{name} must be a list of keys")
    for key in keys:
        parse_key(key)
    return keys


def _leaves(tree: Mapping[Any, Any], path: tuple[str, ...]) -> list[str]:
    keys: list[str] = []
    for key, value in tree.items():
        below = (*path, str(key))
        keys += _leaves(value, below) if isinstance(value, Mapping) and value else [".".join(below)]
    return keys


def _show(path: Sequence[str]) -> str:
    return repr(".".join(path)[:120]) if path else "the top level"


def _load_yaml(text: str | bytes, *, what: str) -> Any:
    # Slow to load, and only files of attributes need it.
    from casstore import safeyaml  # noqa: PLC0415

    return safeyaml.load(text, what=what)
