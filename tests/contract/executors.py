"""Groups of tasks below one folder, for the tests of executors: each way of running them that this machine has.

The image of the containers is made of packages of this machine, so that no registry is needed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import tarfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from casstore.errors import CasstoreError, NotFoundError
from casstore_orchestrator.executors.container import ContainerExecutor
from casstore_orchestrator.executors.engine import find_engine
from casstore_orchestrator.executors.probe import probe
from casstore_orchestrator.executors.process import ProcessExecutor
from casstore_orchestrator.executors.running import ProcessGang
from casstore_orchestrator.ports import LogSink, PlacedFile, TaskLaunch
from casstore_orchestrator.testing import LinesSink

PATIENCE = 90.0
IMAGE = "localhost/casstore-contract:2"
BARE = "localhost/casstore-contract-bare:2"
PACKAGES = ("bash", "coreutils", "dash", "grep", "python3.11-minimal", "python3-minimal", "util-linux")
EXECUTORS = ("bubblewrap", "plain", "container")
RUN = "/tmp/run.sh"


def why_not(mode: str) -> str:
    """Why groups can't be run so on this machine; empty when they can."""
    if mode == "container":
        return _why_no_containers()
    machine = probe()
    return "; ".join(machine.reasons) or "no sandbox" if mode == "bubblewrap" and not machine.sandbox else ""


@functools.cache
def _why_no_containers() -> str:
    if os.geteuid() != 0:
        return "the suite has containers made by root"
    try:
        engine = find_engine("podman")
    except NotFoundError as error:
        return error.message
    if shutil.which("dpkg") is None:
        return "no dpkg to make an image with"
    try:
        _make_images(engine.path)
    except (CasstoreError, subprocess.CalledProcessError) as error:
        return f"no image can be made: {error}"
    return ""


def _make_images(engine: str) -> None:
    have = subprocess.run([engine, "image", "exists", BARE], check=False).returncode == 0
    if have and subprocess.run([engine, "image", "exists", IMAGE], check=False).returncode == 0:
        return
    _import(engine, IMAGE, sorted(_files_of(PACKAGES)))
    _import(engine, BARE, ["/lib64", "/lib", *sorted(_files_of(("libc6", "coreutils")))])


def _files_of(packages: tuple[str, ...]) -> set[str]:
    options = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]
    asked = ["apt-cache", "depends", "--recurse", "--installed", *options, *packages]
    named = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    listed = subprocess.run(["dpkg-query", "-W"], capture_output=True, text=True, check=True).stdout.splitlines()
    installed = {line.split("\t")[0].split(":")[0] for line in listed}
    needed = sorted({name.split(":")[0] for name in named} & installed)
    found = subprocess.run(["dpkg", "-L", *needed], capture_output=True, text=True, check=True).stdout.splitlines()
    return {name for name in found if name.startswith("/") and not name.startswith(("/usr/share", "/usr/include"))}


