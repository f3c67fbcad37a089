"""Versions of datasets as folders, for tasks: ``ports.VersionMounts`` over ``casstore_fuse``.

Decided here and only here: that each mount has processes of its own (the server's threads allow no fork), how these are
told what to mount and that whoever mounted has ended, however it did, how long a mount may take, and where mounts are
written down: in the server's state folder, apart from those of the user's commands. Mounts belong to the agent of the
group that reads them: they outlive the server, and not the agent.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from casstore.errors import CancelledError, CasstoreError, StorageError
from casstore_fuse import mounted, session
from casstore_fuse.mounting import unmount, why_not
from casstore_fuse.records import Registry, take_away
from casstore_orchestrator.ports import DatasetVersion, VersionMounts
from casstore_server import settings as server_settings
from casstore_server.private import Private, handed, received

if TYPE_CHECKING:
    from casstore.repo.store import Store
    from casstore_server.config import Watched
    from casstore_server.stores import Stores

__all__ = ["ServerMounts"]

_READY = b"\n"
_SECONDS = 60.0
"""How long a mount may take before the input is downloaded instead."""
_POLL = 0.1
_END = 5.0
_RECHECK = 60.0
"""Seconds after which it is tried again whether this machine can mount."""
_MOST_TOLD = 5
_F_SETSIG = 10
_log = logging.getLogger(__name__)


class _Order(msgspec.Struct, frozen=True):
    """What the process of a mount is told: where the server's files are, and what to mount."""

    socket_path: str
    state_dir: str
    config_file: str
    data_dir: str
    cache_dir: str
    user: str
    mount: session.Settings


