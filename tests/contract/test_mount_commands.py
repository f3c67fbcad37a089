"""``osmo dataset mount``, ``umount`` and ``commit`` with the real kernel, the processes of the mounts included."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import select
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore.dataset.catalog import Catalog
from casstore.dataset.commit import Commit, until_made
from casstore.model import Entry, Kind
from casstore.repo.tree import TreeBuilder
from casstore.transfer.progress import Silent
from casstore.transfer.upload import TreeResult
from casstore_cli import main
from casstore_cli.mounts import find_registry
from casstore_cli.stores import open_bucket
from casstore_fuse import mounted

ROOT = Path(__file__).parents[2]


def why_not() -> str | None:
    if not os.path.exists("/dev/fuse"):
        return "this machine has no /dev/fuse"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "this user may not open /dev/fuse"
    return None


pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount overlays and make namespaces")

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    monkeypatch.chdir(tmp_path)

    def call(*args: object, code: int = 0, err: str = "") -> str:
        capsys.readouterr()
        found = main.run(["dataset", *map(str, args)])
        captured = capsys.readouterr()
        assert found == code, captured.out + captured.err
        assert err in captured.err
        return captured.out

    yield call
    monkeypatch.chdir("/")
    pids = [record.pid for record in find_registry().all()]
    main.run(["dataset", "umount", "--all", "--lazy"])
    for pid in pids:
        gone(pid)
    assert not [point for point in mounted.mounts() if point.path.startswith(str(tmp_path))]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "src"
    rng = random.Random(5)
    for number in range(40):
        path = root / f"d{number % 4}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.choice([0, 1, 8192, 100_000])))
    (root / "large").write_bytes(rng.randbytes(6 << 20))
    (root / "link").symlink_to("d0/f0")
    (root / "run").write_text("#!/bin/sh\necho works\n")
    (root / "run").chmod(0o755)
    return root


@pytest.fixture
def mnt(run: Run, source: Path, tmp_path: Path) -> Path:
    """The folder to mount at; the dataset DS has one version."""
    run("upload", "DS", f"{source}/*")
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def tree_of(root: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(root))] = os.readlink(path)
        elif path.is_file():
            found[str(path.relative_to(root))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def gone(pid: int) -> None:
    """Wait until a process is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return
    try:
        assert select.select([descriptor], [], [], 60)[0], f"process {pid} does not end"
    finally:
        os.close(descriptor)


def listed(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("mount", "list", "-t", "json"))["mounts"]
    return found


