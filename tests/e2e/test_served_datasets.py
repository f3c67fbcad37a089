"""``osmo dataset`` on the buckets of a server, by real processes: all commands, and a server that is killed amid it."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.homes import PATIENCE, Home, eventually

SIZE = 24 << 20


def told(home: Home, *words: str) -> str:
    """All that a command says."""
    return home.osmo(*words) + home.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


@pytest.fixture
def operator(short_path: Path) -> Iterator[Home]:
    made = Home(short_path / "op", "op")
    made.osmo("bucket", "add", "team", str(short_path / "team"), "--default")
    yield made
    if made.state.joinpath("server.pid").exists():
        made.osmo("server", "stop", "--tasks")


@pytest.fixture
def port(operator: Home) -> int:
    found = free_port()
    operator.osmo("server", "start", "--port", str(found))
    return found


@pytest.fixture
def ann(operator: Home, port: int, short_path: Path) -> Home:
    made = Home(short_path / "ann", "ann")
    made.osmo("login", f"http://127.0.0.1:{port}", "--method", "dev", "--username", "ann")
    return made


def test_every_command(ann: Home, operator: Home, short_path: Path) -> None:
    ann.write("in/a.txt", "a" * 100_000)
    ann.write("in/sub/b.bin", os.urandom(500_000))
    assert "as version 1" in told(ann, "dataset", "upload", "d", "in")
    ann.write("more/c.txt", "c")
    assert "as version 2" in told(ann, "dataset", "update", "d", "--add", "more/c.txt")
    ann.osmo("dataset", "tag", "d:1", "--set", "base")
    ann.osmo("dataset", "label", "d", "--set", "team:string:red")
    ann.osmo("dataset", "metadata", "d:latest", "--set", "run.id:numeric:7")
    info = ann.json("dataset", "info", "d")
    assert info["labels"] == {"team": "red"}
    assert "1 added" in told(ann, "dataset", "diff", "d", "base", "2")
    assert "no problems" in told(ann, "dataset", "verify", "d")
    assert [row["name"] for row in ann.json("dataset", "list")["datasets"]] == ["d"]
    ann.osmo("dataset", "collect", "all", "d:1")
    query = ann.write("query", 'label.team = "red"')
    assert "d" in told(ann, "dataset", "query", query)
    ann.osmo("dataset", "rename", "d", "e")
    (ann.work / "out").mkdir()
    ann.osmo("dataset", "download", "team/e:base", "out")
    assert (ann.work / "out/e/in/sub/b.bin").read_bytes() == (ann.work / "in/sub/b.bin").read_bytes()
    ann.osmo("store", "gc", "--dry-run")
    assert "is the server's" in ann.refused("store", "gc", "--yes")
    assert "is the server's" in ann.refused("store", "repair", "--yes")
    assert "no problems" in told(ann, "store", "check")
    # The operator has the bucket itself, and sees the same.
    assert operator.json("dataset", "info", "e")["versions"][0]["created_by"] == "ann"
    assert "no problems" in told(operator, "dataset", "verify")
    ann.osmo("dataset", "delete", "e", "--all", "--force")
    assert ann.json("dataset", "list", "--all-users")["datasets"] == []
    # No trace of data in what belongs to the client but its caches, and nothing local was made.
    assert not (ann.folder / ".local/share/casstore/store").exists()
    log = (operator.state / "server.log").read_text()
    assert "sig=" not in log and "Traceback" not in log


def test_names(ann: Home, operator: Home, short_path: Path) -> None:
    ann.osmo("bucket", "add", "mine", str(short_path / "mine"))
    ann.write("x", "x")
    ann.osmo("dataset", "upload", "mine/local", "x")
    ann.osmo("dataset", "upload", "there", "x")
    buckets = ann.json("bucket", "list")
    assert buckets["default"] == "team"
    assert buckets["buckets"]["team"]["path"].startswith("http://127.0.0.1:")
    assert buckets["buckets"]["mine"]["path"].startswith("file://")
    listed = {(row["bucket"], row["name"]) for row in ann.json("dataset", "list", "--all-users")["datasets"]}
    assert listed == {("mine", "local"), ("team", "there")}
    assert "there is no bucket 'nope'" in ann.refused("dataset", "info", "nope/d")
    ann.osmo("logout")
    assert "there is no bucket 'team'" in ann.refused("dataset", "info", "team/there")
    ann.osmo("dataset", "info", "mine/local")


def test_two_users_with_different_rights(ann: Home, operator: Home, port: int, short_path: Path) -> None:
    operator.osmo("bucket", "add", "secret", str(short_path / "secret"))
    policies = [{"actions": ["profile:Own"]}, {"actions": ["dataset:Read"], "resources": ["bucket/team"]}]
    role = operator.write("role.json", json.dumps({"description": "Reads", "policies": policies}))
    operator.osmo("config", "update", "ROLE", "reads-team", "--file", role, "--description", "for bob")
    operator.osmo("user", "create", "bob", "--roles", "reads-team")
    bob = Home(short_path / "bob", "bob")
    bob.osmo("login", f"http://127.0.0.1:{port}", "--method", "dev", "--username", "bob")
    for bucket in ("team", "secret"):
        ann.write("in", bucket * 10_000)
        ann.osmo("dataset", "upload", f"{bucket}/d", "in")
    (bob.work / "out").mkdir()
    bob.osmo("dataset", "download", "team/d", "out")
    assert (bob.work / "out/d/in").read_text() == "team" * 10_000
    assert "no right dataset:Write" in bob.refused("dataset", "upload", "team/d", "out")
    assert "no right dataset:Write" in bob.refused("dataset", "tag", "team/d", "--set", "mine")
    assert "no right dataset:Write" in bob.refused("dataset", "delete", "team/d", "--all", "--force")
    # What bob may not see is like what is not there, by name and by address.
    assert list(bob.json("bucket", "list")["buckets"]) == ["team"]
    hidden, missing = (bob.refused("dataset", "info", f"{bucket}/d") for bucket in ("secret", "nowhere"))
    assert hidden.replace("secret", "nowhere") == missing
    assert len(bob.json("dataset", "list", "--all-users")["datasets"]) == 1
    assert len(ann.json("dataset", "list", "--all-users")["datasets"]) == 2


def test_a_server_that_is_killed_amid_an_upload_and_a_download(
    ann: Home, operator: Home, port: int, short_path: Path
) -> None:
    for number in range(4):
        ann.write(f"in/{number}", os.urandom(SIZE))
    upload = ann.start("dataset", "upload", "d", "in")
    packs = short_path / "team" / "packs"
    eventually(lambda: list(packs.glob("*/*")), "a pack is there")
    os.kill(operator.pid, signal.SIGKILL)
    operator.osmo("server", "start", "--port", str(port))
    out, err = upload.communicate(timeout=PATIENCE)
    assert upload.returncode == 0, err
    assert b"as version 1" in out + err
    (ann.work / "out").mkdir()
    download = ann.start("dataset", "download", "d", "out")
    eventually(lambda: any((ann.work / "out").rglob("*")), "something is there")
    os.kill(operator.pid, signal.SIGKILL)
    operator.osmo("server", "start", "--port", str(port))
    out, err = download.communicate(timeout=PATIENCE)
    assert download.returncode == 0, err
    for number in range(4):
        assert (ann.work / "out/d/in" / str(number)).read_bytes() == (ann.work / "in" / str(number)).read_bytes()


def test_a_client_that_is_killed_goes_on(ann: Home, short_path: Path) -> None:
    for number in range(4):
        ann.write(f"in/{number}", os.urandom(SIZE))
    upload = ann.start("dataset", "upload", "d", "in")
    packs = short_path / "team" / "packs"
    eventually(lambda: list(packs.glob("*/*")), "a pack is there")
    upload.kill()
    upload.communicate()
    before = sum(path.stat().st_size for path in packs.glob("*/*"))
    assert before < 4 * SIZE
    ann.osmo("dataset", "upload", "d", "in", "--resume")
    after = sum(path.stat().st_size for path in packs.glob("*/*"))
    assert after < 4 * SIZE + (2 << 20)  # what was there was not stored again


def test_a_server_that_is_not_there_is_told_in_one_line(ann: Home, operator: Home) -> None:
    operator.osmo("server", "stop")
    said = ann.refused("dataset", "list", code=10)
    assert "Cannot connect" in said
    assert "without those of the server" in told(ann, "bucket", "list")
    assert json.loads(ann.osmo("bucket", "list", "-t", "json"))["default"] == "default"
