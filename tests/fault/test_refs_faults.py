"""Crashes and lost replies at every back end call of every operation on refs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import pytest

from casstore.backend.base import Buffer, Condition
from casstore.backend.memory import MemoryBackend
from casstore.errors import NotFoundError, PreconditionError, StorageError
from casstore.model import Head, Totals, VersionRecord
from casstore.repo.refs import Refs, is_active, now
from casstore.testing.faults import Fault, FaultBackend, FaultPlan, InjectedCrash


class FalseConflict(FaultBackend):
    """Says that the condition of the n-th call does not hold: what retrying makes of a put whose reply was lost."""

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        hits = self.hits
        try:
            return super().put(key, data, condition=condition)
        except StorageError:
            if self.hits > hits and condition is not None:
                raise PreconditionError("the condition does not hold (not true)") from None
            raise


def build(number: int, write_id: str) -> VersionRecord:
    return VersionRecord(
        number=number,
        manifest="0" * 64,
        checksum="f" * 64,
        totals=Totals(),
        created_at=now(),
        created_by="tester",
        write_id=write_id,
    )


def tag(head: Head) -> Head:
    return msgspec.structs.replace(head, tags={**head.tags, "good": 1})


Operation = Callable[[Refs], object]
OPERATIONS: dict[str, Operation] = {
    "create": lambda refs: refs.create_dataset("fresh", created_by="me"),
    "commit": lambda refs: refs.commit_version(refs.resolve_name("ds"), build),
    "commit and tag": lambda refs: refs.commit_version(refs.resolve_name("ds"), build, also=lambda head, _: tag(head)),
    "tag": lambda refs: refs.update_head(refs.resolve_name("ds"), tag),
    "rename": lambda refs: refs.rename("ds", "other"),
    "delete one": lambda refs: refs.delete_versions(refs.resolve_name("ds"), lambda _, active: active[-1:]),
    "delete all": lambda refs: refs.delete_dataset(refs.resolve_name("ds")),
}


def prepared() -> tuple[MemoryBackend, str]:
    backend = MemoryBackend()
    refs = Refs(backend)
    head = refs.create_dataset("ds", created_by="me")
    for _ in range(2):
        refs.commit_version(head.id, build)
    return backend, head.id


def calls_of(operation: Operation) -> int:
    backend, _ = prepared()
    counter = FaultBackend(backend)
    operation(Refs(counter))
    return counter.calls


def points() -> list[tuple[str, int]]:
    return [(name, at) for name, operation in OPERATIONS.items() for at in range(1, calls_of(operation) + 1)]


def state(backend: MemoryBackend, dataset_id: str) -> dict[str, object]:
    """What a user can see, after checking what must always hold."""
    refs = Refs(backend)
    names = dict(refs.list_names())
    for name, holder in names.items():
        head, _ = refs.read_head(holder)
        if not head.deleted:
            assert refs.resolve_name(head.name) == holder, f"{name} leads to a head whose own name does not"
            assert refs.find(head.name) == head
    head, _ = refs.read_head(dataset_id)
    if not head.deleted:
        assert dataset_id in names.values(), "nothing leads to the dataset"
    numbers = refs.versions(dataset_id)
    assert numbers == list(range(1, len(numbers) + 1))
    for number in numbers:
        refs.read_version(dataset_id, number)
    return {
        "name": None if head.deleted else head.name,
        "active": [] if head.deleted else [number for number in numbers if is_active(head, number)],
        "tags": {} if head.deleted else head.tags,
    }


@pytest.mark.parametrize(("name", "at"), points())
@pytest.mark.parametrize("fault", [Fault.CRASH_BEFORE, Fault.CRASH_AFTER])
def test_a_crash_leaves_the_old_or_the_new_state_and_a_second_run_finishes(name: str, at: int, fault: Fault) -> None:
    operation = OPERATIONS[name]
    backend, dataset_id = prepared()
    before = state(backend, dataset_id)

    done, done_id = prepared()
    operation(Refs(done))
    after = state(done, done_id)

    with pytest.raises(InjectedCrash):
        operation(Refs(FaultBackend(backend, FaultPlan(at, fault))))
    crashed = state(backend, dataset_id)
    if name == "commit and tag":  # the version is the commit, the tag comes after
        assert crashed in (before, after, {**after, "tags": {}})
    else:
        assert crashed in (before, after)

    try:
        operation(Refs(backend))
    except NotFoundError:
        # Done already: the old name is free, and what was to be deleted is gone.
        assert name in ("rename", "delete all")
        assert crashed == after
    final = state(backend, dataset_id)
    if name in ("commit", "commit and tag"):
        assert final["active"] in ([1, 2, 3], [1, 2, 3, 4])
        assert final["tags"] == after["tags"]
    elif name == "delete one":
        assert (final["name"], final["active"]) in [("ds", [1]), (None, [])]
    else:
        assert final == after
    # Whatever is left behind stands in nobody's way.
    refs = Refs(backend)
    for free in {"ds", "other", "fresh"}.difference(dict(refs.list_names())):
        refs.create_dataset(free, created_by="me", exclusive=True)


@pytest.mark.parametrize(("name", "at"), points())
@pytest.mark.parametrize("kind", [FaultBackend, FalseConflict])
@pytest.mark.parametrize("fault", [Fault.ERROR_BEFORE, Fault.ERROR_AFTER])
def test_a_failed_call_is_no_second_change(name: str, at: int, kind: type[FaultBackend], fault: Fault) -> None:
    operation = OPERATIONS[name]
    done, done_id = prepared()
    operation(Refs(done))
    after = state(done, done_id)

    backend, dataset_id = prepared()
    before = state(backend, dataset_id)
    faulty = kind(backend, FaultPlan(at, fault))
    try:
        operation(Refs(faulty))
    except (StorageError, PreconditionError):
        assert state(backend, dataset_id) in (before, after, {**after, "tags": {}})
    else:
        assert state(backend, dataset_id) == after
    assert faulty.hits == 1


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "create"])
def test_a_put_whose_reply_is_lost_counts_as_done(name: str) -> None:
    """Every put of every operation: it took effect, the reply did not arrive, the operation succeeds."""

    class LosesReplies(MemoryBackend):
        on = False

        def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
            tag = super().put(key, data, condition=condition)
            if self.on:
                raise StorageError("reply lost")
            return tag

    backend = LosesReplies()
    refs = Refs(backend)
    head = refs.create_dataset("ds", created_by="me")
    for _ in range(2):
        refs.commit_version(head.id, build)
    backend.on = True
    OPERATIONS[name](refs)
    done, done_id = prepared()
    OPERATIONS[name](Refs(done))
    assert state(backend, head.id) == state(done, done_id)
