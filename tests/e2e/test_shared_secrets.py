"""Two servers over one PostgreSQL: what one is told or gives out, the other knows, sealed in between."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from casstore.wire.router import OUTPUT
from tests.homes import PATIENCE, Home, eventually

CANARY = "canary-3a90"
FLOW = """
workflow:
  name: wf
  tasks:
  - name: a
    image: x
    command: [sh, -c, "echo it is $SECRET; touch /tmp/there; sleep 600"]
    credentials: {hub: {SECRET: token}}
"""
pytestmark = pytest.mark.slow


@pytest.fixture
def servers(tmp_path: Path, postgres: Callable[[], str]) -> Iterator[tuple[Home, str, str]]:
    home = Home(tmp_path)
    home.env["CASSTORE_DATABASE_URL"] = postgres()
    home.env["CASSTORE_SECRET_KEY"] = home.osmo("server", "new-key").strip()
    try:
        for name in ("a", "b"):
            home.osmo("server", "start", "--instance", name, "--port", "0")
        yield home, url(home, "a"), url(home, "b")
    finally:
        for name in ("a", "b"):
            home.osmo("server", "stop", "--tasks", "--instance", name)


def url(home: Home, instance: str) -> str:
    found: str = home.json("server", "status", "--instance", instance)["server"]["url"]
    return found


def ask(method: str, where: str, body: Any = None, user: str = "eve") -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(where, data=data, headers={"x-osmo-user": user}, method=method)
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        return json.load(reply)


def test_what_one_server_is_given_the_other_uses(servers: tuple[Home, str, str]) -> None:
    home, one, two = servers
    ask("POST", f"{one}/api/credentials/hub", {"generic_credential": {"credential": {"token": CANARY}}})
    assert ask("GET", f"{two}/api/credentials")["credentials"][0]["cred_name"] == "hub"
    assert ask("GET", f"{two}/api/credentials", user="bob")["credentials"] == []

    body = {"configs": {"platforms": {"default": {}}}, "description": "shared"}
    ask("PUT", f"{one}/api/configs/pool/robots", body, user="ada")
    eventually(lambda: "robots" in ask("GET", f"{two}/api/pool")["pools"], "the other server has the pool")

    name = ask("POST", f"{two}/api/pool/robots/workflow", {"file": FLOW})["name"]
    eventually(lambda: ask("GET", f"{one}/api/workflow/{name}")["status"] == "RUNNING", "it runs")

    def key() -> str:
        where = f"{one}/api/workflow/{name}/exec/task/a?entry_command=echo+from+inside"
        found: str = ask("POST", where)["key"]
        return found

    def said(given: str) -> str:
        where = f"{two.replace('http', 'ws', 1)}/api/router/exec/{name}/client/{given}"
        text = b""
        with connect(where, additional_headers={"x-osmo-user": "eve"}) as ws:
            ws.send(json.dumps({"Pipes": True}).encode())
            try:
                while True:
                    part = ws.recv(PATIENCE)
                    text += part.encode() if isinstance(part, str) else part
            except ConnectionClosed as closed:
                return text.decode() + (closed.rcvd.reason if closed.rcvd else "")

    given = eventually(lambda: _unless_early(key), "the task can be entered")
    assert f"{OUTPUT.decode()}from inside" in said(given)
    assert "was used" in said(given)  # once, wherever

    kept = key()
    home.osmo("server", "stop", "--instance", "b")
    home.osmo("server", "start", "--instance", "b", "--port", "0")
    two = url(home, "b")
    assert "from inside" in said(kept)  # a server that is started anew knows it

    files = [path for path in home.folder.rglob("*") if path.is_file() and "workflows" not in path.parts]
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_servers_with_state_folders_of_their_own_accept_each_others_addresses(
    short_path: Path, postgres: Callable[[], str]
) -> None:
    homes = [Home(short_path / name) for name in ("a", "b")]
    key, database = short_path / "secret.key", postgres()
    key.touch(0o600)
    key.write_text(homes[0].osmo("server", "new-key"))
    for home in homes:
        home.env |= {"CASSTORE_DATABASE_URL": database, "CASSTORE_SERVER_SECRET_KEY_FILE": str(key)}
        home.osmo("bucket", "add", "team", str(short_path / "team"), "--default")
    homes[0].osmo("dataset", "upload", "d", homes[0].write("x", "x" * 100_000))
    pack = next((short_path / "team").glob("packs/*/*")).relative_to(short_path / "team")

    def asked(server: str) -> str:
        found: str = ask("POST", f"{server}/api/v1/bucket/team/urls", {"read": [str(pack)]})["read"][0]["url"]
        return found

    def start(home: Home) -> str:
        home.osmo("server", "start", "--port", "0")
        found: str = home.json("server", "status")["server"]["url"]
        return found

    def serves(server: str, address: str) -> bool:
        with urllib.request.urlopen(server + address, timeout=PATIENCE) as reply:
            return bool(reply.read(8) == b"CASPACK1")

    try:
        one, two = map(start, homes)
        early = asked(one)
        assert serves(two, early)
        assert serves(one, asked(two))
        homes[0].osmo("server", "rekey", "--new")
        assert serves(one, early)
        assert serves(two, early)
        homes[1].osmo("server", "stop")
        two = start(homes[1])  # it knows the new key alone
        assert serves(two, early)
        assert serves(one, asked(two))
    finally:
        for home in homes:
            home.osmo("server", "stop", "--tasks")


def _unless_early(fn: Callable[[], str]) -> str | None:
    try:
        return fn()
    except urllib.error.HTTPError as error:
        assert error.code in {425, 409}, error.read()
        return None
