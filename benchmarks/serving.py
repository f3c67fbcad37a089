"""Servers under load: many clients of two servers on one PostgreSQL, one of which is killed; tasks that print a lot.

``python -m benchmarks.serving clients`` and ``... lines``. Everything is real: processes, sockets, tasks in sandboxes,
and the clients are those of the command, in processes of their own. Tasks print numbered lines, and whoever follows a
log checks that each line came once and in its order.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.homes import Home, Running, cpu_seconds, peak_mib, resident_mib
from casstore.errors import CasstoreError
from casstore.testing.postgres import find_programs, running_postgres
from casstore.wire.workflow import SubmitReply, SubmitRequest, WorkflowList, WorkflowReply
from casstore_cli import web
from casstore_cli.client import Client, ConnectionLostError, Target
from casstore_cli.following import follow

__all__ = ["Load", "clients", "lines"]

_T = TypeVar("_T")
_ROUTE = "api/pool/default/workflow"
_PROCESSES = 4
_GIVE_UP_S = 60.0
_LOOK_S = 1.0
_NUMBERED = re.compile(rb"\[(\w+)\] n (\d+) of (\d+)")

FLOW = """
workflow:
  name: {name}
  resources: {{default: {{cpu: 1, memory: 64Mi, storage: 64Mi}}}}
  groups:
  - name: g
    tasks:
{tasks}"""
TASK = """    - name: {name}
      lead: {lead}
      image: x
      command: [python3, -S, -c, {program}]
