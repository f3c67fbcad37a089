"""What every way of running a group must do, and what the sandboxed ones must do on top.

The suite runs in every mode that this machine has; run by root, it runs once more as a user without privileges.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from casstore.errors import ServiceError, UsageError
from casstore_orchestrator.executors import process, sandbox
from casstore_orchestrator.executors.probe import probe
from casstore_orchestrator.executors.process import ProcessExecutor
from casstore_orchestrator.executors.running import MAX_LINE, ProcessGang
from casstore_orchestrator.ports import PlacedFile, TaskLaunch
from casstore_orchestrator.testing import LinesSink

PATIENCE = 60.0
NOBODY = 65534
SUITE = [__file__, str(Path(__file__).with_name("test_entering.py"))]


@dataclass
class Group:
    """Builds launches below one folder and closes what a test has opened."""

    executor: ProcessExecutor
    mode: str
    base: Path
    log: LinesSink
    gangs: list[ProcessGang]

    def launch(
        self,
        name: str,
        script: str,
        *,
        environment: dict[str, str] | None = None,
        files: tuple[PlacedFile, ...] = (),
        memory: int = 0,
        storage: int = 0,
        home: str | None = None,
        argv: tuple[str, ...] = ("bash", "/tmp/run.sh"),
        read_only_inputs: bool = False,
    ) -> TaskLaunch:
        body = textwrap.dedent(script).encode()
        return TaskLaunch(
            name=name,
            argv=argv,
            environment=environment or {},
            files=(PlacedFile("/tmp/run.sh", body), *files),
            home=self.base / (home or name),
            cpu=1.0,
            memory=memory,
            storage=storage,
            gpu=0,
            read_only_inputs=read_only_inputs,
        )

    def prepare(self, *launches: TaskLaunch, key: str = "group") -> ProcessGang:
        gang = self.executor.prepare(key, launches, self.log)
        self.gangs.append(gang)
        return gang

    def run(self, name: str, script: str, **options: object) -> tuple[int | None, list[bytes]]:
        gang = self.prepare(self.launch(name, script, **options))  # type: ignore[arg-type]  # passed on as they are
        gang.release()
        code = gang.tasks[name].wait(PATIENCE)
        gang.close()
        return code, self.log.of(name)


def modes() -> list[object]:
    machine = probe()
    why = "; ".join(machine.reasons)
    sandboxed = pytest.param("bubblewrap", marks=pytest.mark.skipif(not machine.sandbox, reason=why))
    return [sandboxed, "plain"]


def make_group(mode: str, tmp_path: Path) -> Iterator[Group]:
    gangs: list[ProcessGang] = []
    executor = ProcessExecutor(mode=mode, hidden=[tmp_path / "hidden"])  # type: ignore[arg-type]  # one of the two
    yield Group(executor, mode, tmp_path / "tasks", LinesSink(), gangs)
    for gang in gangs:
        gang.close()


@pytest.fixture(params=modes())
def group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Group]:
    yield from make_group(request.param, tmp_path)


@pytest.fixture(params=modes()[:1])
def sandboxed(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Group]:
    yield from make_group(request.param, tmp_path)


def processes_with(marker: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):
                if marker.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                    found.append(int(entry))
    return found


def eventually(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def wait_for_file(path: Path) -> None:
    assert eventually(path.exists), f"{path} did not appear"


def a_marker() -> str:
    """A number of seconds to sleep that no other process sleeps."""
    return f"98{uuid.uuid4().int % 10**9:09d}"


def left_in_control_groups(pid: int) -> list[str]:
    bases = probe().bases
    found = []
    for base in {bases.memory, bases.cpu} - {""}:
        found += [name for name in os.listdir(base) if name.startswith(f"casstore-{pid}-")]
    return found


# --- every mode ---


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_codes_are_those_of_the_command(group: Group, code: int) -> None:
    assert group.run("t", f"exit {code}")[0] == code


@pytest.mark.parametrize(("name", "code"), [("KILL", 137), ("TERM", 143), ("SEGV", 139)])
def test_a_signal_becomes_128_plus_its_number(group: Group, name: str, code: int) -> None:
    assert group.run("t", f"kill -{name} $$")[0] == code


def test_a_missing_command_is_named(group: Group) -> None:
    code, lines = group.run("t", "", argv=("no-such-command-anywhere", "x"))
    assert code == 127
    assert lines == []
    assert b"command not found: no-such-command-anywhere" in group.log.of("t", "osmo")


def test_a_missing_interpreter_and_a_data_file_are_told_apart(group: Group) -> None:
    file = PlacedFile("/tmp/broken", b"#!/no/such/interpreter\n")
    assert group.run("a", "", argv=("/tmp/broken",), files=(file,))[0] == 127
    assert any(b"interpreter" in line for line in group.log.of("a", "osmo"))
    file = PlacedFile("/tmp/data", b"x", mode=0o644)
    assert group.run("b", "", argv=("/tmp/data",), files=(file,))[0] in {126, 0, 127}
    assert any(b"can't be run" in line for line in group.log.of("b", "osmo"))


def test_a_script_without_first_line_runs_as_a_shell_would_run_it(group: Group) -> None:
    file = PlacedFile("/tmp/plain", b"echo from a plain script\n")
    assert group.run("t", "", argv=("/tmp/plain",), files=(file,)) == (0, [b"from a plain script"])


def test_the_environment_is_clean(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_OF_THE_SERVER", "hunter2")
    code, lines = group.run("t", "env", environment={"MINE": "a b\tc"})
    seen = dict(line.split(b"=", 1) for line in lines if b"=" in line)
    assert code == 0
    assert b"A_SECRET_OF_THE_SERVER" not in seen
    assert seen[b"MINE"] == b"a b\tc"
    assert seen[b"NVIDIA_VISIBLE_DEVICES"] == b""
    assert seen[b"LANG"] == b"C.UTF-8"
    assert {b"PATH", b"HOME", b"HOSTNAME"} <= seen.keys()


def test_the_osmo_command_is_the_last_resort_of_path(group: Group) -> None:
    code, lines = group.run("t", "command -v osmo", environment={"PATH": "/usr/bin:/bin"})
    assert code == 0
    assert lines[0].endswith(b"/bin/osmo")


def test_inputs_are_seen_and_outputs_arrive(group: Group) -> None:
    home = group.base / "t"
    layout = group.executor.layout(home)
    (home / "data/input/0").mkdir(parents=True)
    (home / "data/input/0/in.txt").write_text("data")
    code, _ = group.run("t", f"cat {layout.input}/0/in.txt > {layout.output}/out.txt")
    assert code == 0
    assert (home / "data/output/out.txt").read_text() == "data"


def test_the_command_holds_no_descriptor_of_ours(group: Group) -> None:
    code, lines = group.run(
        "t", "", argv=("python3", "-c", "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))")
    )
    assert (code, lines) == (0, [b"[0, 1, 2, 3]"])  # the last one is the listing itself


def test_files_are_in_place_with_mode_and_bytes(group: Group) -> None:
    body = bytes(range(256)) * 300
    files = (PlacedFile("/tmp/deep/down/blob", body, 0o640), PlacedFile("/tmp/tool.py", b"print('tool')\n", 0o755))
    layout = group.executor.layout(group.base / "t")
    script = f"stat -c %a /tmp/deep/down/blob; cp /tmp/deep/down/blob {layout.output}/copy; python3 /tmp/tool.py"
    code, lines = group.run("t", script, files=files)
    assert code == 0
    assert lines == [b"640", b"tool"]
    assert (group.base / "t/data/output/copy").read_bytes() == body


def test_nothing_runs_before_the_release(group: Group) -> None:
    gang = group.prepare(group.launch("a", "echo ran"), group.launch("b", "echo ran"))
    assert gang.tasks["a"].poll() is None
    assert group.log.of("a") == []
    gang.close()
    assert [gang.tasks[name].poll() for name in "ab"] == [137, 137]
    assert group.log.of("a") == group.log.of("b") == []


def test_one_task_can_be_released_alone(group: Group) -> None:
    gang = group.prepare(group.launch("a", "echo a"), group.launch("b", "echo b"))
    gang.release_task("b")
    assert gang.tasks["b"].wait(PATIENCE) == 0
    assert group.log.of("a") == []
    gang.release()
    assert gang.tasks["a"].wait(PATIENCE) == 0


def test_isolation_is_told_in_every_log(group: Group) -> None:
    group.run("t", "true")
    told = b"\n".join(group.log.of("t", "osmo")).decode()
    isolation = group.executor.describe()
    assert isolation.mode == group.mode
    assert isolation.reasons
    for lack in isolation.lacks:
        assert lack in told


def test_background_processes_end_with_the_command(group: Group) -> None:
    marker = a_marker()
    layout = group.executor.layout(group.base / "t")
    script = f"""
        sleep {marker} &
        setsid sleep {marker} > /dev/null 2>&1 &
        ( ( nohup setsid sh -c 'touch {layout.output}/up; sleep {marker}; true' > /dev/null 2>&1 & ) & )
        while [ ! -e {layout.output}/up ]; do sleep 0.05; done
        exit 5
    """
    assert group.run("t", script)[0] == 5
    assert processes_with(marker) == []


def test_kill_gives_the_command_its_grace(group: Group) -> None:
    layout = group.executor.layout(group.base / "t")
    script = f"""
        trap 'echo saved; exit 9' TERM
        touch {layout.output}/up
        while true; do sleep 0.05; done
    """
    gang = group.prepare(group.launch("t", script))
    gang.release()
    wait_for_file(group.base / "t/data/output/up")
    gang.tasks["t"].kill(grace=PATIENCE)
    assert gang.tasks["t"].wait(PATIENCE) == 9
    assert b"saved" in group.log.of("t")


def test_kill_ends_what_ignores_it(group: Group) -> None:
    marker = a_marker()
    layout = group.executor.layout(group.base / "t")
    script = f"trap '' TERM; touch {layout.output}/up; while true; do sleep {marker}; done"
    gang = group.prepare(group.launch("t", script))
    gang.release()
    wait_for_file(group.base / "t/data/output/up")
    gang.tasks["t"].kill(grace=0.2)
    assert gang.tasks["t"].wait(PATIENCE) == 137
    assert processes_with(marker) == []


def test_none_starts_when_one_launch_is_wrong(group: Group) -> None:
    good = group.launch("good", "true")
    for bad, what in (
        (replace(good, name="bad", argv=()), "no command"),
        (replace(good, name="bad", environment={"A": "x" * 200_000}), "environment variable A"),
        (replace(good, name="bad", argv=("a\0b",)), "NUL"),
        (replace(good, name="bad\nevil 10.0.0.1", home=group.base / "b"), "host name"),
        (replace(good, name="good", home=group.base / "b"), "twice"),
        (replace(good, name="bad", files=(PlacedFile("relative", b""),)), "absolute"),
        (replace(good, name="bad", files=(PlacedFile("/tmp/../etc/x", b""),)), "'..'"),
        (replace(good, name="bad", files=(PlacedFile("/proc/x", b""),)), "belongs to the system"),
    ):
        with pytest.raises(UsageError, match=what):
            group.executor.prepare("group", [good, bad], group.log)
    assert not group.base.exists()


def test_none_starts_when_one_can_not_be_prepared(group: Group) -> None:
    marker = a_marker()
    layout = group.executor.layout(group.base / "good")
    good = group.launch("good", f"touch {layout.output}/ran; sleep {marker}")
    in_the_way = (PlacedFile("/tmp/file", b""), PlacedFile("/tmp/file/below", b""))
    bad = group.launch("bad", f"sleep {marker}", files=in_the_way)
    before = set(threading.enumerate())
    with pytest.raises(ServiceError, match="task bad can't be prepared: can't put the file"):
        group.executor.prepare("group", [good, bad], group.log)
    assert not (group.base / "good/data/output/ran").exists()
    assert processes_with(marker) == []
    assert processes_with(str(group.base)) == []
    assert set(threading.enumerate()) == before


def test_a_home_that_can_not_be_made_is_an_error(group: Group) -> None:
    group.base.parent.mkdir(exist_ok=True)
    group.base.write_text("a file where the folder should be")
    with pytest.raises(ServiceError, match="folder of a task"):
        group.executor.prepare("group", [group.launch("t", "true")], group.log)


def test_a_hundred_thousand_lines_arrive_complete_and_in_order(group: Group) -> None:
    code, lines = group.run("t", "seq 1 100000")
    assert code == 0
    assert lines == [str(number).encode() for number in range(1, 100_001)]


def test_odd_output_survives(group: Group) -> None:
    script = r"""
        printf 'to stderr\n' >&2
        printf '\xff\x00\xfe binary\n\n'
        head -c 200000 /dev/zero | tr '\0' x; echo
        printf 'no newline at the end'
    """
    code, lines = group.run("t", script)
    assert code == 0
    assert lines[:3] == [b"to stderr", b"\xff\x00\xfe binary", b""]
    assert lines[-1] == b"no newline at the end"
    assert b"".join(lines[3:-1]) == b"x" * 200_000
    assert max(map(len, lines)) == MAX_LINE


def test_a_flood_can_be_stopped(group: Group) -> None:
    gang = group.prepare(group.launch("t", "exec yes"))
    gang.release()
    assert eventually(lambda: len(group.log.lines) > 1000)
    gang.tasks["t"].kill()
    assert gang.tasks["t"].wait(PATIENCE) == 137


def test_a_sink_that_fails_does_not_stop_the_task(group: Group, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def write(self, task: str, text: bytes, *, source: str = "") -> None:
            raise RuntimeError("no space")

    with caplog.at_level("CRITICAL"):
        gang = group.executor.prepare("group", [group.launch("t", "echo x; exit 4")], Broken())
        group.gangs.append(gang)
        gang.release()
        assert gang.tasks["t"].wait(PATIENCE) == 4


def test_restart_in_place_keeps_files(group: Group) -> None:
    layout = group.executor.layout(group.base / "t")
    scratch = "/tmp" if group.mode == "bubblewrap" else "$TMPDIR"
    script = f"echo run >> {scratch}/count; cat {scratch}/count; touch {layout.output}/up; sleep 600"
    gang = group.prepare(group.launch("t", script), group.launch("peer", "sleep 600"))
    gang.release()
    wait_for_file(group.base / "t/data/output/up")
    first, peer = gang.tasks["t"], gang.tasks["peer"]
    (group.base / "t/data/output/up").unlink()
    second = gang.restart(group.launch("t", script))
    assert first.poll() == 137
    assert second.poll() is None
    assert gang.tasks["t"] is second
    assert not (group.base / "t/data/output/up").exists()
    gang.release_task("t")
    wait_for_file(group.base / "t/data/output/up")
    assert peer.poll() is None
    gang.close()
    assert group.log.of("t") == [b"run", b"run", b"run"]


def test_a_new_attempt_starts_from_nothing(group: Group) -> None:
    scratch = "/tmp" if group.mode == "bubblewrap" else "$TMPDIR"
    script = f"test -e {scratch}/old && exit 1; touch {scratch}/old; exit 7"
    gang = group.prepare(group.launch("t", script))
    gang.release()
    assert gang.tasks["t"].wait(PATIENCE) == 7
    gang.restart(group.launch("t", script, home="t-1"))
    gang.release()
    assert gang.tasks["t"].wait(PATIENCE) == 7


def test_a_restart_that_can_not_be_prepared_leaves_the_group_usable(group: Group) -> None:
    gang = group.prepare(group.launch("t", "exit 1"), group.launch("peer", "sleep 600"))
    gang.release()
    assert gang.tasks["t"].wait(PATIENCE) == 1
    in_the_way = (PlacedFile("/tmp/file", b""), PlacedFile("/tmp/file/below", b""))
    with pytest.raises(ServiceError, match="can't put the file"):
        gang.restart(group.launch("t", "true", home="t-1", files=in_the_way))
    assert gang.tasks["peer"].poll() is None
    gang.restart(group.launch("t", "exit 2", home="t-2"))
    gang.release_task("t")
    assert gang.tasks["t"].wait(PATIENCE) == 2


def test_more_storage_than_asked_for_ends_a_task(group: Group) -> None:
    layout = group.executor.layout(group.base / "big")
    script = f"head -c 33554432 /dev/zero > {layout.output}/big; sleep 600"
    within = f"head -c 1048576 /dev/zero > {layout.output.replace('big', 'small')}/fits; sleep 600"
    gang = group.prepare(group.launch("big", script, storage=16 << 20), group.launch("small", within, storage=16 << 20))
    gang.release()
    assert gang.tasks["big"].wait(PATIENCE) == 137
    assert "more storage than its limit of 16Mi" in gang.tasks["big"].evicted
    assert gang.tasks["small"].poll() is None
    assert any(b"more storage" in line for line in group.log.of("big", "osmo"))


def test_close_is_idempotent_and_final(group: Group) -> None:
    marker = a_marker()
    gang = group.prepare(group.launch("a", f"sleep {marker}"), group.launch("b", f"sleep {marker}"))
    gang.release()
    gang.close()
    gang.close()
    assert [task.poll() for task in gang.tasks.values()] == [137, 137]
    assert processes_with(marker) == []
    gang.tasks["a"].kill()


def test_secrets_are_not_in_any_command_line(group: Group) -> None:
    secret = uuid.uuid4().hex
    gang = group.prepare(group.launch("t", "sleep 600", environment={"TOKEN": secret}))
    gang.release()
    assert eventually(lambda: gang.tasks["t"].started_ns is not None)
    assert processes_with(secret) == []


SUPERVISED = """
import sys
from pathlib import Path
from casstore_orchestrator.executors.process import ProcessExecutor
from casstore_orchestrator.ports import PlacedFile, TaskLaunch
from casstore_orchestrator.testing import LinesSink

