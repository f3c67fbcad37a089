"""Datasets in a bucket of OSMO become versions: every file checked, nothing taken on trust, nothing done twice."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.dataset.adopt import manifest
from casstore.dataset.adopt.base import Buckets
from casstore.dataset.adopt.info import load_info
from casstore.dataset.adopt.migrate import Migration, Outcome, State
from casstore.dataset.adopt.osmo import OsmoDataset, find_datasets
from casstore.dataset.adopt.take import Taking
from casstore.errors import ConflictError, FormatError, NotFoundError, UsageError
from casstore.model import Kind
from casstore.remote.credentials import StorageCredential
from casstore.repo.hold import GoneError, Hold
from casstore.repo.store import Store
from casstore.repo.verify import verify_store
from casstore.testing.foreign import MemoryBuckets, OsmoFolder, osmo_etag
from casstore.transfer.memo import Memo

SOURCE = "s3://osmo/data"
rng = random.Random(11)
LARGE = rng.randbytes((16 << 20) + 12345)
FILES = {"train/a.bin": rng.randbytes(300_000), "train/b.txt": b"text\n", "empty": b"", "train/deep/er/c": b"c"}


class Credentials:
    """Credentials by profile."""

    def __init__(self, **keys: str) -> None:
        self.keys = keys

    def find(self, profile: str) -> StorageCredential | None:
        name = profile.partition("://")[2]
        return StorageCredential(access_key_id=self.keys[name], access_key="k") if name in self.keys else None


class World:
    """A bucket of OSMO, and a store of ours to move it to."""

    def __init__(self, folder: Path) -> None:
        self.services = MemoryBuckets()
        self.osmo = OsmoFolder(self.services.bucket("s3://osmo"), "data")
        self.backend = MemoryBackend()
        store = Store.open(self.backend, create=True)
        self.bucket = Bucket(store, name="lab", user="kim", state_dir=str(folder / "state"))
        self.cache = str(folder / "cache")
        self.warnings: list[str] = []

    @property
    def log(self) -> list[tuple[str, str]]:
        return self.services.bucket("s3://osmo").log

    def datasets(self, source: str = SOURCE, **options: Any) -> tuple[Buckets, list[OsmoDataset]]:
        buckets = Buckets(options.pop("credentials", None), self.services)
        return buckets, find_datasets(source, buckets, **options)

    def migrate(self, name: str = "robots", info: Any = None, *, skip: bool = False, **options: Any) -> list[Outcome]:
        buckets, [dataset] = self.datasets(options.pop("source", SOURCE), **options)
        infos = load_info("info.json", json.dumps(info).encode(), self.warnings.append) if info else [None]
        with buckets, dataset, Memo(self.cache, dataset.url, self.bucket.store.id) as memo:
            migration = Migration(self.bucket, dataset, name, infos[0], warn=self.warnings.append)
            taking = Taking(self.bucket, name, buckets, memo, skip_damaged=skip, threads=2)
            outcomes = list(migration.run(migration.plan(thorough=True), taking))
        self.bucket.store.index.load()
        return outcomes

    def contents(self, name: str = "robots", tag: str | None = None) -> dict[str, bytes]:
        store = self.bucket.store
        tree = self.bucket.tree(self.bucket.resolve(name, tag))
        return {
            os.fsdecode(entry.path): b"".join(bytes(chunk) for chunk in store.read_chunks(list(tree.chunks(entry))))
            for entry in tree.entries()
            if entry.kind == Kind.FILE
        }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    assert verify_store(Store.open(world.backend)).problems == []


def problems(outcome: Outcome) -> str:
    return "\n".join(f"{os.fsdecode(one.path)} | {one.url} | {one.message}" for one in outcome.problems)


def test_every_version_in_order(world: World) -> None:
    world.osmo.version(1, FILES)
    world.osmo.version(3, {**FILES, "train/b.txt": b"other\n", "large": LARGE})
    world.osmo.version(10, {"only": b"this"})
    outcomes = world.migrate()
    assert [(o.step.number, o.state, o.version) for o in outcomes] == [
        (1, State.CREATED, 1),
        (3, State.CREATED, 2),
        (10, State.CREATED, 3),
    ]
    assert world.contents(tag="1") == FILES
    assert world.contents(tag="2") == {**FILES, "train/b.txt": b"other\n", "large": LARGE}
    assert world.contents() == {"only": b"this"}
    record = world.bucket.resolve("robots", "2").record
    origin = record.provenance["adopted"]
    assert origin["checksum"] == world.osmo.checksums[3]
    assert (origin["from"], origin["version"], origin["dataset_id"]) == ("osmo", 3, world.osmo.id)
    assert origin["source"] == f"s3://osmo/data/{world.osmo.id}"
    assert origin["checks"] == {"md5": 4, "md5-of-parts": 1}
    assert "damaged" not in origin
    folder = world.bucket.tree(world.bucket.resolve("robots", "1")).lookup(b"train/deep")
    assert folder is not None and folder.kind == Kind.DIRECTORY


def test_what_versions_share_is_read_once(world: World) -> None:
    world.osmo.version(1, {"large": LARGE, "copy": LARGE})
    world.osmo.version(2, {"moved/large": LARGE, "new": b"n"})
    outcomes = world.migrate()
    reads = [key for what, key in world.log if what == "read" and osmo_etag(LARGE) in key]
    assert len(reads) == -(-len(LARGE) // (2 << 20))
    assert outcomes[1].result is not None and outcomes[1].result.reused == 1
    assert outcomes[1].result.new_bytes < 10_000
    assert outcomes[1].checks == {"md5": 1, "md5-of-parts": 1}


def test_again_does_nothing(world: World) -> None:
    world.osmo.version(1, FILES)
    world.migrate()
    world.osmo.version(2, {"later": b"l"})
    del world.log[:]
    outcomes = world.migrate()
    assert [(o.state, o.version) for o in outcomes] == [(State.PRESENT, 1), (State.CREATED, 2)]
    assert [key for what, key in world.log if what == "read" and key.endswith("manifests/1.json")] == []
    assert [o.state for o in world.migrate()] == [State.PRESENT, State.PRESENT]
    assert world.warnings == []


def test_what_the_service_knew(world: World) -> None:
    for number in (1, 2, 3, 4):
        world.osmo.version(number, {"n": str(number).encode()})
    info = world.osmo.info("robots", [1, 2, 3], labels={"team": "arms", "bad key": 1})
    info["versions"][0] |= {"tags": ["golden", "latest", "12"], "metadata": {"description": "first", "a b": 1}}
    info["versions"][1] |= {"status": "PENDING_DELETE"}
    info["versions"][2] |= {"checksum": "0" * 32, "created_date": "nonsense", "created_by": None}
    outcomes = world.migrate(info=info)
    assert [(o.step.number, o.state, o.version) for o in outcomes] == [
        (1, State.CREATED, 1),
        (2, State.LEFT_OUT, None),
        (3, State.CREATED, 2),
        (4, State.LEFT_OUT, None),
    ]
    first, second = (world.bucket.resolve("robots", tag) for tag in ("golden", "latest"))
    assert (first.number, second.number) == (1, 2)
    assert (first.record.created_by, first.record.created_at) == ("alex@lab", "2026-02-01T10:00:00.250000Z")
    assert second.record.created_by == "kim"
    assert first.metadata == {"description": "first"}
    assert first.record.provenance["adopted"]["info"]["metadata"] == {"a b": 1}
    assert world.bucket.refs.find("robots").labels == {"team": "arms"}
    said = "\n".join(world.warnings)
    assert "checksum of version 3" in said and "'12' is a number" in said and "bad key" in said
    assert "latest was version 1, which is robots:1 now" in said


def test_tags_and_labels_set_here_stay(world: World) -> None:
    world.osmo.version(1, {"n": b"1"})
    world.osmo.version(2, {"n": b"2"})
    info = world.osmo.info("robots", [1, 2], labels={"team": "arms", "size": 1})
    info["versions"][0]["tags"] = ["golden"]
    world.migrate(info=info)
    world.bucket.set_tags("robots", ["golden"], tag="2")
    world.bucket.update_labels("robots", set={"team": "legs"})
    world.migrate(info=info)
    assert world.bucket.resolve("robots", "golden").number == 2
    assert world.bucket.refs.find("robots").labels == {"team": "legs", "size": 1}


def test_wrong_bytes(world: World) -> None:
    world.osmo.version(1, {"good": b"g", "bad": b"right", "parts": LARGE})
    keys = {data: f"{world.osmo.prefix}/hashes/{osmo_etag(data)}" for data in (b"right", LARGE)}
    world.osmo.client.put(keys[b"right"], [b"wrong"])
    world.osmo.client.put(keys[LARGE], [LARGE[:-1] + b"x"])
    [outcome] = world.migrate()
    assert outcome.state is State.DAMAGED
    assert {one.path for one in outcome.problems} == {b"bad", b"parts"}
    assert "not those that were recorded" in problems(outcome)
    with pytest.raises(NotFoundError):
        world.bucket.resolve("robots")
    [outcome] = world.migrate(skip=True)
    assert (outcome.state, outcome.version) == (State.CREATED, 1)
    assert world.contents() == {"good": b"g"}
    damaged = world.bucket.resolve("robots").record.provenance["adopted"]["damaged"]
    assert damaged["files"] == 2 and {one["path"] for one in damaged["first"]} == {"bad", "parts"}
    assert [o.state for o in world.migrate()] == [State.PRESENT]


def test_missing_and_short_objects_are_known_before_anything_is_read(world: World) -> None:
    entries = [world.osmo.entry("gone", b"gone"), world.osmo.entry("short", b"short"), world.osmo.entry("ok", b"ok")]
    world.osmo.manifest(1, entries)
    world.osmo.client.delete([f"{world.osmo.prefix}/hashes/{osmo_etag(b'gone')}"])
    world.osmo.client.put(f"{world.osmo.prefix}/hashes/{osmo_etag(b'short')}", [b"shor"])
    [outcome] = world.migrate()
    assert outcome.state is State.DAMAGED
    assert "is not there" in problems(outcome) and "4 bytes, not 5" in problems(outcome)
    assert "manifests/1.json, entry 1 |" in problems(outcome)
    assert not [key for what, key in world.log if what == "read" and "hashes" in key]


def test_a_later_version_is_not_followed_by_an_earlier_one(world: World) -> None:
    world.osmo.version(1, {"n": b"1"})
    world.osmo.version(2, {"n": b"2"})
    world.osmo.client.delete([f"{world.osmo.prefix}/hashes/{osmo_etag(b'1')}"])
    assert [o.state for o in world.migrate()] == [State.DAMAGED, State.CREATED]
    assert [o.state for o in world.migrate(skip=True)] == [State.LATE, State.PRESENT]
    assert world.contents() == {"n": b"2"}


def linked(world: World, data: bytes, url: str, etag: str | None = None, path: str = "linked") -> dict[str, Any]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    tag = etag or osmo_etag(data)
    world.services.bucket(f"s3://{bucket}").store(key, data, f'"{tag}"')
    return world.osmo.described(path, url, len(data), tag)


def test_linked_objects(world: World) -> None:
    """Defect 15: the ETag of a linked object is the service's, whatever the size of its parts was."""
    parts = osmo_etag(LARGE, 5 << 20)
    odd = osmo_etag(LARGE, 7_654_321)
    world.osmo.version(
        1,
        {"own": b"o"},
        [
            linked(world, b"plain", "s3://osmo/raw/plain", path="plain"),
            linked(world, LARGE, "s3://osmo/raw/parts", parts, "parts"),
            linked(world, LARGE, "s3://osmo/raw/odd", odd, "odd"),
            linked(world, b"encrypted", "s3://osmo/raw/kms", "0123456789abcdef0123456789abcdef", "kms"),
        ],
    )
    [outcome] = world.migrate()
    assert outcome.state is State.CREATED, problems(outcome)
    assert outcome.checks == {"md5": 2, "md5-of-parts": 1, "etag": 2}
    assert world.contents()["odd"] == LARGE
    assert world.bucket.resolve("robots").record.provenance["adopted"]["linked"] == 4


