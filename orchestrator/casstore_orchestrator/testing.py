"""Stand-ins for the ports, for tests of what drives them.

Decided here and only here: how a test tells a task of ``FakeExecutor`` to end. ``MemoryStateStore`` keeps every
promise of ``ports.StateStore``, and ``ThreadAgents`` those of ``ports.GroupAgents``, except that nothing survives the
process. Both outlive a scheduler, so that a test can start another one over them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from casstore.errors import NotFoundError, ServiceError, StorageError, UsageError
from casstore.structs import from_json

from .ports import DatasetVersion, Isolation, Layout, LogSink, Published, TaskLaunch, Transfer
from .records import WorkflowRecord
from .state import with_number
from .statestore import Fence, LeaseLostError, Notes, TaskNote, no_notes, pool_of
from .thread_agents import ThreadAgents, ThreadMachine

__all__ = [
    "FakeData",
    "FakeExecutor",
    "FakeGang",
    "FakeTask",
    "LinesSink",
    "MemoryStateStore",
    "ThreadAgents",
    "ThreadMachine",
]


class LinesSink:
    """A ``ports.LogSink`` that remembers: task, text and source of each line."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, bytes, str]] = []

    def write(self, task: str, text: bytes, *, source: str = "") -> None:
        """See ``ports.LogSink``."""
        self.lines += [(task, line, source) for line in bytes(text).split(b"\n")]

    def of(self, task: str, source: str = "") -> list[bytes]:
        """The lines of a task from one source."""
        return [text for name, text, kind in self.lines if name == task and kind == source]


class _Lease(NamedTuple):
    owner: str
    token: int
    until: float


class MemoryStateStore:
    """Records in memory, encoded, so that what can't be stored in a database is noticed."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._records: dict[str, bytes] = {}
        self._ids: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._leases: dict[str, _Lease] = {}
        self._news: list[tuple[str, str]] = []
        self.notes: list[tuple[str, TaskNote]] = []
        """(workflow, note), in the order they were stored."""
        self.failures = 0
        """How many of the next changes fail."""

    def create(
        self,
        record: WorkflowRecord,
        begin: Callable[[WorkflowRecord], WorkflowRecord] = lambda record: record,
        *,
        notes: Notes = no_notes,
        fence: Fence | None = None,
        tell: bool = False,
    ) -> WorkflowRecord:
        """See ``ports.StateStore``."""
        with self._lock:
            self._check(fence)
            number = self._numbers.get(record.name, 0) + 1
            made = with_number(record, number)
            after = begin(made)
            self._numbers[record.name] = number
            self._ids[record.uuid] = made.id
            return self._put(made, after, notes, tell=tell)

    def load(self, workflow_id: str) -> WorkflowRecord:
        """See ``ports.StateStore``."""
        with self._lock:
            data = self._records.get(self._ids.get(workflow_id, workflow_id))
        if data is None:
            msg = f"there is no workflow {workflow_id}"
            raise NotFoundError(msg)
        return from_json(data, WorkflowRecord)

    def change(
        self,
        workflow_id: str,
        fn: Callable[[WorkflowRecord], WorkflowRecord],
        *,
        notes: Notes = no_notes,
        fence: Fence | None = None,
        tell: bool = False,
    ) -> WorkflowRecord:
        """See ``ports.StateStore``."""
        with self._lock:
            self._check(fence)
            if self.failures:
                self.failures -= 1
                msg = "the state store fails"
                raise StorageError(msg)
            before = self.load(workflow_id)
            return self._put(before, fn(before), notes, tell=tell)

    def delete(self, workflow_id: str) -> None:
        """Forget a workflow."""
        with self._lock:
            del self._records[workflow_id]

    def _put(self, before: WorkflowRecord, after: WorkflowRecord, notes: Notes, *, tell: bool) -> WorkflowRecord:
        encoded, told = msgspec.json.encode(after), notes(before, after)
        self._records[after.id] = encoded
        self.notes += [(after.id, note) for note in told]
        if tell:
            self._news.append((after.pool, after.id))
        return after

    def _check(self, fence: Fence | None) -> None:
        if fence is not None:
            lease = self._leases.get(fence.name)
            if lease is None or lease.token != fence.token:
                msg = f"the lease {fence.name} is somebody else's"
                raise LeaseLostError(msg)

    def live(self, pool: str) -> list[str]:
        """See ``ports.StateStore``."""
        with self._lock:
            return [name for name in self._records if (found := self.load(name)).live and found.pool == pool]

    def live_pools(self) -> list[str]:
        """See ``ports.StateStore``."""
        with self._lock:
            return sorted({found.pool for name in self._records if (found := self.load(name)).live})

    def keep_leases(
        self, names: Sequence[str], owner: str, now: float, until: float, *, force: bool = False
    ) -> dict[str, Fence]:
        """See ``ports.StateStore``."""
        kept = {}
        with self._lock:
            for name in names:
                lease = self._leases.get(name, _Lease("", 0, 0.0))
                if lease.owner != owner:
                    if lease.owner and lease.until > now and not force:
                        continue
                    lease = _Lease(owner, lease.token + 1, until)
                self._leases[name] = lease._replace(until=until)
                kept[name] = Fence(name, lease.token)
        return kept

    def release_leases(self, owner: str) -> None:
        """See ``ports.StateStore``."""
        with self._lock:
            for name, lease in self._leases.items():
                if lease.owner == owner:
                    self._leases[name] = _Lease("", lease.token + 1, 0.0)

    def news(self, fences: Sequence[Fence]) -> list[str]:
        """See ``ports.StateStore``."""
        with self._lock:
            for fence in fences:
                self._check(fence)
            pools = {pool_of(fence) for fence in fences}
            found = [name for pool, name in self._news if pool in pools]
            self._news = [entry for entry in self._news if entry[0] not in pools]
            return list(dict.fromkeys(found))


class FakeTask:
    """One attempt; ``exit`` ends its command, ``kill`` ends it with 137."""

    def __init__(self, launch: TaskLaunch, log: LogSink) -> None:
        self.launch = launch
        self.log = log
        self.evicted = ""
        self.started = threading.Event()
        self.killed = False
        self._ended = threading.Event()
        self._code: int | None = None

    @property
    def name(self) -> str:
        """The task's name."""
        return self.launch.name

    def poll(self) -> int | None:
        """The exit code, once it ended."""
        return self._code

    def wait(self, timeout: float | None = None) -> int | None:
        """See ``ports.RunningTask``."""
        self._ended.wait(timeout)
        return self._code

    def kill(self, grace: float = 0.0) -> None:
        """End at once; ``grace`` makes no difference."""
        if not self._ended.is_set():
            self.killed = True
            self.exit(137)

    def exit(self, code: int, *, oom: bool = False) -> None:
        """Let the command end."""
        if not self._ended.is_set():
            self.evicted = "out of memory" if oom else ""
            self._code = code
            self._ended.set()

    def write(self, path: str, text: str) -> None:
        """Leave a file in the output folder."""
        place = self.launch.home / "data" / "output" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


