"""What the server is told at its start.

Decided here and only here: the command line of ``python -m casstore_server``. The command decides where
things are; the server has no defaults of its own for folders.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from casstore.wire.local import DATABASE_FILE, LOG_FILE, PID_FILE, WORKFLOWS_FOLDER


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the server listens and keeps its state, and whose it is.

    ``port`` is that of 127.0.0.1, None for the socket alone. ``config_file`` need not exist. ``ready_fd`` is
    a descriptor that is told once requests are answered. ``instance`` tells servers apart that share a state folder
    and a PostgreSQL; ``lease`` is after how many seconds without a sign of one the others take over what it did.
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
    def workflows(self) -> Path:
        """Logs and task folders, one folder for each workflow."""
        return self.state_dir / WORKFLOWS_FOLDER


def parse(argv: Sequence[str]) -> Settings:
    """Settings from the command line; ends the process with a usage message when it is wrong."""
    parser = argparse.ArgumentParser(prog="casstore_server", description="Start it with: osmo server start")
    for name in ("socket-path", "state-dir", "config-file", "data-dir", "cache-dir"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--port", type=int)
    parser.add_argument("--ready-fd", type=int)
    parser.add_argument("--background", action="store_true")
    parser.add_argument("--instance", default="")
    parser.add_argument("--lease", type=float, default=15.0)
    return Settings(**vars(parser.parse_args(argv)))
