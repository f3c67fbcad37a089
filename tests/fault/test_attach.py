"""The agent's side of interactive connections: framing, back-pressure, ends; with real tasks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore_orchestrator import frames
from casstore_orchestrator.agent import attach, pump
from casstore_orchestrator.executors.probe import probe
from casstore_orchestrator.executors.process import ProcessExecutor
from casstore_orchestrator.executors.running import Attempt, ProcessGang
from casstore_orchestrator.frames import Kind
from casstore_orchestrator.ports import PlacedFile, TaskLaunch

PATIENCE = 60.0
ROOT = Path(__file__).parents[2]


class Log:
    def write(self, task: str, text: bytes, *, source: str = "") -> None:
        pass


class Group:
    """One task that runs, and connections to it."""

    def __init__(self, gang: ProcessGang, base: Path) -> None:
        self.gang = gang
        self.base = base
        self.threads: list[threading.Thread] = []

    def task(self, name: str, retry_id: int | None = None) -> Attempt:
        return self.gang.tasks[name]

    def note(self, task: str, text: str) -> None:
        pass

    @contextlib.contextmanager
    def attach(self, kind: str, **more: object) -> Iterator[Connection]:
        ours, theirs = socket.socketpair()
        ours.settimeout(PATIENCE)

        def serve() -> None:
            with theirs:
                attach.serve(theirs, {"attach": kind, "task": "t", **more}, self)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with ours:
            yield Connection(ours)
        thread.join(PATIENCE)
        assert not thread.is_alive()


class Connection:
    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._frames = frames.Frames()
        self._waiting: list[frames.Frame] = []

    def answer(self) -> dict[str, object]:
        line = b""
        while not line.endswith(b"\n"):
            line += self.socket.recv(1)
        found: dict[str, object] = json.loads(line)
        return found

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        self.socket.sendall(frames.encode(kind, payload))

    def fill(self, byte: bytes) -> None:
        """Send until nothing more is taken, which must be soon."""
        self.socket.settimeout(1.0)
        with contextlib.suppress(TimeoutError):
            for _ in range(1000):
                self.send(Kind.DATA, byte * 65536)
            raise AssertionError("everything was taken")

    def read(self) -> frames.Frame | None:
        """The next frame; None at the end."""
        while not self._waiting:
            data = self.socket.recv(1 << 16)
            if not data:
                return None
            self._waiting += self._frames.feed(data)
        return self._waiting.pop(0)

    def rest(self) -> dict[Kind, bytes]:
        """What is left, by kind."""
        found: dict[Kind, bytes] = {}
        while frame := self.read():
            found[frame[0]] = found.get(frame[0], b"") + frame[1]
        return found

    def until(self, text: bytes) -> bytes:
        data = b""
        while text not in data:
            frame = self.read()
            assert frame is not None, data
            data += frame[1]
        return data


SERVER = """
exec python3 - <<'END'
import os, socket, threading
listener = socket.create_server(("127.0.0.1", 0))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", listener.getsockname()[1]))
def echo():
    while True:
        data, who = udp.recvfrom(65536)
        udp.sendto(b"%d:" % who[1] + data, who)
threading.Thread(target=echo, daemon=True).start()
def copy(peer):
    with peer:
        first = peer.recv(1)
        if first == b"R":
            while data := peer.recv(1 << 16):
                peer.sendall(data)
        elif first == b"W":
            peer.sendall(b"w" * 5_000_000)
        elif first == b"S":
            threading.Event().wait()
        peer.sendall(b"bye")
open("port.tmp", "w").write(str(listener.getsockname()[1]))
os.rename("port.tmp", "port")
while True:
    threading.Thread(target=copy, args=listener.accept()[:1], daemon=True).start()
