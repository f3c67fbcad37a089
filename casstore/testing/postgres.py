"""A real PostgreSQL, for tests and benchmarks of what several servers share.

Decided here and only here: where its programs are looked for, that it listens on a socket in a folder of its own, and
that it does not wait for the disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["find_programs", "running_postgres"]

_START_S = 30


def find_programs() -> Path | None:
    """The folder of its programs; None when it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    on_path = shutil.which("initdb")
    return found[-1] if found else None if on_path is None else Path(on_path).resolve().parent


@contextlib.contextmanager
def running_postgres(programs: Path) -> Iterator[Callable[[], str]]:
    """Run one for the length of the block; each call of what is given makes an empty database and gives its URL."""
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    data = folder / "data"
    quiet: dict[str, Any] = {
        "cwd": folder,
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    other = dict(quiet)
    if os.getuid() == 0:  # it refuses to be root
        shutil.chown(folder, "nobody", "nogroup")
        other |= {"user": "nobody", "group": "nogroup", "extra_groups": []}
    settings: dict[str, object] = {
        "listen_addresses": "",
        "unix_socket_directories": folder,
        "fsync": "off",
        "max_connections": 300,
    }
    options = [f"--{name}={value}" for name, value in settings.items()]
    initdb: list[str | Path] = [
        programs / "initdb",
        "-U",
        "postgres",
        "-E",
        "UTF8",
        "--locale=C",
        "--auth=trust",
        "--no-sync",
    ]
    subprocess.run([*initdb, "-D", data], check=True, **other)
    server = subprocess.Popen([programs / "postgres", "-D", data, *options], **other)
    psql: list[str | Path] = [programs / "psql", "-q", "-h", folder, "-U", "postgres", "-d", "postgres", "-c"]

    def make() -> str:
        name = f"db_{uuid.uuid4().hex}"
        subprocess.run([*psql, f"CREATE DATABASE {name}"], check=True, **quiet)
        return f"postgresql://postgres@/{name}?host={folder}"

    try:
        ready: list[str | Path] = [programs / "pg_isready", "-q", "-t", str(_START_S), "-h", folder]
        while subprocess.run(ready, check=False).returncode != 0:
            if server.poll() is not None:
                raise RuntimeError(f"PostgreSQL ended with {server.returncode}")
        yield make
    finally:
        server.send_signal(signal.SIGINT)  # it ends at once, whoever is connected
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
