"""What the server itself can reach is not open to everybody who may submit to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from casstore.testing.http import Http
from tests.compat.conftest import Server

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
