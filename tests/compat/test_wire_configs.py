"""Configs: what they do at once, what is refused, and that nothing of their history is lost or told."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from casstore.testing.http import Http, Reply
from casstore.wire.config import MASK, TYPES
from casstore_orchestrator.pools import this_machine
from casstore_server.config import Watched
from casstore_server.configs.stored import StoredConfigs
from casstore_server.db import schema, sealed
from casstore_server.db.configs import ConfigRows
from casstore_server.secrets import SecretBox, new_key
from tests.compat.conftest import HELLO, KEY, Server

CANARY = "canary-51d3"
SMALL = [{"operator": "LE", "left_operand": "{{USER_MEMORY}}", "right_operand": "4Gi", "assert_message": "too much"}]


def ask(server: Server, method: str, path: str, body: Any = None, *, status: int = 200) -> Reply:
    found = server.client.ask(method, f"/api/configs/{path}", None, json.dumps({} if body is None else body).encode())
    assert found.status_code == status, found.text
    return found


def put(server: Server, path: str, configs: Any, **more: Any) -> Reply:
    return ask(server, "PUT", path, {"configs": configs, **more})


def patch(server: Server, path: str, configs: Any, *, status: int = 200, **more: Any) -> Reply:
    return ask(server, "PATCH", path, {"configs_dict": configs, **more}, status=status)


def history(server: Server, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = server.get("//api/configs/history", **query)["configs"]
    return found


def problem(reply: Reply) -> str:
    found: str = reply.json()["message"]
    return found


# --- history


def test_every_type_begins_with_a_revision(server: Server) -> None:
    found = history(server, at_timestamp="9999-01-01T00:00:00", omit_data="True")
    assert [(one["config_type"], one["revision"], one["data"]) for one in found] == [(kind, 1, None) for kind in TYPES]
    for kind in TYPES:
        assert server.get(f"/api/configs/{kind.lower()}") is not None


@pytest.mark.parametrize("server", ["sqlite", "postgres"], indirect=True)
def test_each_change_is_a_revision_of_its_type(server: Server) -> None:
    patch(server, "workflow", {"max_num_tasks": 3}, description="few", tags=["b", "a", "b"])
    patch(server, "workflow", {"max_num_tasks": None, "max_num_ports_per_task": 5})
    put(server, "pool/robots", {"platforms": {"a": {}}})
    found = history(server, config_types=["WORKFLOW"])
    assert [one["revision"] for one in found] == [1, 2, 3]
    assert (found[1]["description"], found[1]["tags"], found[1]["username"]) == ("few", ["a", "b"], "ada")
    assert found[1]["data"] == {"max_num_tasks": 3}
    assert found[2]["data"] == {"max_num_ports_per_task": 5}  # null took it away
    assert [one["name"] for one in history(server, config_types=["POOL"], order="DESC")] == ["robots", ""]
    assert [one["revision"] for one in history(server, tags=["a", "b"])] == [2]
    assert history(server, tags=["a", "c"]) == []
    assert [one["revision"] for one in history(server, config_types="WORKFLOW", limit=1, offset=1)] == [2]
    assert history(server, name="robots")[0]["config_type"] == "POOL"
    middle = found[1]["created_at"]
    assert history(server, config_types="WORKFLOW", at_timestamp=middle)[0]["revision"] == 2
    assert [one["revision"] for one in history(server, config_types="WORKFLOW", created_after=middle)] == [3]
    assert [one["revision"] for one in history(server, config_types="WORKFLOW", created_before=middle)] == [1]
    server.get("/api/configs/history", status=400, at_timestamp=middle, created_before=middle)
    server.get("/api/configs/history", status=400, at_timestamp="yesterday")
    server.get("/api/configs/history", status=400, config_types="OTHER")


def test_a_rollback_is_a_revision_with_what_was(server: Server) -> None:
    patch(server, "workflow", {"max_num_tasks": 3})
    server.submit(TWO.replace("two", "more"), status=200)
    patch(server, "workflow", {"max_num_tasks": 1})
    assert "at most 1" in server.submit(TWO, status=400)["message"]
    ask(server, "POST", "history/rollback", {"config_type": "WORKFLOW", "revision": 2, "description": "too few"})
    assert history(server, config_types="WORKFLOW")[-1]["description"] == "Roll back WORKFLOW to r2: too few"
    assert server.get("/api/configs/workflow")["max_num_tasks"] == 3
    server.submit(TWO)
    ask(server, "POST", "history/rollback", {"config_type": "WORKFLOW", "revision": 99}, status=404)


def test_revisions_are_tagged_and_hidden_but_not_the_one_in_force(server: Server) -> None:
    patch(server, "workflow", {"max_num_tasks": 3}, tags=["old"])
    patch(server, "workflow", {"max_num_tasks": 4})
    ask(server, "POST", "history/workflow/revision/2/tags", {"set_tags": ["new"], "delete_tags": ["old"]})
    assert [one["tags"] for one in history(server, revision=2, config_types="WORKFLOW")] == [["new"]]
    ask(server, "POST", "history/workflow/revision/2/tags", {}, status=400)
    ask(server, "POST", "history/workflow/revision/9/tags", {"set_tags": ["x"]}, status=404)
    ask(server, "DELETE", "history/workflow/revision/2")
    assert [one["revision"] for one in history(server, config_types="WORKFLOW")] == [1, 3]
    ask(server, "DELETE", "history/workflow/revision/2", status=404)
    ask(server, "DELETE", "history/workflow/revision/3", status=409)
    ask(server, "POST", "history/rollback", {"config_type": "WORKFLOW", "revision": 2}, status=404)


@pytest.mark.parametrize("server", ["sqlite", "postgres"], indirect=True)
def test_nobody_undoes_what_somebody_else_changed_meanwhile(server: Server) -> None:
    patch(server, "workflow", {"max_num_tasks": 3}, revision=1)
    told = patch(server, "workflow", {"max_num_tasks": 4}, revision=1, status=409)
    assert "changed meanwhile" in problem(told)
    assert server.get("/api/configs/workflow")["max_num_tasks"] == 3

    def change(number: int) -> None:
        put(server, f"pod_template/t{number}", {"spec": {"number": number}})

    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.get("/api/configs/pod_template")) == 8  # each was made of the one before
    assert [one["revision"] for one in history(server, config_types="POD_TEMPLATE")] == list(range(1, 10))


# --- what they do


TWO = """
workflow:
  name: two
  tasks:
  - {name: one, image: x, command: [x]}
  - {name: other, image: x, command: [x]}
