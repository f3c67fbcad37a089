"""What may be done to a store through a server, and what not: hostile clients, other people's buckets, addresses."""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from casstore import hashing
from casstore.backend.base import Absent, Backend, Matches
from casstore.backend.served import Http
from casstore.compression import RAW, REFERENCE
from casstore.dataset import Bucket
from casstore.dataset.garbage import Garbage
from casstore.errors import (
    AccessError,
    CasstoreError,
    ConflictError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    UsageError,
)
from casstore.format import record
from casstore.format.pack import HEADER_SIZE, PackKind
from casstore.format.reference import Pointer, encode_pointer
from casstore.model import Head, Retention, VersionRecord, VersionState, VersionStatus
from casstore.repo import layout
from casstore.repo.leases import Lease, LeaseRecord
from casstore.repo.packs import PackBuilder
from casstore.repo.records import NameRecord, Records
from casstore.repo.versions import DeletedError
from casstore.wire.protocol import USER_HEADER
from casstore.wire.v1 import PackWish, UrlsBody, UrlsReply
from tests.serving import Serving, may, serving

READ = ("dataset:Read",)
WRITE = ("dataset:Read", "dataset:Write")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path, {"team": f"file://{tmp_path}/team", "other": f"file://{tmp_path}/other"}) as found:
        found.grants = {
            "reader": may(*READ),
            "writer": may(*WRITE),
            "nobody": may(*READ, buckets=("bucket/other",)),
        }
        yield found


def source(folder: Path, name: str, data: bytes) -> str:
    path = folder / "sources" / name
    path.mkdir(parents=True, exist_ok=True)
    (path / "file").write_bytes(data)
    return str(path)


def uploaded(server: Serving, user: str = "ann", data: bytes = b"data" * 50_000, name: str = "d") -> Any:
    with server.bucket(user, "team") as bucket:
        return bucket.upload(name, [source(server.folder, f"{name}-{user}", data)])


def sealed(data: bytes, *, codec: int = RAW, raw: int | None = None) -> tuple[bytes, bytes]:
    builder = PackBuilder(PackKind.DATA)
    builder.append(hashing.digest(data), len(data) if raw is None else raw, codec, data)
    found = builder.seal()
    return found.pack_id, b"".join(bytes(part) for part in found.parts)


# ---- who may at all


PATHS = [
    "",
    "/object/store.json",
    "/stat/store.json",
    "/objects",
    "/diff?old=d&new=d",
    "/dataset/d/version/1/files",
    "/dataset/d/version/1/lineage",
    "/dataset/d/version/1/file/file",
    "/dataset/nothing/version/1/files",
    "/gc/plan",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_bucket_of_others_is_like_one_that_is_not_there(server: Serving, path: str) -> None:
    uploaded(server)
    http = server.http("nobody")
    said = []
    for bucket in ("team", "missing"):
        found = http.server("GET", f"/api/v1/bucket/{bucket}{path}")
        assert found.status == 403
        said.append(found.data.replace(bucket.encode(), b"X"))
    assert said[0] == said[1]
    http.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/urls", b'{"read": ["packs/00/' + b"0" * 64 + b'"]}'),
        ("/packs", b"{}"),
        ("/index", b'{"packs": []}'),
        ("/objects/delete", b'{"keys": []}'),
        ("/dataset/d/commit", b"{}"),
    ],
)
def test_nothing_is_done_in_a_bucket_of_others(server: Serving, path: str, body: bytes) -> None:
    http = server.http("nobody")
    for bucket in ("team", "missing"):
        assert http.server("POST", f"/api/v1/bucket/{bucket}{path}", body=body).status == 403
    http.close()


def test_chunks_are_known_in_their_own_bucket_only(server: Serving) -> None:
    data = os.urandom(300_000)
    first = uploaded(server, "ann", data)
    assert first.new_bytes > 300_000
    folder = source(server.folder, "d-ann", data)
    with server.bucket("bob", "other") as bucket:
        assert bucket.upload("d", [folder]).new_bytes > 300_000
    with server.bucket("bob", "team") as bucket:
        assert bucket.upload("e", [folder]).new_bytes < 10_000


