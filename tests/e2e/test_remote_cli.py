"""The command over a real S3 server: a bucket is declared, probed, written and read; one writer where it must be."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import yaml

from casstore.testing.proxy import NetFault, NetProxy, NetRule
from casstore.testing.servers.s3 import S3Server, moto_s3
from casstore_cli import main

Run = Callable[..., str]


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with moto_s3() as found:
        yield found


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)

    def call(*args: object, code: int = 0) -> str:
        capsys.readouterr()
        found = main.run([*map(str, args)])
        captured = capsys.readouterr()
        assert found == code, captured.out + captured.err
        assert "testing-secret" not in captured.out + captured.err
        assert "Traceback" not in captured.err
        return captured.out + captured.err

    return call


def configure(home: Path, bucket: str, server: S3Server, endpoint: str | None = None) -> None:
    credential = {
        "access_key_id": server.access_key_id,
        "access_key": server.access_key,
        "region": server.region,
        "override_url": endpoint or server.endpoint,
    }
    path = home / ".config/osmo/config.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    config = yaml.safe_load(path.read_text()) if path.exists() else {}
    path.write_text(yaml.safe_dump(config | {"auth": {"data": {f"s3://{bucket}": credential}}}))
    path.chmod(0o600)


def folder(tmp_path: Path, content: bytes) -> Path:
    found = tmp_path / "data"
    found.mkdir(exist_ok=True)
    (found / "file").write_bytes(content)
    return found


def test_a_bucket_of_many_writers(run: Run, server: S3Server, isolated_home: Path, tmp_path: Path) -> None:
    name = server.bucket()
    configure(isolated_home, name, server)
    told = run("bucket", "add", "lab", f"s3://{name}/team/store", "--default").splitlines()
    assert len([line for line in told if line.startswith("yes  ")]) == 8
    assert f"Bucket lab is at s3://{name}/team/store" in told[-1]
    folder(tmp_path, b"first")
    assert "as version 1" in run("dataset", "upload", "d", "data")
    folder(tmp_path, b"second")
    assert "as version 2" in run("dataset", "upload", "d", "data")
    (tmp_path / "out").mkdir()
    run("dataset", "download", "d:1", "out")
    assert (tmp_path / "out/d/data/file").read_bytes() == b"first"
    assert json.loads(run("dataset", "check", "d")) == {"status": "pass"}
    assert "everybody may write already" in run("store", "take-over", "--yes", code=2)
    run("bucket", "remove", "lab")
    assert "yes  " in run("bucket", "add", "lab", f"s3://{name}/team/store"), "one that is there already is tried, too"
    assert "d" in run("dataset", "list", "-b", "lab")


def test_a_bucket_of_one_writer(
    run: Run, server: S3Server, isolated_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = server.bucket()
    ignorant = NetRule(fault=NetFault.STRIP, method="PUT", times=10**9)
    with NetProxy(server.endpoint, ignorant) as proxy:
        configure(isolated_home, name, server, proxy.endpoint)
        told = run("bucket", "add", "lab", f"s3://{name}", "--default")
        assert "NO   an object is created only where none is: the condition was ignored" in told
        assert "This store has one writer" in told
        folder(tmp_path, b"first")
        assert "as version 1" in run("dataset", "upload", "d", "data")
        assert json.loads(run("dataset", "check", "d")) == {"status": "pass"}
        # Another machine: the same configuration, no token.
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "elsewhere"))
        folder(tmp_path, b"second")
        refused = run("dataset", "upload", "d", "data", code=2)
        assert "one writer" in refused
        assert "osmo store take-over" in refused
        assert json.loads(run("dataset", "check", "d"))["status"] == "fail"
        (tmp_path / "out").mkdir()
        run("dataset", "download", "d", "out")
        assert (tmp_path / "out/d/data/file").read_bytes() == b"first"
        monkeypatch.setattr("sys.stdin", io.StringIO())
        assert "--yes does not ask" in run("store", "take-over", code=2)
        monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
        assert "Nothing was changed" in run("store", "take-over")
        assert json.loads(run("store", "take-over", "--yes", "-t", "json")) == {"bucket": "lab", "writer": True}
        assert "as version 2" in run("dataset", "upload", "d", "data")
        monkeypatch.setenv("XDG_STATE_HOME", str(isolated_home / ".local/state"))
        folder(tmp_path, b"third")
        assert "one writer" in run("dataset", "upload", "d", "data", code=2)


def test_a_store_of_many_writers_where_conditions_are_gone(run: Run, server: S3Server, isolated_home: Path) -> None:
    """Made on a service that keeps conditions, and now behind an endpoint that drops them."""
    name = server.bucket()
    configure(isolated_home, name, server)
    run("bucket", "add", "lab", f"s3://{name}")
    run("bucket", "remove", "lab")
    with NetProxy(server.endpoint, NetRule(fault=NetFault.STRIP, method="PUT", times=10**9)) as proxy:
        configure(isolated_home, name, server, proxy.endpoint)
        assert "can't be written safely" in run("bucket", "add", "lab", f"s3://{name}", code=10)
        run("bucket", "add", "lab", f"s3://{name}", "--mode", "read-only")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://no-such-bucket-here/x", "no such bucket"),
        ("s3://key:testing-secret@bucket/x", "no user name and no password"),
        ("s3://bucket//x", "empty"),
        ("s3://bucket?X=testing-secret", "no query"),
    ],
)
def test_what_is_no_bucket(run: Run, server: S3Server, isolated_home: Path, url: str, words: str) -> None:
    configure(isolated_home, "no-such-bucket-here", server)
    assert words in run("bucket", "add", "lab", url, code=2)
    assert "lab" not in run("bucket", "list")


START = "import sys; sys.argv[0] = 'osmo'; from casstore_cli.start import main; main()"


def test_an_interrupt_is_not_kept_waiting_by_a_busy_service(
    run: Run, server: S3Server, isolated_home: Path, tmp_path: Path
) -> None:
    """The service asks for a minute, in every thread; the command ends well before it is over."""
    name = server.bucket()
    busy = NetRule(fault=NetFault.ANSWER, method="PUT", part="/packs/", status=503, headers={"Retry-After": "60"})
    with NetProxy(server.endpoint) as proxy:
        configure(isolated_home, name, server, proxy.endpoint)
        run("bucket", "add", "lab", f"s3://{name}", "--default")
        proxy.follow(msgspec.structs.replace(busy, times=10**9))
        folder(tmp_path, os.urandom(100_000))
        command = [sys.executable, "-c", START, "dataset", "upload", "d", "data"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                while not proxy.hits:
                    assert process.poll() is None
                    time.sleep(0.01)
                process.send_signal(signal.SIGINT)
                told, _ = process.communicate(timeout=50)
            finally:
                process.kill()
        assert process.returncode == 3, told
        assert "Traceback" not in told
        proxy.follow()
        assert "as version 1" in run("dataset", "upload", "d", "data")
