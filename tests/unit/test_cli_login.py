"""Logging in: what is sent where, what is kept, and what is told of each failure."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import http.server
import io
import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from casstore.config import find_paths
from casstore.errors import AccessError, CasstoreError, UsageError
from casstore.testing.servers.scripted import Asked, Says, ScriptedServer
from casstore_cli import browser, login, main, oauth, web
from casstore_cli.bearer import Bearer
from casstore_cli.login import Login, Tokens

SECRET = "canary-of-a-secret"
PROFILE = {"profile": {"username": "ada", "pool": "default"}, "roles": ["osmo-user"], "pools": ["default"]}


def jwt(number: int = 0, *, start: float | None = None, life: float = 300, **claims: Any) -> str:
    begun = time.time() if start is None else start
    body = {"sub": "ada", "name": "Ada", "iat": begun, "exp": begun + life, "n": number} | claims
    parts = [{"alg": "ES256"}, body]
    encoded = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*encoded, "c2lnbmF0dXJl"])


def says(value: Any, status: int = 200, **headers: str) -> Says:
    return Says(status, json.dumps(value).encode(), headers)


class World:
    """A server and its identity provider; ``replies`` are taken one after the other, the last one for good."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Says]] = {"/api/profile/settings": [says(PROFILE)]}
        self.server = ScriptedServer(self._answer)

    def __enter__(self) -> Self:
        self.url = self.server.url
        ways = {"token": "/token", "device": "/device", "browser": "/auth"}
        offer = {f"{way}_endpoint": f"{self.url}{path}" for way, path in ways.items()}
        self.replies["/api/auth/login"] = [says(offer | {"device_client_id": "cli", "browser_client_id": "web"})]
        return self

    def __exit__(self, *exc: object) -> None:
        self.server.stop()

    def _answer(self, asked: Asked) -> Says:
        left = self.replies.get(urlsplit(asked.path).path, [Says(404, b"no such thing")])
        return left.pop(0) if len(left) > 1 else left[0]

    def asked(self, path: str) -> list[Asked]:
        return [one for one in self.server.asked if urlsplit(one.path).path == path]

    def forms(self) -> list[dict[str, str]]:
        return [dict(parse_qsl(one.body.decode())) for one in self.asked("/token")]


@pytest.fixture
def world() -> Iterator[World]:
    with World() as found:
        yield found


Osmo = Callable[..., str]


@pytest.fixture
def osmo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Osmo:
    for name in ("HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY", "OSMO_LOGIN_TOKEN", "OSMO_LOGIN_PASSWORD"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: str, code: int = 0, stdin: str = "") -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        found = main.run(list(words))
        said = "".join(capsys.readouterr())
        assert found == code, said
        assert SECRET not in said
        assert "Traceback" not in said
        return said

    return call


def stored() -> dict[str, Any]:
    file = Path(find_paths().config) / "login.yaml"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [name for name in os.listdir(file.parent) if name.endswith(".tmp")] == []
    found: dict[str, Any] = yaml.safe_load(file.read_text())
    return found


def test_a_token_logs_in_and_is_renewed_when_it_ends(world: World, osmo: Osmo, tmp_path: Path) -> None:
    old, new = jwt(1, start=time.time() - 298, life=300), jwt(2)  # ends in two seconds: three are too few
    world.replies["/api/auth/jwt/access_token"] = [says({"token": old}), says({"token": new})]
    (tmp_path / "t").write_text(f"{SECRET}\n")
    said = osmo("login", f"{world.url}/", "--method", "token", "--token-file", str(tmp_path / "t"))
    assert said == f"Logging in to {world.url}\nSuccessfully logged in. Welcome Ada.\n"
    assert stored() == {
        "dev_login": None,
        "name": "ada",
        "osmo_token": True,
        "token_login": {
            "client_id": None,
            "id_token": old,
            "refresh_token": SECRET,
            "refresh_url": f"{world.url}/api/auth/jwt/access_token",
            "username": "ada",
        },
        "url": world.url,
    }
    assert "osmo-user" in osmo("profile", "list")
    assert [json.loads(one.body) for one in world.asked("/api/auth/jwt/access_token")] == [{"token": SECRET}] * 2
    assert world.asked("/api/profile/settings")[-1].headers["authorization"] == f"Bearer {new}"
    assert "x-osmo-user" not in world.asked("/api/profile/settings")[-1].headers
    assert stored()["token_login"]["id_token"] == new


