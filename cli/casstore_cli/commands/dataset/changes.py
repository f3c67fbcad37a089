"""The lines of ``osmo dataset diff``.

Decided here and only here: the letter of each change (git's: A, D, M, R), and when the changes of a folder are one
line: when all of it was added, or deleted, or moved as it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from casstore.model import Kind
from casstore_cli import output

if TYPE_CHECKING:
    from casstore.dataset.diff import Change

__all__ = ["every_line", "lines"]

_LETTERS = {"added": "A", "removed": "D", "modified": "M", "renamed": "R"}


class _Line(NamedTuple):
    path: bytes
    """Where the line is sorted."""
    text: str


def every_line(changes: Iterable[Change]) -> list[str]:
    """One line for each change, sorted by path."""
    return _sorted([_single(change) for change in changes])


def lines(changes: Sequence[Change]) -> list[str]:
    """The lines of the changes, one for each folder that changed as a whole, sorted by path."""
    moved, rest = _moved_folders(changes)
    found = [_Line(new, f"R  {_folder(old)} -> {_folder(new)}  ({_sum(parts)})") for old, new, parts in moved]
    for status in ("added", "removed"):
        whole, rest = _whole_folders(rest, status)
        letter = _LETTERS[status]
        found += [_Line(top, f"{letter}  {_folder(top)}  ({_sum(parts)})") for top, parts in whole.items()]
    return _sorted([*found, *map(_single, rest)])


def _sorted(found: list[_Line]) -> list[str]:
    return [line.text for line in sorted(found, key=lambda line: line.path.split(b"/"))]


def _whole_folders(changes: Sequence[Change], status: str) -> tuple[dict[bytes, list[Change]], list[Change]]:
    """The changes of folders all of which have this status, by the topmost folder, and the other changes."""
    folders = {change.path for change in changes if change.status == status and change.kind == Kind.DIRECTORY}
    for change in changes:
        if change.status != status:
            for path in (change.path, change.old_path or b""):
                folders.difference_update(_with_parents(path))
    whole: dict[bytes, list[Change]] = defaultdict(list)
    rest = []
    for change in changes:
        top = _topmost(change.path, folders) if change.status == status else None
        if top is None:
            rest.append(change)
        else:
            whole[top].append(change)
    return whole, rest


def _moved_folders(changes: Sequence[Change]) -> tuple[list[tuple[bytes, bytes, list[Change]]], list[Change]]:
    """Folders that are somewhere else now, with all that was in them and nothing more: (old, new, changes)."""
    came = {change.path for change in changes if change.status == "added" and change.kind == Kind.DIRECTORY}
    went = {change.path for change in changes if change.status == "removed" and change.kind == Kind.DIRECTORY}
    into: dict[bytes, list[Change]] = defaultdict(list)
    out_of: dict[bytes, list[Change]] = defaultdict(list)
    for change in changes:
        new = None if change.status == "removed" else _topmost(change.path, came)
        old_path = change.path if change.status == "removed" else change.old_path
        old = None if old_path is None else _topmost(old_path, went)
        if new is not None:
            into[new].append(change)
        if old is not None:
            out_of[old].append(change)
    moved: list[tuple[bytes, bytes, list[Change]]] = []
    gone: set[int] = set()
    for new, parts in into.items():
        old = next((_topmost(part.old_path, went) for part in parts if part.old_path is not None), None)
        if old is None or not _same_content(old, out_of[old], new, parts):
            continue
        moved.append((old, new, parts))
        gone.update(id(part) for part in (*parts, *out_of[old]))
    return moved, [change for change in changes if id(change) not in gone]


def _same_content(old: bytes, went: Sequence[Change], new: bytes, came: Sequence[Change]) -> bool:
    for change in (*went, *came):
        if change.status == "renamed":
            if change.what or change.old_path is None or change.path[len(new) :] != change.old_path[len(old) :]:
                return False
            if not (_below(change.path, new) and _below(change.old_path, old)):
                return False
        elif change.kind != Kind.DIRECTORY:
            return False
    return _folders(went, old) == _folders(came, new)


def _folders(changes: Iterable[Change], top: bytes) -> set[bytes]:
    return {change.path[len(top) :] for change in changes if change.kind == Kind.DIRECTORY}


def _below(path: bytes, folder: bytes) -> bool:
    return path.startswith(folder + b"/")


def _with_parents(path: bytes) -> Iterator[bytes]:
    while path:
        yield path
        path = path.rpartition(b"/")[0]


def _topmost(path: bytes, folders: set[bytes]) -> bytes | None:
    found = None
    for folder in _with_parents(path):
        if folder in folders:
            found = folder
        elif found is not None:
            break  # whole folders have no gaps
    return found


def _sum(changes: Iterable[Change]) -> str:
    files = links = size = 0
    for change in changes:
        if change.kind == Kind.DIRECTORY:
            continue
        files += change.kind == Kind.FILE
        links += change.kind == Kind.SYMLINK
        size += max(change.old_size, change.new_size)
    found = [_count(files, "file")] if files or not links else []
    if links:
        found.append(_count(links, "link"))
    return ", ".join([*found, output.size(size)]) if files or links else "empty"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _folder(path: bytes) -> str:
    return output.escape(path) + "/"


def _single(change: Change) -> _Line:
    path = output.escape(change.path)
    details = list(change.what)
    if change.status == "modified" and "content" in change.what:
        details.append(f"{output.size(change.old_size)} -> {output.size(change.new_size)}")
    elif change.status in ("added", "removed") and change.kind == Kind.FILE:
        details.append(output.size(max(change.old_size, change.new_size)))
    if change.old_path is not None:
        path = f"{output.escape(change.old_path)} -> {path}"
    folder = "/" if change.kind == Kind.DIRECTORY else ""
    text = f"{_LETTERS[change.status]}  {path}{folder}" + (f"  ({', '.join(details)})" if details else "")
    return _Line(change.path, text)