def server_of(pid: int) -> int:
    while not (found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        time.sleep(0.01)
    return int(found[0])


def test_mount_read_unmount(run: Run, mnt: Path, source: Path) -> None:
    run("mount", "DS", "mnt", err="DS:1 is mounted at mnt")
    assert tree_of(mnt) == tree_of(source)
    (shape,) = listed(run)
    assert (shape["path"], shape["name"], shape["version"], shape["state"]) == (str(mnt), "DS", "1", "alive")
    assert shape["fetched"] >= 6 << 20
    assert "default/DS:1" in run("mount", "list")
    run("umount", "mnt", err=f"DS:1 is no longer mounted at {mnt}")
    gone(shape["pid"])
    assert list(mnt.iterdir()) == [] and listed(run) == []


def test_a_mount_in_json_and_by_digest(run: Run, mnt: Path, source: Path) -> None:
    (source / "new").write_text("new")
    run("upload", "DS", f"{source}/*")
    with open_bucket() as bucket:
        digest = bucket.resolve("DS", "1").record.manifest
    shape = json.loads(run("mount", f"DS@{digest[:10]}", "mnt", "-t", "json"))
    assert (shape["version"], shape["digest"], shape["state"]) == ("1", digest, "alive")
    assert not (mnt / "new").exists()


def test_a_collection_has_a_folder_for_each_member(run: Run, mnt: Path, source: Path) -> None:
    other = mnt.parent / "other"
    (other / "deep/deeper").mkdir(parents=True)
    (other / "deep/deeper/file").write_text("x")
    (other / "first").write_text("1")
    os.link(other / "first", other / "second")
    run("upload", "A", f"{other}/*")
    (mnt.parent / "none").mkdir()
    run("upload", "EMPTY", f"{mnt.parent}/none/*")
    run("collect", "ALL", "DS", "A:1", "EMPTY")
    run("mount", "ALL", "mnt", err="ALL is mounted at mnt")
    assert sorted(os.listdir(mnt)) == ["A", "DS", "EMPTY"]
    assert (tree_of(mnt / "A"), tree_of(mnt / "DS"), tree_of(mnt / "EMPTY")) == (tree_of(other), tree_of(source), {})
    assert (mnt / "A/first").stat().st_ino == (mnt / "A/second").stat().st_ino
    (shape,) = listed(run)
    assert (shape["name"], shape["version"], shape["digest"]) == ("ALL", None, None)
    assert "default/ALL " in run("mount", "list")
    run("umount", "mnt", err="ALL is no longer mounted")


def test_a_place_is_used_once(run: Run, mnt: Path) -> None:
    run("mount", "DS", "mnt")
    assert "is mounted at mnt already" in run("mount", "DS", "mnt", code=2)
    (mnt.parent / "other").mkdir()
    run("mount", "DS", "other")
    assert [shape["path"] for shape in listed(run)] == [str(mnt), str(mnt.parent / "other")]
    run("umount", "--all")
    assert listed(run) == []


def test_a_mount_in_use_says_whose(run: Run, mnt: Path) -> None:
    run("mount", "DS", "mnt")
    with subprocess.Popen(["sleep", "1000"], cwd=mnt) as process:
        said = run("umount", "mnt", code=2)
        assert f"sleep ({process.pid})" in said and "is in use by" in said
        assert (mnt / "run").exists()
        process.kill()
    run("umount", "mnt")


def test_what_is_open_stays_readable_after_a_lazy_unmount(run: Run, mnt: Path, source: Path) -> None:
    run("mount", "DS", "mnt", "--no-cache")
    (shape,) = listed(run)
    with open(mnt / "large", "rb") as file:
        run("umount", "mnt", "--lazy")
        assert list(mnt.iterdir()) == [] and listed(run) == []
        assert file.read() == (source / "large").read_bytes()
        run("mount", "DS", "mnt")
        assert tree_of(mnt) == tree_of(source)
    gone(shape["pid"])
    assert tree_of(mnt) == tree_of(source), "the end of the first one leaves the second one alone"


def test_somebody_else_unmounts(run: Run, mnt: Path) -> None:
    run("mount", "DS", "mnt")
    (shape,) = listed(run)
    command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    subprocess.run([*command, str(mnt)], check=True)
    gone(shape["pid"])
    assert listed(run) == []


def test_a_server_that_is_killed_is_replaced(run: Run, mnt: Path, source: Path) -> None:
    run("mount", "DS", "mnt")
    (shape,) = listed(run)
    os.kill(server_of(shape["pid"]), signal.SIGKILL)
    assert tree_of(mnt) == tree_of(source)
    (after,) = listed(run)
    assert (after["restarts"], after["state"], after["pid"]) == (1, "alive", shape["pid"])
    assert "died" in Path(shape["log"]).read_text()


def test_by_libfuse(run: Run, mnt: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASSTORE_MOUNT_ADAPTER", "library")
    run("mount", "DS", "mnt", err="DS:1 is mounted at mnt")
    assert tree_of(mnt) == tree_of(source)
    (shape,) = listed(run)
    assert (shape["state"], shape["passed"]) == ("alive", 0) and shape["opened"] > 40
    run("umount", "mnt")
    gone(shape["pid"])
    assert list(mnt.iterdir()) == [] and listed(run) == []
    run("mount", "DS", "mnt", "--writable")
    (mnt / "new").write_text("new")
    run("commit", "mnt")
    run("umount", "mnt")
    run("mount", "DS", "mnt")
    assert (mnt / "new").read_text() == "new"


def test_libfuse_takes_its_mount_along(run: Run, mnt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASSTORE_MOUNT_ADAPTER", "library")
    run("mount", "DS", "mnt")
    (shape,) = listed(run)
    os.kill(server_of(shape["pid"]), signal.SIGKILL)
    gone(shape["pid"])
    assert list(mnt.iterdir()) == [] and listed(run) == []
    assert "the mount is gone" in Path(shape["log"]).read_text()


def test_libfuse_that_is_not_there_is_one_line(run: Run, mnt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASSTORE_MOUNT_ADAPTER", "library")
    monkeypatch.setenv("FUSE_LIBRARY_NAME", "no-such-library")
    monkeypatch.delitem(sys.modules, "mfusepy", raising=False)
    assert "can't mount by libfuse: Unable to find libfuse\n" in run("mount", "DS", "mnt", code=10)
    assert list(mnt.iterdir()) == [] and listed(run) == []
    monkeypatch.setenv("CASSTORE_MOUNT_ADAPTER", "both")
    assert "CASSTORE_MOUNT_ADAPTER is 'both'\n" in run("mount", "DS", "mnt", code=2)


def kill_all(pid: int) -> None:
    server = server_of(pid)
    watched = os.pidfd_open(server)
    os.kill(pid, signal.SIGKILL)
    gone(pid)
    os.kill(server, signal.SIGKILL) if os.path.exists(f"/proc/{server}") else None
    select.select([watched], [], [], 60)
    os.close(watched)


@pytest.mark.parametrize("command", [("mount", "DS", "mnt"), ("mount", "list"), ("umount", "--all")])
def test_a_mount_whose_processes_were_all_killed_is_cleared(run: Run, mnt: Path, command: tuple[str, ...]) -> None:
    run("mount", "DS", "mnt")
    (shape,) = listed(run)
    kill_all(shape["pid"])
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.statvfs(mnt)
    run(*command, err=f"the mount of DS:1 at {mnt} was dead and was taken away")
    if command[-1] == "mnt":
        assert (mnt / "run").exists()
    else:
        assert list(mnt.iterdir()) == []


def test_a_dead_mount_that_is_not_written_down_is_cleared(run: Run, mnt: Path) -> None:
    run("mount", "DS", "mnt")
    (shape,) = listed(run)
    kill_all(shape["pid"])
    shutil.rmtree(os.path.join(find_registry().runtime, "mounts"))
    run("mount", "DS", "mnt", err="dead mount")
    assert (mnt / "run").exists()


def test_a_store_that_can_not_be_read_is_one_line(run: Run, mnt: Path, isolated_home: Path) -> None:
    with open_bucket() as bucket:
        manifest = bucket.resolve("DS").record.manifest
    folder = isolated_home / f".local/share/casstore/store/manifests/{manifest[:2]}"
    shutil.rmtree(folder)
    said = run("mount", "DS", "mnt", code=2)
    assert said.startswith(f"Error message: manifest {manifest} is gone\n")
    assert list(mnt.iterdir()) == [] and listed(run) == []


def test_a_server_that_can_not_serve_says_why(run: Run, mnt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_bucket() as bucket:
        totals = bucket.resolve("DS").record.totals
    facts = {"dataset": "DS", "version": 1, "manifest": "00" * 32}
    monkeypatch.setattr("casstore_cli.commands.dataset.mount._target", lambda name: ("default", facts, totals))
    assert run("mount", "DS", "mnt", code=2).startswith(f"Error message: manifest {'00' * 32} is gone\n")
    assert list(mnt.iterdir()) == [] and listed(run) == []
    if os.geteuid() == 0:
        assert "is gone" in run("mount", "DS", "mnt", "--writable", code=2)
        assert list(mnt.iterdir()) == [] and listed(run) == []
        assert os.listdir(os.path.join(find_registry().runtime, "mounts")) == [
            name for name in os.listdir(os.path.join(find_registry().runtime, "mounts")) if name.endswith(".lock")
        ]


def test_a_folder_that_was_hidden_lazily_is_free_again(run: Run, mnt: Path) -> None:
    run("mount", "DS", "mnt")
    (first,) = listed(run)
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-uz"]
    with open(mnt / "large", "rb") as file:
        subprocess.run([*command, str(mnt)], check=True)
        run("umount", "mnt")
        run("mount", "DS", "mnt")
        assert file.read(4)
    gone(first["pid"])
    assert [shape["pid"] for shape in listed(run)] != [first["pid"]]
    assert (mnt / "run").exists()


def test_a_read_that_fails_has_a_line_with_the_path(run: Run, mnt: Path, isolated_home: Path) -> None:
    run("mount", "DS", "mnt", "--no-cache")
    packs = isolated_home / ".local/share/casstore/store/packs"
    for pack in packs.rglob("*"):
        if pack.is_file():
            pack.chmod(0o600)
            pack.write_bytes(bytes(pack.stat().st_size))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (mnt / "large").read_bytes()
    (shape,) = listed(run)
    assert shape["errors"] >= 1
    assert "ERROR" in Path(shape["log"]).read_text() and " large: " in Path(shape["log"]).read_text()


def test_fetching_ahead(run: Run, mnt: Path, source: Path, isolated_home: Path) -> None:
    run("mount", "DS", "mnt", "--prefetch=large")
    (shape,) = listed(run)
    while "were fetched ahead" not in Path(shape["log"]).read_text():
        time.sleep(0.01)
    assert "1 files were fetched ahead, 0 could not be" in Path(shape["log"]).read_text()
    (cached,) = [path for path in (isolated_home / ".cache/casstore/data/files").rglob("*") if path.is_file()]
    assert cached.read_bytes() == (source / "large").read_bytes()


START = [sys.executable, "-c", "import sys; sys.argv[0] = 'osmo'; from casstore_cli.start import main; main()"]


def test_a_command_of_its_own(run: Run, mnt: Path, source: Path) -> None:
    reader, writer = os.pipe()
    line = [*START, "dataset", "mount", "DS", str(mnt)]
    done = subprocess.run(line, capture_output=True, text=True, check=True, pass_fds=(writer,))
    os.close(writer)
    assert select.select([reader], [], [], 60)[0], "the process of the mount holds what its command had open"
    os.close(reader)
    assert (done.stdout, done.stderr) == ("", f"DS:1 is mounted at {mnt}\n")
    assert tree_of(mnt) == tree_of(source)
    (shape,) = listed(run)
    streams = [os.readlink(f"/proc/{shape['pid']}/fd/{number}") for number in range(3)]
    assert streams == ["/dev/null"] * 3
    assert os.readlink(f"/proc/{shape['pid']}/cwd") == "/"
    run("umount", "mnt")
    done = subprocess.run([*START, "dataset", "mount", "DS:9", str(mnt)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout.startswith("Error message: dataset 'DS' has no version")


def test_in_the_foreground(run: Run, mnt: Path) -> None:
    command = [*START, "dataset", "mount", "DS", str(mnt), "--foreground"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == f"default/DS:1 is mounted at {mnt}; Ctrl-C unmounts it\n"
        assert (mnt / "run").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""
    assert list(mnt.iterdir()) == []


@as_root
def test_changes_become_a_version(run: Run, mnt: Path, source: Path) -> None:
    run("mount", "DS", "mnt", "--writable")
    assert tree_of(mnt) == tree_of(source)
    for root in (mnt, source):
        (root / "d0/new").write_text("new")
        (root / "d1/f1").write_text("changed")
        with open(root / "large", "r+b") as file:
            file.write(b"x")
        (root / "d2/f2").unlink()
        shutil.rmtree(root / "d3")
        (root / "run").chmod(0o700)
        (root / "run").rename(root / "renamed")
        os.replace(root / "d0/f4", root / "d1/f5")
        (root / "folder").mkdir()
    (shape,) = listed(run)
    assert shape["writable"]
    run("commit", "mnt", "--tag", "changed", err="as version 2")
    run("umount", "mnt")
    assert tree_of(mnt) == {}
    run("mount", "DS:changed", "mnt")
    assert tree_of(mnt) == tree_of(source)
    assert (mnt / "folder").is_dir() and not (mnt / "d3").exists()
    assert stat.S_IMODE((mnt / "renamed").stat().st_mode) == 0o500, "writing is not shown"
    with open_bucket() as bucket:
        modes = {entry.path: entry.mode for entry in bucket.entries("DS")}
    assert modes[b"renamed"] == 0o700
    assert "DS:1" in run("umount", "mnt") or listed(run) == []


@as_root
def test_a_folder_that_was_made_anew_is_not_what_was_there(run: Run, mnt: Path) -> None:
    run("mount", "DS", "mnt", "--writable")
    shutil.rmtree(mnt / "d0")
    (mnt / "d0").mkdir()
    (mnt / "d0/only").write_text("x")
    run("commit", "mnt")
    assert [line for line in run("inspect", "DS").split() if line.startswith("d0")] == ["d0/only"]


@as_root
def test_changes_are_kept_until_they_are_committed_or_discarded(run: Run, mnt: Path) -> None:
    run("mount", "DS", "mnt", "--writable")
    (mnt / "new").write_text("new")
    run("umount", "mnt", err="Its changes are kept")
    run("mount", "DS", "mnt", "--writable", err="Changes from before are in it")
    assert (mnt / "new").read_text() == "new"
    assert "is mounted" in run("commit", "mnt", "--discard", code=2)
    run("umount", "mnt")
    run("commit", "mnt", "--discard")
    run("mount", "DS", "mnt", "--writable")
    assert not (mnt / "new").exists()
    (mnt / "newer").write_text("newer")
    run("commit", "mnt")
    run("umount", "mnt")
    run("mount", "DS", "mnt", "--writable")
    (shape,) = listed(run)
    assert shape["version"] == "2" and (mnt / "newer").exists()
    run("umount", "mnt")
    run("mount", "DS:1", "mnt", "--writable")
    assert not (mnt / "newer").exists()
    (mnt / "again").write_text("x")
    run("umount", "mnt")
    assert "were not committed" in run("mount", "DS:2", "mnt", "--writable", code=2)
    assert list(mnt.iterdir()) == [] and listed(run) == []


@as_root
def test_a_writable_mount_that_was_killed_is_cleared_and_keeps_its_changes(run: Run, mnt: Path) -> None:
    run("mount", "DS", "mnt", "--writable")
    (mnt / "new").write_text("new")
    (shape,) = listed(run)
    kill_all(shape["pid"])
    run("mount", "list", err="was dead")
    assert list(mnt.iterdir()) == []
    run("mount", "DS", "mnt", "--writable")
    assert (mnt / "new").read_text() == "new"


@as_root
def test_a_writable_mount_goes_on_when_its_server_is_killed(run: Run, mnt: Path, source: Path) -> None:
    run("mount", "DS", "mnt", "--writable")
    (shape,) = listed(run)
    with open(mnt / "large", "r+b") as file:
        file.write(b"before")
        os.kill(server_of(shape["pid"]), signal.SIGKILL)
        (mnt / "d1/f1").write_text("changed")
        (mnt / "d2/f2").unlink()
        file.write(b" and after")
    assert (mnt / "large").read_bytes()[16:] == (source / "large").read_bytes()[16:]
    assert (mnt / "large").read_bytes()[:16] == b"before and after"
    run("commit", "mnt", err="as version 2")
    (after,) = listed(run)
    assert after["restarts"] == 1


@as_root
def test_a_writable_mount_ends_with_its_folder(run: Run, mnt: Path) -> None:
    run("mount", "DS", "mnt", "--writable")
    (shape,) = listed(run)
    subprocess.run(["umount", str(mnt)], check=True)
    gone(shape["pid"])
    assert not [point for point in mounted.mounts() if find_registry().runtime in point.path]


HELPER = """
set -e
mount -t tmpfs tmpfs "$1"
chmod 755 "$1"
mknod "$1/fuse" c 10 229
chmod 666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
mkdir "$1/python" "$1/repo" "$1/site" "$1/home"
mount --bind "$2" "$1/python"
mount --bind "$3" "$1/repo"
mount --bind "$4" "$1/site"
chown 65534:65534 "$1/home"
cd "$1/home"
exec setpriv --reuid=65534 --regid=65534 --clear-groups env -i HOME="$1/home" \
    PYTHONPATH="$1/repo:$1/repo/cli:$1/repo/fuse:$1/site" PATH="$PATH" $7 "$1/python/bin/$5" -c "$6"
"""
AS_NOBODY = """
import json, os, signal, sys, time
from pathlib import Path
from casstore_cli.main import run

def osmo(*args, code=0):
    found = run(["dataset", *args])
    assert found == code, (args, found)

Path("src").mkdir()
Path("mnt").mkdir()
Path("src/one").write_text("one")
Path("src/large").write_bytes(os.urandom(1 << 20))
osmo("upload", "DS", "src/*")
osmo("mount", "DS", "mnt")
assert Path("mnt/large").read_bytes() == Path("src/large").read_bytes()
assert Path("mnt/large").read_bytes() == Path("src/large").read_bytes()
assert os.stat("mnt/one").st_uid == os.getuid()
with open("mnt/one"):
    osmo("umount", "mnt", code=2)
osmo("mount", "list")
osmo("umount", "mnt")
assert not os.listdir("mnt")

from casstore_cli.mounts import find_registry
osmo("mount", "DS", "mnt")
(record,) = find_registry().all()
server = int(Path(f"/proc/{record.pid}/task/{record.pid}/children").read_text().split()[0])
for pid in (record.pid, server):
    watched = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    os.close(watched)
while record.alive or Path(f"/proc/{server}").exists() and Path(f"/proc/{server}/stat").read_text().split()[2] != "Z":
    time.sleep(0.01)
osmo("mount", "list")
assert not os.listdir("mnt")

import shutil
can_write = os.getuid() == 0 or shutil.which("fuse-overlayfs")
osmo("mount", "DS", "mnt", "--writable", code=0 if can_write else 2)
if can_write:
    Path("mnt/new").write_text("new")
    Path("mnt/one").unlink()
    osmo("commit", "mnt")
    osmo("umount", "mnt")
    osmo("mount", "DS", "mnt")
    assert sorted(os.listdir("mnt")) == ["large", "new"]
    osmo("umount", "mnt")
print("all of it")
"""


@as_root
@pytest.mark.skipif(shutil.which("fusermount3") is None, reason="fusermount3 is not installed")
@pytest.mark.skipif(shutil.which("setpriv") is None or shutil.which("unshare") is None, reason="no util-linux")
@pytest.mark.parametrize("inside", ["", "unshare --user --map-root-user --mount"], ids=["user", "user-namespace"])
def test_a_user_without_rights(short_path: Path, inside: str) -> None:
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *inside.split(), "true"]
    if inside and subprocess.run(as_nobody, capture_output=True, check=False).returncode:
        pytest.skip("users may make no namespaces here")
    short_path.chmod(0o755)
    (short_path / "top").mkdir()
    arguments = [
        short_path / "top",
        sys.base_prefix,
        ROOT,
        sysconfig.get_path("purelib"),
        os.path.basename(os.path.realpath(sys.executable)),
        AS_NOBODY,
        inside,
    ]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", HELPER, "sh", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.endswith("all of it\n"), done.stdout + done.stderr
    assert inside or "fuse-overlayfs" in done.stdout or shutil.which("fuse-overlayfs")
    assert "was dead and was taken away" in done.stderr


def make_wide(name: str, count: int) -> None:
    """A version of one folder with so many empty files."""
    with open_bucket(write=True) as bucket:
        options: dict[str, Any] = dict.fromkeys(("description", "metadata", "labels", "tag", "provenance"))
        commit = Commit(bucket.refs, Catalog(bucket.refs, "b"), name, "u", force=False, **options)

        def once(hold: Any) -> Any:
            with hold.writer(lanes=1) as writer:
                builder = TreeBuilder(writer)
                for number in range(count):
                    builder.add(Entry(b"%06d" % number, Kind.FILE, 0o644, 10**18))
                manifest = builder.finish()
                writer.flush()
                hold.rely(writer.packs.used)
            return commit.finish(TreeResult(manifest, builder.checksum, builder.totals), hold)

        until_made(bucket.store, once, user="u", dataset=name, progress=Silent())


@pytest.mark.slow
def test_a_folder_with_many_entries(run: Run, tmp_path: Path) -> None:
    count = 100_000
    make_wide("WIDE", count)
    (tmp_path / "mnt").mkdir()
    run("mount", "WIDE", "mnt")
    for _ in range(2):
        with os.scandir(tmp_path / "mnt") as entries:
            names = {entry.name for entry in entries if entry.stat(follow_symlinks=False).st_size == 0}
        assert len(names) == count and "000000" in names and f"{count - 1:06d}" in names
    assert (tmp_path / "mnt/054321").read_bytes() == b""
    (shape,) = listed(run)
    text = Path(f"/proc/{server_of(shape['pid'])}/status").read_text()
    resident = int(text.split("VmHWM:")[1].split()[0]) << 10
    assert resident < 200 << 20


@pytest.mark.skipif(os.geteuid() != 0, reason="another mount namespace is made by root")
def test_a_copy_of_the_mount_that_a_sandbox_has_is_named_and_not_waited_for(run: Run, mnt: Path) -> None:
    run("mount", "DS", "mnt")
    inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo && exec cat"]
    with subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sandbox:
        assert sandbox.stdout is not None and sandbox.stdout.readline() == b"\n"
        run("umount", "mnt", err="has a copy of the mount")
        assert listed(run) == [] and not os.path.ismount(mnt)
        served = Path(f"/proc/{sandbox.pid}/root{mnt}")
        assert list(served.iterdir())
        sandbox.communicate()
