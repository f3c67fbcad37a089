"""What the server itself can reach is not open to everybody who may submit to it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from casstore.testing.http import Http
from casstore_server.db.identity import People
from tests.compat.conftest import Server
from tests.compat.test_wire_identity import Site

WORKFLOW = """
workflow:
  name: reach
  tasks:
  - name: one
    image: ubuntu
    command: ["true"]
"""
READS = WORKFLOW + "    inputs: [{{url: '{url}'}}]\n"
WRITES = WORKFLOW + "    outputs: [{{url: '{url}'}}]\n"
SAVES = WORKFLOW + "    checkpoint: [{{path: /tmp/x, url: '{url}', frequency: 60s}}]\n"


def submitted(server: Server, user: str, text: str) -> tuple[int, str]:
    reply = Http(server.port, {"x-osmo-user": user}).post(
        "/api/pool/default/workflow", json={"file": text}, params={"validation_only": "true"}
    )
    return reply.status_code, reply.text


@pytest.mark.parametrize("template", [READS, WRITES, SAVES])
def test_files_of_the_server_are_for_who_manages_it(server: Server, tmp_path: Path, template: str) -> None:
    text = template.format(url=f"file://{tmp_path}")
    status, said = submitted(server, "bob", text)
    assert status == 400 and "does not open its own files to workflows" in said
    assert submitted(server, server.services.settings.user, text)[0] == 200


@pytest.mark.parametrize("template", [READS, WRITES])
def test_storage_is_reached_with_credentials_of_the_users_own(server: Server, template: str) -> None:
    status, said = submitted(server, "bob", template.format(url="s3://lab-store/packs/"))
    assert status == 400 and "bob has no credential for s3://lab-store" in said


def test_a_credential_without_keys_is_the_owners(server: Server) -> None:
    body = {"data_credential": {"endpoint": "s3://lab-store/x", "override_url": "http://127.0.0.1:1"}}
    reply = Http(server.port, {"x-osmo-user": "bob"}).post(
        "/api/credentials/mine", json=body, params={"validate": "false"}
    )
    assert reply.status_code == 403 and "identity of the server" in reply.text
    owner = Http(server.port, {"x-osmo-user": server.services.settings.user})
    assert owner.post("/api/credentials/mine", json=body, params={"validate": "false"}).status_code == 200


def declare(asking: Http, name: str, *policies: tuple[list[str], list[str]]) -> int:
    given = {"description": "", "policies": [{"actions": actions, "resources": where} for actions, where in policies]}
    return asking.ask("PUT", f"/api/configs/role/{name}", body=json.dumps({"configs": given}).encode()).status_code


def test_whoever_declares_roles_gives_only_rights_of_their_own(server: Server) -> None:
    everything = ["*"]
    assert declare(server.client, "operator", (["config:*", "pool:Read"], everything)) == 200
    assert declare(server.client, "keeper", (["dataset:*"], everything)) == 200
    People(server.services.database).create("olga", by="ada", roles=["operator"])
    olga = Http(server.port, {"x-osmo-user": "olga"})
    assert declare(olga, "operator", (everything, everything)) == 403
    assert declare(olga, "other", (["dataset:Read"], everything)) == 403
    assert declare(olga, "keeper", (["pool:Read"], everything)) == 403, "they would lose what is not hers to take"
    assert olga.ask("DELETE", "/api/configs/role/keeper").status_code == 403
    assert declare(olga, "other", (["pool:Read"], everything)) == 200
    assert olga.get("/api/bucket").status_code == 403


def test_what_is_not_there_leads_to_no_names_of_what_somebody_may_not_see(server: Server) -> None:
    server.config_file.write_text(
        "casstore: {buckets: {hidden-store: {url: 'file:///tmp/hidden'}}, pools: {hidden-pool: {}}}"
    )
    policies = ((["dataset:*"], ["bucket/gone"]), (["workflow:*", "pool:Read"], ["pool/gone"]))
    assert declare(server.client, "elsewhere", *policies) == 200
    People(server.services.database).create("gus", by="ada", roles=["elsewhere"])
    gus = Http(server.port, {"x-osmo-user": "gus"})
    for reply in (
        gus.get("/api/v1/bucket/gone"),
        gus.get("/api/bucket/gone/location"),
        gus.get("/api/v1/bucket/gone/dataset/x/version/1/files"),
        gus.post("/api/pool/gone/workflow", json={"file": WORKFLOW}),
    ):
        assert reply.status_code == 404 and "gone" in reply.text, reply.text
        assert "hidden" not in reply.text


def test_pages_of_others_change_nothing_through_a_gateway(server: Server, tmp_path: Path) -> None:
    settings = {"proxies": ("127.0.0.1/32",), "gateway": True, "public_url": "https://osmo.example.org"}
    with Site(server, tmp_path, **settings).open() as site:

        def asked(more: dict[str, str]) -> int:
            http = Http(site.port, {"x-osmo-user": "lena", "Host": "osmo.example.org"} | more)
            wanted = {"validation_only": "true"}
            return http.post("/api/pool/default/workflow", json={"file": WORKFLOW}, params=wanted).status_code

        assert asked({}) == 200
        assert asked({"Origin": "https://osmo.example.org", "Sec-Fetch-Site": "same-origin"}) == 200
        assert asked({"Origin": "https://evil.example.org"}) == 403
        assert asked({"Origin": "null"}) == 403
        assert asked({"Sec-Fetch-Site": "cross-site"}) == 403


def test_the_name_of_the_owner_elsewhere_is_another_persons(server: Server, tmp_path: Path) -> None:
    with Site(server, tmp_path, proxies=("127.0.0.1/32",), gateway=True).open() as site:
        owner = server.services.settings.user
        somebody = Http(site.port, {"x-osmo-user": owner, "x-osmo-roles": "osmo-user"})
        assert server.client.post("/api/auth/access_token/t").status_code == 200, "the owner has roles by the socket"
        refused = somebody.get("/api/credentials")
        assert refused.status_code == 403 and "name of this server's owner" in refused.text
        given = server.client.post(f"/api/auth/user/{owner}/roles", json={"role_name": "osmo-user"})
        assert given.status_code == 200, given.text
        assert somebody.get("/api/credentials").status_code == 200


def test_nobody_inherits_the_credentials_of_who_was_deleted(server: Server) -> None:
    people = People(server.services.database)
    people.create("lena", by="ada", roles=["osmo-user"])
    body = {"generic_credential": {"credential": {"key": "value"}}}
    assert Http(server.port, {"x-osmo-user": "lena"}).post("/api/credentials/mine", json=body).status_code == 200
    assert server.client.ask("DELETE", "/api/auth/user/lena").status_code == 200
    assert server.services.credentials.vault.names("lena") == {}
