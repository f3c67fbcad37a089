"""The index says what the buckets say: after changes, outages, damage, races, and after it was lost."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from casstore.backend.base import Absent
from casstore.backend.file import FileBackend
from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.errors import CancelledError, IntegrityError, NotFoundError, StorageError
from casstore.model import VersionRecord
from casstore.repo import layout
from casstore.repo.records import Records
from casstore.repo.store import Store
from casstore_orchestrator.pools import this_machine
from casstore_server.config import Watched
from casstore_server.db import index, index_lists
from casstore_server.db.engine import open_database, open_postgres
from casstore_server.db.store import Database
from casstore_server.services.index import follower, looking
from casstore_server.services.index.follower import Index
from casstore_server.services.index.rebuild import Rebuilt, rebuild
from casstore_server.settings import Settings
from casstore_server.stores import Stores

Facts = dict[str, tuple[Any, ...]]


class Place:
    """A server's index of one bucket, ``lab``, which is a folder."""

    def __init__(self, folder: Path, open_state: Callable[[], Database]) -> None:
        self.folder = folder / "lab"
        self.folder.mkdir()
        Store.open(FileBackend(str(self.folder)), create=True).close()
        config = folder / "config.yaml"
        config.write_text(f"casstore: {{buckets: {{lab: {{url: '{self.folder.as_uri()}'}}}}}}")
        settings = Settings(
            socket_path=folder / "s",
            state_dir=folder,
            config_file=config,
            data_dir=folder / "data",
            cache_dir=folder / "cache",
            user="ada",
        )
        self.watched = Watched(config, settings.data_dir, this_machine())
        self.stores = Stores(self.watched, settings)
        self.open_state = open_state
        self.database = open_state()
        self.index = Index(self.database, self.stores, self.watched)
        self.source = folder / "set"
        self.source.mkdir()

    def bucket(self, user: str = "ada") -> Bucket:
        return self.stores.open("lab", user)

    def upload(self, name: str, content: str, user: str = "ada", **fields: Any) -> None:
        (self.source / "a.txt").write_text(content)
        self.bucket(user).upload(name, [str(self.source)], **fields)

    def listed(self) -> Facts:
        """What the index says of each dataset that a list has."""
        bucket_id = self.index.fresh("lab").id
        with self.database.reading() as connection:
            rows = index_lists.datasets(connection, [bucket_id], index_lists.Filter(), 1000)
            return {row.name: self._facts(connection, bucket_id, row) for row in rows}

    def _facts(self, connection: Any, bucket_id: int, row: Any) -> tuple[Any, ...]:
        page = index_lists.version_page(connection, row.id, 1000, ready=False)[::-1]
        versions = index_lists.versions_of(connection, page)
        inside = index_lists.collections_of(connection, bucket_id, row.key, 0, 10**9)
        members = [(one.name, one.number) for one in index_lists.members(connection, bucket_id, row.id)]
        summary = index_lists.summary(row, "lab")
        about = (summary.id, summary.type, summary.last_version, summary.last_created_at, summary.stored_size)
        return (*about, [_told(version, inside.get(version.number, ())) for version in versions], members)

    def true(self) -> Facts:
        """The same, as the bucket says it."""
        found: Facts = {}
        for row in self.bucket().list():
            info = self.bucket().info(row.name, all_states=True, count=1000)
            about = (row.id, row.type, row.last_version, row.last_created_at, row.stored_size)
            versions = [_told(one.version, one.collections) for one in info.versions]
            found[row.name] = (*about, versions, [(one.name, one.number) for one in info.members])
        return found

    def lose(self) -> None:
        """Begin with an empty database."""
        self.index.close()
        self.database.close()
        self.database = self.open_state()
        self.index = Index(self.database, self.stores, self.watched)

    def rebuild(
        self, *names: str, anew: bool = False, tell: Callable[[Rebuilt], None] = lambda _: None
    ) -> list[Rebuilt]:
        return rebuild(self.database, self.stores, self.watched, names, anew=anew, tell=tell, stop=threading.Event())

    def close(self) -> None:
        self.index.close()
        self.stores.close()
        self.database.close()