def test_a_reader_reads_and_changes_nothing(server: Serving) -> None:
    uploaded(server)
    with server.bucket("reader", "team") as bucket:
        out = server.folder / "out"
        out.mkdir()
        bucket.download("d", str(out))
        assert (out / "d" / "d-ann" / "file").read_bytes() == b"data" * 50_000
        assert bucket.resolve("d").state.last_used is not None  # that it was used, a reader may say
        with pytest.raises(AccessError, match="dataset:Write"):
            bucket.upload("d", [source(server.folder, "x", b"x")])
        with pytest.raises(AccessError, match="dataset:Write"):
            bucket.update_tags("d", set=["mine"])
        with pytest.raises(AccessError, match="dataset:Write"):
            bucket.update_labels("d", set={"a": 1})
        with pytest.raises(AccessError):
            bucket.rename("d", "e")
        with pytest.raises(AccessError):
            bucket.delete("d", all_versions=True, force=True)
        with Lease.acquire(bucket.store.backend, kind="mount", user="reader", reads=[bytes(32)]):
            pass
        with pytest.raises(AccessError, match="dataset:Write"):
            Lease.acquire(bucket.store.backend, kind="upload", user="reader")


def test_deleting_takes_a_right_of_its_own(server: Serving) -> None:
    uploaded(server)
    with server.bucket("writer", "team") as bucket:
        bucket.update_tags("d", set=["prod"])
        with pytest.raises(AccessError, match="dataset:Delete"):
            bucket.delete("d", tag="1", force=True)
        with pytest.raises(AccessError, match="dataset:Delete"):
            bucket.delete("d", all_versions=True, force=True)
        head = bucket.refs.find("d")
    with server.bucket("ann", "team") as bucket:
        assert bucket.refs.find("d").id == head.id
        bucket.delete("d", all_versions=True, force=True)


# ---- keys


@pytest.mark.parametrize(
    "key",
    ["exchange/a", "incoming/" + "0" * 32, "probe/x", "quarantine/packs/a", "other", "trash0/x", "store.json.bak"],
)
def test_what_is_no_part_of_a_store_is_not_there(server: Serving, key: str) -> None:
    inner = server.store("team").backend
    inner.put(key, [b"secret"])
    with server.backend("ann", "team") as backend:
        for call in (backend.get, backend.stat, lambda key: backend.read(key, 0, 1)):
            with pytest.raises(NotFoundError):
                call(key)
        assert key not in [info.key for info in backend.list("")]
        with pytest.raises(AccessError):
            backend.put(key, [b"x"], condition=None)
        with pytest.raises(AccessError):
            backend.delete([key])
    assert inner.get(key).data == b"secret"


@pytest.mark.parametrize(
    "key", ["../x", "a/../../x", "/etc/passwd", "packs/%2e%2e/x", "packs//x", ".tmp/x", "names/..", "x" * 600]
)
def test_keys_lead_nowhere_else(server: Serving, key: str) -> None:
    http = server.http("ann")
    for method in ("GET", "PUT"):
        found = http.server(method, f"/api/v1/bucket/team/object/{key}", body=b"x" if method == "PUT" else None)
        assert found.status in {400, 403, 404, 422}, found
    http.close()
    assert sorted(path.name for path in (server.folder / "team").iterdir() if path.name[0] != ".") == ["store.json"]


@pytest.mark.parametrize("key", ["store.json", "index/" + "0" * 64, "trash/" + "0" * 32, "packs/00/" + "1" * 64])
@pytest.mark.parametrize("condition", [None, Absent()])
def test_the_store_itself_is_not_written(server: Serving, key: str, condition: Any) -> None:
    before = server.store("team").backend.get(layout.STORE).data
    with server.backend("ann", "team") as backend, pytest.raises(CasstoreError):
        backend.put(key, [b"x" * 200], condition=condition)
    assert server.store("team").backend.get(layout.STORE).data == before
    assert not list(server.store("team").backend.list("index/"))


# ---- packs


