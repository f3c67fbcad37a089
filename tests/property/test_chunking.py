"""Boundaries depend on the bytes alone: not on the buffers, and not on who cuts."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from casstore.chunking.base import Chunker
from casstore.chunking.fastcdc import FastCDCChunker
from casstore.chunking.params import ChunkerParams
from casstore.chunking.reference import ReferenceChunker

SMALL = ChunkerParams(min=64, avg=256, max=1024)


@st.composite
def parameters(draw: st.DrawFn) -> ChunkerParams:
    low = draw(st.integers(32, 200)) * 2
    middle = draw(st.integers(max(256, low), 1000))
    return ChunkerParams(low, middle, draw(st.integers(max(1024, middle), 4000)))


@st.composite
def contents(draw: st.DrawFn) -> bytes:
    """Pieces of noise, of few different bytes, and of one byte: cut often, seldom and never."""
    data = b""
    for _ in range(draw(st.integers(0, 4))):
        rng = random.Random(draw(st.integers(0, 1 << 32)))
        size = draw(st.integers(0, 5000))
        kind = draw(st.sampled_from(["noise", "few", "one"]))
        if kind == "noise":
            data += rng.randbytes(size)
        elif kind == "few":
            data += bytes(rng.choices(b"ab\n", k=size))
        else:
            data += rng.randbytes(1) * size
    return data


def cut_in_pieces(chunker: Chunker, data: bytes, sizes: list[int]) -> list[int]:
    """Cut ``data`` as it arrives: ``sizes`` bytes at a time, round and round."""
    lengths: list[int] = []
    carried = b""
    start = turn = 0
    while True:
        size = sizes[turn % len(sizes)]
        turn += 1
        buffer = carried + data[start : start + size]
        start += size
        final = start >= len(data)
        found = chunker.cut(buffer, final=final)
        lengths += found
        carried = buffer[sum(found) :]
        assert len(carried) < chunker.params.max
        if final:
            assert not carried
            return lengths


@settings(max_examples=150, deadline=None)
@given(contents(), parameters())
def test_library_is_the_reference(data: bytes, params: ChunkerParams) -> None:
    for final in (True, False):
        expected = ReferenceChunker(params).cut(data, final=final)
        assert FastCDCChunker(params).cut(data, final=final) == expected


@settings(max_examples=150, deadline=None)
@given(contents(), parameters(), st.lists(st.integers(1, 3000), min_size=1, max_size=5))
def test_boundaries_do_not_depend_on_buffers(data: bytes, params: ChunkerParams, sizes: list[int]) -> None:
    chunker = FastCDCChunker(params)
    assert cut_in_pieces(chunker, data, sizes) == chunker.cut(data, final=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, 4000))
def test_byte_by_byte(seed: int, size: int) -> None:
    data = random.Random(seed).randbytes(size)
    chunker = FastCDCChunker(SMALL)
    assert cut_in_pieces(chunker, data, [1]) == chunker.cut(data, final=True)


@settings(max_examples=150, deadline=None)
@given(contents(), parameters())
def test_lengths_are_within_bounds(data: bytes, params: ChunkerParams) -> None:
    lengths = FastCDCChunker(params).cut(data, final=True)
    assert sum(lengths) == len(data)
    assert all(params.min <= length <= params.max for length in lengths[:-1])
    assert all(0 < length <= params.max for length in lengths[-1:])


@settings(max_examples=100, deadline=None)
@given(contents(), contents())
def test_certain_cuts_stay(data: bytes, more: bytes) -> None:
    """No byte that follows changes a cut that was returned."""
    chunker = FastCDCChunker(SMALL)
    certain = chunker.cut(data, final=False)
    assert chunker.cut(data + more, final=True)[: len(certain)] == certain
    assert len(data) - sum(certain) < SMALL.max
