"""What the scheduler asks of the outside world: the interfaces behind which every effect of a workflow lies.

Decided here and only here: the shapes that cross the border between deciding (scheduler, runner, state) and
doing (an executor that starts the tasks of a group). Nothing here performs I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from socket import socket
from typing import Any, Literal, NamedTuple, Protocol

from .events import Effect, Event
from .pools import Resources
from .records import WorkflowRecord

__all__ = [
    "AgentEvents",
    "Credentials",
    "DataStore",
    "DatasetVersion",
    "Executor",
    "Gang",
    "GroupAgents",
    "InputLayer",
    "Isolation",
    "Layout",
    "LogSink",
    "PlacedFile",
    "Published",
    "RunKey",
    "RunningTask",
    "TaskLaunch",
    "Transfer",
    "UrlStore",
    "UrlTransfer",
    "VersionMounts",
]


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """A file that is in place before the command starts; ``path`` is absolute, as the task sees it."""

    path: str
    data: bytes
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class InputLayer:
    """A folder of the host that a task finds among its inputs, and may change: ``source`` stays as it is.

    ``at`` is relative to the folder of the inputs, such as ``0/dataset``, and an empty folder there.
    """

    at: str
    source: Path


@dataclass(frozen=True, slots=True)
class TaskLaunch:
    """One attempt of one task, ready to run.

    ``home`` is the attempt's folder on the host; ``home/data/input/<i>`` may be filled until the task is released,
    but for ``layers``, whose folders are there before ``prepare``; ``home/data/output`` receives the outputs. ``cpu``
    is in cores, ``memory`` and ``storage`` in bytes, ``gpu`` in whole devices; 0 means no limit, or no device.
    ``volumes`` are folders of the host and where the task sees them. What the pool's policy does not allow is not asked
    for here.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    files: tuple[PlacedFile, ...]
    home: Path
    cpu: float
    memory: int
    gpu: int
    read_only_inputs: bool = False
    layers: tuple[InputLayer, ...] = ()
    image: str = ""
    volumes: tuple[tuple[str, str], ...] = ()
    host_network: bool = False
    privileged: bool = False
    storage: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths as the task sees them: ``{{input:i}}`` is ``input + "/i"``, ``{{output}}`` is ``output``."""

    data: str
    input: str
    output: str


@dataclass(frozen=True, slots=True)
class Isolation:
    """How far the tasks of an executor are kept apart, and why not further.

    Every task's log tells mode, network and ``lacks``, those of the ``reasons`` that say what is missing.
    """

    mode: Literal["bubblewrap", "container", "plain"]
    network: bool
    reasons: tuple[str, ...]
    lacks: tuple[str, ...] = ()


class LogSink(Protocol):
    """Where the output of tasks goes; called from threads, must not block for long and must not raise."""

    def write(self, task: str, text: bytes, *, source: str = "") -> None:
        """Take a line, or several with newlines between them; ``source``: "" is the command, "osmo" the executor."""


class RunningTask(Protocol):
    """One attempt of one task: prepared, running or ended."""

    @property
    def name(self) -> str: ...

    @property
    def evicted(self) -> str:
        """The limit by which the task was ended, in a sentence, else empty; meaningful once ``poll`` gives a code."""

    def poll(self) -> int | None:
        """The exit code (0-255; killed by signal n: 128+n) once all processes ended and all lines are out."""

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the exit code, at most ``timeout`` seconds; None when it is still running."""

    def kill(self, grace: float = 0.0) -> None:
        """Send the command SIGTERM and, after ``grace`` seconds, end its whole tree; returns at once."""


class Gang(Protocol):
    """The tasks of one group, prepared together."""

    @property
    def tasks(self) -> Mapping[str, RunningTask]:
        """The newest attempt of each task, by name."""

    def release(self) -> None:
        """Start every command that has not been started; before this nothing of the user's runs."""

    def release_task(self, name: str) -> None:
        """Start one command (groups without a barrier, and attempts made by ``restart``)."""

    def restart(self, launch: TaskLaunch) -> RunningTask:
        """Prepare the task ``launch.name`` again, blocked until released; a running command is ended first.

        With the same ``home`` the files that the command left stay in place (restart in place); with a new
        one the attempt starts from nothing. Peers are undisturbed and find the task under its name as before.
        """

    def close(self) -> None:
        """End everything and remove the network; idempotent."""


