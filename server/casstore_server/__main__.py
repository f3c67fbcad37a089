"""The server's process: detach, take the lock, serve. Or say what the settings are, back up, restore, change keys.

Decided here and only here: the order of a start, and what a failed one says. Everything heavy is imported
after the process is detached and holds the lock, so that a second server ends at once. What does not serve prints one
JSON object.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from casstore.errors import CasstoreError, ConflictError
from casstore.wire.local import ERROR_PREFIX, HINT_PREFIX
from casstore_server.secrets import KEY_VARIABLE
from casstore_server.settings import Order, Settings, parse

_LOCK_ATTEMPTS = 10
_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal arrives; returns the exit code."""
    os.umask(0o077)
    order = None
    try:
        order = parse(sys.argv[1:] if argv is None else argv)
        _run(order)
    except CasstoreError as exc:
        _fail(exc, order)
        return exc.exit_code
    return 0


def _fail(error: CasstoreError, order: Order | None) -> None:
    """Say why it ends: as the log is written, unless a command waits for what is said."""
    if order is not None and order.action == "serve" and not order.settings.background:
        from casstore_server.logs import set_up  # noqa: PLC0415  # only a server has a log

        if order.settings.log_format == "json":
            set_up("json", order.settings.log_level)
            _log.critical("%s", error.message, extra={"fields": {"hint": error.hint}})
            return
    sys.stderr.write(f"{ERROR_PREFIX}{error.message}\n" + (f"{HINT_PREFIX}{error.hint}\n" if error.hint else ""))


def _run(order: Order) -> None:
    settings = order.settings
    if order.action == "config":
        _print({name: setting._asdict() | {"option": setting.option.variable, "value": setting.shown}
                for name, setting in order.effective.items()})  # fmt: skip
        return
    if order.action == "openapi":
        from casstore_server.api.app import described  # noqa: PLC0415  # rarely needed, and heavy

        _print(described())
        return
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if order.action == "serve":
        if settings.background:
            _detach(settings)
        _lock(settings.pid_file)
        from casstore_server.run import serve  # noqa: PLC0415  # heavy: only once the lock is ours

        serve(settings)
        return
    if order.action in {"new-key", "rekey"}:
        from casstore_server import keyring  # noqa: PLC0415  # rarely needed

        _print({"key": keyring.line()} if order.action == "new-key" else keyring.rekey(order)._asdict())
        return
    if order.action == "rebuild-index":
        from casstore_server.reindex import reindex  # noqa: PLC0415  # rarely needed

        _print(reindex(order))
        return
    from casstore_server import backup  # noqa: PLC0415  # rarely needed

    if order.database:
        raise backup.not_here(order.database, order.action)
    if order.action == "backup":
        key = KEY_VARIABLE if os.environ.get(KEY_VARIABLE) else settings.secret_key_file or str(settings.own_key_file)
        _print(backup.make(settings.database, order.file)._replace(key=key)._asdict())
    else:
        _lock(settings.pid_file, "Stop it first: osmo server stop")
        _print(backup.restore(order.file, settings)._asdict())


def _print(document: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")


def _detach(settings: Settings) -> None:
    """Leave the terminal and the parent; output goes to the log. The descriptor for readiness stays open."""
    if os.fork() > 0:
        os._exit(0)
    os.setsid()
    os.chdir("/")
    log = os.open(settings.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(null)


def _lock(path: Path, hint: str = "See: osmo server status") -> None:
    """Lock the pid file and write our id to it.

    The descriptor is never closed: the lock ends with the process, and whoever waits for it knows that we are gone.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for attempt in range(_LOCK_ATTEMPTS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:  # a command that only looks holds it for a moment
            if attempt + 1 == _LOCK_ATTEMPTS:
                os.close(fd)
                raise ConflictError("A server of yours is running already", hint=hint) from None
            time.sleep(0.05)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


if __name__ == "__main__":
    sys.exit(main())
