"""Logging in to a real server through a real identity provider, and what such a login is worth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from casstore.testing.servers.oidc import BROWSER_CLIENT, DEVICE_CLIENT, Browser, IdentityProvider
from tests.homes import PATIENCE, Home, eventually

pytestmark = pytest.mark.slow
SERVERS = Path(__file__).parents[1] / "servers"
GROUPS = {"root": ["platform"], "ada": ["vision"]}
BROWSER = f"""#!{sys.executable}
import os, pathlib, sys
from casstore.testing.servers.oidc import Browser
page = pathlib.Path(PAGE)
page.with_suffix(".new").write_text(Browser(USER).visit(sys.argv[1], deny=DENY))
page.with_suffix(".new").rename(page)
"""


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    """Its tokens end three seconds after they are issued: each command has to renew the one of the command before."""
    with IdentityProvider(SERVERS / "oidc", GROUPS, id_token_seconds=3) as found:
        yield found


class Operator(Home):
    """Whoever runs the server; ``url`` is where it is."""

    def __init__(self, folder: Path, provider: IdentityProvider) -> None:
        super().__init__(folder, "operator")
        settings = {
            "port": 0,
            "oidc_issuer": provider.issuer,
            "oidc_client_id": DEVICE_CLIENT,
            "oidc_browser_client_id": BROWSER_CLIENT,
            "oidc_roles": {"platform": ["osmo-admin"]},
        }
        config = folder / ".config" / "osmo" / "config.yaml"
        config.parent.mkdir(parents=True)
        config.write_text(yaml.safe_dump({"casstore": {"server": settings}}))
        self.url = self.begin()

    def begin(self) -> str:
        self.osmo("server", "start")
        found = self.json("server", "status")["server"]["url"]
        assert isinstance(found, str)
        return found


@pytest.fixture
def operator(short_path: Path, provider: IdentityProvider) -> Iterator[Operator]:
    (short_path / "op").mkdir()
    made = Operator(short_path / "op", provider)
    yield made
    made.osmo("server", "stop")


class Person(Home):
    """Somebody at a desk of their own."""

    @property
    def login(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((self.folder / ".config/osmo/login.yaml").read_text())
        return found

    def by_code(self, url: str, user: str, *, deny: bool = False) -> tuple[int, str]:
        """Log in by a code that ``user`` confirms; the exit code, and what the command said."""
        with self.start("login", url, "--method", "code", stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline(), process.stdout.readline()]
            assert lines[1].startswith("Visit http://127.0.0.1"), lines
            Browser(user).visit(lines[1].split()[1], deny=deny)
            said = "".join([*lines, process.stdout.read()])
        return process.returncode, said

    def by_browser(self, url: str, user: str, *, deny: bool = False, code: int = 0) -> tuple[str, str]:
        """Log in with the browser of this desk; what the command said, and the last page."""
        page = self.folder / "page.html"
        page.unlink(missing_ok=True)
        script = self.folder / "browser"
        script.write_text(
            BROWSER.replace("USER", repr(user)).replace("DENY", repr(deny)).replace("PAGE", repr(str(page)))
        )
        script.chmod(0o755)
        said = self.osmo("login", url, "--method", "pkce", code=code, BROWSER=str(script))
        eventually(page.exists, "the browser shows a page")
        return said, page.read_text()


@pytest.fixture
def people(short_path: Path) -> Iterator[Any]:
    def at(name: str) -> Person:
        (short_path / name).mkdir()
        return Person(short_path / name, name)

    return at


def status(url: str, token: str) -> int:
    request = urllib.request.Request(f"{url}/api/profile/settings", headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_by_code(operator: Operator, people: Any, provider: IdentityProvider) -> None:
    ada: Person = people("ada")
    assert "does not take a name" in ada.refused("login", operator.url, "--method", "dev", "--username", "root")
    code, said = ada.by_code(operator.url, "ada")
    assert (code, said.splitlines()[-1]) == (0, "Successfully logged in. Welcome Ada Example.")
    first = ada.login
    assert (first["url"], first["name"], first["token_login"]["client_id"]) == (operator.url, "ada", DEVICE_CLIENT)
    profile = ada.json("profile", "list")
    assert (profile["profile"]["username"], profile["roles"]) == ("ada", ["osmo-user"])
    second = ada.login
    assert second["token_login"]["refresh_token"] != first["token_login"]["refresh_token"], "it was renewed"
    assert ada.json("pool", "list")["node_sets"]
    assert ada.login["token_login"]["refresh_token"] != second["token_login"]["refresh_token"], "and again"
    assert "has no right user:Manage" in ada.refused("user", "create", "eve")
    at_once = [ada.start("profile", "list", text=True) for _ in range(4)]
    for process in at_once:  # this provider ends a login whose refresh token comes twice
        said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said

    code, said = ada.by_code(operator.url, "ada", deny=True)
    assert (code, "The login was denied" in said) == (2, True)
    assert ada.json("profile", "list")["profile"]["username"] == "ada", "the old login is as good as before"

    provider.revoke(ada.login["token_login"]["refresh_token"], DEVICE_CLIENT)
    said = ada.refused("profile", "list")
    assert "does not accept this login (any more)" in said
    assert f"Log in again: osmo login {operator.url}" in said
    ada.osmo("logout")
    assert not (ada.folder / ".config/osmo/login.yaml").exists()


def test_by_browser_and_a_token_for_a_program(operator: Operator, people: Any, provider: IdentityProvider) -> None:
    root: Person = people("root")
    said, page = root.by_browser(operator.url, "root", deny=True, code=2)
    assert "The login was denied" in said
    assert "You are not logged in" in page
    said, page = root.by_browser(operator.url, "root")
    assert said.splitlines()[-1] == "Successfully logged in. Welcome Root Example."
    assert "You are logged in" in page
    assert root.json("profile", "list")["roles"] == ["osmo-admin", "osmo-user"], "by the group, and by default"

    assert root.osmo("user", "create", "robot", "--roles", "osmo-user", "osmo-viewer").splitlines() == [
        "User created: robot",
        "Roles assigned: osmo-user, osmo-viewer",
    ]
    said = root.osmo("token", "set", "nightly", "--user", "robot", "--roles", "osmo-viewer")
    note, shown, for_whom, roles = said.splitlines()
    assert note == "Note: Save the token in a secure location as it will not be shown again"
    assert (for_whom, roles) == ("Created for user: robot", "Roles: osmo-viewer")
    token = shown.removeprefix("Access token: ")
    assert status(operator.url, token) == 200

    robot: Person = people("robot")
    file = robot.write("token", token + "\n")
    assert "Welcome robot." in robot.osmo("login", operator.url, "--method", "token", "--token-file", file)
    profile = robot.json("profile", "list")
    assert (profile["profile"]["username"], profile["roles"]) == ("robot", ["osmo-viewer"])
    assert profile["token"]["name"] == "nightly"
    assert "name: nightly" in robot.osmo("profile", "list")
    assert [one["token_name"] for one in robot.json("token", "list")] == ["nightly"]

    root.osmo("user", "update", "robot", "--remove-roles", "osmo-viewer")
    assert "no right" in robot.refused("profile", "list")
    root.osmo("token", "delete", "nightly", "--user", "robot")
    assert "was deleted" in robot.refused("profile", "list")
    assert "was deleted" in robot.refused("login", operator.url, "--token-file", file)
    assert "mistyped" in robot.refused("login", operator.url, "--token", token[:-1])
    root.osmo("user", "delete", "robot", "--force")
    assert "There is no user robot" in root.refused("user", "get", "robot")

    # Their own token is worth what they are, as long as the provider says so.
    own = root.json("token", "set", "mine")["token"]
    assert status(operator.url, own) == 200
    root.osmo("user", "delete", "root", "--force", code=2)
    assert "last administrator" in root.refused("user", "delete", "root", "--force")


def test_other_keys_and_another_server_process(operator: Operator, people: Any, provider: IdentityProvider) -> None:
    ada: Person = people("ada")
    assert ada.by_code(operator.url, "ada")[0] == 0
    old = ada.login["token_login"]["id_token"]
    assert status(operator.url, old) == 200
    token = ada.json("token", "set", "mine")["token"]
    provider.rotate(forget=True)
    port = operator.url.rpartition(":")[2]
    operator.osmo("server", "stop")
    assert "Connection refused" in ada.refused("profile", "list", code=10)
    operator.osmo("server", "start", "--port", port)
    assert status(operator.url, old) == 401, "its key is gone"
    assert ada.json("profile", "list")["profile"]["username"] == "ada", "renewed, and signed with the new key"
    assert status(operator.url, token) == 200


def test_whoever_does_not_wait(operator: Operator, people: Any) -> None:
    ada: Person = people("ada")
    for method in ("code", "pkce"):
        with ada.start("login", operator.url, "--method", method, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            assert [process.stdout.readline().split()[0] for _ in range(2)] == ["Logging", "Visit"]
            os.kill(process.pid, signal.SIGINT)
            assert "Traceback" not in process.stdout.read()
        assert process.returncode == 3
    assert not (ada.folder / ".config/osmo/login.yaml").exists()