"""


def test_pools_are_there_at_once_and_only_as_long(server: Server) -> None:
    put(server, "pool/robots", {"description": "dry", "platforms": {"a": {"gpu": 2, "nodes": 1}}})
    assert server.get("/api/pool")["pools"]["robots"]["platforms"].keys() == {"a"}
    patch(server, "pool/robots", {"enable_maintenance": True, "resources": {"gpu": {"guarantee": 1, "maximum": -1}}})
    assert server.submit(pool="robots", status=409)["message"].startswith("Pool robots is in maintenance")
    pool = server.services.config.current().pools["robots"]
    assert (pool.gpu_guarantee, pool.gpu_maximum) == (1, None)
    ask(server, "PUT", "pool/robots/platform/b", {"configs": {"cpu": 1}})
    ask(server, "PUT", "pool/robots/platform/b/rename", {"new_name": "c"})
    assert server.get("/api/configs/pool/robots/platform").keys() == {"a", "c"}
    assert server.get("/api/configs/pool/robots/platform/c") == {"cpu": 1}
    ask(server, "PUT", "pool/robots/rename", {"new_name": "machines"})
    assert server.get("/api/configs/pool").keys() == {"pools"}
    assert "machines" in server.get("/api/configs/pool")["pools"]
    ask(server, "DELETE", "pool/machines")
    assert server.get("/api/pool")["pools"].keys() == {"default"}
    server.get("/api/configs/pool/machines", status=404)


def test_a_pool_with_workflows_stays(server: Server) -> None:
    put(server, "pool/robots", {"platforms": {"default": {}}})
    name = server.submit(pool="robots")["name"]
    assert "not finished" in problem(ask(server, "DELETE", "pool/robots", status=409))
    server.finish(name)
    while server.services.database.live("robots"):  # its end is told to the scheduler a moment later
        server.services.scheduler.figures()
    ask(server, "DELETE", "pool/robots")


def test_what_config_yaml_declares_is_changed_there(server: Server) -> None:
    server.config_file.write_text("casstore: {pools: {mine: {description: x}}, buckets: {b: {url: 'file:///nowhere'}}}")
    shown = server.get("/api/configs/pool")["pools"]
    assert shown["mine"] == {"description": "x", "_managed_by": "config.yaml"}
    assert "config.yaml" in problem(ask(server, "PUT", "pool/mine", {"configs": {}}, status=409))
    ask(server, "DELETE", "pool/mine", status=409)
    ask(server, "PUT", "pool", {"configs": shown | {"new": {"description": "y"}}})  # what comes back as it was is fine
    assert server.get("/api/pool")["pools"].keys() == {"default", "mine", "new"}
    ask(server, "PATCH", "dataset/b", {"configs_dict": {"description": "x"}}, status=409)
    server.config_file.write_text("casstore: {pools: {new: {description: mine now}}}")
    assert server.get("/api/pool")["pools"]["new"]["description"] == "mine now"
    assert server.services.config.last_good().problems


def test_checks_of_resources_keep_tasks_out(server: Server) -> None:
    told = ask(server, "PUT", "pool/robots", {"configs": {"common_resource_validations": ["small"]}}, status=400)
    assert "RESOURCE_VALIDATION small" in problem(told)
    put(server, "resource_validation/small", SMALL)
    fits = [{"operator": "LE", "left_operand": "{{USER_CPU}}", "right_operand": "{{K8_CPU}}", "assert_message": "cpu"}]
    put(server, "resource_validation/fits", fits)
    platforms = {"a": {"cpu": 4, "memory": "64Gi", "resource_validations": ["fits"]}}
    put(server, "pool/robots", {"common_resource_validations": ["small"], "platforms": platforms})
    large = HELLO.replace("  tasks:", "  resources: {default: {memory: 5Gi}}\n  tasks:")
    assert "task one: too much" in server.submit(large, pool="robots", status=400)["message"]
    many = HELLO.replace("  tasks:", "  resources: {default: {cpu: 5}}\n  tasks:")
    assert "task one: cpu" in server.submit(many, pool="robots", status=400)["message"]
    server.submit(HELLO, pool="robots")
    server.submit(large)  # another pool
    assert "RESOURCE_VALIDATION small" in problem(ask(server, "DELETE", "resource_validation/small", status=400))


def test_limits_of_users_and_names(server: Server) -> None:
    patch(server, "workflow", {"user_workflow_limits": {"max_num_workflows": 1}})
    name = server.submit()["name"]
    assert "at most 1" in server.submit(status=409)["message"]
    server.finish(name)
    server.submit()
    patch(server, "workflow", {"user_workflow_limits": None, "workflow_info": {"max_name_length": 4}})
    assert "too long" in server.submit(status=400)["message"]
    patch(server, "workflow", {"default_exec_timeout": "1h", "plugins_config": {"rsync": {"enabled": False}}})
    assert server.services.config.current().pools["default"].default_exec_timeout == 3600
    assert server.get("/api/plugins/configs")["rsync"]["enabled"] is False


def test_roles_grant_what_they_say(server: Server) -> None:
    role = {"name": "robots", "policies": [{"actions": ["workflow:*"], "resources": ["pool/robots"]}]}
    put(server, "role/robots", role)
    assert server.services.roles()["robots"].policies[0].resources == ("pool/robots",)
    assert server.get("/api/configs/role/robots") == {"name": "robots", "policies": role["policies"]}
    built_in = [one["name"] for one in server.get("/api/configs/role") if one.get("immutable")]
    assert built_in == ["osmo-admin", "osmo-user", "osmo-viewer"]
    ask(server, "PUT", "role/osmo-admin", {"configs": {"policies": []}}, status=400)
    ask(server, "PUT", "role/other", {"configs": role}, status=400)
    ask(server, "PUT", "role/wrong", {"configs": {"policies": [{"actions": ["fly:High"]}]}}, status=400)
    ask(server, "DELETE", "role/robots")
    assert server.services.roles() == {}


def test_buckets_are_made_and_used_at_once(server: Server, tmp_path: Path) -> None:
    patch(server, "dataset/extra", {"dataset_path": f"file://{tmp_path}/extra", "description": "more"})
    assert server.get("/api/bucket")["buckets"]["extra"]["description"] == "more"
    assert server.services.stores.open("extra", "ada").name == "extra"
    patch(server, "dataset", {"default_bucket": "extra"})
    assert server.services.config.current().default_bucket == "extra"
    assert "default_bucket" in problem(patch(server, "dataset", {"default_bucket": "none"}, status=400))
    told = patch(server, "dataset/bad", {"dataset_path": "file:///proc/none/x"}, status=502)
    assert "Bucket bad can't be used" in problem(told)
    patch(server, "dataset/bad", {"dataset_path": "ftp://x"}, status=400)
    patch(server, "dataset/bad", {"description": "nowhere"}, status=400)
    more = {"buckets": {"third": {"dataset_path": f"file://{tmp_path}/third"}}}
    ask(server, "PUT", "dataset", {"configs": more})
    assert {"extra", "third"} <= server.services.config.current().buckets.keys()  # it adds, and removes nothing
    ask(server, "DELETE", "dataset/extra")
    assert server.services.config.current().default_bucket == "default"
    assert (tmp_path / "extra").exists()  # nothing of it is lost


# --- secrets


@pytest.mark.parametrize("server", ["sqlite", "postgres"], indirect=True)
def test_secrets_of_configs_are_sealed_and_shown_to_nobody(server: Server, tmp_path: Path) -> None:
    credential = {"access_key_id": "me", "access_key": CANARY}
    body = {"dataset_path": f"file://{tmp_path}/x", "default_credential": credential}
    patch(server, "dataset/secret", body, description="made")
    patch(server, "workflow", {"workflow_alerts": {"slack_token": CANARY}})
    shown = server.get("/api/configs/dataset")["buckets"]["secret"]
    assert shown["default_credential"] == {"access_key_id": "me", "access_key": MASK}
    bucket = server.services.config.current().buckets["secret"]
    assert bucket.credential is not None
    assert bucket.credential.access_key == CANARY
    assert server.get("/api/bucket")["buckets"]["secret"]["default_cred"] is True

    patch(server, "dataset/secret", shown | {"description": "stars come back"})
    after = server.services.config.current().buckets["secret"].credential
    assert after is not None
    assert after.access_key == CANARY
    patch(server, "dataset/secret", {"default_credential": {"access_key": f"{CANARY}-2"}})
    query: dict[str, Any] = {"config_type": "DATASET", "first_revision": 3, "second_revision": 4}
    found = server.get("/api/configs/diff", **query)["second_data"]["buckets"]["secret"]["default_credential"]
    assert found["access_key"] == f"{MASK} <secret changed in r4>"
    ask(server, "POST", "history/rollback", {"config_type": "DATASET", "revision": 2})
    back = server.services.config.current().buckets["secret"].credential
    assert back is not None
    assert back.access_key == CANARY

    texts = [json.dumps(server.get(f"/api/configs/{kind.lower()}")) for kind in TYPES]
    texts += [json.dumps(history(server, limit=1000)), repr(bucket), repr(server.services.configs.stored())]
    with server.services.database.reading() as connection:
        texts.append(str(connection.execute(select(schema.config_revision)).all()))
        assert CANARY.encode() not in b"".join(connection.execute(select(schema.config_secret.c.sealed)).scalars())
    assert CANARY not in "".join(texts)
    new = new_key()
    assert sealed.reseal(server.services.database, SecretBox(lambda: [new, KEY])).changed >= 3
    stars = {"dataset_path": "s3://b", "default_credential": {"access_key": MASK}}
    assert "there is none" in problem(patch(server, "dataset/none", stars, status=400))


def test_nobody_gets_a_secret_who_does_not_know_it(server: Server, tmp_path: Path) -> None:
    credential = {"access_key_id": "me", "access_key": CANARY}
    patch(server, "dataset/secret", {"dataset_path": f"file://{tmp_path}/x", "default_credential": credential})
    told = patch(server, "dataset/secret", {"dataset_path": "s3://elsewhere"}, status=400)
    assert "sent elsewhere" in problem(told)
    told = patch(server, "dataset/secret", {"default_credential": {"override_url": "http://127.0.0.1:1"}}, status=400)
    assert "sent elsewhere" in problem(told)
    with server.services.database.reading() as connection:
        known = connection.execute(select(schema.config_secret.c.id)).scalars().first()
    stolen = {"dataset_path": f"file://{tmp_path}/y", "default_credential": {"access_key": {"$secret": known}}}
    assert "$secret" in problem(patch(server, "dataset/mine", stolen, status=400))


# --- what is refused


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "other", {"configs": {}}, 400),
        ("PUT", "workflow", {}, 400),
        ("PUT", "workflow", {"configs": []}, 400),
        ("PATCH", "workflow", {"configs_dict": {"unknown": 1}}, 400),
        ("PATCH", "workflow", {"configs_dict": {"default_exec_timeout": "soon"}}, 400),
        ("PATCH", "service", {"configs_dict": {"cli_config": {"latest_version": "new"}}}, 400),
        ("PATCH", "pool", {"configs_dict": {}}, 400),
        ("PATCH", "pool/none", {"configs_dict": {}}, 404),
        ("PUT", "pool/a b", {"configs": {}}, 400),
        ("PUT", "pool/x", {"configs": {"platforms": {"a": {"gpu": -1}}}}, 400),
        ("PUT", "pool/x", {"configs": {"platforms": {"a": {"gpus": 1}}}}, 400),
        ("PUT", "pool/x", {"configs": {"common_pod_template": ["none"]}}, 400),
        ("PUT", "pool/x/rename", {"new_name": "y"}, 404),
        ("PUT", "group_template/x", {"configs": {"kind": "ConfigMap"}}, 400),
        ("PUT", "resource_validation/x", {"configs": [{"operator": "NE"}]}, 400),
        ("POST", "backend/none", {"configs": {"description": "x"}}, 404),
        ("POST", "pool/x", {"configs": {}}, 400),
        ("DELETE", "workflow/x", {}, 400),
        ("DELETE", "pool/none", {}, 404),
        ("PUT", "pod_template/x", {"configs": {"spec": "x" * (9 << 20)}}, 400),
    ],
)
def test_what_could_not_take_effect_is_not_stored(
    server: Server, method: str, path: str, body: Any, status: int
) -> None:
    before = history(server, limit=1000)
    ask(server, method, path.replace(" ", "%20"), body, status=status)
    assert history(server, limit=1000) == before


def test_what_is_kept_without_an_effect_is_said(server: Server) -> None:
    told = patch(server, "workflow", {"max_log_lines": 5})
    assert base64.b64decode(told.headers["x-osmo-warning"]).decode() == "max_log_lines is kept, and does nothing here"
    assert "x-osmo-warning" not in patch(server, "workflow", {"max_num_tasks": 5}).headers
    ask(server, "POST", "backend/local", {"configs": {"description": "our machine"}})
    assert server.get("/api/configs/backend")["backends"][0]["description"] == "our machine"


def test_configs_are_for_those_who_may(server: Server) -> None:
    stranger = Http(server.port, {"x-osmo-user": "bob"})
    for method, path in (("GET", "pool"), ("GET", "history"), ("PUT", "pool/x"), ("DELETE", "pool/x")):
        assert stranger.ask(method, f"/api/configs/{path}", None, b"{}").status_code == 403, path


def test_another_process_sees_what_was_changed(server: Server) -> None:
    rows = ConfigRows(server.services.database, SecretBox(lambda: [KEY]))
    stored = StoredConfigs(lambda: rows)
    there = Watched(server.config_file, server.services.settings.data_dir, this_machine(), stored)
    assert there.current().pools.keys() == {"default"}
    put(server, "pool/robots", {"platforms": {"a": {}}})
    stored.forget()  # as if the time until the next look had passed
    assert there.current().pools.keys() == {"default", "robots"}