class Sink:
    def write(self, task, text, *, source=""):
        if not source:
            print(text.decode(), flush=True)

mode, base, marker = sys.argv[1:]
script = f"(setsid sleep {marker} &) ; echo up; sleep {marker}".encode()
files = (PlacedFile("/tmp/run.sh", script),)
launches = [
    TaskLaunch(name, ("bash", "/tmp/run.sh"), {}, files, Path(base) / name, 1, 1 << 28, 0)
    for name in ("a", "b")
]
gang = ProcessExecutor(mode=mode).prepare("g", launches, Sink())
print(getattr(gang, "_process", None) and gang._process.pid or 0, flush=True)
gang.release()
gang.tasks["a"].wait()
"""


def test_nothing_survives_the_death_of_the_server(group: Group) -> None:
    marker = a_marker()
    server = subprocess.Popen(
        [sys.executable, "-c", SUPERVISED, group.mode, str(group.base), marker], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    with server.stdout as lines:
        try:
            supervisor = int(lines.readline())
            assert [lines.readline(), lines.readline()] == ["up\n", "up\n"]
            assert eventually(lambda: len(processes_with(marker)) >= 4)
        finally:
            server.kill()
            server.wait()
    assert eventually(lambda: processes_with(marker) == [])
    if supervisor:
        assert eventually(lambda: not Path(f"/proc/{supervisor}").exists())
        assert left_in_control_groups(supervisor) == []


# --- sandboxed ---


def test_all_tasks_listen_on_the_same_port_and_find_each_other_by_name(sandboxed: Group) -> None:
    script = """
        mkdir -p /tmp/www && cd /tmp/www && hostname > me
        python3 -m http.server 8080 > /dev/null 2>&1 &
        for peer in $PEERS; do
            for try in $(seq 600); do curl -sf http://$peer:8080/me && break; sleep 0.1; done
        done
        touch /osmo/data/output/done; sleep 600
    """
    names = ["Physics_Sim", "policy", "edge-0"]
    peers = {"Physics_Sim": "policy edge-0", "policy": "Physics_Sim physics-sim edge-0", "edge-0": "policy physics_sim"}
    hosts = [sandboxed.executor.host("group", name) for name in names]
    assert hosts == names
    gang = sandboxed.prepare(*(sandboxed.launch(n, script, environment={"PEERS": peers[n]}) for n in names))
    gang.release()
    for name in names:
        wait_for_file(sandboxed.base / name / "data/output/done")
    gang.close()
    assert sandboxed.log.of("Physics_Sim") == [b"policy", b"edge-0"]
    assert sandboxed.log.of("policy") == [b"Physics_Sim", b"Physics_Sim", b"edge-0"]
    assert sandboxed.log.of("edge-0") == [b"policy", b"Physics_Sim"]


def test_a_robot_simulation_ends_with_its_lead(sandboxed: Group) -> None:
    server = """
        apt-get install -y curl > /dev/null 2>&1 || true
        mkdir -p /tmp/state && echo '{"state": "'$ROLE'"}' > /tmp/state/index.json && cd /tmp/state
        while true; do python3 -m http.server 8080; done
    """
    lead = """
        for role in physics-sim policy; do
            until curl -sf http://$role:8080/index.json > /tmp/answer; do sleep 0.1; done
            cat /tmp/answer | tee -a /osmo/data/output/trace.jsonl
        done
    """
    gang = sandboxed.prepare(
        sandboxed.launch("robot", lead),
        sandboxed.launch("physics-sim", server, environment={"ROLE": "physics"}),
        sandboxed.launch("policy", server, environment={"ROLE": "policy"}),
    )
    gang.release()
    assert gang.tasks["robot"].wait(PATIENCE) == 0
    assert gang.tasks["policy"].poll() is None
    gang.tasks["policy"].kill(grace=1)
    gang.tasks["physics-sim"].kill()
    assert gang.tasks["policy"].wait(PATIENCE) == 143
    assert gang.tasks["physics-sim"].wait(PATIENCE) == 137
    trace = (sandboxed.base / "robot/data/output/trace.jsonl").read_text().splitlines()
    assert [json.loads(line)["state"] for line in trace] == ["physics", "policy"]


def test_groups_do_not_see_each_other(sandboxed: Group, tmp_path: Path) -> None:
    script = """
        echo $WHO > /tmp/who; cd /tmp; python3 -m http.server 8080 > /dev/null 2>&1 &
        until curl -sf http://peer:8080/who; do sleep 0.1; done
        touch /osmo/data/output/done; sleep 600
    """
    for key in ("one", "two"):
        launches = [
            sandboxed.launch(name, script, environment={"WHO": f"{key}-{name}"}, home=f"{key}/{name}")
            for name in ("me", "peer")
        ]
        sandboxed.prepare(*launches, key=key)
    for gang in sandboxed.gangs:
        gang.release()
    for key in ("one", "two"):
        wait_for_file(sandboxed.base / key / "me/data/output/done")
        wait_for_file(sandboxed.base / key / "peer/data/output/done")
    deadline = time.monotonic() + PATIENCE
    while len(sandboxed.log.of("me")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)  # the last line may still be on its way
    assert sorted(sandboxed.log.of("me")) == [b"one-peer", b"two-peer"]


def test_a_restarted_task_is_found_under_its_name_as_before(sandboxed: Group) -> None:
    serve = "mkdir /tmp/www; cd /tmp/www; echo $N > n; exec python3 -m http.server 8080 2> /dev/null"
    ask = """
        until [ "$(curl -s -m 5 http://server:8080/n)" = 1 ]; do sleep 0.1; done
        touch /osmo/data/output/one
        until [ "$(curl -s -m 5 http://server:8080/n)" = 2 ]; do sleep 0.1; done
    """
    gang = sandboxed.prepare(sandboxed.launch("server", serve, environment={"N": "1"}), sandboxed.launch("client", ask))
    gang.release()
    wait_for_file(sandboxed.base / "client/data/output/one")
    gang.restart(sandboxed.launch("server", serve, environment={"N": "2"}, home="server-1"))
    gang.release_task("server")
    assert gang.tasks["client"].wait(PATIENCE) == 0


def test_the_outside_is_not_reachable(sandboxed: Group) -> None:
    sandboxed.executor = ProcessExecutor(mode="bubblewrap", egress=False)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(sandboxed.base.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/"
            script = (
                f"curl -s -m 10 {url}; echo $?; curl -s -m 10 http://192.0.2.1/; echo $?; ls /sys/class/net > /dev/null"
            )
            code, lines = sandboxed.run("t", script)
        finally:
            server.shutdown()
            thread.join()
    assert (code, lines) == (0, [b"7", b"7"])
    reasons = sandboxed.executor.describe().reasons
    assert any("nothing outside the group can be reached" in reason for reason in reasons)


def test_tmp_processes_and_host_name_are_private(sandboxed: Group, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("x")
    # The folder that our own interpreter is in is shown, and that may be a folder below /tmp.
    shown = {Path(path).relative_to("/tmp").parts[0] for path in (sys.prefix, __file__) if path.startswith("/tmp/")}
    without = "".join(f" | grep -vx {name}" for name in shown)
    script = f"""
        hostname; test -e {outside} && echo leaked; ls /tmp{without}; ls /var/tmp
        echo x > /tmp/{outside.name}.mine; mkdir -p /tmp/x /var/tmp/x; ls -d /proc/[0-9]* | wc -l
    """
    code, lines = sandboxed.run("My-Task", script)
    assert code == 0
    assert lines[:2] == [b"My-Task", b"run.sh"]
    assert int(lines[2]) < 10
    assert not Path(f"/tmp/{outside.name}.mine").exists()


def test_homes_and_secrets_are_hidden(sandboxed: Group, tmp_path: Path, isolated_home: Path) -> None:
    secrets = [isolated_home / ".ssh/id", isolated_home / ".config/osmo/config.yaml", isolated_home / ".run/socket"]
    secrets += [tmp_path / "hidden/store", sandboxed.base / "t/run/hosts", Path("/etc/shadow"), Path("/run/utmp")]
    for path in secrets[:4]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    script = "\n".join(f"cat {path} 2> /dev/null && echo SEEN {path}" for path in secrets) + "\ntrue"
    assert sandboxed.run("t", script) == (0, [])


def test_hidden_folders_outside_the_private_ones_are_hidden_too(sandboxed: Group) -> None:
    here = Path(__file__).resolve().parent
    if str(here).startswith(("/home/", "/root/", "/tmp/")):
        pytest.skip("the sources are in a folder that is never seen")
    executor = ProcessExecutor(mode="bubblewrap", hidden=[here])
    script = f"ls {here}; ls {here.parent} | grep contract"
    gang = executor.prepare("g", [sandboxed.launch("t", script)], sandboxed.log)
    sandboxed.gangs.append(gang)
    gang.release()
    assert gang.tasks["t"].wait(PATIENCE) == 0
    assert sandboxed.log.of("t") == [b"contract"]


def test_tasks_may_write_everywhere_without_a_trace_outside(sandboxed: Group) -> None:
    name = f"casstore-test-{uuid.uuid4().hex}"
    script = f"""
        set -e
        mkdir /{name}; echo x > /{name}/file; echo x > ~/{name}; cd /osmo/run/workspace; echo x > {name}
        pwd; cat /etc/{name}.conf /{name}-dir/a/b.py
        for folder in $WRITABLE; do echo x > $folder/{name}; cat $folder/{name}; done
    """
    writable = probe().writable
    files = (PlacedFile(f"/{name}-dir/a/b.py", b"placed in a new folder\n"),)
    expected = [b"/osmo/run/workspace", b"placed in /etc", b"placed in a new folder", *[b"x"] * len(writable)]
    if "/etc" in writable:
        files += (PlacedFile(f"/etc/{name}.conf", b"placed in /etc\n"),)
    else:
        script = script.replace(f"/etc/{name}.conf ", "")
        expected.remove(b"placed in /etc")
    code, lines = sandboxed.run("t", script, files=files, environment={"WRITABLE": " ".join(writable)})
    assert (code, lines) == (0, expected)
    for folder in ("/", "/etc", *writable):
        assert not [entry for entry in os.listdir(folder) if entry.startswith(name)]


def test_inputs_can_be_read_only(sandboxed: Group) -> None:
    (sandboxed.base / "t/data/input/0").mkdir(parents=True)
    script = "echo x > /osmo/data/input/0/new; echo $?"
    code, lines = sandboxed.run("t", script, read_only_inputs=True)
    assert code == 0
    assert lines[-1] == b"1"
    assert b"Read-only file system" in lines[0]
    assert sandboxed.run("t", script) == (0, [*lines, b"0"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount here")
def test_an_input_that_is_mounted_later_is_seen_by_the_next_attempt(sandboxed: Group) -> None:
    gang = sandboxed.prepare(sandboxed.launch("t", "exit 1"), sandboxed.launch("peer", "sleep 600"))
    gang.release()
    assert gang.tasks["t"].wait(PATIENCE) == 1
    point = sandboxed.base / "t-1/data/input/0"
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "casstore-test", str(point)], check=True)
    try:
        (point / "late").write_text("mounted late")
        gang.restart(sandboxed.launch("t", "cat /osmo/data/input/0/late", home="t-1", read_only_inputs=True))
        gang.release_task("t")
        assert gang.tasks["t"].wait(PATIENCE) == 0
        gang.close()
    finally:
        subprocess.run(["umount", str(point)], check=True)
    assert sandboxed.log.of("t") == [b"mounted late"]


def test_folders_that_the_host_reads_can_not_be_replaced_by_links(sandboxed: Group, tmp_path: Path) -> None:
    (sandboxed.base / "t/data/input/0").mkdir(parents=True)
    script = """
        for folder in /osmo/data/output /osmo/data/input /osmo/data/input/0 /osmo/data /osmo/run/workspace; do
            mv $folder $folder.away 2> /dev/null && ln -s / $folder && echo replaced $folder
            rmdir $folder 2> /dev/null && echo removed $folder
        done
        true
    """
    assert sandboxed.run("t", script) == (0, [])


def test_links_that_a_run_leaves_are_not_followed_at_the_restart(sandboxed: Group, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    outside = os.path.relpath(target, "/")
    script = f"""
        if [ -e /osmo/ran ]; then ls -ld /osmo/login/config | cut -c1; exit 0; fi
        touch /osmo/ran; mv /osmo/login /osmo/old; ln -s /../../../../{outside} /osmo/login
        ln -s {target} /tmp/link
    """
    gang = sandboxed.prepare(sandboxed.launch("t", script))
    gang.release()
    assert gang.tasks["t"].wait(PATIENCE) == 0
    gang.restart(sandboxed.launch("t", script, files=(PlacedFile("/tmp/sub/file", b"x"),)))
    gang.release()
    assert gang.tasks["t"].wait(PATIENCE) == 0
    assert sandboxed.log.of("t") == [b"d"]
    assert list(target.iterdir()) == []


def test_a_task_can_not_reach_the_devices_or_mounts_of_the_machine(sandboxed: Group) -> None:
    script = """
        mount -t tmpfs none /mnt 2> /dev/null && echo mounted
        mknod /tmp/disk b 8 0 2> /dev/null && echo made a device
        umount /tmp 2> /dev/null && echo unmounted
        for setting in /proc/sys/kernel/panic /proc/sys/kernel/core_pattern /proc/sys/vm/swappiness; do
            value=$(cat $setting); (echo "$value" > $setting) 2> /dev/null && echo "can write $setting"
        done
        head -c 1 /proc/kcore 2> /dev/null | wc -c | grep 1
        (echo 0 > /sys/kernel/mm/ksm/run) 2> /dev/null && echo "can write below /sys"
        ls /dev | grep -E '^(sd|vd|nvme|mem|kmsg)' ; true
    """
    code, lines = sandboxed.run("t", script)
    assert (code, lines) == (0, [])


def test_out_of_memory_is_told(sandboxed: Group) -> None:
    if not probe().bases.memory:
        pytest.skip("no memory control group is writable here")
    script = "python3 -c 'x = bytearray(400 << 20)'; echo not reached by the python >&2; exit 137"
    gang = sandboxed.prepare(
        sandboxed.launch("big", "exec python3 -c 'x = bytearray(400 << 20); print(len(x))'", memory=64 << 20),
        sandboxed.launch("child", script, memory=64 << 20),
        sandboxed.launch("small", "kill -9 $$", memory=64 << 20),
    )
    gang.release()
    assert [gang.tasks[name].wait(PATIENCE) for name in ("big", "child", "small")] == [137, 137, 137]
    assert [bool(gang.tasks[name].evicted) for name in ("big", "child", "small")] == [True, True, False]
    assert sandboxed.log.of("big") == []


def test_limits_that_can_not_be_set_are_told(sandboxed: Group) -> None:
    told = " ".join(sandboxed.executor.describe().reasons)
    assert ("control groups, version" in told) == bool(probe().bases.version)
    assert ("not limited" in told) == (not (probe().bases.memory and probe().bases.cpu))


def test_nothing_is_left_of_a_closed_group(sandboxed: Group) -> None:
    def mounts() -> list[str]:
        return sorted(line.split(" ", 4)[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())

    before, interfaces = mounts(), os.listdir("/sys/class/net")
    gang = sandboxed.prepare(sandboxed.launch("t", "sleep 600", memory=1 << 28))
    supervisor = gang._process.pid  # type: ignore[attr-defined]  # looks at what a user never sees
    gang.release()
    gang.close()
    assert mounts() == before
    assert sorted(os.listdir("/sys/class/net")) == sorted(interfaces)
    assert left_in_control_groups(supervisor) == []
    assert not Path(f"/proc/{supervisor}").exists()
    shutil.rmtree(sandboxed.base)


def test_nothing_survives_the_death_of_the_supervisor(sandboxed: Group) -> None:
    marker = a_marker()
    script = f"(setsid sleep {marker} &) ; echo up; sleep {marker}"
    launches = [sandboxed.launch(name, script, memory=1 << 28) for name in ("a", "b")]
    gang = sandboxed.prepare(*launches)
    gang.release()
    assert eventually(lambda: len(sandboxed.log.of("a") + sandboxed.log.of("b")) == 2)
    supervisor = gang._process.pid  # type: ignore[attr-defined]  # looks at what a user never sees
    os.kill(supervisor, signal.SIGKILL)
    assert [gang.tasks[name].wait(PATIENCE) for name in "ab"] == [137, 137]
    assert eventually(lambda: processes_with(marker) == [])
    assert eventually(lambda: left_in_control_groups(supervisor) == [])
    with pytest.raises(ServiceError):
        gang.restart(launches[0])
    gang.close()


def test_a_group_starts_as_one(sandboxed: Group) -> None:
    names = [f"worker-{number}" for number in range(8)]
    gang = sandboxed.prepare(*(sandboxed.launch(name, "echo up; sleep 600") for name in names))
    gang.release()
    assert eventually(lambda: all(gang.tasks[name].started_ns for name in names))
    starts = [gang.tasks[name].started_ns or 0 for name in names]
    print(f"release skew of {len(names)} tasks: {(max(starts) - min(starts)) / 1e6:.2f} ms")


# --- sandboxed, on a lesser kernel ---


def test_without_a_bridge_the_group_shares_one_network_and_says_so(
    sandboxed: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesser = replace(probe(), bridged=False)
    monkeypatch.setattr(process, "probe", lambda: lesser)
    assert not sandboxed.executor.describe().network
    serve = "mkdir /tmp/www; cd /tmp/www; echo served > n; exec python3 -m http.server 8080 2> /dev/null"
    ask = "until curl -sf http://server:8080/n; do sleep 0.1; done"
    gang = sandboxed.prepare(sandboxed.launch("server", serve), sandboxed.launch("client", ask))
    gang.release()
    assert gang.tasks["client"].wait(PATIENCE) == 0
    assert sandboxed.log.of("client") == [b"served"]


def test_without_layers_new_folders_still_work_and_old_ones_are_refused(
    sandboxed: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "layered", lambda *_, **__: [])
    name = f"casstore-test-{uuid.uuid4().hex}"
    placed = (PlacedFile(f"/{name}/file", b"placed\n"),)
    assert sandboxed.run("a", f"cat /{name}/file; mkdir /{name}2", files=placed) == (0, [b"placed"])
    refused = (PlacedFile(f"/usr/{name}", b""),)
    with pytest.raises(ServiceError, match=f"task b can't be prepared: can't put the file /usr/{name} in place"):
        sandboxed.prepare(sandboxed.launch("b", "true", files=refused))


# --- without privileges ---


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; this run has no privileges already")
def test_the_whole_suite_as_a_user_without_privileges() -> None:
    python = next((p for p in (sys.executable, "/usr/bin/python3") if usable_by_nobody(p)), None)
    if python is None:
        pytest.skip("no Python interpreter of this version that another user may run")
    # Not below pytest's own folder, which only root may enter.
    with tempfile.TemporaryDirectory(prefix="casstore-nobody-") as home:
        os.chown(home, NOBODY, NOBODY)
        done = subprocess.run(
            [python, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", f"--basetemp={home}/t", *SUITE],
            env=nobody_environment() | {"HOME": home, "TMPDIR": home},
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
    print(done.stdout[-3000:])
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]


def nobody_environment() -> dict[str, str]:
    paths = [path for path in sys.path if path and os.path.isdir(path) and not path.startswith(sys.base_prefix)]
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": ":".join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


def usable_by_nobody(python: str) -> bool:
    version = f"import sys, pytest, casstore; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    with contextlib.suppress(OSError):
        return (
            subprocess.run(
                [python, "-c", version],
                env=nobody_environment(),
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                check=False,
            ).returncode
            == 0
        )
    return False