class ServerMounts(VersionMounts):
    """The mounts of one process (but for ``clear``). Thread-safe."""

    def __init__(
        self, settings: server_settings.Settings, private: Private | None = None, config: Watched | None = None
    ) -> None:
        """``config`` has the buckets; without it those that ``config.yaml`` declares are known."""
        self._settings = settings
        self._private = private or Private()
        self._config = config
        folder = str(settings.state_dir / "inputs")
        self._registry = Registry(folder, folder)
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ties: dict[str, int] = {}
        self._checked = -_RECHECK
        self._reason = ""

    def why_not(self) -> str:
        """See ``ports.VersionMounts``. Asked now and then only."""
        with self._lock:
            if time.monotonic() - self._checked >= _RECHECK:
                self._reason, self._checked = why_not(), time.monotonic()
            return self._reason

    def mount(
        self,
        version: DatasetVersion,
        path: Path,
        *,
        regex: str = "",
        cache_size: int | None = None,
        stop: Callable[[], bool],
    ) -> None:
        """See ``ports.VersionMounts``."""
        where = os.path.realpath(path)
        with self._lock:
            running = self._processes.get(where)
        if running is not None:
            if running.poll() is None:
                return
            self.unmount(path)
        self._registry.make()
        reader, writer = os.pipe()
        theirs, tie = os.pipe()  # its end is the end of this process
        try:
            process = self._start(self._order(version, where, regex, cache_size), writer, theirs)
            with self._lock:
                self._processes[where] = process
                self._ties[where] = tie
            tie = -1
            os.close(writer)
            writer = -1
            try:
                line = _answer(reader, stop)
            except CasstoreError:
                self.unmount(path)
                raise
        finally:
            for descriptor in (reader, writer, theirs, tie):
                if descriptor >= 0:
                    os.close(descriptor)
        if line != _READY:
            log = self._problems(where)
            self.unmount(path)
            raise _error(line, log)

    def unmount(self, path: Path) -> tuple[str, ...]:
        """See ``ports.VersionMounts``."""
        where = os.path.realpath(path)
        with self._lock:
            process = self._processes.pop(where, None)
            tie = self._ties.pop(where, -1)
        ready = self._take_away(where)
        if process is not None:
            _end(process, patient=ready)
            self._take_away(where)  # one that was just beginning
        if tie >= 0:
            os.close(tie)
        record = self._registry.get(where)
        if record is not None:
            self._registry.remove(record)
        problems = self._problems(where)
        for problem in problems:
            _log.warning("a mount for tasks: %s", problem)
        log = self._registry.log_file(where)
        for file in (log, f"{log}.1"):
            with contextlib.suppress(OSError):
                os.unlink(file)
        return problems

    def clear(self, folder: Path) -> None:
        """See ``ports.VersionMounts``."""
        above = os.path.join(os.path.realpath(folder), "")
        for record in self._registry.all():
            if not record.path.startswith(above):
                continue
            alive = record.alive
            self._take_away(record.path)
            if alive:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(record.pid, signal.SIGTERM)
            self._registry.remove(record)
            with contextlib.suppress(OSError):
                os.unlink(record.log)
            _log.info("the mount of %s/%s:%d was taken away", record.bucket, record.dataset, record.version)

    def close(self) -> None:
        """End all mounts."""
        with self._lock:
            paths = list(self._processes)
        for path in paths:
            self.unmount(Path(path))

    def _order(self, version: DatasetVersion, where: str, regex: str, cache_size: int | None) -> _Order:
        settings = self._settings
        cache = str(settings.cache_dir / "data")
        return _Order(
            socket_path=str(settings.socket_path),
            state_dir=str(settings.state_dir),
            config_file=str(settings.config_file),
            data_dir=str(settings.data_dir),
            cache_dir=str(settings.cache_dir),
            user=settings.user,
            mount=session.Settings(
                path=where,
                bucket=version.bucket,
                dataset=version.name,
                version=version.number,
                manifest=version.manifest,
                runtime=self._registry.runtime,
                state=self._registry.state_dir,
                below=True,
                cache=cache,
                limit=session.default_limit(cache) if cache_size is None else cache_size,
                regex=regex,
            ),
        )

    def _start(self, order: _Order, writer: int, tie: int) -> subprocess.Popen[bytes]:
        """``-P`` keeps the current folder out of the module path. Not of our session: Ctrl-C is for us alone."""
        command = [sys.executable, "-P", "-m", "casstore_server.mounts", msgspec.json.encode(order).decode()]
        try:
            with handed(self._with_bucket(order.mount.bucket)) as secret:
                return subprocess.Popen(
                    [*command, str(writer), str(tie), str(secret)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=(writer, tie, secret),
                    cwd="/",
                    start_new_session=True,
                )
        except OSError as error:
            raise StorageError(f"the process of a mount can't be started: {error.strerror}") from None

    def _with_bucket(self, name: str) -> Private:
        """What is secret, with a bucket of the database's, so that the process of the mount need not look there."""
        config = None if self._config is None else self._config.last_good()
        found = None if config is None else config.buckets.get(name)
        if config is None or found is None or name in config.declared.buckets or not found.declared:
            return self._private
        credential = msgspec.to_builtins(found.credential)
        body = {"dataset_path": found.url, "mode": found.mode, "default_credential": credential}
        return msgspec.structs.replace(self._private, buckets={name: body})

    def _take_away(self, where: str) -> bool:
        """Unmount what is there of ours; whether it could be used."""
        record = self._registry.get(where)
        with contextlib.suppress(CasstoreError, OSError):
            if record is not None:
                take_away(record, lazy=True)
            elif (point := mounted.at(where)) is not None and point.kind == mounted.KIND:
                unmount(where, lazy=True)
        return record is not None and record.ready

    def _problems(self, where: str) -> tuple[str, ...]:
        """The errors in the log of a mount, without times and process numbers."""
        found: dict[str, None] = {}
        with (
            contextlib.suppress(OSError),
            open(self._registry.log_file(where), encoding="utf-8", errors="replace") as file,
        ):
            for line in file:
                _, mark, text = line.rstrip("\n").partition(" ERROR ")
                if mark:
                    found[text.partition(" ")[2]] = None
        lines = list(found)
        more = [f"and {len(lines) - _MOST_TOLD} more"] if len(lines) > _MOST_TOLD else []
        return tuple(lines[:_MOST_TOLD] + more)


def _answer(reader: int, stop: Callable[[], bool]) -> bytes:
    """The first line of a process's answer, which is all there is; empty when it ended without one."""
    deadline = time.monotonic() + _SECONDS
    line = b""
    while not line.endswith(b"\n"):
        if stop():
            raise CancelledError("mounting was interrupted")
        if time.monotonic() > deadline:
            raise StorageError(f"it could not be mounted within {_SECONDS:.0f} s")
        if select.select([reader], [], [], _POLL)[0]:
            part = os.read(reader, 1 << 16)
            if not part:
                break
            line += part
    return line


def _error(line: bytes, log: Sequence[str]) -> StorageError:
    try:
        message = str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        message = "; ".join(log) or "the process of the mount ended while it started"
    return StorageError(message)


def _end(process: subprocess.Popen[bytes], *, patient: bool) -> None:
    """See a process off whose mount was taken away. ``patient``: it ends by itself, unless somebody still reads there.
    Nobody is waited for long.
    """
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        if not patient:
            process.send_signal(number)
        patient = False
        try:
            process.wait(_END)
        except subprocess.TimeoutExpired:
            continue
        return


def main(args: Sequence[str]) -> int:
    """What the process of a mount runs: ``ORDER``, a descriptor for the answer, one that ends with whoever ordered, and
    one of what is secret.
    """
    order = msgspec.json.decode(args[0], type=_Order)
    descriptor = int(args[1])
    os.set_inheritable(descriptor, False)
    os.umask(0o077)
    private = received(int(args[3]))
    if not _tie(int(args[2])):
        return 1

    def ready(error: CasstoreError | None) -> None:
        told = _READY if error is None else json.dumps({"message": error.message}).encode() + b"\n"
        with contextlib.suppress(OSError):  # nobody waits any more
            os.write(descriptor, told)
            os.close(descriptor)

    @contextlib.contextmanager
    def open_store() -> Iterator[Store]:
        stores = _stores(order, private)
        try:
            yield stores.open(order.mount.bucket, order.user).store
        finally:
            stores.close()

    try:
        hold = _stores(order, private).is_writable(order.mount.bucket)
        return session.run(msgspec.structs.replace(order.mount, hold=hold), open_store, ready)
    except CasstoreError as error:
        ready(error)
        return error.exit_code


def _tie(descriptor: int) -> bool:
    """Have the kernel send SIGTERM when the other end of a pipe is closed; False when it is already."""
    os.set_inheritable(descriptor, False)
    os.set_blocking(descriptor, False)
    fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(descriptor, _F_SETSIG, signal.SIGTERM)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
    try:
        return bool(os.read(descriptor, 1))
    except BlockingIOError:
        return True


def _stores(order: _Order, private: Private) -> Stores:
    from casstore_orchestrator.pools import this_machine  # noqa: PLC0415 - the server needs them no second time
    from casstore_server.config import Watched  # noqa: PLC0415
    from casstore_server.configs.effect import Stored  # noqa: PLC0415
    from casstore_server.credentials import Joined  # noqa: PLC0415
    from casstore_server.stores import Stores  # noqa: PLC0415

    settings = server_settings.Settings(
        socket_path=Path(order.socket_path),
        state_dir=Path(order.state_dir),
        config_file=Path(order.config_file),
        data_dir=Path(order.data_dir),
        cache_dir=Path(order.cache_dir),
        user=order.user,
    )
    given = Stored(("given",), {"DATASET": {"buckets": private.buckets}} if private.buckets else {}, {})
    machine = this_machine(settings.state_dir)
    config = Watched(settings.config_file, settings.data_dir, machine, lambda: given)
    return Stores(config, settings, Joined(settings, private).credentials.storage(order.user))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
