"""What the sandboxes do beyond the contract of all executors: isolation, names, limits, and lesser kernels."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from casstore.errors import ServiceError
from casstore_orchestrator.executors import process, sandbox
from casstore_orchestrator.executors.probe import probe
from casstore_orchestrator.executors.process import ProcessExecutor
from casstore_orchestrator.ports import PlacedFile
from tests.contract.executors import (
    PATIENCE,
    Group,
    a_marker,
    eventually,
    groups,
    left_in_control_groups,
    processes_with,
    wait_for_file,
)

sandboxed = groups("bubblewrap")


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


# --- on a lesser kernel ---


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