def test_a_pack_that_is_something_else_is_refused(server: Serving) -> None:
    """Its table of contents, and so its id, are right; a frame is not: who stores this chunk later must not find it."""
    data = os.urandom(100_000)
    pack_id, whole = sealed(data)
    poisoned = bytearray(whole)
    poisoned[HEADER_SIZE + 5] ^= 1
    key = layout.pack_key(pack_id)
    with server.backend("writer", "team") as backend:
        with pytest.raises(IntegrityError, match="damaged"):
            backend.put(key, [poisoned], condition=Absent())
        with pytest.raises(NotFoundError):
            backend.register([pack_id])
        with pytest.raises(NotFoundError):
            backend.stat(key)
        backend.put(key, [whole], condition=Absent())
        backend.register([pack_id])
        with pytest.raises(PreconditionError):
            backend.put(key, [whole], condition=Absent())
        with pytest.raises(IntegrityError):
            backend.put(key, [poisoned], condition=None)
        assert backend.get(key).data == whole


@pytest.mark.parametrize("length", [1, 15, 31, 40, 100])
def test_what_is_no_pack_is_refused(server: Serving, length: int) -> None:
    with server.backend("writer", "team") as backend, pytest.raises(IntegrityError):
        backend.put("packs/00/" + "0" * 64, [os.urandom(length)], condition=Absent())


def test_references_to_elsewhere_are_refused(server: Serving) -> None:
    pointer = encode_pointer(Pointer("s3://somebody/else", "etag", "", 0))
    builder = PackBuilder(PackKind.DATA)
    builder.append(os.urandom(32), 20_000, REFERENCE, pointer)
    found = builder.seal()
    with server.backend("writer", "team") as backend, pytest.raises(UsageError, match="another bucket"):
        backend.put(layout.pack_key(found.pack_id), found.parts, condition=Absent())


def test_more_than_was_announced_is_not_taken(server: Serving) -> None:
    pack_id, whole = sealed(b"x" * 1000)
    http = server.http("writer")
    wish = msgspec.json.encode(UrlsBody(write=[PackWish(pack=pack_id.hex(), size=len(whole))]))
    reply = http.server("POST", "/api/v1/bucket/team/urls", body=wish)
    address = msgspec.json.decode(reply.data, type=UrlsReply).write[0]
    for body in (whole + b"x", whole[:-1]):
        assert http.data("PUT", address.url, headers={}, body=[body], limit=1 << 20).status == 400
    too_large = msgspec.json.encode({"write": [{"pack": pack_id.hex(), "size": 1 << 30}]})
    assert http.server("POST", "/api/v1/bucket/team/urls", body=too_large).status == 400
    assert http.data("PUT", address.url, headers={}, body=[whole], limit=1 << 20).status == 200
    http.close()


# ---- records


def changed_head(backend: Backend, name: str, change: Callable[[Head], Head]) -> None:
    records = Records(backend)
    named, _ = records.read(layout.name_key(name), "name", NameRecord)
    assert named.id is not None
    head, etag = records.head(named.id)
    data = record.encode("head", msgspec.structs.replace(change(head), write_id=os.urandom(16).hex()))
    backend.put(layout.head_key(head.id), [data], condition=Matches(etag))


