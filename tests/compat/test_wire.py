"""The wire as a stock OSMO client uses it: paths, parameters, replies, errors, streams."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from casstore.config import load_config
from casstore.testing.http import Http
from casstore_cli import login, main
from casstore_cli.credentials import ConfigCredentials

HELLO = """
workflow:
  name: hello
  tasks:
  - name: one
    image: ubuntu
    command: [echo, hi]
"""
WORKFLOWS = Path(__file__).parent / "workflows"

if TYPE_CHECKING:
    from tests.compat.conftest import Server


def test_version_and_health_need_no_user(server: Server) -> None:
    stranger = Http(server.port)
    assert stranger.get("/api/version").json().keys() >= {"major", "minor", "revision", "hash"}
    assert stranger.get("/health").json() == {"status": "OK"}
    refused = stranger.get("/api/workflow")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json()["error_code"] == "CREDENTIAL"
    named = Http(server.port, {"x-osmo-user": "bob"})
    assert named.get("/api/workflow").json() == {"workflows": [], "more_entries": False}
    assert Http(server.port, {"x-osmo-user": "b/../b"}).get("/api/workflow").status_code == 400


def test_a_page_of_another_site_is_refused_on_the_port(server: Server) -> None:
    rebound = Http(server.port, {"x-osmo-user": "bob", "Host": "evil.example"})
    reply = rebound.get("/api/workflow")
    assert reply.status_code == 403
    assert "evil.example" in reply.json()["message"]


def test_double_slashes_are_collapsed(server: Server) -> None:
    assert server.client.get("//api/pool").json() == server.client.get("/api/pool").json()
    assert "default" in server.client.get("//api/pool_quota", params={"all_pools": "True"}).text


def test_submit_query_list_and_finish(server: Server) -> None:
    made = server.submit(priority="low")
    assert made["name"] == "hello-1"
    assert made.keys() == {"name", "overview", "logs", "spec", "dashboard_url"}
    server.finish("hello-1")
    found = server.get("/api/workflow/hello-1", verbose="True")
    assert (found["status"], found["submitted_by"], found["pool"], found["priority"]) == (
        "COMPLETED",
        "ada",
        "default",
        "LOW",
    )
    (task,) = found["groups"][0]["tasks"]
    assert task["name"] == "one"
    assert task["status"] == "COMPLETED"
    assert (task["exit_code"], task["retry_id"], task["lead"]) == (0, 0, True)
    assert server.get(f"/api/workflow/{found['uuid']}")["name"] == "hello-1"
    listed = server.get("/api/workflow", order="DESC", limit=20, offset=0, all_pools="True")
    (entry,) = listed["workflows"]
    assert entry["name"] == "hello-1"
    assert listed["more_entries"] is False
    for key in ("submit_time", "start_time", "end_time"):
        assert len(entry[key]) == len("2026-01-01T00:00:00.000000")
    assert server.get("/api/workflow/hello-1/task/one")["status"] == "COMPLETED"
    assert server.get("/api/workflow", app="x")["workflows"] == []


def test_a_low_priority_is_warned_about_in_a_header(server: Server) -> None:
    reply = server.client.post("/api/pool/default/workflow", params={"priority": "LOW"}, json={"file": HELLO})
    assert base64.b64decode(reply.headers["x-osmo-warning"]).decode() == "LOW priority can be preempted during the run."


def test_lenient_forms_are_warned_about(server: Server) -> None:
    text = HELLO.replace("command: [echo, hi]", "command: echo")
    reply = server.client.post("/api/pool/default/workflow", json={"file": text})
    assert reply.status_code == 200
    assert "command" in base64.b64decode(reply.headers["x-osmo-warning"]).decode()


def test_dry_run_renders_and_needs_no_pool(server: Server) -> None:
    text = (WORKFLOWS / "template_hello_world.yaml").read_text()
    request = {"file": text, "set_variables": ["ubuntu_version=22.04"], "set_string_variables": []}
    reply = server.client.post("/api/pool/nowhere/workflow", params={"dry_run": "True"}, json=request)
    assert reply.status_code == 200
    body = reply.json()
    assert body["name"] is None
    assert "22.04" in body["spec"]
    assert "default-values" not in body["spec"]
    assert server.get("/api/workflow")["workflows"] == []


def test_validation_only_checks_and_runs_nothing(server: Server) -> None:
    reply = server.submit(validation_only="True")
    assert reply["logs"] == "Workflow validation succeeded."
    assert server.get("/api/workflow")["workflows"] == []
    refused = server.submit(HELLO.replace("command: [echo, hi]", "comand: [x]"), status=400, validation_only="True")
    assert refused["error_code"] == "USAGE"
    assert "comand" in refused["message"]


@pytest.mark.parametrize(
    ("text", "status", "code", "words"),
    [
        ("", 400, "USER", "workflow"),
        ("workflow: [", 400, "USAGE", "workflow"),
        ("workflow: {name: x, tasks: []}", 400, "USAGE", "at least one"),
        (HELLO + "    resource: big\n", 400, "USAGE", "big"),
        (HELLO + "    inputs: [{dataset: {name: nothing}}]\n", 400, "USAGE", "nothing"),
        (HELLO + "    inputs: [{dataset: {name: nowhere/x}}]\n", 400, "USAGE", "nowhere"),
        (HELLO + "    files: [{path: /tmp/x, localpath: x.sh}]\n", 400, "USAGE", "localpath"),
        (HELLO + "    credentials: {token: {T: t}}\n", 403, "CREDENTIAL", "token"),
        (HELLO.replace("name: hello", "name: '../../x'"), 400, "USAGE", "name"),
    ],
)
def test_what_is_wrong_with_a_specification_is_one_line(
    server: Server, text: str, status: int, code: str, words: str
) -> None:
    refused = server.submit(text, status=status)
    assert refused["error_code"] == code
    assert words in refused["message"]
    assert "\n" not in refused["message"]
    assert server.get("/api/workflow")["workflows"] == []


def test_resources_that_no_node_has_are_refused(server: Server) -> None:
    text = HELLO.replace("  tasks:", "  resources: {default: {gpu: 1000}}\n  tasks:")
    refused = server.submit(text, status=400)
    assert refused["error_code"] == "USAGE"
    assert "gpu" in refused["message"].lower()


def test_an_unknown_pool_or_priority_is_refused(server: Server) -> None:
    assert "nowhere" in server.submit(status=404, pool="nowhere")["message"]
    assert "URGENT" in server.submit(status=400, priority="urgent")["message"]


def test_a_dataset_that_an_earlier_task_makes_may_be_missing(server: Server) -> None:
    text = """
