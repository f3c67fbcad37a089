"""What a check finds, what it says, and that it finds nothing where nothing is."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from casstore import hashing
from casstore.backend.base import Capabilities
from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.errors import CasstoreError
from casstore.format import record
from casstore.format.index import Location, encode
from casstore.format.pack import PackKind
from casstore.model import Totals, VersionRecord
from casstore.repo import layout
from casstore.repo.check import About, Report, check_store
from casstore.repo.gc.plan import Rules
from casstore.repo.gc.run import Collector
from casstore.repo.leases import Lease
from casstore.repo.packs import read_footer
from casstore.repo.records import now
from casstore.repo.repair import Repair
from casstore.repo.store import Store
from casstore.repo.trash import TrashRecord, TrashState
from casstore.testing.faults import FaultBackend

Sources = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Sources:
    """Write files, and return what to upload them by."""
    made = 0

    def call(**files: bytes | int) -> str:
        nonlocal made
        made += 1
        folder = tmp_path / f"in{made}"
        folder.mkdir()
        for name, content in files.items():
            data = random.Random(content).randbytes(content) if isinstance(content, int) else content
            (folder / name).write_bytes(data)
        return f"{folder}/*"

    return call


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


@pytest.fixture
def bucket(backend: MemoryBackend) -> Bucket:
    return Bucket(Store.open(backend, create=True), name="b", user="u")


def check(backend: MemoryBackend, **options: object) -> Report:
    return check_store(Store.open(backend), **options)  # type: ignore[arg-type]


def packs(backend: MemoryBackend, kind: PackKind) -> list[str]:
    keys = [info.key for info in backend.list(layout.PACKS)]
    return [key for key in keys if read_footer(backend, layout.id_of(key)).kind is kind]


def spoil(backend: MemoryBackend, key: str, at: int) -> None:
    data = bytearray(backend.get(key).data)
    data[at] ^= 1
    backend.put(key, [data])


# ---- what is said


def test_losses_are_told_by_version_and_file(backend: MemoryBackend, bucket: Bucket, write: Sources) -> None:
    bucket.upload("robots", [write(a=90_000, b=b"kept")])
    bucket.upload("robots", [write(a=90_000, c=80_000)])
    bucket.upload("other", [write(b=b"kept", d=b"own")])
    for key in packs(backend, PackKind.DATA):
        footer = read_footer(backend, layout.id_of(key))
        for frame in footer.records:
            if frame.raw > 10_000:
                spoil(backend, key, frame.offset + frame.stored // 2)
    assert check(backend).clean  # it reads no data
    report = check(backend, read=1.0)
    assert [str(loss) for loss in report.losses] == [
        "robots:1: 1 file damaged: a",
        "robots:2: 2 files damaged: a, c",
    ]
    assert check(backend, read=1.0, only=["other"]).clean
    assert [loss.name for loss in check(backend, read=1.0, only=["robots"]).losses] == ["robots:1", "robots:2"]
    # The newest version alone lost c: when the first is deleted, nothing is said of it.
    bucket.delete("robots", tag="1", force=True)
    assert [loss.name for loss in check(backend, read=1.0).losses] == ["robots:2"]


def test_a_lost_index_is_no_lost_data(backend: MemoryBackend, bucket: Bucket, write: Sources) -> None:
    bucket.upload("robots", [write(a=90_000)])
    backend.delete([info.key for info in backend.list(layout.INDEX)])
    report = check(backend)
    assert report.losses == []
    assert [problem.about for problem in report.problems] == [About.INDEX]
    assert "no data is lost" in report.problems[0].message


def test_records_of_collected_packs_that_come_back_are_a_note(
    backend: MemoryBackend, bucket: Bucket, write: Sources
) -> None:
    bucket.upload("gone", [write(a=90_000)])
    bucket.upload("kept", [write(b=70_000)])
    old = {info.key: backend.get(info.key).data for info in backend.list(layout.INDEX)}
    bucket.delete("gone", all_versions=True, force=True)
    collect_now(backend)
    for key, data in old.items():  # as by a merge of somebody who stood still
        backend.put(key, [data])
    report = check(backend, read=1.0)
    assert report.clean
    assert "index" in {note.what for note in report.notes}
    backend.delete([info.key for info in backend.list(layout.TRASH)])
    assert {problem.about for problem in check(backend).problems} == {About.INDEX, About.PACK}  # lost, for all we know
    work = Repair(Store.open(backend), user="u")
    work.execute(work.plan())
    assert check(backend, read=1.0).clean


def test_a_record_that_comes_after_its_dataset_was_collected_is_no_damage(
    backend: MemoryBackend, bucket: Bucket, write: Sources
) -> None:
    bucket.upload("gone", [write(a=90_000)])
    key = layout.version_key(bucket.refs.resolve_name("gone"), 1)
    late = backend.get(key).data
    bucket.delete("gone", all_versions=True, force=True)
    collect_now(backend)
    backend.put(key, [late])
    assert check(backend, read=1.0).clean
    assert Repair(Store.open(backend), user="u").plan().empty
    backend.delete([info.key for info in backend.list(layout.TRASH)])
    assert [problem.about for problem in check(backend).problems][-1] is About.HEAD


def test_a_copy_elsewhere_is_as_good(backend: MemoryBackend, bucket: Bucket, write: Sources) -> None:
    bucket.upload("robots", [write(a=90_000)])
    other = MemoryBackend()
    twin = Bucket(Store.open(other, create=True), name="b", user="u")
    twin.upload("robots", [write(z=50, a=90_000)])  # the same chunks in another pack
    for info in other.list(layout.PACKS):
        backend.put(info.key, [other.get(info.key).data])
    assert [note.what for note in check(backend).notes] == ["packs", "duplicates"]
    (mine,) = set(packs(backend, PackKind.DATA)) - set(packs(other, PackKind.DATA))
    backend.delete([mine])
    report = check(backend)
    assert report.losses == []
    assert not report.clean
    work = Repair(Store.open(backend), user="u")
    work.execute(work.plan())
    assert check(backend, read=1.0).clean
    assert bucket.verify("robots").clean


def test_what_belongs_to_nobody_is_a_note(backend: MemoryBackend, bucket: Bucket, write: Sources) -> None:
    bucket.upload("robots", [write(a=90_000)])
    bucket.upload("gone", [write(b=70_000)])
    bucket.delete("gone", all_versions=True, force=True)
    Lease.acquire(backend, kind="upload", heartbeat=False)
    backend.put("probe/" + "a" * 32, [b"probe"])
    trash = TrashRecord(id="b" * 32, state=TrashState.MARKED, created_at=now(), write_id="w")
    backend.put(layout.trash_key("b" * 32), [record.encode("trash", trash)])
    report = check(backend, read=1.0)
    assert report.clean
    assert {note.what for note in report.notes} == {"leases", "probe", "trash", "packs", "manifests"}
    backend.put("packs/00/strange", [b"x"])
    backend.put("something", [b"x"])
    assert {problem.about for problem in check(backend).problems} == {About.FOREIGN}


def test_a_version_that_is_void_or_deleted_has_nothing_to_lose(
    backend: MemoryBackend, bucket: Bucket, write: Sources
) -> None:
    bucket.upload("robots", [write(a=90_000)])
    dataset_id = bucket.refs.resolve_name("robots")
    head, _ = bucket.refs.read_head(dataset_id)
    changed = msgspec.structs.replace(head, epoch=3)
    backend.put(layout.head_key(dataset_id), [record.encode("head", changed)])
    late = VersionRecord(
        number=2, manifest="0" * 64, checksum="0" * 64, totals=Totals(), created_at=now(), created_by="u",
        write_id="w", epoch=2,
    )  # fmt: skip
    backend.put(layout.version_key(dataset_id, 2), [record.encode("version", late)])
    report = check(backend, read=1.0)
    assert report.clean
    assert "void" in {note.what for note in report.notes}
    backend.put(layout.version_key(dataset_id, 2), [record.encode("version", msgspec.structs.replace(late, epoch=3))])
    assert [loss.name for loss in check(backend).losses] == ["robots:2"]


def test_the_same_seed_reads_the_same_share(backend: MemoryBackend, bucket: Bucket, write: Sources) -> None:
    for number in range(12):
        bucket.upload(f"d{number}", [write(a=50_000 + number)])
    reports = [check(backend, read=0.3, seed=seed) for seed in (1, 1, 2, 3)]
    assert reports[0] == reports[1]
    assert len({report.packs_read for report in reports}) > 1
    assert all(0 < report.share < 1 for report in reports)
    assert reports[0].seed == 1
    assert check(backend, read=1.0).share == 1
    found = {seed for seed in range(30) if not damaged_by(backend, seed).clean}
    assert found
    assert len(found) < 30


def damaged_by(backend: MemoryBackend, seed: int) -> Report:
    copy = MemoryBackend()
    for info in backend.list(""):
        copy.put(info.key, [backend.get(info.key).data])
    spoil(copy, packs(copy, PackKind.DATA)[3], 900)
    return check(copy, read=0.2, seed=seed)


def test_a_sample_of_a_small_store_is_one_pack(backend: MemoryBackend, bucket: Bucket, write: Sources) -> None:
    bucket.upload("robots", [write(a=90_000)])
    for seed in range(8):
        assert check(backend, read=0.001, seed=seed).share == 1


def test_lists_are_cut_and_counts_are_not(backend: MemoryBackend, bucket: Bucket, write: Sources) -> None:
    bucket.upload("many", [write(**{f"f{number}": b"%d" % number for number in range(1500)})])
    backend.delete(packs(backend, PackKind.DATA))
    report = check(backend)
    (loss,) = report.losses
    assert (loss.files, len(loss.paths)) == (1500, 1000)
    assert report.count > 1500
    assert len(str(loss)) < 1000


# ---- stores that change meanwhile


class Busy(MemoryBackend):
    """Does something else at the n-th call, as another process would."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__()
        self.at = -1
        self.action: Callable[[MemoryBackend], None] = lambda _: None
        self.calls = 0
        for key, data in objects.items():
            super().put(key, [data])
        self.calls = 0

    def _check_open(self) -> None:
        super()._check_open()
        self.calls += 1
        if self.calls == self.at:
            self.action(self)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(conditional_put=True, local=True)  # without threads: the calls have one order


