"""Names, heads and versions on a back end: what each operation does, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from casstore.backend.base import Absent, Backend, Capabilities
from casstore.backend.memory import MemoryBackend
from casstore.backend.registry import open_backend
from casstore.backend.wrap.trace import CallLog, TraceBackend
from casstore.errors import ConflictError, FormatError, IntegrityError, NotFoundError, UsageError
from casstore.format import record
from casstore.model import DatasetType, Head, Member, Totals, VersionRecord, VersionState
from casstore.repo import layout
from casstore.repo.refs import NameRecord, Refs, is_active, is_tag, now


def build(number: int, write_id: str) -> VersionRecord:
    return VersionRecord(
        number=number,
        manifest="0" * 64,
        checksum="f" * 64,
        totals=Totals(files=1, size=10),
        created_at=now(),
        created_by="tester",
        write_id=write_id,
    )


@pytest.fixture(params=["memory", "file"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend()
    return open_backend(str(tmp_path / "store"), create=True)


@pytest.fixture
def refs(backend: Backend) -> Refs:
    return Refs(backend)


def together(count: int, work: Callable[[int], None]) -> list[BaseException]:
    """Run ``work(i)`` in ``count`` threads that start at the same moment; return what they raised."""
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


def test_create_find_list(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me", labels={"a": 1})
    assert refs.resolve_name("ds") == head.id
    assert refs.find("ds") == head
    assert head.labels == {"a": 1}
    assert refs.read_head(head.id)[0] == head
    other = refs.create_dataset("-odd", created_by="me")
    assert list(refs.list_names()) == sorted([("ds", head.id), ("-odd", other.id)], key=lambda x: layout.name_key(x[0]))
    assert sorted(refs.dataset_ids()) == sorted([head.id, other.id])


def test_creating_a_name_twice_gives_the_first(refs: Refs) -> None:
    first = refs.create_dataset("ds", created_by="me")
    assert refs.create_dataset("ds", created_by="you") == first
    assert refs.dataset_ids() == [first.id]
    with pytest.raises(ConflictError, match="'ds' is taken"):
        refs.create_dataset("ds", created_by="you", exclusive=True)


def test_what_does_not_exist(refs: Refs) -> None:
    for call in (refs.find, refs.resolve_name):
        with pytest.raises(NotFoundError, match="no dataset or collection 'nope'"):
            call("nope")
    with pytest.raises(NotFoundError):
        refs.rename("nope", "other")
    head = refs.create_dataset("ds", created_by="me")
    with pytest.raises(NotFoundError):
        refs.read_version(head.id, 1)


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "ä", "a b", "x" * 201, "a\n", "../x"])
def test_illegal_names(refs: Refs, name: str) -> None:
    with pytest.raises(UsageError, match="illegal name"):
        refs.create_dataset(name, created_by="me")
    with pytest.raises(UsageError, match="illegal name"):
        refs.find(name)
    refs.create_dataset("ds", created_by="me")
    with pytest.raises(UsageError, match="illegal name"):
        refs.rename("ds", name)


def test_tags() -> None:
    assert all(map(is_tag, ["a", "v1", "1a", "-", "A_b-c"]))
    assert not any(map(is_tag, ["", "1", "007", "latest", "a.b", "a b", "é", "x" * 201]))


def test_commit_numbers(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")
    assert [refs.commit_version(head.id, build).number for _ in range(12)] == list(range(1, 13))
    assert refs.versions(head.id) == list(range(1, 13))
    assert refs.read_version(head.id, 10).number == 10
    assert refs.find("ds").last_version == 12


def test_commit_changes_the_head_in_the_same_swap(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")
    refs.commit_version(head.id, build, also=lambda head, number: msgspec.structs.replace(head, tags={"good": number}))
    found = refs.find("ds")
    assert (found.tags, found.last_version) == ({"good": 1}, 1)


def test_numbers_are_not_used_twice(refs: Refs, backend: Backend) -> None:
    head = refs.create_dataset("ds", created_by="me")
    for _ in range(3):
        refs.commit_version(head.id, build)
    refs.delete_versions(head.id, lambda _, active: active[1:])
    backend.delete([layout.version_key(head.id, number) for number in (2, 3)])
    assert refs.commit_version(head.id, build).number == 4


def test_delete_versions(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")
    for _ in range(3):
        refs.commit_version(head.id, build)
    refs.update_head(head.id, lambda h: msgspec.structs.replace(h, tags={"a": 1, "b": 2}))
    head = refs.delete_versions(head.id, lambda _, active: [2])
    assert not head.deleted
    assert [is_active(head, number) for number in (1, 2, 3)] == [True, False, True]
    assert head.tags == {"a": 1}
    with pytest.raises(NotFoundError, match="version 2 of 'ds'"):
        refs.delete_versions(head.id, lambda _, active: [2])
    assert refs.delete_versions(head.id, lambda _, active: active).deleted
    with pytest.raises(NotFoundError):
        refs.find("ds")
    assert list(refs.list_names()) == []
    with pytest.raises(NotFoundError):
        refs.update_head(head.id, lambda h: msgspec.structs.replace(h, labels={"x": 1}))


def test_a_deleted_name_is_free(refs: Refs) -> None:
    old = refs.create_dataset("ds", created_by="me")
    refs.commit_version(old.id, build)
    refs.delete_dataset(old.id)
    new = refs.create_dataset("ds", created_by="me", exclusive=True)
    assert new.id != old.id
    assert refs.commit_version(new.id, build).number == 1
    with pytest.raises(NotFoundError):
        refs.commit_version(old.id, build)


def test_a_name_that_leads_to_a_deleted_dataset_is_free(refs: Refs) -> None:
    old = refs.create_dataset("ds", created_by="me")
    refs.update_head(old.id, lambda head: msgspec.structs.replace(head, deleted=True))
    with pytest.raises(NotFoundError):
        refs.find("ds")
    assert refs.create_dataset("ds", created_by="me", exclusive=True).id != old.id


def test_deletion_between_commit_and_fence(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")

    def delete_first(number: int, write_id: str) -> VersionRecord:
        refs.delete_dataset(head.id)
        return build(number, write_id)

    with pytest.raises(ConflictError, match="'ds' was deleted while the upload ran"):
        refs.commit_version(head.id, delete_first)


def test_deletion_sees_a_commit_that_comes_between(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")
    refs.commit_version(head.id, build)
    seen: list[list[int]] = []

    def choose(_: Head, active: list[int]) -> list[int]:
        seen.append(active)
        if len(seen) == 1:
            refs.commit_version(head.id, build)
        return [1]

    assert not refs.delete_versions(head.id, choose).deleted
    assert seen == [[1], [1, 2]]
    assert is_active(refs.find("ds"), 2)


def test_rename(refs: Refs) -> None:
    head = refs.create_dataset("old", created_by="me")
    refs.commit_version(head.id, build)
    other = refs.create_dataset("other", created_by="me")
    with pytest.raises(ConflictError, match="'other' is taken"):
        refs.rename("old", "other")
    assert refs.rename("old", "new").name == "new"
    assert refs.rename("new", "new").name == "new"
    assert dict(refs.list_names()) == {"new": head.id, "other": other.id}
    with pytest.raises(NotFoundError):
        refs.find("old")
    assert refs.commit_version(head.id, build).number == 2
    refs.rename("other", "old")
    refs.rename("new", "other")
    assert dict(refs.list_names()) == {"old": other.id, "other": head.id}


def test_an_alias_can_be_read_and_the_rename_finished(refs: Refs, backend: Backend) -> None:
    head = refs.create_dataset("old", created_by="me")
    backend.put(
        layout.name_key("new"),
        [record.encode("name", NameRecord(name="new", id=head.id, write_id="w"))],
        condition=Absent(),
    )
    assert refs.find("new").name == "old"
    with pytest.raises(ConflictError, match="unfinished rename of 'old'"):
        refs.rename("new", "third")
    assert refs.rename("old", "new").name == "new"
    assert dict(refs.list_names()) == {"new": head.id}


def test_collections(refs: Refs) -> None:
    member = Member(layout.new_dataset_id(), 3)
    head = refs.create_dataset("c", created_by="me", type=DatasetType.COLLECTION, members=[member])
    assert refs.find("c").members == [member]
    assert refs.delete_dataset(head.id).deleted
    with pytest.raises(NotFoundError):
        refs.find("c")


def test_purge(refs: Refs, backend: Backend) -> None:
    head = refs.create_dataset("ds", created_by="me")
    refs.commit_version(head.id, build)
    with pytest.raises(UsageError, match="not deleted"):
        refs.purge(head.id)
    refs.delete_dataset(head.id)
    refs.purge(head.id)
    assert refs.dataset_ids() == []
    assert [info.key for info in backend.list("")] == ["names/ds"]


def test_update_without_change_writes_nothing(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")
    assert refs.update_head(head.id, lambda h: h) == head
    assert refs.try_update_head(head.id, lambda h: h)
    assert refs.read_head(head.id)[0] == head


def test_one_attempt_gives_way(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")

    def slow(h: Head) -> Head:
        refs.update_head(head.id, lambda h: msgspec.structs.replace(h, labels={"fast": 1}))
        return msgspec.structs.replace(h, labels={"slow": 1})

    assert not refs.try_update_head(head.id, slow)
    assert refs.find("ds").labels == {"fast": 1}
    assert refs.try_update_head(head.id, lambda h: msgspec.structs.replace(h, labels={}))


def test_32_racing_committers(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")
    numbers: list[int] = []

    def commit(worker: int) -> None:
        tag = f"w{worker}"

        def tagged(head: Head, number: int) -> Head:
            return msgspec.structs.replace(head, tags={**head.tags, tag: number})

        numbers.append(refs.commit_version(head.id, build, also=tagged if worker % 2 else None).number)

    assert together(32, commit) == []
    assert sorted(numbers) == list(range(1, 33))
    assert refs.versions(head.id) == list(range(1, 33))
    head = refs.find("ds")
    assert head.last_version == 32
    assert set(head.tags) == {f"w{worker}" for worker in range(1, 32, 2)}
    assert len(set(head.tags.values())) == 16


def test_32_racing_creators(refs: Refs) -> None:
    ids: list[str] = []
    assert together(32, lambda _: ids.append(refs.create_dataset("ds", created_by="me").id)) == []
    assert len(set(ids)) == 1
    assert refs.dataset_ids() == ids[:1]


def test_racing_exclusive_creators(refs: Refs) -> None:
    made: list[str] = []
    errors = together(8, lambda _: made.append(refs.create_dataset("c", created_by="me", exclusive=True).id))
    assert len(made) == 1
    assert len(errors) == 7
    assert all(isinstance(error, ConflictError) for error in errors)


def test_racing_renames_leave_one_name(refs: Refs) -> None:
    head = refs.create_dataset("old", created_by="me")
    errors = together(8, lambda worker: void(refs.rename("old", f"new{worker}")))
    assert len(errors) == 7
    assert all(isinstance(error, (ConflictError, NotFoundError)) for error in errors)
    names = dict(refs.list_names())
    assert names == {refs.read_head(head.id)[0].name: head.id}


def test_renames_there_and_back_lose_nothing(refs: Refs) -> None:
    head = refs.create_dataset("a", created_by="me")

    def swing(worker: int) -> None:
        for _ in range(10):
            try:
                refs.rename(*(("a", "b") if worker % 2 else ("b", "a")))
            except (ConflictError, NotFoundError):
                continue

    assert together(6, swing) == []
    real = refs.read_head(head.id)[0].name
    assert refs.find(real).id == head.id


def test_commits_race_renames(refs: Refs) -> None:
    head = refs.create_dataset("n0", created_by="me")

    def work(worker: int) -> None:
        if worker:
            refs.commit_version(head.id, build)
        else:
            for step in range(5):
                refs.rename(f"n{step}", f"n{step + 1}")

    assert together(9, work) == []
    assert refs.versions(refs.resolve_name("n5")) == list(range(1, 9))


def test_commits_race_deletion(refs: Refs) -> None:
    """What was reported as committed is there, or was deleted by a deletion that saw it."""
    for _ in range(10):
        head = refs.create_dataset("ds", created_by="me")
        refs.commit_version(head.id, build)
        done: list[int] = []

        def work(worker: int, head: Head = head, done: list[int] = done) -> None:
            if worker:
                done.append(refs.commit_version(head.id, build).number)
            else:
                refs.delete_versions(head.id, lambda _, active: [1])

        errors = together(4, work)
        after, _ = refs.read_head(head.id)
        assert all(isinstance(error, (ConflictError, NotFoundError)) for error in errors)
        if after.deleted:
            assert done == []
        else:
            assert len(done) == 3
            assert all(is_active(after, number) for number in done)
            refs.delete_dataset(head.id)


def void(_: object) -> None:
    """Drop a value."""


# ---- a bucket that lies


def plant(backend: Backend, key: str, kind: str, value: msgspec.Struct) -> None:
    backend.put(key, [record.encode(kind, value)])


def a_head(**changes: object) -> Head:
    head = Head(
        id=layout.new_dataset_id(),
        name="ds",
        type=DatasetType.DATASET,
        created_at=now(),
        created_by="me",
        write_id="w",
    )
    return msgspec.structs.replace(head, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../x"}, "name is illegal"),
        ({"tags": {"latest": 1}}, "illegal tag"),
        ({"tags": {"7": 1}}, "illegal tag"),
        ({"tags": {"a": 0}}, "illegal tag"),
        ({"versions": {-1: VersionState()}}, "illegal version number"),
        ({"last_version": -5}, "illegal version number"),
        ({"members": [Member("../../x", 1)], "type": DatasetType.COLLECTION}, "illegal member"),
        ({"members": [Member("A" * 22, 1), Member("A" * 22, 2)], "type": DatasetType.COLLECTION}, "twice"),
        ({"members": [Member("A" * 22, 1)]}, "dataset with members"),
        ({"type": DatasetType.COLLECTION, "tags": {"a": 1}}, "collection with versions"),
        ({"created_at": "yesterday"}, "time is illegal"),
        ({"created_at": "2026-01-01T00:00:00"}, "time is illegal"),
    ],
)
def test_impossible_heads(changes: dict[str, object], message: str) -> None:
    backend = MemoryBackend()
    head = a_head(**changes)
    plant(backend, layout.head_key(head.id), "head", head)
    with pytest.raises(FormatError, match=message) as caught:
        Refs(backend).read_head(head.id)
    assert layout.head_key(head.id) in caught.value.message


def test_a_head_of_another_dataset() -> None:
    backend = MemoryBackend()
    head, other = a_head(), layout.new_dataset_id()
    plant(backend, layout.head_key(other), "head", head)
    with pytest.raises(FormatError, match=rf"datasets/{other}/head .* belongs to dataset '{head.id}'"):
        Refs(backend).read_head(other)


def test_a_version_with_another_number() -> None:
    backend = MemoryBackend()
    head = a_head()
    plant(backend, layout.version_key(head.id, 2), "version", build(1, "w"))
    with pytest.raises(FormatError, match=r"versions/2 .* it is version 1"):
        Refs(backend).read_version(head.id, 2)


@pytest.mark.parametrize("field", ["manifest", "checksum"])
@pytest.mark.parametrize("value", ["", "00", "../" * 22, "G" * 64, "A" * 64])
def test_a_version_with_a_digest_that_is_none(field: str, value: str) -> None:
    backend = MemoryBackend()
    head = a_head()
    bad = msgspec.structs.replace(build(1, "w"), **{field: value})
    plant(backend, layout.version_key(head.id, 1), "version", bad)
    with pytest.raises(FormatError, match=r"versions/1 .* illegal digest"):
        Refs(backend).read_version(head.id, 1)


def test_a_name_record_of_another_name() -> None:
    backend = MemoryBackend()
    plant(backend, "names/a", "name", NameRecord(name="b", id=layout.new_dataset_id(), write_id="w"))
    with pytest.raises(FormatError, match=r"names/a .* belongs to the name 'b'"):
        Refs(backend).find("a")


def test_a_name_that_leads_out_of_the_bucket() -> None:
    backend = MemoryBackend()
    plant(backend, "names/a", "name", NameRecord(name="a", id="../../../../etc/passwd", write_id="w"))
    with pytest.raises(FormatError, match="names/a"):
        Refs(backend).find("a")


@pytest.mark.parametrize("data", [b"", b"{}", b"casstore-record 1 name 00\n{}", b"\xff" * 100])
def test_damaged_records_name_their_key(data: bytes) -> None:
    backend = MemoryBackend()
    backend.put("names/a", [data])
    with pytest.raises(FormatError, match=r"^names/a: "):
        Refs(backend).find("a")
    with pytest.raises(FormatError, match=r"^names/a: "):
        list(Refs(backend).list_names())


def test_a_record_of_another_type() -> None:
    backend = MemoryBackend()
    head = a_head()
    plant(backend, "names/ds", "head", head)
    with pytest.raises(FormatError, match="names/ds"):
        Refs(backend).find("ds")


def test_foreign_objects_are_named() -> None:
    backend = MemoryBackend()
    refs = Refs(backend)
    head = refs.create_dataset("ds", created_by="me")
    backend.put(f"datasets/{head.id}/versions/01", [b"x"])
    with pytest.raises(FormatError, match="versions/01"):
        refs.versions(head.id)
    backend.put("names/a.b", [b"x"])
    with pytest.raises(FormatError, match=r"names/a\.b"):
        list(refs.list_names())


def test_a_lost_head_is_damage_not_absence() -> None:
    backend = MemoryBackend()
    refs = Refs(backend)
    head = refs.create_dataset("ds", created_by="me")
    refs.commit_version(head.id, build)
    backend.delete([layout.head_key(head.id)])
    with pytest.raises(IntegrityError, match=f"datasets/{head.id}/head is missing"):
        refs.find("ds")
    with pytest.raises(IntegrityError):
        refs.create_dataset("ds", created_by="me")


def test_no_writes_without_conditions() -> None:
    class Plain(MemoryBackend):
        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(conditional_put=False, local=False)

    refs = Refs(Plain())
    with pytest.raises(UsageError, match="no conditional writes"):
        refs.create_dataset("ds", created_by="me")
    assert list(refs.list_names()) == []


def test_illegal_values_are_never_written(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")
    with pytest.raises(ValueError, match="illegal tag"):
        refs.update_head(head.id, lambda h: msgspec.structs.replace(h, tags={"latest": 1}))
    with pytest.raises(ValueError, match="illegal version"):
        refs.commit_version(head.id, lambda n, w: msgspec.structs.replace(build(n, w), manifest="x"))
    with pytest.raises(ValueError, match="number and the write id"):
        refs.commit_version(head.id, lambda n, w: build(n + 1, w))


# ---- fences


def late(backend: Backend, head: Head, number: int) -> None:
    """Put the record of a writer who stood still since it read this head."""
    version = msgspec.structs.replace(build(number, "late"), epoch=head.epoch)
    backend.put(layout.version_key(head.id, number), [record.encode("version", version)], condition=Absent())


def test_a_fence_keeps_what_is_committed(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")
    for _ in range(3):
        refs.commit_version(head.id, build)
    fenced = refs.fence(head.id)
    assert (fenced.epoch, fenced.last_version) == (1, 3)
    assert refs.versions(head.id) == [1, 2, 3]
    assert refs.commit_version(head.id, build).epoch == 1
    assert refs.versions(head.id) == [1, 2, 3, 4]


def test_a_fence_keeps_what_was_put_and_not_yet_swapped(refs: Refs, backend: Backend) -> None:
    head = refs.create_dataset("ds", created_by="me")
    late(backend, head, 1)
    assert refs.versions(head.id) == [1]
    assert refs.fence(head.id).last_version == 1
    assert refs.versions(head.id) == [1]


def test_a_late_version_is_void_and_stays_so(refs: Refs, backend: Backend) -> None:
    head = refs.create_dataset("ds", created_by="me")
    refs.commit_version(head.id, build)
    refs.fence(head.id)
    late(backend, head, 2)
    assert refs.versions(head.id) == [1]
    assert refs.numbers(head.id) == [1, 2]
    assert refs.commit_version(head.id, build).number == 3
    assert [number for number in refs.versions(head.id) if is_active(refs.find("ds"), number)] == [1, 3]
    late(backend, head, 4)
    fenced = refs.fence(head.id)
    assert (fenced.last_version, fenced.epoch) == (4, 2)
    late(backend, head, 5)
    head = refs.delete_versions(head.id, lambda _, active: [3] if active == [1, 3] else [])
    assert [number for number in refs.versions(head.id) if is_active(head, number)] == [1]
    assert head.last_version == 5


def test_a_commit_that_was_fenced_off_starts_again(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")
    looked: list[int] = []

    def fence_first(number: int, write_id: str) -> VersionRecord:
        if number == 1:
            refs.fence(head.id)
        return build(number, write_id)

    version = refs.commit_version(head.id, fence_first, validate=lambda head: looked.append(head.epoch))
    assert looked == [0, 1]
    assert (version.number, version.epoch) == (2, 1)
    assert not is_active(refs.find("ds"), 1)


def test_what_a_commit_finds_gone_is_not_committed(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")

    def gone(_: Head) -> None:
        raise ConflictError("gone")

    with pytest.raises(ConflictError, match="gone"):
        refs.commit_version(head.id, build, validate=gone)
    assert refs.numbers(head.id) == []


def test_deleted_heads_are_fenced_and_purged_ones_are_not_there(refs: Refs) -> None:
    head = refs.create_dataset("ds", created_by="me")
    refs.commit_version(head.id, build)
    refs.delete_dataset(head.id)
    assert refs.fence(head.id).deleted
    refs.purge(head.id)
    with pytest.raises(NotFoundError):
        refs.fence(head.id)


def test_a_commit_into_a_purged_dataset_leaves_nothing(refs: Refs, backend: Backend) -> None:
    head = refs.create_dataset("ds", created_by="me")

    def purge_first(number: int, write_id: str) -> VersionRecord:
        refs.delete_dataset(head.id)
        refs.purge(head.id)
        return build(number, write_id)

    with pytest.raises(ConflictError, match="'ds' was deleted while the upload ran"):
        refs.commit_version(head.id, purge_first)
    assert [info.key for info in backend.list("")] == ["names/ds"]


def test_damage_of_one_is_told_and_the_others_are_shown(refs: Refs, backend: Backend) -> None:
    good, bad = (refs.create_dataset(name, created_by="me") for name in ("good", "bad"))
    backend.put(layout.head_key(bad.id), [b"x"])
    backend.put("names/no.name", [b"x"])
    told: list[str] = []
    assert [head.id for head in refs.heads(lambda error: told.append(error.message))] == [good.id]
    assert sorted(message.split()[0].rstrip(":") for message in told) == [layout.head_key(bad.id), "names/no.name"]
    with pytest.raises(FormatError):
        refs.heads()


def test_a_record_is_not_taken_into_memory_before_its_size_is_known() -> None:
    log = CallLog()
    backend = TraceBackend(MemoryBackend(), log)
    head = a_head()
    backend.put(layout.head_key(head.id), [b"x" * (record.MAX_RECORD + 1)])
    with pytest.raises(FormatError, match="the limit is"):
        Refs(backend).read_head(head.id)
    assert [(call.operation, call.size) for call in log.calls] == [("put", record.MAX_RECORD + 1), ("get", 0)]
