"""How far ahead of its readers a mount reads."""

from __future__ import annotations

import random

from casstore_fuse.streams import FIRST, FIRST_FILES, NEAR, Streams

KIB, MIB = 1 << 10, 1 << 20


def streams() -> Streams:
    return Streams(most=16 * MIB, most_files=4 * MIB)


def test_who_reads_on_gets_more_each_time() -> None:
    found = streams()
    assert found.of_file(7, 0, 128 * KIB) == FIRST
    asked, offset = [], FIRST
    for _ in range(4):
        asked.append(found.of_file(7, offset, 128 * KIB))
        offset += asked[-1]
    assert asked == [8 * MIB, 16 * MIB, 16 * MIB, 16 * MIB]


def test_parts_that_come_in_any_order_are_one_stream() -> None:
    found = streams()
    assert found.of_file(7, 128 * KIB, 128 * KIB) == 0
    assert found.of_file(7, 0, 128 * KIB) == 0
    assert found.of_file(7, 256 * KIB, 128 * KIB) == FIRST
    assert found.of_file(7, 512 * KIB, 128 * KIB) == 0, "it is on its way"
    assert found.of_file(7, 256 * KIB + FIRST + 128 * KIB, 128 * KIB) == 2 * FIRST


def test_who_jumps_about_gets_what_they_ask_for() -> None:
    found, rng = streams(), random.Random(3)
    offsets = [rng.randrange(1, 1 << 28) * 4096 for _ in range(500)]
    assert sum(found.of_file(7, offset, 4096) > 0 for offset in offsets) < 5
    assert found.of_file(8, 100 * MIB, 4096) == 0
    assert len({found.of_file(node, 0, 4096) for node in range(100, 10_000)}) == 1


def test_small_files_one_after_the_other() -> None:
    found = streams()
    assert found.of_small(10) == 0
    assert found.of_small(11) == FIRST_FILES
    found.reached(11, 40)
    assert found.of_small(20) == 0, "it is on its way"
    assert found.of_small(41) == 2 * FIRST_FILES
    found.reached(41, 100)
    window = 2 * FIRST_FILES
    at = 101
    while window < 4 * MIB:
        window *= 2
        assert found.of_small(at + NEAR - 1) == window
        found.reached(at + NEAR - 1, at := at + 500)
        at += 1
    assert found.of_small(at) == 4 * MIB


def test_readers_side_by_side_and_at_random() -> None:
    found, rng = streams(), random.Random(4)
    for step in range(5):
        for begin in (1000, 500_000, 2_000_000):
            assert (found.of_small(begin + step) > 0) == (step > 0)
    assert not any(found.of_small(rng.randrange(3_000_000, 1 << 40)) for _ in range(500))