HOSTILE: dict[str, Callable[[Head], Head]] = {
    "another id": lambda head: msgspec.structs.replace(head, id="A" * 22),
    "another maker": lambda head: msgspec.structs.replace(head, created_by="mallory"),
    "an epoch": lambda head: msgspec.structs.replace(head, epoch=head.epoch + 1),
    "a deleted dataset": lambda head: msgspec.structs.replace(head, deleted=True),
    "a deleted version": lambda head: msgspec.structs.replace(
        head, versions={1: VersionState(status=VersionStatus.PENDING_DELETE)}
    ),
    "a version that is not there": lambda head: msgspec.structs.replace(head, versions={9: VersionState()}),
    "a tag of nothing": lambda head: msgspec.structs.replace(head, tags={"prod": 7}),
    "fewer versions": lambda head: msgspec.structs.replace(head, last_version=0),
    "more versions": lambda head: msgspec.structs.replace(head, last_version=1000),
    "a name of others": lambda head: msgspec.structs.replace(head, name="victim"),
    "a bad name": lambda head: msgspec.structs.replace(head, name="../x"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_heads_change_as_they_may(server: Serving, what: str) -> None:
    uploaded(server)
    uploaded(server, name="victim")
    with server.backend("writer", "team") as backend:
        before = server.store("team").backend.list("datasets/")
        states = {info.key: server.store("team").backend.get(info.key).data for info in before}
        with pytest.raises((AccessError, UsageError)):
            changed_head(backend, "d", HOSTILE[what])
    for key, data in states.items():
        assert server.store("team").backend.get(key).data == data


def test_a_rule_of_retention_takes_the_right_to_delete(server: Serving) -> None:
    uploaded(server)
    rule = Retention(keep_last=1)
    with server.backend("writer", "team") as backend, pytest.raises(AccessError, match="dataset:Delete"):
        changed_head(backend, "d", lambda head: msgspec.structs.replace(head, retention=rule))
    with server.backend("ann", "team") as backend:
        changed_head(backend, "d", lambda head: msgspec.structs.replace(head, retention=rule))


def test_a_deleted_version_does_not_come_back(server: Serving) -> None:
    uploaded(server)
    uploaded(server, data=b"second" * 1000)
    with server.bucket("ann", "team") as bucket:
        bucket.delete("d", tag="1", force=True)
        with pytest.raises(AccessError, match="come back"):
            changed_head(
                bucket.store.backend, "d", lambda head: msgspec.structs.replace(head, versions={1: VersionState()})
            )
        with pytest.raises(AccessError, match="forgotten"):
            changed_head(bucket.store.backend, "d", lambda head: msgspec.structs.replace(head, versions={}))


def put_version(server: Serving, user: str, number: int, name: str = "d", **changes: Any) -> None:
    with server.bucket(user, "team") as bucket:
        head = bucket.refs.find(name)
        made = bucket.refs.read_version(head.id, 1)
        new = msgspec.structs.replace(made, **{"number": number, "created_by": user, "epoch": head.epoch, **changes})
        data = record.encode("version", new)
        bucket.store.backend.put(layout.version_key(head.id, number), [data], condition=Absent())


def test_a_version_that_is_whole_is_taken(server: Serving) -> None:
    uploaded(server)
    put_version(server, "writer", 2)
    with pytest.raises(PreconditionError):
        put_version(server, "writer", 2)
    with server.bucket("reader", "team") as bucket:
        assert bucket.resolve("d").number == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest": "0" * 64},
        {"checksum": "0" * 64},
        {"created_by": "ann"},
        {"epoch": 5},
        {"created_at": "2999-01-01T00:00:00Z"},
        {"number": 1},
        {"number": 4},
        {"number": 10**9},
    ],
    ids=str,
)
def test_a_version_that_is_not_what_it_says_is_refused(server: Serving, changes: dict[str, Any]) -> None:
    uploaded(server)
    with pytest.raises((AccessError, UsageError, NotFoundError, ConflictError)):
        put_version(server, "writer", changes.pop("number", 2), **changes)
    with server.bucket("reader", "team") as bucket:
        assert bucket.resolve("d").number == 1


def test_a_version_is_never_overwritten(server: Serving) -> None:
    uploaded(server)
    with server.bucket("ann", "team") as bucket:
        head = bucket.refs.find("d")
        key = layout.version_key(head.id, 1)
        found = bucket.store.backend.get(key)
        for condition in (None, Matches(found.etag)):
            with pytest.raises(UsageError, match="only where nothing is"):
                bucket.store.backend.put(key, [found.data], condition=condition)
        with pytest.raises(AccessError):
            bucket.store.backend.delete([key])


def test_a_version_whose_data_is_not_there_is_refused(server: Serving) -> None:
    """Its manifest and nodes are in the store; a chunk is not."""
    record = uploaded(server, data=os.urandom(200_000)).version.record
    same = {"manifest": record.manifest, "checksum": record.checksum, "totals": record.totals}
    uploaded(server, name="e", data=b"e")
    inner = server.store("team").backend
    kept = {info.key: inner.get(info.key).data for info in inner.list("packs/")}
    data = max(kept, key=lambda key: len(kept[key]))
    inner.delete([data])
    with pytest.raises(UsageError, match="not all there"):
        put_version(server, "writer", 2, "e", **same)
    inner.put(data, [kept[data]])
    put_version(server, "writer", 2, "e", **same)


def test_records_are_written_as_records_are(server: Serving) -> None:
    uploaded(server)
    with server.bucket("writer", "team") as bucket:
        head, etag = bucket.refs.read_head(bucket.refs.find("d").id)
        body = msgspec.json.encode(msgspec.to_builtins(head, str_keys=True)) + b"   "
        backend = bucket.store.backend
        for data in (b"", b"x", b"{}", os.urandom(100), body, record.encode("name", head)):
            with pytest.raises(UsageError):
                backend.put(layout.head_key(head.id), [data], condition=Matches(etag))


