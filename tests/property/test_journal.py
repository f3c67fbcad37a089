"""The journal of a run: what was written comes back, and of a torn or damaged one everything before the damage."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.errors import FormatError
from casstore_orchestrator.agent import journal
from casstore_orchestrator.agent.journal import Entry, Happened, Journal, Over, Past, Taken
from casstore_orchestrator.events import (
    Attempt,
    CloseGroup,
    CommandExited,
    GroupFailed,
    KillTask,
    NewAttempt,
    ReleaseTasks,
    RestartInPlace,
    StartGroup,
    TaskExited,
    TaskRunning,
)

names = st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True)
texts = st.text(max_size=30)
attempts = st.builds(Attempt, names, st.integers(0, 5), st.integers(0, 5))
events = st.one_of(
    st.builds(TaskRunning, attempts),
    st.builds(CommandExited, attempts, st.integers(0, 255)),
    st.builds(TaskExited, attempts, st.integers(0, 255), st.none() | texts, st.booleans()),
    st.builds(GroupFailed, names, texts),
)
effects = st.one_of(
    st.builds(StartGroup, names, st.lists(attempts, max_size=4).map(tuple)),
    st.builds(ReleaseTasks, names, st.lists(attempts, max_size=4).map(tuple), st.booleans()),
    st.builds(KillTask, names, attempts, texts),
    st.builds(NewAttempt, names, attempts),
    st.builds(RestartInPlace, names, attempts),
    st.builds(CloseGroup, names),
)
numbers = st.integers(1, 1 << 40)
entries = st.lists(
    st.one_of(st.builds(Happened, numbers, events), st.builds(Taken, numbers, effects), st.builds(Over, texts)),
    max_size=8,
)


def written(folder: Path, records: list[Entry]) -> tuple[Path, list[int]]:
    """The file, and its size after each record."""
    path = folder / "journal"
    path.unlink(missing_ok=True)
    made = Journal.create(path)
    sizes = [path.stat().st_size]
    for record in records:
        made.append(record)
        sizes.append(path.stat().st_size)
    made.close()
    return path, sizes


def past(records: list[Entry]) -> Past:
    overs = [record for record in records if isinstance(record, Over)]
    return Past(
        events=[record for record in records if isinstance(record, Happened)],
        orders=[record for record in records if isinstance(record, Taken)],
        over=overs[-1] if overs else None,
    )


@settings(deadline=None, max_examples=60)
@given(entries, st.data())
def test_a_cut_anywhere_loses_nothing_before_it(
    tmp_path_factory: pytest.TempPathFactory, records: list[Entry], data: st.DataObject
) -> None:
    path, sizes = written(tmp_path_factory.mktemp("j"), records)
    assert journal.read(path) == past(records)
    cut = data.draw(st.integers(0, sizes[-1]))
    os.truncate(path, cut)
    whole = sum(size <= cut for size in sizes[1:])
    assert journal.read(path) == past(records[:whole])


@settings(deadline=None, max_examples=60)
@given(entries.filter(bool), st.data())
def test_a_flipped_bit_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, records: list[Entry], data: st.DataObject
) -> None:
    path, sizes = written(tmp_path_factory.mktemp("j"), records)
    at = data.draw(st.integers(sizes[0], sizes[-1] - 1))
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    whole = sum(size <= at for size in sizes[1:])
    assert journal.read(path) == past(records[:whole])


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=200))
def test_garbage_is_no_record(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    path, _ = written(tmp_path_factory.mktemp("j"), [Over("why")])
    with path.open("ab") as file:
        file.write(garbage)
    assert journal.read(path) == Past(over=Over("why"))


def test_a_huge_length_takes_no_memory(tmp_path: Path) -> None:
    path, _ = written(tmp_path, [])
    with path.open("ab") as file:
        file.write(b"\xff\xff\xff\xff\0\0\0\0body")
    os.truncate(path, 5 << 30)  # a hole
    assert journal.read(path) == Past()


def test_what_another_version_wrote_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"casstore run 99\n")
    with pytest.raises(FormatError, match="another version"):
        journal.read(path)
    assert journal.read(tmp_path / "absent") is None


def test_a_journal_is_begun_once(tmp_path: Path) -> None:
    written(tmp_path, [])
    with pytest.raises(FileExistsError):
        Journal.create(tmp_path / "journal")


def test_a_write_that_the_disk_takes_in_part_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    made = Journal.create(path)
    made.append(Over("one"))
    real = os.write
    room = [5, 0]

    def write(descriptor: int, data: bytes) -> int:
        left = room.pop(0)
        if not left:
            raise OSError(errno.ENOSPC, "full")
        return real(descriptor, bytes(data)[:left])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="full"):
        made.append(Over("two"))
    monkeypatch.setattr(os, "write", real)
    assert journal.read(path) == Past(over=Over("one"))
    made.append(Over("three"))
    made.close()
    assert journal.read(path) == Past(over=Over("three"))


def test_attempts_are_those_of_the_orders(tmp_path: Path) -> None:
    start = StartGroup("g", (Attempt("a", 0, 0), Attempt("b", 1, 0)))
    path, _ = written(
        tmp_path,
        [
            Taken(1, start),
            Taken(2, NewAttempt("g", Attempt("a", 1, 0))),
            Taken(3, RestartInPlace("g", Attempt("b", 1, 1))),
            Taken(4, CloseGroup("g")),
        ],
    )
    found = journal.read(path)
    assert found is not None
    assert found.attempts == {("a", 0), ("a", 1), ("b", 1)}
