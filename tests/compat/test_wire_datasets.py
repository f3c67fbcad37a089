"""Datasets on the wire, as a stock client of OSMO 6.2 uses them: each request with its reply."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from casstore.dataset import Bucket
from casstore.testing.http import Http, Reply

if TYPE_CHECKING:
    from tests.compat.conftest import Server

BUCKET = "/api/bucket/default"


@pytest.fixture
def bucket(server: Server) -> Bucket:
    return server.services.stores.open("default", "ada")


@pytest.fixture
def made(bucket: Bucket, tmp_path: Path) -> Bucket:
    """``robots`` with two versions, and ``arms`` with one."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"first")
    bucket.upload("robots", [str(folder)], description="old", metadata={"quality": {"score": 1}}, labels={"team": "x"})
    bucket.upload("arms", [str(folder)])
    (folder / "b.txt").write_bytes(b"second")
    bucket.upload("robots", [str(folder)], metadata={"quality": {"score": 2}}, tag="golden")
    return bucket


def ok(reply: Reply) -> Any:
    assert reply.status_code == 200, reply.text
    return reply.json()


def refused(reply: Reply, status: int, code: str, words: str = "") -> None:
    assert reply.status_code == status, reply.text
    body = reply.json()
    assert body["error_code"] == code
    assert words in body["message"]
    assert "\n" not in body["message"]


def warning(reply: Reply) -> str:
    return base64.b64decode(reply.headers.get("x-osmo-warning", "")).decode()


def is_time(text: Any) -> bool:
    return isinstance(text, str) and len(text) == len("2026-11-21T00:01:02") and text[10] == "T"


def test_info_of_a_dataset(server: Server, made: Bucket) -> None:
    query = {"all_flag": "False", "count": 100, "order": "ASC"}
    found = ok(server.client.get(f"{BUCKET}/dataset/robots/info", query))
    assert found.keys() == {
        "name", "id", "bucket", "created_by", "created_date", "hash_location", "hash_location_size", "labels", "type",
        "versions",
    }  # fmt: skip
    assert (found["name"], found["bucket"], found["created_by"], found["type"]) == (
        "robots",
        "default",
        "ada",
        "DATASET",
    )
    assert found["labels"] == {"team": "x"}
    assert found["hash_location_size"] > 0
    assert is_time(found["created_date"])
    first, second = found["versions"]
    assert first.keys() == {
        "name", "version", "status", "created_by", "created_date", "last_used", "size", "checksum", "location", "uri",
        "metadata", "tags", "collections",
    }  # fmt: skip
    assert (first["version"], first["status"], first["size"], first["tags"]) == ("1", "READY", 5, [])
    assert first["metadata"] == {"quality": {"score": 1}, "description": "old"}
    assert sorted(second["tags"]) == ["golden", "latest"]
    assert is_time(first["created_date"])
    assert is_time(first["last_used"])
    newest = ok(server.client.get(f"{BUCKET}/dataset/robots/info", {"count": 1, "order": "DESC"}))
    assert [one["version"] for one in newest["versions"]] == ["2"]
    tagged = ok(server.client.get(f"{BUCKET}/dataset/robots/info", {"tag": "1"}))
    assert [one["version"] for one in tagged["versions"]] == ["1"]


def test_deleted_versions_are_shown_when_asked_for(server: Server, made: Bucket) -> None:
    ok(server.client.ask("DELETE", f"{BUCKET}/dataset/robots", {"tag": "1", "all_flag": "False", "name": "robots"}))
    assert [one["version"] for one in ok(server.client.get(f"{BUCKET}/dataset/robots/info"))["versions"]] == ["2"]
    everything = ok(server.client.get(f"{BUCKET}/dataset/robots/info", {"all_flag": "True"}))["versions"]
    assert [one["status"] for one in everything] == ["PENDING_DELETE", "READY"]