class Executor(Protocol):
    """A way of running groups of tasks."""

    def describe(self) -> Isolation:
        """The isolation that tasks get here, and why."""

    def layout(self, launch_home: Path) -> Layout:
        """The paths of a task whose attempt has this home."""

    def host(self, group_key: str, task: str) -> str:
        """What ``{{host:task}}`` expands to: a name that resolves inside the group."""

    def place_of(self, launch_home: Path, path: str) -> tuple[Path, str]:
        """Where on the host what the task sees at an absolute path lies: a folder of ours, and the path below it.

        The latter is the task's: it may not be there, and links in it must not be followed.
        """

    def why_no_layer(self, launch_home: Path, source: Path) -> str:
        """Why ``TaskLaunch.layers`` can't be laid over ``source`` in this home; empty when they can."""

    def prepare(self, group_key: str, launches: Sequence[TaskLaunch], log: LogSink) -> Gang:
        """Prepare all tasks or none; raises ``ServiceError`` or ``UsageError`` with nothing left behind."""


class RunKey(NamedTuple):
    """One placement of a group: ``placement`` is ``GroupRecord.placements`` from then on."""

    workflow_id: str
    group: str
    placement: int


class AgentEvents(Protocol):
    """What the agents of groups tell the scheduler; called from their threads, for each run from one at a time.

    Every call may raise: it is made again later, until it returns, or nobody follows the run any more.
    """

    def event(self, run: RunKey, number: int, event: Event) -> None:
        """What happened, numbered 1, 2, 3... in each run, in this order; again after a reconnect until acknowledged."""

    def taken(self, run: RunKey, order: int) -> None:
        """The agent has all orders up to this number, and will not forget them."""

    def ended(self, run: RunKey) -> None:
        """The run was closed as ordered: nothing of it runs, its log is complete, its homes are removed.

        Comes after the last event. Its traces may be removed once this returned.
        """

    def lost(self, run: RunKey, why: str) -> None:
        """The agent is gone or never came to be, and is fenced: nothing of the run runs, or ever will."""


class GroupAgents(Protocol):
    """The processes that run placed groups, one for each run. They survive whoever started them.

    No method waits for an agent, or calls the listener before it returns; all are safe to use from any thread.
    """

    def follow(self, listener: AgentEvents) -> None:
        """Whom to tell; called once, before everything else."""

    def start(self, run: RunKey, record: WorkflowRecord, limits: Mapping[str, Resources], *, seen: int = 0) -> None:
        """Make sure that an agent runs this placed group, and report its events after ``seen``.

        Harmless when called again, by this process or another one: an agent that is there is adopted, and one that was
        there and is gone is reported as lost. The agent itself does nothing before its first order (``StartGroup``).
        """

    def order(self, run: RunKey, number: int, effect: Effect) -> None:
        """Have an order carried out, once the agent can be reached. Orders come in the order of their numbers; one
        with a number that the agent has is dropped.
        """

    def acknowledge(self, run: RunKey, number: int) -> None:
        """The events up to this number are stored."""

    def attach(self, run: RunKey) -> socket:
        """A raw connection to the agent, for interactive use. Raises ``ServiceError`` when it can't be reached."""

    def strays(self) -> list[RunKey]:
        """The runs that have left traces on this machine, whoever started them."""

    def leave(self, run: RunKey) -> None:
        """Stop following a run, which is another scheduler's business now; its agent goes on."""

    def discard(self, run: RunKey) -> None:
        """End whatever is left of a run that no record knows, and remove its traces; nothing is reported about it."""

    def close(self) -> None:
        """Stop following; the agents go on."""


@dataclass(frozen=True, slots=True)
class DatasetVersion:
    """An immutable version of a dataset. ``manifest`` and ``checksum`` in hex, ``size`` in logical bytes."""

    bucket: str
    name: str
    number: int
    manifest: str
    checksum: str
    size: int
    files: int

    @property
    def ref(self) -> str:
        """``bucket/name:number``."""
        return f"{self.bucket}/{self.name}:{self.number}"


