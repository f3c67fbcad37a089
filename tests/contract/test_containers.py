"""The executor for images, with a real engine where there is one.

The image is made of packages of this machine, so that no registry is needed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from casstore.errors import CasstoreError, NotFoundError, ServiceError, UsageError
from casstore_orchestrator.executors.container import ContainerExecutor, ContainerGang
from casstore_orchestrator.executors.engine import find_engine
from casstore_orchestrator.ports import InputLayer, PlacedFile, TaskLaunch
from casstore_orchestrator.testing import LinesSink

PATIENCE = 90.0
IMAGE = "localhost/casstore-contract:1"
BARE = "localhost/casstore-contract-bare:1"
PACKAGES = ("bash", "coreutils", "dash", "grep", "python3.11-minimal", "python3-minimal")


@functools.cache
def why_not() -> str:
    """Why there are no containers on this machine; empty when there are, with their images made."""
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


@dataclass
class Group:
    """Builds launches below one folder and closes what a test has opened."""

    executor: ContainerExecutor
    base: Path
    log: LinesSink
    gangs: list[ContainerGang]
    key: str

    def launch(
        self, name: str, script: str, *, argv: tuple[str, ...] = (), home: str | None = None, **fields: object
    ) -> TaskLaunch:
        given: dict[str, object] = {"environment": {}, "files": (), "cpu": 1.0, "memory": 0, "gpu": 0, "image": IMAGE}
        command = argv or ("bash", "-c", textwrap.dedent(script))
        return TaskLaunch(name=name, argv=command, home=self.base / (home or name), **(given | fields))  # type: ignore[arg-type]

    def prepare(self, *launches: TaskLaunch) -> ContainerGang:
        gang = self.executor.prepare(self.key, launches, self.log)
        self.gangs.append(gang)
        return gang

    def run(self, name: str, script: str, **options: object) -> tuple[int | None, list[bytes]]:
        gang = self.prepare(self.launch(name, script, **options))  # type: ignore[arg-type]
        gang.release()
        code = gang.tasks[name].wait(PATIENCE)
        gang.close()
        return code, self.log.of(name)

    def left(self) -> list[str]:
        """Containers and networks of the group that still exist."""
        engine = find_engine("podman")
        label = f"label={self.executor._label(self.key)}"
        return [
            *engine.ask("ps", "--all", "--quiet", "--filter", label, doing="list").split(),
            *engine.ask("network", "ls", "--quiet", "--filter", label, doing="list").split(),
        ]


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    if why := why_not():
        pytest.skip(f"no containers here: {why}")
    made = Group(
        ContainerExecutor(tmp_path, engine="podman"), tmp_path / "tasks", LinesSink(), [], f"g-{uuid.uuid4().hex}/one"
    )
    yield made
    for gang in made.gangs:
        gang.close()
    assert made.left() == []


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


def test_command_files_environment_inputs_and_outputs(group: Group) -> None:
    home = group.base / "t"
    (home / "data/input/0").mkdir(parents=True)
    (home / "data/input/0/in.txt").write_text("data")
    body = bytes(range(256)) * 300
    files = (
        PlacedFile("/tmp/deep/down/blob", body, 0o640),
        PlacedFile("/opt/tool.sh", b"#!/bin/bash\necho tool\n", 0o755),
    )
    several = 'first\n  second \\n \\ %s "quoted"\n\n'
    script = """
        cat /osmo/data/input/0/in.txt > /osmo/data/output/out.txt
        stat -c %a /tmp/deep/down/blob; cp /tmp/deep/down/blob /osmo/data/output/copy; /opt/tool.sh
        printf %s "$SEVERAL" > /osmo/data/output/several
        printf '%s|' "$LD_PRELOAD_X" "$CONTAINERS_CONF" "$SPACED"; echo; env | grep -c OSMO_LINES
        exit 3
    """
    environment = {"SEVERAL": several, "CONTAINERS_CONF": "/nowhere", "LD_PRELOAD_X": "x", "SPACED": " a b\t c "}
    code, lines = group.run("t", script, files=files, environment=environment)
    assert lines == [b"640", b"tool", b"x|/nowhere| a b\t c |", b"0"]
    assert code == 3
    assert (home / "data/output/out.txt").read_text() == "data"
    assert (home / "data/output/copy").read_bytes() == body
    assert (home / "data/output/several").read_text() == several
    told = b"\n".join(group.log.of("t", "osmo")).decode()
    assert "isolation: container, containers by podman" in told
    assert group.executor.describe().mode == "container"


def test_nothing_runs_before_the_release_and_all_start_together(group: Group) -> None:
    gang = group.prepare(group.launch("a", "echo ran"), group.launch("b", "echo ran"), group.launch("c", "echo ran"))
    assert [gang.tasks[name].poll() for name in "abc"] == [None, None, None]
    assert group.log.of("a") == []
    gang.release_task("c")
    assert gang.tasks["c"].wait(PATIENCE) == 0
    gang.close()
    assert [gang.tasks[name].poll() for name in "abc"] == [137, 137, 0]
    assert group.log.of("a") == group.log.of("b") == []
    assert group.log.of("c") == [b"ran"]


def test_tasks_share_a_port_and_find_each_other_by_name(group: Group) -> None:
    script = """
        echo $WHO > /tmp/x
        python3 -c '