def test_list(server: Server, made: Bucket) -> None:
    query = {"all_users": "False", "count": 20, "order": "ASC"}
    rows = ok(server.client.get("/api/bucket/list_dataset", query))["datasets"]
    assert [row["name"] for row in rows] == ["arms", "robots"]
    row = rows[1]
    assert row.keys() == {
        "name", "id", "bucket", "create_time", "last_created", "hash_location", "hash_location_size", "version_id",
        "type",
    }  # fmt: skip
    assert (row["bucket"], row["version_id"], row["type"]) == ("default", "2", "DATASET")
    assert is_time(row["create_time"])
    assert is_time(row["last_created"])

    def names(**query: Any) -> list[str]:
        return [row["name"] for row in ok(server.client.get("/api/bucket/list_dataset", query))["datasets"]]

    assert names(user=["bob"]) == []
    assert names(user=["bob", "ada"], order="DESC") == ["robots", "arms"]
    assert names(all_users="True", name="rob") == ["robots"]
    assert names(count=1) == ["robots"]
    assert names(dataset_type="COLLECTION") == []
    assert names(latest_after="2099-01-01T00:00:00") == []
    assert names(latest_before="2099-01-01T00:00:00") == ["arms", "robots"]
    assert names(buckets=["default"]) == ["arms", "robots"]
    refused(server.client.get("/api/bucket/list_dataset", {"buckets": ["none"]}), 404, "NOTFOUND", "none")
    stranger = Http(server.port, {"x-osmo-user": "bob"})
    assert ok(stranger.get("/api/bucket/list_dataset"))["datasets"] == []


def test_an_empty_server_has_an_empty_list(server: Server) -> None:
    reply = server.client.get("/api/bucket/list_dataset")
    assert (ok(reply), warning(reply)) == ({"datasets": []}, "")


def test_a_bucket_that_is_away_is_left_out_with_a_warning(server: Server, made: Bucket, tmp_path: Path) -> None:
    server.config_file.write_text(f"casstore: {{buckets: {{away: {{url: 'file://{tmp_path}/nothing'}}}}}}")
    reply = server.client.get("/api/bucket/list_dataset")
    assert len(ok(reply)["datasets"]) == 2
    assert "away" in warning(reply)


def test_tags(server: Server, made: Bucket) -> None:
    url = f"{BUCKET}/dataset/robots/attribute"
    reply = ok(server.client.post(url, {"tag": "1", "set_tag": ["old", "golden"]}))
    assert reply == {
        "tag_response": {"version_id": "1", "tags": ["golden", "old"]},
        "label_response": None,
        "metadata_response": None,
    }
    told = server.client.post(url, {"tag": "latest", "delete_tag": ["golden"], "set_tag": ["new"]})
    assert ok(told)["tag_response"] == {"version_id": "2", "tags": ["latest", "new"]}
    assert "golden" in warning(told)
    assert ok(server.client.post(url, {"tag": "", "delete_tag": "new"}))["tag_response"]["tags"] == ["latest"]
    refused(server.client.post(url, {"set_tag": "latest"}), 400, "USER", "latest")
    refused(server.client.post(url, {"set_tag": "17"}), 400, "USER", "17")
    refused(server.client.post(url, {"set_tag": "a/b"}), 400, "USER", "a/b")
    refused(server.client.post(url, {"tag": "none", "set_tag": "x"}), 404, "NOTFOUND", "none")


def test_labels_and_metadata(server: Server, made: Bucket) -> None:
    url = f"{BUCKET}/dataset/robots/attribute"
    reply = server.client.post(
        url, {"delete_label": ["team", "gone.key"]}, json={"set_label": {"a": {"b": [1.0, 2.0]}}}
    )
    assert ok(reply) == {
        "tag_response": None,
        "label_response": {"metadata": {"a": {"b": [1.0, 2.0]}}},
        "metadata_response": None,
    }
    assert "gone.key" in warning(reply)
    body = {"set_metadata": {"quality": {"by": "eve"}}}
    found = ok(server.client.post(url, {"tag": "golden", "delete_metadata": ["quality.score"]}, json=body))
    assert found["metadata_response"] == {"metadata": {"quality": {"by": "eve"}}}
    emptied = ok(server.client.post(url, {"delete_label": "a"}, json={"set_label": {}}))
    assert emptied["label_response"] == {"metadata": {}}
    refused(server.client.post(url, json={"set_label": {"a b": 1}}), 400, "USER", "a b")
    refused(server.client.post(url, json={"set_label": [1]}), 400, "USER")
    refused(server.client.post(url, {"tag": "9"}, json={"set_metadata": {"a": "b"}}), 404, "NOTFOUND")