# ---- names and leases


def test_names_are_not_stolen(server: Serving) -> None:
    uploaded(server)
    uploaded(server, "writer", name="mine")
    with server.backend("writer", "team") as backend:
        records = Records(backend)
        _, etag = records.read("names/d", "name", NameRecord)
        mine, _ = records.read("names/mine", "name", NameRecord)
        for new in (NameRecord(name="d", id=mine.id, write_id="0"), NameRecord(name="d", id=None, write_id="0")):
            with pytest.raises(PreconditionError):
                backend.put("names/d", [record.encode("name", new)], condition=Matches(etag))
        nothing = NameRecord(name="new", id="A" * 22, write_id="0")
        with pytest.raises(PreconditionError, match="not there"):
            backend.put("names/new", [record.encode("name", nothing)], condition=Absent())
        with pytest.raises(UsageError):
            backend.put("names/new", [record.encode("name", nothing)], condition=None)
        with pytest.raises(AccessError):
            backend.delete(["names/d"])


def test_leases_are_their_holders(server: Serving) -> None:
    with server.backend("ann", "team") as ann, server.backend("writer", "team") as writer:
        with Lease.acquire(ann, kind="upload", user="ann", heartbeat=False) as lease:
            key = layout.lease_key(lease.id)
            with pytest.raises(AccessError, match="somebody else"):
                writer.delete([key])
            found = ann.get(key)
            with pytest.raises(AccessError):
                writer.put(key, [found.data], condition=Matches(found.etag))
            taken = msgspec.structs.replace(record.decode("lease", found.data, LeaseRecord), user="writer")
            with pytest.raises(AccessError, match="somebody else"):
                writer.put(key, [record.encode("lease", taken)], condition=None)
            lease.renew()
            assert not lease.lost
        with pytest.raises(AccessError, match="bucket:Manage"):
            Lease.acquire(writer, kind="gc", user="writer")
        with pytest.raises(AccessError, match="says that"):
            Lease.acquire(writer, kind="upload", user="ann")
        old = msgspec.structs.replace(taken, id=layout.new_id(), begun=time.time() - 90 * 86400)
        with pytest.raises(AccessError, match="too long ago"):
            writer.put(layout.lease_key(old.id), [record.encode("lease", old)], condition=Absent())


# ---- addresses


def address(server: Serving, user: str, key: str) -> str:
    http = server.http(user)
    found = http.server("POST", "/api/v1/bucket/team/urls", body=msgspec.json.encode(UrlsBody(read=[key])))
    http.close()
    return msgspec.json.decode(found.data, type=UrlsReply).read[0].url


def test_an_address_is_for_one_object(server: Serving) -> None:
    uploaded(server)
    packs = [info.key for info in server.store("team").backend.list("packs/")]
    url = address(server, "reader", packs[0])
    http = server.http("")

    def asked(url: str, method: str = "GET") -> int:
        return http.data(method, url, headers={}, limit=1 << 26).status

    assert asked(url) == 200
    assert asked(url.replace("/team/", "/other/")) == 403
    assert asked(url.replace(packs[0], packs[1])) == 403
    assert asked(url.replace(packs[0], "store.json")) == 403
    assert asked(url.replace("for=read", "for=write+1000")) == 403
    assert asked(url, "PUT") == 403
    until = int(url.partition("until=")[2].partition("&")[0])
    assert asked(url.replace(str(until), str(until + 1))) == 403
    assert asked(url[:-1] + ("0" if url[-1] != "0" else "1")) == 403
    by = url.partition("&by=")[2].partition("&")[0]
    assert asked(url.replace(f"&by={by}", "")) == asked(url.replace(f"&by={by}", "&by=other")) == 403
    assert asked(url.partition("?")[0]) == 422
    server.services.plane.signing._clock = lambda: time.time() + 1000
    assert asked(url) == 403
    http.close()