def collect_now(backend: MemoryBackend) -> None:
    rules = Rules(grace=0, margin=0, repack_below=0.9)
    with Collector(Store.open(backend), rules=rules, clock=lambda: time.time() + 3600) as collector:
        collector.run(collector.plan())


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], Path]:
    """The objects of a store with some garbage, and a folder to upload."""
    folder = tmp_path_factory.mktemp("busy")
    for name, seed in {"a": 1, "b": 2, "c": 3, "new": 4}.items():
        (folder / name).mkdir()
        (folder / name / "f").write_bytes(random.Random(seed).randbytes(70_000))
        (folder / name / "g").write_bytes(b"the same")
    backend = MemoryBackend()
    bucket = Bucket(Store.open(backend, create=True), name="b", user="u")
    for name in "abc":
        bucket.upload("ds", [f"{folder}/{name}/*"])
    bucket.upload("mixed", [f"{folder}/a/*", f"{folder}/b"])
    bucket.upload("other", [f"{folder}/c/*"])
    bucket.delete("ds", tag="2", force=True)
    return {info.key: backend.get(info.key).data for info in backend.list("")}, folder


def upload_more(backend: MemoryBackend, folder: Path) -> None:
    Bucket(Store.open(backend), name="b", user="u").upload("ds", [f"{folder}/new/*"])