def test_what_osmos_own_command_has_written_is_used(world: World, osmo: Osmo) -> None:
    token = jwt()
    login_file = Path(find_paths().config) / "login.yaml"
    login_file.parent.mkdir(parents=True, exist_ok=True)
    kept = {"id_token": token, "refresh_token": "r", "refresh_url": f"{world.url}/token", "username": None}
    rest = {"url": world.url, "name": "Ada", "osmo_token": False, "dev_login": None}
    login_file.write_text(yaml.dump(rest | {"token_login": kept}))
    osmo("profile", "list")
    assert world.asked("/api/profile/settings")[-1].headers["authorization"] == f"Bearer {token}"


def test_a_password_is_read_from_where_nobody_sees_it(
    world: World, osmo: Osmo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.replies["/token"] = [says({"id_token": jwt(), "refresh_token": "r"})]
    (tmp_path / "p").write_text(f"{SECRET}\n")
    want = {"grant_type": "password", "username": "robot", "password": SECRET, "client_id": "cli"}
    line = ("login", world.url, "--method", "password", "--username", "robot")
    osmo(*line, "--password-file", str(tmp_path / "p"))
    osmo(*line, "--password-file", "-", stdin=f"{SECRET}\n")
    osmo("login", world.url, "--username", "robot", "--password", SECRET)  # the method goes without saying
    monkeypatch.setenv("OSMO_LOGIN_PASSWORD", SECRET)
    osmo(*line)
    assert world.forms() == [want | {"scope": "openid offline_access profile"}] * 4
    monkeypatch.delenv("OSMO_LOGIN_PASSWORD")
    assert "Must provide a password" in osmo(*line, code=2)
    assert "Must provide a user name" in osmo("login", world.url, "--method", "password", "--password", SECRET, code=2)
    assert "is empty" in osmo(*line, "--password-file", os.devnull, code=2)
    assert "can't read" in osmo(*line, "--password-file", str(tmp_path / "none"), code=2)
    (tmp_path / "large").write_bytes(b"x" * 70_000)
    assert "too large" in osmo(*line, "--password-file", str(tmp_path / "large"), code=2)


def test_secrets_that_are_misplaced_are_not_repeated(world: World, osmo: Osmo) -> None:
    assert "a word too many" in osmo("login", world.url, SECRET, code=2)
    assert "No such option: --tokn" in osmo("login", world.url, f"--tokn={SECRET}", code=2)
    assert "No such option" in osmo("login", world.url, f"-x{SECRET}", code=2)
    assert "exclude each other" in osmo("login", world.url, "--token", SECRET, "--token-file", "-", code=2)
    assert "is not the URL of a server" in osmo("login", f"https://me:{SECRET}@example.com", code=2)
    assert world.server.asked == []


@pytest.mark.parametrize("method", ["token", "password", "code", "pkce"])
def test_secrets_are_not_sent_where_others_read_them(osmo: Osmo, method: str) -> None:
    said = osmo("login", "http://osmo.example.com", "--method", method, "--token", SECRET, code=2)
    assert "is not encrypted" in said


def test_a_login_over_http_to_elsewhere_is_not_used(isolated_home: Path, osmo: Osmo) -> None:
    login.save(find_paths(), Login("http://osmo.example.com", "ada", Tokens(jwt())))
    assert "is not encrypted" in osmo("profile", "list", code=2)


@pytest.mark.parametrize(
    "url", ["https://", "ftp://x", "https://x:y", "https://x/?q=1", "https://x#f", "https://x y", "https://h:99999", ""]
)
def test_what_is_no_url_of_a_server(osmo: Osmo, url: str) -> None:
    assert "is not the URL of a server" in osmo("login", url, "--username", "ada", code=2)


def test_without_a_method_the_server_says_which(world: World, osmo: Osmo) -> None:
    world.replies["/device"] = [says({"device_code": "d", "user_code": "AB", "verification_uri": "https://x/d"})]
    world.replies["/token"] = [says({"error": "access_denied"}, 400)]
    world.replies["/device"] = [says({"error": "invalid_client"}, 401)]
    assert "invalid_client" in osmo("login", world.url, code=2)
    world.replies["/api/auth/login"] = [says({"message": "no such route", "error_code": "NOTFOUND"}, 404)]
    assert "Welcome bob." in osmo("login", world.url, "--username", "bob")
    assert stored()["dev_login"] == {"username": "bob"}
    assert "names no identity provider" in osmo("login", world.url, "--method", "code", code=2)
    assert stored()["dev_login"] == {"username": "bob"}, "a login that failed does not replace the last one"
    assert "Welcome bob." in osmo("login"), "the server and the name of the last login"
    assert "Successfully logged out" in osmo("logout")
    assert "You were not logged in" in osmo("logout")
    assert "Which server?" in osmo("login", code=2)


class Pauses:
    def __init__(self) -> None:
        self.taken: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.taken.append(seconds)


def by_device(world: World, pause: Callable[[float], None], **kwargs: Any) -> tuple[Tokens, list[str]]:
    told: list[str] = []
    found = oauth.by_device(f"{world.url}/device", f"{world.url}/token", "cli", tell=told.append, pause=pause, **kwargs)
    return found, told


DEVICE = {"device_code": SECRET, "user_code": "ABCD-EFGH", "verification_uri": "https://x/d", "expires_in": 600}


def test_a_code_is_asked_for_until_it_is_confirmed(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.replies["/device"] = [says(DEVICE)]
    pending, slow = says({"error": "authorization_pending"}, 400), says({"error": "slow_down"}, 400)
    world.replies["/token"] = [pending, slow, pending, Says(503), says({"id_token": jwt(7), "refresh_token": "r"})]
    pauses = Pauses()
    found, told = by_device(world, pauses)
    assert oauth.claims_of(found.id_token)["n"] == 7
    assert (found.refresh_token, found.refresh_url, found.client_id) == ("r", f"{world.url}/token", "cli")
    assert told == ["Visit https://x/d and enter the following code: ABCD-EFGH"]
    assert pauses.taken == [5, 5, 10, 10, 15], "five seconds are meant where none are named; slower when asked to"
    assert world.forms()[0] == {"grant_type": oauth._DEVICE, "device_code": SECRET, "client_id": "cli"}
    assert "trying again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("grant", "words"),
    [
        ({"error": "access_denied"}, "denied"),
        ({"error": "expired_token"}, "not confirmed in time"),
        ({"error": "odd\x1b[31m", "error_description": "x\n" * 500}, "odd"),
        ({"id_token": None}, "gave no id_token"),
        ({"id_token": "a.b"}, "not a JWT"),
    ],
)
def test_a_code_that_comes_to_nothing(world: World, grant: dict[str, Any], words: str) -> None:
    world.replies["/device"] = [says(DEVICE | {"interval": 2})]
    world.replies["/token"] = [says(grant, 400 if "error" in grant else 200)]
    with pytest.raises(CasstoreError) as raised:
        by_device(world, Pauses())
    assert words in raised.value.message
    assert len(raised.value.message) < 500


def test_a_code_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.replies["/device"] = [says(DEVICE | {"expires_in": 10, "message": "Go\x1b there"})]
    world.replies["/token"] = [says({"error": "authorization_pending"}, 400)]
    now = [0.0]
    monkeypatch.setattr("casstore_cli.oauth.time.monotonic", lambda: now[0])

    def pause(seconds: float) -> None:
        now[0] += seconds

    with pytest.raises(AccessError, match="in time"):
        by_device(world, pause)
    assert len(world.forms()) == 2


def visit(line: str, answer: Callable[[dict[str, str]], str], pages: list[tuple[int, str]]) -> threading.Thread:
    """A browser: it is shown the URL, and comes back with what ``answer`` makes of its query."""
    url = line.rpartition(" ")[2]
    sent = {key: values[0] for key, values in parse_qs(urlsplit(url).query).items()}

    def go() -> None:
        with socket.create_connection(("127.0.0.1", urlsplit(sent["redirect_uri"]).port or 0)):  # and says nothing
            come_back()

    def come_back() -> None:
        for path in ("/favicon.ico", "/callback?code=x&state=wrong", f"/callback?{answer(sent)}"):
            at = urlsplit(sent["redirect_uri"])
            line = http.client.HTTPConnection(at.hostname or "", at.port, timeout=30)
            line.request("GET", path)
            with line.getresponse() as reply:
                pages.append((reply.status, reply.read().decode()))
            line.close()

    thread = threading.Thread(target=go)
    thread.start()
    return thread


Browsed = tuple[Tokens | CasstoreError, list[tuple[int, str]], dict[str, str]]


def browse(world: World, answer: Callable[[dict[str, str]], str]) -> Browsed:
    pages: list[tuple[int, str]] = []
    threads: list[threading.Thread] = []
    sent: dict[str, str] = {}

    def tell(line: str) -> None:
        query = parse_qs(urlsplit(line.rpartition(" ")[2]).query)
        sent.update({key: values[0] for key, values in query.items()})
        world.replies.setdefault("/token", [says({"id_token": jwt(3, nonce=sent["nonce"]), "refresh_token": "r"})])
        threads.append(visit(line, answer, pages))

    try:
        found: Tokens | CasstoreError = browser.by_browser(f"{world.url}/auth", f"{world.url}/token", "web", tell=tell)
    except CasstoreError as error:
        found = error
    for thread in threads:
        thread.join()
    return found, pages, sent


def test_the_browser_comes_back_with_a_code(world: World, osmo: Osmo) -> None:
    found, pages, sent = browse(world, lambda sent: f"code={SECRET}&state={sent['state']}")
    assert isinstance(found, Tokens)
    assert [status for status, _ in pages] == [404, 400, 200]
    assert "You are logged in" in pages[2][1]
    assert (sent["code_challenge_method"], sent["response_type"], sent["client_id"]) == ("S256", "code", "web")
    (form,) = world.forms()
    assert (form["code"], form["grant_type"]) == (SECRET, "authorization_code")
    assert form["redirect_uri"] == sent["redirect_uri"]
    digest = hashlib.sha256(form["code_verifier"].encode()).digest()
    assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == sent["code_challenge"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("error=access_denied&error_description=no", "The login was denied: no"),
        ("nothing=here", "no code"),
    ],
)
def test_a_browser_that_comes_back_without_one(world: World, answer: str, words: str) -> None:
    found, pages, _ = browse(world, lambda sent: f"{answer}&state={sent['state']}")
    assert isinstance(found, AccessError)
    assert words in found.message
    assert "You are not logged in" in pages[2][1]
    assert world.forms() == []


