"""The hash function: known digests, domains, and the one spelling of an id."""

from __future__ import annotations

import pytest
from blake3 import blake3

from casstore.errors import FormatError
from casstore.hashing import Hasher, derive, derive_hasher, digest, digest_parts, from_hex, to_hex

# From the test vectors of the BLAKE3 specification: the input is the bytes 0, 1, ..., 250, 0, 1, ...
KNOWN = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
}


@pytest.mark.parametrize("size", KNOWN)
def test_known_digests(size: int) -> None:
    data = bytes(number % 251 for number in range(size))
    assert digest(data).hex() == KNOWN[size]
    assert digest(bytearray(data)) == digest(memoryview(data)) == digest(data)


def test_parts_are_concatenated() -> None:
    assert digest_parts([b"ab", b"", memoryview(b"c")]) == digest(b"abc")
    assert digest_parts([]) == digest(b"")


def test_streaming() -> None:
    hasher = Hasher()
    hasher.update(b"ab")
    hasher.update(b"c")
    assert hasher.digest() == digest(b"abc")


def test_domains_are_separate() -> None:
    assert derive("casstore test 1", b"abc") == blake3(b"abc", derive_key_context="casstore test 1").digest()
    assert len({digest(b"abc"), derive("casstore test 1", b"abc"), derive("casstore test 2", b"abc")}) == 3
    hasher = derive_hasher("casstore test 1")
    hasher.update(b"a")
    hasher.update(b"bc")
    assert hasher.digest() == derive("casstore test 1", b"abc")


def test_hex_round_trip() -> None:
    value = digest(b"x")
    assert from_hex(to_hex(value)) == value


@pytest.mark.parametrize(
    "text",
    ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, " " + "0" * 63, "0" * 64 + "\n", "\u0660" * 64, "0x" + "0" * 62],
)
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(FormatError):
        from_hex(text)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_to_hex_wants_an_id(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        to_hex(bytes(size))