def test_a_linked_object_that_was_changed(world: World) -> None:
    entry = linked(world, b"before", "s3://osmo/raw/a")
    world.osmo.manifest(1, [entry])
    world.services.bucket("s3://osmo").store("raw/a", b"after!")
    [outcome] = world.migrate()
    assert outcome.state is State.DAMAGED
    assert "not those that were recorded" in problems(outcome)
    world.services.bucket("s3://osmo").store("raw/a", b"longer than before")
    assert "18 bytes there, not 6" in problems(world.migrate()[0])


def test_a_corrupt_key_is_reported(world: World) -> None:
    """Defect 8: ``s3://osmo/raw/folder/a.txt``, stripped of the letters of its folder."""
    linked(world, b"data", "s3://osmo/raw/folder/a.txt")
    entry = world.osmo.described("a.txt", "s3://osmo/raw/folder/.txt", 4, osmo_etag(b"data"))
    world.osmo.version(1, {"own": b"o"}, [entry])
    [outcome] = world.migrate()
    assert outcome.state is State.DAMAGED
    assert problems(outcome) == "a.txt | s3://osmo/raw/folder/.txt | it is not there"
    assert world.migrate(skip=True)[0].state is State.CREATED
    assert world.contents() == {"own": b"o"}


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "http://169.254.169.254/x", "https://x.org/y", "/etc/hostname"]
)
def test_links_to_anything_but_storage_are_refused(world: World, url: str) -> None:
    world.osmo.manifest(1, [world.osmo.described("a", url, 3, osmo_etag(b"abc"))])
    [outcome] = world.migrate()
    assert outcome.state is State.DAMAGED and len(outcome.problems) == 1
    assert set(world.services.clients) == {"s3://osmo"}