"""
PROGRAM = """
import sys, time
count, rate, width = {count}, {rate}, {width}
step = max(1, rate // 100)
begun, rest = time.monotonic(), "x" * width
for first in range(0, count, step):
    left = begun + first / rate - time.monotonic()
    if left > 0:
        time.sleep(left)
    numbers = range(first + 1, min(count, first + step) + 1)
    sys.stdout.write("".join(f"n {{number}} of {{count}} {{rest}}\\n" for number in numbers))
    sys.stdout.flush()
"""


def flow(name: str, tasks: int, count: int, rate: int, width: int = 20) -> SubmitRequest:
    """A workflow of one group, each of whose tasks prints ``count`` lines at ``rate`` lines a second."""
    program = json.dumps(PROGRAM.format(count=count, rate=rate, width=width))
    texts = [TASK.format(name=f"t{number}", lead=json.dumps(not number), program=program) for number in range(tasks)]
    return SubmitRequest(file=FLOW.format(name=name, tasks="".join(texts)))


class Numbers:
    """What came of numbered lines."""

    def __init__(self) -> None:
        self.last: dict[bytes, int] = defaultdict(int)
        self.count: dict[bytes, int] = {}
        self.wrong: list[str] = []

    def feed(self, piece: bytes) -> None:
        """Whole lines."""
        for task, number, count in _NUMBERED.findall(piece):
            if int(number) != self.last[task] + 1:
                self.wrong.append(f"{task.decode()}: line {int(number)} after {self.last[task]}")
            self.last[task] = int(number)
            self.count[task] = int(count)

    def check(self, tasks: int) -> list[str]:
        """What is wrong at the end."""
        short = [f"{task.decode()}: ended at {self.last[task]} of {count}" for task, count in self.count.items()
                 if self.last[task] != count]  # fmt: skip
        missing = [] if len(self.count) == tasks else [f"{len(self.count)} tasks of {tasks} printed something"]
        return [*self.wrong, *short, *missing]

    @property
    def lines(self) -> int:
        """How many there were."""
        return sum(self.last.values())


class AnyOf(Client):
    """A client of servers that do the same: it connects to any that answers, as with several addresses of a name."""

    def __init__(self, urls: Sequence[str], user: str) -> None:
        super().__init__(Target(user, url=urls[0]))
        self._urls = list(urls)

    def _connection(self, timeout: float | None) -> HTTPConnection:
        random.shuffle(self._urls)
        for url in self._urls:
            made = web.connection(url, timeout)
            try:
                made.connect()
            except OSError:
                made.close()
            else:
                return made
        return web.connection(self._urls[0], timeout)


@dataclass
class Load:
    """How much."""

    clients: int = 200
    seconds: float = 300.0
    writers: int = 6
    end: str = "KILL"
    """The signal that ends one of the servers at half time; empty: none does."""
    think: float = 1.0


@dataclass
class Found:
    """What clients saw."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    again: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    lines: int = 0
    submitted: list[str] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Sum up."""
        for name, times in other.seconds.items():
            self.seconds[name] += times
        self.again += other.again
        self.errors += other.errors
        self.lines += other.lines
        self.submitted += other.submitted


class Visitor:
    """One client: it reads, submits and follows until its time is over."""

    def __init__(self, number: int, urls: Sequence[str], writers: Sequence[str], load: Load, end: float) -> None:
        self.found = Found()
        self._number = number
        self._client = AnyOf(urls, "bench")
        self._writers = writers
        self._load = load
        self._end = end
        self._random = random.Random(number)

    def run(self) -> None:
        """Until the end; what goes wrong is kept."""
        time.sleep(self._random.random() * self._load.think)
        turn = 0
        while time.monotonic() < self._end:
            turn += 1
            kind = self._random.choices((self._read, self._follow, self._submit), (20, 2, 0.25))[0]
            try:
                kind(turn)
            except CasstoreError as error:
                self.found.errors.append(f"{kind.__name__}: {error.message}")
            except Exception as error:  # noqa: BLE001 - every client goes on
                self.found.errors.append(f"{kind.__name__}: {type(error).__name__}: {error}")
            time.sleep(self._random.expovariate(1 / self._load.think))

    def _timed(self, name: str, ask: Callable[[], _T], before_again: Callable[[], _T | None] = lambda: None) -> _T:
        """Ask again while the server is away; the time of what was answered at once is kept."""
        first = begun = time.monotonic()
        while True:
            try:
                found = ask()
            except ConnectionLostError:
                self.found.again[name] += 1
                if time.monotonic() - first > _GIVE_UP_S:
                    raise
                time.sleep(0.2)
                begun = time.monotonic()
                with contextlib.suppress(ConnectionLostError):
                    if (known := before_again()) is not None:
                        return known
            else:
                self.found.seconds[name].append(time.monotonic() - begun)
                return found

    def _read(self, turn: int) -> None:
        client = self._client
        kind = turn % 4
        if kind == 0:
            self._timed("list", lambda: client.get("api/workflow", WorkflowList, {"limit": 20, "all_users": True}))
        elif kind == 1:
            name = self._random.choice([*self._writers, *self.found.submitted[-3:]])
            self._timed("query", lambda: client.get(f"api/workflow/{name}", WorkflowReply))
        elif kind == 2:
            self._timed("tasks", lambda: client.get("api/task", dict[str, Any], {"limit": 20, "all_users": True}))
        else:
            self._timed("pools", lambda: client.get("api/pool_quota", dict[str, Any]))

    def _submit(self, turn: int) -> None:
        name = f"v{self._number}x{turn}"

        def known() -> str | None:
            """Whether the request that broke off was done: nobody else uses this name."""
            rows = self._client.get("api/workflow", WorkflowList, {"name": name, "limit": 2}).workflows
            return rows[0].name if rows else None

        def submit() -> str:
            return self._client.post(_ROUTE, SubmitReply, None, flow(name, 1, 300, 300)).name or ""

        made = self._timed("submit", submit, known)
        self.found.submitted.append(made)
        self._watch(made)

    def _follow(self, turn: int) -> None:
        """One in four stays to the end, the others look on for a while."""
        self._watch(self._random.choice(self._writers), math.inf if turn % 4 == 0 else self._random.expovariate(0.1))

    def _watch(self, name: str, patience: float = math.inf) -> None:
        numbers = Numbers()
        begun = time.monotonic()
        with contextlib.closing(follow(self._client, name, "logs")) as pieces:
            for piece in pieces:
                if not numbers.lines:
                    self.found.seconds["first lines"].append(time.monotonic() - begun)
                numbers.feed(piece)
                if time.monotonic() - begun > patience:
                    break
            else:
                patience = math.inf
        self.found.lines += numbers.lines
        problems = numbers.check(1) if patience == math.inf else numbers.wrong
        self.found.errors += [f"log of {name}: {problem}" for problem in problems]


def _visitors(numbers: Sequence[int], urls: Sequence[str], writers: Sequence[str], load: Load, out: Any) -> None:
    """A process of visitors."""
    sys.stderr = io.StringIO()  # the messages of clients that wait
    end = time.monotonic() + load.seconds
    visitors = [Visitor(number, urls, writers, load, end) for number in numbers]
    threads = [threading.Thread(target=visitor.run) for visitor in visitors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Found()
    for visitor in visitors:
        total.add(visitor.found)
    total.again["reply of a log"] = sys.stderr.getvalue().count("was lost; waiting")
    out.put(total)


@contextlib.contextmanager
def _two_servers(home: Home, database: str) -> Iterator[tuple[list[str], list[Running]]]:
    """Two servers of one state; their URLs."""
    home.osmo("pool", "declare", "default", "--platform", "default:cpu=24,memory=64Gi,storage=64Gi")
    shared = {"CASSTORE_DATABASE_URL": database, "CASSTORE_SECRET_KEY": home.osmo("server", "new-key").strip()}
    with contextlib.ExitStack() as stack:
        servers, urls = [], []
        for name in "ab":
            port = _free_port()
            server = home.server("--port", str(port), instance=name, **shared)
            servers.append(stack.enter_context(server))
            urls.append(f"http://127.0.0.1:{port}")
        yield urls, servers


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _until(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"never happened: {what}")
        time.sleep(0.05)


def clients(load: Load) -> tuple[str, list[str]]:
    """A report, and everything that went wrong."""
    programs = find_programs()
    if programs is None:
        raise RuntimeError("PostgreSQL is not installed")
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        with running_postgres(programs) as make, _two_servers(home, make()) as (urls, servers):
            try:
                return _visited(load, urls, servers)
            finally:
                for entry in Path(folder).glob("server-*.log"):
                    tail = [line for line in entry.read_text().splitlines() if " ERROR " in line or "Traceback" in line]
                    sys.stderr.write("".join(f"{entry.name}: {line}\n" for line in tail[:20]))
                _end_tasks(urls)


def _end_tasks(urls: Sequence[str]) -> None:
    client = AnyOf(urls, "bench")
    for row in client.get("api/workflow", WorkflowList, {"limit": 1000, "statuses": ["PENDING", "RUNNING"]}).workflows:
        with contextlib.suppress(CasstoreError):
            client.post(f"api/workflow/{row.name}/cancel", object, {"force": True})


def _visited(load: Load, urls: list[str], servers: list[Running]) -> tuple[str, list[str]]:
    client = AnyOf(urls, "bench")
    rate = 50
    count = int(rate * load.seconds)
    writers = [client.post(_ROUTE, SubmitReply, None, flow(f"writer{n}", 1, count, rate)).name or ""
               for n in range(load.writers)]  # fmt: skip
    for name in writers:
        _until(lambda name=name: client.get(f"api/workflow/{name}", WorkflowReply).status == "RUNNING", f"{name} runs")  # type: ignore[misc]
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    shares = [range(first, load.clients, _PROCESSES) for first in range(min(_PROCESSES, load.clients))]
    processes = [context.Process(target=_visitors, args=(share, urls, writers, load, results)) for share in shares]
    begun = time.monotonic()
    for process in processes:
        process.start()
    memory = _observe(load, servers, begun)
    total = Found()
    for _ in processes:
        total.add(results.get(timeout=load.seconds + 600))
    for process in processes:
        process.join()
    total.errors += _lost(client, [*writers, *total.submitted])
    return _report(load, total, memory, time.monotonic() - begun), total.errors


def _observe(load: Load, servers: list[Running], begun: float) -> list[tuple[float, list[float | None]]]:
    """End the first server at half time; what the servers held meanwhile."""
    samples: list[tuple[float, list[float | None]]] = []
    alive = [True, True]
    step = max(1.0, load.seconds / 12)
    while (now := time.monotonic() - begun) < load.seconds:
        if load.end and alive[0] and now >= load.seconds / 2:
            os.kill(servers[0].pid, signal.Signals[f"SIG{load.end}"])
            alive[0] = False
        samples.append(
            (now, [resident_mib(server.pid) if up else None for server, up in zip(servers, alive, strict=True)])
        )
        time.sleep(step)
    return samples


def _lost(client: Client, names: Sequence[str]) -> list[str]:
    """What is not as it should be of the workflows, when all is over."""
    problems = []
    for name in names:

        def status(name: str = name) -> str:
            return client.get(f"api/workflow/{name}", WorkflowReply).status

        _until(lambda: status() not in {"PENDING", "RUNNING"}, f"{name} ends", 300)
        if status() != "COMPLETED":
            problems.append(f"{name} is {status()}")
        numbers = Numbers()
        for piece in follow(client, name, "logs"):
            numbers.feed(piece)
        problems += [f"the log of {name}, read again: {problem}" for problem in numbers.check(1)]
    return problems


def _report(load: Load, found: Found, memory: list[tuple[float, list[float | None]]], took: float) -> str:
    rows = ["| request | answers | p50 ms | p99 ms | asked again |", "|---|---:|---:|---:|---:|"]
    for name in sorted({*found.seconds, *found.again}):
        times = sorted(found.seconds[name]) or [0.0]
        p99 = times[min(len(times) - 1, int(len(times) * 0.99))]
        middle = statistics.median(times)
        rows.append(
            f"| {name} | {len(found.seconds[name]):,} | {middle * 1000:.0f} | {p99 * 1000:.0f} | {found.again[name]} |"
        )
    held = ["| after s | server a, MiB | server b, MiB |", "|---:|---:|---:|"]
    held += [
        f"| {at:.0f} | " + " | ".join("ended" if mib is None else f"{mib:.0f}" for mib in row) + " |"
        for at, row in memory
    ]
    told = (
        f"{load.clients} clients for {load.seconds:g} s ({took:.0f} s in all, load average {os.getloadavg()[1]:.1f}): "
        f"{sum(map(len, found.seconds.values())):,} answers, {len(found.submitted)} workflows submitted, "
        f"{found.lines:,} lines followed, {len(found.errors)} errors."
    )
    return "\n".join([told, "", *rows, "", *held])


def lines(tasks: int = 100, count: int = 100_000, rate: int = 10_000, width: int = 40) -> tuple[str, list[str]]:
    """Many tasks that print at once, and one client that follows them all: a report, and everything that went wrong."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        home = Home(Path(folder))
        home.osmo("pool", "declare", "default", "--platform", f"default:cpu={tasks},memory=64Gi,storage=64Gi")
        with home.server() as server:
            client = home.client()
            name = client.post(_ROUTE, SubmitReply, None, flow("lines", tasks, count, rate, width)).name or ""
            numbers, size, held = Numbers(), 0, 0.0
            first = last = looked = begun = time.monotonic()
            for piece in follow(client, name, "logs"):
                numbers.feed(piece)
                size += len(piece)
                if not numbers.lines:
                    first = time.monotonic()
                last = time.monotonic()
                if last - looked > _LOOK_S:
                    looked, held = last, max([held, *map(peak_mib, _agents(folder))])
            status = client.get(f"api/workflow/{name}", WorkflowReply).status
            problems = numbers.check(tasks) + ([] if status == "COMPLETED" else [f"it is {status}"])
            took = max(last - first, 0.01)
            row = (
                f"{tasks} | {numbers.lines:,} | {size / 2**20:.0f} | {first - begun:.1f} | {took:.1f} "
                f"| {numbers.lines / took:,.0f} | {cpu_seconds(server.pid):.1f} | {peak_mib(server.pid):.0f} "
                f"| {held:.0f} | {len(problems)}"
            )
            head = (
                "tasks | lines | MiB | start s | s | lines/s | server CPU s | server peak MiB | agent peak MiB | wrong"
            )
            rule = "|".join(["---:"] * (head.count("|") + 1))
            report = f"| {head} |\n|{rule}|\n| {row} |"
    return report, problems


def _agents(folder: str) -> list[int]:
    """The processes that watch over the tasks of a server with this home."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"casstore_server.agent" in words and folder.encode() in words:
                found.append(int(entry.name))
    return found


def main() -> int:
    """Run what the command line asks for; 1 when something was lost or failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving")
    parts = parser.add_subparsers(dest="part", required=True)
    many = parts.add_parser("clients", help="many clients of two servers, one of which ends at half time")
    many.add_argument("--clients", type=int, default=200)
    many.add_argument("--seconds", type=float, default=300)
    many.add_argument("--writers", type=int, default=6, help="tasks that print all the time")
    many.add_argument("--end", choices=["KILL", "TERM", ""], default="KILL", help="the signal for one of the servers")
    much = parts.add_parser("lines", help="many tasks that print lines at once, followed by one client")
    much.add_argument("--tasks", type=int, default=100)
    much.add_argument("--lines", type=int, default=100_000, help="of each task")
    much.add_argument("--rate", type=int, default=10_000, help="lines a second of each task")
    given = parser.parse_args()
    if given.part == "clients":
        report, problems = clients(Load(given.clients, given.seconds, given.writers, given.end))
    else:
        report, problems = lines(given.tasks, given.lines, given.rate)
    print(report)
    for text, times in Counter(problems).most_common(30):
        print(f"WRONG ({times}): {text}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
