"""``osmo server`` as an operator uses it: settings, supervision, several servers, backups, what it says."""

from __future__ import annotations

import json
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import homes
from tests.homes import PATIENCE

SECRET = "hush-hush-canary"
FLOW = """
workflow:
  name: wf
  tasks:
  - {name: a, image: x, command: [sh, -c, "echo notify=$NOTIFY_SOCKET; echo url=$CASSTORE_DATABASE_URL"]}
"""


class Home(homes.Home):
    """The home of an operator."""

    def url(self, *words: str) -> str:
        found = self.json("server", "status", *words)["server"]["url"]
        assert isinstance(found, str)
        return found


@pytest.fixture
def home(short_path: Path) -> Iterator[Home]:
    made = Home(short_path)
    yield made
    for pid_file in made.state.glob("server.pid*"):
        made.osmo("server", "stop", "--tasks", "--instance", pid_file.name.removeprefix("server.pid").lstrip("."))


def get(url: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE) as reply:
        text: str = reply.read().decode()
        return text


def test_under_a_supervisor(home: Home) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(home.folder / "notify"))
        supervisor.settimeout(PATIENCE)
        home.env["NOTIFY_SOCKET"] = str(home.folder / "notify")
        process = home.start(
            "server", "start", "--foreground", "--port=0", "--host=::1", "--log-format=json", "--log-requests"
        )
        del home.env["NOTIFY_SOCKET"]
        assert supervisor.recv(100) == b"READY=1"
        url = home.url()
        assert url.startswith("http://[::1]:")
        assert json.loads(get(f"{url}/ready"))["status"] == "OK"
        assert 'casstore_groups_running{pool="default"}' in get(f"{url}/metrics")
        home.write("wf.yaml", FLOW)
        log = home.osmo("workflow", "submit", "wf.yaml", "--follow")
        assert "notify=\n" in log  # a task that knew it could speak for the server
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE)
        assert supervisor.recv(100) == b"STOPPING=1"
    assert process.returncode == 0
    lines = [json.loads(line) for line in said.splitlines()]
    submitted = [line for line in lines if line.get("route") == "/api/pool/{pool}/workflow"]
    assert [(line["method"], line["status"], line["user"]) for line in submitted] == [("POST", 200, "ada")]
    assert all(line["request_id"] for line in submitted)
    assert not [line for line in lines if line["level"] in {"error", "critical"}]


def test_what_a_server_will_not_do_is_told_in_one_line(home: Home) -> None:
    said = home.refused("server", "start", "--host", "0.0.0.0", "--port", "1")
    assert "does not listen on 0.0.0.0" in said
    assert "Hint: Set tls_cert and tls_key" in said
    url = f"postgresql://ada:{SECRET}@127.0.0.1:1/none"
    said = home.refused("server", "start", code=10, CASSTORE_DATABASE_URL=url)
    assert "postgresql://ada:***@127.0.0.1:1/none can't be used" in said
    home.env |= {"CASSTORE_DATABASE_URL": url, "CASSTORE_SERVER_LOG_FORMAT": "json"}
    process = home.start("server", "start", "--foreground")
    _, log = process.communicate(timeout=PATIENCE)
    del home.env["CASSTORE_DATABASE_URL"]
    assert process.returncode == 10
    assert json.loads(log.splitlines()[-1])["level"] == "critical"
    settings = home.json("server", "config", CASSTORE_DATABASE_URL=url)["settings"]
    assert settings["database"]["value"] == "postgresql://ada:***@127.0.0.1:1/none"
    kept = [path.read_bytes() for path in home.folder.rglob("*") if path.is_file()]
    assert SECRET not in f"{said}{log!r}{settings}{kept}"


def test_a_backup_of_a_running_server_is_restored(home: Home) -> None:
    home.osmo("server", "start")
    home.write("wf.yaml", FLOW)
    home.osmo("workflow", "submit", "wf.yaml", "--follow")
    done = home.json("server", "backup", "copy")
    assert done["workflows"] == 1
    assert "Stop it first" in home.refused("server", "restore", "copy")
    home.osmo("workflow", "submit", "wf.yaml", "--follow")
    home.osmo("server", "stop")
    for file in home.state.glob("server.sqlite*"):
        file.unlink()
    assert home.json("server", "restore", "copy")["workflows"] == 1
    names = [row["name"] for row in home.json("workflow", "list")["workflows"]]
    assert names == ["wf-1"]
    log = home.osmo("workflow", "submit", "wf.yaml", "--follow")
    assert "Workflow ID        - wf-3" in log  # wf-2 has a log in the folder
    assert "notify=" in log


@pytest.mark.slow
def test_two_servers_over_one_postgresql(home: Home, postgres: Callable[[], str]) -> None:
    home.env["CASSTORE_DATABASE_URL"] = postgres()
    home.env["CASSTORE_SECRET_KEY"] = home.osmo("server", "new-key").strip()
    for name in ("a", "b"):
        home.osmo("server", "start", "--instance", name, "--port", "0")
    one, two = home.url("--instance", "a"), home.url("--instance", "b")
    assert one != two
    assert home.osmo("server", "status", code=1)  # that of no name is another one
    body = json.dumps({"file": FLOW}).encode()
    request = urllib.request.Request(
        f"{one}/api/pool/default/workflow", data=body, headers={"x-osmo-user": "eve"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        name = json.load(reply)["name"]
    deadline = time.monotonic() + PATIENCE
    while json.loads(get(f"{two}/api/workflow/{name}", **{"x-osmo-user": "eve"}))["status"] != "COMPLETED":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    log = get(f"{two}/api/workflow/{name}/logs", **{"x-osmo-user": "eve"})
    assert "url=\n" in log  # tasks don't learn where the database is
    leases = [
        line for url in (one, two) for line in get(f"{url}/metrics").splitlines() if line.startswith("casstore_leases ")
    ]
    assert sorted(leases) == ["casstore_leases 0.0", "casstore_leases 1.0"]
    assert "pg_dump" in home.refused("server", "backup", "copy")
    assert "'a b' can't be the name" in home.refused("server", "start", "--instance", "a b")
    home.osmo("server", "stop", "--instance", "a")
    assert json.loads(get(f"{two}/ready"))["status"] == "OK"


def test_a_lost_index_is_rebuilt_while_the_server_runs_and_when_it_does_not(home: Home) -> None:
    file = home.folder / "a.txt"
    file.write_text("hello")
    for name in ("one", "two"):
        home.osmo("dataset", "upload", name, str(file))
    home.osmo("server", "start", "--port", "0")

    def listed() -> list[str]:
        found = json.loads(get(f"{home.url()}/api/bucket/list_dataset?all_users=true", **{"x-osmo-user": "ada"}))
        return [row["name"] for row in found["datasets"]]

    assert listed() == ["one", "two"]
    assert "2 of 2 names, 2 versions read" in home.osmo("server", "rebuild-index")
    assert listed() == ["one", "two"]
    home.osmo("server", "stop")
    for path in home.state.glob("server.sqlite*"):
        path.unlink()
    (done,) = home.json("server", "rebuild-index", "--bucket", "default")["buckets"]
    assert (done["datasets"], done["done"], done["versions"], done["error"]) == (2, 2, 2, None)
    assert "there is no bucket 'lab'" in home.osmo("server", "rebuild-index", "-b", "lab", code=2)
    home.osmo("server", "start", "--port", "0")
    assert listed() == ["one", "two"]
