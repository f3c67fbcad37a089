"""Uploads that go on: looking for changes, and the processes that do it in the background.

Decided here and only here: when a change is uploaded (when nothing has changed for a moment), when such an upload ends
(with the task), and where its process id and log are. The process id counts only while the process holds a lock on its
file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from casstore.errors import CasstoreError, ConflictError, NotFoundError

__all__ = ["Daemon", "daemons", "start", "stop", "watch"]

_LOOK_SECONDS = 0.5
_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Daemon:
    """One upload in the background."""

    workflow_id: str
    task: str
    pid: int
    pair: str
    log: str
    file: str


def watch(
    source: str,
    upload: Callable[[], None],
    runs: Callable[[], bool],
    *,
    debounce: float,
    poll: float,
    again: float,
    tell: Callable[[str], None],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Upload again whenever ``source`` has changed and then not for ``debounce`` seconds, until the task has ended."""
    seen = _look(source)
    done = seen
    changed_at, asked_at = 0.0, time.monotonic()
    failed_at: float | None = None
    while True:
        sleep(_LOOK_SECONDS)
        now = time.monotonic()
        if now - asked_at >= poll:
            asked_at = now
            with contextlib.suppress(CasstoreError):  # a server that is away says nothing about the task
                if not runs():
                    tell("The task has ended, and the upload with it.")
                    return
        found = _look(source)
        if found != seen:
            seen, changed_at = found, now
        waits = failed_at is not None and now - failed_at < again
        if seen == done or now - changed_at < debounce or waits:
            continue
        try:
            upload()
        except NotFoundError:
            raise
        except CasstoreError as error:
            failed_at = now
            asked_at = 0.0  # perhaps the task has ended
            tell(f"{error.message}; trying again")
        else:
            failed_at, done = None, seen


def _look(source: str) -> frozenset[tuple[str, int, int, int]]:
    """What tells one state of a file or folder from another, without reading content."""
    found = set()
    folders = [source]
    with contextlib.suppress(OSError):
        state = os.lstat(source)
        found.add(("", state.st_mode, state.st_size, state.st_mtime_ns))
    while folders:
        folder = folders.pop()
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    state = entry.stat(follow_symlinks=False)
                    found.add((entry.path, state.st_mode, state.st_size, state.st_mtime_ns))
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return frozenset(found)


def start(state: str, workflow_id: str, task: str, pair: str, line: list[str], *, max_log: int) -> Daemon:
    """Start one; it holds the lock on its file by an inherited descriptor. ``ConflictError`` when there is one."""
    folder = os.path.join(state, "rsync")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    base = os.path.join(folder, f"rsync_daemon_{workflow_id}_{task}")
    log = f"{base}.log"
    with contextlib.suppress(FileNotFoundError):
        if os.path.getsize(log) > max_log:
            os.replace(log, f"{log}.1")
    fd = os.open(f"{base}.pid", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(
                f"Files are being uploaded to {workflow_id}/{task} already", hint="osmo workflow rsync status"
            ) from None
        with open(log, "ab") as said:
            process = subprocess.Popen(
                line, stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=[fd], cwd="/", start_new_session=True
            )
        entry = {"workflow_id": workflow_id, "task": task, "pid": process.pid, "pair": pair}
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(entry).encode(), 0)
    finally:
        os.close(fd)
    process.returncode = 0  # it outlives this command: nobody waits for it
    return Daemon(workflow_id, task, process.pid, pair, log, f"{base}.pid")


def daemons(state: str, workflow_id: str | None, task: str | None) -> list[Daemon]:
    """Those that run; what is left of others is removed."""
    found = []
    folder = os.path.join(state, "rsync")
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    for name in names:
        path = os.path.join(folder, name)
        if not name.endswith(".pid"):
            continue
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            entry = _running(path)
            if entry is None:
                os.unlink(path)
            elif workflow_id in {None, entry["workflow_id"]} and task in {None, entry["task"]}:
                log = f"{path.removesuffix('.pid')}.log"
                found.append(Daemon(entry["workflow_id"], entry["task"], int(entry["pid"]), entry["pair"], log, path))
    return found


def _running(path: str) -> dict[str, str] | None:
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            entry: dict[str, str] = json.loads(file.read())
            return entry
    return None


def stop(daemon: Daemon) -> None:
    """End one, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(daemon.pid, signal.SIGTERM)
    deadline = time.monotonic() + _STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            if _running(daemon.file) is None:
                break
        except (OSError, ValueError):
            break
        time.sleep(0.05)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(daemon.file)