def _told(version: Any, collections: Any) -> tuple[Any, ...]:
    return (
        version.number, version.status, version.tags, version.metadata, version.record.created_by,
        version.record.totals.size, version.manifest, tuple(collections),
    )  # fmt: skip


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setattr(follower, "CHEAP", 60.0)  # a look is cheap, however busy this machine is
    numbers = iter(range(10))
    if request.param == "sqlite":
        made = Place(tmp_path, lambda: Database(open_database(tmp_path / f"{next(numbers)}.sqlite")))
    else:
        make = request.getfixturevalue("postgres")
        made = Place(tmp_path, lambda: Database(open_postgres(make())))
    yield made
    made.close()


@pytest.fixture
def full(place: Place) -> Place:
    """Datasets, a collection, tags, edits, deletions, a rename."""
    place.upload("robots", "one", labels={"team": "x"}, metadata={"score": 1}, tag="old")
    place.upload("robots", "two", user="bob", metadata={"score": 2})
    place.upload("robots", "three", tag="golden")
    place.upload("arms", "one")
    place.upload("gone", "one")
    place.upload("before", "one")
    bucket = place.bucket()
    bucket.collect("best", ["robots:old", "arms"])
    bucket.delete("gone", all_versions=True)
    bucket.delete("robots", tag="2")
    bucket.update_metadata("robots", "1", set={"note": "x\0y"})
    bucket.rename("before", "after")
    return place


def test_it_says_what_the_bucket_says(full: Place) -> None:
    assert full.listed() == full.true()
    assert set(full.listed()) == {"robots", "arms", "after", "best"}


def test_it_follows_what_others_do_in_the_bucket(full: Place) -> None:
    full.listed()
    bucket = full.bucket("eve")
    full.upload("robots", "four", user="eve")
    full.upload("new", "one")
    bucket.update_tags("robots", set=["golden"], delete=["golden"], tag="3")
    bucket.update_labels("arms", set={"team": "y"})
    bucket.rename("after", "later")
    assert full.listed() == full.true()
    bucket.recollect("best", remove=["arms"])
    bucket.delete("arms", all_versions=True)
    full.upload("arms", "another one of this name")
    assert full.listed() == full.true()
    bucket.delete("best")
    assert full.listed() == full.true()


def test_a_lost_database_is_made_again(full: Place) -> None:
    before = full.listed()
    full.lose()
    done = full.rebuild()
    assert [(one.bucket, one.datasets, one.versions, one.error) for one in done] == [("lab", 6, 5, None)]
    assert full.listed() == before == full.true()


def test_a_rebuild_puts_right_what_is_wrong_in_the_index(full: Place) -> None:
    full.listed()
    with full.database.writing() as connection:
        connection.exec_driver_sql(
            "UPDATE index_version SET record = replace(record, 'one', 'two'), number = number + 5"
        )
        connection.exec_driver_sql("UPDATE index_dataset SET labels = '{}', last_version = 77")
    assert full.listed() != full.true()
    full.rebuild("lab")
    assert full.listed() == full.true()


def test_an_interrupted_rebuild_is_gone_on_with(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "PORTION", 2)
    full.listed()
    seen: list[tuple[int, int]] = []

    def tell(state: Rebuilt) -> None:
        seen.append((state.before, state.done))
        if len(seen) == 2:
            raise CancelledError("interrupted")

    with pytest.raises(CancelledError):
        full.rebuild(tell=tell)
    assert seen == [(0, 2), (0, 4)]
    assert full.listed() == full.true()  # lists go on meanwhile
    (done,) = full.rebuild()
    assert (done.before, done.done, done.datasets) == (4, 6, 6)
    (again,) = full.rebuild()
    assert again.before == 0
    with pytest.raises(CancelledError):
        full.rebuild(tell=lambda _: (_ for _ in ()).throw(CancelledError("interrupted")))
    (anew,) = full.rebuild(anew=True)
    assert (anew.before, anew.done) == (0, 6)
    assert full.listed() == full.true()


