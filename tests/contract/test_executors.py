"""What every executor must do: the contract of ``ports.Executor``.

The suite runs with each executor that this machine has; run by root, it runs once more as a user without privileges,
with what the sandboxes do on top of it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from casstore.errors import ServiceError, UsageError
from casstore_orchestrator.executors.running import MAX_LINE
from casstore_orchestrator.ports import PlacedFile
from tests.contract.executors import (
    EXECUTORS,
    PATIENCE,
    Group,
    a_marker,
    eventually,
    groups,
    left_in_control_groups,
    processes_with,
    wait_for_file,
)

NOBODY = 65534
SUITE = [str(Path(__file__).with_name(name)) for name in ("test_executors.py", "test_sandboxes.py", "test_entering.py")]

group = groups(*EXECUTORS)
local = groups("bubblewrap", "plain")


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_exit_codes_are_those_of_the_command(group: Group, code: int) -> None:
    assert group.run("t", f"exit {code}")[0] == code


@pytest.mark.parametrize(("name", "code"), [("KILL", 137), ("TERM", 143), ("SEGV", 139)])
def test_a_signal_becomes_128_plus_its_number(group: Group, name: str, code: int) -> None:
    assert group.run("t", f"kill -{name} $$")[0] == code


def test_a_missing_command_is_named(group: Group) -> None:
    code, lines = group.run("t", "", argv=("no-such-command-anywhere", "x"))
    assert code == 127
    said = b"\n".join([*lines, *group.log.of("t", "osmo")])
    assert b"no-such-command-anywhere" in said
    assert b"not found" in said


def test_a_missing_interpreter_and_a_data_file_are_told_apart(local: Group) -> None:
    file = PlacedFile("/tmp/broken", b"#!/no/such/interpreter\n")
    assert local.run("a", "", argv=("/tmp/broken",), files=(file,))[0] == 127
    assert any(b"interpreter" in line for line in local.log.of("a", "osmo"))
    file = PlacedFile("/tmp/data", b"x", mode=0o644)
    assert local.run("b", "", argv=("/tmp/data",), files=(file,))[0] in {126, 0, 127}
    assert any(b"can't be run" in line for line in local.log.of("b", "osmo"))


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
    assert {b"PATH", b"HOME", b"HOSTNAME"} <= seen.keys()


def test_without_an_image_names_and_words_are_those_of_any_machine(local: Group) -> None:
    assert local.run("t", "echo $LANG") == (0, [b"C.UTF-8"])


def test_the_osmo_command_is_the_last_resort_of_path(local: Group) -> None:
    code, lines = local.run("t", "command -v osmo", environment={"PATH": "/usr/bin:/bin"})
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
    lines.remove(b"to stderr")  # an engine carries the two apart: which comes first is nobody's promise
    assert lines[:2] == [b"\xff\x00\xfe binary", b""]
    assert lines[-1] == b"no newline at the end"
    assert b"".join(lines[2:-1]) == b"x" * 200_000
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
    script = f"echo run >> {group.scratch}/count; cat {group.scratch}/count; touch {layout.output}/up; sleep 600"
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
    script = f"test -e {group.scratch}/old && exit 1; touch {group.scratch}/old; exit 7"
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


FOLLOWED = """
import sys
from pathlib import Path
from tests.contract.executors import Group

mode, folder, key, marker = sys.argv[1:]
group = Group(mode, Path(folder), key=key)
script = f"(setsid sleep {marker} &) ; touch {{}}/up; sleep {marker}"
launches = []
for name in ("a", "b"):
    output = group.executor.layout(group.base / name).output
    launches.append(group.launch(name, script.format(output), memory=1 << 28))
gang = group.prepare(*launches)
print(getattr(gang, "_process", None) and gang._process.pid or 0, flush=True)
gang.release()
gang.tasks["a"].wait()
"""


def test_nothing_survives_the_death_of_the_server(group: Group) -> None:
    marker = a_marker()
    told = [sys.executable, "-c", FOLLOWED, group.mode, str(group.folder), group.key, marker]
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    server = subprocess.Popen(told, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert server.stdout is not None
    with server.stdout as lines:
        try:
            supervisor = int(lines.readline())
            for name in "ab":
                wait_for_file(group.base / name / "data/output/up")
            assert eventually(lambda: len(processes_with(marker)) >= 4)
        finally:
            server.kill()
            server.wait()
    assert eventually(lambda: processes_with(marker) == [])
    assert eventually(lambda: group.left() == [])
    if supervisor:
        assert eventually(lambda: not Path(f"/proc/{supervisor}").exists())
        assert left_in_control_groups(supervisor) == []


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
