"""Commits against fences and collections: whatever comes first, what is there is whole, and what is not is told."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from casstore import hashing
from casstore.backend.base import Absent, Backend, Buffer, Capabilities, Condition, Object, ObjectInfo
from casstore.backend.memory import MemoryBackend
from casstore.backend.objects import ObjectBackend
from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.errors import ConflictError, NotFoundError
from casstore.format import record
from casstore.model import Head, Kind, Totals, VersionRecord
from casstore.remote.local import LocalClient
from casstore.repo import layout, leases, versions
from casstore.repo import refs as refs_module
from casstore.repo.gc.plan import Rules
from casstore.repo.gc.run import Collector
from casstore.repo.hold import GoneError, Hold
from casstore.repo.leases import Lease
from casstore.repo.refs import Refs, is_active
from casstore.repo.store import Store
from casstore.repo.trash import TrashRecord, TrashState
from casstore.repo.verify import verify_store
from casstore.transfer.progress import Silent

T = TypeVar("T")
DRAWN: Counter[str] = Counter()
"""How many random values each actor has drawn."""

# ---- every interleaving of two actors at small size

TIME = "2026-01-01T00:00:00.000000Z"
OLD, NEW = b"\x01" * 32, b"\x02" * 32
MANIFEST = b"\x03" * 32


class Turns:
    """Runs actors call by call, in the order that a list of choices says; new choices are made as they come up.

    Where two orders have led to the same state, of the objects and of what each actor has seen, only one is followed.
    """

    def __init__(self, choices: list[int], known: set[bytes]) -> None:
        self.choices = choices
        self.options: list[int] = []
        self._known = known
        self._turn = threading.Condition()
        self._waiting: set[int] = set()
        self._ended: set[int] = set()
        self._granted: int | None = None
        self._over = False
        self.seen: dict[int, bytes] = {}

    def step(self, actor: int) -> None:
        with self._turn:
            self._waiting.add(actor)
            self._turn.notify_all()
            self._turn.wait_for(lambda: self._granted == actor or self._over)
            if self._over:
                raise _OverError
            self._granted = None
            self._waiting.discard(actor)

    def run(self, backend: MemoryBackend, *actors: Callable[[Backend], object]) -> bool:
        """Run the actors to their end and return True; False when what comes is known from another order."""
        raised: list[BaseException] = []

        def play(number: int) -> None:
            try:
                actors[number](Stepped(backend, self, number))
            except _OverError:
                pass
            except BaseException as error:
                raised.append(error)
            finally:
                with self._turn:
                    self._ended.add(number)
                    self._turn.notify_all()

        threads = [threading.Thread(target=play, args=(number,), name=f"{number}") for number in range(len(actors))]
        for thread in threads:
            thread.start()
        everybody = set(range(len(actors)))
        while True:
            with self._turn:
                self._turn.wait_for(lambda: self._granted is None and self._waiting | self._ended == everybody)
                ready = sorted(self._waiting)
                if not ready or not self._grant(ready, backend):
                    break
        for thread in threads:
            thread.join()
        assert raised == [], self.choices
        return not self._over

    def _grant(self, ready: list[int], backend: MemoryBackend) -> bool:
        at = len(self.options)
        if at == len(self.choices):
            state = self._state(backend)
            self._over = state in self._known
            self._known.add(state)
            self.choices += [] if self._over else [0]
        if not self._over:
            self.options.append(len(ready))
            self._granted = ready[self.choices[at]]
        self._turn.notify_all()
        return not self._over

    def _state(self, backend: MemoryBackend) -> bytes:
        objects = [(info.key, backend.get(info.key).data) for info in backend.list("") if is_seen(info.key)]
        return hashing.digest(repr((objects, sorted(self.seen.items()), sorted(self._ended))).encode())

    def next(self) -> list[int] | None:
        """Return the choices of the next order, or None when there is none left."""
        following = self.choices[: len(self.options)]
        while following and following[-1] + 1 >= self.options[len(following) - 1]:
            following.pop()
        return [*following[:-1], following[-1] + 1] if following else None


class _OverError(BaseException):
    """Ends an actor whose further way is known."""


def is_seen(key: str) -> bool:
    """Whether what an object holds is the same in every run: the times of leases are not."""
    return not key.startswith(layout.LEASES)


class Stepped:
    """A back end that waits for its turn before each call that the other actor could notice."""

    def __init__(self, inner: Backend, turns: Turns, actor: int) -> None:
        self._inner = inner
        self._turns = turns
        self._actor = actor

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def get(self, key: str, *, limit: int | None = None) -> Object:
        return self._call("get", key, lambda: self._inner.get(key, limit=limit))

    def read(self, key: str, offset: int, length: int) -> bytes:
        return self._call("read", key, lambda: self._inner.read(key, offset, length))

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        return self._call("put", key, lambda: self._inner.put(key, data, condition=condition))

    def stat(self, key: str) -> ObjectInfo:
        found = self._inner.stat(key)
        self._call("stat", "", lambda: (key, found.size))
        return found

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        found = self._call("list", prefix, lambda: [info.key for info in self._inner.list(prefix, after=after)])
        return iter([self._inner.stat(key) for key in found])

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._call("delete", key, lambda key=key: self._inner.delete([key]))  # type: ignore[misc]

    def local_path(self, key: str) -> str | None:
        return None

    def close(self) -> None:
        pass

    def _call(self, call: str, key: str, work: Callable[[], T]) -> T:
        if key.startswith((layout.DATASETS, layout.TRASH)):
            self._turns.step(self._actor)
        result: object = None
        try:
            result = work()
            return result  # type: ignore[return-value]
        except Exception as error:
            result = type(error)
            raise
        finally:
            if is_seen(key):
                before = self._turns.seen.get(self._actor, b"")
                self._turns.seen[self._actor] = hashing.digest(before + repr((call, key, result)).encode())


def orders() -> Iterator[Turns]:
    choices: list[int] | None = []
    known: set[bytes] = set()
    while choices is not None:
        DRAWN.clear()
        turns = Turns(choices, known)
        yield turns
        choices = turns.next()


@pytest.fixture
def repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each actor draws the same ids and times in every order."""

    def draw(size: int) -> bytes:
        name = threading.current_thread().name
        DRAWN[name] += 1
        return hashing.digest(f"{name} {DRAWN[name]}".encode())[:size]

    monkeypatch.setattr(os, "urandom", draw)
    for module in (refs_module, leases):
        for name in ("now", "time_text"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda: TIME)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "pause", lambda attempt: None)


