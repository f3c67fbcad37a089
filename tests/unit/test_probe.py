"""What a place for objects is found out to do, and stores with one writer where it does too little."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from casstore.backend.base import Absent, Backend, Buffer, Capabilities, Condition, Matches, Object, ObjectInfo
from casstore.backend.memory import MemoryBackend
from casstore.backend.probe import PROBES, probe
from casstore.backend.wrap.single import SingleWriterBackend
from casstore.dataset import Bucket
from casstore.errors import (
    AccessError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    StorageError,
    TransientError,
    UsageError,
)
from casstore.repo import layout, single
from casstore.repo.store import Store, read_config


class Service(MemoryBackend):
    """A service that has to be asked what it can do."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(conditional_put=True, local=False, probe=True)


class Careless(Service):
    """It knows nothing of conditions and says nothing."""

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        return super().put(key, data)


class Honest(Service):
    """It knows nothing of conditions and says so."""

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        if condition is not None:
            raise StorageError("the service does not support conditional writes (501)")
        return super().put(key, data)


class Racy(Service):
    """It looks, and then writes: two who come together both win."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.together = threading.Barrier(8)

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        if condition is None or "race" not in key:
            return super().put(key, data, condition=condition)
        try:
            there = self.get(key).etag
        except NotFoundError:
            there = ""
        self.together.wait(30)
        wanted = condition.etag if isinstance(condition, Matches) else ""
        if there != wanted:
            raise PreconditionError("changed")
        return super().put(key, data)


class AbsentOnly(Service):
    """As S3 was for some months: no compare-and-swap."""

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        return super().put(key, data, condition=condition if isinstance(condition, Absent) else None)


class WritesAllTheSame(Service):
    """It says no and writes."""

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        super().put(key, data)
        if condition is not None and key in self.seen:
            raise PreconditionError("exists")
        self.seen.add(key)
        return self.get(key).etag

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self.seen: set[str] = set()


class StaleList(Service):
    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        return iter([])


class StaleRead(Service):
    def get(self, key: str, *, limit: int | None = None) -> Object:
        found = super().get(key, limit=limit)
        return Object(b"old", found.etag) if key.endswith("object") else found


class NoRanges(Service):
    def read(self, key: str, offset: int, length: int) -> bytes:
        return self.get(key).data


class KeepsAll(Service):
    def delete(self, keys: Iterable[str]) -> None:
        pass


class MayNotDelete(Service):
    def delete(self, keys: Iterable[str]) -> None:
        raise AccessError("no s3:DeleteObject")


def test_a_service_that_does_everything() -> None:
    backend = Service()
    report = probe(backend)
    assert (report.conditional, report.usable) == (True, True)
    assert len(report.lines) == 8
    assert all(line.startswith("yes  ") for line in report.lines)
    assert list(backend.list("")) == []


@pytest.mark.parametrize(
    ("kind", "broken", "word"),
    [
        (Careless, "created only where none is", "ignored"),
        (Honest, "created only where none is", "does not support"),
        (Racy, "create an object at once", "8 of 8 won"),
        (AbsentOnly, "replaced only in a known state", "ignored"),
        (WritesAllTheSame, "created only where none is", "done all the same"),
    ],
)
def test_conditions_that_do_not_hold(kind: Callable[[], Backend], broken: str, word: str) -> None:
    backend = kind()
    report = probe(backend)
    assert (report.conditional, report.usable) == (False, True)
    assert any(line.startswith("NO ") and broken in line and word in line for line in report.lines), report.lines
    assert list(backend.list("")) == []


@pytest.mark.parametrize(
    ("kind", "broken"),
    [
        (StaleList, "a listing shows"),
        (StaleRead, "can be read once it is written"),
        (NoRanges, "parts of an object"),
        (KeepsAll, "what is deleted is gone"),
        (MayNotDelete, "what is deleted is gone"),
    ],
)
def test_places_that_can_hold_no_store(kind: Callable[[], Backend], broken: str) -> None:
    report = probe(kind())
    assert not report.usable
    assert any(line.startswith("NO ") and broken in line for line in report.lines), report.lines
    with pytest.raises(StorageError, match="can't hold a store") as caught:
        Store.open(kind(), create=True)
    assert broken in caught.value.message


@pytest.mark.parametrize("error", [AccessError("not yours"), TransientError("busy"), NotFoundError("x", hint="y")])
def test_what_says_nothing_about_the_service_is_raised(error: Exception) -> None:
    class Refusing(Service):
        def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
            raise error

    with pytest.raises(type(error)):
        probe(Refusing())


def test_memory_and_files_are_not_probed(tmp_path: Path) -> None:
    class Watched(MemoryBackend):
        def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
            assert key == layout.STORE
            return super().put(key, data, condition=condition)

    store = Store.open(Watched(), create=True)
    assert store.probed is None
    assert store.config.features == []
    assert b"writer" not in store.backend.get(layout.STORE).data


def test_a_store_on_a_good_service_has_many_writers() -> None:
    store = Store.open(Service(), create=True)
    assert store.probed is not None
    assert store.config.features == []
    assert [info.key for info in store.backend.list("")] == [layout.STORE]


def test_leftovers_of_a_probe_do_not_hinder() -> None:
    backend = Service()
    backend.put(f"{PROBES}old/object", [b"x"])
    Store.open(backend, create=True)


# --- one writer


@pytest.fixture
def space() -> Callable[[], Careless]:
    """Opens the same careless service again and again, as several machines would."""
    name = f"probe-{os.urandom(8).hex()}"
    return lambda: Careless(name)


def elsewhere(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(path))


def write(store: Store, folder: Path) -> int:
    found = Bucket(store, name="b", user="u").upload("data", [str(folder)])
    return found.version.number


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "folder"
    found.mkdir()
    (found / "file").write_bytes(b"content")
    return found


def test_the_maker_writes_and_others_read(
    space: Callable[[], Careless], tmp_path: Path, folder: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(space(), create=True) as store:
        assert store.config.features == [single.FEATURE]
        assert store.probed is not None
        assert not store.probed.conditional
        assert write(store, folder) == 1
        store_id = store.id
    token = isolated_home / f".local/state/casstore/writer/{store_id}/token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    secret = token.read_text().split('"')[3]
    assert len(secret) == 64
    for info in space().list(""):
        assert secret.encode() not in space().get(info.key).data
    with Store.open(space()) as store:
        (folder / "file").write_bytes(b"other content")
        assert write(store, folder) == 2
    elsewhere(monkeypatch, tmp_path / "elsewhere")
    with Store.open(space()) as store:
        bucket = Bucket(store, name="b", user="u")
        assert [version.version.number for version in bucket.info("data").versions] == [1, 2]
        (tmp_path / "out").mkdir()
        bucket.download("data", str(tmp_path / "out"))
        assert (tmp_path / "out/data/folder/file").read_bytes() == b"other content"
        (folder / "file").write_bytes(b"third content")
        before = [(info.key, info.size) for info in space().list("")]
        with pytest.raises(AccessError, match="one writer") as caught:
            write(store, folder)
        assert "osmo store take-over" in (caught.value.hint or "")
        with pytest.raises(AccessError):
            store.backend.delete([layout.STORE])
        with pytest.raises(AccessError):
            store.backend.put("a", [b"x"])
        with pytest.raises(AccessError):
            store.backend.put("a", [b"x"], condition=Absent())
        assert [(info.key, info.size) for info in space().list("")] == before
    assert not (tmp_path / "elsewhere").exists(), "whoever may not write leaves nothing"


def test_take_over(
    space: Callable[[], Careless], tmp_path: Path, folder: Path, isolated_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Store.open(space(), create=True)
    assert write(first, folder) == 1
    elsewhere(monkeypatch, tmp_path / "elsewhere")
    second = Store.open(space())
    (folder / "file").write_bytes(b"second")
    with pytest.raises(AccessError):
        write(second, folder)
    single.take_over(second.backend)
    assert write(second, folder) == 2
    elsewhere(monkeypatch, isolated_home / ".local/state")
    (folder / "file").write_bytes(b"third")
    with pytest.raises(AccessError):
        write(first, folder)
    with pytest.raises(AccessError):
        write(Store.open(space()), folder)
    single.take_over(space())
    assert write(first, folder) == 3
    assert Bucket(first, name="b", user="u").verify().problems == []


def test_a_home_that_machines_share_makes_no_second_writer(
    space: Callable[[], Careless], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(space(), create=True)
    store.backend.put("a", [b"x"], condition=Absent())
    monkeypatch.setattr(single, "_machine", lambda: "other")
    with pytest.raises(AccessError):
        store.backend.put("b", [b"x"], condition=Absent())


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"token": 7}', b"\0" * 5000])
def test_a_damaged_token_is_none(space: Callable[[], Careless], isolated_home: Path, damage: bytes) -> None:
    store = Store.open(space(), create=True)
    (isolated_home / f".local/state/casstore/writer/{store.id}/token").write_bytes(damage)
    assert not single.is_writer(store.id, read_config(space()))
    with pytest.raises(AccessError):
        Store.open(space()).backend.put("a", [b"x"])


def test_take_over_of_a_store_that_all_may_write() -> None:
    store = Store.open(Service(), create=True)
    with pytest.raises(UsageError, match="everybody may write"):
        single.take_over(store.backend)


def test_a_second_maker_that_comes_at_the_same_time_is_no_writer(
    space: Callable[[], Careless], tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without conditions both put a ``store.json``: the last one counts, and the other maker is refused."""
    first = Store.open(space(), create=True)
    elsewhere(monkeypatch, tmp_path / "elsewhere")
    mine = space()
    with monkeypatch.context() as patch:
        patch.setattr(mine, "list", lambda *_, **__: iter(()))
        patch.setattr("casstore.repo.store.probe", lambda _: probe(space()))
        Store._create(mine)
    assert write(Store.open(space()), folder) == 1
    monkeypatch.undo()
    with pytest.raises(AccessError):
        first.backend.put("a", [b"x"], condition=Absent())


