"""Which files are read past the kernel's cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from casstore_fuse.habits import BLOCK, LEAST, Habits

KIB, MIB = 1 << 10, 1 << 20


def test_nobody_is_known_at_first() -> None:
    assert not Habits().direct(LEAST)


@pytest.mark.parametrize(
    ("request_", "large"),
    # What Linux reads ahead first: of 4 KiB four times as much, of 16 KiB too, of 128 KiB the double or that.
    [(16 * KIB, False), (64 * KIB, False), (BLOCK, True), (256 * KIB, True), (MIB, True)],
)
def test_the_first_request_tells(request_: int, large: bool) -> None:
    habits = Habits()
    habits.watch(5)
    habits.first(6, MIB)  # nobody watches this one
    assert not habits.direct(LEAST)
    habits.first(5, request_)
    assert habits.direct(LEAST) is large
    assert not habits.direct(LEAST - 1)


def test_later_requests_tell_nothing() -> None:
    habits = Habits()
    habits.watch(5)
    habits.first(5, 16 * KIB)
    for _ in range(100):
        habits.first(5, MIB)  # the kernel reads further and further ahead
    assert not habits.direct(LEAST)


def test_readers_of_small_pieces_are_noticed_and_those_of_large_ones_again() -> None:
    habits = Habits()
    habits.watch(1)
    habits.first(1, MIB)
    for _ in range(200):
        assert habits.direct(LEAST) or _ > 100
        habits.piece(4 * KIB)
    assert not habits.direct(LEAST)
    habits.watch(2)
    habits.first(2, MIB)
    assert habits.direct(LEAST)


def test_what_is_watched_has_a_bound() -> None:
    habits = Habits()
    for node in range(100_000):
        habits.watch(node)
    assert len(habits._watched) <= 4096


def test_the_next_mount_knows(tmp_path: Path) -> None:
    path = tmp_path / "habits" / "ab"
    habits = Habits(str(path))
    assert not path.exists()
    habits.watch(1)
    habits.first(1, MIB)
    assert Habits(str(path)).direct(LEAST)
    for _ in range(1000):
        habits.piece(4 * KIB)
    assert not Habits(str(path)).direct(LEAST)
    assert [entry.name for entry in path.parent.iterdir()] == ["ab"]


@pytest.mark.parametrize("data", [b"", b"large", b"large\nlarge\n", bytes(1 << 20)])
def test_what_is_kept_and_is_not_ours_says_nothing(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "ab").write_bytes(data)
    assert not Habits(str(tmp_path / "ab")).direct(LEAST)


def test_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    habits = Habits(str(tmp_path / "file" / "ab"))
    habits.watch(1)
    habits.first(1, MIB)
    assert habits.direct(LEAST)
