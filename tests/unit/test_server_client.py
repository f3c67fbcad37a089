"""The client, the login, and where the server of a user is."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from casstore.config import find_paths, load_config
from casstore.errors import (
    AccessError,
    CasstoreError,
    ConflictError,
    NotFoundError,
    ServiceError,
    SpecError,
    UsageError,
)
from casstore.wire.protocol import (
    MAX_REQUEST_BYTES,
    ErrorBody,
    decode_warning,
    encode_warning,
    error_body,
    from_iso,
    to_exception,
    to_iso,
)
from casstore_cli import background, login
from casstore_cli.client import Client, Target, Value, quoted

_HOLD = "import fcntl,sys; f=open(sys.argv[1]); fcntl.flock(f,2); print(flush=True); sys.stdin.read()"


class Canned:
    """Answers every connection with the same bytes, and keeps what was asked."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self.asked: list[bytes] = []
        self.answer = answer
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.asked.append(self._request(connection))
                connection.sendall(self.answer)

    @staticmethod
    def _request(connection: socket.socket) -> bytes:
        with connection.makefile("rb") as file:
            head = b""
            while (line := file.readline()) not in {b"\r\n", b""}:
                head += line
            found = re.search(rb"(?i)content-length: (\d+)", head)
            return head + b"\r\n" + (file.read(int(found[1])) if found else b"")

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


def _reply(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def canned(path: Path) -> Iterator[Canned]:
    found = Canned(path, _reply(b"{}"))
    yield found
    found.close()


def test_lists_are_repeated_and_booleans_are_capitals(canned: Canned, path: Path) -> None:
    client = Client(Target("ada", socket_path=str(path)))
    query: dict[str, Value] = {"users": ["a", "b&c"], "force": True, "none": None, "empty": "", "limit": 3, "no": []}
    client.get("api/x", dict, query)
    line = canned.asked[0].split(b"\r\n")[0]
    assert line == b"GET /api/x?users=a&users=b%26c&force=True&empty=&limit=3 HTTP/1.1"
    assert b"x-osmo-user" not in canned.asked[0]  # on the socket the kernel says who we are


def test_a_body_is_json_and_warnings_are_told(canned: Canned, path: Path) -> None:
    canned.answer = _reply(b'{"a": 1}', "200 OK", f"x-osmo-warning: {encode_warning(['one', 'zwölf'])}")
    told: list[str] = []
    client = Client(Target("ada", socket_path=str(path)), on_warning=told.append)
    assert client.post("api/x", dict, body={"k": "v"}) == {"a": 1}
    assert json.loads(canned.asked[0].partition(b"\r\n\r\n")[2]) == {"k": "v"}
    assert told == ["one", "zwölf"]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (_reply(b'{"message": "gone", "error_code": "NOTFOUND"}', "404 Not Found"), NotFoundError, "gone"),
        (_reply(b'{"message": "bad", "error_code": "USAGE"}', "400 Bad"), SpecError, "bad"),
        (_reply(b'{"message": "bad", "error_code": "CREDENTIAL"}', "403 No"), AccessError, "bad"),
        (_reply(b'{"message": "x", "error_code": "USER", "kind": "conflict"}', "409 C"), ConflictError, "x"),
        (_reply(b'{"message": "x", "error_code": "WHO"}', "418 T"), UsageError, "x"),
        (_reply(b'{"message": "x"}', "500 T"), ServiceError, "x"),
        (_reply(b"<html>\nproxy\x00 says no", "502 Bad Gateway"), ServiceError, "proxy"),
        (_reply(b"{}", "302 Found"), UsageError, "status"),
        (_reply(b"not json"), ServiceError, "can't be understood"),
        (_reply(b"[1]"), ServiceError, "can't be understood"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort", ServiceError, "broke off"),
        (b"SSH-2.0-OpenSSH\r\n", ServiceError, "gave no answer"),
        (b"", ServiceError, "gave no answer"),
    ],
)
def test_failures_become_errors(
    canned: Canned, path: Path, answer: bytes, error: type[CasstoreError], words: str
) -> None:
    canned.answer = answer
    with pytest.raises(error) as raised:
        Client(Target("ada", socket_path=str(path))).get("api/x", dict)
    assert words in raised.value.message
    assert "\n" not in raised.value.message


