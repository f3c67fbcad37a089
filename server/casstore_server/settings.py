"""What the server is told at its start.

Decided here and only here: the command line of ``python -m casstore_server``. The command decides where
things are; the server has no defaults of its own for folders. What an operator may set is in ``options``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from casstore.wire.local import DATABASE_FILE, KEY_FILE, LOG_FILE, PID_FILE, WORKFLOWS_FOLDER
from casstore_server.config import server_section
from casstore_server.identity.settings import OPTIONS as IDENTITY
from casstore_server.identity.settings import IdentitySettings, check_listening
from casstore_server.options import OPTIONS, Setting, resolve

__all__ = ["ACTIONS", "Order", "Settings", "parse"]


ACTIONS = ("serve", "config", "openapi", "backup", "restore", "new-key", "rekey", "rebuild-index")
"""What the program can do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the server listens and keeps its state, and whose it is.

    ``config_file`` need not exist. ``ready_fd`` is a descriptor that is told once requests are answered. ``instance``
    tells servers apart that share a state folder and a PostgreSQL. The others are ``options.OPTIONS``, but for the
    database: its URL may be secret, and these are passed on to agents.
    """

    socket_path: Path
    state_dir: Path
    config_file: Path
    data_dir: Path
    cache_dir: Path
    user: str
    port: int | None = None
    ready_fd: int | None = None
    background: bool = False
    instance: str = ""
    lease: float = 15.0
    host: str = "127.0.0.1"
    log_format: str = "text"
    log_level: str = "info"
    log_requests: bool = False
    metrics: bool = True
    drain: float = 5.0
    secret_key_file: str = ""
    identity: IdentitySettings = field(default_factory=IdentitySettings)

    @property
    def url(self) -> str | None:
        """Where it is reached without the socket; None when it listens on that alone."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return None if self.port is None else f"http{'s' if self.identity.tls else ''}://{host}:{self.port}"

    @property
    def pid_file(self) -> Path:
        """Locked while the server runs."""
        return self._own(PID_FILE)

    @property
    def log_file(self) -> Path:
        """Output of a server in the background."""
        return self._own(LOG_FILE)

    def _own(self, name: str) -> Path:
        return self.state_dir / (f"{name}.{self.instance}" if self.instance else name)

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.state_dir / DATABASE_FILE

    @property
    def own_key_file(self) -> Path:
        """Where the key for secrets is that the server made for itself."""
        return self.state_dir / KEY_FILE

    @property
    def workflows(self) -> Path:
        """Logs and task folders, one folder for each workflow."""
        return self.state_dir / WORKFLOWS_FOLDER


@dataclass(frozen=True, slots=True)
class Order:
    """What the process is to do: ``serve``, or another one of ``ACTIONS`` and end. ``database`` is the URL of a
    PostgreSQL, empty for the SQLite file; ``new`` and ``discard`` are for ``rekey``, ``buckets`` and ``new`` (not to go
    on with what was begun) for ``rebuild-index``.
    """

    settings: Settings
    action: str = "serve"
    file: Path = Path()
    new: bool = False
    discard: bool = False
    buckets: Sequence[str] = ()
    database: str = field(default="", repr=False)
    effective: Mapping[str, Setting] = field(default_factory=dict, repr=False)


def parse(argv: Sequence[str]) -> Order:
    """Settings from the command line, the environment and the configuration; ends the process with a usage message when
    the command line is wrong, and raises ``UsageError`` for anything else that is.
    """
    parser = argparse.ArgumentParser(prog="casstore_server", description="Start it with: osmo server start")
    for name in ("socket-path", "state-dir", "config-file", "data-dir", "cache-dir"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--instance", default="")
    parser.add_argument("--action", choices=ACTIONS, default="serve")
    parser.add_argument("--file", type=Path, default=Path())
    parser.add_argument("--new", action="store_true")
    parser.add_argument("--discard", action="store_true")
    parser.add_argument("--bucket", action="append", default=[], dest="buckets")
    for option in OPTIONS:
        if not option.secret:
            parser.add_argument(f"--{option.name.replace('_', '-')}")
    found: dict[str, Any] = vars(parser.parse_args(argv))
    given = {option.name: found.pop(option.name, None) for option in OPTIONS}
    file = found["config_file"]
    effective = resolve(given, os.environ, server_section(file), file)
    values = {name: setting.value for name, setting in effective.items()}
    identity = IdentitySettings(**{option.name: values.pop(option.name) for option in IDENTITY})
    check_listening(values["host"], values["port"], identity)
    words = {name: found.pop(name) for name in ("action", "file", "new", "discard", "buckets")}
    return Order(
        **words,
        database=values.pop("database"),
        settings=Settings(**found, **values, identity=identity),
        effective=effective,
    )