def _import(engine: str, image: str, names: list[str]) -> None:
    with subprocess.Popen([engine, "import", "-", image], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        with tarfile.open(fileobj=process.stdin, mode="w|") as archive:
            for name in ("tmp", "etc", "proc", "sys", "dev"):
                entry = tarfile.TarInfo(name)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
                archive.addfile(entry)
            # The links to /usr are no package's; a name through one of them is the same file once more.
            real = {os.path.realpath(os.path.dirname(name)) + "/" + os.path.basename(name) for name in names}
            seen = {"", ".", "tmp", "etc", "proc", "sys", "dev"}
            for path in ["/bin", "/sbin", "/lib", "/lib64", *sorted(real)]:
                name = path.strip("/.")
                if name not in seen and os.path.lexists(path):
                    seen.add(name)
                    archive.add(path, name, recursive=False)
    assert process.returncode == 0


def make_executor(mode: str, folder: Path) -> ProcessExecutor | ContainerExecutor:
    """An executor of this kind, whose own things are below ``folder``."""
    if mode == "container":
        return ContainerExecutor(folder, engine="podman")
    return ProcessExecutor(mode=mode, hidden=[folder / "hidden"])  # type: ignore[arg-type]  # one of the two


@dataclass
class Group:
    """Builds launches below one folder and closes what a test has opened."""

    mode: str
    folder: Path
    log: LinesSink = field(default_factory=LinesSink)
    gangs: list[ProcessGang] = field(default_factory=list)
    key: str = field(default_factory=lambda: f"g-{uuid.uuid4().hex}/one")

    def __post_init__(self) -> None:
        self.executor = make_executor(self.mode, self.folder)
        self.base = self.folder / "tasks"

    @property
    def scratch(self) -> str:
        """A folder that lasts as long as the attempt, as the task's shell writes it."""
        return "$TMPDIR" if self.mode == "plain" else "/tmp"

    def launch(
        self,
        name: str,
        script: str = "",
        *,
        home: str | None = None,
        files: tuple[PlacedFile, ...] = (),
        **fields: object,
    ) -> TaskLaunch:
        """A task that runs ``script`` by bash; ``fields`` of ``TaskLaunch`` as a test wants them."""
        body = textwrap.dedent(script).encode()
        given: dict[str, object] = {
            "argv": ("bash", RUN),
            "environment": {},
            "files": (PlacedFile(RUN, body), *files),
            "cpu": 1.0,
            "memory": 0,
            "gpu": 0,
            "image": IMAGE,
        }
        return TaskLaunch(name=name, home=self.base / (home or name), **(given | fields))  # type: ignore[arg-type]

    def prepare(self, *launches: TaskLaunch, key: str | None = None, log: LogSink | None = None) -> ProcessGang:
        """A gang that is closed in the end."""
        gang = self.executor.prepare(key or self.key, launches, log or self.log)
        self.gangs.append(gang)
        return gang

    def run(self, name: str, script: str, **options: object) -> tuple[int | None, list[bytes]]:
        """Run one task to its end: its exit code and its log."""
        gang = self.prepare(self.launch(name, script, **options))  # type: ignore[arg-type]  # passed on as they are
        gang.release()
        code = gang.tasks[name].wait(PATIENCE)
        gang.close()
        return code, self.log.of(name)

    def left(self) -> list[str]:
        """What an engine still has of the group: containers and networks."""
        if not isinstance(self.executor, ContainerExecutor):
            return []
        engine = find_engine("podman")
        label = f"label={self.executor._label(self.key)}"
        return [
            *engine.ask("ps", "--all", "--quiet", "--filter", label, doing="list").split(),
            *engine.ask("network", "ls", "--quiet", "--filter", label, doing="list").split(),
        ]


def groups(*modes: str) -> Callable[..., Iterator[Group]]:
    """A fixture of groups, once for each of these ways of running them."""

    @pytest.fixture(params=modes)
    def fixture(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Group]:
        if why := why_not(request.param):
            pytest.skip(f"not here: {why}")
        made = Group(request.param, tmp_path)
        yield made
        for gang in made.gangs:
            gang.close()
        assert made.left() == []

    return fixture


def processes_with(marker: str) -> list[int]:
    """Processes of this machine that have this in their command line, but for our own."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if marker.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                    found.append(int(entry))
    return found


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes true."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def wait_for_file(path: Path) -> None:
    """Wait until a task has made it."""
    assert eventually(path.exists), f"{path} did not appear"


def a_marker() -> str:
    """A number of seconds to sleep that no other process sleeps."""
    return f"98{uuid.uuid4().int % 10**9:09d}"


def left_in_control_groups(pid: int) -> list[str]:
    """Control groups that a supervisor made and that are still there."""
    bases = probe().bases
    found = []
    for base in {bases.memory, bases.cpu} - {""}:
        found += [name for name in os.listdir(base) if name.startswith(f"casstore-{pid}-")]
    return found