def test_addresses_that_are_too_old_are_asked_for_anew(server: Serving) -> None:
    uploaded(server, data=os.urandom(1 << 20))
    ahead = 0.0
    server.services.plane.signing._clock = lambda: time.time() + ahead
    with server.bucket("reader", "team") as bucket:
        key = next(info.key for info in bucket.store.backend.list("packs/"))
        bucket.store.backend.read(key, 0, 10)
        ahead = 10_000.0  # or this machine was suspended, or its clock is wrong
        assert bucket.store.backend.read(key, 0, 8) == b"CASPACK1"


def test_no_addresses_for_what_is_not_data(server: Serving) -> None:
    http = server.http("ann")
    for key in ("store.json", "names/d", "leases/" + "0" * 32, "packs/01/" + "0" * 64, "packs/../x", "exchange/x"):
        body = msgspec.json.encode({"read": [key]})
        assert http.server("POST", "/api/v1/bucket/team/urls", body=body).status in {400, 404}
    http.close()


def test_readers_get_no_addresses_to_write(server: Serving) -> None:
    with server.backend("reader", "team") as backend, pytest.raises(AccessError):
        backend.put("packs/00/" + "0" * 64, [b"x" * 100], condition=Absent())


def test_a_new_dataset_belongs_to_who_makes_it(server: Serving) -> None:
    with server.bucket("writer", "team") as bucket:
        stranger = Bucket(bucket.store, name="team", user="ann")
        with pytest.raises(AccessError, match="says that"):
            stranger.upload("x", [source(server.folder, "x", b"x")])
        assert not list(bucket.store.backend.list("names/"))


def test_what_was_put_and_never_told_of_is_collected(server: Serving) -> None:
    inner = server.store("team").backend
    key = layout.incoming_key(layout.new_id())
    inner.put(key, [b"left"])
    bucket = Bucket(server.store("team"), name="team", user="root")
    for later, left in ((3600, True), (2 * 86400, False)):
        with Garbage(bucket, clock=lambda later=later: time.time() + later) as garbage:  # type: ignore[misc]
            garbage.run(garbage.plan())
        assert any(inner.list("incoming/")) is left


def test_a_login_that_ends_is_renewed_once(server: Serving) -> None:
    uploaded(server)
    names = ["", "reader"]
    http = Http(server.url, lambda: {USER_HEADER: names[0]}, renewed=lambda _: names.pop(0) == "" and bool(names))
    assert http.server("GET", "/api/v1/bucket/team").status == 200
    names[:] = ["", ""]
    assert http.server("GET", "/api/v1/bucket/team").status == 401
    http.close()


def test_racing_clients_all_commit(server: Serving) -> None:
    """Who was slower takes the next number, through a server as without one."""
    folders = [source(server.folder, f"race{number}", b"%d" % number * 1000) for number in range(8)]

    def upload(number: int) -> int:
        user = ("ann", "writer")[number % 2]
        with server.bucket(user, "team") as bucket:
            return bucket.upload("race", [folders[number]]).version.number

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(upload, range(8))) == list(range(1, 9))


def test_a_dataset_that_is_deleted_amid_an_upload_is_told(server: Serving) -> None:
    uploaded(server)
    with server.bucket("writer", "team") as bucket:
        head = bucket.refs.find("d")
        made = bucket.refs.read_version(head.id, 1)

        def build(number: int, write_id: str) -> VersionRecord:
            with server.bucket("ann", "team") as other:
                other.delete("d", all_versions=True, force=True)
            return msgspec.structs.replace(made, number=number, write_id=write_id, created_by="writer")

        with pytest.raises(DeletedError):
            bucket.refs.commit_version(head.id, build)


def test_nothing_is_written_to_a_bucket_that_is_declared_as_read_only(server: Serving) -> None:
    uploaded(server)
    inner = server.store("team").backend
    before = {info.key: inner.get(info.key).data for info in inner.list("")}
    server.services.stores.is_writable = lambda _: False
    with server.bucket("ann", "team") as bucket:
        out = server.folder / "out"
        out.mkdir()
        bucket.download("d", str(out))
        assert not bucket.verify("d").problems
        for change in (
            lambda: bucket.upload("d", [source(server.folder, "x", b"x")]),
            lambda: bucket.update_tags("d", set=["x"]),
            lambda: Lease.acquire(bucket.store.backend, kind="mount", user="ann", reads=[]),
        ):
            with pytest.raises(AccessError, match="read-only"):
                change()
    assert {info.key: inner.get(info.key).data for info in inner.list("")} == before
