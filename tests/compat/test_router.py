"""The router's websockets, used as a stock OSMO client uses them, with real agents and tasks."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from casstore.testing.http import Http

PATIENCE = 60.0
SERVER = """
exec {python} - <<'END'
import http.server, os, socket, threading
from websockets.sync.server import serve
echo = socket.create_server(("127.0.0.1", 9000))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 9000))
def datagrams():
    while True:
        data, who = udp.recvfrom(65536)
        udp.sendto(b"got " + data, who)
def streams():
    while True:
        peer, _ = echo.accept()
        with peer:
            peer.sendall(peer.recv(100).upper())
class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        said = f"{self.path} {self.headers['Host']} {self.headers['Cookie']} ".encode() + body
        self.send_response(201)
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Set-Cookie", "a=b")
        self.end_headers()
        self.wfile.write(b"%x\\r\\n%s\\r\\n0\\r\\n\\r\\n" % (len(said), said))
    def log_message(self, *_): pass
def talk(ws):
    for message in ws:
        ws.send(message)
for target in (datagrams, streams, http.server.ThreadingHTTPServer(("127.0.0.1", 9001), Page).serve_forever,
               serve(talk, "127.0.0.1", 9002).serve_forever):
    threading.Thread(target=target, daemon=True).start()
open("up", "w").close()
threading.Event().wait()
END
""".replace("{python}", sys.executable)
FLOW = f"""
workflow:
  name: flow
  tasks:
  - name: one
    image: x
    command: [bash, -c, {json.dumps(SERVER)}]
"""


class Stock:
    """A client that knows what OSMO's knows."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.user = {"x-osmo-user": "ada"}
        self.client = Http(port, self.user)
        self.flow = ""

    def post(self, path: str, **query: Any) -> Any:
        reply = self.client.post(f"/api/workflow/{self.flow}/{path}", params=query)
        assert reply.status_code == 200, reply.text
        return reply.json()

    @contextlib.contextmanager
    def socket(
        self, use: str, found: dict[str, str], key: str | None = None, end: str = ""
    ) -> Iterator[ClientConnection]:
        url = f"{found['router_address']}/api/router/{use}/{self.flow}/client/{key or found['key']}{end}"
        with connect(url, additional_headers={**self.user, "Cookie": found["cookie"]}, compression=None) as ws:
            yield ws

    @contextlib.contextmanager
    def exec(self, entry: str) -> Iterator[ClientConnection]:
        with self.socket("exec", self.post("exec/task/one", entry_command=entry)) as ws:
            ws.send(json.dumps({"Rows": 24, "Cols": 80}).encode())
            yield ws


def read(ws: ClientConnection, until: bytes | None = None) -> bytes:
    data = b""
    while until is None or until not in data:
        try:
            piece = ws.recv(timeout=PATIENCE)
        except ConnectionClosed:
            break
        assert isinstance(piece, bytes)
        data += piece
    return data


