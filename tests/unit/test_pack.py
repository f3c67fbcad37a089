from __future__ import annotations

import os

import pytest

from casstore import hashing
from casstore.compression import RAW, Compressor
from casstore.errors import CasstoreError, FormatError, IntegrityError
from casstore.format.pack import (
    HEADER_SIZE,
    TRAILER_SIZE,
    PackKind,
    decode_frame,
    parse_footer,
    tail_size,
    verify_frames,
)
from casstore.repo.packs import PackBuilder


def build(chunks: list[bytes], kind: PackKind = PackKind.DATA) -> tuple[bytes, bytes]:
    """Return id and bytes of a pack with these chunks."""
    builder, compressor = PackBuilder(kind), Compressor()
    for chunk in chunks:
        codec, payload = compressor.encode(chunk)
        builder.append(hashing.digest(chunk), len(chunk), codec, payload)
    sealed = builder.seal()
    return sealed.pack_id, b"".join(bytes(part) for part in sealed.parts)


def parse(pack_id: bytes, pack: bytes):  # type: ignore[no-untyped-def]
    tail = tail_size(pack[-TRAILER_SIZE:])
    return parse_footer(pack_id, pack[:HEADER_SIZE], pack[-tail:], len(pack))


CHUNKS = [b"a" * 5000, os.urandom(9000), b"", b"x", b"joint,angle\n" * 900]


def test_a_pack_gives_back_its_chunks() -> None:
    pack_id, pack = build(CHUNKS)
    footer = parse(pack_id, pack)
    assert footer.kind is PackKind.DATA
    assert footer.size == len(pack)
    for record, chunk in zip(footer.records, CHUNKS, strict=True):
        payload = pack[record.offset : record.offset + record.stored]
        assert decode_frame(record.chunk_id, record.codec, payload, record.raw) == chunk
    assert verify_frames(footer.records, pack) == []


def test_random_data_is_stored_raw_and_text_is_not() -> None:
    footer = parse(*build(CHUNKS))
    assert footer.records[1].codec == RAW
    assert footer.records[4].stored < footer.records[4].raw // 10


def test_builder_can_be_used_again() -> None:
    builder = PackBuilder(PackKind.META)
    for chunk in (b"one" * 100, b"two" * 50):
        builder.append(hashing.digest(chunk), len(chunk), RAW, chunk)
        sealed = builder.seal()
        pack = b"".join(bytes(part) for part in sealed.parts)
        assert [r.chunk_id for r in parse(sealed.pack_id, pack).records] == [hashing.digest(chunk)]
        del sealed
        builder.reset()
        assert len(builder) == 0


def test_a_view_of_the_pack_before_is_in_nobodys_way() -> None:
    builder = PackBuilder(PackKind.DATA)
    builder.append(hashing.digest(b"one"), 3, RAW, b"one")
    held = builder.seal()
    builder.reset()
    large = os.urandom(300_000)
    builder.append(hashing.digest(b"two"), 3, RAW, b"two")
    builder.append(hashing.digest(large), len(large), RAW, large)
    sealed = builder.seal()
    pack = b"".join(bytes(part) for part in sealed.parts)
    assert verify_frames(parse(sealed.pack_id, pack).records, pack) == []
    assert held.size < sealed.size


def test_every_flipped_bit_is_found() -> None:
    pack_id, pack = build([b"hello " * 40, os.urandom(64), b"z" * 300])
    for position in range(len(pack)):
        for bit in range(8):
            broken = bytearray(pack)
            broken[position] ^= 1 << bit
            try:
                found = bool(verify_frames(parse(pack_id, bytes(broken)).records, bytes(broken)))
            except CasstoreError as error:
                found = isinstance(error, IntegrityError)
            assert found, (position, bit)


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 31, 100, 147])
def test_truncated_packs_are_refused(length: int) -> None:
    pack_id, pack = build([os.urandom(80)])
    with pytest.raises(IntegrityError):
        parse(pack_id, pack[:length])


def test_a_frame_that_is_another_chunk_is_refused() -> None:
    with pytest.raises(IntegrityError, match="damaged"):
        decode_frame(hashing.digest(b"wanted"), RAW, b"gotten", 6)


def test_an_empty_pack_is_no_pack() -> None:
    with pytest.raises(FormatError):
        tail_size(bytes(TRAILER_SIZE))


def test_a_full_pack_of_tiny_chunks_has_room_for_one_that_changes_its_id() -> None:
    builder = PackBuilder(PackKind.DATA)
    number = 0
    while not builder.full:
        data = b"%d" % number
        builder.append(hashing.digest(data), len(data), 0, data)
        number += 1
    before = builder.seal().pack_id
    builder.salt()
    sealed = builder.seal()
    assert sealed.pack_id != before
    pack = b"".join(bytes(part) for part in sealed.parts)
    footer = parse_footer(sealed.pack_id, pack[:HEADER_SIZE], pack[-tail_size(pack[-TRAILER_SIZE:]) :], len(pack))
    assert len(footer.records) == number + 1