workflow:
  name: chain
  tasks:
  - name: read
    image: ubuntu
    command: [cat]
    inputs: [{task: write}, {dataset: {name: made}}]
  - name: write
    image: ubuntu
    command: [echo]
    outputs: [{dataset: {name: made}}]
"""
    assert server.submit(text)["name"] == "chain-1"
    warned = server.client.post(
        "/api/pool/default/workflow",
        params={"validation_only": "True"},
        json={"file": HELLO + "    inputs: [{dataset: {name: nothing}}]\n"},
    )
    assert warned.status_code == 200
    assert "nothing" in base64.b64decode(warned.headers["x-osmo-warning"]).decode()


def test_environment_reaches_every_task_whole(server: Server) -> None:
    server.submit(env_vars=["A=b=c", "D="])
    task = server.gang("hello-1").tasks["one"]
    assert task.launch.environment["A"] == "b=c"
    assert task.launch.environment["D"] == ""


def test_logs_stream_until_the_end(server: Server) -> None:
    server.submit()
    task = server.gang("hello-1").tasks["one"]
    assert task.started.wait(30)
    lines: list[str] = []

    def follow() -> None:
        with server.client.open("GET", "/api/workflow/hello-1/logs", {"task_name": "one"}) as reply:
            assert (reply.getheader("content-type") or "").startswith("text/plain")
            lines.extend(line.decode() for line in reply)

    thread = threading.Thread(target=follow)
    thread.start()
    task.log.write("one", b"first")
    task.log.write("one", "zwölf {{x}}".encode())
    server.finish("hello-1")
    thread.join(30)
    assert not thread.is_alive()
    texts = [line.partition("[one] ")[2].rstrip("\n") for line in lines if "[one] " in line]
    assert texts == ["first", "zwölf {{x}}"]
    last = server.client.get("/api/workflow/hello-1/logs", params={"last_n_lines": 1, "task_name": "one"}).text
    assert last.count("\n") == 1


def test_the_rest_of_a_text_comes_from_any_place(server: Server) -> None:
    server.submit()
    task = server.gang("hello-1").tasks["one"]
    assert task.started.wait(30)
    task.log.write("one", b"first\nsecond")
    server.finish("hello-1")
    for kind in ("logs", "events"):
        plain = server.client.get(f"/api/workflow/hello-1/{kind}")
        marked = Http(server.client.address, {"x-casstore-places": "wanted"}).get(f"/api/workflow/hello-1/{kind}")
        assert ("x-casstore-places" in plain.headers, "x-casstore-places" in marked.headers) == (False, True)
        lines = marked.text.split("\n")
        assert "\n".join(line for line in lines if not line.startswith("\x1e")) == plain.text
        (places,) = (json.loads(line[1:]) for line in lines if line.startswith("\x1e"))
        rest = f"/api/v1/workflow/hello-1/{kind}"
        assert "first" not in server.client.post(rest, json={"places": places}).text
        whole = server.client.post(rest, json={"places": {}}).text
        assert whole.replace("\x1e", "").startswith(plain.text)
        assert server.client.post(rest, json={"places": {"x": -1}}).status_code == 400
        assert server.client.post(rest.replace("hello-1", "hello-9"), json={"places": {}}).status_code == 404
    done = server.get("/api/v1/audit")["entries"]
    assert not [entry for entry in done if entry["action"] == "workflow:Read" and entry["outcome"] != "refused"]


def test_events_tell_the_life_of_a_task(server: Server) -> None:
    server.submit()
    server.finish("hello-1", code=3)
    text = server.client.get("/api/workflow/hello-1/events", params={"task_name": "one"}).text
    assert "RUNNING" in text
    assert text.strip().splitlines()[-1].partition("[one] ")[2].startswith("FAILED")
    errors = server.client.get("/api/workflow/hello-1/error_logs", params={"task_name": "one", "retry_id": 0})
    assert errors.status_code == 200


def test_logs_of_what_does_not_exist(server: Server) -> None:
    assert server.get("/api/workflow/none-1/logs", status=404)["error_code"] == "NOTFOUND"
    server.submit()
    assert "no task two" in server.get("/api/workflow/hello-1/logs", status=404, task_name="two")["message"]
    assert "attempt 7" in server.get("/api/workflow/hello-1/logs", status=404, task_name="one", retry_id=7)["message"]
    assert server.get("/api/workflow/hello-1/logs", status=400, retry_id=1)["error_code"] == "USER"
    assert server.get("/api/workflow/..%2f..%2fetc", status=404)["error_code"] == "NOTFOUND"
    assert server.get("/api/workflow/a;b", status=422)["error_code"] == "SCHEMA"


def test_spec_and_template(server: Server) -> None:
    server.submit()
    assert yaml.safe_load(server.client.get("/api/workflow/hello-1/spec").text)["workflow"]["name"] == "hello"
    assert server.get("/api/workflow/hello-1/spec", status=404, use_template="True")["error_code"] == "NOTFOUND"
    text = (WORKFLOWS / "template_hello_world.yaml").read_text()
    name = server.submit(text)["name"]
    assert server.client.get(f"/api/workflow/{name}/spec", params={"use_template": "True"}).text == text


def test_a_rendered_file_is_not_rendered_again(server: Server) -> None:
    text = HELLO.replace("hi", '"{{ not_a_variable }}"')
    request = {"file": text, "rendered": True, "uploaded_templated_spec": "the original"}
    reply = server.client.post("/api/pool/default/workflow", json=request)
    assert reply.status_code == 200, reply.text
    assert server.gang("hello-1").tasks["one"].launch.argv[-1] == "{{ not_a_variable }}"
    assert server.client.get("/api/workflow/hello-1/spec", params={"use_template": "1"}).text == "the original"


def test_a_submission_with_a_uuid_is_carried_out_once(server: Server) -> None:
    body = {"file": HELLO, "uuid": "5" * 32}
    route = "/api/pool/default/workflow"
    first = server.client.post(route, json=body).json()["name"]
    for again in (route, f"/api/v1{route.removeprefix('/api')}"):
        assert server.client.post(again, json=body).json()["name"] == first
    assert server.get(f"/api/workflow/{'5' * 32}")["name"] == first
    assert len(server.get("/api/workflow", name="hello")["workflows"]) == 1
    other = Http(server.port, {"x-osmo-user": "somebody-else"}).post(route, json=body)
    assert (other.status_code, first in other.text) == (409, False)
    made = server.client.post("/api/v1/pool/default/workflow", json=body | {"uuid": "6" * 32}).json()["name"]
    assert made != first
    checked = server.client.post(route, params={"validation_only": True}, json=body | {"uuid": "7" * 32})
    assert checked.json()["logs"] == "Workflow validation succeeded."
    for bad in ({"file": HELLO}, body | {"uuid": "no"}, body | {"uuid": "A" * 32}, body | {"uuid": 7}):
        assert server.client.post("/api/v1/pool/default/workflow", json=bad).status_code == 400


def test_cancel_tag_resubmit_and_restart(server: Server) -> None:
    server.submit()
    server.gang("hello-1")
    cancelled = server.client.post("/api/workflow/hello-1/cancel", params={"message": "enough", "force": "False"})
    assert cancelled.json() == {"name": "hello-1"}
    server.wait("hello-1")
    found = server.get("/api/workflow/hello-1")
    assert (found["status"], found["cancelled_by"]) == ("FAILED_CANCELED", "ada")
    again = server.client.post("/api/workflow/hello-1/cancel")
    assert again.status_code == 409
    assert "ended already" in again.json()["message"]
    assert server.client.post("/api/workflow/hello-1/cancel", params={"force": "True"}).status_code == 200

    assert server.client.post("/api/workflow/hello-1/tag", params={"add": ["x", "y"]}).status_code == 200
    assert server.client.post("/api/workflow/hello-1/tag", params={"remove": ["x"]}).status_code == 200
    assert server.client.post("/api/workflow/hello-1/tag", params={"add": "a b"}).status_code == 400
    assert server.get("/api/tag") == {"tags": ["y"]}
    assert [flow["name"] for flow in server.get("/api/workflow", tags="y")["workflows"]] == ["hello-1"]

    resubmitted = server.client.post("/api/pool/default/workflow", params={"workflow_id": "hello-1"})
    assert resubmitted.json()["name"] == "hello-2"
    restarted = server.client.post("/api/pool/default/workflow/hello-1/restart")
    assert restarted.json()["name"] == "hello-3"
    found = server.get("/api/workflow/hello-3")
    assert (found["parent_name"], found["parent_job_id"]) == ("hello", 1)
    server.finish("hello-3")
    assert server.client.post("/api/pool/default/workflow/hello-3/restart").status_code == 409


def test_lists_of_tasks(server: Server) -> None:
    server.submit()
    assert server.gang("hello-1").tasks["one"].started.wait(30)
    (task,) = server.get("/api/task")["tasks"]
    assert (task["workflow_id"], task["task_name"], task["status"], task["user"]) == (
        "hello-1",
        "one",
        "RUNNING",
        "ada",
    )
    assert server.get("/api/task", users="bob")["tasks"] == []
    (row,) = server.get("/api/task", summary="True", aggregate_by_workflow="True")["summaries"]
    assert (row["workflow_id"], row["cpu"]) == ("hello-1", 1)
    assert server.get("/api/task", statuses="NONSENSE", status=400)["error_code"] == "USER"
    server.finish("hello-1")
    assert server.get("/api/task")["tasks"] == []
    assert len(server.get("/api/task", statuses="COMPLETED", workflow_id="hello-1")["tasks"]) == 1


def test_pools_and_resources_follow_the_configuration(server: Server) -> None:
    declared = {"robots": {"description": "dry run", "platforms": {"ovx": {"gpu": 2, "nodes": 2, "memory": "8Gi"}}}}
    server.config_file.write_text(yaml.safe_dump({"casstore": {"pools": declared}}))
    assert server.get("/api/pool", all_pools="True")["pools"].keys() == {"default", "robots"}
    (node_set,) = server.get("/api/pool_quota", pools="robots")["node_sets"]
    (pool,) = node_set["pools"]
    assert pool["resource_usage"]["total_capacity"] == "4"
    nodes = server.get("/api/resources", pools="robots", platforms="ovx")["resources"]
    assert [node["hostname"] for node in nodes] == ["ovx-1", "ovx-2"]
    assert nodes[0]["allocatable_fields"]["memory"] == f"{8 * 2**20}Ki"
    assert nodes[0]["exposed_fields"]["pool/platform"] == ["robots/ovx"]
    assert nodes[0]["usage_fields"]["memory"] == "0Ki"
    text = HELLO.replace("  tasks:", "  resources: {default: {gpu: 2, platform: ovx}}\n  tasks:")
    server.submit(text, pool="robots")
    server.gang("hello-1")
    used = [node["usage_fields"]["gpu"] for node in server.get("/api/resources", pools="robots")["resources"]]
    assert sorted(used) == ["0", "2"]
    assert server.get("/api/pool_quota", pools="robots")["resource_sum"]["total_usage"] == "2"
    assert server.get("/api/resources/ovx-1")["resources"][0]["config_fields"].keys() == {"robots"}
    assert server.get("/api/resources/none", status=404)["error_code"] == "NOTFOUND"


def test_a_wrong_configuration_is_told_and_stops_nothing(server: Server) -> None:
    server.submit()
    server.config_file.write_text("casstore: {pools: {robots: {platform: {}}}}")
    refused = server.submit(status=400)
    assert "config.yaml: casstore.pools.robots" in refused["message"]
    server.finish("hello-1")
    assert server.get("/api/workflow/hello-1")["status"] == "COMPLETED"


def test_profile_and_buckets(server: Server) -> None:
    server.config_file.write_text(
        "casstore: {buckets: {lab: {url: 'file:///tmp/lab', mode: read-only}}, pools: {p: {}}}"
    )
    profile = server.get("/api/profile/settings")
    assert profile["profile"] | {} == {
        "username": "ada",
        "email_notification": False,
        "slack_notification": False,
        "bucket": "default",
        "pool": "default",
    }
    assert profile["pools"] == ["default", "p"]
    assert server.client.post("/api/profile/settings", json={"pool": "p"}).status_code == 200
    assert server.client.post("/api/profile/settings", json={"bucket": "lab"}).status_code == 200
    assert server.client.post("/api/profile/settings", json={"pool": "q"}).status_code == 404
    changed = server.get("/api/profile/settings")["profile"]
    assert (changed["pool"], changed["bucket"]) == ("p", "lab")
    buckets = server.get("/api/bucket")
    assert buckets["default"] == "lab"
    assert buckets["buckets"]["lab"] == {
        "path": "file:///tmp/lab",
        "description": "",
        "mode": "read-only",
        "default_cred": False,
    }
    refused = server.submit(HELLO + "    outputs: [{dataset: {name: x}}]\n", status=400)
    assert "read-only" in refused["message"]


def test_a_body_that_is_too_large_is_refused(server: Server) -> None:
    reply = server.client.post("/api/pool/default/workflow", content=b"x" * (10 * 2**20 + 1))
    assert reply.status_code == 413
    assert reply.json()["error_code"] == "USER"

    def pieces() -> Iterator[bytes]:
        for _ in range(12):
            yield b"x" * 2**20

    assert server.client.post("/api/pool/default/workflow", content=pieces()).status_code == 413


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"file": 3}', b"\xff\xfe"])
def test_a_body_that_is_not_a_request_is_refused(server: Server, body: bytes) -> None:
    reply = server.client.post("/api/pool/default/workflow", content=body)
    assert reply.status_code == 400
    assert json.loads(reply.content).keys() >= {"message", "error_code", "workflow_id"}


def test_unknown_routes_and_wrong_parameters(server: Server) -> None:
    assert server.get("/api/nothing", status=404)["error_code"] == "NOTFOUND"
    assert server.get("/api/workflow", status=422, limit="many")["error_code"] == "SCHEMA"
    assert server.get("/api/workflow", status=400, submitted_after="yesterday")["error_code"] == "USER"


def test_an_unexpected_failure_tells_nothing_of_the_inside(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret")

    monkeypatch.setattr(server.services.database, "load", fail)
    reply = server.client.get("/api/workflow/hello-1")
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert reply.json()["error_code"] == "SERVER"
    assert "the secret" in caplog.text


# --- credentials

CANARY = "canary-c0ffee"


def test_credentials_by_name_type_and_profile(server: Server) -> None:
    ask = server.client
    generic = {"generic_credential": {"credential": {"token": CANARY}}}
    assert ask.post("/api/credentials/hub", json=generic).json() is None
    registry = {"registry_credential": {"registry": "nvcr.io", "username": "", "auth": CANARY}}
    assert ask.post("/api/credentials/ngc", json=registry).status_code == 200
    found = ask.get("/api/credentials")
    assert found.json() == {
        "credentials": [
            {"cred_name": "hub", "cred_type": "GENERIC", "profile": None},
            {"cred_name": "ngc", "cred_type": "REGISTRY", "profile": "nvcr.io"},
        ]
    }
    assert CANARY not in found.text
    gone = ask.ask("DELETE", "/api/credentials/ngc")
    assert gone.json()["credentials"] == [{"cred_name": "ngc", "cred_type": "REGISTRY", "profile": "nvcr.io"}]
    missing = ask.ask("DELETE", "/api/credentials/ngc")
    assert (missing.status_code, missing.json()["error_code"]) == (404, "NOTFOUND")


def test_a_credential_is_changed_in_place(server: Server) -> None:
    # OSMO answers 400: the troubleshooting page says to delete it first.
    for value in ("one", "two"):
        reply = server.client.post("/api/credentials/hub", json={"generic_credential": {"credential": {"k": value}}})
        assert reply.status_code == 200
    assert server.services.credentials.lookup("ada", "hub") == {"k": "two"}


def test_users_have_credentials_of_their_own(server: Server) -> None:
    bob = Http(server.port, {"x-osmo-user": "bob"})
    bob.post("/api/credentials/hub", json={"generic_credential": {"credential": {"k": "v"}}})
    assert server.client.get("/api/credentials").json() == {"credentials": []}
    assert server.services.credentials.lookup("ada", "hub") is None
    assert server.services.credentials.lookup("bob", "hub") == {"k": "v"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"generic_credential": {"credential": {"k": 1}}},
        {"generic_credential": {"credential": {"k": CANARY}, "more": CANARY}},
        {"generic_credential": {"credential": {"k": CANARY}}, "extra": 1},
        {"registry_credential": {"registry": "nvcr.io"}},
        {"registry_credential": {"auth": CANARY}, "generic_credential": {"credential": {"k": CANARY}}},
        {"data_credential": {"endpoint": "s3://b", "access_key_id": "i", "access_key": CANARY, "bucket": "b"}},
        "text",
        [1],
    ],
)
def test_a_body_that_is_no_credential_is_422_without_its_values(server: Server, body: Any) -> None:
    reply = server.client.post("/api/credentials/hub", json=body)
    assert (reply.status_code, reply.json()["error_code"]) == (422, "SCHEMA")
    assert CANARY not in reply.text
    assert server.client.get("/api/credentials").json() == {"credentials": []}


def test_broken_json_is_422_without_its_values(server: Server) -> None:
    reply = server.client.post("/api/credentials/hub", content=b'{"generic_credential": "' + CANARY.encode())
    assert (reply.status_code, CANARY in reply.text) == (422, False)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("1st", {"generic_credential": {"credential": {"k": CANARY}}}),
        ("ends-", {"generic_credential": {"credential": {"k": CANARY}}}),
        ("hub", {"generic_credential": {"credential": {}}}),
        ("hub", {"generic_credential": {"credential": {"../k": CANARY}}}),
        ("hub", {"generic_credential": {"credential": {"k": f"{CANARY}\0"}}}),
        ("hub", {"data_credential": {"endpoint": "http://b", "access_key_id": "i", "access_key": CANARY}}),
        ("hub", {"data_credential": {"endpoint": "s3://b", "access_key_id": CANARY}}),
        ("hub", {"data_credential": {"endpoint": "s3://b", "access_key": CANARY, "override_url": "file:///x"}}),
    ],
)
def test_a_credential_that_can_not_be_is_400_without_its_values(server: Server, name: str, body: Any) -> None:
    reply = server.client.post(f"/api/credentials/{name}", json=body)
    assert (reply.status_code, reply.json()["error_code"]) == (400, "USER")
    assert CANARY not in reply.text


def test_a_data_credential_replaces_the_one_of_its_profile(server: Server) -> None:
    for name in ("first", "second"):
        body = {"data_credential": {"endpoint": "s3://robots/path", "access_key_id": name, "access_key": CANARY}}
        reply = server.client.post(f"/api/credentials/{name}", {"validate": "False"}, json=body)
        assert reply.status_code == 200
    warning = base64.b64decode(reply.headers["x-osmo-warning"]).decode()
    assert "first" in warning
    (left,) = server.client.get("/api/credentials").json()["credentials"]
    assert left == {"cred_name": "second", "cred_type": "DATA", "profile": "s3://robots"}


def test_tasks_are_given_generic_credentials_alone(server: Server) -> None:
    registry = {"registry_credential": {"auth": CANARY}}
    server.client.post("/api/credentials/ngc", json=registry)
    refused = server.submit(HELLO + "    credentials: {ngc: {T: auth}}\n", status=403)
    assert refused["error_code"] == "CREDENTIAL"
    assert "REGISTRY" in refused["message"]
    assert CANARY not in str(refused)


def test_our_own_command_keeps_credentials_with_the_server_it_is_logged_in_to(
    server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config()
    login.save(config.paths, login.Login(f"http://127.0.0.1:{server.port}", "bob"))

    def osmo(*words: str, code: int = 0, stdin: str = "") -> str:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        assert main.run(["credential", *words]) == code
        said = capsys.readouterr()
        assert CANARY not in said.out + said.err
        return said.out + said.err

    osmo("set", "hub", "--value", "-", stdin=f"{CANARY}\n")
    assert server.services.credentials.lookup("bob", "hub") == {"hub": CANARY}
    words = ["--data", "--payload", "endpoint=s3://robots", "access_key_id=me", "--payload-file", "access_key=-"]
    osmo("set", "first", *words, "--no-validate", stdin=CANARY)
    assert "first was for the same profile" in osmo("set", "second", *words, "--no-validate", stdin=CANARY)
    found = ConfigCredentials().find("s3://robots")
    assert found is not None
    assert found.access_key == CANARY  # this machine's transfers use it, too
    rows = json.loads(osmo("list", "-t", "json"))["credentials"]
    assert [(row["cred_name"], row["local"]) for row in rows] == [("hub", None), ("second", True)]
    osmo("delete", "second")
    assert ConfigCredentials().find("s3://robots") is None
    assert "no credential" in osmo("delete", "second", code=2)
    assert not (Path(config.paths.config) / "credentials.json").exists()
