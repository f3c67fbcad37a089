"""Servers with a home of their own, and what they take of the machine."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from casstore.config import load_config
from casstore_cli.background import find_place, running_pid
from casstore_cli.client import Client, Target

__all__ = ["Home", "Running", "cpu_seconds", "peak_mib", "resident_mib"]

_OSMO = [sys.executable, "-c", "from casstore_cli.start import main; main()"]
_START_S = 60.0


class Home:
    """A home that this process has from now on: nothing of the user's own is seen or touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run = folder / "run"
        run.mkdir(mode=0o700)
        for name in [name for name in os.environ if name.startswith(("XDG_", "OSMO_", "CASSTORE_", "AWS_"))]:
            del os.environ[name]
        os.environ |= {"HOME": str(folder), "XDG_RUNTIME_DIR": str(run), "USER": "bench"}

    def osmo(self, *words: str) -> str:
        """Run a command; what it prints."""
        done = subprocess.run([*_OSMO, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"osmo {' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def pid(self, instance: str = "") -> int | None:
        """The process of its server, if that runs."""
        return running_pid(find_place(load_config(), instance))

    def client(self, instance: str = "") -> Client:
        """Of its server on the unix socket."""
        place = find_place(load_config(), instance)
        return Client(Target("bench", socket_path=place.socket_path))

    @contextlib.contextmanager
    def server(self, *options: str, instance: str = "", **environment: str) -> Iterator[Running]:
        """Run one in the foreground, its log in the home; it answers."""
        words = ["server", "start", "--foreground", *options, *(["--instance", instance] if instance else [])]
        path = self.folder / f"server-{instance}.log"
        with path.open("ab") as log:
            process = subprocess.Popen([*_OSMO, *words], env=os.environ | environment, stdout=log, stderr=log)
        try:
            client, deadline = self.client(instance), time.monotonic() + _START_S
            while client.probe() is None:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"The server did not start: {path.read_text()[-2000:]}")
                time.sleep(0.05)
            yield Running(process)
        finally:
            process.terminate()
            process.wait()


class Running:
    """A server in the foreground."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid


def cpu_seconds(pid: int) -> float:
    """What a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """What it holds now."""
    return _status(pid, "VmRSS")


def peak_mib(pid: int) -> float:
    """The most that it held."""
    return _status(pid, "VmHWM")


def _status(pid: int, name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0