def build(pack: bytes) -> Callable[[int, str], VersionRecord]:
    """A version that needs one pack, which stands in its metadata."""
    return lambda number, write_id: VersionRecord(
        number=number,
        manifest=MANIFEST.hex(),
        checksum="f" * 64,
        totals=Totals(),
        created_at=TIME,
        created_by="tester",
        write_id=write_id,
        metadata={"pack": pack.hex()},
    )


def put_pack(backend: Backend, pack: bytes) -> int:
    with contextlib.suppress(ConflictError):
        backend.put(layout.pack_key(pack), [pack], condition=Absent())
    return len(pack)


def write(backend: Backend, name: str, *, leased: bool, create: bool = False) -> None:
    """What an upload does that finds its data in the store already, in the one pack that is going to be deleted."""
    store = Store(backend, Store.open(backend).config)
    refs = Refs(backend)
    hold = Hold(store)
    if leased:
        hold._lease = Lease.acquire(backend, kind="upload", heartbeat=False)

    def once() -> None:
        pack = NEW if OLD in hold.dying.packs or not hold.all_there({OLD: len(OLD)}) else OLD
        hold.rely({pack: put_pack(backend, pack) if pack == NEW else len(OLD)})
        head = refs.create_dataset(name, created_by="me") if create else refs.find(name)
        refs.commit_version(head.id, build(pack), validate=lambda _: hold.check(MANIFEST))

    hold.until_whole(once)