import os, socket, time
server = socket.create_server(("0.0.0.0", 8080))
while True:
    peer = None
    try:
        peer = socket.create_connection((os.environ["PEER"], 8080), 5)
        break
    except OSError:
        time.sleep(0.05)
other, _ = server.accept()
other.sendall(open("/tmp/x", "rb").read())
print(peer.recv(100).decode().strip(), flush=True)
peer.close(), other.close()
'
    """
    gang = group.prepare(
        group.launch("Physics_Sim", script, environment={"WHO": "physics", "PEER": "policy"}),
        group.launch("policy", script, environment={"WHO": "policy", "PEER": "physics-sim"}),
    )
    gang.release()
    assert [gang.tasks[name].wait(PATIENCE) for name in ("Physics_Sim", "policy")] == [0, 0]
    gang.close()
    assert (group.log.of("Physics_Sim"), group.log.of("policy")) == ([b"policy"], [b"physics"])


def test_kill_gives_grace_and_then_ends_everything(group: Group) -> None:
    polite = "trap 'echo saved; exit 9' TERM; touch /osmo/data/output/up; while true; do sleep 0.05; done"
    stubborn = "trap '' TERM; (setsid sleep 600 &); touch /osmo/data/output/up; while true; do sleep 0.1; done"
    gang = group.prepare(group.launch("polite", polite), group.launch("stubborn", stubborn))
    gang.release()
    for name in ("polite", "stubborn"):
        assert eventually((group.base / name / "data/output/up").exists)
    gang.tasks["polite"].kill(grace=PATIENCE)
    assert gang.tasks["polite"].wait(PATIENCE) == 9
    gang.tasks["stubborn"].kill(grace=0.2)
    assert gang.tasks["stubborn"].wait(PATIENCE) == 137
    assert b"saved" in group.log.of("polite")


def test_restart_in_place_keeps_files_and_a_new_attempt_does_not(group: Group) -> None:
    script = "echo run >> /tmp/count; cat /tmp/count; touch /osmo/data/output/up; sleep 600"
    gang = group.prepare(group.launch("t", script), group.launch("peer", "sleep 600"))
    gang.release()
    up = group.base / "t/data/output/up"
    assert eventually(up.exists)
    first = gang.tasks["t"]
    up.unlink()
    second = gang.restart(group.launch("t", script))
    assert (first.poll(), second.poll()) == (137, None)
    assert not up.exists()
    gang.release_task("t")
    assert eventually(up.exists)
    assert gang.tasks["peer"].poll() is None
    third = gang.restart(group.launch("t", "test -e /tmp/count && exit 1; exit 7", home="t-1"))
    gang.release_task("t")
    assert third.wait(PATIENCE) == 7
    gang.close()
    assert group.log.of("t") == [b"run", b"run", b"run"]


def test_reaching_the_memory_limit_is_told(group: Group) -> None:
    gang = group.prepare(group.launch("t", "python3 -c 'x = bytearray(1 << 30)'", memory=96 << 20))
    gang.release()
    assert gang.tasks["t"].wait(PATIENCE) == 137
    assert "memory limit" in gang.tasks["t"].evicted


def test_an_image_without_a_shell_runs_without_a_barrier(group: Group) -> None:
    program = "/usr/bin/" + ("printenv" if Path("/usr/bin/printenv").exists() else "env")
    code, lines = group.run("t", "", argv=(program, "MINE"), environment={"MINE": "yes"}, image=BARE)
    assert (code, lines[-1:]) == (0, [b"yes"])  # before it the engine may have complained of this machine
    assert any(b"has no /bin/sh" in line for line in group.log.of("t", "osmo"))


def test_mounted_inputs_can_be_written_to_and_stay_as_they_are(group: Group, tmp_path: Path) -> None:
    source = tmp_path / "version"
    source.mkdir()
    (source / "file").write_text("as it was")
    (group.base / "t/data/input/0/data").mkdir(parents=True)
    script = "cd /osmo/data/input/0/data; cat file; echo; echo new > file; cat file"
    assert group.executor.why_no_layer(group.base / "t", source) == ""
    code, lines = group.run("t", script, layers=(InputLayer("0/data", source),))
    assert (code, lines) == (0, [b"as it was", b"new"])
    assert (source / "file").read_text() == "as it was"


def test_what_can_not_be_is_said_in_one_line_and_leaves_nothing(group: Group) -> None:
    with pytest.raises(ServiceError, match="could not pull the image localhost/no-such-image:1: "):
        group.prepare(group.launch("good", "true"), group.launch("bad", "true", image="localhost/no-such-image:1"))
    assert group.left() == []
    with pytest.raises(UsageError, match="is not the name of an image"):
        group.prepare(group.launch("t", "true", image="--privileged"))
    in_the_way = (PlacedFile("/bin/bash/file", b""),)
    with pytest.raises(ServiceError, match="task t can't be prepared: can't put the files in place"):
        group.prepare(group.launch("t", "true", files=in_the_way))
    assert group.left() == []


def test_secrets_are_in_no_command_line(group: Group) -> None:
    secret = uuid.uuid4().hex
    gang = group.prepare(group.launch("t", "sleep 600", environment={"TOKEN": secret, "LINES": f"a\n{secret}"}))
    gang.release()
    assert eventually(lambda: gang.tasks["t"].started_ns is not None)
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                assert secret.encode() not in Path(f"/proc/{entry}/cmdline").read_bytes()


FOLLOWED = """
import sys
from pathlib import Path
from casstore_orchestrator.executors.container import ContainerExecutor
from casstore_orchestrator.ports import TaskLaunch

