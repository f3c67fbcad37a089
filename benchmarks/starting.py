"""From a submission to running tasks, and what a long queue costs, with a whole server of its own."""

from __future__ import annotations

import contextlib
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.homes import Home, Running, cpu_seconds, resident_mib
from casstore.wire.workflow import SubmitReply, SubmitRequest, WorkflowReply
from casstore_cli.client import Client

__all__ = ["gangs", "queued"]

GANG = """
workflow:
  name: gang
  groups:
  - name: g
    tasks:
    - {name: lead, lead: true, image: x, command: [sleep, "60"]}
    - {name: left, image: x, command: [sleep, "60"]}
    - {name: right, image: x, command: [sleep, "60"]}
"""
WAITS = """
workflow:
  name: waits
  resources: {default: {gpu: 1}}
  tasks:
  - {name: one, image: x, command: [sleep, "3600"]}
"""
_ROUTE = "api/pool/default/workflow"
_SETTLE_S, _LOOK_S = 3.0, 10.0


@contextlib.contextmanager
def _server(*, gpus: int = 0) -> Iterator[tuple[Client, Running]]:
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        if gpus:
            home.osmo("pool", "declare", "default", "--platform", f"default:cpu=64,memory=64Gi,gpu={gpus}")
        with home.server("--metrics") as server:
            try:
                yield home.client(), server
            finally:
                home.client().post("api/v1/server/end-tasks", object)


def gangs(rounds: int = 10) -> str:
    """A table: submission of a gang of three until all of it is RUNNING, over the socket of a server that is up."""
    seconds = []
    with _server() as (client, _):
        for _ in range(rounds):
            begun = time.perf_counter()
            name = client.post(_ROUTE, SubmitReply, None, SubmitRequest(file=GANG)).name
            while True:
                found = client.get(f"api/workflow/{name}", WorkflowReply)
                if [task.status for group in found.groups for task in group.tasks] == ["RUNNING"] * 3:
                    break
            seconds.append(time.perf_counter() - begun)
            client.post(f"api/workflow/{name}/cancel", object)
            time.sleep(0.5)
    found_s = f"{statistics.median(seconds):.3f} | {min(seconds):.3f} | {max(seconds):.3f}"
    head = "| gang of three | rounds | median s | min s | max s |\n|---|---:|---:|---:|---:|\n"
    return f"{head}| submit to RUNNING | {rounds} | {found_s} |"


def queued(count: int = 1000) -> str:
    """A table: an idle server without a queue, and with ``count`` workflows that wait for a GPU."""
    lines = ["| waiting | resident MiB | statements/s | CPU s in 10 s |", "|---:|---:|---:|---:|"]
    with _server(gpus=1) as (client, server):
        for waiting in (0, count):
            for _ in range(waiting + bool(waiting)):  # one of them runs
                client.post(_ROUTE, SubmitReply, None, SubmitRequest(file=WAITS))
            time.sleep(_SETTLE_S)
            statements, cpu = _statements(client), cpu_seconds(server.pid)
            time.sleep(_LOOK_S)
            rate = (_statements(client) - statements) / _LOOK_S
            spent = cpu_seconds(server.pid) - cpu
            lines.append(f"| {waiting:,} | {resident_mib(server.pid):.0f} | {rate:.1f} | {spent:.2f} |")
    return "\n".join(lines)


def _statements(client: Client) -> float:
    found = re.findall(r"^casstore_database_statements_total\{.*\} (\S+)$", client.text("metrics"), re.MULTILINE)
    return sum(map(float, found))


if __name__ == "__main__":
    print(gangs())
    print()
    print(queued())
