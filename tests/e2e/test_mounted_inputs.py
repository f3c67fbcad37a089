"""Inputs of workflows that are mounted: real sandboxes, the real kernel, real processes of mounts."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("mounts are made by Linux", allow_module_level=True)

from casstore.errors import CancelledError, StorageError
from casstore_fuse import mounted
from casstore_fuse.mounting import why_not
from casstore_fuse.records import Registry
from casstore_orchestrator.data import BucketData
from casstore_orchestrator.executors.probe import probe
from casstore_orchestrator.loader import load
from casstore_orchestrator.logs import LogStore
from casstore_orchestrator.pools import this_machine
from casstore_orchestrator.records import WorkflowRecord
from casstore_orchestrator.scheduler import Scheduler
from casstore_orchestrator.state import new_workflow
from casstore_orchestrator.status import WorkflowStatus
from casstore_orchestrator.testing import MemoryStateStore, ThreadAgents, ThreadMachine
from casstore_server.config import Watched
from casstore_server.executor import LocalExecutor
from casstore_server.mounts import ServerMounts
from casstore_server.settings import Settings
from casstore_server.stores import Stores

PATIENCE = 120.0
MISSING = why_not() or ("" if probe().sandbox else "; ".join(probe().reasons))
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"nothing can be mounted for tasks here: {MISSING}")


class Lab:
    """A server without its API, whose agents are threads."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(
            socket_path=folder / "run" / "s",
            state_dir=folder / "state",
            config_file=folder / "config" / "config.yaml",
            data_dir=folder / "data",
            cache_dir=folder / "cache",
            user="tester",
        )
        for place in ("run", "state", "config"):
            (folder / place).mkdir(parents=True, mode=0o700)
        self.settings.workflows.mkdir()
        self.watched = Watched(self.settings.config_file, self.settings.data_dir, this_machine())
        self.stores = Stores(self.watched, self.settings)
        self.records = MemoryStateStore()
        self.mounts = ServerMounts(self.settings)
        executor = LocalExecutor(self.settings, self.watched)
        data, home = BucketData(self.stores.open), self.settings.workflows
        self.machine = ThreadMachine.over(executor, data, home, file_urls=True, mounts=self.mounts)
        self.scheduler = self.begin()

    def begin(self) -> Scheduler:
        executor, agents = self.machine.services.executor, ThreadAgents(self.machine)
        scheduler = Scheduler(
            self.records, agents, self.watched.pools, LogStore(self.settings.workflows), host=executor.host
        )
        scheduler.start()
        return scheduler

    def close(self) -> None:
        self.scheduler.stop()
        self.machine.close()
        self.mounts.close()
        self.stores.close()
        assert self.points() == []

    def upload(self, name: str, source: Path) -> None:
        self.stores.open(None, "tester").upload(name, [f"{source}/*"])

    def submit(self, text: str) -> str:
        spec = load(text).spec
        pool = self.watched.pools()["default"]
        return self.scheduler.submit(new_workflow(spec, uuid=uuid.uuid4().hex, user="tester", pool=pool)).id

    def finished(self, workflow_id: str) -> WorkflowRecord:
        eventually(lambda: self.records.load(workflow_id).status.finished, f"{workflow_id} ends", self.log, workflow_id)
        return self.records.load(workflow_id)

    def completed(self, text: str) -> list[str]:
        workflow_id = self.submit(text)
        record = self.finished(workflow_id)
        lines = [line.split(" ", 2)[2] for line in self._lines(workflow_id, follow=True)]
        assert record.status is WorkflowStatus.COMPLETED, "\n".join([record.failure_message or "", *lines])
        return lines

    def _lines(self, workflow_id: str, *, follow: bool = False) -> Iterator[str]:
        return self.scheduler.logs.read(workflow_id, follow=follow, live=lambda: self.records.load(workflow_id).live)

    def log(self, workflow_id: str) -> list[str]:
        return [line.split(" ", 2)[2] for line in self._lines(workflow_id)]

    def points(self) -> list[mounted.MountPoint]:
        return [point for point in mounted.mounts() if point.path.startswith(os.path.realpath(self.settings.state_dir))]

    def registry(self) -> Registry:
        return Registry(str(self.settings.state_dir / "inputs"), str(self.settings.state_dir / "inputs"))


