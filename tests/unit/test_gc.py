"""Collecting garbage: what goes, what stays, and what is never guessed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from casstore.backend.base import Backend
from casstore.backend.memory import MemoryBackend
from casstore.backend.objects import ObjectBackend
from casstore.backend.registry import open_backend
from casstore.dataset import Bucket
from casstore.errors import ConflictError, FormatError, IntegrityError, NotFoundError
from casstore.format import record
from casstore.model import VersionStatus
from casstore.remote.local import LocalClient
from casstore.repo import layout, trash
from casstore.repo.gc.live import Walker
from casstore.repo.gc.plan import Plan, Reason, Rules
from casstore.repo.gc.run import Collector, Outcome
from casstore.repo.index import Index
from casstore.repo.leases import Lease
from casstore.repo.store import Store
from casstore.repo.trash import TrashState
from casstore.repo.verify import verify_store

NOW = Rules(grace=0, margin=0)
DAY = 24 * 3600.0


@pytest.fixture(params=["memory", "file", "objects"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "memory":
        return MemoryBackend()
    if request.param == "file":
        return open_backend(f"file://{tmp_path / 'store'}", create=True)
    (tmp_path / "objects").mkdir()
    return ObjectBackend(LocalClient(str(tmp_path / "objects"), durable=False))


@pytest.fixture
def bucket(backend: Backend) -> Bucket:
    return Bucket(Store.open(backend, create=True), name="b", user="u")


def upload(bucket: Bucket, name: str, folder: Path, files: dict[str, bytes]) -> int:
    folder = folder / os.urandom(4).hex()
    folder.mkdir()
    for path, data in files.items():
        (folder / path).write_bytes(data)
    return bucket.upload(name, [str(folder / path) for path in files], force_new_version=True).version.number


def collect(
    bucket: Bucket, rules: Rules = NOW, *, after: float = 0, clock: Callable[[], float] | None = None
) -> tuple[Plan, Outcome]:
    """Run a collection, ``after`` so many seconds."""
    import time

    with Collector(bucket.store, rules=rules, clock=clock or (lambda: time.time() + after)) as collector:
        plan = collector.plan()
        return plan, collector.run(plan)


def sizes(bucket: Bucket, *prefixes: str) -> int:
    wanted = prefixes or (layout.PACKS, layout.MANIFESTS)
    return sum(info.size for prefix in wanted for info in bucket.store.backend.list(prefix))


def keys(bucket: Bucket, prefix: str) -> list[str]:
    return [info.key for info in bucket.store.backend.list(prefix)]


def content(bucket: Bucket, name: str, tag: str | None = None) -> dict[str, bytes]:
    with Store.open(_shared(bucket)) as store:
        tree = store.tree(bucket.resolve(name, tag).manifest)
        return {
            os.fsdecode(entry.path): b"".join(bytes(chunk) for chunk in store.read_chunks(list(tree.chunks(entry))))
            for entry in tree.entries()
        }


def _shared(bucket: Bucket) -> Backend:
    class Kept:
        """A back end that survives the store that it is lent to."""

        def __getattr__(self, name: str) -> object:
            return (lambda: None) if name == "close" else getattr(bucket.store.backend, name)

    return Kept()  # type: ignore[return-value]


def assert_whole(bucket: Bucket) -> None:
    with Store.open(_shared(bucket)) as store:
        assert verify_store(store).problems == []


def test_a_store_without_garbage_is_left_alone(bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "d", tmp_path, {"a": os.urandom(300_000)})
    before = keys(bucket, "")
    plan, outcome = collect(bucket)
    assert plan.empty
    assert plan.needed == plan.total
    assert plan.kept == []
    assert outcome.swept.size == 0
    assert keys(bucket, "") == before


def test_deleting_a_dataset_and_collecting_gives_all_of_its_space_back(bucket: Bucket, tmp_path: Path) -> None:
    kept = {"b": os.urandom(200_000)}
    upload(bucket, "kept", tmp_path, kept)
    before = sizes(bucket)
    upload(bucket, "gone", tmp_path, {"a": os.urandom(900_000)})
    more = sizes(bucket) - before
    bucket.delete("gone", all_versions=True)
    plan, outcome = collect(bucket)
    assert plan.frees == outcome.swept.size == more > 900_000
    assert outcome.swept.datasets == 1
    assert sizes(bucket) == before
    assert content(bucket, "kept") == kept
    assert len(keys(bucket, layout.DATASETS)) == 2
    assert_whole(bucket)
    assert collect(bucket)[0].empty


def test_deleting_one_version_gives_back_what_only_it_had(bucket: Bucket, tmp_path: Path) -> None:
    shared, second = os.urandom(500_000), {"new": os.urandom(70_000)}
    upload(bucket, "d", tmp_path, {"shared": shared, "first": os.urandom(400_000)})
    upload(bucket, "d", tmp_path, {"shared": shared, **second})
    before = sizes(bucket)
    bucket.delete("d", tag="1")
    plan, outcome = collect(bucket, Rules(grace=0, margin=0, repack_below=0.99))
    assert outcome.swept.versions == 1
    assert before - sizes(bucket) > 350_000
    assert outcome.swept.size - outcome.swept.written == before - sizes(bucket)
    assert content(bucket, "d", "2") == {"shared": shared, **second}
    assert_whole(bucket)
    assert keys(bucket, layout.versions_prefix(bucket.refs.find("d").id)) == [
        layout.version_key(bucket.refs.find("d").id, 2)
    ]
    assert upload(bucket, "d", tmp_path, {"x": b"x"}) == 3
    assert plan.sparse


def test_a_pack_that_is_mostly_needed_stays_whole(bucket: Bucket, tmp_path: Path) -> None:
    shared = os.urandom(500_000)
    upload(bucket, "d", tmp_path, {"shared": shared, "first": os.urandom(200_000)})
    upload(bucket, "d", tmp_path, {"shared": shared})
    bucket.delete("d", tag="1")
    plan, _ = collect(bucket)
    assert [kept.reason for kept in plan.kept] == [Reason.SHARE]
    assert 190_000 < plan.kept[0].size < 300_000
    assert content(bucket, "d") == {"shared": shared}
    plan, outcome = collect(bucket, Rules(grace=0, margin=0, repack_below=0.8))
    assert outcome.swept.packs == 1
    assert outcome.swept.moved > 490_000
    assert content(bucket, "d") == {"shared": shared}
    assert_whole(bucket)


def test_copies_that_racing_uploads_left_become_one(backend: Backend, tmp_path: Path) -> None:
    first = Bucket(Store.open(backend, create=True), name="b", user="u")
    other = Bucket(Store.open(backend), name="b", user="v")
    other.store.index.load()  # it does not see what is stored from now on
    data = os.urandom(600_000)
    upload(first, "one", tmp_path, {"same": data, "x": b"some more"})
    upload(other, "two", tmp_path, {"same": data, "y": os.urandom(300_000)})
    before = sizes(first)
    assert before > 1_500_000
    collect(first, Rules(grace=0, margin=0, repack_below=0.9))
    assert before - sizes(first) > 590_000
    assert content(first, "one")["same"] == content(first, "two")["same"] == data
    assert_whole(first)


def test_nothing_goes_before_the_grace_period_is_over(bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "d", tmp_path, {"a": os.urandom(300_000)})
    bucket.delete("d", all_versions=True)
    rules = Rules(grace=DAY)
    plan, outcome = collect(bucket, rules)
    assert plan.frees == 0
    assert [kept.reason for kept in plan.kept] == [Reason.GRACE]
    assert plan.kept[0].until == pytest.approx(plan.now + DAY, abs=60)
    before = sizes(bucket)
    plan, outcome = collect(bucket, rules, after=DAY + 60)  # old enough to be marked
    assert outcome.marked_size > 300_000
    assert outcome.swept.size == 0
    assert sizes(bucket) == before
    states = [listed.record.state for listed in trash.list_trash(bucket.store.backend) if listed.record.packs]
    assert states == [TrashState.MARKED]
    plan, outcome = collect(bucket, rules, after=DAY - 60)
    assert [marked.packs > 0 for marked in plan.waiting] == [True]
    assert not plan.due
    assert sizes(bucket) == before
    plan, outcome = collect(bucket, rules, after=3 * DAY)
    assert plan.due
    assert outcome.swept.size == before
    assert sizes(bucket) == 0
    assert keys(bucket, layout.DATASETS) == []


def test_what_is_needed_again_is_taken_off_the_record(bucket: Bucket, tmp_path: Path) -> None:
    files = {"a": os.urandom(300_000)}
    upload(bucket, "d", tmp_path, files)
    bucket.delete("d", all_versions=True)
    rules = Rules(grace=DAY)
    collect(bucket, rules, after=2 * DAY)
    upload(bucket, "again", tmp_path, files)
    _, outcome = collect(bucket, rules, after=4 * DAY)
    assert outcome.swept.rescued >= 1
    assert content(bucket, "again") == files
    assert_whole(bucket)


def test_what_comes_to_be_needed_during_the_deletion_is_copied_or_kept(bucket: Bucket, tmp_path: Path) -> None:
    small = os.urandom(40_000)
    files = {"large": os.urandom(700_000), "small": small}
    upload(bucket, "d", tmp_path, files)
    upload(bucket, "e", tmp_path, {"other": (other := os.urandom(500_000))})
    bucket.delete("d", all_versions=True)
    bucket.delete("e", all_versions=True)
    with Collector(bucket.store, rules=NOW) as collector:
        plan = collector.plan()
        # Committed between the plan and the deletion, by somebody else.
        late = Bucket(Store.open(_shared(bucket)), name="b", user="v")
        upload(late, "f", tmp_path, {"small": small})
        upload(late, "g", tmp_path, {"other": other})
        outcome = collector.run(plan)
    assert outcome.swept.rescued >= 1
    assert outcome.swept.moved > 0
    assert content(bucket, "f") == {"small": small}
    assert content(bucket, "g") == {"other": other}
    assert sizes(bucket) < 700_000
    assert_whole(bucket)


def test_a_running_upload_keeps_what_was_stored_since_it_began(bucket: Bucket, tmp_path: Path) -> None:
    with Lease.acquire(bucket.store.backend, kind="upload", user="ann", dataset="other", heartbeat=False):
        upload(bucket, "d", tmp_path, {"a": os.urandom(300_000)})
        bucket.delete("d", all_versions=True)
        plan, _ = collect(bucket, Rules(grace=0, margin=60))
        assert [kept.reason for kept in plan.kept] == [Reason.LEASE]
        holder = plan.kept[0].holder
        assert holder is not None
        assert holder.who.startswith("ann on ")
        assert holder.what == "upload to other"
        assert sizes(bucket) > 300_000
    collect(bucket)
    assert sizes(bucket) == 0


def test_an_expired_lease_keeps_nothing_and_is_removed_in_the_end(bucket: Bucket, tmp_path: Path) -> None:
    lease = Lease.acquire(bucket.store.backend, kind="upload", heartbeat=False)
    upload(bucket, "d", tmp_path, {"a": os.urandom(300_000)})
    bucket.delete("d", all_versions=True)
    plan, _ = collect(bucket, NOW, after=3600)
    assert not plan.kept
    assert sizes(bucket) == 0
    assert layout.lease_key(lease.id) in keys(bucket, layout.LEASES)
    collect(bucket, NOW, after=3 * DAY)
    assert keys(bucket, layout.LEASES) == []


def test_a_reader_keeps_what_it_reads_and_nothing_else(bucket: Bucket, tmp_path: Path) -> None:
    data = os.urandom(300_000)
    upload(bucket, "d", tmp_path, {"a": data})
    manifest = bucket.resolve("d").manifest
    with Lease.acquire(bucket.store.backend, kind="mount", dataset="d:1", reads=[manifest], heartbeat=False):
        upload(bucket, "e", tmp_path, {"b": os.urandom(200_000)})
        for name in ("d", "e"):
            bucket.delete(name, all_versions=True)
        collect(bucket, Rules(grace=0, margin=60))
        assert 300_000 < sizes(bucket) < 400_000, "what was stored since it began is no concern of a reader"
        assert bucket.refs.dataset_ids() == []
        with Store.open(_shared(bucket)) as store:
            tree = store.tree(manifest)
            (entry,) = tree.entries()
            assert b"".join(bytes(chunk) for chunk in store.read_chunks(list(tree.chunks(entry)))) == data
        upload(bucket, "d", tmp_path, {"c": os.urandom(1000)})
        collect(bucket)
        assert sizes(bucket) > 300_000
    collect(bucket)
    assert sizes(bucket) < 10_000


def test_a_reader_that_comes_between_mark_and_deletion_is_seen(bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "d", tmp_path, {"a": os.urandom(300_000)})
    manifest = bucket.resolve("d").manifest
    bucket.delete("d", all_versions=True)
    _, outcome = collect(bucket, Rules(grace=DAY, margin=0), after=2 * DAY)
    assert (outcome.marked_packs > 0, outcome.swept.packs) == (True, 0)
    with Lease.acquire(bucket.store.backend, kind="mount", reads=[manifest], heartbeat=False):
        _, outcome = collect(bucket)
        assert outcome.swept.rescued > 0
        assert sizes(bucket) > 300_000
    collect(bucket)
    assert sizes(bucket) == 0


def test_a_reader_of_what_is_gone_or_damaged_hinders_nobody(bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "d", tmp_path, {"a": os.urandom(300_000)})
    gone = bucket.resolve("d").manifest
    bucket.delete("d", all_versions=True)
    collect(bucket)
    upload(bucket, "e", tmp_path, {"a": os.urandom(300_000)})
    manifest = bucket.resolve("e").manifest
    bucket.delete("e", all_versions=True)
    bucket.store.backend.delete(keys(bucket, layout.PACKS))
    with Lease.acquire(bucket.store.backend, kind="mount", reads=[gone, manifest, bytes(32)], heartbeat=False):
        collect(bucket)
    collect(bucket)
    assert sizes(bucket) == 0


def test_one_collection_at_a_time(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector(bucket.store, rules=NOW, user="ann"):
        monkeypatch.setattr("casstore.repo.gc.run.os.getpid", lambda: 1)
        with pytest.raises(ConflictError, match="another collection runs: ann on"), Collector(bucket.store):
            pass
        monkeypatch.undo()
        with Collector(bucket.store):  # as after a crash of this process: the other has ended
            pass


def test_two_collections_at_once_lose_nothing(bucket: Bucket, tmp_path: Path) -> None:
    data = os.urandom(400_000)
    upload(bucket, "d", tmp_path, {"a": data, "b": os.urandom(600_000)})
    upload(bucket, "d", tmp_path, {"a": data})
    bucket.delete("d", tag="1")
    with Collector(bucket.store, rules=NOW) as one, Collector(bucket.store, rules=NOW) as two:
        plans = one.plan(), two.plan()
        two.run(plans[1])
        one.run(plans[0])
    assert content(bucket, "d") == {"a": data}
    assert_whole(bucket)


def test_what_nobody_can_read_stops_everything(bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "d", tmp_path, {"a": os.urandom(300_000)})
    upload(bucket, "gone", tmp_path, {"b": os.urandom(300_000)})
    bucket.delete("gone", all_versions=True)
    backend = bucket.store.backend
    version = bucket.resolve("d")
    for key, named in (
        (layout.manifest_key(version.manifest), "version 1 of 'd'"),
        (layout.version_key(version.dataset_id, 1), "version 1 of 'd'"),
        (layout.head_key(version.dataset_id), "head"),
    ):
        whole = backend.get(key).data
        for damage in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), None):
            before = [k for k in keys(bucket, "") if k != key]
            backend.delete([key])
            if damage is not None:
                backend.put(key, [damage])
            if damage is None and key == layout.version_key(version.dataset_id, 1):
                continue  # a version that is not listed: `verify` finds out
            with pytest.raises(IntegrityError, match=named) as caught:
                collect(bucket)
            assert "osmo store repair" in (caught.value.hint or "")
            assert [k for k in keys(bucket, "") if k != key] == before
        backend.delete([key])
        backend.put(key, [whole])
    collect(bucket)
    assert_whole(bucket)


def test_a_version_that_can_not_be_read_is_no_matter_once_it_is_deleted(bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "d", tmp_path, {"a": os.urandom(300_000)})
    kept = {"b": os.urandom(200_000)}
    upload(bucket, "d", tmp_path, kept)
    version = bucket.resolve("d", "1")
    bucket.store.backend.delete([layout.manifest_key(version.manifest)])
    with pytest.raises(IntegrityError):
        collect(bucket)
    bucket.delete("d", tag="1")
    _, outcome = collect(bucket)
    assert outcome.swept.packs >= 1
    assert content(bucket, "d") == kept


def test_a_lost_pack_stops_everything(bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "d", tmp_path, {"a": os.urandom(300_000)})
    version = bucket.resolve("d")
    tree = bucket.store.tree(version.manifest)
    chunk_id, _ = next(ref for entry in tree.entries() for ref in tree.chunks(entry))
    bucket.store.backend.delete([layout.pack_key(bucket.store.locate(chunk_id).pack_id)])
    with pytest.raises(IntegrityError, match="can't be found in any pack"):
        collect(bucket)


def test_packs_that_the_index_does_not_know_are_looked_into(bucket: Bucket, tmp_path: Path) -> None:
    kept = {"b": os.urandom(200_000)}
    upload(bucket, "kept", tmp_path, kept)
    upload(bucket, "d", tmp_path, {"a": os.urandom(300_000)})
    bucket.delete("d", all_versions=True)
    bucket.store.backend.delete(keys(bucket, layout.INDEX))
    bucket = Bucket(Store.open(_shared(bucket)), name="b", user="u")
    _, outcome = collect(bucket)
    assert outcome.swept.size > 300_000
    assert content(bucket, "kept") == kept
    assert_whole(bucket)


def test_a_pack_that_can_not_be_read_is_kept_and_told(bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "d", tmp_path, {"a": os.urandom(300_000)})
    odd = layout.pack_key(os.urandom(32))
    bucket.store.backend.put(odd, [os.urandom(5000)])
    plan, _ = collect(bucket, Rules(grace=0, margin=0))
    assert [(kept.reason, kept.packs, kept.size) for kept in plan.kept] == [(Reason.UNREADABLE, 1, 5000)]
    assert odd in keys(bucket, layout.PACKS)


def test_a_damaged_frame_is_not_given_a_new_home(bucket: Bucket, tmp_path: Path) -> None:
    shared = os.urandom(100_000)
    upload(bucket, "d", tmp_path, {"shared": shared, "first": os.urandom(400_000)})
    upload(bucket, "d", tmp_path, {"shared": shared})
    bucket.delete("d", tag="1")
    version = bucket.resolve("d")
    tree = bucket.store.tree(version.manifest)
    chunk_id, _ = next(ref for entry in tree.entries() for ref in tree.chunks(entry))
    place = bucket.store.locate(chunk_id)
    key = layout.pack_key(place.pack_id)
    data = bytearray(bucket.store.backend.get(key).data)
    data[place.offset + 5] ^= 1
    bucket.store.backend.delete([key])
    bucket.store.backend.put(key, [data])
    _, outcome = collect(bucket, Rules(grace=0, margin=0))
    assert outcome.swept.damaged == [place.pack_id]
    assert key in keys(bucket, layout.PACKS)


def test_leftovers_go(bucket: Bucket) -> None:
    backend = bucket.store.backend
    backend.put("probe/00", [b"x"])
    old = trash.create(backend, packs=[], manifests=[], versions=[], datasets=[])
    listed = trash.read_listed(backend, old)
    trash.replace(backend, listed, msgspec.structs.replace(listed.record, state=TrashState.DELETED))
    collect(bucket, NOW, after=60)
    assert len(keys(bucket, "probe/")) == 1
    collect(bucket, NOW, after=2 * DAY)
    assert keys(bucket, "probe/") == []
    assert len(keys(bucket, layout.TRASH)) == 1
    collect(bucket, NOW, after=31 * DAY)
    assert keys(bucket, layout.TRASH) == []


def test_segments_become_few_and_forget_what_is_gone(bucket: Bucket, tmp_path: Path) -> None:
    for number in range(5):
        upload(bucket, f"d{number}", tmp_path, {"a": os.urandom(100_000)})
    bucket.delete("d0", all_versions=True)
    assert len(keys(bucket, layout.INDEX)) >= 5
    collect(bucket)
    assert len(keys(bucket, layout.INDEX)) == 1
    index = Index(bucket.store.backend)
    assert {layout.pack_key(pack_id) for pack_id in index.pack_ids()} == set(keys(bucket, layout.PACKS))


def test_a_deleted_version_shows_as_such_until_it_is_collected(bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "d", tmp_path, {"a": b"1"})
    upload(bucket, "d", tmp_path, {"a": b"2"})
    bucket.delete("d", tag="1")
    info = bucket.info("d", all_states=True)
    assert [item.version.status for item in info.versions] == [VersionStatus.PENDING_DELETE, VersionStatus.READY]
    collect(bucket)
    assert [item.version.number for item in bucket.info("d", all_states=True).versions] == [2]


def test_a_reader_that_opened_the_store_before_goes_on(bucket: Bucket, tmp_path: Path) -> None:
    shared = os.urandom(300_000)
    upload(bucket, "d", tmp_path, {"shared": shared, "first": os.urandom(900_000)})
    upload(bucket, "d", tmp_path, {"shared": shared})
    reader = Bucket(Store.open(_shared(bucket)), name="b", user="r")
    reader.store.index.load()
    bucket.delete("d", tag="1")
    _, outcome = collect(bucket)
    assert outcome.swept.moved > 290_000
    target = tmp_path / "out"
    target.mkdir()
    reader.download("d", str(target))
    assert (target / "d" / "shared").read_bytes() == shared
    tree = reader.tree(reader.resolve("d"))
    assert b"".join(reader.store.read_chunks([r for e in tree.entries() for r in tree.chunks(e)])) == shared


def test_the_same_again_after_it_was_collected(bucket: Bucket, tmp_path: Path) -> None:
    files = {"a": os.urandom(300_000), "b": b"small"}
    for _ in range(3):
        upload(bucket, "d", tmp_path, files)
        assert content(bucket, "d") == files
        bucket.delete("d", all_versions=True)
        collect(bucket)
        assert sizes(bucket) == 0


def test_a_tree_that_comes_and_goes_for_ever(bucket: Bucket, tmp_path: Path) -> None:
    files = {"a": os.urandom(3000), "b": b"small"}
    for _ in range(12):  # more often than its root can be varied
        upload(bucket, "d", tmp_path, files)
        assert content(bucket, "d") == files
        bucket.delete("d", all_versions=True)
        collect(bucket)
        assert keys(bucket, layout.PACKS) == []
    assert len(keys(bucket, layout.MANIFESTS)) <= 1
    assert collect(bucket)[0].empty


def test_the_empty_tree_is_never_collected(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for _ in range(3):
        bucket.upload("d", [f"{tmp_path / 'empty'}/*"])
        assert content(bucket, "d") == {}
        bucket.delete("d", all_versions=True)
        collect(bucket)
        assert len(keys(bucket, layout.MANIFESTS)) == 1


def test_the_nodes_of_long_chunk_lists_are_needed_too(bucket: Bucket, tmp_path: Path) -> None:
    long = bytes(20 << 20) + os.urandom(40_000)  # more chunks than an entry holds itself
    upload(bucket, "d", tmp_path, {"long": long, "other": os.urandom(900_000)})
    upload(bucket, "d", tmp_path, {"long": long})
    tree = bucket.tree(bucket.resolve("d"))
    assert [node for entry in tree.entries() for node in tree.list_nodes(entry)]
    bucket.delete("d", tag="1")
    _, outcome = collect(bucket)
    assert outcome.swept.moved
    assert content(bucket, "d") == {"long": long}
    assert_whole(bucket)


def test_heads_that_nobody_came_back_to_go(bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "d", tmp_path, {"a": b"1"})
    bucket.collect("c", ["d"])
    bucket.refs.create_dataset("empty", created_by="u")
    kept = keys(bucket, layout.DATASETS)
    nameless = bucket.refs.create_dataset("nameless", created_by="u")
    bucket.store.backend.delete([layout.name_key("nameless")])
    plan, _ = collect(bucket, Rules(grace=3600, margin=0))
    assert plan.abandoned == []
    plan, outcome = collect(bucket)
    assert nameless.id in plan.abandoned
    assert len(plan.abandoned) == outcome.swept.datasets == 2
    assert len(keys(bucket, layout.DATASETS)) == len(kept) - 1
    assert bucket.resolve_all("c")
    assert upload(bucket, "empty", tmp_path, {"a": b"1"}) == 1


def test_a_record_without_a_head_is_a_damage_unless_its_dataset_was_collected(bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "d", tmp_path, {"a": b"1"})
    version = bucket.resolve("d")
    key = layout.version_key(version.dataset_id, 1)
    late = bucket.store.backend.get(key).data
    bucket.delete("d", all_versions=True)
    collect(bucket)
    bucket.store.backend.put(key, [late])  # by somebody who stood still
    _, outcome = collect(bucket)
    assert keys(bucket, layout.DATASETS) == []
    assert outcome.swept.datasets == 1


def test_an_index_that_lies_costs_nobody_his_data(bucket: Bucket, tmp_path: Path) -> None:
    files = {"a": os.urandom(10_000)}  # one chunk
    upload(bucket, "d", tmp_path, files)
    upload(bucket, "e", tmp_path, {"b": os.urandom(300_000)})
    chunks = {}
    for name in "de":
        tree = bucket.tree(bucket.resolve(name))
        (chunks[name],) = ([ref[0] for ref in tree.chunks(entry)] for entry in tree.entries())
    (wanted,) = chunks["d"]
    right = bucket.store.locate(wanted)
    other = bucket.store.locate(chunks["e"][0])
    records = [item for segment in bucket.store.index.segments() for item in segment.items()]
    wrong = [(chunk, other if chunk == wanted else place) for chunk, place in records]
    backend = bucket.store.backend
    backend.delete(keys(bucket, layout.INDEX))
    bucket = Bucket(Store.open(_shared(bucket)), name="b", user="u")
    bucket.store.index.publish(wrong)
    plan, outcome = collect(bucket)
    assert right.pack_id in {pack.pack_id for pack in plan.dead}
    assert outcome.swept.rescued == 1
    assert layout.pack_key(right.pack_id) in keys(bucket, layout.PACKS)


@pytest.mark.parametrize(
    "change",
    [
        {"packs": ["zz" * 32]},
        {"packs": ["../" + "0" * 61]},
        {"manifests": ["0" * 63]},
        {"datasets": ["../../etc"]},
        {"versions": [("..", 1)]},
        {"versions": [("0" * 22, 0)]},
        {"id": "0" * 32},
    ],
)
def test_records_of_a_collection_that_can_not_be_right(change: dict[str, object]) -> None:
    backend = MemoryBackend()
    bucket = Bucket(Store.open(backend, create=True), name="b", user="u")
    trash_id = trash.create(backend, packs=["0" * 64], manifests=[], versions=[("0" * 22, 1)], datasets=["0" * 22])
    key = layout.trash_key(trash_id)
    wrong = msgspec.structs.replace(trash.read_trash(backend, trash_id), **change)
    backend.put(key, [record.encode("trash", wrong)])
    with pytest.raises(FormatError, match="can't be right"):
        collect(bucket)
    backend.put(key, [b"noise"])
    with pytest.raises(FormatError, match=trash_id):
        collect(bucket)
    assert keys(bucket, layout.TRASH) == [key]


def test_a_walk_that_fails_hides_nothing_from_the_next_one(bucket: Bucket, tmp_path: Path) -> None:
    upload(bucket, "d", tmp_path, {f"f{number:04}": os.urandom(200) for number in range(1500)})
    tree = bucket.tree(bucket.resolve("d"))
    assert len(tree.root.children) > 1
    lost = msgspec.structs.replace(tree.root.children[-1], chunk_id=bytes(32))
    broken = msgspec.structs.replace(tree.root, children=[*tree.root.children, lost])
    walker = Walker(bucket.store)
    with pytest.raises(NotFoundError):
        walker.manifest(b"another version", broken)
    walker.manifest(tree.id, tree.root)
    wanted = {chunk_id for entry in tree.entries() for chunk_id, _ in tree.chunks(entry)} | {*tree.nodes()}
    assert all(chunk_id in walker.chunks for chunk_id in wanted)
    assert walker.manifests == {tree.id}
