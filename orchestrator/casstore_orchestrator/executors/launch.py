"""From a ``TaskLaunch`` to what the first process of a task reads.

Decided here and only here: which launches are refused, the environment that every task starts with, and the bytes
handed over. Environment and files go through an unnamed file, never through arguments that ``ps`` would show.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from casstore.errors import UsageError
from casstore_orchestrator.ports import PlacedFile, TaskLaunch

__all__ = ["check_launches", "open_document", "open_launch", "task_environment", "write_commands"]

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62})")
# Linux refuses a single argument or variable of 128 KiB or more; the whole block is bounded by the stack limit.
_MAX_STRING = 128 * 1024 - 1
_UNWRITABLE = ("/proc", "/sys", "/dev")


def check_launches(launches: Sequence[TaskLaunch], limit: int) -> None:
    """Refuse what can't run, naming task and value; raises ``UsageError``. Nothing has been touched before."""
    if not launches:
        raise UsageError("a group without tasks can't be started")
    if len(launches) > limit:
        raise UsageError(f"a group of {len(launches)} tasks is too large: at most {limit} can share a network")
    seen: set[str] = set()
    for launch in launches:
        if not _NAME.fullmatch(launch.name):
            raise UsageError(
                f"task name {launch.name!r} can't be a host name",
                hint="use letters, digits, '-', '_' and '.', at most 63, beginning with a letter or digit",
            )
        if launch.name in seen:
            raise UsageError(f"task {launch.name} appears twice in its group")
        seen.add(launch.name)
        _check_launch(launch)


def _check_launch(launch: TaskLaunch) -> None:
    task = f"task {launch.name}"
    if not launch.argv or not launch.argv[0]:
        raise UsageError(f"{task} has no command")
    for position, argument in enumerate(launch.argv):
        _check_string(argument, f"{task}: argument {position}")
    for key, value in launch.environment.items():
        if not key or "=" in key:
            raise UsageError(f"{task}: {key!r} can't be the name of an environment variable")
        _check_string(f"{key}={value}", f"{task}: environment variable {key}")
    for file in launch.files:
        _check_path(file, task)
    if launch.cpu < 0 or launch.memory < 0 or launch.gpu < 0:
        raise UsageError(f"{task} asks for a negative amount of cpu, memory or gpu")


def _check_string(text: str, what: str) -> None:
    if "\0" in text:
        raise UsageError(f"{what} contains a NUL character")
    size = len(os.fsencode(text))
    if size > _MAX_STRING:
        raise UsageError(
            f"{what} has {size} bytes; the system passes at most {_MAX_STRING}",
            hint="put it into a file (`files:`) or a dataset input",
        )


def _check_path(file: PlacedFile, task: str) -> None:
    path = file.path
    parts = path.split("/")
    if not path.startswith("/") or path.endswith("/") or "\0" in path or ".." in parts:
        raise UsageError(f"{task}: file path {path!r} must be absolute, without '..' and name a file")
    if any(path == folder or path.startswith(folder + "/") for folder in _UNWRITABLE):
        raise UsageError(f"{task}: a file can't be placed in {path}: that folder belongs to the system")


def task_environment(
    launch: TaskLaunch, *, path: str, home: str, commands: str, extra: Mapping[str, str]
) -> dict[str, str]:
    """A clean environment, not the server's, then ``extra``, then the task's own; ``commands`` ends its PATH."""
    environment = {"PATH": path, "HOME": home, "LANG": "C.UTF-8", "HOSTNAME": launch.name}
    if "TZ" in os.environ:
        environment["TZ"] = os.environ["TZ"]
    if launch.gpu == 0:
        environment["NVIDIA_VISIBLE_DEVICES"] = ""
    environment.update(extra)
    environment.update(launch.environment)
    environment["PATH"] = f"{environment['PATH']}:{commands}" if environment["PATH"] else commands
    return environment


def open_launch(
    argv: Sequence[str], environment: Mapping[str, str], cwd: str, files: Sequence[PlacedFile], folder: Path
) -> BinaryIO:
    """The launch in the form that ``task_init`` reads, as an unnamed file."""
    return open_document({"argv": list(argv), "environment": dict(environment), "cwd": cwd}, files, folder)


def open_document(header: Mapping[str, object], files: Sequence[PlacedFile], folder: Path) -> BinaryIO:
    """A header in JSON, with the files listed in it, and their bodies, as an unnamed file."""
    listed = [(file.path, file.mode & 0o7777, len(file.data)) for file in files]
    head = json.dumps({**header, "files": listed}).encode()
    stream: BinaryIO
    if sys.platform == "linux":
        stream = os.fdopen(os.memfd_create("launch", os.MFD_CLOEXEC), "w+b")
    else:
        stream = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  the caller closes it
    stream.write(len(head).to_bytes(8, "big") + head)
    for file in files:
        stream.write(file.data)
    stream.flush()
    return stream


def write_commands(folder: Path) -> None:
    """Fill the folder that ends every task's PATH: the ``osmo`` command, and a ``python3`` for machines without."""
    folder.mkdir(parents=True, exist_ok=True)
    python = sys.executable
    call = "import sys; sys.argv[0] = 'osmo'; from casstore_cli.main import main; sys.exit(main())"
    search = os.environ.get("PYTHONPATH", "")
    exported = f"PYTHONPATH={shlex.quote(search)} " if search else ""
    script = folder / "osmo"
    script.write_text(
        f'#!/bin/sh\n{exported}exec {shlex.quote(python)} -P -c {shlex.quote(call)} "$@"\n', encoding="utf-8"
    )
    script.chmod(0o755)
    link = folder / "python3"
    if not link.is_symlink():
        link.symlink_to(os.path.realpath(python))
