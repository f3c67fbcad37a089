"""Who shows data as a folder: each as its users would start it, and what its processes cost while others read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import Casstore
from benchmarks.measure import FailedError
from casstore.testing.servers.s3 import S3Server

PATIENCE = 60.0
_TICK = os.sysconf("SC_CLK_TCK")


class Mounter:
    """A way to show data as a folder. ``work`` is a folder of its own, ``path`` is where it shows the data."""

    name = ""
    program = ""
    enter: tuple[str, ...] = ()
    """What a command is to be started with, to see the folder."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.path = work / "mounted"
        self.process: subprocess.Popen[bytes] | None = None

    def end(self) -> None:
        """Nothing will be mounted any more."""

    @classmethod
    def missing(cls) -> bool:
        """Whether it is not installed."""
        return shutil.which(cls.program) is None

    def mount(self) -> None:
        """Begin with nothing in its caches; returns when the folder can be used."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.path.mkdir(parents=True)
        self.again()

    def again(self) -> None:
        """Begin, with what is in its caches."""
        self.process = subprocess.Popen(
            self.command(), env={**os.environ, **self.env()}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        until = time.monotonic() + PATIENCE
        while not os.path.ismount(self.path):
            if self.process.poll() is not None or time.monotonic() > until:
                assert self.process.stderr is not None
                raise FailedError(f"{self.name}: {self.process.stderr.read().decode(errors='replace')[-500:]}")
            time.sleep(0.005)

    def command(self) -> list[str]:
        """What is run in the foreground as long as the folder is there."""
        raise NotImplementedError(self.name)

    def env(self) -> dict[str, str]:
        """What it finds in its environment."""
        return {}

    def unmount(self) -> None:
        """Take the folder away, if it is there."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(PATIENCE)
            subprocess.run(["umount", "-l", str(self.path)], check=False, stderr=subprocess.DEVNULL)
            assert self.process.stderr is not None
            self.process.stderr.close()
            self.process = None

    def pids(self) -> list[int]:
        """The processes that show it."""
        return descendants(self.process.pid) if self.process is not None else []

    def cpu(self) -> float:
        """CPU seconds that its processes have used."""
        return sum(map(cpu_of, self.pids()))

    def memory(self) -> int:
        """Bytes that its processes hold now, what they share counted once."""
        return sum(map(memory_of, self.pids()))

    def evict(self) -> None:
        """Let nothing that it reads from be in the page cache."""
        evict(self.work)


class Folder(Mounter):
    """The files on the local disk."""

    name = "local disk"

    def __init__(self, source: Path) -> None:
        super().__init__(source)
        self.path = source

    @classmethod
    def missing(cls) -> bool:
        return False

    def mount(self) -> None:
        pass

    again = unmount = mount