def test_a_rebuild_waits_for_whoever_indexes_the_bucket(full: Place) -> None:
    full.listed()
    bucket_id = full.index.fresh("lab").id
    full.database.keep_leases([f"index/{bucket_id}"], "another", 1000.0, 1e12)
    waited: list[bool] = []

    def tell(state: Rebuilt) -> None:
        waited.append(state.waiting)
        if waited == [True]:
            full.database.release_leases("another")

    assert [one.error for one in full.rebuild(tell=tell)] == [None]
    assert waited[0]
    assert not waited[-1]


def test_one_of_two_servers_looks_at_a_time(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "CHEAP", -1.0)
    full.index.changed("lab", "robots")
    with full.database.reading() as connection:
        found = index.bucket_at(connection, full.folder.as_uri())
    assert found is not None
    name = f"index/{found.id}"
    assert full.database.keep_leases([name], "another server", 1000.0, 1e12)
    assert "is being indexed" in full.index.fresh("lab").warning
    assert set(full.listed()) == {"robots"}
    full.database.release_leases("another server")
    assert full.listed() == full.true()
    full.index.close()  # waits for what it does
    assert full.database.keep_leases([name], "another server", 1000.0, 1e12)


@pytest.mark.parametrize("started", [True, False])
def test_the_bucket_is_away(full: Place, started: bool) -> None:
    before = full.listed()
    away = full.folder.with_name("elsewhere")
    away.mkdir()

    def move(source: Path, target: Path) -> None:  # as a disk that is mounted on the folder, or is not
        for path in source.iterdir():
            path.rename(target / path.name)

    move(full.folder, away)
    if started:
        with full.stores._lock:
            full.stores._stores.clear()
    fresh = full.index.fresh("lab")
    assert "can't be reached" in fresh.warning
    assert "seconds ago" in fresh.warning
    assert full.listed() == before
    assert "can't be reached" in full.index.current("lab", "robots").warning
    full.index.changed("lab", "robots")
    move(away, full.folder)
    full.upload("back", "one")
    assert full.index.fresh("lab").warning == ""
    assert full.listed() == full.true()


def test_a_bucket_that_was_never_seen_is_an_error(place: Place) -> None:
    shutil.rmtree(place.folder)
    with pytest.raises((NotFoundError, StorageError)):
        place.index.fresh("lab")
    with pytest.raises(NotFoundError, match="no bucket 'none'"):
        place.index.fresh("none")


def test_another_bucket_in_its_place(full: Place) -> None:
    full.listed()
    shutil.rmtree(full.folder)
    full.folder.mkdir()
    Store.open(FileBackend(str(full.folder)), create=True).close()
    with full.stores._lock:
        full.stores._stores.clear()
    full.upload("only", "one")
    assert set(full.listed()) == {"only"}
    assert full.listed() == full.true()


def test_what_is_damaged_is_told_of_and_keeps_nothing_else_from_being_listed(full: Place) -> None:
    full.listed()
    head = full.folder / layout.head_key(full.bucket().refs.resolve_name("arms"))
    sound = head.read_bytes()
    head.write_bytes(sound[:-3] + b"}}}")
    version = full.folder / layout.version_key(full.bucket().refs.resolve_name("robots"), 1)
    version.write_bytes(b"nothing")
    full.upload("robots", "four")
    full.rebuild()
    assert set(full.listed()) == {"robots", "after", "best"}
    assert "2 datasets can't be read whole" in full.index.fresh("lab").warning
    with pytest.raises(IntegrityError, match="head"):
        full.index.current("lab", "arms")
    head.write_bytes(sound)
    assert set(full.listed()) == {"robots", "after", "best", "arms"}
    assert "1 dataset can't be read whole" in full.index.fresh("lab").warning


