"""``osmo workflow exec``, ``port-forward`` and ``rsync`` against real servers, tasks and terminals."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pty
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import homes
from tests.homes import OSMO, PATIENCE, eventually


class Home(homes.Home):
    """A home with tasks that are entered."""

    def __init__(self, folder: Path, user: str = "ada") -> None:
        super().__init__(folder, user)
        self.env["TERM"] = "xterm"

    def submit(self, name: str, script: str, more: str = "") -> str:
        path = self.work / f"{name}.yaml"
        path.write_text(
            f"workflow:\n  name: {name}\n  tasks:\n  - name: one\n    image: ubuntu\n"
            f"    command: [bash, -c, {json.dumps(script)}]\n{more}"
        )
        found: str = self.json("workflow", "submit", str(path))["name"]
        return found

    def exec(self, workflow_id: str, entry: str, code: int = 0, stdin: bytes = b"") -> tuple[str, str]:
        return self.osmo("workflow", "exec", workflow_id, "one", "--entry", entry, code=code, stdin=stdin), self.stderr

    def stop_server(self) -> None:
        pid = self.pid
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: gone(pid), "the server ended")


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


SERVER = """
exec {python} - <<'END'
import os, socket, threading
listeners = [socket.create_server(("127.0.0.1", port)) for port in (9000, 9001)]
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 9000))
def datagrams():
    while True:
        data, who = udp.recvfrom(65536)
        udp.sendto(b"got " + data, who)
def serve(listener):
    while True:
        peer, _ = listener.accept()
        threading.Thread(target=copy, args=(peer, listener.getsockname()[1]), daemon=True).start()
def copy(peer, port):
    with peer:
        while data := peer.recv(1 << 16):
            peer.sendall(data)
        peer.sendall(b" end of %d" % port)
threading.Thread(target=datagrams, daemon=True).start()
for listener in listeners:
    threading.Thread(target=serve, args=(listener,), daemon=True).start()
threading.Event().wait()
END
""".replace("{python}", sys.executable)


class Setting:
    """Two homes: of the server's owner, and of somebody who is logged in to it by its port; each with a task."""

    def __init__(self, folder: Path) -> None:
        self.local = Home(folder / "ada")
        self.remote = Home(folder / "bob", "bob")
        self.local.osmo("server", "start", "--port", "0")
        info = self.local.osmo("server", "status")
        url = next(word.rstrip(".") for word in info.split() if word.startswith("http://"))
        self.remote.osmo("login", url, "--method", "dev", "--username", "bob")
        self.flows = {home.env["USER"]: home.submit("serve", SERVER) for home in (self.local, self.remote)}
        for home in (self.local, self.remote):
            home.wait(self.flow(home), "RUNNING")

    def flow(self, home: Home) -> str:
        return self.flows[home.env["USER"]]

    def close(self) -> None:
        for home in (self.local, self.remote):
            home.osmo("workflow", "cancel", self.flow(home))
            home.wait(self.flow(home), "FAILED_CANCELED")
        self.local.osmo("server", "stop", "--force")


@pytest.fixture(scope="module")
def setting() -> Iterator[Setting]:
    with tempfile.TemporaryDirectory(prefix="ci-", ignore_cleanup_errors=True) as folder:
        made = Setting(Path(folder))
        yield made
        made.close()


@pytest.fixture(params=["local", "remote"])
def home(request: pytest.FixtureRequest, setting: Setting) -> Home:
    found: Home = getattr(setting, request.param)
    return found


# --- exec


def test_streams_and_exit_codes_pass(home: Home, setting: Setting) -> None:
    flow = setting.flow(home)
    assert home.exec(flow, "cat", stdin=b"from here") == ("from here", "")
    assert home.exec(flow, "sh -c 'echo out; echo err >&2; exit 42'", code=42) == ("out\n", "err\n")
    assert home.exec(flow, "sh -c 'kill -KILL $$'", code=137) == ("", "")
    assert "command not found: nothing-like-that" in home.exec(flow, "nothing-like-that", code=127)[1]
    digest = hashlib.sha256(b"\0" * 5_000_000).hexdigest()
    assert home.exec(flow, "sha256sum", stdin=b"\0" * 5_000_000)[0].split()[0] == digest