END
"""


@pytest.fixture(scope="module", params=["bubblewrap", "plain"])
def group(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    if request.param == "bubblewrap" and not probe().sandbox:
        pytest.skip("; ".join(probe().reasons))
    base = tmp_path_factory.mktemp("attach")
    launch = TaskLaunch(
        "t", ("bash", "/tmp/run.sh"), {}, (PlacedFile("/tmp/run.sh", SERVER.encode()),), base, 1.0, 0, 0
    )
    gang = ProcessExecutor(mode=request.param).prepare("g", [launch], Log())
    try:
        gang.release()
        end = time.monotonic() + PATIENCE
        while not (base / "run/workspace/port").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
        yield Group(gang, base)
    finally:
        gang.close()


def port(group: Group) -> int:
    return int((group.base / "run/workspace/port").read_text())


def test_a_program_and_its_end(group: Group) -> None:
    with group.attach("exec", argv=["sh", "-c", "cat; echo err >&2; exit 3"]) as connection:
        assert connection.answer() == {"ok": True}
        connection.send(Kind.DATA, b"in")
        connection.send(Kind.EOF)
        found = connection.rest()
    assert found[Kind.DATA] == b"in"
    assert found[Kind.ERRORS] == b"err\n"
    assert frames.exit_status(found[Kind.EXIT]) == (3, False)


def test_a_terminal_is_resized(group: Group) -> None:
    script = "trap 'stty size' WINCH; stty size; while :; do read -t 0.1 x && exit 4; done"
    with group.attach("exec", argv=["bash", "-c", script], terminal=[10, 20], term="vt100") as connection:
        connection.answer()
        connection.until(b"10 20")
        connection.socket.sendall(frames.resize(30, 40))
        connection.until(b"30 40")
        connection.send(Kind.DATA, b"x\n")
        assert frames.exit_status(connection.rest()[Kind.EXIT]) == (4, False)


def test_all_output_arrives_through_a_slow_reader(group: Group) -> None:
    script = "head -c 3000000 /dev/zero; head -c 1000 /dev/zero >&2; exit 9"
    with group.attach("exec", argv=["sh", "-c", script]) as connection:
        connection.answer()
        assert not select.select([], [], [], 0.3)[0]  # long enough for every buffer to be full
        found = connection.rest()
    assert (len(found[Kind.DATA]), len(found[Kind.ERRORS])) == (3_000_000, 1000)
    assert frames.exit_status(found[Kind.EXIT])[0] == 9


def test_a_program_that_does_not_read_holds_up_only_its_writer(group: Group) -> None:
    with group.attach("exec", argv=["sleep", "1000"]) as connection:
        connection.answer()
        connection.fill(b"x")
    # What waited in memory was bounded, and leaving ends the program (the thread has ended: see Group.attach).


def test_who_leaves_hangs_up(group: Group) -> None:
    path = group.task("t").seen_path("/osmo/run/workspace/hung-up")
    with group.attach(
        "exec", argv=["bash", "-c", f"trap 'touch {path}; exit' HUP; echo r; read"], terminal=[1, 1]
    ) as one:
        one.answer()
        one.until(b"r")
    end = time.monotonic() + PATIENCE
    while not (group.base / "run/workspace/hung-up").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_streams_are_byte_exact_and_half_closed(group: Group) -> None:
    data = hashlib.shake_256(b"casstore").digest(10_000_000)
    with group.attach("tcp", port=port(group)) as connection:
        assert connection.answer() == {"ok": True}

        def send() -> None:
            connection.send(Kind.DATA, b"R")
            for start in range(0, len(data), 65536):
                connection.send(Kind.DATA, data[start : start + 65536])
            connection.send(Kind.EOF)

        sender = threading.Thread(target=send)
        sender.start()
        found = connection.rest()
        sender.join()
    assert found[Kind.DATA] == data + b"bye"
    assert found[Kind.EOF] == b""


def test_a_peer_in_the_task_that_does_not_read_is_left_in_the_end(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump, "_DELIVER_SECONDS", 0.2)
    with group.attach("tcp", port=port(group)) as connection:
        connection.answer()
        connection.fill(b"S")


def test_a_reader_that_leaves_ends_the_stream(group: Group) -> None:
    with group.attach("tcp", port=port(group)) as connection:
        connection.answer()
        connection.send(Kind.DATA, b"W")
        assert connection.read()


def test_datagrams_find_their_way_back(group: Group) -> None:
    with group.attach("udp", port=port(group)) as connection:
        assert connection.answer() == {"ok": True}
        senders = [bytes([127, 0, 0, 1, 8, number]) for number in range(5)]
        for sender in senders * 2:
            connection.send(Kind.DATA, sender + b"data" + sender)
        seen: dict[bytes, set[bytes]] = {}
        for _ in range(10):
            frame = connection.read()
            assert frame is not None
            source, _, data = frame[1][6:].partition(b":")
            assert data == b"data" + frame[1][:6]
            seen.setdefault(frame[1][:6], set()).add(source)
        assert set(seen) == set(senders)
        assert len({min(sources) for sources in seen.values()}) == 5  # a socket of its own for each
        connection.send(Kind.DATA, senders[0] + b"z" * 60_000)
        frame = connection.read()
        assert frame is not None
        assert frame[1].endswith(b"z" * 60_000)
        for number in range(300):
            connection.send(Kind.DATA, bytes([127, 0, 0, 2, number >> 8, number & 255]) + b"many")
            assert connection.read()


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"attach": "tcp", "port": 1}, "nothing listens on port 1"),
        ({"attach": "tcp", "port": 0}, "0 is not a port"),
        ({"attach": "tcp", "port": 70000}, "can't be understood"),
        ({"attach": "exec", "argv": []}, "no program"),
        ({"attach": "exec", "argv": ["a\0b"]}, "no program"),
        ({"attach": "exec", "argv": ["a"], "terminal": [1, 2, 3]}, "can't be understood"),
        ({"attach": "exec", "argv": ["a"], "terminal": [1, 1], "term": "$(x)"}, "can't be understood"),
        ({"attach": "else"}, "can't be understood"),
    ],
)
def test_what_can_not_be_had_is_told(group: Group, header: dict[str, object], told: str) -> None:
    more = {key: value for key, value in header.items() if key != "attach"}
    with group.attach(str(header["attach"]), **more) as connection:
        assert told in str(connection.answer()["error"])


def test_frames_that_are_too_long_end_the_connection(group: Group) -> None:
    with group.attach("exec", argv=["cat"]) as connection:
        connection.answer()
        connection.socket.sendall(b"\x00\xff\xff\xff\xff")
        line = b""
        while piece := connection.socket.recv(4096):
            line += piece
        assert b"is not allowed" in line


def rsync(group: Group, *words: str) -> subprocess.CompletedProcess[str]:
    """Run rsync with a connection to the task's daemon, whose complaints are added to its own."""
    said: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def bridge() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=carry, args=(peer,), daemon=True).start()

    def carry(peer: socket.socket) -> None:
        with peer, group.attach("rsync") as connection:
            assert connection.answer() == {"ok": True}

            def up() -> None:
                with contextlib.suppress(OSError):
                    while data := peer.recv(65536):
                        connection.send(Kind.DATA, data)
                    connection.send(Kind.EOF)

            threading.Thread(target=up, daemon=True).start()
            while frame := connection.read():
                if frame[0] is Kind.DATA:
                    peer.sendall(frame[1])
                elif frame[0] is Kind.ERRORS:
                    said.append(frame[1])
            peer.shutdown(socket.SHUT_RDWR)

    with listener:
        threading.Thread(target=bridge, daemon=True).start()
        at = f"rsync://127.0.0.1:{listener.getsockname()[1]}"
        done = subprocess.run(
            ["rsync", *[word.replace("TASK", at) for word in words]], capture_output=True, text=True, check=False
        )
        listener.shutdown(socket.SHUT_RDWR)
    done.stderr += b"".join(said).decode()
    return done


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync_both_ways(group: Group, tmp_path: Path) -> None:
    (tmp_path / "from/sub").mkdir(parents=True)
    (tmp_path / "from/a").write_bytes(b"a" * 3_000_000)
    (tmp_path / "from/sub/b").write_text("b")
    (tmp_path / "from/link").symlink_to("sub/b")
    (tmp_path / "from/a").chmod(0o750)
    listed = rsync(group, "TASK")
    assert "osmo" in listed.stdout, listed.stderr
    done = rsync(group, "-av", str(tmp_path / "from"), "TASK/osmo/")
    assert done.returncode == 0, done.stderr
    there = group.base / "run/workspace/from"
    assert (there / "a").read_bytes() == b"a" * 3_000_000
    assert (there / "a").stat().st_mode & 0o777 == 0o750
    assert (there / "link").readlink() == Path("sub/b")
    done = rsync(group, "-av", "TASK/osmo/from/", str(tmp_path / "back"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "back/sub/b").read_text() == "b"
    refused = rsync(group, "-av", str(tmp_path / "from"), "TASK/input/")
    assert refused.returncode != 0
    assert "read only" in refused.stderr


def test_the_end_of_a_task_ends_its_connections(tmp_path: Path) -> None:
    launch = TaskLaunch("t", ("sleep", "1000"), {}, (), tmp_path / "home", 1.0, 0, 0)
    gang = ProcessExecutor(mode="auto").prepare("g", [launch], Log())
    try:
        gang.release()
        while gang.tasks["t"].started_ns is None:
            time.sleep(0.01)
        with Group(gang, tmp_path).attach("exec", argv=["sleep", "1000"], terminal=[1, 1]) as connection:
            connection.answer()
            gang.tasks["t"].kill()
            assert frames.exit_status(connection.rest()[Kind.EXIT]) == (128 + signal.SIGKILL, True)
    finally:
        gang.close()
