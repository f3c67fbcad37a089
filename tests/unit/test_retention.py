"""Which versions the rule of a dataset keeps."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casstore.backend.memory import MemoryBackend
from casstore.dataset import Bucket, retention
from casstore.dataset.catalog import Catalog
from casstore.dataset.retention import Why, expire
from casstore.errors import UsageError
from casstore.model import Retention, VersionStatus
from casstore.repo.store import Store

NOW = datetime(2026, 1, 31, tzinfo=UTC)
CREATED = {number: NOW - timedelta(days=10 * (5 - number)) for number in range(1, 6)}
"""Version 5 was made just now, each other one ten days before the next."""


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (Retention(keep_last=1), {5: Why.LATEST}),
        (Retention(keep_last=3), {5: Why.LATEST, 4: Why.LAST, 3: Why.LAST}),
        (Retention(keep_last=9), {5: Why.LATEST, 4: Why.LAST, 3: Why.LAST, 2: Why.LAST, 1: Why.LAST}),
        (Retention(keep_tagged=True), {5: Why.LATEST, 2: Why.TAGGED}),
        (Retention(keep_within_s=15 * 86400), {5: Why.LATEST, 4: Why.WITHIN}),
        (Retention(keep_within_s=20 * 86400), {5: Why.LATEST, 4: Why.WITHIN}),
        (Retention(keep_within_s=1), {5: Why.LATEST}),
        (Retention(keep_last=2, keep_tagged=True), {5: Why.LATEST, 4: Why.LAST, 2: Why.TAGGED}),
    ],
)
def test_what_one_part_keeps_is_kept(rule: Retention, kept: dict[int, Why]) -> None:
    expired, found = expire(rule, CREATED, {2}, set(), NOW)
    assert found == kept
    assert expired == [number for number in CREATED if number not in kept]


def test_members_of_collections_and_the_latest_always_stay() -> None:
    expired, kept = expire(Retention(keep_last=1), CREATED, set(), {1, 3}, NOW)
    assert kept == {1: Why.COLLECTION, 3: Why.COLLECTION, 5: Why.LATEST}
    assert expired == [2, 4]
    assert expire(Retention(keep_last=1), {}, set(), set(), NOW) == ([], {})


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    bucket = Bucket(Store.open(MemoryBackend(), create=True), name="b", user="u")
    for number in range(4):
        (tmp_path / "a").write_text(str(number))
        bucket.upload("d", [str(tmp_path / "a")])
    return bucket


def numbers(bucket: Bucket) -> list[int]:
    return [v.version.number for v in bucket.info("d").versions if v.version.status == VersionStatus.READY]


def test_a_rule_is_changed_part_by_part(bucket: Bucket) -> None:
    refs = bucket.refs
    assert retention.change(refs, "d") is None
    assert retention.change(refs, "d", keep_last=2) == Retention(keep_last=2)
    both = retention.change(refs, "d", keep_tagged=True)
    assert both == retention.change(refs, "d") == Retention(keep_last=2, keep_tagged=True)
    assert retention.change(refs, "d", keep_within_s=60, clear=True) == Retention(keep_within_s=60)
    assert retention.change(refs, "d", clear=True) is None
    assert refs.find("d").retention is None


def test_what_is_no_rule(bucket: Bucket) -> None:
    for wrong in ({"keep_last": 0}, {"keep_within_s": 0}, {"keep_within_s": 10**12}, {"keep_tagged": False}):
        with pytest.raises(UsageError):
            retention.change(bucket.refs, "d", **wrong)  # type: ignore[arg-type]
    bucket.collect("c", ["d"])
    with pytest.raises(UsageError, match="collection"):
        retention.change(bucket.refs, "c", keep_last=1)


def test_applying_a_plan_looks_again(bucket: Bucket) -> None:
    refs, catalog = bucket.refs, Catalog(bucket.refs, "b")
    now = datetime.now(UTC).timestamp()
    retention.change(refs, "d", keep_last=1, keep_tagged=True)
    (plan,) = retention.plan(refs, catalog, now)
    assert plan.expired == (1, 2, 3)
    assert numbers(bucket) == [1, 2, 3, 4]
    bucket.set_tags("d", ["gold"], tag="1")
    bucket.collect("c", ["d:2"])
    assert retention.apply(refs, catalog, [plan], now) == [("d", (3,))]
    assert numbers(bucket) == [1, 2, 4]
    retention.change(refs, "d", clear=True)
    assert retention.apply(refs, catalog, [plan], now) == []
    bucket.delete("d", all_versions=True, force=True)
    assert retention.apply(refs, catalog, [plan], now) == []
