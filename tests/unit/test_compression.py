"""Compression: what is stored raw, and that decoding trusts nothing."""

from __future__ import annotations

import array
import json
import math
import random
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard

from casstore.compression import MAX_RAW, RAW, ZSTD, Compressor, Decompressor, decode
from casstore.errors import FormatError, IntegrityError
from casstore.model import Buffer

SIZE = 65536


def text() -> bytes:
    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randrange(2, 9))) for _ in range(800)]
    return " ".join(rng.choices(words, k=SIZE // 4)).encode()[:SIZE]


def json_lines() -> bytes:
    rng = random.Random(2)
    rows = [{"t": 1.7e9 + n / 30, "joint": [round(rng.gauss(0, 1), 6) for _ in range(7)]} for n in range(900)]
    return "\n".join(map(json.dumps, rows)).encode()[:SIZE]


def depth_image() -> bytes:
    rng = random.Random(3)
    pixels = (int(2000 + 300 * math.sin(n % 640 / 50) + rng.gauss(0, 3)) for n in range(SIZE // 2))
    return array.array("H", pixels).tobytes()


def floats() -> bytes:
    rng = random.Random(4)
    return b"".join(struct.pack("<f", rng.gauss(0, 1)) for _ in range(SIZE // 4))


def weights() -> bytes:
    rng = random.Random(5)
    return b"".join(struct.pack("<f", rng.gauss(0, 0.02))[2:] for _ in range(SIZE // 2))


def random_bytes() -> bytes:
    return random.Random(6).randbytes(SIZE)


def mixed() -> bytes:
    """A quarter of text somewhere in incompressible bytes."""
    return random_bytes()[: SIZE // 2 + 1000] + text()[: SIZE // 4] + random_bytes()[: SIZE // 4 - 1000]


COMPRESSIBLE: list[Callable[[], bytes]] = [text, json_lines, depth_image, floats, weights, mixed]


@pytest.mark.parametrize("make", COMPRESSIBLE)
def test_probe_loses_nothing(make: Callable[[], bytes]) -> None:
    data = make()
    codec, payload = Compressor().encode(data)
    assert codec == ZSTD
    assert payload == zstandard.ZstdCompressor(level=3).compress(data)
    assert len(payload) < len(data) * 0.95
    assert decode(codec, payload, len(data)) == data


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 8191, 8192, 8193, 16383, 16384, 16385, 65537, 262144])
def test_incompressible_is_the_same_buffer(size: int) -> None:
    data = memoryview(random.Random(size).randbytes(size))
    codec, payload = Compressor().encode(data)
    assert codec == RAW
    assert payload is data
    assert decode(codec, payload, size) == data


def test_incompressible_is_not_given_to_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    real = zstandard.ZstdCompressor

    class Spy:
        def __init__(self, level: int, **_: bool) -> None:
            self._inner = real(level=level)

        def compress(self, data: Buffer) -> bytes:
            given.append(len(data))
            return self._inner.compress(data)

    monkeypatch.setattr(zstandard, "ZstdCompressor", Spy)
    assert Compressor().encode(random_bytes())[0] == RAW
    assert sum(given) < SIZE // 16
    given.clear()
    assert Compressor().encode(text())[0] == ZSTD
    assert given[-1] == SIZE


def test_small_saving_is_not_worth_it() -> None:
    noise = random.Random(7).randbytes(4000)
    compressor = Compressor()
    assert compressor.encode(noise + bytes(150))[0] == RAW
    codec, payload = compressor.encode(noise + bytes(400))
    assert codec == ZSTD
    assert len(payload) <= 4400 * 0.95


@pytest.mark.parametrize("size", [8192, 8193, 16384, 16385, 16386, 16387, 20001, 70000])
def test_any_size_above_the_probe(size: int) -> None:
    data = (text() * 2)[:size]
    codec, payload = Compressor().encode(memoryview(data))
    assert codec == ZSTD
    assert decode(codec, memoryview(payload), size) == data


@pytest.mark.parametrize("level", [-5, 1, 3, 9, 19])
def test_every_level_can_be_decoded(level: int) -> None:
    data = text()
    codec, payload = Compressor(level).encode(bytearray(data))
    assert decode(codec, payload, len(data)) == data


def test_context_is_reused_without_memory_of_the_chunk_before() -> None:
    compressor = Compressor()
    first = compressor.encode(text())
    compressor.encode(json_lines())
    assert compressor.encode(text()) == first


def test_largest_chunk() -> None:
    data = bytes(MAX_RAW)
    codec, payload = Compressor().encode(data)
    assert decode(codec, payload, MAX_RAW) == data
    with pytest.raises(ValueError, match="at most"):
        Compressor().encode(bytes(MAX_RAW + 1))
    with pytest.raises(FormatError):
        decode(RAW, bytes(MAX_RAW + 1), MAX_RAW + 1)


def frame(data: bytes, *, sized: bool = True) -> bytes:
    return zstandard.ZstdCompressor(level=3, write_content_size=sized).compress(data)


DATA = b"some text that can be compressed, " * 100

BAD: dict[str, tuple[int, bytes, int]] = {
    "unknown codec": (2, DATA, len(DATA)),
    "negative codec": (-1, DATA, len(DATA)),
    "negative length": (RAW, b"", -1),
    "raw too short": (RAW, DATA[:-1], len(DATA)),
    "raw too long": (RAW, DATA + b"x", len(DATA)),
    "empty frame": (ZSTD, b"", 0),
    "empty payload": (ZSTD, b"", 5),
    "frame of nothing": (ZSTD, frame(b""), 0),
    "frame of nothing and garbage": (ZSTD, frame(b"") + b"garbage", 0),
    "not a frame": (ZSTD, DATA, len(DATA)),
    "only the magic": (ZSTD, b"\x28\xb5\x2f\xfd", 5),
    "another length, more": (ZSTD, frame(DATA), len(DATA) + 1),
    "another length, less": (ZSTD, frame(DATA), len(DATA) - 1),
    "no content size": (ZSTD, frame(DATA, sized=False), len(DATA)),
    "trailing byte": (ZSTD, frame(DATA) + b"\0", len(DATA)),
    "trailing frame": (ZSTD, frame(DATA) + frame(b"x"), len(DATA)),
    "trailing skippable frame": (ZSTD, frame(DATA) + b"\x50\x2a\x4d\x18\x00\x00\x00\x00", len(DATA)),
    "leading skippable frame": (ZSTD, b"\x50\x2a\x4d\x18\x00\x00\x00\x00" + frame(DATA), len(DATA)),
    "two halves": (ZSTD, frame(DATA[:1000]) + frame(DATA[1000:]), len(DATA)),
    "cut off": (ZSTD, frame(DATA)[:-1], len(DATA)),
    "only the header": (ZSTD, frame(DATA)[:6], len(DATA)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    codec, payload, length = BAD[name]
    decompressor = Decompressor()
    for given in (payload, memoryview(payload), bytearray(payload)):
        with pytest.raises(IntegrityError):
            decompressor.decode(codec, given, length)
    assert decompressor.decode(ZSTD, frame(DATA), len(DATA)) == DATA, "still usable"


def test_declared_size_is_checked_before_memory_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __init__(self, **_: int) -> None:
            pass

        def decompress(self, *_: object, **__: object) -> bytes:
            raise AssertionError("must not be reached")

    monkeypatch.setattr(zstandard, "ZstdDecompressor", Bomb)
    decompressor = Decompressor()
    # Magic; single segment with a content size of 8 bytes: 2^60.
    bomb = b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little") + b"\x01\x00\x00"
    for length in (1 << 60, 100, MAX_RAW):
        with pytest.raises(IntegrityError):
            decompressor.decode(ZSTD, bomb, length)


def test_window_is_bounded() -> None:
    """A whole frame needs no window, whatever it asks for; a cut one must not get 1 GiB to find that out."""
    # Magic, 4 bytes of content size, window descriptor; then one last block: 65536 times the byte 'a'.
    head = b"\x28\xb5\x2f\xfd\x80" + bytes([20 << 3]) + (1 << 16).to_bytes(4, "little")
    block = ((1 << 16) << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"a"
    assert Decompressor().decode(ZSTD, head + block, 1 << 16) == b"a" * (1 << 16)
    with pytest.raises(IntegrityError, match="memory"):
        Decompressor().decode(ZSTD, head + block[:-1], 1 << 16)


def test_every_flipped_bit_is_an_error_or_other_bytes() -> None:
    """Nothing but the errors of the store comes out of a damaged frame, and never another length."""
    payload = frame(DATA)
    for place in range(len(payload) * 8):
        damaged = bytearray(payload)
        damaged[place // 8] ^= 1 << place % 8
        try:
            raw = decode(ZSTD, damaged, len(DATA))
        except IntegrityError:
            continue
        assert len(raw) == len(DATA)


def test_decode_in_many_threads() -> None:
    data = text()
    _, payload = Compressor().encode(data)
    with ThreadPoolExecutor(4) as pool:
        assert all(raw == data for raw in pool.map(lambda _: decode(ZSTD, payload, len(data)), range(80)))