def test_a_code_of_another_login_is_not_taken(world: World) -> None:
    world.replies["/token"] = [says({"id_token": jwt(nonce="another")})]
    found, pages, _ = browse(world, lambda sent: f"code=x&state={sent['state']}")
    assert isinstance(found, AccessError)
    assert "another login" in found.message
    assert "You are not logged in" in pages[2][1]


def test_nobody_comes_back_and_a_port_that_is_taken(world: World, osmo: Osmo) -> None:
    with pytest.raises(AccessError, match="in time"):
        browser.by_browser(f"{world.url}/auth", f"{world.url}/token", "web", tell=lambda _: None, wait=0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        said = osmo("login", world.url, "--method", "pkce", "--callback-port", port, code=2)
    assert f"can't come back to port {port}" in said


def logged_in(world: World, token: str, *, refresh: str | None = "r1") -> Bearer:
    found = Login(world.url, "ada", Tokens(token, refresh, f"{world.url}/token", "cli"))
    login.save(find_paths(), found)
    return Bearer(find_paths(), found)


def test_a_refused_token_is_renewed_once(world: World, osmo: Osmo) -> None:
    logged_in(world, jwt(1))
    refused = says({"message": "The id token is not good", "error_code": "CREDENTIAL", "kind": "access"}, 401)
    world.replies["/token"] = [says({"id_token": jwt(2), "refresh_token": "r2"})]
    world.replies["/api/profile/settings"] = [refused, says(PROFILE)]
    osmo("profile", "list")
    assert world.forms() == [{"grant_type": "refresh_token", "refresh_token": "r1", "client_id": "cli"}]
    assert stored()["token_login"]["refresh_token"] == "r2"
    world.replies["/api/profile/settings"] = [refused]
    world.replies["/token"] = [says({"id_token": jwt(3)})]
    before = len(world.server.asked)
    said = osmo("profile", "list", code=2)
    assert "The id token is not good" in said
    assert f"osmo login {world.url}" in said
    assert len(world.server.asked) - before == 3, "asked, renewed, asked"
    assert stored()["token_login"]["refresh_token"] == "r2", "one that is not replaced is kept"


def test_who_asks_too_often_tries_again_later(world: World, osmo: Osmo) -> None:
    logged_in(world, jwt())
    often = {"message": "ada asks too often", "error_code": "CREDENTIAL", "kind": "access", "hint": "Try in 3 s."}
    world.replies["/api/profile/settings"] = [says(often, 429)]
    said = osmo("profile", "list", code=75)
    assert said == "Error message: ada asks too often\nError code: 429\nHint: Try in 3 s.\n"
    world.replies["/api/profile/settings"] = [says(often | {"message": "who?"}, 401)]
    assert "Error code: 401" in osmo("login", world.url, "--method", "dev", "--username", "a", code=2)


def test_a_wrong_clock_is_told_and_does_no_harm(world: World, osmo: Osmo) -> None:
    """The server's clock is two hours behind ours: what it gives has always ended by our clock."""
    behind = time.time() - 7200
    logged_in(world, jwt(1, start=behind))
    world.replies["/token"] = [says({"id_token": jwt(2, start=behind), "refresh_token": "r2"})]
    world.replies["/api/version"] = [says({"major": "6", "minor": "2", "revision": "0"})]
    world.replies["/health"] = [says({})]
    osmo("info")
    assert len({one.headers["authorization"] for one in world.server.asked if one.path.startswith("/api")}) == 1
    assert len(world.forms()) == 1, "a token that has just been issued is good, whatever our clock says"
    refused = {"message": "no", "error_code": "CREDENTIAL", "kind": "access"}
    world.replies["/api/profile/settings"] = [says(refused, 401, Date=formatdate(behind, usegmt=True))]
    assert "This machine's clock is 120 minutes ahead of the server's." in osmo("profile", "list", code=2)
    assert web.clock_off(formatdate(time.time() + 600, usegmt=True)).endswith("10 minutes behind the server's.")
    assert web.clock_off("soon") == web.clock_off(None) == web.clock_off(formatdate(usegmt=True)) == ""


@pytest.mark.parametrize(
    ("reply", "words", "code"),
    [
        (says({"error": "invalid_grant"}, 400), "does not accept this login", 2),
        (Says(500), "answered with status 500", 10),
        (Says(200, b"<html>"), "can't be understood", 10),
        (Says(302, b""), "can't be understood", 10),
        (Says(drop=True), "Cannot connect to the identity provider", 10),
    ],
)
def test_a_login_that_can_not_be_renewed(world: World, osmo: Osmo, reply: Says, words: str, code: int) -> None:
    logged_in(world, jwt(1, start=0))
    before = stored()
    world.replies["/token"] = [reply]
    said = osmo("profile", "list", code=code)
    assert words in said
    assert len(said.splitlines()) <= 3
    assert stored() == before
    assert world.asked("/api/profile/settings") == []


def test_a_login_without_anything_to_renew_it(world: World, osmo: Osmo) -> None:
    logged_in(world, jwt(1, start=0), refresh=None)
    assert "has ended" in osmo("profile", "list", code=2)


def test_many_threads_and_processes_renew_once(world: World, isolated_home: Path) -> None:
    """Providers that rotate refresh tokens take one that was used before as stolen, and end the login."""
    bearer = logged_in(world, jwt(1, start=0))
    world.replies["/token"] = [says({"id_token": jwt(2), "refresh_token": "r2"}), says({"error": "invalid_grant"}, 400)]
    threads = [threading.Thread(target=bearer.token) for _ in range(8)]
    line = [sys.executable, "-c", "from casstore_cli.main import main; main()", "profile", "list"]
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        with process:
            assert process.stdout is not None
            said = process.stdout.read().decode()
        assert process.returncode == 0, said
    assert len(world.forms()) == 1
    assert stored()["token_login"]["refresh_token"] == "r2"


def test_who_logged_out_meanwhile_is_not_logged_in_again(world: World) -> None:
    bearer = logged_in(world, jwt(1, start=0))
    login.forget(find_paths())
    with pytest.raises(AccessError, match="not logged in to"):
        bearer.token()
    assert login.read(find_paths()) is None
    assert world.forms() == []


def test_a_command_does_not_go_on_as_somebody_else(world: World) -> None:
    """A mount, say, that lasts longer than a login."""
    bearer = logged_in(world, jwt(1, start=0))
    login.save(find_paths(), Login(world.url, "bob", Tokens(jwt(2), "r9", f"{world.url}/token", "cli")))
    with pytest.raises(AccessError, match="as ada any more"):
        bearer.token()
    found = login.read(find_paths())
    assert found is not None
    assert found.user == "bob"


def test_a_login_that_can_not_be_kept_is_not_renewed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bearer = logged_in(world, jwt(1, start=0))
    monkeypatch.setattr("casstore_cli.config._private", _refuse)
    with pytest.raises(UsageError, match="can't write"):
        bearer.token()
    assert world.forms() == [], "its refresh token would be lost"


def test_whether_a_login_can_be_kept_is_seen_first(world: World, osmo: Osmo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casstore_cli.config._private", _refuse)
    assert "can't write" in osmo("login", world.url, "--method", "code", code=2)
    assert world.server.asked == []


def _refuse(path: str, flags: int) -> int:
    raise OSError(30, os.strerror(30))


@pytest.mark.parametrize(
    "changed",
    [
        {"token_login": {"id_token": 3}},
        {"token_login": {"id_token": "a.b.c\r\nX: y"}},
        {"token_login": {"id_token": "a.b.c"}, "dev_login": {"username": "a"}},
        {"token_login": None},
        {"token_login": {}},
    ],
)
def test_logins_that_are_none(isolated_home: Path, changed: dict[str, Any]) -> None:
    paths = find_paths()
    Path(paths.config).mkdir(parents=True, exist_ok=True)
    Path(paths.config, "login.yaml").write_text(yaml.dump({"url": "https://x", **changed}))
    with pytest.raises(UsageError, match="login"):
        login.read(paths)


def test_a_token_that_is_no_jwt_is_told(world: World, osmo: Osmo) -> None:
    logged_in(world, "no-jwt-at-all")
    assert "is not a JWT" in osmo("profile", "list", code=2)


def test_a_server_that_can_not_be_reached(osmo: Osmo, tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert "Connection refused" in osmo("login", nobody, "--method", "dev", "--username", "a", code=10)
        assert "Connection refused" in osmo("login", nobody, "--method", "token", "--token", SECRET, code=10)
    said = osmo("login", "https://no-such-host.invalid", "--token", SECRET, code=10)
    assert "its name is not known" in said


@contextlib.contextmanager
def tls_server(folder: Path, host: str = "localhost") -> Iterator[tuple[str, Path]]:
    """A server of its own authority: its URL, and the file with its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file, private = folder / "certificate.pem", folder / "key.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.write_bytes(key.private_bytes(*form))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._say({"token": jwt()})

        def do_GET(self) -> None:
            self._say(PROFILE)

        def _say(self, value: Any) -> None:
            body = json.dumps(value).encode()
            self.send_response_only(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.HTTPServer):
        def get_request(self) -> tuple[socket.socket, Any]:
            plain, address = super().get_request()
            try:
                return context.wrap_socket(plain, server_side=True), address
            except OSError:  # who does not trust us hangs up
                plain.close()
                raise

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, private)
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://localhost:{server.server_address[1]}", file
        finally:
            server.shutdown()
            thread.join()


def test_a_certificate_that_nobody_vouches_for(osmo: Osmo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_server(tmp_path) as (url, certificate):
        said = osmo("login", url, "--token", SECRET, code=10)
        assert "its certificate is not valid: self-signed certificate" in said
        assert "SSL_CERT_FILE" in said
        assert "its certificate is not valid" in osmo("login", url, "--method", "dev", "--username", "a", code=10)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert "Welcome Ada" in osmo("login", url, "--token", SECRET)
    with World() as world:
        assert "does not speak TLS" in osmo("login", world.url.replace("http", "https"), "--token", SECRET, code=10)


class Proxy:
    """Joins connections of clients to one server, whichever they ask for; ``asked`` has the first lines and headers."""

    def __init__(self, port: int) -> None:
        self.asked: list[str] = []
        self._sockets: list[socket.socket] = []
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.at = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            self.asked.append(head.decode())
            server = socket.create_connection(("127.0.0.1", self._port))
            self._sockets += [client, server]
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            for one, other in ((client, server), (server, client)):
                self._threads.append(threading.Thread(target=self._pipe, args=(one, other)))
                self._threads[-1].start()

    @staticmethod
    def _pipe(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        with contextlib.suppress(OSError):
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        for one in self._sockets:
            one.close()


def test_a_server_behind_a_proxy(osmo: Osmo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_server(tmp_path, "osmo.example.com") as (url, certificate):
        proxy = Proxy(urlsplit(url).port or 0)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:p%40ss@{proxy.at}")
        assert "Welcome Ada" in osmo("login", "https://osmo.example.com", "--token", SECRET)
        assert {tuple(asked.split()[:2]) for asked in proxy.asked} == {("CONNECT", "osmo.example.com:443")}
        assert f"Basic {base64.b64encode(b'me:p@ss').decode()}" in proxy.asked[0]
        proxy.close()
    monkeypatch.setenv("HTTPS_PROXY", "socks://x")
    assert "HTTPS_PROXY is not the URL of a proxy" in osmo(
        "login", "https://osmo.example.com", "--token", SECRET, code=2
    )
    monkeypatch.setenv("NO_PROXY", ".invalid")
    assert "its name is not known" in osmo("login", "https://a.invalid", "--token", SECRET, code=10)


def test_a_server_that_is_elsewhere(world: World, osmo: Osmo) -> None:
    world.replies["/api/profile/settings"] = [Says(301, b"", {"Location": "https://new.example.com/"})]
    said = osmo("login", world.url, "--method", "dev", "--username", "a", code=2)
    assert "answered with status 301, and refers to https://new.example.com/" in said
    world.replies["/api/auth/login"] = [Says(200, b"<html>welcome</html>")]
    assert "can't be understood" in osmo("login", world.url, code=10)