def test_links_into_other_buckets(world: World) -> None:
    world.osmo.manifest(1, [linked(world, b"secret", "s3://private/raw/a")])
    for credentials in (None, Credentials(osmo="me"), Credentials(osmo="me", private="someone-else")):
        world.services.bucket("s3://private").log.clear()
        [outcome] = world.migrate(credentials=credentials)
        assert outcome.state is State.DAMAGED and "outside of the bucket" in problems(outcome)
        assert world.services.bucket("s3://private").log == []
    with pytest.raises(UsageError):
        world.migrate(follow=["file:///etc"])
    assert world.migrate(follow=["s3://private/ra"])[0].state is State.DAMAGED
    assert world.migrate(follow=["s3://private/raw"])[0].state is State.CREATED
    other = World(Path(world.cache) / "other")
    other.services, other.osmo = world.services, world.osmo
    assert other.migrate(credentials=Credentials(osmo="me", private="me"))[0].state is State.CREATED


def test_a_bucket_that_was_copied_elsewhere(world: World) -> None:
    """The manifests still name the old place; the objects are read from where the manifests are."""
    copy = OsmoFolder(world.services.bucket("s3://osmo"), "data", world.osmo.id, url="s3://gone")
    copy.version(1, FILES)
    assert world.migrate()[0].state is State.CREATED
    assert world.contents() == FILES
    assert set(world.services.clients) == {"s3://osmo"}


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("../x", "leaves the dataset"),
        ("a/../../x", "leaves the dataset"),
        ("/x/y", "absolute"),
        ("", "empty"),
        ("a//b", "empty or '.'"),
        ("a/./b", "empty or '.'"),
        ("a/", "empty or '.'"),
        ("a\0b", "zero byte"),
        ("\ud800", "not valid text"),
        ("n" * 256, "too long"),
    ],
)
def test_hostile_paths(world: World, path: str, why: str) -> None:
    world.osmo.version(1, {"good": b"g"}, [world.osmo.entry(path, b"x")])
    [outcome] = world.migrate()
    assert outcome.state is State.DAMAGED
    assert why in problems(outcome)
    assert f"s3://osmo/{world.osmo.prefix}/manifests/1.json, entry 2" in problems(outcome)
    assert world.migrate(skip=True)[0].state is State.CREATED
    assert world.contents() == {"good": b"g"}


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (["a", "a"], "another file has the same path"),
        (["a", "a/b"], "a file has the path of a folder"),
        (["a/b", "a"], "a folder has the same path"),
        (["a/b/c", "x", "a/b"], "a folder has the same path"),
    ],
)
def test_paths_that_clash(world: World, paths: list[str], why: str) -> None:
    world.osmo.manifest(1, [world.osmo.entry(path, path.encode()) for path in paths])
    [outcome] = world.migrate()
    assert outcome.state is State.DAMAGED and why in problems(outcome)


