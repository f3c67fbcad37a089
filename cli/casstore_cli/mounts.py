"""The processes of mounts: how they are started, and what they run.

Decided here and only here: what a command hands to the process that holds a mount, how that one tells that it is ready
or why it is not, and which folders mounts use. Nothing secret is handed over: the process reads the configuration.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NoReturn

from casstore.config import find_paths
from casstore.errors import CasstoreError, ErrorKind, StorageError
from casstore_cli.caching import cache_dir

if TYPE_CHECKING:
    from casstore.repo.store import Store
    from casstore_fuse.records import Registry
    from casstore_fuse.session import Settings

__all__ = ["cache_dir", "find_registry", "hold", "start"]

READY = b"\n"
"""What the process of a mount says when that can be used; anything else is why it can't be."""


def find_registry() -> Registry:
    """The mounts of this user."""
    from casstore_fuse.records import Registry

    paths = find_paths()
    return Registry(paths.runtime, paths.state)


def start(settings: Settings) -> None:
    """Mount in the background, and return when the mount answers. Raises what stands against it."""
    reader, writer = os.pipe()
    try:
        begin = _fork if len(os.listdir("/proc/self/task")) == 1 else _spawn
        begin(settings, writer)
        os.close(writer)
        writer = -1
        with open(reader, "rb", closefd=False) as told:
            line = told.readline(1 << 16)
            if line != READY:
                told.read()  # until the process has cleared up and ended
    except KeyboardInterrupt:
        record = find_registry().get(settings.path)
        if record is not None and record.alive:
            os.kill(record.pid, signal.SIGTERM)
        raise
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    _check(line, find_registry().log_file(settings.path))
    with os.scandir(settings.path) as entries:
        next(entries, None)


def _fork(settings: Settings, writer: int) -> None:
    """Go on as the process of the mount, with all that is loaded already: that halves the time that a mount takes."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _detach(settings, writer)
    os.waitpid(child, 0)


def _spawn(settings: Settings, writer: int) -> None:
    """The same from a program with threads, whose locks a fork would copy as they are just now."""
    try:
        subprocess.run(
            [*_command(settings), f"--ready-fd={writer}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(writer,),
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise StorageError(f"the mount could not be started (exit code {error.returncode})") from None


def _detach(settings: Settings, writer: int) -> NoReturn:
    """Run a mount in a process that nobody waits for; the first half ends at once."""
    code = 1
    try:
        if os.fork():
            os._exit(0)
        os.setsid()
        os.chdir("/")
        gc.freeze()  # nothing from before is cleared up any more: it could close what has its number now
        for number in [int(name) for name in os.listdir("/proc/self/fd")]:
            if number > 2 and number != writer:
                with contextlib.suppress(OSError):
                    os.close(number)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        code = _run(settings, lambda error: _say(writer, error), verbose=False)
    finally:
        os._exit(code)


def hold(settings: Settings) -> None:
    """Mount in this process, and stay until the mount is gone. Does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    # Another program, so that nothing that was opened or started for looking things up stays.
    command = _command(settings)
    os.execv(command[0], [*command, "--foreground"])  # noqa: S606 - our own interpreter


def _command(settings: Settings) -> list[str]:
    """``-P`` keeps the current folder out of the module path."""
    import msgspec

    return [sys.executable, "-P", "-m", "casstore_cli.mounts", msgspec.json.encode(settings).decode()]


def _check(line: bytes, log: str) -> None:
    if line == READY:
        return
    if not line:
        raise StorageError("the mount ended while it started", hint=f"its log is {log}")
    told = json.loads(line)
    for kind in _leaves(CasstoreError):
        if kind.kind == ErrorKind(told["kind"]):
            raise kind(told["message"], hint=told["hint"])
    raise CasstoreError(told["message"], hint=told["hint"])


def _leaves(kind: type[CasstoreError]) -> Iterator[type[CasstoreError]]:
    for below in kind.__subclasses__():
        yield below
        yield from _leaves(below)


def _say(descriptor: int, error: CasstoreError | None) -> None:
    line = READY
    if error is not None:
        found = {"kind": error.kind.value, "message": error.message, "hint": error.hint}
        line = json.dumps(found).encode()[: (1 << 16) - 2] + b"\n"
    with contextlib.suppress(OSError):  # nobody waits any more
        os.write(descriptor, line)
        os.close(descriptor)


def main(args: Sequence[str]) -> int:
    """What the process of a mount runs: ``SETTINGS --foreground`` or ``SETTINGS --ready-fd=N``."""
    import msgspec

    from casstore_fuse.session import Settings

    settings = msgspec.json.decode(args[0], type=Settings)
    if args[1] != "--foreground":
        _detach(settings, int(args[1].removeprefix("--ready-fd=")))

    def ready(error: CasstoreError | None) -> None:
        if error is not None:
            _tell(error)
        else:
            sys.stderr.write(f"{settings.source[5:]} is mounted at {settings.path}; Ctrl-C unmounts it\n")

    return _run(settings, ready, verbose=True)


def _run(settings: Settings, ready: Callable[[CasstoreError | None], None], *, verbose: bool) -> int:
    from casstore_fuse.session import run

    @contextlib.contextmanager
    def open_store() -> Iterator[Store]:
        from casstore_cli.stores import open_bucket

        with open_bucket(settings.bucket) as bucket:
            yield bucket.store

    try:
        return run(settings, open_store, ready, verbose=verbose)
    except CasstoreError as error:
        ready(error)
        return error.exit_code
    except OSError as error:
        ready(StorageError(f"can't mount at {settings.path}: {error}"))
        return 1


def _tell(error: CasstoreError) -> None:
    from casstore_cli.errors import report

    report(error)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
