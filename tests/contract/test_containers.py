"""What containers do beyond the contract of all executors, with a real engine where there is one."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

import pytest

from casstore.errors import NotFoundError, ServiceError, UsageError
from casstore_orchestrator.ports import InputLayer, PlacedFile
from tests.contract.executors import BARE, PATIENCE, Group, eventually, groups

group = groups("container")


def test_variables_of_any_form_arrive_and_none_is_the_engine_s(group: Group) -> None:
    several = 'first\n  second \\n \\ %s "quoted"\n\n'
    script = """
        printf %s "$SEVERAL" > /osmo/data/output/several
        printf '%s|' "$LD_PRELOAD_X" "$CONTAINERS_CONF" "$SPACED"; echo; env | grep -c OSMO_LINES
        exit 3
    """
    environment = {"SEVERAL": several, "CONTAINERS_CONF": "/nowhere", "LD_PRELOAD_X": "x", "SPACED": " a b\t c "}
    code, lines = group.run("t", script, environment=environment)
    assert (code, lines) == (3, [b"x|/nowhere| a b\t c |", b"0"])
    assert (group.base / "t/data/output/several").read_text() == several
    assert b"isolation: container, containers by podman" in b"\n".join(group.log.of("t", "osmo"))


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


def test_what_nobody_follows_is_swept(group: Group) -> None:
    gang = group.prepare(group.launch("t", "sleep 600"))
    gang.release()
    group.executor.sweep(group.key)
    assert group.left() == []
    assert gang.tasks["t"].wait(PATIENCE) in {137, 143}  # the engine asks first


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