@pytest.fixture(scope="module")
def stock() -> Iterator[Stock]:
    with tempfile.TemporaryDirectory(prefix="cr-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        (home / "run").mkdir(mode=0o700)
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
        env = kept | {"HOME": folder, "USER": "ada", "LOGNAME": "ada", "XDG_RUNTIME_DIR": f"{folder}/run"}
        osmo = [sys.executable, "-c", "from casstore_cli.main import main; main()"]
        subprocess.run([*osmo, "server", "start", "--port", "0"], env=env, check=True, capture_output=True)
        status = subprocess.run([*osmo, "server", "status"], env=env, check=True, capture_output=True, text=True).stdout
        found = Stock(int(next(word for word in status.split() if word.startswith("http://")).rpartition(":")[2]))
        reply = found.client.post("/api/pool/default/workflow", json={"file": FLOW})
        assert reply.status_code == 200, reply.text
        found.flow = reply.json()["name"]
        try:
            deadline = time.monotonic() + PATIENCE
            while found.client.post(f"/api/workflow/{found.flow}/exec/task/one").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with found.exec("bash -c 'until test -e up; do sleep 0.02; done'") as ws:
                read(ws)
            yield found
        finally:
            found.client.post(f"/api/workflow/{found.flow}/cancel")
            while not found.client.get(f"/api/workflow/{found.flow}").json()["status"].startswith("FAILED"):
                time.sleep(0.05)
            subprocess.run([*osmo, "server", "stop", "--force"], env=env, check=True, capture_output=True)


def test_exec_is_a_terminal_that_follows_its_size(stock: Stock) -> None:
    found = stock.post("exec/task/one", entry_command="bash --norc -i")
    assert found.keys() >= {"router_address", "key", "cookie"}
    assert found["router_address"] == f"ws://127.0.0.1:{stock.port}"
    with stock.exec("bash --norc -i") as ws:
        ws.send(b'stty size; echo fir""st\n')
        assert b"24 80" in read(ws, b"first")
        ws.send(b'\x00RESIZE:{"Rows": 50, "Cols": 132}')
        ws.send(b'stty size; echo sec""ond\n')
        assert b"50 132" in read(ws, b"second")
        ws.send(b"exit\n")
        read(ws)
        assert ws.close_code == 1000
        assert ws.close_reason == '{"exit":0}'


def test_a_group_runs_in_each_task(stock: Stock) -> None:
    found = stock.post("exec/group/one-group", entry_command="echo hi")
    assert set(found) == {"one"}
    with stock.socket("exec", found["one"]) as ws:
        ws.send(json.dumps({"Rows": 24, "Cols": 80}).encode())
        assert read(ws) == b"hi\r\n"


def test_port_forward_announces_each_connection(stock: Stock) -> None:
    assert Http(stock.port).get("/api/router/version").status_code == 200  # without a user, as the client asks
    (found,) = stock.post("portforward/one", task_ports=[9000], use_udp=False)
    with stock.socket("portforward", found) as control:
        for early in (True, False):
            key = f"PORTFORWARD-{uuid.uuid4().hex}"
            announcement = json.dumps({"key": key, "cookie": ""}).encode()
            if early:
                control.send(announcement)
            with stock.socket("portforward", found, key) as data:
                if not early:
                    control.send(announcement)
                data.send(b"abc")
                assert data.recv(timeout=PATIENCE) == b"ABC"
                assert data.recv(timeout=PATIENCE) == b""  # the end, for which the client closes


def test_a_connection_that_nobody_announces_is_given_up(stock: Stock) -> None:
    (found,) = stock.post("portforward/one", task_ports=[9000])
    with stock.socket("portforward", found, "PORTFORWARD-" + "0" * 32, "?timeout=1") as data:
        read(data)
        assert data.close_code == 4000


def test_datagrams_carry_their_address(stock: Stock) -> None:
    (found,) = stock.post("portforward/one", task_ports=[9000], use_udp=True)
    with stock.socket("portforward", found) as ws:
        address = socket.inet_aton("192.0.2.7") + struct.pack(">H", 4711)
        ws.send(address + b"data")
        assert ws.recv(timeout=PATIENCE) == address + b"got data"


@pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
def test_rsync_speaks_to_a_daemon(stock: Stock) -> None:
    plugins = stock.client.get("/api/plugins/configs").json()["rsync"]
    assert plugins["enabled"] is True
    found = stock.post("rsync/task/one")
    with stock.socket("rsync", found, end="?timeout=10") as control:
        key = f"PORTFORWARD-{uuid.uuid4().hex}"
        control.send(json.dumps({"key": key, "cookie": ""}).encode())
        with stock.socket("rsync", found, key, "?timeout=10") as data:
            assert read(data, b"\n").startswith(b"@RSYNCD: ")
            data.send(b"@RSYNCD: 27\n#list\n")  # the protocol of the client's own rsync
            listed = read(data, b"@RSYNCD: EXIT")
            assert {line.split()[0] for line in listed.splitlines()[:3]} == {b"osmo", b"output", b"input"}


def test_keys_are_for_one_user_and_one_use(stock: Stock) -> None:
    found = stock.post("exec/task/one", entry_command="true")
    stranger = Stock(stock.port)
    stranger.flow, stranger.user = stock.flow, {"x-osmo-user": "eve"}
    assert Http(stock.port, stranger.user).post(f"/api/workflow/{stock.flow}/exec/task/one").status_code == 403
    with stranger.socket("exec", found) as ws:
        read(ws)
        assert ws.close_code == 4404
    with stock.socket("portforward", found) as ws:  # a key to run a program is no key to a port
        read(ws)
        assert ws.close_code == 4404
    with stock.socket("exec", found) as ws:
        ws.send(b'{"Rows": 1, "Cols": 1}')
        read(ws)
        assert ws.close_code == 1000
    with stock.socket("exec", found) as ws:
        read(ws)
        assert ws.close_code == 4404


def test_pages_of_other_origins_and_strangers_get_no_websocket(stock: Stock) -> None:
    path = f"api/router/exec/{stock.flow}/client/{'0' * 32}"
    here = f"127.0.0.1:{stock.port}"
    for host, headers, origin, status in (
        (here, {}, None, 401),
        (here, stock.user, "http://evil.example", 403),
        ("evil.example", stock.user, None, 403),
    ):
        made = socket.create_connection(("127.0.0.1", stock.port))
        more: dict[str, Any] = {"sock": made, "additional_headers": headers, "origin": origin}
        with pytest.raises(InvalidStatus) as refused, connect(f"ws://{host}/{path}", **more):
            pass
        assert refused.value.response.status_code == status
        made.close()


@pytest.mark.parametrize("first", [b"", b"[]", b'{"Rows": "x"}', b"\xff", b'{"Rows": 1, "Cols": 1, "Term": "$(x)"}'])
def test_a_first_message_that_makes_no_sense_is_refused(stock: Stock, first: bytes) -> None:
    with stock.socket("exec", stock.post("exec/task/one", entry_command="true")) as ws:
        ws.send(first)
        read(ws)
        assert ws.close_code in {4400, 4409}
        assert "understood" in ws.close_reason


def test_messages_that_are_too_long_end_the_connection(stock: Stock) -> None:
    with stock.exec("cat") as ws:
        ws.send(b"x" * ((1 << 20) + 1))
        read(ws)
        assert ws.close_code == 1009


def test_wrong_requests_are_refused(stock: Stock) -> None:
    for path, query, status in (
        ("portforward/one", {"task_ports": [0]}, 400),
        ("portforward/one", {"task_ports": [70000]}, 400),
        ("portforward/one", {"task_ports": list(range(1, 40))}, 400),
        ("portforward/none", {"task_ports": [80]}, 404),
        ("exec/group/none", {}, 404),
        ("exec/task/one", {"entry_command": " "}, 400),
    ):
        assert stock.client.post(f"/api/workflow/{stock.flow}/{path}", params=query).status_code == status, path


def test_pages_of_tasks_have_names_of_their_own(stock: Stock) -> None:
    found = stock.post("webserver/one", task_port=9001)
    host = f"{found['key']}.localhost:{stock.port}"
    assert found["url"] == f"http://{host}/"
    assert stock.client.get(f"/api/router/webserver/{found['key']}").json() is True
    page = http.client.HTTPConnection("127.0.0.1", stock.port)
    headers = {"Host": host, "Cookie": "x=y"}
    page.request("POST", "/a%20b?c=d", body=b"body" * 50_000, headers=headers)
    reply = page.getresponse()
    assert reply.status == 201
    assert reply.getheader("Set-Cookie") == "a=b"
    assert reply.read() == b"/a%20b?c=d localhost:9001 x=y " + b"body" * 50_000
    page.close()
    unknown = Http(stock.port, {"Host": f"{'0' * 32}.localhost:{stock.port}"}).get("/")
    assert unknown.status_code == 404
    silent = stock.post("webserver/one", task_port=9003)
    reply_ = Http(stock.port, {"Host": f"{silent['key']}.localhost:{stock.port}"}).get("/")
    assert (reply_.status_code, "nothing listens" in reply_.text) == (502, True)


def test_websockets_of_tasks_pages_are_carried(stock: Stock) -> None:
    found = stock.post("webserver/one", task_port=9002)
    host = f"{found['key']}.localhost:{stock.port}"
    with connect(
        f"ws://{host}/x", sock=socket.create_connection(("127.0.0.1", stock.port)), origin=f"http://{host}"
    ) as ws:  # type: ignore[arg-type]
        ws.send("text")
        assert ws.recv(timeout=PATIENCE) == "text"
        ws.send(b"\0" * 300_000)
        assert ws.recv(timeout=PATIENCE) == b"\0" * 300_000


def test_the_page_of_somebody_who_was_shut_out_is_gone(stock: Stock) -> None:
    for name in ("lead", "spare"):
        made = stock.client.post("/api/auth/user", json={"id": name, "roles": ["osmo-admin"]})
        assert made.status_code == 200, made.text
    lead = Http(stock.port, {"x-osmo-user": "lead"})
    found = lead.post(f"/api/workflow/{stock.flow}/webserver/one", params={"task_port": 9001}).json()
    page = Http(stock.port, {"Host": f"{found['key']}.localhost:{stock.port}"})
    assert page.get("/").status_code == 501, "what the task says of GET"
    assert stock.client.ask("DELETE", "/api/auth/user/lead").status_code == 200
    assert page.get("/").status_code == 404
