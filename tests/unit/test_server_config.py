"""The server's view of the configuration, its process, and who may connect."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from casstore.config import load_config
from casstore.errors import ConflictError, NotFoundError, ServiceError, UsageError
from casstore_orchestrator.pools import this_machine
from casstore_server.api import streaming
from casstore_server.api.streaming import stream
from casstore_server.config import Watched
from casstore_server.run import answering
from casstore_server.settings import Settings
from casstore_server.stores import Stores, local_folder

_HOLD = "import fcntl,sys; f=open(sys.argv[1],'w'); fcntl.flock(f,2); print(flush=True); sys.stdin.read()"


WRONG_REFERENCES = ("casstore: {references: s3://lab}", "casstore: {references: ['file:///etc']}")


def _watched(isolated_home: Path) -> Watched:
    paths = load_config().paths
    Path(paths.config).mkdir(parents=True, exist_ok=True)
    return Watched(Path(paths.config_file), Path(paths.data), this_machine())


def test_command_and_server_read_the_same(isolated_home: Path) -> None:
    watched = _watched(isolated_home)
    raw = {
        "casstore": {
            "default_bucket": "lab",
            "buckets": {"lab": {"url": "file:///srv/lab", "mode": "read-only", "description": "d"}},
            "pools": {"p": {"platforms": {"x": {"gpu": 1}}}},
            "references": ["s3://lab/data"],
        }
    }
    Path(load_config().paths.config_file).write_text(yaml.safe_dump(raw))
    theirs, ours = load_config(), watched.current()
    assert ours.default_bucket == theirs.default_bucket
    assert {(b.name, b.url, b.mode, b.description) for b in ours.buckets.values()} == {
        (b.name, b.url, b.mode, b.description) for b in theirs.buckets.values()
    }
    assert set(ours.pools) == {*theirs.pools, "default"}
    assert ours.references == theirs.references == ("s3://lab/data",)


def test_a_changed_file_is_read_and_a_wrong_one_keeps_the_last(isolated_home: Path) -> None:
    watched = _watched(isolated_home)
    file = Path(load_config().paths.config_file)
    changes: list[int] = []
    watched.on_change(lambda: changes.append(1))
    assert set(watched.pools()) == {"default"}
    file.write_text("casstore: {pools: {a: {}}}")
    assert set(watched.pools()) == {"default", "a"}
    told = len(changes)
    assert set(watched.current().pools) == {"default", "a"}
    assert len(changes) == told  # nothing changed since
    for wrong in (
        "[",
        "casstore: 3",
        "casstore: {pools: {a: {nodes: 1}}}",
        "casstore: {buckets: {b: {}}}",
        *WRONG_REFERENCES,
    ):
        file.write_text(wrong)
        with pytest.raises(UsageError, match=r"config\.yaml"):
            watched.current()
        assert set(watched.pools()) == {"default", "a"}
    file.unlink()
    assert set(watched.current().pools) == {"default"}


def test_buckets_are_opened_as_declared(isolated_home: Path) -> None:
    watched = _watched(isolated_home)
    paths = load_config().paths
    settings = Settings(
        socket_path=isolated_home / "s",
        state_dir=Path(paths.state),
        config_file=Path(paths.config_file),
        data_dir=Path(paths.data),
        cache_dir=Path(paths.cache),
        user="ada",
    )
    Path(paths.config_file).write_text(f"casstore: {{buckets: {{gone: {{url: 'file://{isolated_home}/gone'}}}}}}")
    stores = Stores(watched, settings)
    try:
        assert stores.open(None, "ada").name == "default"
        assert stores.open("default", "bob").store is stores.open(None, "ada").store
        with pytest.raises(NotFoundError, match="nowhere"):
            stores.open("nowhere", "ada")
        with pytest.raises(NotFoundError):
            stores.open("gone", "ada")
        assert not (isolated_home / "gone").exists()
    finally:
        stores.close()
    assert local_folder("file:///a%20b") == "/a b"
    assert local_folder("s3://bucket") is None


def test_a_second_server_ends_at_once(isolated_home: Path) -> None:
    state = isolated_home / "state"
    state.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(state / "server.pid")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        done = subprocess.run(
            [sys.executable, "-m", "casstore_server", f"--state-dir={state}", "--user=ada"]
            + [f"--{name}={isolated_home / name}" for name in ("socket-path", "config-file", "data-dir", "cache-dir")],
            capture_output=True,
            text=True,
            check=False,
        )
        holder.communicate(b"")
    assert done.returncode == ConflictError("x").exit_code
    assert done.stderr.startswith("ERROR: A server of yours is running already\n")


async def _empty(scope: object, receive: object, send: object) -> None:
    raise AssertionError("nobody else may get here")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused_even_when_the_file_lets_them_in() -> None:
    folder = Path("/tmp") / f"casstore-test-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o755)
    path = folder / "s"
    try:
        with answering(_empty, path):
            path.chmod(0o666)
            program = (
                "import os,socket,sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
                "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
                "try:\n s.sendall(b'GET /health HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'); print(s.recv(100))\n"
                "except OSError: print(b'')\n"
            )
            done = subprocess.run(
                [sys.executable, "-c", program, str(path)],
                capture_output=True,
                text=True,
                check=False,
            )
    finally:
        folder.rmdir()
    assert done.stdout.strip() == "b''", done.stderr


def test_there_is_an_end_to_the_number_of_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_slots", threading.BoundedSemaphore(1))

    def lines(_: object) -> Iterator[str]:
        yield "x"

    stream(lines)
    with pytest.raises(ServiceError, match="are being followed"):
        stream(lines)