GOOD = {"relative_path": "a", "storage_path": "s3://osmo/raw/a", "url": "", "size": 1, "etag": "0" * 32}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "does not begin with '['"),
        (b"{}", "does not begin with '['"),
        (b"[", "an object"),
        (b"[1]", "an object"),
        (b"[{}]", "entry 1 is not a file"),
        (b"[[[[", "an object"),
        (b'[{"a":' + b"[" * 60_000, "not JSON"),
        (json.dumps([GOOD | {"size": "1"}]).encode(), "entry 1 is not a file"),
        (json.dumps([GOOD | {"size": 1e300}]).encode(), "entry 1 is not a file"),
        (json.dumps([GOOD | {"etag": None}]).encode(), "entry 1 is not a file"),
        (json.dumps([GOOD | {"size": -1}]).encode(), "its size is negative"),
        (json.dumps([GOOD | {"etag": ""}]).encode(), "it has no ETag"),
        (json.dumps([GOOD]).encode()[:-1], "after entry 1"),
        (json.dumps([GOOD]).encode() + b"x", "something follows"),
        (json.dumps([GOOD, GOOD]).encode().replace(b"}, {", b"} {"), "comma is missing"),
        (json.dumps([GOOD]).encode()[:-1] + b",]", "an object"),
        (json.dumps([GOOD | {"relative_path": "x" * 70_000}]).encode(), "longer than"),
        (b'[{"relative_path": "\xff"}]', "not UTF-8"),
    ],
)
def test_what_is_no_manifest(world: World, text: bytes, why: str) -> None:
    world.osmo.raw_manifest(1, text)
    [outcome] = world.migrate()
    assert outcome.state is State.DAMAGED
    assert why in problems(outcome)