def test_rename(server: Server, made: Bucket) -> None:
    nothing = {"tag_response": None, "label_response": None, "metadata_response": None}
    assert ok(server.client.post(f"{BUCKET}/dataset/robots/attribute", {"new_name": "machines"})) == nothing
    assert ok(server.client.get(f"{BUCKET}/dataset/machines/info"))["name"] == "machines"
    refused(server.client.get(f"{BUCKET}/dataset/robots/info"), 404, "NOTFOUND", "robots")
    assert server.client.post(f"{BUCKET}/dataset/machines/attribute", {"new_name": "arms"}).status_code == 409
    refused(server.client.post(f"{BUCKET}/dataset/machines/attribute", {"new_name": "../x"}), 422, "SCHEMA")


def test_collections(server: Server, made: Bucket) -> None:
    members = {"datasets": [{"name": "robots", "tag": "golden"}, {"name": "arms", "tag": ""}]}
    assert server.client.post(f"{BUCKET}/dataset/all/collect", json=members).content == b"null"
    found = ok(server.client.get(f"{BUCKET}/dataset/all/info", {"tag": "latest", "count": 1}))
    assert (found["type"], found["hash_location"], found["hash_location_size"]) == ("COLLECTION", None, None)
    assert [(one["name"], one["version"], one["size"]) for one in found["versions"]] == [
        ("arms", "1", 5),
        ("robots", "2", 11),
    ]
    assert found["versions"][0].keys() == {"name", "version", "location", "uri", "hash_location", "size"}
    versions = ok(server.client.get(f"{BUCKET}/dataset/robots/info"))["versions"]
    assert versions[1]["collections"] == ["all"]
    rows = ok(server.client.get("/api/bucket/list_dataset"))["datasets"]
    assert [row["version_id"] for row in rows if row["type"] == "COLLECTION"] == [None]

    changed = {"add_datasets": [{"name": "robots", "tag": "1"}], "remove_datasets": [{"name": "robots", "tag": ""}]}
    found = ok(server.client.post(f"{BUCKET}/dataset/all/recollect", json=changed))
    assert found == {
        "versions": [{"dataset_name": "arms", "version": "1"}, {"dataset_name": "robots", "version": "1"}],
    }
    refused(server.client.post(f"{BUCKET}/dataset/all/attribute", {"set_tag": "x"}), 400, "USER", "collection")
    assert server.client.post(f"{BUCKET}/dataset/all/collect", json=members).status_code == 409
    both = {"datasets": [{"name": "robots", "tag": "1"}, {"name": "robots", "tag": "2"}]}
    assert server.client.post(f"{BUCKET}/dataset/both/collect", json=both).status_code == 409
    hostile = {"datasets": [{"name": "../robots", "tag": ""}]}
    refused(server.client.post(f"{BUCKET}/dataset/x/collect", json=hostile), 400, "USER")
    emptied = {"add_datasets": [], "remove_datasets": [{"name": "robots", "tag": ""}, {"name": "arms", "tag": ""}]}
    assert ok(server.client.post(f"{BUCKET}/dataset/all/recollect", json=emptied)) == {"versions": []}
    refused(server.client.get(f"{BUCKET}/dataset/all/info"), 404, "NOTFOUND")


