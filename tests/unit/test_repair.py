"""Whatever is deleted or damaged: what is whole stays whole, and what is lost is named."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket
from casstore.errors import CasstoreError, FormatError, IntegrityError, NotFoundError
from casstore.format import record
from casstore.format.pack import PackKind
from casstore.model import Kind
from casstore.repo import layout
from casstore.repo.check import Report, check_store
from casstore.repo.gc.plan import Rules
from casstore.repo.gc.run import Collector
from casstore.repo.packs import read_footer
from casstore.repo.records import now
from casstore.repo.repair import Action, Plan, Repair, config_problem, discard, kept, write_config
from casstore.repo.repair.execute import Done
from casstore.repo.store import Store
from casstore.repo.trash import TrashRecord, TrashState

Content = dict[str, dict[str, bytes]]


class Memory(MemoryBackend):
    """Stays open when a store on it is closed."""

    def close(self) -> None:
        pass


def copy(objects: dict[str, bytes]) -> Memory:
    backend = Memory()
    for key, data in objects.items():
        backend.put(key, [data])
    return backend


def objects_of(backend: MemoryBackend) -> dict[str, bytes]:
    return {info.key: backend.get(info.key).data for info in backend.list("")}


def read(backend: MemoryBackend) -> tuple[Content, set[str]]:
    """What can be downloaded: version -> path -> bytes; and which versions can't, or not all of them."""
    found: Content = {}
    broken: set[str] = set()
    with Store.open(backend) as store:
        bucket = Bucket(store, name="b", user="u")
        for info in list(backend.list("names/")):
            name = layout.name_of(info.key)
            try:
                dataset_id = bucket.refs.resolve_name(name)
                numbers = bucket.refs.versions(dataset_id)
            except CasstoreError:
                continue  # released, or not readable: then nothing of it can be
            for number in numbers:
                key = f"{name}:{number}"
                try:
                    tree = store.tree(bytes.fromhex(bucket.refs.read_version(dataset_id, number).manifest))
                    files = found.setdefault(key, {})
                    for entry in tree.entries():
                        if entry.kind == Kind.FILE:
                            try:
                                chunks = store.read_chunks(list(tree.chunks(entry)))
                                files[os.fsdecode(entry.path)] = b"".join(bytes(chunk) for chunk in chunks)
                            except (IntegrityError, NotFoundError):
                                broken.add(key)
                except (IntegrityError, NotFoundError):
                    broken.add(key)
    return found, broken


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of two datasets that share most of what they hold."""
    folder = tmp_path_factory.mktemp("sources")
    rng = random.Random(4)
    shared = rng.randbytes(400_000)
    for name, content in {
        "one/a.bin": shared,
        "one/sub/b.txt": b"text " * 500,
        "one/sub/deep/c.bin": rng.randbytes(3000),
        "two/a.bin": shared[:200_000] + b"changed" + shared[200_000:],
        "two/d.txt": b"more " * 900,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def whole(sources: Path) -> dict[str, bytes]:
    """The objects of a small store that is whole."""
    backend = Memory()
    with Store.open(backend, create=True) as store:
        bucket = Bucket(store, name="b", user="u")
        bucket.upload("robot", [f"{sources}/one/*"], labels={"kind": "arm"}, tag="golden")
        bucket.upload("robot", [f"{sources}/two/*"])
        bucket.upload("other", [f"{sources}/one/sub"], metadata={"site": "lab"})
        bucket.collect("all", ["robot:1", "other"])
        return objects_of(backend)


def repair(backend: MemoryBackend, **options: object) -> tuple[Plan, Done]:
    with Store.open(backend) as store:
        work = Repair(store, user="u", **options)  # type: ignore[arg-type]
        plan = work.plan()
        return plan, work.execute(plan)


def check(backend: MemoryBackend, read: float = 1.0) -> Report:
    with Store.open(backend) as store:
        return check_store(store, read=read)


def flip(data: bytes, seed: int) -> bytes:
    changed = bytearray(data)
    place = random.Random(seed).randrange(len(data) * 8)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def damaged(objects: dict[str, bytes], key: str, how: str) -> MemoryBackend:
    data = objects[key]
    backend = copy(objects)
    backend.delete([key])
    if how.startswith("flipped"):
        backend.put(key, [flip(data, int(how.split()[1]))])
    elif how == "head flipped":
        backend.put(key, [bytes([data[0] ^ 1]) + data[1:]])
    elif how == "end flipped":
        backend.put(key, [data[:-1] + bytes([data[-1] ^ 1])])
    elif how == "cut":
        backend.put(key, [data[: len(data) // 2]])
    elif how == "emptied":
        backend.put(key, [b""])
    return backend


HOW = ["deleted", "cut", "emptied", "head flipped", "end flipped", "flipped 1", "flipped 2", "flipped 3"]


@pytest.mark.parametrize("how", HOW)
def test_each_object_in_turn(whole: dict[str, bytes], how: str) -> None:
    expected, _ = read(copy(whole))
    for key in whole:
        backend = damaged(whole, key, how)
        if key == layout.STORE:
            assert config_problem(backend)
            write_config(backend)
        before, _ = read(backend)
        _, done = repair(backend)
        assert done.failed == [], key
        after, broken = read(backend)
        report = check(backend)
        # What could be read before can be read now, and is what it was.
        for version, files in before.items():
            number = ":" + version.rpartition(":")[2]  # a dataset whose name was lost has another one
            now = [found for other, found in after.items() if other.endswith(number)]
            assert any(files.items() <= found.items() for found in now), (key, version)
        for version, files in after.items():
            wanted = expected.get(version)
            if wanted is not None:
                assert files.items() <= wanted.items(), (key, version)
        # What is not clean is a loss, and it is named by the version.
        lost = {loss.name for loss in report.losses}
        assert broken <= lost, key
        assert all(problem.where.startswith(("manifests/", "datasets/")) for problem in report.problems)
        assert bool(report.problems) == bool(lost), (key, report.problems)
        if key.startswith(("index/", "names/", "store.json")):
            assert report.clean, (key, report.problems)
            assert after == expected
        # What was there is kept, where it was or in quarantine.
        if how != "deleted":
            found = {backend.get(info.key).data for info in kept(backend)} | {objects_of(backend).get(key)}
            assert damaged(whole, key, how).get(key).data in found, key
        # A second run finds nothing to do.
        second, _ = repair(backend)
        assert second.empty, (key, second.steps)


def pack_of(objects: dict[str, bytes], kind: PackKind) -> list[str]:
    backend = copy(objects)
    return [key for key in objects if key.startswith("packs/") and read_footer(backend, layout.id_of(key)).kind is kind]


def test_a_pack_with_a_damaged_chunk_keeps_the_others(whole: dict[str, bytes]) -> None:
    (key, *_) = pack_of(whole, PackKind.DATA)
    backend = copy(whole)
    footer = read_footer(backend, layout.id_of(key))
    frame = footer.records[1]
    data = bytearray(whole[key])
    data[frame.offset + 5] ^= 1
    backend.put(key, [data])
    plan, done = repair(backend)
    assert [step.action for step in plan.steps] == [Action.PACK, Action.INDEX]
    assert f"{len(footer.records) - 1} of {len(footer.records)} chunks" in done.lines[0]
    report = check(backend)
    assert all(problem.where.startswith("manifests/") for problem in report.problems)
    with Store.open(backend) as store:
        for one in footer.records:
            if one.chunk_id == frame.chunk_id:
                with pytest.raises(NotFoundError):
                    store.read_chunk(one.chunk_id)
            else:
                assert len(store.read_chunk(one.chunk_id)) == one.raw
    assert backend.get(f"{done.quarantine}{key}").data == bytes(data)


@pytest.mark.parametrize("index", ["whole", "lost"])
def test_a_pack_whose_table_of_contents_is_damaged_is_made_anew(whole: dict[str, bytes], index: str) -> None:
    for key in pack_of(whole, PackKind.DATA) + pack_of(whole, PackKind.META):
        for place in (3, -3, -12, -20 if index == "whole" else -17):
            backend = copy(whole)
            data = bytearray(whole[key])
            data[place] ^= 1
            backend.put(key, [data])
            if index == "lost":
                backend.delete([k for k in whole if k.startswith("index/")])
            repair(backend)
            if place == 3 and key in pack_of(whole, PackKind.META):
                assert check(backend).clean  # as a pack of data: its header does not say what it is
                continue
            if index == "whole" or place != -17:
                assert check(backend).clean, place
                assert backend.get(key).data == whole[key]


def test_the_index_is_made_anew_and_is_what_it_was(whole: dict[str, bytes]) -> None:
    with Store.open(copy(whole)) as store:
        expected = {item for segment in store.index.segments() for item in segment.items()}
    backend = copy({key: data for key, data in whole.items() if not key.startswith("index/")})
    assert not check(backend, 0).clean
    plan, _ = repair(backend)
    assert [step.action for step in plan.steps] == [Action.INDEX]
    assert check(backend).clean
    with Store.open(backend) as store:
        assert {item for segment in store.index.segments() for item in segment.items()} == expected


def test_missing_chunks_come_back_from_a_folder(whole: dict[str, bytes], sources: Path, tmp_path: Path) -> None:
    backend = copy(whole)
    expected, _ = read(backend)
    backend.delete(pack_of(whole, PackKind.DATA))
    assert len(check(backend).losses) == 3
    (tmp_path / "elsewhere").mkdir()
    for number, path in enumerate(sorted(path for path in sources.rglob("*") if path.is_file())):
        (tmp_path / "elsewhere" / str(number)).write_bytes(path.read_bytes())
    (tmp_path / "elsewhere" / "link").symlink_to("/etc/passwd")
    _, done = repair(backend, folder=str(tmp_path / "elsewhere"))
    assert done.failed == []
    assert check(backend).clean
    assert read(backend) == (expected, set())


def test_what_is_left_of_a_version_becomes_a_new_one(whole: dict[str, bytes]) -> None:
    backend = copy(whole)
    (key, *_) = sorted(pack_of(whole, PackKind.DATA), key=lambda key: -len(whole[key]))
    backend.delete([key])
    lost = check(backend).losses
    records = {key: data for key, data in whole.items() if "/versions/" in key}
    plan, done = repair(backend, salvage=True)
    assert Action.SALVAGE in [step.action for step in plan.steps]
    assert done.failed == []
    assert all(backend.get(key).data == data for key, data in records.items())
    with Store.open(backend) as store:
        bucket = Bucket(store, name="b", user="u")
        for loss in lost:
            made = [
                number
                for number in bucket.refs.versions(loss.dataset_id)
                if (bucket.refs.read_version(loss.dataset_id, number).provenance.get("salvage") or {}).get("version")
                == loss.number
            ]
            assert len(made) == 1
            origin = bucket.refs.read_version(loss.dataset_id, made[0]).provenance["salvage"]
            assert origin["left_out"] == [os.fsdecode(path) for path in loss.paths]
            assert bucket.verify(loss.dataset, tag=str(made[0])).clean
    assert {(loss.name) for loss in check(backend).losses} == {loss.name for loss in lost}
    again, _ = repair(backend, salvage=True)
    assert again.empty


def test_a_lost_part_of_a_tree_is_told_and_its_folders_are_made_anew(tmp_path: Path) -> None:
    root = tmp_path / "many"
    for number in range(60):
        for name in range(60):
            path = root / f"d{number}" / f"f{name}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{number} {name}")
    backend = Memory()
    with Store.open(backend, create=True) as store:
        bucket = Bucket(store, name="b", user="u")
        version = bucket.upload("many", [f"{root}/*"]).version
        nodes = list(bucket.tree(version).nodes())
        assert len(nodes) > 3
        place = store.locate(nodes[0])
    key = layout.pack_key(place.pack_id)
    data = bytearray(backend.get(key).data)
    data[place.offset + 8] ^= 1
    backend.put(key, [data])
    (loss,) = check(backend).losses
    assert loss.entries > 0
    assert "entries unknown" in str(loss)
    repair(backend, salvage=True)
    with Store.open(backend) as store:
        bucket = Bucket(store, name="b", user="u")
        assert bucket.verify("many").clean  # folders that were lost with the node are there again
        assert bucket.resolve("many").number == 2
        assert bucket.resolve("many").record.totals.files > 1000


def test_a_damaged_record_of_a_version_leads_to_its_tree_all_the_same(whole: dict[str, bytes]) -> None:
    backend = copy(whole)
    expected, _ = read(backend)
    with Store.open(backend) as store:
        dataset_id = Bucket(store, name="b", user="u").refs.resolve_name("other")
    key = layout.version_key(dataset_id, 1)
    backend.put(key, [whole[key].replace(b'"number":1', b'"number":3')])
    repair(backend, salvage=True)
    after, broken = read(backend)
    assert after["other:2"] == expected["other:1"]
    assert broken == {"other:1"}
    (loss,) = check(backend).losses
    assert str(loss).startswith("other:1: nothing of it can be read: its record is damaged")


def test_a_lost_head_is_made_anew_and_a_lost_name_found(whole: dict[str, bytes]) -> None:
    backend = copy(whole)
    expected, _ = read(backend)
    with Store.open(backend) as store:
        dataset_id = Bucket(store, name="b", user="u").refs.resolve_name("robot")
    backend.delete([layout.head_key(dataset_id), layout.name_key("robot")])
    plan, _ = repair(backend)
    head = next(step for step in plan.steps if step.action is Action.HEAD)
    assert head.lost
    assert "tags" in head.lost
    after, broken = read(backend)
    assert not broken
    (name,) = {key.partition(":")[0] for key in after} - {"other"}
    assert name.startswith("recovered-")
    assert after[f"{name}:2"] == expected["robot:2"]
    with Store.open(backend) as store:
        bucket = Bucket(store, name="b", user="u")
        assert bucket.refs.find(name).epoch > 0
        bucket.rename(name, "robot")
    assert check(backend).clean


def test_a_name_that_was_taken_meanwhile_stays_with_whoever_took_it(whole: dict[str, bytes], sources: Path) -> None:
    backend = copy(whole)
    backend.delete([layout.name_key("robot")])
    with Store.open(backend) as store:
        Bucket(store, name="b", user="u").upload("robot", [f"{sources}/two/d.txt"])
    repair(backend)
    after, broken = read(backend)
    assert not broken
    assert set(after["robot:1"]) == {"d.txt"}
    assert set(after["robot-recovered:2"]) == {"a.bin", "d.txt"}
    assert check(backend).clean


def test_a_store_without_damage_is_left_alone(whole: dict[str, bytes]) -> None:
    backend = copy(whole)
    plan, done = repair(backend, salvage=True)
    assert plan.empty
    assert (done.kept, objects_of(backend)) == (0, whole)


def test_what_was_kept_is_removed_when_it_is_told_to(whole: dict[str, bytes]) -> None:
    backend = damaged(whole, next(key for key in whole if key.startswith("index/")), "cut")
    _, done = repair(backend)
    assert [info.key for info in kept(backend)] != []
    assert check(backend).notes[-1].what == "quarantine"
    rules = Rules(grace=0, margin=0)
    with Store.open(backend) as store, Collector(store, rules=rules, clock=lambda: time.time() + 10**7) as collector:
        collector.run(collector.plan())
    assert len(list(kept(backend))) == done.kept  # no garbage
    assert discard(backend)[0] == done.kept
    assert list(kept(backend)) == []


@pytest.mark.parametrize("kept_id", [True, False])
def test_a_damaged_description_of_the_store_keeps_what_can_be_read_of_it(
    whole: dict[str, bytes], kept_id: bool
) -> None:
    backend = copy(whole)
    with Store.open(backend) as store:
        before = store.config
    data = whole[layout.STORE]
    backend.put(layout.STORE, [b"X" + data[1:] if kept_id else b"nothing of it"])
    with pytest.raises(FormatError):
        Store.open(backend)
    config = write_config(backend)
    assert (config.id == before.id) is kept_id
    assert config.chunker == before.chunker
    assert check(backend).clean


def test_a_description_by_a_newer_version_is_left_alone(whole: dict[str, bytes]) -> None:
    from casstore import hashing

    backend = copy(whole)
    body = whole[layout.STORE].partition(b"\n")[2].replace(b'"format":1', b'"format":1,"more":2')
    newer = f"casstore-record 1 store {hashing.digest(body).hex()}\n".encode() + body
    backend.put(layout.STORE, [newer])
    with pytest.raises(FormatError):
        config_problem(backend)
    assert config_problem(MemoryBackend()) is None


def test_no_root_that_is_being_deleted_is_used_again(whole: dict[str, bytes]) -> None:
    (key, *_) = sorted(pack_of(whole, PackKind.DATA), key=lambda key: -len(whole[key]))
    first = damaged(whole, key, "deleted")
    repair(first, salvage=True)
    roots = {info.key for info in first.list(layout.MANIFESTS)} - whole.keys()
    assert roots
    going = TrashRecord(
        id="a" * 32, state=TrashState.DELETED, created_at=now(), write_id="w",
        manifests=[key.rpartition("/")[2] for key in roots],
    )  # fmt: skip
    second = damaged(whole, key, "deleted")
    second.put(layout.trash_key(going.id), [record.encode("trash", going)])
    _, done = repair(second, salvage=True)
    assert done.failed == []
    made = {info.key for info in second.list(layout.MANIFESTS)} - whole.keys()
    assert len(made) == len(roots)
    assert made.isdisjoint(roots)
    assert read(second)[0].items() == read(first)[0].items()
