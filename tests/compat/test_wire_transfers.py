"""Uploads and downloads of OSMO 6.2's client: its requests, and what it does with the bucket between them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.dataset.adopt.base import Buckets
from casstore.dataset.exchange.areas import OFFER_TERM, UPLOAD_TERM, Areas
from casstore.dataset.garbage import Garbage
from casstore.repo.store import Store
from casstore.testing.foreign import OsmoFolder, osmo_etag
from casstore.testing.http import Http, Reply
from casstore.testing.servers.s3 import S3Server, moto_s3

if TYPE_CHECKING:
    from tests.compat.conftest import Server

FILES = {"set/a.txt": b"first", "set/b/c.bin": bytes(range(256)) * 40, "set/empty": b"", "set/ü.txt": b"first"}


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_s3() as found:
        yield found


class Credentials:
    def __init__(self, s3: S3Server) -> None:
        self.found = s3.credential

    def find(self, profile: str) -> Any:
        return self.found


class Stock:
    """What the client of 6.2 does, step by step, with a credential of its own for the bucket."""

    def __init__(self, http: Http, s3: S3Server) -> None:
        self.http = http
        self.buckets = Buckets(Credentials(s3))

    def put(self, url: str, data: bytes) -> None:
        client, key = self.buckets.open(url)
        client.put(key, [data])

    def read(self, url: str) -> bytes:
        client, key = self.buckets.open(url)
        return client.read(key).data

    def start(
        self, name: str, *, tag: str = "latest", resume: bool = False, metadata: Any = None, description: str = ""
    ) -> Reply:
        query = {"tag": tag, "description": description, "resume": str(resume)}
        return self.http.post(f"/api/bucket/lab/dataset/{name}", query, json={"metadata": metadata or {}})

    def send(
        self, begun: Mapping[str, str], files: Mapping[str, bytes], more: Sequence[dict[str, Any]] = ()
    ) -> tuple[str, int]:
        """Files by their ETags and a manifest; returns its checksum and how many bytes were new."""
        entries, sent = list(more), 0
        for path, data in files.items():
            etag = osmo_etag(data)
            self.put(f"{begun['storage_path']}/{etag}", data)
            entries.append(OsmoFolder.described(path, f"{begun['storage_path']}/{etag}", len(data), etag))
            sent += len(data)
        entries.sort(key=lambda entry: entry["relative_path"])
        text = "[\n" + ",\n".join(json.dumps(entry, indent=4) for entry in entries) + "\n]"
        self.put(begun["manifest_path"], text.encode())
        text = "".join(f"{entry['relative_path']} {entry['etag']}" for entry in entries)
        return hashlib.md5(text.encode()).hexdigest(), sent

    def finish(self, name: str, version: str, checksum: str, size: int = 0, *, tag: str = "latest") -> Reply:
        query = {
            "tag": tag,
            "finish": "True",
            "version_id": version,
            "checksum": checksum,
            "size": size,
            "update_dataset_size": size,
        }
        return self.http.post(f"/api/bucket/lab/dataset/{name}", query, json={"labels": {"team": "x"}})

    def upload(self, name: str, files: Mapping[str, bytes], *, tag: str = "latest", metadata: Any = None) -> str:
        assert ok(self.http.get("/api/bucket/lab/location"))["path"].startswith("s3://")
        begun = ok(self.start(name, tag=tag, metadata=metadata))
        done = ok(self.finish(name, begun["version_id"], *self.send(begun, files), tag=tag))
        assert done == {"version_id": done["version_id"], "region": "", "storage_path": "", "manifest_path": ""}
        return str(done["version_id"])

    def manifest(self, url: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.read(url))
        return found

    def download(self, name: str, tag: str = "latest") -> dict[str, dict[str, bytes]]:
        """The files of each dataset, each compared with its ETag."""
        ok(self.http.get(f"/api/bucket/lab/dataset/{name}/info", {"count": 1}))
        reply = ok(self.http.get(f"/api/bucket/lab/dataset/{name}", {"tag": tag}))
        assert reply["new_locations"] == [""] * len(reply["locations"])
        found: dict[str, dict[str, bytes]] = {}
        for dataset, location in zip(reply["dataset_names"], reply["locations"], strict=True):
            entries = self.manifest(location)
            paths = [entry["relative_path"] for entry in entries]
            assert paths == sorted(paths)
            found[dataset] = {}
            for entry in entries:
                assert entry.keys() == {"relative_path", "storage_path", "url", "size", "etag"}
                data = self.read(entry["storage_path"])
                assert (len(data), osmo_etag(data)) == (entry["size"], entry["etag"])
                found[dataset][entry["relative_path"]] = data
        return found


def ok(reply: Reply) -> Any:
    assert reply.status_code == 200, reply.text
    return reply.json()


def refused(reply: Reply, status: int, words: str) -> None:
    assert reply.status_code == status, reply.text
    assert words in reply.json()["message"], reply.text
    assert "\n" not in reply.json()["message"]


def warning(reply: Reply) -> str:
    return base64.b64decode(reply.headers.get("x-osmo-warning", "")).decode()


@pytest.fixture(scope="module")
def empty_store() -> bytes:
    """All that there is in a new store: made in memory, where nothing has to be found out about the place."""
    backend = MemoryBackend()
    Store.open(backend, create=True)
    return backend.get("store.json").data


@pytest.fixture
def stock(server: Server, s3: S3Server, empty_store: bytes) -> Iterator[Stock]:
    name = s3.bucket()
    url = f"s3://{name}/stores/lab"
    fields = {"access_key_id": s3.access_key_id, "access_key": s3.access_key, "override_url": s3.endpoint}
    config = {
        "auth": {"data": {f"s3://{name}": {**fields, "region": s3.region}}},
        "casstore": {"buckets": {"lab": {"url": url}, "shown": {"url": url, "mode": "read-only"}}},
    }
    server.config_file.write_text(yaml.safe_dump(config))
    server.config_file.chmod(0o600)
    client = Stock(server.client, s3)
    client.put(f"{url}/store.json", empty_store)
    yield client
    client.buckets.close()


@pytest.fixture
def lab(server: Server, stock: Stock) -> Bucket:
    return server.services.stores.open("lab", "ada")


def left(bucket: Bucket) -> list[str]:
    return [info.key for info in bucket.store.backend.list("exchange/")]


def content(bucket: Bucket, name: str, folder: Path, tag: str | None = None) -> dict[str, bytes]:
    folder.mkdir()
    bucket.download(name, str(folder), tag=tag)
    root = folder / name
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_what_a_stock_client_uploads_is_a_version_of_ours(stock: Stock, lab: Bucket, tmp_path: Path) -> None:
    large = os.urandom((9 << 20) + 17)
    files = {**FILES, "set/large.bin": large}
    assert stock.upload("robots", files, tag="golden", metadata={"by": {"robot": 3}}) == "1"
    assert content(lab, "robots", tmp_path / "out") == files
    found = ok(stock.http.get("/api/bucket/lab/dataset/robots/info"))
    (version,) = found["versions"]
    assert (version["status"], sorted(version["tags"])) == ("READY", ["golden", "latest"])
    assert (version["metadata"], found["labels"]) == ({"by": {"robot": 3}}, {"team": "x"})
    text = "".join(f"{path} {osmo_etag(data)}" for path, data in sorted(files.items()))
    assert version["checksum"] == hashlib.md5(text.encode()).hexdigest()
    assert version["size"] == sum(map(len, files.values()))
    assert version["created_by"] == "ada"
    assert left(lab) == []
    assert stock.upload("robots", files) == "2"


def test_what_it_asks_for_is_there_in_its_layout(stock: Stock, lab: Bucket, tmp_path: Path) -> None:
    source = tmp_path / "set"
    (source / "deep").mkdir(parents=True)
    (source / "large.bin").write_bytes(os.urandom((17 << 20) + 5))
    (source / "deep" / "z").write_bytes(b"")
    (source / "a-b").write_bytes(b"same")
    (source / "a").mkdir()
    (source / "a" / "b").write_bytes(b"same")
    expected = {f"set/{p.relative_to(source)}": p.read_bytes() for p in source.rglob("*") if p.is_file()}
    (source / "link").symlink_to("a-b")
    lab.upload("robots", [str(source)])
    assert stock.download("robots") == {"robots": expected}
    before = left(lab)
    assert sum("/hashes/" in key for key in before) == 3
    assert stock.download("robots", "1") == {"robots": expected}
    assert left(lab) == before
    reply = stock.http.get("/api/bucket/lab/dataset/robots", {"tag": "latest"})
    assert "1 links" in warning(reply)
    migrated = ok(stock.http.post("/api/bucket/lab/dataset/robots/migrate", {"tag": "latest"}))
    assert migrated == ok(reply)
    refused(stock.http.get("/api/bucket/shown/dataset/robots", {"tag": "latest"}), 403, "read-only")
    refused(stock.http.get("/api/bucket/lab/dataset/robots", {"tag": "none"}), 404, "none")


def test_a_collection_is_offered_member_by_member(stock: Stock, lab: Bucket) -> None:
    stock.upload("robots", {"a": b"1"})
    stock.upload("arms", {"b": b"2"})
    lab.collect("all", ["robots", "arms"])
    reply = ok(stock.http.get("/api/bucket/lab/dataset/all", {"tag": "latest"}))
    assert (reply["dataset_names"], reply["is_collection"]) == (["arms", "robots"], True)
    assert stock.download("all") == {"robots": {"a": b"1"}, "arms": {"b": b"2"}}


def test_update_keeps_what_the_offer_holds(stock: Stock, lab: Bucket, tmp_path: Path) -> None:
    stock.upload("robots", FILES)
    base = ok(stock.http.get("/api/bucket/lab/dataset/robots", {"tag": "latest"}))["locations"][0]
    kept = [entry for entry in stock.manifest(base) if entry["relative_path"] != "set/a.txt"]
    begun = ok(stock.start("robots", tag=""))
    checksum, size = stock.send(begun, {"new/d.txt": b"added"}, kept)
    assert ok(stock.finish("robots", begun["version_id"], checksum, size))["version_id"] == "2"
    expected = {path: data for path, data in FILES.items() if path != "set/a.txt"} | {"new/d.txt": b"added"}
    assert content(lab, "robots", tmp_path / "out") == expected
    assert stock.download("robots") == {"robots": expected}


def test_an_upload_that_was_begun_is_pending_and_can_be_resumed(stock: Stock, lab: Bucket) -> None:
    stock.upload("robots", FILES)
    begun = ok(stock.start("robots", metadata={"a": "b"}, description="two words"))
    assert begun["version_id"] == "2"
    assert begun["manifest_path"].endswith("/manifests/2.json")
    versions = ok(stock.http.get("/api/bucket/lab/dataset/robots/info", {"all_flag": "True"}))["versions"]
    assert [(one["version"], one["status"]) for one in versions] == [("1", "READY"), ("2", "PENDING")]
    assert versions[1]["metadata"] == {"a": "b", "description": "two words"}
    assert len(ok(stock.http.get("/api/bucket/lab/dataset/robots/info"))["versions"]) == 1
    assert ok(stock.start("robots"))["version_id"] == "3"
    assert ok(stock.start("robots", tag="2", resume=True)) == begun
    refused(stock.start("robots", tag="9", resume=True), 400, "does not have any PENDING versions")
    refused(stock.start("robots", tag="golden", resume=True), 400, "must be a number")
    refused(stock.start("robots", tag="", resume=True), 400, "required")
    refused(stock.start("robots", tag="7"), 400, "7")
    assert ok(stock.finish("robots", "2", *stock.send(begun, {"x": b"y"}), tag="2"))["version_id"] == "2"
    assert lab.resolve("robots", "2").metadata == {"a": "b", "description": "two words"}
    refused(stock.start("robots", metadata={"a": "x" * (2 << 20)}), 400, "larger")
    refused(stock.start("robots", metadata={"a/b": 1}), 400, "a/b")


def test_finishing_again_says_the_same_again(stock: Stock, lab: Bucket) -> None:
    begun = ok(stock.start("robots"))
    checksum, size = stock.send(begun, FILES)
    first = ok(stock.finish("robots", "1", checksum, size))
    assert ok(stock.finish("robots", "1", checksum, size)) == first
    refused(stock.finish("robots", "1", "0" * 32, size), 404, "not being uploaded")
    assert len(lab.info("robots").versions) == 1


def test_a_server_that_ended_between_the_version_and_its_reply(
    stock: Stock, lab: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = ok(stock.start("robots"))
    checksum, size = stock.send(begun, FILES)
    with monkeypatch.context() as patch:
        patch.setattr(Areas, "close", lambda *_: False)
        ok(stock.finish("robots", "1", checksum, size))
    assert left(lab) != []
    assert ok(stock.finish("robots", "1", checksum, size))["version_id"] == "1"
    assert [one.version.number for one in lab.info("robots").versions] == [1]
    assert left(lab) == []


def test_a_number_that_others_took_is_told(stock: Stock, lab: Bucket, tmp_path: Path) -> None:
    begun = ok(stock.start("robots"))
    (tmp_path / "x").write_bytes(b"x")
    lab.upload("robots", [str(tmp_path / "x")])
    reply = stock.finish("robots", begun["version_id"], *stock.send(begun, FILES))
    assert ok(reply)["version_id"] == "2"
    assert "robots:2" in warning(reply)


def test_what_is_wrong_with_an_upload_makes_no_version(stock: Stock, lab: Bucket) -> None:
    def entry(path: str, url: str, data: bytes = b"x") -> dict[str, Any]:
        return OsmoFolder.described(path, url, len(data), osmo_etag(data))

    begun = ok(stock.start("robots"))
    version, hashes = begun["version_id"], begun["storage_path"]
    refused(stock.finish("robots", version, ""), 409, "no manifest")
    sent = {"a": b"x"}
    inside = f"{hashes}/{osmo_etag(b'x')}"
    for wrong, words in [
        ([entry("../a", inside)], "leaves the dataset"),
        ([entry("/abs", inside)], "absolute"),
        ([entry("a", inside), entry("a", inside)], "a"),
        ([entry("b", f"{hashes}/{'0' * 32}")], "is not there"),
        ([entry("b", f"{hashes}/../../../store.json")], "'.' or '..'"),
        ([entry("b", "file:///etc/passwd")], "not object storage"),
        ([entry("b", "tos://127.0.0.1:1/bucket/x")], "no credential"),
        ([entry("b", inside, b"xx")], "bytes"),
        ([{**entry("b", inside), "size": -1}], "negative"),
    ]:
        checksum, size = stock.send(begun, sent, wrong)
        refused(stock.finish("robots", version, checksum, size), 409, words)
    checksum, size = stock.send(begun, sent)
    assert stock.finish("robots", version, "0" * 32, size).status_code >= 400
    stock.put(inside, b"y")
    refused(stock.finish("robots", version, checksum, size), 409, "not those that were recorded")
    refused(stock.finish("robots", "../1", checksum), 400, "not a version")
    refused(stock.finish("robots", "77", checksum), 404, "not being uploaded")
    assert stock.http.get("/api/bucket/lab/dataset/robots/info").status_code == 404


def test_links_are_read_with_the_user_s_own_credential(stock: Stock, lab: Bucket, server: Server, s3: S3Server) -> None:
    """A link into the bucket of the store works for its owner, and for nobody else."""
    bucket = lab.store.url.partition("/stores/")[0]
    stock.put(f"{bucket}/raw/a.txt", b"linked")
    link = OsmoFolder.described("a.txt", f"{bucket}/raw/a.txt", 6, osmo_etag(b"linked"))
    begun = ok(stock.start("robots"))
    assert ok(stock.finish("robots", "1", *stock.send(begun, {}, [link])))["version_id"] == "1"
    bob = Stock(Http(server.port, {"x-osmo-user": "bob"}), s3)
    bob.buckets = stock.buckets
    begun = ok(bob.start("robots"))
    refused(bob.finish("robots", "2", *bob.send(begun, {}, [link])), 409, "no credential")
    elsewhere = f"s3://{s3.bucket()}"
    stock.put(f"{elsewhere}/b.txt", b"theirs")
    link = OsmoFolder.described("b.txt", f"{elsewhere}/b.txt", 6, osmo_etag(b"theirs"))
    sent = bob.send(begun, {}, [link])
    refused(bob.finish("robots", "2", *sent), 409, "no credential")
    own = {"access_key_id": s3.access_key_id, "access_key": s3.access_key, "override_url": s3.endpoint}
    kept = bob.http.post("/api/credentials/own", json={"data_credential": {"endpoint": elsewhere, **own}})
    assert kept.status_code == 200, kept.text
    assert ok(bob.finish("robots", "2", *sent))["version_id"] == "2"
    assert lab.resolve("robots", "2").record.created_by == "bob"


def test_what_is_over_is_collected(stock: Stock, lab: Bucket) -> None:
    stock.upload("robots", FILES)
    stock.download("robots")
    stock.send(ok(stock.start("robots")), FILES)
    areas = Areas(lab.store.backend)
    now = time.time()
    assert len(areas.expired(now + OFFER_TERM + 60)) == 1
    assert len(areas.expired(now + UPLOAD_TERM + 60)) == 2
    with Garbage(lab, clock=lambda: now) as garbage:
        plan = garbage.plan()
        assert plan.exchanges == 0
        garbage.run(plan)
    assert stock.download("robots") == {"robots": FILES}
    with Garbage(lab, clock=lambda: now + UPLOAD_TERM + 60) as garbage:
        plan = garbage.plan()
        assert (plan.exchanges, plan.empty) == (2, False)
        assert garbage.run(plan).exchanges == 2
    assert left(lab) == []
    assert stock.download("robots") == {"robots": FILES}


def test_what_takes_longer_than_a_client_waits_goes_on(
    stock: Stock, lab: Bucket, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.services.jobs, "_patience", 0.0)
    begun = ok(stock.start("robots"))
    checksum, size = stock.send(begun, FILES)
    replies = [stock.finish("robots", "1", checksum, size)]
    while "still being taken over" in warning(replies[-1]):
        replies.append(stock.finish("robots", "1", checksum, size))
    assert {ok(reply)["version_id"] for reply in replies} == {"1"}
    offered = stock.http.get("/api/bucket/lab/dataset/robots", {"tag": "latest"})
    while offered.status_code == 409:
        refused(offered, 409, "is being laid out")
        offered = stock.http.get("/api/bucket/lab/dataset/robots", {"tag": "latest"})
    assert ok(offered)["dataset_versions"] == ["1"]