def test_a_token_that_can_not_be_kept(space: Callable[[], Careless], isolated_home: Path) -> None:
    (isolated_home / ".local/state/casstore").write_bytes(b"in the way")
    with pytest.raises(StorageError, match="can't keep the writer's token"):
        Store.open(space(), create=True)
    assert list(space().list("")) == []


def test_conditions_are_kept_alone(tmp_path: Path) -> None:
    permitted: list[bool] = []
    backend = SingleWriterBackend(Careless(), str(tmp_path / "locks"), permitted.append)
    tag = backend.put("a", [b"1"], condition=Absent())
    with pytest.raises(PreconditionError):
        backend.put("a", [b"2"], condition=Absent())
    backend.put("a", [b"2"], condition=Matches(tag))
    with pytest.raises(PreconditionError):
        backend.put("a", [b"3"], condition=Matches(tag))
    with pytest.raises(PreconditionError):
        backend.put("b", [b"3"], condition=Matches(tag))
    backend.put("c", [b"x"])
    backend.delete(["c"])
    backend.delete([])
    assert permitted == [False, True] * 5 + [False, True]
    assert backend.get("a").data == b"2"


def test_errors_of_the_service_are_no_absence(tmp_path: Path) -> None:
    class Failing(Careless):
        def stat(self, key: str) -> ObjectInfo:
            raise TransientError("busy")

        def get(self, key: str, *, limit: int | None = None) -> Object:
            raise IntegrityError("short")

    def permit(_: bool) -> None:
        pass

    inner = Failing()
    backend = SingleWriterBackend(inner, str(tmp_path), permit)
    with pytest.raises(TransientError):
        backend.put("a", [b"x"], condition=Absent())
    with pytest.raises(IntegrityError):
        backend.put("a", [b"x"], condition=Matches("1"))
    assert list(inner.list("")) == []


def test_secrets_are_not_shown() -> None:
    shown: Any = single._Token("secret", "machine")
    assert "secret" not in repr(shown)