def test_a_manifest_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f'ä{n}/\\"{n}': b"%d" % n for n in range(40)}
    world.osmo.version(1, files)
    for piece in (1, 7, 100, 1000):
        monkeypatch.setattr(manifest, "_PIECE", piece)
        buckets, [dataset] = world.datasets()
        with buckets:
            [version] = dataset.versions()
            found = [
                entry.relative_path
                for entry in manifest.read_list(dataset.client, version.info, manifest.ManifestEntry)
            ]
        assert found == list(files)


def test_a_manifest_that_changes_is_noticed(world: World) -> None:
    world.osmo.version(1, FILES)
    buckets, [dataset] = world.datasets()
    [version] = dataset.versions()
    world.osmo.version(1, {"x": b""})
    with buckets, pytest.raises(FormatError, match="changed since"):
        list(manifest.read_list(dataset.client, version.info, manifest.ManifestEntry))


def test_which_datasets_there_are(world: World) -> None:
    world.osmo.version(1, FILES)
    other = OsmoFolder(world.services.bucket("s3://osmo"), "data")
    other.version(1, {"x": b"x"})
    world.osmo.client.put("data/unrelated/file", [b""])
    world.osmo.client.put("data/unrelated.txt", [b""])
    found = {dataset.id for dataset in world.datasets()[1]}
    assert found == {world.osmo.id, other.id}
    [one] = world.datasets(f"{SOURCE}/{other.id}")[1]
    assert (one.id, one.url) == (other.id, f"s3://osmo/data/{other.id}")
    for source in ("s3://osmo/elsewhere", "s3://osmo/data/unrelated"):
        with pytest.raises(NotFoundError, match="no datasets of OSMO"):
            world.datasets(source)


def test_a_name_that_belongs_to_something_else(world: World, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    world.bucket.upload("robots", [str(tmp_path / "f")])
    world.osmo.version(1, FILES)
    with pytest.raises(ConflictError, match="is not this one"):
        world.migrate()
    assert world.migrate("others")[0].state is State.CREATED
    world.bucket.upload("others", [str(tmp_path / "f")])
    world.osmo.version(2, {"n": b"2"})
    assert [(o.state, o.version) for o in world.migrate("others")] == [(State.PRESENT, 1), (State.CREATED, 3)]


def test_two_at_once_on_one_machine(world: World) -> None:
    world.osmo.version(1, FILES)
    buckets, [dataset] = world.datasets()
    with buckets, Memo(world.cache, dataset.url, world.bucket.store.id), pytest.raises(ConflictError, match="already"):
        world.migrate()


def test_no_end_of_problems(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.osmo.manifest(1, [GOOD | {"relative_path": f"../{n}"} for n in range(1500)])
    [outcome] = world.migrate(skip=True)
    assert outcome.state is State.DAMAGED and len(outcome.problems) == 1000


@pytest.mark.parametrize(
    "text", [b"[1]", b"{}", b'{"name": 1, "id": "x"}', b"\xff", b'{"name":"n","id":"i","type":"QUERY"}']
)
def test_what_is_no_info(text: bytes) -> None:
    with pytest.raises(UsageError):
        load_info("info.json", text, print)


def test_what_goes_away_meanwhile_is_stored_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Garbage collection took what the version was to share: the work is done again, from what was listed."""
    world.osmo.version(1, FILES)
    world.osmo.version(2, {**FILES, "more": b"m"})
    check, raised = Hold.check, []

    def gone_once(self: Hold, manifest: bytes) -> None:
        if not raised:
            raised.append(manifest)
            raise GoneError(1)
        check(self, manifest)

    monkeypatch.setattr(Hold, "check", gone_once)
    assert [outcome.state for outcome in world.migrate()] == [State.CREATED] * 2
    assert world.contents(tag="1") == FILES
    assert len(raised) == 1
