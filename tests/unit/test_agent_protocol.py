"""What servers and agents say to each other: frames in any pieces, bounds, first lines, long paths, the lock."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from casstore.errors import FormatError, NotFoundError, ServiceError
from casstore_orchestrator.agent import protocol
from casstore_orchestrator.agent.fence import Cleaner
from casstore_orchestrator.agent.folder import KEEP_CLOSED, RunFolder, Runs, Start
from casstore_orchestrator.agent.journal import Past
from casstore_orchestrator.agent.protocol import Frames, Kept, Noted, Order
from casstore_orchestrator.events import Attempt, CloseGroup, TaskRunning
from casstore_orchestrator.homes import Homes
from casstore_orchestrator.pools import Resources, parse_pools, this_machine
from casstore_orchestrator.ports import RunKey
from casstore_orchestrator.spec import GroupSpec, TaskSpec, WorkflowSpec
from casstore_orchestrator.state import new_workflow, with_number

RUN = RunKey("wf-1", "g", 1)
MESSAGES = [Order(1, CloseGroup("g")), Noted(2, TaskRunning(Attempt("a", 0, 0))), Kept(3)]


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_frames_come_in_pieces(size: int) -> None:
    data = b"".join(map(protocol.encode, MESSAGES))
    frames, found = Frames(), []
    for start in range(0, len(data), size):
        found += frames.feed(data[start : start + size])
    assert found == MESSAGES


@pytest.mark.parametrize(
    "data",
    [struct.pack(">I", (16 << 20) + 1), struct.pack(">I", 3) + b"\xc1\xc1\xc1", struct.pack(">I", 1) + b"\x90"],
    ids=["too long", "garbage", "another type"],
)
def test_frames_that_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        Frames().feed(data)


def read(data: bytes) -> tuple[bytes, bytes]:
    """The first line, and what is left in the socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: (theirs.sendall(data), theirs.shutdown(socket.SHUT_WR)))
        sender.start()
        line = protocol.read_line(ours)
        rest = b""
        while part := ours.recv(1 << 16):
            rest += part
        sender.join()
        return line, rest


def test_nothing_behind_the_first_line_is_read() -> None:
    assert read(b'{"a": 1}\nrest') == (b'{"a": 1}', b"rest")
    assert read(b"x" * 60000 + b"\n\n") == (b"x" * 60000, b"\n")
    assert read(b"no newline") == (b"", b"")


def test_a_first_line_without_end_is_refused() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(b"x" * (protocol.MAX_LINE + 10))
        with pytest.raises(FormatError, match="longer than"):
            protocol.read_line(ours)


@pytest.mark.parametrize("line", [b"", b"[]", b'"x"', b"{", b"\xff", b'{"a":' * 30000])
def test_first_lines_that_are_no_objects(line: bytes) -> None:
    with pytest.raises(FormatError):
        protocol.decode_line(line)


def test_the_peer_is_known() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert protocol.check_peer(ours) > 0


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "wf-1.g", "wf-1.g.0", "wf-1.g.x", "../a.g.1", "a/b.g.1", "wf.g.1.1", ".g.1", "a.g.1\n"],
)
def test_names_that_are_no_runs(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError):
        Runs(tmp_path).named(name)


def test_runs_are_listed_and_odd_names_are_not(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    assert runs.all() == []
    for run in (RUN, RunKey("wf-1", "g", 12), RunKey("a_b-2", "x-y", 1)):
        lock = runs.folder(run).lock()
        assert lock is not None
        lock.release()
    (tmp_path / "runs" / "odd").mkdir()
    assert runs.all() == [RunKey("a_b-2", "x-y", 1), RUN, RunKey("wf-1", "g", 12)]


def test_a_socket_below_a_long_path_is_reached(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / ("x" * 100) / ("y" * 100), RUN)
    lock = folder.lock()
    assert lock is not None
    with folder.listen() as listener, folder.connect() as connection:
        accepted, _ = listener.accept()
        with accepted:
            connection.sendall(b"x")
            assert accepted.recv(1) == b"x"
    with pytest.raises(OSError, match="refused"):
        folder.connect()
    lock.release()


HOLD = """
import os, sys
from pathlib import Path
from casstore_orchestrator.agent.fence import Cleaner
from casstore_orchestrator.agent.folder import RunFolder
from casstore_orchestrator.ports import RunKey
lock = RunFolder(Path(sys.argv[1]), RunKey("wf-1", "g", 1)).lock()
if os.fork():
    os._exit(0)
os.set_inheritable(lock.descriptor, True)
print("held", flush=True)
os.execvp("cat", ["cat"])
"""


def test_the_lock_is_held_until_the_last_process_with_it_ends(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, RUN)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.wait(30)
        assert folder.lock() is None  # the first process has ended, and what it started has not
        process.stdin.close()
    deadline = time.monotonic() + 30
    while (lock := folder.lock()) is None:
        assert time.monotonic() < deadline
    assert folder.lock() is None
    lock.release()
    lock.release()


def test_no_folder_is_made_for_a_lock_that_is_only_looked_for(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs", RUN)
    assert folder.lock(make=False) is None
    assert not folder.path.exists()


def test_tombstones_are_kept_long_and_not_for_ever(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    folder = runs.folder(RUN)
    folder.close()
    folder.close()
    assert folder.closed
    runs.sweep()
    assert folder.closed
    old = time.time() - KEEP_CLOSED - 60
    os.utime(tmp_path / "closed" / folder.name, (old, old))
    runs.sweep()
    assert not folder.closed


def test_what_to_run_is_written_once_and_read_back(tmp_path: Path) -> None:
    spec = WorkflowSpec(name="wf", groups=(GroupSpec(name="g", tasks=(TaskSpec(name="a", command=("x",)),)),))
    pool = parse_pools({}, this_machine())["default"]
    record = with_number(new_workflow(spec, uuid="0" * 32, user="u", pool=pool), 1)
    start = Start.of(RUN, record, {"a": Resources(cpu=1, extras={"arm": 2})})
    folder = RunFolder(tmp_path, RUN)
    folder.put(start)
    assert folder.start() == start
    folder.put(Start.of(RunKey("wf-1", "g", 2), record, {}))
    assert folder.start() == start
    (folder.path / "start").write_bytes(b'{"version": 99}')
    with pytest.raises(FormatError, match="another version"):
        folder.start()
    (folder.path / "start").write_bytes(b"{")
    with pytest.raises(FormatError):
        folder.start()


def test_an_engine_that_is_down_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    answers = iter(["down", "down", "", "down"])

    def sweep(_: RunKey) -> None:
        if said := next(answers):
            raise ServiceError(said)

    cleaner = Cleaner(Homes(tmp_path), sweep=sweep)
    for _ in range(4):
        cleaner.clean(RUN, Past())
    assert caplog.text.count("left behind: down") == 2