def test_delete(server: Server, made: Bucket) -> None:
    ok(server.client.post(f"{BUCKET}/dataset/all/collect", json={"datasets": [{"name": "robots", "tag": "2"}]}))
    query = {"tag": "latest", "all_flag": "False", "name": "robots"}
    gone = ok(server.client.ask("DELETE", f"{BUCKET}/dataset/robots", query))
    assert gone == {"versions": ["2"], "delete_locations": [], "cleaned_size": 0}
    refused(server.client.get(f"{BUCKET}/dataset/all/info"), 404, "NOTFOUND")
    refused(server.client.ask("DELETE", f"{BUCKET}/dataset/robots", {"finish": "True"}), 400, "USER")
    assert ok(server.client.ask("DELETE", f"{BUCKET}/dataset/robots", {"all_flag": "True"}))["versions"] == ["1"]
    refused(server.client.get(f"{BUCKET}/dataset/robots/info"), 404, "NOTFOUND")
    finished = ok(server.client.ask("DELETE", f"{BUCKET}/dataset/robots", {"all_flag": "True", "finish": "True"}))
    assert finished["versions"] == []
    refused(server.client.ask("DELETE", f"{BUCKET}/dataset/robots", {"tag": "1"}), 404, "NOTFOUND")


def test_queries(server: Server, made: Bucket) -> None:
    found = ok(server.client.get(f"{BUCKET}/query", {"command": '# by name\nname = "robots" OR label.team = "y"'}))
    assert found["type"] == "DATASET"
    assert [(one["name"], one["versions"]) for one in found["datasets"]] == [("robots", [])]
    found = ok(
        server.client.get(f"{BUCKET}/query", {"command": "metadata.quality.score >= 1 order by name ASC LIMIT 5"})
    )
    assert found["type"] == "VERSION"
    assert [one["version"] for one in found["datasets"]] == ["1", "2"]
    assert is_time(found["datasets"][0]["last_used"])
    refused(
        server.client.get(f"{BUCKET}/query", {"command": 'name = "none"'}), 400, "USER", "No Datasets Fit the Query"
    )
    refused(server.client.get(f"{BUCKET}/query", {"command": ""}), 400, "USER", "No query")
    refused(server.client.get(f"{BUCKET}/query", {"command": 'name = "x'}), 400, "USER")
    refused(server.client.get(f"{BUCKET}/query", {"command": "(" * 30_000}), 400, "USER")


def test_a_bucket_that_is_only_read_is_not_changed(server: Server, made: Bucket) -> None:
    url = server.services.stores.open("default", "ada").store.url
    server.config_file.write_text(f"casstore: {{buckets: {{shown: {{url: '{url}', mode: read-only}}}}}}")
    assert ok(server.client.get("/api/bucket/shown/dataset/robots/info"))["name"] == "robots"
    requests: list[Callable[[], Reply]] = [
        lambda: server.client.ask("DELETE", "/api/bucket/shown/dataset/robots"),
        lambda: server.client.post("/api/bucket/shown/dataset/robots/attribute", {"set_tag": "x"}),
        lambda: server.client.post(
            "/api/bucket/shown/dataset/c/collect", json={"datasets": [{"name": "arms", "tag": ""}]}
        ),
        lambda: server.client.post("/api/bucket/shown/dataset/c/recollect", json={"add_datasets": []}),
    ]
    for request in requests:
        assert request().status_code == 403
    assert len(ok(server.client.get(f"{BUCKET}/dataset/robots/info"))["versions"]) == 2


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/bucket/list_dataset"),
        ("GET", f"{BUCKET}/location"),
        ("GET", f"{BUCKET}/query"),
        ("GET", f"{BUCKET}/dataset/x/info"),
        ("GET", f"{BUCKET}/dataset/x"),
        ("POST", f"{BUCKET}/dataset/x"),
        ("DELETE", f"{BUCKET}/dataset/x"),
        ("POST", f"{BUCKET}/dataset/x/attribute"),
        ("POST", f"{BUCKET}/dataset/x/collect"),
        ("POST", f"{BUCKET}/dataset/x/recollect"),
        ("POST", f"{BUCKET}/dataset/x/migrate"),
    ],
)
def test_no_route_is_open_to_nobody(server: Server, method: str, path: str) -> None:
    refused(Http(server.port).ask(method, path), 401, "CREDENTIAL")


