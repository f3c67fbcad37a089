"""Users, roles and tokens on the wire, as OSMO's client asks for them and reads the replies."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from casstore.config import load_config
from casstore.errors import AccessError
from casstore.testing.http import Http, Reply
from casstore.wire.auth import NewUser
from casstore_cli import login, main
from casstore_server.api.authenticate import make_logins
from casstore_server.db.callers import PROVIDER, Callers
from casstore_server.db.identity import People
from casstore_server.identity.actions import grants_of, parse_role
from casstore_server.identity.caller import Caller
from casstore_server.services import tokens as service
from casstore_server.services import users
from tests.compat.conftest import Server

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}")
TODAY = datetime.now(UTC)


def day(days: int) -> str:
    return f"{TODAY + timedelta(days=days):%Y-%m-%d}"


def as_user(server: Server, name: str) -> Http:
    return Http(server.port, {"x-osmo-user": name})


def with_token(server: Server, token: str) -> Http:
    return Http(server.port, {"Authorization": f"Bearer {token}"})


def made(server: Server, name: str, *roles: str) -> Http:
    reply = server.client.post("/api/auth/user", json={"id": name, "roles": list(roles)})
    assert reply.status_code == 200, reply.text
    return as_user(server, name)


def refused(reply: Reply, status: int, words: str) -> None:
    assert reply.status_code == status, reply.text
    assert words in reply.json()["message"], reply.text


def test_users_are_made_listed_and_shown(server: Server) -> None:
    for name in ("service-a", "service-b", "eve"):
        made(server, name, "osmo-user", *(["osmo-viewer"] if name == "eve" else []))
    found = server.get("/api/auth/user", count=100)
    assert set(found) == {"total_results", "start_index", "items_per_page", "users"}
    assert (found["total_results"], found["start_index"], found["items_per_page"]) == (3, 1, 3)
    assert [user["id"] for user in found["users"]] == ["eve", "service-b", "service-a"], "the newest first"
    assert set(found["users"][0]) == {"id", "created_at", "created_by"}
    assert ISO.fullmatch(found["users"][0]["created_at"])
    assert found["users"][0]["created_by"] == "ada"
    assert server.get("/api/auth/user", id_prefix="service-")["users"][0]["id"] == "service-b"
    assert server.get("/api/auth/user", id_prefix="%")["total_results"] == 0
    page = server.get("/api/auth/user", count=1, start_index=2)
    assert (page["total_results"], page["items_per_page"], page["users"][0]["id"]) == (3, 1, "service-b")
    assert server.get("/api/auth/user", roles=["osmo-viewer", "osmo-admin"])["total_results"] == 1
    assert server.get("/api/auth/user", count=-3, start_index=-3)["items_per_page"] == 1
    user = server.get("/api/auth/user/eve")
    assert set(user) == {"id", "created_at", "created_by", "roles"}
    assert [role["role_name"] for role in user["roles"]] == ["osmo-user", "osmo-viewer"]
    assert set(user["roles"][0]) == {"role_name", "assigned_by", "assigned_at"}
    assert server.get("/api/auth/user/eve/roles") == {"user_id": "eve", "roles": user["roles"]}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"id": ""}, 400, "not a user name"),
        ({"id": "a b"}, 400, "not a user name"),
        ({"id": ":provider"}, 400, "not a user name"),
        ({"id": "x" * 129}, 400, "not a user name"),
        ({"id": "eve", "roles": ["no-such-role"]}, 404, "There is no role no-such-role"),
        ({}, 400, "can't be understood"),
        ([], 400, "can't be understood"),
    ],
)
def test_users_that_are_none(server: Server, body: Any, status: int, words: str) -> None:
    refused(server.client.post("/api/auth/user", json=body), status, words)
    assert server.get("/api/auth/user")["total_results"] == 0


def test_roles_come_and_go(server: Server) -> None:
    eve = made(server, "eve", "osmo-viewer")
    refused(server.client.post("/api/auth/user", json={"id": "eve"}), 409, "There is a user eve already")
    refused(eve.post("/api/auth/user", json={"id": "bob"}), 403, "eve has no right user:Manage")
    given = server.client.post("/api/auth/user/eve/roles", json={"role_name": "osmo-admin"}).json()
    assert set(given) == {"user_id", "role_name", "assigned_by", "assigned_at"}
    assert eve.post("/api/auth/user", json={"id": "bob"}).status_code == 200
    again = server.client.post("/api/auth/user/eve/roles", json={"role_name": "osmo-admin"}).json()
    assert again == given
    made(server, "carol", "osmo-admin")
    assert server.client.ask("DELETE", "/api/auth/user/eve/roles/osmo-admin").json() is None
    refused(eve.post("/api/auth/user", json={"id": "bo"}), 403, "no right")
    refused(server.client.ask("DELETE", "/api/auth/user/eve/roles/osmo-admin"), 404, "does not have the role")
    refused(server.client.post("/api/auth/user/nobody/roles", json={"role_name": "osmo-user"}), 404, "no user nobody")
    refused(server.client.post("/api/auth/user/eve/roles", json={"role_name": "nothing"}), 404, "no role nothing")
    refused(server.client.get("/api/auth/user/nobody"), 404, "There is no user nobody")


def test_the_audit_log_says_which_roles(server: Server) -> None:
    made(server, "eve", "osmo-user", "osmo-viewer")
    server.client.post("/api/auth/user/eve/roles", json={"role_name": "osmo-admin"})
    as_user(server, "eve").post("/api/auth/access_token/t", {"roles": ["osmo-viewer"], "expires_at": day(2)})
    found = [one["detail"] for one in server.get("/api/v1/audit")["entries"]][::-1]
    assert [(one["subject"], one["roles"]) for one in found] == [
        ("eve", "osmo-user, osmo-viewer"),
        ("eve", "osmo-admin"),
        ("eve", "osmo-viewer"),
    ]
    assert found[2]["expires_at"].startswith(day(2))


def test_there_always_is_an_administrator(server: Server) -> None:
    carol = made(server, "carol", "osmo-admin")
    refused(carol.ask("DELETE", "/api/auth/user/carol"), 409, "carol is the last administrator")
    refused(carol.ask("DELETE", "/api/auth/user/carol/roles/osmo-admin"), 409, "carol is the last administrator")
    made(server, "dave", "osmo-admin")
    assert carol.ask("DELETE", "/api/auth/user/carol/roles/osmo-admin").status_code == 200


def test_nobody_hands_out_rights_that_they_do_not_have(server: Server) -> None:
    """With user:Manage alone nobody becomes an administrator, by no way."""
    services = server.services
    object.__setattr__(services, "roles", lambda: {"keeper": _role("keeper", "user:*", "token:*", "pool:Read")})
    made(server, "root", "osmo-admin")
    made(server, "other", "osmo-admin")
    caller = Caller("kim", grants=grants_of(["keeper"], services.roles()))

    users.create(services, caller, NewUser(id="new", roles=["keeper"]))
    service.create(services, caller, "new", "t", expires_at=None, description="", roles=[])
    for attempt in (
        lambda: users.create(services, caller, NewUser(id="evil", roles=["osmo-admin"])),
        lambda: users.give(services, caller, "kim", "osmo-admin"),
        lambda: users.give(services, caller, "new", "osmo-user"),
        lambda: users.take(services, caller, "root", "osmo-admin"),
        lambda: users.delete(services, caller, "root"),
        lambda: service.create(services, caller, "root", "t", expires_at=None, description="", roles=[]),
    ):
        with pytest.raises(AccessError, match="has rights that kim has not"):
            attempt()


def _role(name: str, *actions: str) -> Any:
    return parse_role(name, {"policies": [{"actions": list(actions)}]})


def test_a_deleted_user_is_out_and_their_work_stays(server: Server) -> None:
    eve = made(server, "eve", "osmo-user")
    made(server, "root", "osmo-admin")
    token = eve.post("/api/auth/access_token/t").json()
    assert with_token(server, token).get("/api/profile/settings").status_code == 200
    reply = eve.post(
        "/api/pool/default/workflow", json={"file": "workflow: {name: w, tasks: [{name: a, image: i, command: [x]}]}"}
    )
    assert reply.status_code == 200, reply.text
    assert server.client.ask("DELETE", "/api/auth/user/eve").json() is None
    refused(server.client.get("/api/auth/user/eve"), 404, "There is no user eve")
    assert with_token(server, token).get("/api/profile/settings").status_code == 401
    refused(eve.get("/api/profile/settings"), 403, "disabled")
    assert server.get("/api/auth/user", id_prefix="eve")["total_results"] == 0
    assert [one["user"] for one in server.get("/api/workflow", all_users=True)["workflows"]] == ["eve"]
    refused(server.client.ask("DELETE", "/api/auth/user/eve"), 404, "There is no user eve")
    made(server, "eve", "osmo-viewer")
    assert eve.get("/api/profile/settings").json()["roles"] == ["osmo-viewer"], "what they had is not theirs again"
    assert eve.get("/api/auth/access_token").json() == []


def test_a_token_is_shown_once_and_kept_as_a_digest(server: Server, tmp_path: Path) -> None:
    query = {"expires_at": day(31), "description": "nightly"}
    token = server.client.post("/api/auth/access_token/my-token", query).json()
    assert isinstance(token, str)
    listed = server.get("/api/auth/access_token")
    assert listed == [
        {
            "user_name": "ada",
            "token_name": "my-token",
            "expires_at": f"{day(31)}T00:00:00.000000",
            "description": "nightly",
            "roles": ["osmo-admin"],
            "last_used": None,
        }
    ]
    roles = server.get("/api/auth/access_token/my-token/roles")
    assert roles == server.get("/api/auth/access_tokens/my-token/roles")
    assert (roles["user_name"], roles["token_name"], roles["roles"][0]["role_name"]) == (
        "ada",
        "my-token",
        "osmo-admin",
    )
    for file in tmp_path.glob("server.sqlite*"):
        assert token.encode() not in file.read_bytes()
        assert token.removeprefix("casstore_").encode() not in file.read_bytes()
    jwt = Http(server.port).post("/api/auth/jwt/access_token", json={"token": token}).json()["token"]
    profile = with_token(server, jwt).get("/api/profile/settings").json()
    assert profile["token"] == {"name": "my-token", "expires_at": f"{day(31)}T00:00:00.000000"}
    assert profile["profile"]["username"] == "ada"
    assert ISO.fullmatch(server.get("/api/auth/access_token")[0]["last_used"])
    assert server.get("/api/profile/settings")["token"] is None
    refused(server.client.post("/api/auth/access_token/my-token"), 409, "has a token my-token already")
    assert server.client.ask("DELETE", "/api/auth/access_token/my-token").json() is None
    assert with_token(server, jwt).get("/api/profile/settings").status_code == 401, "at once"
    refused(server.client.ask("DELETE", "/api/auth/access_token/my-token"), 404, "ada has no token my-token")
    refused(server.client.get("/api/auth/access_token/my-token/roles"), 404, "ada has no token my-token")


@pytest.mark.parametrize(
    ("name", "query", "words"),
    [
        ("a b", {}, "not the name of a token"),
        ("-a", {}, "not the name of a token"),
        ("x" * 65, {}, "not the name of a token"),
        ("t", {"expires_at": day(0)}, "not after today"),
        ("t", {"expires_at": "2020-01-01"}, "not after today"),
        ("t", {"expires_at": day(400)}, "can't last longer than 366 days"),
        ("t", {"expires_at": "tomorrow"}, "is not a date"),
        ("t", {"expires_at": "2027-02-30"}, "is not a date"),
        ("t", {"expires_at": "20270101"}, "is not a date"),
        ("t", {"description": "x" * 1001}, "longer than 1000"),
    ],
)
def test_tokens_that_are_none(server: Server, name: str, query: dict[str, str], words: str) -> None:
    refused(server.client.post(f"/api/auth/access_token/{name.replace(' ', '%20')}", query), 400, words)
    assert server.get("/api/auth/access_token") == []


def test_a_token_has_some_of_the_roles_of_its_user(server: Server) -> None:
    eve = made(server, "eve", "osmo-user", "osmo-viewer")
    query = {"roles": ["osmo-viewer"], "expires_at": ""}
    small = with_token(server, eve.post("/api/auth/access_token/small", query).json())
    whole = with_token(server, eve.post("/api/auth/access_token/whole").json())
    refused(
        eve.post("/api/auth/access_token/x", {"roles": ["osmo-admin"]}), 403, "eve does not have the role osmo-admin"
    )
    assert eve.get("/api/auth/access_token").json()[0]["expires_at"].startswith(day(31))
    assert small.get("/api/profile/settings").json()["roles"] == ["osmo-viewer"]
    assert whole.get("/api/profile/settings").json()["roles"] == ["osmo-user", "osmo-viewer"]
    refused(small.post("/api/pool/default/workflow", json={"file": ""}), 403, "no right workflow:Create")
    refused(small.post("/api/auth/access_token/y", {"roles": ["osmo-user"]}), 403, "does not have the role osmo-user")
    server.client.ask("DELETE", "/api/auth/user/eve/roles/osmo-user")
    assert whole.get("/api/profile/settings").json()["roles"] == ["osmo-viewer"]
    server.client.post("/api/auth/user/eve/roles", json={"role_name": "osmo-admin"})
    assert whole.get("/api/profile/settings").json()["roles"] == ["osmo-viewer"], "what comes later is not in it"


def test_a_token_made_with_a_token_does_not_outlast_it(server: Server) -> None:
    eve = made(server, "eve", "osmo-user")
    first = with_token(server, eve.post("/api/auth/access_token/first", {"expires_at": day(5)}).json())
    assert first.post("/api/auth/access_token/second").status_code == 200
    by_name = {one["token_name"]: one for one in eve.get("/api/auth/access_token").json()}
    assert by_name["second"]["expires_at"] == by_name["first"]["expires_at"]
    refused(
        first.post("/api/auth/access_token/third", {"expires_at": day(6)}), 400, "than the one that it is made with"
    )


def test_tokens_of_other_users(server: Server) -> None:
    eve = made(server, "eve", "osmo-viewer")
    path = "/api/auth/user/eve/access_token"
    refused(eve.get("/api/auth/user/ada/access_token"), 403, "no right token:Manage")
    refused(eve.post("/api/auth/user/ada/access_token/t"), 403, "no right token:Manage")
    token = server.client.post(f"{path}/robot", {"roles": ["osmo-viewer"]}).json()
    assert with_token(server, token).get("/api/profile/settings").json()["profile"]["username"] == "eve"
    assert [one["token_name"] for one in server.get(path)] == ["robot"]
    refused(server.client.post(f"{path}/r", {"roles": ["osmo-admin"]}), 404, "eve does not have the role osmo-admin")
    refused(server.client.post("/api/auth/user/nobody/access_token/t"), 404, "There is no user nobody")
    refused(server.client.get("/api/auth/user/nobody/access_token"), 404, "There is no user nobody")
    assert server.client.ask("DELETE", f"{path}/robot").json() is None
    refused(server.client.ask("DELETE", f"{path}/robot"), 404, "eve has no token robot")


def test_the_token_of_somebody_who_was_not_created(server: Server) -> None:
    """Who comes by the identity provider, or by name, is written down with what they have then, and loses nothing."""
    bob = as_user(server, "bob")
    before = bob.get("/api/profile/settings").json()["roles"]
    token = bob.post("/api/auth/access_token/t").json()
    assert bob.get("/api/profile/settings").json()["roles"] == before
    assert with_token(server, token).get("/api/profile/settings").json()["roles"] == before
    assert server.get("/api/auth/user/bob")["created_by"] == "bob"


def test_the_rights_of_the_owner_are_for_the_owner(server: Server) -> None:
    """A provider may have another person of the same name: they are not who has the socket."""
    token = server.client.post("/api/auth/access_token/t").json()
    assert with_token(server, token).get("/api/profile/settings").json()["roles"] == ["osmo-admin"]
    logins = make_logins(server.services)
    assert logins.granted("ada").roles == ()
    assert server.get("/api/auth/user/ada")["roles"][0]["assigned_by"] == "the server's socket"
    assert server.client.post("/api/auth/user/ada/roles", json={"role_name": "osmo-admin"}).status_code == 200
    assert logins.granted("ada").roles == ("osmo-admin",), "an administrator has said so"


def test_roles_of_groups_last_as_long_as_the_group(server: Server) -> None:
    services = server.services
    member = Caller("gil", grants=grants_of(["osmo-user", "osmo-viewer", "osmo-admin"]))
    token = service.create_own(services, member, "t", expires_at=None, description="", roles=["osmo-viewer"])
    assert with_token(server, token).get("/api/profile/settings").json()["roles"] == ["osmo-viewer"]
    given = {one.role: one.by for one in People(services.database).get("gil")[1]}
    assert given == {"osmo-user": "gil", "osmo-viewer": PROVIDER, "osmo-admin": PROVIDER}
    Callers(services.database).lose("gil", {"osmo-viewer", "osmo-user"})
    assert [one.role for one in People(services.database).get("gil")[1]] == ["osmo-admin", "osmo-user"]
    refused(with_token(server, token).get("/api/profile/settings"), 403, "gil has no right profile:Own")


def test_a_caller_of_some_pools_makes_no_token(server: Server) -> None:

    some = Caller("gil", grants=replace(grants_of(["osmo-user"]), pools=frozenset({"p"})))
    with pytest.raises(AccessError, match="some pools only"):
        service.create_own(server.services, some, "t", expires_at=None, description="", roles=[])


def test_our_own_command_lists_users_page_by_page(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    login.save(load_config().paths, login.Login(f"http://127.0.0.1:{server.port}", "ada"))
    monkeypatch.setattr("casstore_cli.commands.user._PAGE", 2)

    def listed(*words: str) -> dict[str, Any]:
        assert main.run(["user", "list", "-t", "json", *words]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    assert listed() == {"total_results": 0, "start_index": 1, "items_per_page": 0, "users": []}
    assert main.run(["user", "list"]) == 0
    assert capsys.readouterr().out == "No users found\n"
    for number in range(5):
        made(server, f"u{number}", "osmo-user")
    assert [user["id"] for user in listed()["users"]] == ["u4", "u3", "u2", "u1", "u0"]
    some = listed("--count", "3", "--roles", "osmo-user", "osmo-viewer", "-p", "u")
    assert [user["id"] for user in some["users"]] == ["u4", "u3", "u2"]
    assert (some["total_results"], some["items_per_page"]) == (5, 3)


def test_two_at_once_make_one_user_and_one_token(server: Server) -> None:
    answers: list[int] = []

    def ask() -> None:
        client = as_user(server, "ada")
        answers.append(client.post("/api/auth/user", json={"id": "eve", "roles": ["osmo-user"]}).status_code)
        answers.append(client.post("/api/auth/access_token/t").status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 200, *[409] * 6]
