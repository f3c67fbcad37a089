"""A server that is told to end sends everybody what was written before."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore_cli.client import Client, Target
from casstore_orchestrator.logs import LogStore

FOLLOWERS = 20
LINES = 20_000
PATIENCE = 120.0
FLOW = f"""
workflow:
  name: wf
  tasks:
  - name: a
    image: x
    command: [sh, -c, "seq -f 'line %.0f of the log, which is followed by many' {LINES}; sleep 600"]
"""


class Connection(http.client.HTTPConnection):
    """A connection to a unix socket that takes little in before it is read."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(str(self._path))


@pytest.fixture
def lab(short_path: Path) -> Iterator[tuple[Path, Client, subprocess.Popen[bytes]]]:
    for name in ("state", "config", "data", "cache"):
        (short_path / name).mkdir(mode=0o700)
    path = short_path / "s"
    line = [sys.executable, "-P", "-m", "casstore_server", f"--socket-path={path}", "--user=tester", "--drain=60"]
    line += [f"--{name}-dir={short_path / name}" for name in ("state", "data", "cache")]
    line += [f"--config-file={short_path / 'config' / 'config.yaml'}", "--log-format=json"]
    with (short_path / "log").open("wb") as log:
        process = subprocess.Popen(line, stderr=log)
    client = Client(Target("tester", socket_path=str(path)), on_warning=lambda _: None)
    try:
        until(lambda: client.probe() is not None, "it answers")
        yield short_path, client, process
    finally:
        process.kill()
        process.wait()
        for run in (short_path / "state" / "runs").glob("*.*.*"):
            for pid in users_of(run):
                os.kill(pid, signal.SIGKILL)


def users_of(run: Path) -> list[int]:
    """The processes of a run: those that have something below its folder open."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                opened = [os.readlink(link) for link in (entry / "fd").iterdir()]
            except OSError:
                continue
            if any(target.startswith(f"{run}/") for target in opened):
                found.append(int(entry.name))
    return found


def until(condition: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


def follow(path: Path, begun: threading.Barrier, told: threading.Event, found: list[tuple[bytes, bool]]) -> None:
    """Read a little, wait until the server was told to end, read the rest; whether the end was broken off."""
    connection = Connection(path)
    try:
        connection.request("GET", "/api/workflow/wf-1/logs", headers={"x-osmo-user": "tester"})
        response = connection.getresponse()
        data = response.read1(100)
        begun.wait(PATIENCE)
        assert told.wait(PATIENCE)
        cut = False
        try:
            while piece := response.read1(1 << 16):
                data += piece
        except (http.client.IncompleteRead, ConnectionError) as exc:
            data += getattr(exc, "partial", b"")
            cut = True
        found.append((data, cut))
    finally:
        connection.close()


@pytest.mark.slow
def test_followers_get_every_line_that_was_written_before_the_server_ends(
    lab: tuple[Path, Client, subprocess.Popen[bytes]],
) -> None:
    folder, client, process = lab
    client.post("api/pool/default/workflow", dict, body={"file": FLOW})
    log = folder / "state" / "workflows" / "wf-1" / "_logs" / "a.0.log"
    until(lambda: log.exists() and b"line 1 of" in log.read_bytes(), "it writes")
    begun, told = threading.Barrier(FOLLOWERS + 1), threading.Event()
    found: list[tuple[bytes, bool]] = []
    threads = [threading.Thread(target=follow, args=(folder / "s", begun, told, found)) for _ in range(FOLLOWERS)]
    for thread in threads:
        thread.start()
    begun.wait(PATIENCE)
    until(lambda: f"line {LINES} of".encode() in log.read_bytes(), "the last line")
    process.send_signal(signal.SIGTERM)
    told.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert process.wait(PATIENCE) == 0
    assert len(found) == FOLLOWERS
    for data, cut in found:
        assert cut  # the workflow goes on: who follows is not told that this was its end
        numbers = [int(line.split(b"] line ")[1].split()[0]) for line in data.splitlines() if b"] line " in line]
        assert numbers == list(range(1, LINES + 1))
    said = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    assert not [line for line in said if line["level"] not in {"info", "warning"}]


def test_a_follower_that_is_stopped_has_what_was_written_before(tmp_path: Path) -> None:
    logs = LogStore(tmp_path)
    logs.begin("wf-1", ["a"])
    logs.append("wf-1", "a", 0, b"one")

    def stop() -> bool:  # whoever writes does so until the very moment
        logs.append("wf-1", "a", 0, b"two")
        return True

    found = list(logs.read("wf-1", follow=True, live=lambda: True, stop=stop))
    logs.end("wf-1")
    logs.close()
    assert [line.rpartition(" ")[2] for line in found] == ["one", "two"]