def eventually(condition: Callable[[], object], what: str, *more: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    told = more[0](*more[1:]) if more and callable(more[0]) else more  # type: ignore[operator]
    pytest.fail(f"never happened: {what}: {told}")


@pytest.fixture
def lab(short_path: Path) -> Iterator[Lab]:
    made = Lab(short_path)
    with contextlib.closing(made):
        yield made


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """50 files of all sizes, one of which is worth handing to the kernel whole."""
    root, rng = tmp_path / "in", random.Random(4)
    for number in range(48):
        path = root / f"d{number % 5}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice([0, 1, 4096, 70_000])))
    (root / "large").write_bytes(rng.randbytes(3 << 20))
    (root / "run").write_text("#!/bin/sh\necho it runs\n")
    (root / "run").chmod(0o755)
    (root / "link").symlink_to("d0/f0")
    return root


def digest_of(root: Path) -> str:
    """What the task's script prints of a tree that is the same."""
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  ./{path.relative_to(root)}"
        for path in sorted(root.rglob("*"), key=lambda path: os.fsencode(f"./{path.relative_to(root)}"))
        if path.is_file() and not path.is_symlink()
    ]
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


SUMS = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1"


def task(name: str, script: str, inputs: str = "", more: str = "", indent: int = 2) -> str:
    lines = [
        f"- name: {name}",
        "  image: ubuntu:24.04",
        "  command: [bash, -ec]",
        "  args:",
        "  - |",
        *(f"    {line}" for line in script.splitlines()),
    ]
    if inputs:
        lines += ["  inputs:", *(f"  - {line}" for line in inputs.splitlines())]
    if more:
        lines.append(f"  {more}")
    return "".join(f"{' ' * indent}{line}\n" for line in lines)


def workflow(*tasks: str) -> str:
    return "workflow:\n  name: wf\n  tasks:\n" + "".join(tasks)


def group(*tasks: str) -> str:
    return "workflow:\n  name: wf\n  groups:\n  - name: both\n    tasks:\n" + "".join(tasks)


def test_a_task_reads_what_was_uploaded_and_may_change_it(lab: Lab, source: Path) -> None:
    lab.upload("ds", source)
    script = (
        "cd {{input:0}}/ds\n"
        f"{SUMS}\n"
        "./run\nreadlink link\n"
        "stat -f -c %T . && grep -c ' /osmo/data/input/0/ds .* overlay ' /proc/self/mountinfo\n"
        "printf '\\nmore\\n' >> d0/f0; rm d1/f1; mkdir new; echo x > new/x; mv d2 moved; chmod 600 large\n"
        "ls new moved/f2; tail -n1 d0/f0; test ! -e d1/f1\n"
    )
    lines = lab.completed(workflow(task("reader", script, "dataset: {name: ds}")))
    for wanted in (digest_of(source), "it runs", "d0/f0", "1", "moved/f2", "more"):
        assert f"[reader] {wanted}" in lines, "\n".join(lines)
    assert any(line.startswith("[reader][osmo] Mounted default/ds:1 (50 files, ") for line in lines), lines
    assert any("isolation: bubblewrap" in line for line in lines)
    assert "[reader][osmo]   ds/" in lines
    assert "[reader][osmo]     large (3.0 MiB)" in lines
    again = lab.completed(workflow(task("reader", f"cd {{{{input:0}}}}/ds\n{SUMS}", "dataset: {name: ds}")))
    assert f"[reader] {digest_of(source)}" in again, "changes are the task's own"


def test_tasks_of_a_group_share_a_mount_and_not_their_changes(lab: Lab, source: Path) -> None:
    lab.upload("ds", source)
    wait = "until test -e {{output}}/go; do sleep 0.05; done\n"
    one = f"cd {{{{input:0}}}}/ds; rm run; echo 1 > mine; touch {{{{output}}}}/ready; {wait}ls -d run mine || true"
    two = f"cd {{{{input:1}}}}/ds; touch {{{{output}}}}/ready; {wait}ls -d run mine || true\n{SUMS}"
    text = group(
        task("one", one, "dataset: {name: ds}", indent=4),
        task("two", two, "dataset: {name: ds, regex: 'd1/'}\ndataset: {name: ds}", "lead: true", indent=4),
    )
    workflow_id = lab.submit(text)
    homes = [lab.settings.workflows / workflow_id / name / "0" / "data" / "output" for name in ("one", "two")]
    eventually(lambda: all((home / "ready").exists() for home in homes), "both run", lab.log, workflow_id)
    points = lab.points()
    (homes[0] / "go").touch()
    eventually(lambda: "[one] mine" in lab.log(workflow_id), "one has looked", lab.log, workflow_id)
    (homes[1] / "go").touch()
    record = lab.finished(workflow_id)
    eventually(lab.scheduler.idle, "everything is cleaned up")
    lines = lab.log(workflow_id)
    assert record.status is WorkflowStatus.COMPLETED, "\n".join(lines)
    kinds = [point.kind for point in points]
    assert kinds == [mounted.KIND] * 2, "one mount, and one of what a pattern chose: no layer outside of the sandboxes"
    assert "[one] run" not in lines
    assert "[two] run" in lines
    assert "[two] mine" not in lines
    assert f"[two] {digest_of(source)}" in lines
    assert "[two][osmo] Mounted default/ds:1 (files matching d1/) at {{input:0}}" in lines
    assert lab.points() == []
    assert lab.registry().all() == []
    assert not (lab.settings.workflows / workflow_id / "_mounts").exists()