@pytest.mark.parametrize(
    "name", ["..%2f..%2fetc", "a.b", "%00", "a%20b", "x" * 201, "%E2%80%AE", "a;drop", "'%20OR%20''='", "%2e%2e"]
)
def test_names_that_are_none(server: Server, name: str) -> None:
    for path in (f"{BUCKET}/dataset/{name}/info", f"/api/bucket/{name}/dataset/x/info"):
        assert server.client.get(path).status_code in {400, 404, 422}


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/api/bucket/list_dataset", {"latest_after": "0001-01-01T00:00:00+14:00"}),
        ("/api/bucket/list_dataset", {"latest_before": "9999-12-31T23:59:59-14:00"}),
        ("/api/bucket/list_dataset", {"latest_before": "yesterday"}),
        ("/api/bucket/list_dataset", {"dataset_type": "TABLE"}),
        ("/api/bucket/list_dataset", {"count": -1}),
        ("/api/bucket/list_dataset", {"count": 10**30}),
        ("/api/bucket/list_dataset", {"order": "SIDEWAYS"}),
        ("/api/bucket/list_dataset", {"name": "%"}),
        ("/api/bucket/list_dataset", {"buckets": ["x"] * 300}),
        (f"{BUCKET}/dataset/robots/info", {"tag": "a b"}),
        (f"{BUCKET}/dataset/robots/info", {"count": "many"}),
        (f"{BUCKET}/dataset/robots/info", {"tag": "9" * 100}),
        (f"{BUCKET}/query", {"command": "\0"}),
        (f"{BUCKET}/query", {"command": 'created_date > "0000"'}),
        (f"{BUCKET}/query", {"command": "metadata.a > " + "9" * 5000}),
        (f"{BUCKET}/query", {"command": "x" * 70_000}),
    ],
)
def test_parameters_that_are_none(server: Server, made: Bucket, path: str, query: dict[str, Any]) -> None:
    reply = server.client.get(path, query)
    assert 400 <= reply.status_code < 500, reply.text
    assert "\n" not in reply.json()["message"]


@pytest.mark.parametrize(
    "tree", ['{"a": "\\ud800"}', '{"a": 1e999}', '{"a": NaN}', '{"a": ' + "9" * 400 + "}", '{"a": [1, "b"]}', '{"": 1}']
)
def test_trees_that_are_none(server: Server, made: Bucket, tree: str) -> None:
    for field in ("set_label", "set_metadata"):
        body = f'{{"{field}": {tree}}}'.encode()
        assert server.client.post(f"{BUCKET}/dataset/robots/attribute", content=body).status_code == 400


def test_bodies_that_are_none(server: Server, made: Bucket) -> None:
    url = f"{BUCKET}/dataset/robots/attribute"
    deep = b'{"set_label": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001
    for body in (b"{", b"[]", b"\xff", deep, b'{"set_label": 1}'):
        assert server.client.post(url, content=body).status_code in {400, 422}
    assert server.client.post(url, content=b" " * (11 << 20)).status_code == 413
    large = {"set_label": {"a": "x" * (2 << 20)}}
    refused(server.client.post(url, json=large), 400, "USER", "larger")
    many = {"datasets": [{"name": "robots", "tag": ""}] * 20_000}
    refused(server.client.post(f"{BUCKET}/dataset/x/collect", json=many), 400, "USER")
    assert ok(server.client.get(f"{BUCKET}/dataset/robots/info"))["labels"] == {"team": "x"}


def test_a_folder_of_the_server_is_no_place_for_a_stock_client(server: Server, made: Bucket) -> None:
    refused(server.client.get(f"{BUCKET}/location"), 400, "USER", "folder of the server's machine")