def delete_old(backend: Backend, *, tombstone: bool) -> None:
    """What a collection does that has marked the pack before."""
    refs = Refs(backend)
    doomed = TrashRecord(
        id=layout.new_id(), state=TrashState.DELETING, created_at=TIME, write_id="w", packs=[OLD.hex()]
    )
    backend.put(layout.trash_key(doomed.id), [record.encode("trash", doomed)])
    for dataset_id in refs.dataset_ids():
        with contextlib.suppress(NotFoundError):
            refs.fence(dataset_id)
    needed = set()
    for dataset_id in refs.dataset_ids():
        try:
            head, _ = refs.read_head(dataset_id)
        except NotFoundError:
            continue
        for number in refs.versions(dataset_id, head):
            if is_active(head, number) and not head.deleted:
                needed.add(refs.read_version(dataset_id, number).metadata["pack"])
    if OLD.hex() in needed:
        doomed = msgspec.structs.replace(doomed, packs=[])
        backend.put(layout.trash_key(doomed.id), [record.encode("trash", doomed)])
    else:
        backend.delete([layout.pack_key(OLD)])
    if not tombstone:
        # As if the month in which it is kept were over.
        backend.delete([layout.trash_key(doomed.id)])


def prepared(*, create: bool) -> MemoryBackend:
    backend = MemoryBackend()
    Store.open(backend, create=True)
    put_pack(backend, OLD)
    backend.put(layout.manifest_key(MANIFEST), [b"x"])
    if not create:
        Refs(backend).create_dataset("ds", created_by="me")
    return backend


def needed_packs(backend: Backend) -> list[bytes]:
    refs = Refs(backend)
    head = refs.find("ds")
    numbers = refs.numbers(head.id)
    assert numbers == list(range(1, len(numbers) + 1))
    there = [number for number in refs.versions(head.id) if is_active(head, number)]
    return [bytes.fromhex(refs.read_version(head.id, number).metadata["pack"]) for number in there]


