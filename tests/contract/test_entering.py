"""Programs beside a running command, and its ports, in every mode of the executor that this machine has."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import select
import signal
import socket
import struct
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from casstore.errors import ConflictError, NotFoundError
from casstore_orchestrator.executors.entering import Entered
from casstore_orchestrator.executors.probe import probe
from casstore_orchestrator.executors.process import ProcessExecutor
from casstore_orchestrator.executors.running import ProcessGang
from casstore_orchestrator.ports import PlacedFile, TaskLaunch

PATIENCE = 60.0


class Log:
    def write(self, task: str, text: bytes, *, source: str = "") -> None:
        pass


class Tasks:
    """Groups below one folder, closed in the end."""

    def __init__(self, mode: str, base: Path) -> None:
        self.executor = ProcessExecutor(mode=mode)  # type: ignore[arg-type]  # one of the two
        self.mode = mode
        self.base = base
        self.gangs: list[ProcessGang] = []

    def prepare(self, *scripts: str, **environment: str) -> ProcessGang:
        launches = [
            TaskLaunch(
                name=f"t{number}",
                argv=("bash", "/tmp/run.sh"),
                environment=environment,
                files=(PlacedFile("/tmp/run.sh", script.encode()),),
                home=self.base / f"{len(self.gangs)}-{number}",
                cpu=1.0,
                memory=0,
                gpu=0,
            )
            for number, script in enumerate(scripts)
        ]
        gang = self.executor.prepare("group", launches, Log())
        self.gangs.append(gang)
        return gang

    def run(self, *scripts: str, **environment: str) -> ProcessGang:
        gang = self.prepare(*scripts, **environment)
        gang.release()
        wait_for(lambda: all(task.started_ns is not None for task in gang.tasks.values()))
        return gang


def modes() -> list[object]:
    machine = probe()
    why = "; ".join(machine.reasons)
    return [pytest.param("bubblewrap", marks=pytest.mark.skipif(not machine.sandbox, reason=why)), "plain"]


@pytest.fixture(params=modes())
def tasks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tasks]:
    made = Tasks(request.param, tmp_path / "tasks")
    yield made
    for gang in made.gangs:
        gang.close()


def wait_for(condition: object) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def wait_ended(entered: Entered) -> int:
    assert select.select([entered.ended], [], [], PATIENCE)[0], "it did not end"
    assert entered.code is not None
    return entered.code


def read_all(fd: int, until: bytes | None = None) -> bytes:
    """To the end, or to what is expected."""
    data = b""
    while until is None or until not in data:
        assert select.select([fd], [], [], PATIENCE)[0], data
        try:
            piece = os.read(fd, 65536)
        except OSError as error:
            if error.errno == errno.EIO:
                return data
            raise
        if not piece:
            return data
        data += piece
    return data


@contextlib.contextmanager
def entering(gang: ProcessGang, *argv: str, task: str = "t0", **options: object) -> Iterator[Entered]:
    entered = gang.tasks[task].enter(argv, **options)  # type: ignore[arg-type]  # passed on as they are
    try:
        yield entered
    finally:
        entered.close()


def output(gang: ProcessGang, script: str, **options: object) -> tuple[int, bytes, bytes]:
    with entering(gang, "bash", "-c", script, **options) as entered:
        out, err = read_all(entered.stdout), read_all(entered.stderr)
        return wait_ended(entered), out, err


SLEEP = "exec sleep 1000"
JOB = b"""sh -c 'echo beg""un; exec sleep 999'\n"""


def test_streams_are_apart_and_the_exit_code_is_the_programs(tasks: Tasks) -> None:
    gang = tasks.run(SLEEP)
    assert output(gang, "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    assert output(gang, "kill -TERM $$")[0] == 128 + signal.SIGTERM
    assert output(gang, "kill -KILL $$")[0] == 128 + signal.SIGKILL


def test_it_is_where_the_command_is(tasks: Tasks) -> None:
    what = """
      pwd; id -u; umask; ulimit -n; ulimit -u; cat /proc/self/cgroup; echo "$SECRET $HOME $PATH"; hostname
      grep -E 'NoNewPrivs|^Cap|Seccomp:' /proc/self/status; cat /proc/self/oom_score_adj
      for kind in cgroup ipc mnt net pid user uts; do readlink /proc/self/ns/$kind; done
    """
    gang = tasks.run(f"({what}) > seen 2>&1; touch done; exec sleep 1000", SECRET="hunter2")
    code, out, _ = output(
        gang,
        f"until test -e done; do sleep 0.02; done; cat seen > before; ({what}) > seen 2>&1; "
        "diff before seen && echo same",
    )
    assert (code, out) == (0, b"same\n")


def test_what_is_written_to_it_reaches_it_and_ends(tasks: Tasks) -> None:
    gang = tasks.run(SLEEP)
    with entering(gang, "sh", "-c", "cat; echo over") as entered:
        os.write(entered.stdin, b"some input")
        os.close(entered.stdin)
        entered.stdin = -1
        assert read_all(entered.stdout) == b"some inputover\n"
        assert wait_ended(entered) == 0


def test_a_terminal_is_one(tasks: Tasks) -> None:
    gang = tasks.run(SLEEP)
    script = (
        'tty; stty size; trap "stty size" WINCH; echo ready; while ! read -t 0.1 line; do :; done; echo "got $line"'
    )
    with entering(gang, "bash", "-c", script, terminal=(24, 80), environment={"TERM": "dumb"}) as entered:
        first = read_all(entered.terminal, b"ready")
        assert b"/dev/pts/" in first
        assert b"24 80" in first
        fcntl.ioctl(entered.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 132, 0, 0))
        assert b"50 132" in read_all(entered.terminal, b"50 132")
        os.write(entered.terminal, b"typed\n")
        assert b"got typed" in read_all(entered.terminal)
        assert wait_ended(entered) == 0


def test_job_control_and_interrupts_work(tasks: Tasks) -> None:
    gang = tasks.run(SLEEP)
    with entering(gang, "bash", "--norc", "-i", terminal=(24, 80), environment={"PS1": "$ "}) as entered:
        assert b"no job control" not in read_all(entered.terminal, b"$ ")
        shell = os.tcgetpgrp(entered.terminal)
        os.write(entered.terminal, JOB)
        read_all(entered.terminal, b"begun")
        os.write(entered.terminal, b"\x1a")  # Ctrl-Z
        read_all(entered.terminal, b"Stopped")
        os.write(entered.terminal, b"fg\n")
        wait_for(lambda: os.tcgetpgrp(entered.terminal) != shell)
        os.write(entered.terminal, b"\x03")  # Ctrl-C
        read_all(entered.terminal, b"$ ")
        os.write(entered.terminal, b"exit 5\n")
        assert wait_ended(entered) == 5


@pytest.mark.parametrize("terminal", [(24, 80), None])
def test_who_is_left_alone_is_hung_up(tasks: Tasks, terminal: tuple[int, int] | None) -> None:
    gang = tasks.run(SLEEP)
    entered = gang.tasks["t0"].enter(["bash", "-c", "echo ready; exec sleep 1001"], terminal=terminal)
    try:
        read_all(entered.terminal if terminal else entered.stdout, b"ready")
        ended = os.dup(entered.ended)
        gang.tasks["t0"].hang_up(entered)
    finally:
        entered.close()
    assert select.select([ended], [], [], PATIENCE)[0]
    os.close(ended)
    assert entered.code == 128 + signal.SIGHUP
    assert gang.tasks["t0"].poll() is None


def test_it_ends_with_the_task(tasks: Tasks) -> None:
    gang = tasks.run("read -r _ < <(sleep 1002) ; exit 3")
    with entering(gang, "bash", "-c", "trap '' HUP TERM; echo ready; sleep 1003", terminal=(24, 80)) as entered:
        read_all(entered.terminal, b"ready")
        gang.tasks["t0"].kill()
        assert wait_ended(entered) == 128 + signal.SIGKILL
        assert entered.with_the_task
    assert gang.tasks["t0"].wait(PATIENCE) == 128 + signal.SIGKILL
    with pytest.raises(ConflictError, match="ended"):
        gang.tasks["t0"].enter(["true"])


def test_before_the_command_nothing_runs(tasks: Tasks) -> None:
    gang = tasks.prepare(SLEEP)
    with pytest.raises(ConflictError, match="has not been started"):
        gang.tasks["t0"].enter(["true"])
    with pytest.raises(ConflictError, match="has not been started"):
        gang.tasks["t0"].connect(80)


def test_what_is_not_there_is_told(tasks: Tasks) -> None:
    gang = tasks.run(SLEEP)
    with entering(gang, "no-such-program") as entered:
        assert b"command not found: no-such-program" in read_all(entered.stderr)
        assert wait_ended(entered) == 127


def test_many_at_a_time(tasks: Tasks) -> None:
    gang = tasks.run(SLEEP)
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(entering(gang, "sh", "-c", f"cat; exit {n}")) for n in range(20)]
        for entered in running:
            os.close(entered.stdin)
            entered.stdin = -1
        assert [wait_ended(entered) for entered in running] == list(range(20))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        assert output(gang, "true")[0] == 0
    assert len(os.listdir("/proc/self/fd")) == before


SERVER = """
exec python3 - <<'END'
import os, socket, threading
def listen(family, address, kind, port):
    made = socket.socket(family, kind)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, port))
    if kind == socket.SOCK_STREAM:
        made.listen(16)
    return made