def test_a_pattern_shows_the_files_that_match(lab: Lab, source: Path) -> None:
    lab.upload("ds", source)
    script = (
        "cd {{input:0}}/ds; find . -type f | sort | tr '\\n' ' '; echo; cat d0/f0 | md5sum; rm d0/f0; ls -A d0 | wc -l"
    )
    lines = lab.completed(workflow(task("reader", script, "dataset: {name: ds, regex: 'd0/f(0|5)$|d1/'}")))
    wanted = sorted(path for path in source.rglob("*") if re.match(r"d0/f(0|5)$|d1/", str(path.relative_to(source))))
    names = "".join(f"./{path.relative_to(source)} " for path in wanted if path.is_file())
    assert f"[reader] {names.strip()}" in [line.rstrip() for line in lines], "\n".join(lines)
    assert "[reader] 1" in lines, "it may be changed like any input"
    nothing = lab.submit(workflow(task("reader", "true", "dataset: {name: ds, regex: 'no such file'}")))
    lab.finished(nothing)
    assert any("is downloaded, not mounted: no file of the version matches" in line for line in lab.log(nothing))


def test_a_killed_server_is_not_noticed_by_the_task(lab: Lab, source: Path) -> None:
    lab.upload("ds", source)
    script = (
        "cd {{input:0}}/ds\nexec 3< d0/f0\ntouch {{output}}/ready\n"
        "until test -e {{output}}/go; do sleep 0.05; done\n" + SUMS
    )
    workflow_id = lab.submit(workflow(task("reader", script, "dataset: {name: ds}")))
    home = lab.settings.workflows / workflow_id / "reader" / "0" / "data" / "output"
    eventually((home / "ready").exists, "the task runs", lab.log, workflow_id)
    (record,) = lab.registry().all()
    children = Path(f"/proc/{record.pid}/task/{record.pid}/children")
    (server,) = children.read_text().split()
    os.kill(int(server), signal.SIGKILL)
    eventually(lambda: children.read_text().split() not in ([], [server]), "another one serves")
    (home / "go").touch()
    lab.finished(workflow_id)
    eventually(lab.scheduler.idle, "everything is cleaned up")
    lines = lab.log(workflow_id)
    assert f"[reader] {digest_of(source)}" in lines, "\n".join(lines)
    assert any("A mounted input: a server of " in line and " died (1 so far)" in line for line in lines), lines


def test_cancelling_and_killing_leave_no_mount(lab: Lab, source: Path) -> None:
    lab.upload("ds", source)
    script = "cd {{input:0}}/ds\nexec 3< large\ntouch {{output}}/ready\nsleep 600"
    first, second = (lab.submit(workflow(task("reader", script, "dataset: {name: ds}"))) for _ in range(2))
    for workflow_id in (first, second):
        home = lab.settings.workflows / workflow_id / "reader" / "0" / "data" / "output"
        eventually((home / "ready").exists, "the task runs", lab.log, workflow_id)
    records = lab.registry().all()
    assert len(records) == 2
    os.kill(next(record.pid for record in records if f"/{second}/" in record.path), signal.SIGKILL)
    for workflow_id in (first, second):
        lab.scheduler.cancel(workflow_id, user="tester")
    eventually(lab.scheduler.idle, "everything is cleaned up")
    assert lab.points() == []
    assert lab.registry().all() == []
    assert [record for record in records if record.alive] == []