class FakeGang:
    """One group; ``history`` holds every attempt, in the order they were prepared."""

    def __init__(self, launches: Sequence[TaskLaunch], log: LogSink) -> None:
        self.log = log
        self.closed = threading.Event()
        self.history = [FakeTask(launch, log) for launch in launches]
        self.released_together = 0
        self._tasks = {task.name: task for task in self.history}

    @property
    def tasks(self) -> Mapping[str, FakeTask]:
        """The newest attempts."""
        return dict(self._tasks)

    def release(self) -> None:
        """Start everything."""
        self.released_together += 1
        for task in self._tasks.values():
            task.started.set()

    def release_task(self, name: str) -> None:
        """Start one."""
        self._tasks[name].started.set()

    def restart(self, launch: TaskLaunch) -> FakeTask:
        """See ``ports.Gang``."""
        if launch.name not in self._tasks:
            msg = f"there is no task {launch.name}"
            raise UsageError(msg)
        self._tasks[launch.name].kill()
        task = FakeTask(launch, self.log)
        self._tasks[launch.name] = task
        self.history.append(task)
        return task

    def close(self) -> None:
        """End everything."""
        for task in self._tasks.values():
            task.kill()
        self.closed.set()


class FakeExecutor:
    """Prepares tasks that do nothing until the test says so. ``gangs``: group key -> its gangs, oldest first."""

    def __init__(self) -> None:
        self.gangs: dict[str, list[FakeGang]] = {}
        self.refuse: Exception | None = None
        """Raised by the next ``prepare``."""
        self._news = threading.Condition()

    def describe(self) -> Isolation:
        """None at all."""
        return Isolation(mode="plain", network=False, reasons=("a stand-in for tests",))

    def layout(self, launch_home: Path) -> Layout:
        """Paths of the host."""
        data = launch_home / "data"
        return Layout(data=str(data), input=str(data / "input"), output=str(data / "output"))

    def host(self, group_key: str, task: str) -> str:
        """The task's name."""
        return task

    def place_of(self, launch_home: Path, path: str) -> tuple[Path, str]:
        """The path itself."""
        return Path("/"), path.lstrip("/")

    def why_no_layer(self, launch_home: Path, source: Path) -> str:
        """There are no mounts here."""
        return "a stand-in for tests"

    def prepare(self, group_key: str, launches: Sequence[TaskLaunch], log: LogSink) -> FakeGang:
        """See ``ports.Executor``."""
        if self.refuse is not None:
            refusal, self.refuse = self.refuse, None
            raise refusal
        gang = FakeGang(launches, log)
        with self._news:
            self.gangs.setdefault(group_key, []).append(gang)
            self._news.notify_all()
        return gang

    def gang(self, key: str, number: int = 0, timeout: float = 30.0) -> FakeGang:
        """The gang of a group, once it is prepared."""
        with self._news:
            if not self._news.wait_for(lambda: len(self.gangs.get(key, ())) > number, timeout):
                msg = f"group {key} was not prepared within {timeout:g} s"
                raise ServiceError(msg)
            return self.gangs[key][number]