def test_what_can_not_be_entered_is_told_at_once(setting: Setting) -> None:
    home, other = setting.local, setting.remote
    more = '  - name: two\n    image: x\n    command: ["true"]\n    inputs:\n    - task: one\n'
    flow = home.submit("stages", "read x < <(sleep 1000)", more)
    home.wait(flow, "RUNNING")
    said = home.osmo("workflow", "exec", flow, "two", code=2)
    assert "Task two of" in said
    assert "does not run yet: " in said
    home.osmo("workflow", "cancel", flow)
    home.wait(flow, "FAILED_CANCELED")
    assert "has ended: " in home.exec(flow, "true", code=2)[0]
    assert "has no task three" in home.osmo("workflow", "exec", flow, "three", code=2)
    assert "has ended" in home.osmo("workflow", "port-forward", flow, "one", "--port", "0:80", code=2)
    assert "is another user's" in other.exec(setting.flow(home), "true", code=2)[0]
    assert "can't be split" in home.exec(setting.flow(home), "echo 'open", code=2)[0]


def test_a_group_answers_together(home: Home, setting: Setting) -> None:
    flow = setting.flow(home)
    group = home.query(flow)["groups"][0]["name"]
    words = ("workflow", "exec", flow, "--group", group)
    assert home.osmo(*words, "--entry", "sh -c 'echo a; echo b; exit 3'", code=3) == "[one] a\n[one] b\n"
    assert "can't share a shell" in home.osmo(*words, code=2)


def test_a_program_ends_with_its_task(setting: Setting) -> None:
    home = setting.local
    flow = home.submit("short", "until test -e stop; do sleep 0.05; done")
    home.wait(flow, "RUNNING")
    eventually(lambda: home.query(flow)["groups"][0]["tasks"][0]["status"] == "RUNNING", "it runs")
    said = home.exec(flow, "sh -c 'echo here; touch stop; sleep 1000'", code=137)
    assert said == ("here\n", "The task ended, and the program with it.\n")


TAKE_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, home: Home, *words: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(30, 100)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *OSMO, *words],
            env=home.env,
            cwd=home.work,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        self.slave = slave
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def until(self, text: bytes) -> bytes:
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen:
            assert select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0], self.seen
            self.seen += os.read(self.master, 65536)
        before, _, self.seen = self.seen.partition(text)
        return before

    def end(self) -> int:
        code = self.process.wait(PATIENCE)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal did not come back"
        os.close(self.master)
        os.close(self.slave)
        return code


def test_a_terminal_is_a_terminal(home: Home, setting: Setting) -> None:
    terminal = Terminal(home, "workflow", "exec", setting.flow(home), "one", "--entry", "env PS1=ready> bash --norc -i")
    terminal.until(b"ready>")
    terminal.type(b'echo $TERM $(tty) $(stty size) en""d\n')
    assert terminal.until(b"end").split()[-4:-2] == [b"xterm", b"/dev/pts/0"]
    terminal.resize(45, 132)

    def size() -> bytes:
        terminal.type(b'stty size; echo nex""t\n')
        return terminal.until(b"next")

    eventually(lambda: b"45 132" in size(), "the size is that of the terminal")
    terminal.type(b"sh -c 'echo beg\"\"un; exec sleep 1000'\n")
    terminal.until(b"begun")
    terminal.type(b"\x03")
    terminal.until(b"ready>")
    terminal.type(b"exit 17\n")
    assert terminal.end() == 17


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_comes_back_after_a_signal(setting: Setting, number: int) -> None:
    home = setting.local
    terminal = Terminal(home, "workflow", "exec", setting.flow(home), "one", "--entry", "sh -c 'echo up; cat'")
    terminal.until(b"up")
    terminal.process.send_signal(number)
    assert terminal.end() == 3