def test_a_version_whose_writer_died_before_the_head_knew(full: Place) -> None:
    full.listed()
    refs = full.bucket().refs
    key = refs.resolve_name("arms")
    last = refs.read_version(key, 1)
    records = Records(full.bucket().store.backend)
    records.put_version(key, msgspec.structs.replace(last, number=2, write_id="w" * 32), Absent())
    assert full.listed()["arms"][2] == 2
    assert full.listed() == full.true()
    full.upload("arms", "after that")
    assert full.listed()["arms"][2] == 3
    assert full.listed() == full.true()


def test_an_older_reading_does_not_replace_a_newer_one(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    full.listed()
    real, raced = looking.read, []

    def slow(bucket: Bucket, *args: Any, **kwargs: Any) -> Any:
        found = real(bucket, *args, **kwargs)
        if not raced:
            raced.append(True)
            full.upload("robots", "in between")
            full.index.changed("lab", "robots")
        return found

    monkeypatch.setattr(looking, "read", slow)
    full.upload("robots", "four")
    full.index.changed("lab", "robots")
    assert raced
    monkeypatch.setattr(looking, "look", lambda *_, **__: looking.Looked())
    monkeypatch.setattr(follower, "look", lambda *_, **__: looking.Looked())
    assert full.listed() == full.true()


def test_changes_are_indexed_by_name_and_by_id_without_a_look(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    full.listed()
    monkeypatch.setattr(follower, "look", lambda *_, **__: looking.Looked())
    full.upload("arms", "two")
    assert full.listed()["arms"][2] == 1
    full.index.changed("lab", "arms")
    assert full.listed()["arms"][2] == 2
    key = full.bucket().refs.resolve_name("arms")
    full.bucket().rename("arms", "legs")
    full.index.changed("lab", key)
    assert "arms" not in full.listed()
    assert full.listed()["legs"][0] == key
    full.bucket().delete("legs", all_versions=True, force=True)
    full.index.changed("lab", key, "best")
    assert full.listed() == full.true()
    full.index.changed("lab", "nothing")
    full.index.changed("nowhere", "nothing")


def test_a_dataset_of_very_many_versions_is_read_in_parts(full: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from casstore_server.services.index import reading

    monkeypatch.setattr(reading, "RECORDS", 2)
    assert full.listed() == full.true()
    full.lose()
    full.rebuild()
    assert full.listed() == full.true()


def test_a_bucket_that_is_far_away(full: Place) -> None:
    """Its heads are found by a listing, in parts."""
    backend = MemoryBackend()
    bucket = Bucket(Store.open(backend, create=True), name="far", user="ada")
    for name in ("a", "b", "c"):
        bucket.upload(name, [str(full.source)])
    with full.database.writing() as connection:
        bucket_id = index.clear(connection, "memory:", "memory:", bucket.store.id)
    assert looking.look(full.database, bucket, bucket_id).versions == 3
    (full.source / "b.txt").write_text("more")
    bucket.upload("b", [str(full.source)])
    bucket.delete("c", all_versions=True)
    assert looking.look(full.database, bucket, bucket_id).versions == 1
    with full.database.reading() as connection:
        rows = index_lists.datasets(connection, [bucket_id], index_lists.Filter(), 10)
    assert [(row.name, row.last_version) for row in rows] == [("b", 2), ("a", 1)]


def test_records_that_can_be_read_but_not_told_are_damage(full: Place) -> None:
    refs = full.bucket().refs
    key = refs.resolve_name("arms")
    records = Records(full.bucket().store.backend)
    made: VersionRecord = msgspec.structs.replace(
        refs.read_version(key, 1), number=2, write_id="w" * 32, created_at="0001-01-01T00:00:00+14:00"
    )
    records.put_version(key, made, Absent())
    assert full.listed()["arms"][2] == 1
    assert "1 dataset can't be read whole" in full.index.fresh("lab").warning