@dataclass(frozen=True, slots=True)
class Transfer:
    """What one transfer moved; ``size`` in bytes."""

    files: int
    size: int


@dataclass(frozen=True, slots=True)
class UrlTransfer:
    """What is whole after a transfer; ``size`` in bytes.

    ``digest``, in hex, stands for names, sizes and tags of what was downloaded; empty for an upload.
    """

    files: int
    size: int
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Published:
    """A version that holds a task's outputs; ``created`` is False when an equal one was the latest already.

    ``new_bytes`` is what the store grew by. ``skipped`` names what could not be stored, such as sockets.
    """

    version: DatasetVersion
    created: bool
    new_bytes: int
    skipped: tuple[str, ...] = ()


class DataStore(Protocol):
    """Datasets, as workflows need them. References are ``[bucket/]name[:tag]``, checked here.

    ``stop`` is asked now and then; once it is true the call ends with ``CancelledError``.
    """

    def resolve(self, ref: str, user: str) -> tuple[DatasetVersion, ...]:
        """The version now meant by a reference; for a collection those of its members. ``NotFoundError``."""

    def download(
        self, version: DatasetVersion, user: str, target: Path, *, regex: str | None, stop: Callable[[], bool]
    ) -> Transfer:
        """Put the files into ``target/<dataset>/``. A call after one that failed goes on where it ended."""

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
        """Commit files as a new version (sources as for an upload) with the reference's tag on it.

        ``origin`` is metadata that says where the version came from: equal content is still no new version.
        """

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
        """Commit the referenced version plus ``additions`` (each ``source[:folder]``) as a new version."""


class VersionMounts(Protocol):
    """Versions of datasets, shown as folders of the host without being downloaded. Safe to use from any thread."""

    def why_not(self) -> str:
        """Why nothing can be mounted on this machine; empty when it can."""

    def mount(
        self,
        version: DatasetVersion,
        path: Path,
        *,
        regex: str = "",
        cache_size: int | None = None,
        stop: Callable[[], bool],
    ) -> None:
        """Show a version at an empty folder, read-only; one that is shown there already is left alone. ``regex`` is
        matched at the start of paths: other files, and folders without any, are not there. ``cache_size``: bytes of
        what was read that may be kept; the machine's own limit by default.

        Raises a ``CasstoreError`` with nothing mounted, ``CancelledError`` once ``stop`` says so.
        """

    def unmount(self, path: Path) -> tuple[str, ...]:
        """End a mount, whoever uses it; gives what went wrong while it was there, a line each. Raises nothing."""

    def clear(self, folder: Path) -> None:
        """End the mounts below a folder, whoever made them. Their users must have ended."""


class UrlStore(Protocol):
    """Plain files in object storage, with the credentials that ``user`` has for it.

    ``tell`` takes lines for the task's log. ``stop`` is asked now and then; once it is true the call ends with
    ``CancelledError``. A call either moves every file or raises; one after a failed one goes on where it ended.
    """

    def check(self, url: str, user: str, *, reads: bool) -> None:
        """Raise what is wrong with a URL as far as can be seen in a few seconds; tokens may stand in it.

        ``reads``: it is an input, which the user's credential must be able to list.
        """

    def download(
        self,
        url: str,
        user: str,
        target: Path,
        *,
        regex: str | None,
        tell: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> UrlTransfer:
        """Put what is below the URL into the folder ``target``, never outside of it. ``NotFoundError``."""

    def upload(
        self,
        url: str,
        user: str,
        source: Path,
        *,
        regex: str | None,
        again: bool,
        tell: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> UrlTransfer:
        """Store the content of the folder ``source`` below the URL, following no link.

        The result is the same however often it is done; ``again`` says that it was tried before, and what is there
        already is left alone.
        """


class Credentials(Protocol):
    """The secrets that users have stored for their tasks."""

    def lookup(self, user: str, name: str) -> Mapping[str, str] | None:
        """The keys and values of a GENERIC credential; None when the user has none of this name."""