class Sink:
    def write(self, task, text, *, source=""):
        if not source:
            print(text.decode(), flush=True)

scope, base, key, image = sys.argv[1:]
launches = [
    TaskLaunch(name, ("bash", "-c", "echo up; sleep 600"), {}, (), Path(base) / name, 1, 0, 0, image=image)
    for name in ("a", "b")
]
gang = ContainerExecutor(Path(scope), engine="podman").prepare(key, launches, Sink())
gang.release()
gang.tasks["a"].wait()
"""


def test_nothing_survives_whoever_followed_it(group: Group, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FOLLOWED, str(tmp_path), str(group.base), group.key, IMAGE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        assert [agent.stdout.readline(), agent.stdout.readline()] == ["up\n", "up\n"]
        assert len(group.left()) == 3
        agent.send_signal(signal.SIGKILL)
    assert eventually(lambda: group.left() == [])


def test_what_nobody_follows_is_swept(group: Group) -> None:
    gang = group.prepare(group.launch("t", "sleep 600"))
    gang.release()
    group.executor.sweep(group.key)
    assert group.left() == []
    assert gang.tasks["t"].wait(PATIENCE) == 137


def read_all(fd: int) -> bytes:
    data = b""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if select.select([fd], [], [], 0.2)[0]:
            try:
                piece = os.read(fd, 4096)
            except OSError:  # a terminal whose other side was closed
                return data
            if not piece:
                return data
            data += piece
    return data


def test_programs_run_beside_the_command_and_its_ports_are_reached(group: Group) -> None:
    serve = (
        "import socket\nserver = socket.create_server(('127.0.0.1', 7000))\n"
        "while True:\n    peer, _ = server.accept()\n    peer.sendall(b'served')\n    peer.close()"
    )
    gang = group.prepare(group.launch("t", "", argv=("python3", "-c", serve), environment={"MINE": "yes"}))
    gang.release()
    task = gang.tasks["t"]
    assert eventually(lambda: task.started_ns is not None)
    program = task.enter(["bash", "-c", "read line; echo $line $MINE; exit 3"])
    os.write(program.stdin, b"hello\n")
    assert read_all(program.stdout) == b"hello yes\n"
    select.select([program.ended], [], [], PATIENCE)
    assert program.code == 3
    program.close()
    program = task.enter(["bash", "-c", "test -t 0 && stty size; exit 4"], terminal=(33, 77))
    assert b"33 77" in read_all(program.terminal)
    select.select([program.ended], [], [], PATIENCE)
    assert program.code == 4
    program.close()

    def answer() -> bytes:
        try:
            with task.connect(7000) as peer:
                return peer.recv(100)
        except NotFoundError:
            return b""

    assert eventually(lambda: answer() == b"served")
    with pytest.raises(NotFoundError, match="nothing listens on port 7001"):
        task.connect(7001)
