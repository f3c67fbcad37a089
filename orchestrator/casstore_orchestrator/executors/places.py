"""Where on the host lies what a task sees at a path.

Decided here and only here: the way back through the mounts that ``sandbox`` plans, and through the folders that stand
in for them in ``plain``.
"""

from __future__ import annotations

import os
import posixpath
from pathlib import Path

from casstore.errors import UsageError

__all__ = ["container_place", "plain_place", "sandbox_place"]

_DATA = (("/osmo/data", "data"), ("/osmo/run/workspace", "run/workspace"))
_OWN = (*_DATA, ("/tmp", "tmp"), ("/var/tmp", "var_tmp"))  # noqa: S108  names, no file is made in them


def sandbox_place(home: Path, path: str) -> tuple[Path, str]:
    """A folder below the home of an attempt, and the path below it; of a folder of the machine, its layer."""
    home = home.resolve()
    path = posixpath.normpath("/" + path.lstrip("/"))
    found = _below(path, _OWN)
    if found is not None:
        return home / found[0], found[1]
    top, _, rest = path.lstrip("/").partition("/")
    layer = home / "layers" / f"{top}.upper"
    return (layer, rest) if os.path.isdir(layer) else (home / "root", path.lstrip("/"))


def plain_place(home: Path, path: str) -> tuple[Path, str]:
    """The data folders of an attempt by either of their names; everything else is where it says."""
    home = home.resolve()
    path = posixpath.normpath("/" + path.lstrip("/"))
    found = _below(path, (*_DATA, *((str(home / name), name) for _, name in _DATA)))
    return (home / found[0], found[1]) if found is not None else (Path("/"), path.lstrip("/"))


def container_place(home: Path, path: str) -> tuple[Path, str]:
    """A data folder of an attempt, and the path below it. ``UsageError`` for what is in the container alone."""
    normal = posixpath.normpath("/" + path.lstrip("/"))
    found = _below(normal, _DATA)
    if found is None:
        raise UsageError(
            f"{path} is inside the task's container, where it can't be read from outside",
            hint=f"use a path below one of {', '.join(folder for folder, _ in _DATA)}",
        )
    return home.resolve() / found[0], found[1]


def _below(path: str, folders: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
    for folder, name in folders:
        if path == folder or path.startswith(f"{folder}/"):
            return name, path[len(folder) + 1 :]
    return None