def test_nobody_listens(path: Path) -> None:
    client = Client(Target("ada", socket_path=str(path)))
    assert client.probe() is None
    with pytest.raises(ServiceError, match="Cannot connect"):
        client.get("api/x", dict)
    with socket.socket(socket.AF_UNIX) as stale:  # bound once, and nobody listens any more
        stale.bind(str(path))
    assert client.probe() is None


def test_a_stream_that_is_cut_short_is_an_error(canned: Canned, path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    canned.answer = head + b"4\r\none\n\r\n4\r\ntwo\n\r\n0\r\n\r\n"
    client = Client(Target("ada", socket_path=str(path)))
    assert b"".join(client.stream("api/x").pieces) == b"one\ntwo\n"
    canned.answer = head + b"4\r\none\n\r\n"
    pieces = client.stream("api/x").pieces
    assert next(pieces) == b"one\n"
    with pytest.raises(ServiceError, match="ended early"):
        next(pieces)


def test_what_is_too_large_is_not_sent(path: Path) -> None:
    client = Client(Target("ada", socket_path=str(path)))
    with pytest.raises(UsageError, match="reads at most"):
        client.post("api/x", dict, body="x" * MAX_REQUEST_BYTES)
    with pytest.raises(UsageError, match="too long"):
        client.post("api/x", dict, {"env_vars": ["A=" + "x" * 60_000]})


def test_names_can_not_change_the_route() -> None:
    assert quoted("a/b?c#d%2f") == "a%2Fb%3Fc%23d%252f"
    for name in ("", ".", ".."):
        with pytest.raises(UsageError):
            quoted(name)


def test_errors_travel_whole() -> None:
    for error in (NotFoundError("a", hint="b"), SpecError("c"), AccessError("d"), ConflictError("e")):
        back = to_exception(error.http_status, msgspec.json.encode(error_body(error)))
        assert (type(back), back.message, back.hint) == (type(error), error.message, error.hint)
    assert to_exception(400, b"\xff").message
    assert msgspec.json.decode(b'{"message": "m"}', type=ErrorBody).error_code is None


def test_times_and_warnings() -> None:
    assert to_iso(0.5) == "1970-01-01T00:00:00.500000"
    assert to_iso(None) is None
    assert from_iso("1970-01-01T01:00:00+01:00") == 0
    assert from_iso("1970-01-02") == 86400
    with pytest.raises(UsageError):
        from_iso("soon")
    assert decode_warning("%%%") == []
    assert len(encode_warning(["x" * 100_000])) < 10_000


def test_a_login_is_kept_in_osmos_form_and_private(isolated_home: Path) -> None:
    paths = find_paths()
    assert login.read(paths) is None
    login.save(paths, login.Login("http://127.0.0.1:8000", "ada"))
    assert login.read(paths) == login.Login("http://127.0.0.1:8000", "ada")
    file = Path(paths.config) / "login.yaml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "username: ada" in file.read_text()
    assert login.forget(paths)
    assert not login.forget(paths)


@pytest.mark.parametrize(
    "text", ["[1", "3", "{url: 3}", "{url: 'http://x'}", "{url: 'file:///x', dev_login: {username: a}}"]
)
def test_a_login_that_is_wrong_is_told(isolated_home: Path, text: str) -> None:
    paths = find_paths()
    Path(paths.config).mkdir(parents=True)
    (Path(paths.config) / "login.yaml").write_text(text)
    with pytest.raises(UsageError):
        login.read(paths)


def test_each_state_folder_has_a_socket_of_its_own(isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = background.find_place(load_config())
    monkeypatch.setenv("XDG_STATE_HOME", str(isolated_home / "other"))
    second = background.find_place(load_config())
    assert os.path.dirname(first.socket_path) == os.path.dirname(second.socket_path)
    assert first.socket_path != second.socket_path


def test_a_pid_file_counts_only_while_it_is_locked(isolated_home: Path) -> None:
    place = background.find_place(load_config())
    assert background.running_pid(place) is None
    os.makedirs(place.state_dir, exist_ok=True)
    Path(place.pid_file).write_text("1\n")
    assert background.running_pid(place) is None
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, place.pid_file],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert background.running_pid(place) == 1
        holder.communicate(b"")
    assert background.running_pid(place) is None