@dataclass
class FakeData:
    """Datasets in memory: name -> versions, each a mapping of paths to text. ``failures``: the next calls that fail."""

    versions: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    tags: dict[str, dict[str, int]] = field(default_factory=dict)
    failures: int = 0
    hold: threading.Event | None = None
    """Transfers wait for this, unless they are stopped."""

    def _fail(self, stop: Callable[[], bool]) -> None:
        while self.hold is not None and not self.hold.wait(0.01):
            if stop():
                break
        if self.failures:
            self.failures -= 1
            msg = "the storage fails"
            raise StorageError(msg)

    def _split(self, ref: str) -> tuple[str, str]:
        name, _, tag = ref.rpartition("/")[2].partition(":")
        return name, tag

    def _version(self, name: str, number: int) -> DatasetVersion:
        files = self.versions[name][number - 1]
        return DatasetVersion(
            bucket="default",
            name=name,
            number=number,
            manifest=f"m-{name}-{number}",
            checksum=f"c-{name}-{number}",
            size=sum(map(len, files.values())),
            files=len(files),
        )

    def resolve(self, ref: str, user: str) -> tuple[DatasetVersion, ...]:
        """See ``ports.DataStore``."""
        name, tag = self._split(ref)
        if name not in self.versions:
            msg = f"there is no dataset {name}"
            raise NotFoundError(msg)
        number = self.tags.get(name, {}).get(tag) or (int(tag) if tag else len(self.versions[name]))
        return (self._version(name, number),)

    def download(
        self, version: DatasetVersion, user: str, target: Path, *, regex: str | None, stop: Callable[[], bool]
    ) -> Transfer:
        """See ``ports.DataStore``."""
        self._fail(stop)
        files = self.versions[version.name][version.number - 1]
        for path, text in files.items():
            place = target / version.name / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return Transfer(files=len(files), size=sum(map(len, files.values())))

    def publish(
        self,
        ref: str,
        user: str,
        sources: Sequence[str],
        *,
        regex: str | None,
        metadata: Mapping[str, Any],
        labels: Mapping[str, Any],
        origin: Mapping[str, Any],
        provenance: Mapping[str, Any],
        stop: Callable[[], bool],
    ) -> Published:
        """See ``ports.DataStore``."""
        self._fail(stop)
        return self._commit(ref, _read(sources), {**origin, **metadata}, labels, provenance)

    def update(
        self,
        ref: str,
        user: str,
        additions: Sequence[str],
        *,
        metadata: Mapping[str, Any],
        labels: Mapping[str, Any],
        origin: Mapping[str, Any],
        provenance: Mapping[str, Any],
        stop: Callable[[], bool],
    ) -> Published:
        """See ``ports.DataStore``."""
        self._fail(stop)
        (base,) = self.resolve(ref, user)
        files = dict(self.versions[base.name][base.number - 1])
        for addition in additions:
            source, _, folder = addition.partition(":")
            for path, text in _read([source]).items():
                files[f"{folder}/{path}" if folder else path] = text
        return self._commit(base.name, files, {**origin, **metadata}, labels, provenance)

    def _commit(
        self,
        ref: str,
        files: dict[str, str],
        metadata: Mapping[str, Any],
        labels: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> Published:
        name, tag = self._split(ref)
        versions = self.versions.setdefault(name, [])
        created = not versions or versions[-1] != files
        if created:
            versions.append(files)
            self.records.setdefault(name, []).append(
                {"metadata": dict(metadata), "labels": dict(labels), "provenance": dict(provenance)}
            )
        if tag:
            self.tags.setdefault(name, {})[tag] = len(versions)
        return Published(self._version(name, len(versions)), created, sum(map(len, files.values())))


def _read(sources: Sequence[str]) -> dict[str, str]:
    files: dict[str, str] = {}
    for source in sources:
        place = Path(source.removesuffix("/*"))
        above = place if source.endswith("/*") else place.parent
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            if path.is_file():
                files[str(path.relative_to(above))] = path.read_text()
    return files