def test_an_attempt_in_place_finds_its_changes_and_a_new_one_finds_none(lab: Lab, source: Path, tmp_path: Path) -> None:
    lab.upload("ds", source)
    done = tmp_path / "done"
    done.mkdir()
    inputs = f"dataset: {{name: ds}}\nurl: 'file://{done}'"
    lead = (
        "cd {{input:0}}/ds; ls; touch mine\n"
        "until test -e {{output}}/go -o -e {{input:1}}/done; do sleep 0.05; done; test -e {{input:1}}/done || exit 9"
    )
    helper = "cd {{input:0}}/ds; echo more >> mine; cp mine {{output}}/; wc -l < mine; sleep 600"
    text = group(
        task("lead", lead, inputs, "lead: true\n      exitActions: {RESCHEDULE: '9'}", indent=4),
        task("helper", helper, "dataset: {name: ds}", indent=4),
    )
    workflow_id = lab.submit(text)
    folder = lab.settings.workflows / workflow_id
    eventually((folder / "helper/0/data/output/mine").exists, "the helper runs", lab.log, workflow_id)
    (done / "done").touch()
    (folder / "lead/0/data/output/go").touch()
    lab.finished(workflow_id)
    eventually(lab.scheduler.idle, "everything is cleaned up")
    lines = lab.log(workflow_id)
    assert lines.count("[lead] run") == 1 or "[lead retry-1] run" in lines, "\n".join(lines)
    assert not any(line.endswith("] mine") for line in lines), "\n".join(lines)


def test_the_output_of_a_task_is_seen_and_not_copied(lab: Lab) -> None:
    make = "cd {{output}}; mkdir a; echo one > a/1; ln -s a/1 link; mkfifo pipe; seq 100000 > many"
    read = (
        "cd {{input:0}}; cat link; wc -l < many; echo two >> a/1; rm many; mv a b; cat b/1\n"
        "grep -c ' /osmo/data/input/0 .* overlay ' /proc/self/mountinfo"
    )
    again = "cd {{input:0}}; cat a/1; wc -l < many"
    lines = lab.completed(
        workflow(
            task("make", make),
            task("read", read, "task: make"),
            task("again", again, "task: make", "downloadType: download"),
            task("last", "ls {{input:0}}", "task: make\ntask: read\ntask: again"),
        )
    )
    for wanted in ("[read] one", "[read] 100000", "[read] two", "[read] 1", "[again] one", "[again] 100000"):
        assert wanted in lines, "\n".join(lines)
    assert any(line.startswith("[read][osmo] Mounted the output of task wf-1:make (2 files, ") for line in lines)
    assert any(line.startswith("[again][osmo] Copied the output of task wf-1:make") for line in lines)
    assert not any("not mounted" in line for line in lines)


def test_download_on_request(lab: Lab, source: Path) -> None:
    lab.upload("ds", source)
    text = workflow(task("reader", f"cd {{{{input:0}}}}/ds\n{SUMS}", "dataset: {name: ds}", "downloadType: download"))
    lines = lab.completed(text)
    assert f"[reader] {digest_of(source)}" in lines
    assert any(line.startswith("[reader][osmo] Downloaded default/ds:1 to {{input:0}}") for line in lines)
    assert not any("ounted" in line for line in lines)