base = int(os.environ["BASE"])
tcp = {port: listen(socket.AF_INET, address, socket.SOCK_STREAM, port)
       for port, address in ((base, "127.0.0.1"), (base + 1, "0.0.0.0"))}
tcp[base + 2] = listen(socket.AF_INET6, "::1", socket.SOCK_STREAM, base + 2)
udp = listen(socket.AF_INET, "127.0.0.1", socket.SOCK_DGRAM, base)
def serve(port, listener):
    while True:
        peer, _ = listener.accept()
        data = b""
        while piece := peer.recv(65536):
            data += piece
        peer.sendall(b"%d %d" % (port, len(data)))
        peer.close()
for item in tcp.items():
    threading.Thread(target=serve, args=item, daemon=True).start()
open("listening", "w").close()
while True:
    data, who = udp.recvfrom(65536)
    udp.sendto(b"udp " + data, who)
END
"""


def free_ports() -> int:
    """The first of three ports that nobody has, and that nobody is given who asks for any."""
    while True:
        base = random.randrange(15_000, 30_000, 4)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in (base, base + 1, base + 2):
                for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")):
                    made = stack.enter_context(socket.socket(family))
                    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    made.bind((address, port))
            return base


def test_ports_are_those_of_the_task(tasks: Tasks) -> None:
    base = free_ports()
    gang = tasks.run(SERVER, SLEEP, BASE=str(base))
    assert output(gang, "until test -e listening; do sleep 0.02; done")[0] == 0
    for port in (base, base + 1, base + 2):
        with gang.tasks["t0"].connect(port) as peer:
            peer.sendall(b"x" * 100_000)
            peer.shutdown(socket.SHUT_WR)
            assert peer.recv(100) == b"%d 100000" % port
    with gang.tasks["t0"].connect(base, udp=True) as peer:
        peer.send(b"ping")
        assert peer.recv(100) == b"udp ping"
    with pytest.raises(NotFoundError, match=f"nothing listens on port {base + 3} of task t0"):
        gang.tasks["t0"].connect(base + 3)
    if tasks.mode == "bubblewrap":
        with pytest.raises(NotFoundError):
            gang.tasks["t1"].connect(base)
        with socket.socket() as outside:
            assert outside.connect_ex(("127.0.0.1", base)) == errno.ECONNREFUSED


def test_rights_of_root_can_be_left_out(tasks: Tasks) -> None:
    gang = tasks.run(SLEEP)
    code, out, err = output(gang, "id -u; touch made && rm made && echo fine", as_user=True)
    assert code == 0, err
    assert out.split()[-1] == b"fine"
