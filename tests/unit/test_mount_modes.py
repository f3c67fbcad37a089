"""How a mount is served: by whom, and whether files are opened without asking."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from casstore.errors import UsageError
from casstore.model import Totals
from casstore_fuse import modes
from casstore_fuse.passthrough import LEAST
from casstore_fuse.vfs import Vfs

KIB, MIB = 1 << 10, 1 << 20


def version(*sizes: tuple[int, int], shown: list[int] | None = None) -> Vfs:
    """A version of so many files of a size each; ``shown`` is what a sample of it shows."""
    totals = Totals(files=sum(count for count, _ in sizes), size=sum(count * size for count, size in sizes))
    found = shown or [size for count, size in sizes for _ in range(min(count, 100))]

    def sample() -> Iterator[int]:
        return iter(found)

    return cast("Vfs", SimpleNamespace(totals=totals, sample=sample))


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_may_pass_through", lambda: True)


@pytest.mark.parametrize(
    ("sizes", "unasked"),
    [
        ([(1000, 8 * KIB)], True),
        ([(10, 100 * MIB)], False),
        # The mean is that of large files, and none of them is large enough to be read by the kernel itself.
        ([(1000, LEAST - 1)], True),
        ([(1000, LEAST)], False),
        ([(100_000, 4 * KIB), (20, 1024 * MIB)], False),
        ([(1_000_000, 2 * KIB), (10, 1024 * MIB)], True),
        ([], True),
    ],
)
def test_it_is_a_matter_of_the_bytes_in_large_files(sizes: list[tuple[int, int]], unasked: bool, able: None) -> None:
    assert modes.opens_unasked(version(*sizes), cached=True) is unasked


def test_a_sample_without_the_few_large_files_is_enough(able: None) -> None:
    sizes = [(10_000, 100 * KIB), (20, 8 * MIB)]
    assert modes.opens_unasked(version(*sizes, shown=[100 * KIB] * 200), cached=True)
    sizes = [(10_000, 40 * KIB), (20, 50 * MIB)]
    assert not modes.opens_unasked(version(*sizes, shown=[40 * KIB] * 200), cached=True)


def test_where_the_kernel_can_read_nothing_by_itself(able: None, monkeypatch: pytest.MonkeyPatch) -> None:
    large = version((10, 100 * MIB))
    assert modes.opens_unasked(large, cached=False)
    monkeypatch.setattr(modes, "_may_pass_through", lambda: False)
    monkeypatch.setattr(modes, "_kernel", lambda: (6, 5))
    assert modes.opens_unasked(large, cached=True)


@pytest.mark.parametrize(
    ("sizes", "unasked"),
    [
        ([(10, 100 * MIB)], False),
        ([(1000, MIB - 1)], True),
        ([(1000, MIB)], False),
        ([(100_000, 4 * KIB), (20, 1024 * MIB)], False),
        ([(1000, 8 * KIB)], True),
    ],
)
def test_what_may_be_read_past_the_cache_is_asked_for(
    sizes: list[tuple[int, int]], unasked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "_may_pass_through", lambda: False)
    monkeypatch.setattr(modes, "_kernel", lambda: (6, 6))
    assert modes.opens_unasked(version(*sizes), cached=True) is unasked
    assert modes.opens_unasked(version(*sizes), cached=False)


def test_who_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(modes.VARIABLE, raising=False)
    assert not modes.by_library()
    monkeypatch.setattr(modes, "_kernel", lambda: (3, 14))
    assert modes.by_library()
    monkeypatch.setenv(modes.VARIABLE, "kernel")
    assert not modes.by_library()
    monkeypatch.setenv(modes.VARIABLE, "library")
    assert modes.by_library()
    monkeypatch.setenv(modes.VARIABLE, "other")
    with pytest.raises(UsageError, match=modes.VARIABLE):
        modes.by_library()
