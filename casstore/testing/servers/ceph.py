"""Ceph's S3 gateway over a cluster of one monitor and one daemon that keeps its objects in memory.

Decided here and only here: how the cluster is made so small that it starts within a second. It is a real server, whose
conditional writes are decided by the storage daemon: the one to ask about races. It comes from Debian's packages:
`scripts/setup dev` unpacks them into the virtual environment, without installing them on the machine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any, Final, Self

from casstore.errors import StorageError
from casstore.testing.servers.s3 import S3Server

__all__ = ["CephS3"]

UNPACKED: Final = Path(sys.prefix) / "ceph"
START_SECONDS: Final = 120
ATTEMPTS: Final = 3
MEMORY: Final = 4 << 30

_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{monitor}
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
mon data = {home}/mon
osd data = {home}/osd
run dir = {home}
log file = {home}/$name.log
admin socket =
pid file =
plugin dir = {libraries}/ceph
erasure code dir = {libraries}/ceph/erasure-code
osd class dir = {libraries}/rados-classes
osd class load list = *
osd class default list = *
osd objectstore = memstore
memstore device bytes = {memory}
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 0
mon data avail warn = 0
paxos propose interval = 0.02
paxos min wait = 0.01
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw thread pool size = 64
rgw dynamic resharding = false
rgw enable gc threads = false
rgw enable lc threads = false
rgw enable quota threads = false
rgw run sync thread = false
"""


class CephS3:
    """A running cluster; ``server`` is its S3. ``StorageError`` when it does not start."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._boto3: Any = None
        self._programs, self._environment, self._libraries = _find_programs()
        for attempt in range(ATTEMPTS):
            self._home = Path(tempfile.mkdtemp(prefix="ceph-"))
            try:
                self.server = self._start()
                self._boto3 = self.server.boto3()
                return
            except BaseException as error:
                self.stop()
                # A free port may be taken by somebody else before it is used.
                if not isinstance(error, StorageError) or attempt == ATTEMPTS - 1:
                    raise

    def _start(self) -> S3Server:
        fsid, monitor, port = str(uuid.uuid4()), _free_port(), _free_port()
        text = _CONFIGURATION.format(
            fsid=fsid, monitor=monitor, port=port, home=self._home, libraries=self._libraries, memory=MEMORY
        )
        (self._home / "ceph.conf").write_text(text)
        for folder in ("mon", "osd"):
            (self._home / folder).mkdir()
        address = f"v1:127.0.0.1:{monitor}"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, str(self._home / "monmap"))
        self._run("osdmaptool", "--createsimple", "1", str(self._home / "osdmap"))
        maps = ["--monmap", str(self._home / "monmap"), "--osdmap", str(self._home / "osdmap")]
        self._run("ceph-mon", "--mkfs", "-i", "a", "--fsid", fsid, *maps)
        self._spawn("ceph-mon", "-f", "-i", "a")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", str(uuid.uuid4()))
        self._spawn("ceph-osd", "-f", "-i", "0")
        self._spawn("radosgw", "-f", "-n", "client.rgw", "--rgw-zone", "default")
        server = S3Server(f"http://127.0.0.1:{port}", f"AK{secrets.token_hex(9).upper()}", secrets.token_hex(20))
        self._wait(server.endpoint)
        keys = ["--access-key", server.access_key_id, "--secret-key", server.access_key]
        self._run("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=test", "--display-name=test", *keys)
        return server

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs[program], *arguments],
            env={**self._environment, "CEPH_CONF": str(self._home / "ceph.conf")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=START_SECONDS,
            check=False,
        )
        if done.returncode:
            raise StorageError(f"{program} failed: {done.stderr[-500:].decode(errors='replace')}")

    def _spawn(self, program: str, *arguments: str) -> None:
        with open(self._home / f"{program}.out", "wb") as output:
            self._processes.append(
                subprocess.Popen(
                    [self._programs[program], *arguments],
                    env={**self._environment, "CEPH_CONF": str(self._home / "ceph.conf")},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self._home,
                )
            )

    def _wait(self, endpoint: str) -> None:
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends:
            for process in self._processes:
                if process.poll() is not None:
                    raise StorageError(f"{process.args!r} ended: {self._said()}")
            with contextlib.suppress(OSError), urllib.request.urlopen(endpoint, timeout=5):  # noqa: S310 - http
                return
            time.sleep(0.05)
        raise StorageError(f"Ceph's gateway does not start: {self._said()}")

    def _said(self) -> str:
        return " ".join(path.read_text(errors="replace")[-300:] for path in self._home.glob("*.out"))

    def bucket(self) -> str:
        """Make a bucket and return its name."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self._boto3.create_bucket(Bucket=name)
        return name

    def stop(self) -> None:
        """End the cluster and forget what it held."""
        if self._boto3 is not None:
            self._boto3.close()
        for process in reversed(self._processes):
            process.send_signal(signal.SIGKILL)
            process.wait()
        self._processes.clear()
        shutil.rmtree(self._home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _find_programs() -> tuple[dict[str, str], dict[str, str], str]:
    names = ("monmaptool", "osdmaptool", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")
    path = os.pathsep.join([str(UNPACKED / "usr/bin"), os.environ.get("PATH", os.defpath)])
    found = {name: shutil.which(name, path=path) for name in names}
    missing = [name for name, program in found.items() if program is None]
    if missing:
        raise StorageError(f"Ceph is not installed: there is no {missing[0]}", hint="run scripts/setup dev")
    programs = {name: program for name, program in found.items() if program is not None}
    root = Path(programs["ceph-osd"]).parents[2]
    folders = [folder.parent for folder in sorted(root.glob("usr/lib/*/rados-classes"))] or [root / "usr/lib"]
    libraries = str(folders[0])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CEPH_")}
    if root == UNPACKED:
        places = [libraries, f"{libraries}/ceph", str(root / "lib" / folders[0].name)]
        environment["LD_LIBRARY_PATH"] = os.pathsep.join(places)
    return programs, environment, libraries


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
