"""Tasks without isolation, for machines that give none: ordinary processes that are still ended completely.

Decided here and only here: what stands in for the folders and names that a sandbox would give. Data folders have their
real paths. A file for an absolute path goes below ``home/root``, and exactly that path is replaced in arguments,
environment and text files. Every task is this machine, under the name ``localhost``, and all share its ports. Each
task's log says so.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from casstore.errors import ServiceError
from casstore_orchestrator.executors.companion import start_companion
from casstore_orchestrator.executors.launch import open_launch, task_environment, write_commands
from casstore_orchestrator.executors.running import Attempt, ProcessGang
from casstore_orchestrator.ports import Isolation, Layout, LogSink, PlacedFile, TaskLaunch

__all__ = ["PlainGang", "plain_layout", "rewrite_paths"]

# What may not stand directly before or after a path for it to be that path, and not a part of another one.
_PATH_CHARACTER = r"[A-Za-z0-9_.~%+@-]"


def plain_layout(home: Path) -> Layout:
    """The real paths of an attempt's data."""
    data = home.resolve() / "data"
    return Layout(data=str(data), input=str(data / "input"), output=str(data / "output"))


def _replacer(paths: dict[str, str]) -> Callable[[str], str]:
    if not paths:
        return lambda text: text
    longest_first = sorted(paths, key=len, reverse=True)
    alternatives = "|".join(re.escape(path) for path in longest_first)
    # A dot ends a sentence after a path, and begins an extension: only the latter makes it another path.
    pattern = re.compile(rf"(?<!{_PATH_CHARACTER})(?:{alternatives})(?![A-Za-z0-9_~%+@/-]|\.[A-Za-z0-9_])")
    return lambda text: pattern.sub(lambda match: paths[match[0]], text)


def rewrite_paths(launch: TaskLaunch) -> TaskLaunch:
    """The launch with every placed file below the attempt's home, and every mention of its path following it."""
    root = str(launch.home.resolve() / "root")
    normal = {file.path: os.path.normpath("/" + file.path.lstrip("/")) for file in launch.files}
    replace = _replacer({path: root + target for path, target in normal.items()})

    def body(data: bytes) -> bytes:
        if b"\0" in data:
            return data
        try:
            return replace(data.decode()).encode()
        except UnicodeDecodeError:
            return data

    return dataclasses.replace(
        launch,
        argv=tuple(replace(argument) for argument in launch.argv),
        environment={key: replace(value) for key, value in launch.environment.items()},
        files=tuple(PlacedFile(root + normal[file.path], body(file.data), file.mode) for file in launch.files),
    )


def _real_path(home: Path, path: str) -> str:
    for at, real in (("/osmo/data", home / "data"), ("/osmo/run/workspace", home / "run/workspace")):
        if path == at or path.startswith(f"{at}/"):
            return f"{real}{path[len(at) :]}"
    return path


class PlainGang(ProcessGang):
    """One group of unsandboxed tasks."""

    def __init__(self, group_key: str, log: LogSink, *, isolation: Isolation, hold: Sequence[int] = ()) -> None:
        super().__init__(group_key, log)
        self._hold = tuple(hold)
        self._isolation = isolation

    def _open(self) -> None:
        """Tasks share nothing but the machine."""

    def _spawn(self, launch: TaskLaunch) -> Attempt:
        home = launch.home.resolve()
        try:
            home.mkdir(parents=True, exist_ok=True)
            home.chmod(0o700)
            for name in ("data/input", "data/output", "tmp", "run/workspace", "root"):
                (home / name).mkdir(parents=True, exist_ok=True)
            write_commands(home / "run/bin")
        except OSError as error:
            raise ServiceError(f"the folder of a task can't be made: {error}") from error
        rewritten = rewrite_paths(launch)
        environment = task_environment(
            rewritten,
            path=os.environ.get("PATH", os.defpath),
            home=str(home / "root"),
            commands=str(home / "run/bin"),
            extra={"TMPDIR": str(home / "tmp")},
        )
        environment["HOSTNAME"] = "localhost"
        workspace = str(home / "run/workspace")
        handed_over = open_launch(rewritten.argv, environment, workspace, rewritten.files, home / "run")
        attempt, ended = start_companion(
            self._loop, launch, self._log, script="task_init.py", told=handed_over, cwd=Path("/"), hold=self._hold
        )
        attempt.attach(
            kill_hard=attempt.order_kill,
            on_control_end=ended,
            open_socket=socket.socket,
            seen_path=lambda path: _real_path(home, path),
        )
        return attempt

    def _introduce(self, attempt: Attempt) -> None:
        attempt.note("isolation: NONE, this task runs as an ordinary process of the user")
        for reason in self._isolation.reasons:
            attempt.note(f"  {reason}")
        if attempt.launch.files:
            attempt.note("  files meant for these paths are elsewhere; mentions of exactly these paths were changed:")
            for file in attempt.launch.files:
                attempt.note(f"    {file.path} -> {attempt.launch.home.resolve()}/root{file.path}")

    def _tear_down(self) -> None:
        """Every attempt has been told to end, and ends its own tree."""


def plain_isolation(reasons: Sequence[str]) -> Isolation:
    """The announcement of this mode; ``reasons`` say why there is no better one."""
    return Isolation(
        mode="plain",
        network=False,
        reasons=(
            *reasons,
            "tasks see this machine's files, processes and network, and have all rights of the user",
            "all tasks of a group are localhost and share this machine's ports: no two can listen on the same one",
            "memory and CPU are not limited",
        ),
    )