@pytest.mark.parametrize("missing", ["fuse", "layers", "process"])
def test_what_can_not_be_mounted_is_downloaded_and_the_log_says_why(
    lab: Lab, source: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.upload("ds", source)
    if missing == "fuse":
        reason = "this machine has no /dev/fuse"
        monkeypatch.setattr("casstore_server.mounts.why_not", lambda: reason)
    elif missing == "layers":
        reason = "overlays are not there"
        monkeypatch.setattr(LocalExecutor, "why_no_layer", lambda *_: reason)
    else:
        reason = "the process of the mount ended while it started"
        monkeypatch.setattr(ServerMounts, "_start", lambda *_: subprocess.Popen(["/bin/false"]))
    script = f"cd {{{{input:0}}}}/ds\n{SUMS}\ntouch mine"
    lines = lab.completed(workflow(task("reader", script, "dataset: {name: ds}", "downloadType: mount")))
    assert f"[reader] {digest_of(source)}" in lines
    assert f"[reader][osmo] default/ds:1 is downloaded, not mounted: {reason}" in lines, "\n".join(lines)


def test_the_members_of_a_collection_are_mounted_side_by_side(lab: Lab, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("another")
    lab.upload("ds", source)
    lab.upload("more", other)
    lab.stores.open(None, "tester").collect("all", ["ds", "more"])
    lines = lab.completed(workflow(task("reader", "cd {{input:0}}; ls; cat more/file ds/run", "dataset: {name: all}")))
    for wanted in ("ds", "more", "another#!/bin/sh"):
        assert f"[reader] {wanted}" in lines, "\n".join(lines)
    assert any(line.startswith("[reader][osmo] Mounted default/more:1 (1 files, 7 B)") for line in lines), lines


def test_the_mounts_below_a_folder_are_cleared_whoever_made_them(lab: Lab, source: Path) -> None:
    lab.upload("ds", source)
    (version,) = BucketData(lab.stores.open).resolve("ds", "tester")
    path, beside = lab.settings.workflows / "left" / "0", lab.settings.workflows / "left-alone"
    path.mkdir(parents=True)
    beside.mkdir()
    lab.mounts.mount(version, path, stop=lambda: False)
    lab.mounts.mount(version, path, stop=lambda: False)
    assert (path / "run").read_bytes() == (source / "run").read_bytes()
    (record,) = lab.registry().all()
    assert record.alive
    lab.mounts.mount(version, beside, stop=lambda: False)
    ServerMounts(lab.settings).clear(path.parent)
    assert [point.path for point in lab.points()] == [os.path.realpath(beside)]
    lab.mounts.unmount(beside)
    assert lab.points() == []
    assert lab.registry().all() == []
    eventually(lambda: not record.alive, "its processes end")
    lab.mounts.mount(version, path, stop=lambda: False)
    assert (path / "run").exists(), "one that is gone is made again"


def test_a_mount_that_is_not_wanted_any_more_leaves_nothing(lab: Lab, source: Path) -> None:
    lab.upload("ds", source)
    (version,) = BucketData(lab.stores.open).resolve("ds", "tester")
    path = lab.settings.workflows / "left"
    path.mkdir()
    with pytest.raises(CancelledError):
        lab.mounts.mount(version, path, stop=lambda: True)
    assert lab.points() == []
    assert lab.registry().all() == []
    with pytest.raises(StorageError, match="there is no bucket 'other'"):
        lab.mounts.mount(dataclasses.replace(version, bucket="other"), path, stop=lambda: False)
    assert lab.points() == []
    assert not list((lab.settings.state_dir / "inputs" / "mounts").iterdir())


DIES = """
import os, signal, sys
from pathlib import Path
from casstore_orchestrator.ports import DatasetVersion
from casstore_server.mounts import ServerMounts
from casstore_server.settings import Settings
root, version, path = eval(sys.argv[1])
settings = Settings(root/"run"/"s", root/"state", root/"config"/"config.yaml", root/"data", root/"cache", "tester")
ServerMounts(settings).mount(DatasetVersion(*version), path, stop=lambda: False)
print((path / "run").read_bytes(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_mounts_of_a_server_end_with_it_however_it_ends(lab: Lab, source: Path) -> None:
    lab.upload("ds", source)
    (version,) = BucketData(lab.stores.open).resolve("ds", "tester")
    path = lab.settings.workflows / "left"
    path.mkdir()
    told = repr((lab.settings.state_dir.parent, dataclasses.astuple(version), path)).replace("PosixPath", "Path")
    done = subprocess.run([sys.executable, "-c", DIES, told], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "it runs" in done.stdout
    eventually(lambda: not lab.points() and not lab.registry().all(), "nothing is left")


AS_NOBODY = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs "$1"
chmod 755 "$1"
mknod "$1/fuse" c 10 229
chmod 666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
mkdir "$1/home"
chown 65534:65534 "$1/home"
exec setpriv --reuid=65534 --regid=65534 --clear-groups env -i HOME="$1/home" TMPDIR="$1/home" PYTHONPATH="$2" \
    PYTHONDONTWRITEBYTECODE=1 PATH=/usr/local/bin:/usr/bin:/bin \
    "$3" -m pytest -q -rs -p no:cacheprovider --basetemp="$1/home/t" "$4"
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; this run has no privileges already")
def test_all_of_it_as_a_user_without_privileges() -> None:
    """Whom ``fusermount3`` mounts for; layers are laid in the user namespace of the sandboxes."""
    paths = [path for path in sys.path if path and os.path.isdir(path) and not path.startswith(sys.base_prefix)]
    become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "-i"]
    become += [f"PYTHONPATH={':'.join(paths)}", "PYTHONDONTWRITEBYTECODE=1"]
    probing = f"import sys, pytest, casstore; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv")
    for python in (sys.executable, "/usr/bin/python3"):
        if not subprocess.run([*become, python, "-c", probing], capture_output=True, cwd="/", check=False).returncode:
            break
    else:
        pytest.skip("no Python interpreter of this version that another user may run")
    if shutil.which("fusermount3") is None:
        pytest.skip("no fusermount3, which mounts for users")
    with tempfile.TemporaryDirectory(prefix="casstore-nobody-") as home:  # not below pytest's own, which is closed
        arguments = [home, ":".join(paths), python, __file__]
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", AS_NOBODY, "sh", *arguments],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    assert "passed" in done.stdout, done.stdout