class Osmo(Mounter):
    """The project's command, in the background as it comes. What was uploaded by ``prepare`` is kept by ``mount``."""

    name = "casstore"
    program = sys.executable

    def __init__(self, work: Path, *options: str, dataset: str = "bench", home: Path | None = None) -> None:
        """``home``: where its store and configuration are, for several to share them."""
        super().__init__(work)
        self.options = options
        self.dataset = dataset
        self.home = Casstore(home or work, work)
        self.pid = 0

    def env(self) -> dict[str, str]:
        """Caches and records of its own, the rest from its home."""
        own = {"XDG_CACHE_HOME": str(self.work / "own" / "cache"), "XDG_RUNTIME_DIR": str(self.work / "own" / "run")}
        for folder in own.values():
            Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        return {**self.home.env(), **own, "XDG_STATE_HOME": str(self.work / "own" / "state")}

    def osmo(self, *arguments: str) -> str:
        """Run the command, in its surroundings; returns what it prints."""
        done = subprocess.run(
            [*self.enter, *OSMO, *arguments],
            env={**os.environ, **self.env()},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise FailedError(f"{self.name}: osmo {' '.join(arguments)}: {done.stderr[-500:]}")
        return done.stdout

    def prepare(self, source: Path) -> None:
        """Upload a folder."""
        self.osmo("dataset", "upload", self.dataset, f"{source}/*")

    def mount(self) -> None:
        shutil.rmtree(self.work / "own", ignore_errors=True)
        self.again()

    def again(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.osmo("dataset", "mount", self.dataset, str(self.path), *self.options)
        self.pid = int(self.details()["pid"])

    def details(self) -> dict[str, Any]:
        """What ``mount list`` says."""
        (found,) = json.loads(self.osmo("dataset", "mount", "list", "-t", "json"))["mounts"]
        return dict(found)

    def settled(self) -> None:
        """Wait until what was read has been kept."""
        before, until = -1.0, time.monotonic() + PATIENCE
        while before != (before := self.cpu()) and time.monotonic() < until:
            time.sleep(0.25)

    def unmount(self) -> None:
        if self.pid:
            # Not waiting for its end: whoever has a copy of all mounts, as sandboxes do, keeps it until that ends.
            self.osmo("dataset", "umount", "--lazy", str(self.path))
            self.pid = 0

    def pids(self) -> list[int]:
        return descendants(self.pid) if self.pid else []

    def evict(self) -> None:
        super().evict()
        evict(self.home.work / "data")


class WithoutPassthrough(Osmo):
    """The same where the kernel does not let it hand over files: for root of a user namespace.

    To be made while nothing is mounted: a namespace keeps what was there when it began.
    """

    name = "casstore, no passthrough"

    def __init__(self, work: Path, *options: str, dataset: str = "bench", home: Path | None = None) -> None:
        super().__init__(work, *options, dataset=dataset, home=home)
        inside = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", "echo && exec cat"]
        self.holder = subprocess.Popen(inside, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.holder.stdout is not None
        self.holder.stdout.readline()
        self.enter = ("nsenter", "--preserve-credentials", "--user", "--mount", "-t", str(self.holder.pid))

    @classmethod
    def missing(cls) -> bool:
        return bool(subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "true"], check=False).returncode)

    def end(self) -> None:
        """Give the namespace up."""
        self.holder.communicate()


class Rclone(Mounter):
    """``rclone mount`` with a full cache of files. ``remote`` is a folder, or ``s3:bucket/prefix``."""

    name = program = "rclone"

    def __init__(self, work: Path, remote: str, server: S3Server | None = None) -> None:
        super().__init__(work)
        self.remote = remote
        self.server = server

    def command(self) -> list[str]:
        caching = ["--vfs-cache-mode", "full", "--cache-dir", str(self.work / "cache"), "--dir-cache-time", "24h"]
        reading = ["--read-only", "--no-modtime", "--attr-timeout", "1h"]
        return ["rclone", "--config", "", "mount", self.remote, str(self.path), *caching, *reading]

    def env(self) -> dict[str, str]:
        return {} if self.server is None else rclone_environment(self.server)


class S3fs(Mounter):
    """s3fs-fuse with a cache on the disk."""

    name = program = "s3fs"

    def __init__(self, work: Path, bucket: str, prefix: str, server: S3Server) -> None:
        super().__init__(work)
        self.bucket = f"{bucket}:/{prefix}"
        self.server = server

    def command(self) -> list[str]:
        secret = self.work / "secret"
        secret.touch(0o600)
        secret.write_text(f"{self.server.access_key_id}:{self.server.access_key}")
        options = f"passwd_file={secret},url={self.server.endpoint},use_path_request_style,ro"
        options += f",use_cache={self.work}/cache,stat_cache_expire=86400,max_stat_cache_size=200000"
        return ["s3fs", self.bucket, str(self.path), "-f", "-o", options]


class Ratarmount(Mounter):
    """ratarmount over a tar file, whose index was made before: the libfuse binding for Python that is maintained."""

    name = program = "ratarmount"

    def __init__(self, work: Path, tar: Path) -> None:
        super().__init__(work)
        self.tar = tar

    def command(self) -> list[str]:
        return ["ratarmount", "-f", "--index-file", f"{self.tar}.index", str(self.tar), str(self.path)]

    def evict(self) -> None:
        evict(self.tar.parent)


OSMO = (str(Path(sys.executable).with_name("osmo")),)


def rclone_environment(server: S3Server) -> dict[str, str]:
    """A remote ``s3`` for rclone without a configuration file."""
    return {
        "RCLONE_CONFIG_S3_TYPE": "s3",
        "RCLONE_CONFIG_S3_PROVIDER": "Other",
        "RCLONE_CONFIG_S3_ENDPOINT": server.endpoint,
        "RCLONE_CONFIG_S3_ACCESS_KEY_ID": server.access_key_id,
        "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY": server.access_key,
        "RCLONE_CONFIG_S3_REGION": server.region,
        "RCLONE_CONFIG_S3_FORCE_PATH_STYLE": "true",
    }


@contextlib.contextmanager
def ended(mounters: Sequence[Mounter]) -> Iterator[None]:
    """Leave no mount behind."""
    try:
        yield
    finally:
        for who in mounters:
            with contextlib.suppress(FailedError, subprocess.SubprocessError):
                who.unmount()


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:
                continue
    return found


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and of those below it that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICK


def memory_of(pid: int) -> int:
    """Bytes of a process in memory, those that it shares with others in part."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(text.partition("\nPss:")[2].split()[0]) << 10


def evict(root: Path) -> None:
    """Take all files below a folder out of the page cache; what is mounted below it is left alone."""
    os.sync()
    device = os.stat(root).st_dev
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if os.lstat(os.path.join(folder, name)).st_dev == device]
        for name in names:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