def upload_first(backend: MemoryBackend, folder: Path) -> None:
    Bucket(Store.open(backend), name="b", user="u").upload("fresh", [f"{folder}/new/*"])


def delete_and_collect(backend: MemoryBackend, _: Path) -> None:
    bucket = Bucket(Store.open(backend), name="b", user="u")
    bucket.delete("mixed", all_versions=True, force=True)
    bucket.delete("ds", tag="1", force=True)
    collect_now(backend)


def rename(backend: MemoryBackend, _: Path) -> None:
    Bucket(Store.open(backend), name="b", user="u").rename("ds", "renamed")


ACTIONS = [upload_more, upload_first, delete_and_collect, rename, lambda backend, _: collect_now(backend)]


@pytest.mark.parametrize("read", [0.0, 1.0])
@pytest.mark.parametrize("action", ACTIONS)
def test_nothing_is_said_of_what_others_do_meanwhile(
    action: Callable[[MemoryBackend, Path], None], read: float, busy: tuple[dict[str, bytes], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from casstore.repo.check import session

    monkeypatch.setattr(session, "workers", lambda: 1)
    objects, folder = busy
    quiet = Busy(objects)
    assert check_store(Store.open(quiet), read=read).clean
    for at in range(1, quiet.calls + 1):
        backend = Busy(objects)
        backend.at = at
        backend.action = lambda inner: action(inner, folder)
        report = check_store(Store.open(backend), read=read)
        assert report.problems == [], (at, report.problems)


# ---- hostile stores


def test_malformed_objects_are_told_in_words(backend: MemoryBackend, bucket: Bucket, write: Sources) -> None:
    bucket.upload("robots", [write(a=90_000, b=b"text")])
    Lease.acquire(backend, kind="upload", heartbeat=False)
    trash = TrashRecord(id="b" * 32, state=TrashState.MARKED, created_at=now(), write_id="w")
    backend.put(layout.trash_key("b" * 32), [record.encode("trash", trash)])
    rng = random.Random(9)
    originals = {info.key: backend.get(info.key).data for info in backend.list("")}
    for key, original in originals.items():
        if key == layout.STORE:
            continue
        for data in (b"", rng.randbytes(700), original + b"\0", original[: len(original) // 3], bytes(len(original))):
            backend.put(key, [data])
            report = check(backend, read=1.0)
            assert not report.clean, key
            for problem in report.problems:
                assert "\n" not in problem.message
                assert len(problem.message) < 2000
            work = Repair(Store.open(backend), user="u")
            assert work.plan().steps or "/versions/" in key
        backend.put(key, [original])
    assert check(backend, read=1.0).clean


def sealed(kind: str, body: bytes) -> bytes:
    return f"casstore-record 1 {kind} {hashing.digest(body).hex()}\n".encode() + body


def test_objects_that_are_sound_and_say_nonsense(backend: MemoryBackend, bucket: Bucket, write: Sources) -> None:
    bucket.upload("robots", [write(a=90_000)])
    dataset_id = bucket.refs.resolve_name("robots")
    original = {info.key: backend.get(info.key).data for info in backend.list("")}
    lie = encode([(os.urandom(32), Location(os.urandom(32), 16, 100, 100, 0)) for _ in range(500)])
    (segment,) = (key for key in original if key.startswith(layout.INDEX))
    known = next(iter(Store.open(backend).index.segments()))
    moved = encode([(chunk_id, place._replace(offset=place.offset + 1)) for chunk_id, place in known.items()])
    head = original[layout.head_key(dataset_id)].partition(b"\n")[2]
    cases: dict[str, bytes] = {
        layout.index_key(hashing.digest(lie)): lie,
        layout.index_key(hashing.digest(moved)): moved,
        layout.head_key(dataset_id): sealed("head", head.replace(b'"last_version":1', b'"last_version":999999999999')),
        layout.version_key(dataset_id, 7): original[layout.version_key(dataset_id, 1)],
        layout.name_key("two"): original[layout.name_key("robots")],
        layout.lease_key("c" * 32): sealed("trash", b"{}"),
        layout.trash_key("c" * 32): b"{" * 100_000,
        "manifests/00/" + "0" * 64: b"casstore-manifest-1\n" + b"\x91" * 5000,
    }
    assert segment
    for key, data in cases.items():
        backend.put(key, [data])
        report = check(backend, read=1.0)
        assert not report.clean, key
        assert not any(loss.files for loss in report.losses), key  # the data is there, whatever is said of it
        work = Repair(Store.open(backend), user="u")
        work.execute(work.plan())
        for info in list(backend.list("")):
            if not info.key.startswith("quarantine/"):
                backend.delete([info.key])
        for name, content in original.items():
            backend.put(name, [content])


MEASURE = """
import resource, sys
from casstore.backend.base import Capabilities, ObjectInfo, check_limit
from casstore.backend.memory import MemoryBackend
from casstore.repo.check import check_store
from casstore.repo.repair import Repair
from casstore.repo.store import Store

class Vast(MemoryBackend):
    def stat(self, key):
        info = super().stat(key)
        return ObjectInfo(key, 1 << 40, info.mtime) if key.endswith("7" * 60) else info

    def list(self, prefix, *, after=""):
        for info in super().list(prefix, after=after):
            yield self.stat(info.key)

    def read(self, key, offset, length):
        if key.endswith("7" * 60):
            assert length < 32 << 20, (key, length)
            return bytes(length)
        return super().read(key, offset, length)

    def get(self, key, *, limit=None):
        if key.endswith("7" * 60):
            check_limit(key, 1 << 40, limit)
            raise AssertionError(key)
        return super().get(key, limit=limit)

backend = Vast()
store = Store.open(backend, create=True)
name = "7" * 64
for key in (f"packs/77/{name}", f"index/{name}", f"manifests/77/{name}", f"leases/{name}", f"trash/{name}",
            f"names/{name}", f"datasets/{'7' * 22}/versions/1"):
    backend.put(key, [b"x"])
check_store(store)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = check_store(store, read=1.0)
assert len(report.problems) >= 6, report.problems
work = Repair(store, user="u")
work.execute(work.plan())
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""


def test_objects_of_a_terabyte_take_no_memory() -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 64 << 20


def test_an_error_of_the_back_end_is_no_damage(backend: MemoryBackend, bucket: Bucket, write: Sources) -> None:
    from casstore.testing.faults import Fault, FaultPlan

    bucket.upload("robots", [write(a=90_000)])
    counter = FaultBackend(backend)
    check_store(Store.open(counter), read=1.0)
    for at in range(2, counter.calls + 1):
        faulty = FaultBackend(backend, FaultPlan(at, Fault.ERROR_BEFORE, times=1))
        try:
            report = check_store(Store.open(faulty), read=1.0)
        except CasstoreError:
            continue
        assert report.clean, at