@pytest.mark.usefixtures("repeatable")
@pytest.mark.parametrize(("leased", "tombstone"), [(True, True), (False, False)])
@pytest.mark.parametrize("create", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_order_of_a_commit_and_a_deletion(leased: bool, tombstone: bool, create: bool) -> None:
    """With a lease the record of the deletion is what saves the version; without both, a look at the packs does."""
    outcomes: Counter[bytes] = Counter()
    for turns in orders():
        backend = prepared(create=create)
        if not turns.run(
            backend,
            lambda own: write(own, "ds", leased=leased, create=create),
            lambda own: delete_old(own, tombstone=tombstone),
        ):
            continue
        packs = needed_packs(backend)
        assert len(packs) == 1, turns.choices
        assert backend.stat(layout.pack_key(packs[0])), turns.choices
        outcomes.update(packs)
    assert outcomes.keys() == {OLD, NEW}
    assert outcomes.total() > 20


@pytest.mark.usefixtures("repeatable")
def test_every_order_of_a_commit_and_a_fence() -> None:
    """One version comes of it, under whatever number, and a void one is never there afterwards."""
    numbers = set()
    for turns in orders():
        backend = prepared(create=False)
        refs = Refs(backend)
        dataset_id = refs.find("ds").id
        if not turns.run(
            backend,
            lambda own: Refs(own).commit_version(dataset_id, build(OLD)),  # noqa: B023 - it ends before the next turn
            lambda own: Refs(own).fence(dataset_id),  # noqa: B023
        ):
            continue
        for _ in range(2):
            head = refs.find("ds")
            (number,) = (number for number in refs.versions(dataset_id) if is_active(head, number))
            refs.fence(dataset_id)
        numbers.add(number)
    assert numbers == {1, 2}


@pytest.mark.usefixtures("repeatable")
def test_every_order_of_two_commits_and_a_late_one() -> None:
    """A writer who stood still before a fence puts its record among those of others: numbers have no gaps."""
    outcomes = set()
    for turns in orders():
        backend = prepared(create=False)
        refs = Refs(backend)
        head = refs.find("ds")
        refs.fence(head.id)
        made: list[int] = []
        if not turns.run(
            backend,
            lambda own: [made.append(Refs(own).commit_version(head.id, build(NEW)).number) for _ in "12"],  # noqa: B023
            lambda own: put_late(own, head),  # noqa: B023
        ):
            continue
        after = refs.find("ds")
        assert refs.numbers(head.id) == [1, 2, 3]
        assert [number for number in refs.versions(head.id) if is_active(after, number)] == made, turns.choices
        outcomes.add(tuple(made))
    assert outcomes == {(1, 2), (1, 3), (2, 3)}


def put_late(backend: Backend, head: Head) -> None:
    """Put a record with the epoch of this head where there is room."""
    for number in range(1, 5):
        version = msgspec.structs.replace(build(OLD)(number, "late"), epoch=head.epoch)
        with contextlib.suppress(ConflictError):
            data = record.encode("version", version)
            backend.put(layout.version_key(head.id, number), [data], condition=Absent())
            return


# ---- real uploads

NOW = Rules(grace=0, margin=0)


def collect(backend: Backend) -> None:
    """Collect all garbage at once, by somebody else."""
    store = Store(backend, Store.open(backend).config)
    with Collector(store, rules=NOW) as collector:
        collector.run(collector.plan())


def open_bucket(backend: Backend, **more: str) -> Bucket:
    return Bucket(Store.open(backend, create=True), name="b", user="ann", **more)


def files(folder: Path, seed: str, count: int = 4, size: int = 200_000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"f{number}").write_bytes(random.Random(f"{seed} {number}").randbytes(size))
    return folder


def contents(bucket: Bucket, name: str, tag: str | None = None) -> dict[str, bytes]:
    tree = bucket.tree(bucket.resolve(name, tag))
    return {
        os.fsdecode(entry.path): b"".join(bytes(chunk) for chunk in bucket.store.read_chunks(list(tree.chunks(entry))))
        for entry in tree.entries()
        if entry.kind == Kind.FILE
    }


def expected(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class At(MemoryBackend):
    """Does something right before the first put below a prefix, once it is armed."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self._prefix = prefix
        self.then: Callable[[], None] | None = None
        self.times = 1

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        if self.then is not None and self.times and key.startswith(self._prefix):
            self.times -= 1
            self.then()
        return super().put(key, data, condition=condition)


class Meter(Silent):
    """What a display would be told."""

    def __init__(self) -> None:
        self.total = self.done = 0
        self.over = False
        self.listings = 0
        self.warnings: list[str] = []

    def expect(self, files: int, size: int) -> None:
        self.total += size

    def listed(self) -> None:
        self.listings += 1

    def advance(self, size: int, *, new: int = 0) -> None:
        self.done += size
        self.over = self.over or (self.listings > 0 and self.done > self.total)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


@pytest.mark.parametrize("where", [layout.PACKS, layout.MANIFESTS, layout.INDEX])
def test_an_upload_whose_ground_is_collected_is_done_again(tmp_path: Path, where: str) -> None:
    """Its data was there, in packs that only a deleted dataset used."""
    folder = files(tmp_path / "in", "a")
    backend = At(where)
    bucket = open_bucket(backend)
    bucket.upload("gone", [f"{folder}/*"])
    bucket.delete("gone", all_versions=True)
    backend.then = lambda: collect(backend)
    (folder / "more").write_bytes(b"more")
    meter = Meter()
    result = bucket.upload("ds", [f"{folder}/*"], progress=meter)
    assert backend.times == 0
    assert result.created
    assert meter.listings == 2
    assert (meter.done, meter.over) == (meter.total, False)
    assert any("collected as garbage" in message for message in meter.warnings)
    fresh = open_bucket(backend)
    assert contents(fresh, "ds") == expected(folder)
    assert verify_store(fresh.store).problems == []
    assert [summary.name for summary in fresh.list()] == ["ds"]
    assert list(backend.list(layout.LEASES)) == []


def test_an_unchanged_tree_is_not_taken_over_from_what_is_being_deleted(tmp_path: Path) -> None:
    folder = files(tmp_path / "in", "a")
    os.utime(folder, (1, 1))
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    backend = At(layout.DATASETS)
    bucket = open_bucket(backend, cache_dir=str(tmp_path / "cache"), state_dir=str(tmp_path / "state"))
    bucket.upload("gone", [f"{folder}/*"])
    bucket.delete("gone", all_versions=True)
    backend.then = lambda: collect(backend)
    bucket.upload("ds", [f"{folder}/*"])
    assert backend.times == 0
    fresh = open_bucket(backend)
    assert contents(fresh, "ds") == expected(folder)
    assert verify_store(fresh.store).problems == []


def test_the_same_data_comes_and_goes_again_and_again(tmp_path: Path) -> None:
    """Ids follow from bytes; nothing is stored under a name that is being deleted."""
    folder = files(tmp_path / "in", "a", count=1)
    backend = MemoryBackend()
    bucket = open_bucket(backend)
    seen: set[str] = set()
    checksums = set()
    for _ in range(4):
        checksums.add(bucket.upload("ds", [f"{folder}/*"]).version.record.checksum)
        assert contents(bucket, "ds") == expected(folder)
        assert verify_store(bucket.store).problems == []
        keys = {info.key for prefix in (layout.PACKS, layout.MANIFESTS) for info in backend.list(prefix)}
        assert keys.isdisjoint(seen)
        seen |= keys
        bucket.delete("ds", all_versions=True)
        collect(backend)
        assert not list(backend.list(layout.PACKS))
    assert len(checksums) == 1


def test_a_version_without_files_comes_and_goes(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    backend = MemoryBackend()
    bucket = open_bucket(backend)
    for _ in range(3):
        bucket.upload("ds", [f"{tmp_path}/empty/*", str(tmp_path / "empty")], regex=None)
        bucket.update("ds", remove="empty")
        assert [entry.path for entry in bucket.entries("ds")] == []
        bucket.delete("ds", all_versions=True)
        collect(backend)


def test_an_update_copies_what_is_just_being_moved(tmp_path: Path) -> None:
    """The base is kept, in a pack that is going to be deleted when its chunks are in another one."""
    folder = files(tmp_path / "in", "a")
    backend = MemoryBackend()
    bucket = open_bucket(backend)
    bucket.upload("ds", [f"{folder}/*"])
    packs = [layout.id_of(info.key) for info in backend.list(layout.PACKS)]
    value = TrashRecord(
        id=layout.new_id(),
        state=TrashState.DELETING,
        created_at=TIME,
        write_id="w",
        packs=[pack.hex() for pack in packs],
    )
    backend.put(layout.trash_key(value.id), [record.encode("trash", value)])
    (tmp_path / "more").write_bytes(b"more")
    bucket.update("ds", add=[str(tmp_path / "more")], remove="f0")
    backend.delete([layout.pack_key(pack) for pack in packs])
    wanted = {**expected(folder), "more": b"more"}
    del wanted["f0"]
    assert contents(open_bucket(backend), "ds", "2") == wanted


def test_an_upload_that_can_not_be_healed_leaves_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = files(tmp_path / "in", "a")
    backend = MemoryBackend()
    bucket = open_bucket(backend)

    def gone(self: Hold, manifest: bytes) -> None:
        raise GoneError(1)

    monkeypatch.setattr(Hold, "check", gone)
    with pytest.raises(ConflictError, match="collected as garbage") as caught:
        bucket.upload("ds", [f"{folder}/*"])
    assert caught.value.hint == "nothing was committed: try again"
    with pytest.raises(NotFoundError):
        bucket.refs.find("ds")
    assert list(backend.list(layout.LEASES)) == []


# ---- many writers


def together(count: int, work: Callable[[int], None]) -> list[BaseException]:
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def run(number: int) -> None:
        barrier.wait()
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@pytest.fixture(params=["memory", "file", "objects"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    if request.param == "memory":
        yield MemoryBackend()
        return
    if request.param == "file":
        found: Backend = open_backend(f"file://{tmp_path / 'store'}", create=True)
    else:
        (tmp_path / "objects").mkdir()
        found = ObjectBackend(LocalClient(str(tmp_path / "objects")))
    yield found
    found.close()


def test_32_racing_writers_and_fences(backend: Backend) -> None:
    """Numbers without gaps or duplicates; what is void is marked, and everybody's version is there."""
    refs = Refs(backend)
    head = refs.create_dataset("ds", created_by="me")
    made: list[VersionRecord] = []

    def work(number: int) -> None:
        if number % 8 == 7:
            for _ in range(3):
                refs.fence(head.id)
        else:
            made.append(refs.commit_version(head.id, build(hashing.digest(b"%d" % number))))

    assert together(32, work) == []
    after = refs.find("ds")
    assert after.epoch == 12
    numbers = refs.numbers(head.id)
    assert numbers == list(range(1, len(numbers) + 1))
    there = {number for number in refs.versions(head.id) if is_active(after, number)}
    assert there == {version.number for version in made}
    assert len(there) == 28
    assert {refs.read_version(head.id, version.number).write_id for version in made} == {v.write_id for v in made}


def test_racing_updates_all_have_their_effect(tmp_path: Path) -> None:
    backend = MemoryBackend()
    open_bucket(backend).upload("ds", [f"{files(tmp_path / 'in', 'a', count=2, size=1000)}/*"])
    names = [f"new{number}" for number in range(12)]
    for name in names:
        (tmp_path / name).write_text(name)

    def work(number: int) -> None:
        open_bucket(backend).update("ds", add=[str(tmp_path / names[number])])

    assert together(len(names), work) == []
    bucket = open_bucket(backend)
    assert bucket.resolve("ds").number == 1 + len(names)
    assert set(contents(bucket, "ds")) == {"f0", "f1", *names}


def test_an_update_of_a_named_version_stays_with_it(tmp_path: Path) -> None:
    backend = MemoryBackend()
    bucket = open_bucket(backend)
    bucket.upload("ds", [f"{files(tmp_path / 'in', 'a', count=2, size=1000)}/*"])
    (tmp_path / "new").write_text("new")
    bucket.update("ds", remove="f0")
    bucket.update("ds", tag="1", add=[str(tmp_path / "new")])
    assert set(contents(bucket, "ds")) == {"f0", "f1", "new"}


# ---- a process that stands still

UPLOAD = """
import sys
from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.repo import leases
from casstore.repo.hold import Hold
from casstore.repo.store import Store
from casstore.transfer.progress import Silent
url, source, where = sys.argv[1:]
leases.DEFAULT_TERM = 1
check = Hold.check
stopped = []

def stop(at):
    if at == where and not stopped:
        stopped.append(at)
        print("ready", flush=True)
        sys.stdin.readline()

def look(self, manifest):
    stop("before the look")
    check(self, manifest)
    stop("after the look")

Hold.check = look
init = Hold.__init__
Hold.__init__ = lambda self, *args, **more: init(self, *args, **{**more, "term": 1})
with Store.open(open_backend(url)) as store:
    result = Bucket(store, name="b", user="u").upload("ds", [source + "/*"])
print(result.version.number, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["before the look", "after the look"])
def test_a_writer_that_stands_still_past_its_lease(tmp_path: Path, where: str) -> None:
    """SIGSTOP, its lease runs out, all that it relied on and all that it stored is collected, SIGCONT."""
    url = f"file://{tmp_path / 'store'}"
    folder = files(tmp_path / "in", "a")
    backend = open_backend(url, create=True)
    bucket = open_bucket(backend)
    bucket.upload("gone", [f"{folder}/*"])
    bucket.delete("gone", all_versions=True)
    (folder / "new").write_bytes(random.Random("new").randbytes(100_000))
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOAD, url, str(folder), where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        # As after a day: for others its lease has run out.
        os_leases = tmp_path / "store" / "leases"
        for lease in os_leases.iterdir():
            os.utime(lease, (1, 1))
        collect(backend)
        assert not list(backend.list(layout.PACKS)), "all of it was garbage"
        process.send_signal(signal.SIGCONT)
        process.stdin.write("go\n")
        process.stdin.flush()
        number = process.stdout.readline()
        assert process.wait() == 0
    assert number.strip() in ("1", "2")
    assert contents(bucket, "ds", number.strip()) == expected(folder)
    assert verify_store(bucket.store).problems == []
    bucket.store.close()
