"""What is collected, and why the rest is not: rules without a store."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.errors import IntegrityError
from casstore.format.index import Location, Segment, encode
from casstore.repo.gc.live import LiveChunks
from casstore.repo.gc.plan import (
    LEFTOVERS_AFTER,
    TOMBSTONES_KEPT,
    Facts,
    Holder,
    ManifestFact,
    Marked,
    PackFact,
    Reason,
    Rules,
    make_plan,
)
from casstore.repo.gc.shares import needed_bytes

NOW = 1_000_000_000.0
OLD = NOW - 10 * 24 * 3600
RULES = Rules(grace=3600, repack_below=0.5, margin=60)


def pack(needed: int | None, *, mtime: float = OLD, number: int = 0) -> PackFact:
    return PackFact(bytes([number]) * 32, 1000, mtime, needed)


@pytest.mark.parametrize(
    ("needed", "mtime", "where"),
    [
        (0, OLD, "dead"),
        (1, OLD, "sparse"),
        (499, OLD, "sparse"),
        (500, OLD, "kept"),
        (999, OLD, "kept"),
        (1000, OLD, "needed"),
        (None, OLD, "unreadable"),
        (0, NOW - 3601, "dead"),
        (0, NOW - 3599, "young"),
        (1, NOW - 3599, "young"),
        (1000, NOW - 1, "needed"),
    ],
)
def test_packs(needed: int | None, mtime: float, where: str) -> None:
    plan = make_plan(Facts(NOW, packs=[pack(needed, mtime=mtime)]), RULES)
    reasons = {"kept": Reason.SHARE, "unreadable": Reason.UNREADABLE, "young": Reason.GRACE}
    assert (len(plan.dead), len(plan.sparse)) == (where == "dead", where == "sparse")
    assert [kept.reason for kept in plan.kept] == ([reasons[where]] if where in reasons else [])
    assert plan.empty is (where not in ("dead", "sparse"))


def test_no_grace_takes_what_was_written_this_very_moment() -> None:
    assert make_plan(Facts(NOW, packs=[pack(0, mtime=NOW)]), Rules(grace=0)).dead
    assert not make_plan(Facts(NOW, packs=[pack(0, mtime=NOW + 1)]), Rules(grace=0)).dead


def test_the_threshold_can_be_moved() -> None:
    facts = Facts(NOW, packs=[pack(900)])
    assert make_plan(facts, Rules(repack_below=1.0)).sparse
    assert not make_plan(Facts(NOW, packs=[pack(1)]), Rules(repack_below=0.0)).sparse
    assert make_plan(Facts(NOW, packs=[pack(0)]), Rules(repack_below=0.0)).dead


def test_the_oldest_operation_keeps_what_is_newer_than_its_begin() -> None:
    first, second = Holder("ann on a", "upload to d", NOW - 7200), Holder("bob on b", "upload", NOW - 4000)
    packs = [pack(0, mtime=NOW - 7200 - 61, number=1), pack(0, mtime=NOW - 7200 - 59, number=2)]
    plan = make_plan(Facts(NOW, packs=packs, holders=[second, first]), RULES)
    assert [found.pack_id[0] for found in plan.dead] == [1]
    (kept,) = plan.kept
    assert (kept.reason, kept.holder, kept.until, kept.packs, kept.size) == (Reason.LEASE, first, None, 1, 1000)


def test_when_the_grace_period_ends() -> None:
    packs = [pack(0, mtime=NOW - 100, number=1), pack(400, mtime=NOW - 50, number=2)]
    (kept,) = make_plan(Facts(NOW, packs=packs), RULES).kept
    assert (kept.reason, kept.until, kept.packs, kept.size) == (Reason.GRACE, NOW - 50 + 3600, 2, 1600)


def test_what_is_on_a_record_is_not_marked_again() -> None:
    manifest = ManifestFact(b"m" * 32, 10, OLD, needed=False)
    facts = Facts(NOW, packs=[pack(0)], manifests=[manifest])
    assert make_plan(facts, RULES).manifests == [manifest]
    facts.listed = {pack(0).pack_id, manifest.manifest_id}
    plan = make_plan(facts, RULES)
    assert plan.empty
    assert (plan.total, plan.needed) == (1010, 0)


def test_records_are_due_after_the_grace_period_or_once_begun() -> None:
    marked = [
        Marked("old", NOW - 3601, 1, 10, begun=False),
        Marked("new", NOW - 3599, 1, 10, begun=False),
        Marked("begun", NOW - 5, 1, 10, begun=True),
    ]
    plan = make_plan(Facts(NOW, marked=marked), RULES)
    assert [found.id for found in plan.due] == ["old", "begun"]
    assert [found.id for found in plan.waiting] == ["new"]


def test_leftovers_go_when_they_are_old() -> None:
    facts = Facts(
        NOW,
        probes=[("p1", NOW - LEFTOVERS_AFTER - 1), ("p2", NOW - LEFTOVERS_AFTER + 1)],
        expired=[("l1", NOW - LEFTOVERS_AFTER - 1), ("l2", NOW - 1)],
        finished=[("t1", NOW - TOMBSTONES_KEPT - 1), ("t2", NOW - TOMBSTONES_KEPT + 1)],
    )
    assert make_plan(facts, RULES).leftovers == ["p1", "l1", "t1"]
    assert make_plan(facts, Rules(grace=10 * LEFTOVERS_AFTER)).leftovers == ["p1", "t1"]


def test_how_much_comes_back() -> None:
    packs = [pack(0, number=1), pack(300, number=2), pack(700, number=3)]
    plan = make_plan(Facts(NOW, packs=packs, manifests=[ManifestFact(b"m" * 32, 10, OLD, needed=False)]), RULES)
    assert plan.frees == 1000 + 700 + 10
    assert plan.needed == 300 + 700


ids = st.binary(min_size=32, max_size=32)


@given(st.sets(ids), st.sets(ids), st.booleans())
def test_live_chunks_are_a_set(added: set[bytes], others: set[bytes], compact: bool) -> None:
    live = LiveChunks()
    for chunk_id in added:
        live.add(chunk_id)
    live.add_refs(b"".join(chunk_id + struct.pack("<I", 5) for chunk_id in sorted(added)))
    if compact:
        live._compact()
    assert all(chunk_id in live for chunk_id in added)
    prefixes = {chunk_id[:8] for chunk_id in added}
    assert all((chunk_id in live) == (chunk_id[:8] in prefixes) for chunk_id in others)
    assert {number.to_bytes(2, "big") + tail for number in live.filled() for tail in live.slot(number)} == prefixes


def test_compacting_keeps_memory_bounded() -> None:
    live = LiveChunks()
    refs = b"".join(os.urandom(32) + struct.pack("<I", 5) for _ in range(1000))
    for _ in range(1100):
        live.add_refs(refs)
    assert sum(map(len, live._slots)) < (1 << 20) * 6


def segment(*rows: tuple[bytes, int]) -> Segment:
    return Segment(encode([(chunk, Location(bytes([p]) * 32, 16, 100, 100, 0)) for chunk, p in rows]))


def live(*chunks: bytes) -> LiveChunks:
    found = LiveChunks()
    for chunk in chunks:
        found.add(chunk)
    return found


A, B, C = (bytes([number]) * 32 for number in (200, 201, 202))
PACKS = {bytes([number]) * 32 for number in (1, 2, 3)}
ONE = 16 + 16 + 100 + 52


def test_a_needed_chunk_counts_once() -> None:
    segments = [segment((A, 1), (B, 1)), segment((B, 2), (C, 2)), segment((C, 3))]
    assert needed_bytes(segments, live(A), PACKS) == {bytes([1]) * 32: ONE}
    # B goes to the pack that A keeps.
    assert needed_bytes(segments, live(A, B), PACKS) == {bytes([1]) * 32: ONE + 152}
    assert sum(needed_bytes(segments, live(A, B, C), PACKS).values()) == 2 * ONE + 152
    leaving = {bytes([1]) * 32}
    assert needed_bytes(segments, live(A, B), PACKS, leaving) == {bytes([1]) * 32: ONE, bytes([2]) * 32: ONE}


def test_a_needed_chunk_that_is_nowhere_is_told() -> None:
    segments = [segment((A, 1), (C, 9))]
    for wanted in (live(A, B), live(A, C), live(bytes(32)), live(b"\xff" * 32)):
        with pytest.raises(IntegrityError, match="can't be found in any pack"):
            needed_bytes(segments, wanted, PACKS)
    with pytest.raises(IntegrityError, match="and 1 more"):
        needed_bytes(segments, live(A, B, C), PACKS)
    with pytest.raises(IntegrityError):
        needed_bytes([], live(A), PACKS)
    assert needed_bytes([], live(), PACKS) == {}
