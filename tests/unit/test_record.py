"""The envelope of JSON records: exact bytes, and that no flipped bit passes."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from casstore.errors import FormatError, UsageError
from casstore.format import record
from casstore.hashing import digest
from casstore.model import Totals, VersionRecord


class Thing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    count: int = 0
    more: dict[str, Any] = {}


def wrap(body: bytes, type_: str = "thing", version: str = "1") -> bytes:
    return f"casstore-record {version} {type_} {digest(body).hex()}\n".encode() + body


def test_exact_bytes() -> None:
    data = record.encode("thing", Thing("é", 3, {"b": 1, "a": [None, True, 1.5]}))
    body = '{"name":"é","count":3,"more":{"a":[null,true,1.5],"b":1}}'.encode()
    assert data == wrap(body)
    assert record.decode("thing", data, Thing) == Thing("é", 3, {"a": [None, True, 1.5], "b": 1})


def test_golden_header() -> None:
    header, _, body = record.encode("thing", Thing("x")).partition(b"\n")
    assert body == b'{"name":"x","count":0,"more":{}}'
    assert header == b"casstore-record 1 thing 1a270f030f0af2e68d394bc435e1eb618d005aa7f2f103b80ac295732b4c34e5"


def test_equal_values_give_equal_bytes() -> None:
    first = Thing("x", more={"a": 1, "b": {"d": 1, "c": 2}})
    second = Thing("x", more={"b": {"c": 2, "d": 1}, "a": 1})
    assert record.encode("thing", first) == record.encode("thing", second)


def test_version_record_round_trip() -> None:
    value = VersionRecord(
        number=7,
        manifest="ab" * 32,
        checksum="cd" * 32,
        totals=Totals(files=3, size=1 << 45),
        created_at="2026-01-02T03:04:05Z",
        created_by="tester",
        write_id="w",
        metadata={"camera": {"fps": 30, "names": ["left", "right"]}},
    )
    assert record.decode("version", record.encode("version", value), VersionRecord) == value


def test_every_flipped_bit_is_found() -> None:
    data = record.encode("thing", Thing("name", 12, {"key": "value"}))
    for place in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(FormatError, match="thing"):
            record.decode("thing", damaged, Thing)


def test_every_truncation_is_found() -> None:
    data = record.encode("thing", Thing("name", 12))
    for length in range(len(data)):
        with pytest.raises(FormatError, match="thing"):
            record.decode("thing", data[:length], Thing)
    for tail in (b"\n", b" ", b"\0", data):
        with pytest.raises(FormatError):
            record.decode("thing", data + tail, Thing)


GOOD = b'{"name":"x"}'

BAD: dict[str, bytes] = {
    "empty": b"",
    "only json": GOOD,
    "another type": wrap(GOOD, "other"),
    "a longer type": wrap(GOOD, "thing2"),
    "another version": wrap(GOOD, version="2"),
    "upper case digest": wrap(GOOD).replace(digest(GOOD).hex().encode(), digest(GOOD).hex().upper().encode()),
    "carriage return": wrap(GOOD).replace(b"\n", b"\r\n"),
    "two spaces": wrap(GOOD).replace(b"1 thing", b"1  thing"),
    "no body": wrap(b""),
    "not json": wrap(b"{"),
    "trailing bytes": wrap(GOOD + b"x"),
    "not utf-8": wrap(b'{"name":"\xff"}'),
    "another shape": wrap(b"[]"),
    "missing field": wrap(b"{}"),
    "unknown field": wrap(b'{"name":"x","nme":1}'),
    "wrong type": wrap(b'{"name":"x","count":"1"}'),
    "huge number": wrap(b'{"name":"x","count":' + b"9" * 5000 + b"}"),
    "deep": wrap(b'{"name":"x","more":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"),
    "unclosed deep": wrap(b'{"name":"x","more":' + b'{"a":' * 100_000),
    "much too large": bytes(record.MAX_RECORD + 1),
    "too large": wrap(b'{"name":"' + b"x" * record.MAX_BODY + b'"}'),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_records(name: str) -> None:
    with pytest.raises(FormatError) as caught:
        record.decode("thing", BAD[name], Thing)
    assert "thing" in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300


def test_random_bytes_are_refused() -> None:
    rng = random.Random(21)
    for _ in range(500):
        noise = rng.randbytes(rng.randrange(200))
        for data in (noise, wrap(noise), b"casstore-record 1 thing " + noise):
            with pytest.raises(FormatError):
                record.decode("thing", data, Thing)


def test_a_newer_format_is_told_apart() -> None:
    with pytest.raises(FormatError) as caught:
        record.decode("thing", BAD["another version"], Thing)
    assert caught.value.hint is not None
    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize(
    "value",
    [Thing("\ud800"), Thing("x", more={"a": object()}), Thing("x", more={"\udcff": 1})],
)
def test_what_json_cannot_hold(value: Thing) -> None:
    with pytest.raises(UsageError, match="thing"):
        record.encode("thing", value)


def test_limit_of_size() -> None:
    overhead = len(b'{"name":"","count":0,"more":{}}')
    fits = Thing("x" * (record.MAX_BODY - overhead))
    data = record.encode("thing", fits)
    assert len(data) <= record.MAX_RECORD
    assert record.decode("thing", data, Thing) == fits
    with pytest.raises(UsageError) as caught:
        record.encode("thing", Thing(fits.name + "x"))
    assert caught.value.hint


@pytest.mark.parametrize("type_", ["", "Thing", "a b", "a\n", "-a", "a" * 33, "ä"])
def test_illegal_types_are_a_mistake_of_the_caller(type_: str) -> None:
    with pytest.raises(ValueError, match="record type"):
        record.encode(type_, Thing("x"))
