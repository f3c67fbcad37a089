"""Chunking: the golden vectors, the oracle, and what an insertion moves."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from casstore.chunking.base import Chunker
from casstore.chunking.fastcdc import FastCDCChunker
from casstore.chunking.params import ChunkerParams
from casstore.chunking.reference import ReferenceChunker, gear_table
from casstore.errors import FormatError, UsageError
from casstore.hashing import digest

VECTORS = json.loads((Path(__file__).parents[1] / "vectors/chunking.json").read_text("utf-8"))


def build(source: list[dict[str, Any]]) -> bytes:
    data = b""
    for part in source:
        size = part["size"]
        if part["kind"] == "blake3-xof":
            data += blake3(part["seed"].encode()).digest(length=size)
        elif part["kind"] == "repeat":
            unit = bytes.fromhex(part["hex"])
            data += (unit * (size // len(unit) + 1))[:size]
        elif part["kind"] == "counter":
            data += b"".join(b"%d\n" % number for number in range(size // 2))[:size]
        else:
            raise ValueError(part["kind"])
    return data


@pytest.mark.parametrize("implementation", [FastCDCChunker, ReferenceChunker])
@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_golden_vectors(implementation: type[FastCDCChunker | ReferenceChunker], vector: dict[str, Any]) -> None:
    data = build(vector["source"])
    assert len(data) == vector["size"]
    assert digest(data).hex() == vector["blake3"]
    assert implementation(ChunkerParams(**vector["params"])).cut(data, final=True) == vector["lengths"]


def test_vectors_are_of_this_algorithm() -> None:
    assert ChunkerParams().to_dict()["algorithm"] == VECTORS["algorithm"]
    assert len(VECTORS["vectors"]) >= 10
    assert {vector["params"]["avg"] for vector in VECTORS["vectors"]} >= {65536, 1024, 301}


def test_gear_table() -> None:
    # The first and the last word as the authors of FastCDC published them.
    assert gear_table()[0] == 0x3B5D3C7D207E37DC
    assert gear_table()[255] == 0xAABD2B2A451504E1


def ids(chunker: Chunker, data: bytes) -> list[bytes]:
    found, start = [], 0
    for length in chunker.cut(data, final=True):
        found.append(digest(data[start : start + length]))
        start += length
    return found


def test_inserted_byte_moves_few_chunks() -> None:
    rng = random.Random(11)
    chunker = FastCDCChunker()
    trials, good = 200, 0
    for _ in range(trials):
        data = rng.randbytes(1_500_000)
        place = rng.randrange(len(data) + 1)
        edited = data[:place] + rng.randbytes(1) + data[place:]
        new = set(ids(chunker, edited)) - set(ids(chunker, data))
        assert new
        good += len(new) <= 3
    assert good >= 0.99 * trials


def test_average_is_near_the_aim() -> None:
    data = random.Random(12).randbytes(32 * 1024 * 1024)
    lengths = FastCDCChunker().cut(data, final=True)
    assert 0.9 * 65536 < len(data) / len(lengths) < 1.3 * 65536
    assert sum(length > 200_000 for length in lengths) < len(lengths) * 0.03


def test_any_buffer_is_cut_alike() -> None:
    data = random.Random(13).randbytes(1_000_000)
    chunker = FastCDCChunker()
    expected = chunker.cut(data, final=True)
    buffer = bytearray(data)
    assert chunker.cut(buffer, final=True) == expected
    assert chunker.cut(memoryview(buffer), final=True) == expected
    assert chunker.cut(memoryview(b"x" + data)[1:], final=True) == expected
    buffer.clear()  # a chunker that kept a view of it would make this fail


@pytest.mark.parametrize("implementation", [FastCDCChunker, ReferenceChunker])
def test_what_is_certain(implementation: type[FastCDCChunker | ReferenceChunker]) -> None:
    chunker = implementation(ChunkerParams(256, 1024, 4096))
    zeros = bytes(10_000)
    assert chunker.cut(b"", final=False) == []
    assert chunker.cut(b"", final=True) == []
    assert chunker.cut(zeros[:4095], final=False) == []
    assert chunker.cut(zeros[:4095], final=True) == [4095]
    assert chunker.cut(zeros[:4096], final=False) == [4096]
    assert chunker.cut(zeros[:4097], final=False) == [4096]
    assert chunker.cut(zeros[:4097], final=True) == [4096, 1]
    assert chunker.cut(zeros, final=False) == [4096, 4096]
    assert chunker.cut(zeros, final=True) == [4096, 4096, 1808]


def test_one_chunker_for_many_threads() -> None:
    rng = random.Random(14)
    inputs = [rng.randbytes(2_000_000) for _ in range(4)]
    chunker = FastCDCChunker()
    expected = [chunker.cut(data, final=True) for data in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert list(pool.map(lambda data: chunker.cut(data, final=True), inputs)) == expected


def test_params_round_trip() -> None:
    params = ChunkerParams(256, 1024, 4096)
    assert ChunkerParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params
    assert ChunkerParams() == ChunkerParams(16384, 65536, 262144)


@pytest.mark.parametrize(
    "sizes",
    [
        (0, 65536, 262144),
        (16384, 0, 262144),
        (16384, 65536, 0),
        (65538, 65536, 262144),
        (16384, 262145, 262144),
        (16385, 65536, 262144),
        (16384, 65536, 16 * 1024 * 1024 + 1),
        (2 * 1024 * 1024, 4 * 1024 * 1024, 8 * 1024 * 1024),
        (16384, 8 * 1024 * 1024, 16 * 1024 * 1024),
        (-2, 65536, 262144),
        (True, 65536, 262144),
        (16384.0, 65536, 262144),
        ("16384", 65536, 262144),
    ],
)
def test_impossible_sizes(sizes: tuple[Any, Any, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        ChunkerParams(*sizes)
    assert "\n" not in caught.value.message
    record = {**ChunkerParams().to_dict(), "min": sizes[0], "avg": sizes[1], "max": sizes[2]}
    with pytest.raises(FormatError):
        ChunkerParams.from_dict(record)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        "fastcdc",
        {"min": 16384, "avg": 65536, "max": 262144},
        {**ChunkerParams().to_dict(), "more": 1},
        {**ChunkerParams().to_dict(), "algorithm": "fastcdc-2016"},
        {**ChunkerParams().to_dict(), "algorithm": None},
    ],
)
def test_impossible_records(value: object) -> None:
    with pytest.raises(FormatError):
        ChunkerParams.from_dict(value)
