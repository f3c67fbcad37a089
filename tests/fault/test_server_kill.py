"""Whole servers, killed at any moment: what runs goes on, another takes it up, nothing is lost, run twice or left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from casstore_cli.client import Client, Target
from casstore_cli.following import follow
from casstore_orchestrator.executors.probe import probe
from casstore_server.secrets import KEY_VARIABLE, new_key

PATIENCE = 120.0
KEY = new_key().line()
pytestmark = pytest.mark.skipif(not probe().sandbox, reason="; ".join(probe().reasons) or "no sandbox")

FLOW = """
workflow:
  name: wf
  groups:
  - name: first
    tasks:
    - name: a
      lead: true
      image: x
      command: [sh, -c, "echo began; sleep 0.4; echo ended; echo from a > {{output}}/a"]
    - {name: b, image: x, command: [sh, -c, "echo began; sleep 60"]}
  - name: second
    tasks:
    - name: c
      lead: true
      image: x
      inputs: [{task: a}]
      command: [sh, -c, "echo began; sleep 0.3; cat {{input:0}}/a; echo ended"]
"""


class Lab:
    """Servers over one folder."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder = folder
        self.url = url
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for name in ("run", "state", "config", "data", "cache"):
            (folder / name).mkdir(mode=0o700)

    def start(self, instance: str = "") -> Client:
        """A server that answers."""
        path = self.folder / "run" / f"s{instance}"
        line = [sys.executable, "-P", "-m", "casstore_server", f"--socket-path={path}", "--user=tester"]
        line += [f"--{name}-dir={self.folder / name}" for name in ("state", "data", "cache")]
        line += [f"--config-file={self.folder / 'config' / 'config.yaml'}", f"--instance={instance}", "--lease=1.5"]
        environment = {**os.environ, **({"CASSTORE_DATABASE_URL": self.url, KEY_VARIABLE: KEY} if self.url else {})}
        log = (self.folder / f"log{instance}").open("ab")
        with log:
            self.running[instance] = subprocess.Popen(line, env=environment, stdout=log, stderr=log)
        client = Client(Target("tester", socket_path=str(path)), on_warning=lambda _: None)
        process = self.running[instance]
        self.until(lambda: client.probe() is not None or process.poll() is not None, "the server answers")
        assert process.poll() is None, (self.folder / f"log{instance}").read_text()[-3000:]
        return client

    def kill(self, instance: str = "") -> None:
        process = self.running.pop(instance)
        process.kill()
        process.wait()

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
            process.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def processes(self) -> list[int]:
        """Everything that was started for this folder but its servers."""
        own = {os.getpid(), *(process.pid for process in self.running.values())}
        found = []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) not in own:
                try:
                    line = Path(f"/proc/{name}/cmdline").read_bytes()
                except OSError:
                    continue
                if os.fsencode(self.folder) in line and b"casstore_server.agent" not in line:
                    found.append(int(name))
        return found

    def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if condition():
                return
            time.sleep(0.02)
        logs = "\n".join(path.read_text()[-3000:] for path in self.folder.glob("log*"))
        pytest.fail(f"never happened: {what}\n{logs}")


@pytest.fixture
def lab(short_path: Path) -> Iterator[Lab]:
    made = Lab(short_path)
    yield made
    made.close()


def submit(client: Client) -> str:
    found: dict[str, Any] = client.post("api/pool/default/workflow", dict, body={"file": FLOW})
    return str(found["name"])


def query(client: Client, name: str) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"api/workflow/{name}", dict, {"verbose": True})
    return found


def ended(client: Client, name: str) -> bool:
    return str(query(client, name)["status"]) not in {"PENDING", "RUNNING"}


def check(lab: Lab, client: Client, names: list[str]) -> None:
    """Each workflow ended as if nothing had happened, every command began once, and nothing is left."""
    for name in names:
        lab.until(lambda name=name: ended(client, name), f"{name} ends")  # type: ignore[misc]
        found = query(client, name)
        tasks = sorted(
            (task["name"], task["retry_id"], task["status"]) for group in found["groups"] for task in group["tasks"]
        )
        expected = [(task, 0, "COMPLETED") for task in "abc"]
        assert tasks == expected, msgspec.json.encode(found).decode()
        lines = b"".join(follow(client, name, "logs")).decode().splitlines()
        said = [line.partition("] ")[2] for line in lines if "[osmo]" not in line]
        assert sorted(said) == ["began", "began", "began", "ended", "ended", "from a"], lines
    lab.until(lambda: not lab.processes(), "everything of the tasks is gone")


def kill_at_random(lab: Lab, dice: random.Random, kills: int) -> None:
    client = lab.start()
    names = [submit(client)]
    for _ in range(kills):
        time.sleep(dice.uniform(0.0, 0.7))
        lab.kill()
        client = lab.start()
        if all(ended(client, name) for name in names):
            names.append(submit(client))
    check(lab, client, names)


@pytest.mark.slow
def test_a_server_that_is_killed_at_random_loses_nothing(lab: Lab) -> None:
    kill_at_random(lab, random.Random(), 4)


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_server_that_is_killed_a_hundred_times(lab: Lab) -> None:
    kill_at_random(lab, random.Random(), 100)


@pytest.mark.slow
def test_another_server_takes_over_from_one_that_was_killed(short_path: Path, postgres: Callable[[], str]) -> None:
    lab = Lab(short_path, postgres())
    try:
        first, second = lab.start("a"), lab.start("b")
        names = [submit(client) for client in (first, second, first, second)]
        time.sleep(0.3)
        lab.kill("a")
        check(lab, second, names)
        third = lab.start("a")
        names = [submit(client) for client in (second, third)]
        time.sleep(0.3)
        lab.kill("b")
        check(lab, third, names)
    finally:
        lab.close()
