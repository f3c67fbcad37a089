"""Labels and metadata as they are written on the command line and in YAML files.

Decided here and only here: the syntax ``key[.sub...]:type:value[,value...]``, and which YAML files are
accepted. How trees are merged is the store's decision.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from casstore.errors import SourceError, UsageError

_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_FORM = "key[.sub]:type:value[,value...], with the type string or numeric"
Tree = dict[str, Any]


def parse_items(items: Iterable[str]) -> Tree:
    """The tree that ``--set`` items describe. A later item wins; a value can't be both a leaf and a
    branch.
    """
    tree: Tree = {}
    for item in items:
        key, _, rest = item.partition(":")
        kind, colon, value = rest.partition(":")
        if not colon:
            raise UsageError(f"{item!r} is not of the form {_FORM}")
        path = key_path(key, item)
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UsageError(f"{item!r}: the key above it was given a value already")
        if isinstance(node.get(path[-1]), dict):
            raise UsageError(f"{item!r}: keys below it were given already")
        node[path[-1]] = _value(kind, value, item)
    return tree


def key_path(key: str, where: str) -> list[str]:
    """The parts of a dotted key, checked."""
    parts = key.split(".")
    if not all(_KEY.fullmatch(part) for part in parts):
        raise UsageError(f"{where!r}: the parts of a key have letters, digits, '_' and '-' only")
    return parts


def _value(kind: str, text: str, item: str) -> Any:
    if kind not in {"string", "numeric"}:
        raise UsageError(f"{item!r}: unknown type {kind!r}", hint=f"write {_FORM}")
    values = [part if kind == "string" else _number(part, item) for part in text.split(",")]
    return values if len(values) > 1 else values[0]


def _number(text: str, item: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{item!r}: {text!r} is not a number") from None
    if not math.isfinite(value):
        raise UsageError(f"{item!r}: {text!r} is not a finite number")
    return value


def load_files(paths: Sequence[str]) -> list[Tree]:
    """The trees in YAML files, in order. ``UsageError`` names the file and the key of whatever is not
    accepted.
    """
    trees = []
    for path in paths:
        tree = _load(path)
        if not isinstance(tree, dict):
            raise UsageError(f"{path}: must be a mapping of keys to values")
        trees.append(_checked(tree, path, ""))
    return trees


def load_keys(paths: Sequence[str]) -> list[str]:
    """The dotted keys in files for ``--delete``: a YAML list, words, or a mapping whose leaves are to go."""
    keys: list[str] = []
    for path in paths:
        found = _load(path)
        if isinstance(found, str):
            found = found.split()
        if isinstance(found, dict):
            found = list(_leaves(found, ""))
        if not isinstance(found, list) or not all(isinstance(key, str) for key in found):
            raise UsageError(f"{path}: must be a list of keys")
        keys += found
    for key in keys:
        key_path(key, key)
    return keys


def merged(trees: Iterable[Tree]) -> Tree:
    """``trees`` as one: mappings are merged, anything else is replaced by the later one."""
    result: Tree = {}
    for tree in trees:
        _merge(result, tree)
    return result


def _merge(into: Tree, tree: Tree) -> None:
    for key, value in tree.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value)
        else:
            into[key] = merged([value]) if isinstance(value, dict) else value


def _load(path: str) -> Any:
    from casstore import safeyaml

    try:
        if not os.path.isfile(path):  # a pipe or a device would never end
            raise SourceError(f"{path}: {'not a file' if os.path.exists(path) else 'no such file'}")
        with open(path, "rb") as file:
            data = file.read(safeyaml.MAX_BYTES + 1)
    except OSError as error:
        raise SourceError(f"can't read {path}: {error.strerror}") from None
    return safeyaml.load(data, what=path)


def _checked(value: Any, path: str, key: str) -> Any:
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str) or not _KEY.fullmatch(name):
                raise UsageError(
                    f"{path}: key {name!r}{f' in {key}' if key else ''}: letters, digits, '_' and '-' only"
                )
        return {name: _checked(item, path, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, list):
        strings = all(isinstance(item, str) for item in value)
        numbers = all(isinstance(item, (int, float)) and not isinstance(item, bool) for item in value)
        if not strings and not numbers:
            raise UsageError(f"{path}: {key}: the values of a list must all be strings or all be numbers")
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise UsageError(f"{path}: {key}: not a finite number")
    return value


def _leaves(tree: Tree, prefix: str) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