# --- port-forward


@contextlib.contextmanager
def forwarding(
    home: Home, flow: str, *words: str, end: signal.Signals = signal.SIGINT
) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    process = home.start("workflow", "port-forward", flow, "one", *words)
    assert process.stdout is not None and process.stderr is not None
    try:
        spec = words[words.index("--port") + 1]
        lines = [process.stdout.readline().decode() for _ in spec.split(",")]
        assert all(line.startswith("Forwarding localhost:") for line in lines), (lines, process.poll())
        yield process, [int(line.split()[1].rpartition(":")[2]) for line in lines]
        process.send_signal(end)
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read().endswith(b"Ended.\n")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def echo(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as peer:

        def send() -> None:
            peer.sendall(data)
            peer.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        got = bytearray()
        while piece := peer.recv(1 << 18):
            got += piece
        sender.join()
        return bytes(got)


def test_connections_are_carried_byte_by_byte(home: Home, setting: Setting) -> None:
    data = hashlib.shake_256(b"casstore").digest(1 << 20) * 20
    with forwarding(home, setting.flow(home), "--port", "0:9000,0:9001,0:9002") as (process, ports):
        assert echo(ports[0], data) == data + b" end of 9000"
        results: dict[int, bytes] = {}
        threads = [
            threading.Thread(target=lambda n=n: results.update({n: echo(ports[n % 2], b"%d" % n)})) for n in range(50)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {n: b"%d end of %d" % (n, 9000 + n % 2) for n in range(50)}
        assert echo(ports[2], b"") == b""
        assert process.stderr is not None
        assert b"nothing listens on port 9002" in process.stderr.readline()


@pytest.mark.nightly
def test_100_mb_are_byte_exact(setting: Setting) -> None:
    data = hashlib.shake_256(b"x").digest(1 << 20) * 100
    with forwarding(setting.remote, setting.flow(setting.remote), "--port", "0:9000") as (_, ports):
        assert echo(ports[0], data) == data + b" end of 9000"


def test_datagrams_are_carried(home: Home, setting: Setting) -> None:
    with (
        forwarding(home, setting.flow(home), "--udp", "--port", "0:9000") as (_, ports),
        contextlib.ExitStack() as stack,
    ):
        for number in range(3):
            local = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            local.settimeout(PATIENCE)
            local.sendto(b"%d" % number, ("127.0.0.1", ports[0]))
            assert local.recv(100) == b"got %d" % number


def test_sigterm_ends_it_as_well_as_ctrl_c(setting: Setting) -> None:
    with forwarding(setting.local, setting.flow(setting.local), "--port", "0:9000", end=signal.SIGTERM):
        pass


def test_an_address_that_is_taken_is_told(setting: Setting) -> None:
    home = setting.local
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = home.osmo("workflow", "port-forward", setting.flow(home), "one", "--port", f"{port}:9000", code=2)
    assert f"Can't listen on localhost:{port}: {os.strerror(errno.EADDRINUSE)}" in said


# --- rsync


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_files_go_both_ways(setting: Setting) -> None:
    home, flow = setting.remote, setting.flow(setting.remote)
    code = home.work / "code"
    (code / "sub").mkdir(parents=True)
    (code / "a").write_bytes(b"a" * 300_000)
    (code / "sub/b c").write_text("b")
    home.osmo("workflow", "rsync", "upload", flow, "code:/osmo/run/workspace")
    home.exec(flow, "sh -c 'cmp code/a code/a && echo made > code/new'")
    home.osmo("workflow", "rsync", "download", flow, "one", "/osmo/run/workspace/code/:back")
    assert (home.work / "back/new").read_text() == "made\n"
    assert (home.work / "back/sub/b c").read_text() == "b"
    home.osmo("workflow", "rsync", "upload", flow, "one", "code/:/osmo/run/workspace/code", "--delete")
    assert home.exec(flow, "ls code")[0] == "a\nsub\n"
    assert "failed" in home.osmo("workflow", "rsync", "download", flow, "/osmo/run/workspace/no:back", code=10)
    assert "is not one of the folders" in home.osmo("workflow", "rsync", "upload", flow, "code:/etc", code=2)
    assert "must be an absolute" in home.osmo("workflow", "rsync", "upload", flow, "code:here", code=2)
    assert "does not exist" in home.osmo("workflow", "rsync", flow, "nothing:/osmo/run/workspace", "--once", code=2)


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_an_upload_goes_on_in_the_background(setting: Setting) -> None:
    home, flow = setting.local, setting.flow(setting.local)
    (home.work / "live").mkdir()
    (home.work / "live/a").write_text("1")
    home.osmo("workflow", "rsync", flow, "one", "live:/osmo/run/workspace", "--debounce-delay", "0.1")
    try:
        eventually(lambda: home.osmo("workflow", "exec", flow, "one", "--entry", "ls").count("live"), "it is there")
        assert f"{flow}/one: process" in home.osmo("workflow", "rsync", "status")
        assert "already" in home.osmo("workflow", "rsync", flow, "one", "live:/osmo/run/workspace", code=2)
        (home.work / "live/b").write_text("2")
        eventually(lambda: home.exec(flow, "ls live")[0] == "a\nb\n", "the change is there")
    finally:
        assert "Stopped" in home.osmo("workflow", "rsync", "stop", flow)
    assert "No upload" in home.osmo("workflow", "rsync", "--status")


# --- a server that is restarted


@pytest.mark.slow
def test_a_restart_of_the_server_is_told_and_overcome(short_path: Path) -> None:
    home = Home(short_path / "ada")
    home.osmo("server", "start")
    flow = home.submit("serve", SERVER)
    home.wait(flow, "RUNNING")
    eventually(lambda: home.exec(flow, "true") is not None, "it can be entered")
    try:
        with forwarding(home, flow, "--port", "0:9000") as (process, ports):
            running = home.start("workflow", "exec", flow, "one", "--entry", "sh -c 'echo up; sleep 1000'")
            assert running.stdout is not None
            assert running.stdout.readline() == b"up\n"
            terminal = Terminal(home, "workflow", "exec", flow, "one", "--entry", "sh -c 'echo up; sleep 1000'")
            terminal.until(b"up")
            assert echo(ports[0], b"before") == b"before end of 9000"
            (home.work / "big").write_bytes(random.Random(1).randbytes(3 << 20))
            limit = ("--upload-rate-limit", "1000000")
            upload = home.start("workflow", "rsync", "upload", flow, "one", "big:/osmo/run/workspace", *limit)
            eventually(lambda: ".big." in home.exec(flow, "ls -A")[0], "a part of the file is there")
            home.stop_server()
            said = running.communicate(timeout=PATIENCE)[1].decode()
            assert running.returncode == 255
            assert "connection to the server was lost" in said
            assert "Run the command again" in said
            assert terminal.end() == 255
            home.osmo("server", "start")
            assert process.stderr is not None
            assert b"was lost; connecting again" in process.stderr.readline()
            assert b"The server is back" in eventually_line(process)
            assert echo(ports[0], b"after") == b"after end of 9000"
            said = upload.communicate(timeout=PATIENCE)[1].decode()
            assert (upload.returncode, "The server is back." in said) == (0, True), said
            assert home.exec(flow, "sh -c 'wc -c < big; ls -A'")[0].split()[0] == str(3 << 20)
            assert home.query(flow)["status"] == "RUNNING"
    finally:
        home.osmo("workflow", "cancel", flow)
        home.wait(flow, "FAILED_CANCELED")
        home.osmo("server", "stop", "--force")


def eventually_line(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr is not None
    while b"is back" not in (line := process.stderr.readline()):
        assert line
    return line
