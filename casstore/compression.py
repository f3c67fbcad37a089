"""How the bytes of a chunk are packed, and how they are unpacked without trusting them.

Decided here and only here: the codecs and their numbers, when a chunk is stored raw, and the bounds on
decoding.

A chunk is stored raw unless zstd saves a twentieth of it: decoding costs a reader time for every read to
come. Most bytes of a robot's data are video and images that were compressed before, and zstd needs as long as
BLAKE3 to find out. So four small samples are compressed first, and when they do not shrink by a single byte,
the chunk is taken to be incompressible: a fifth of zstd's own time for a chunk of average length, less for
longer ones and at higher levels. The probe compresses at level 1: the faster, negative levels leave out
entropy coding, which is all there is to gain on depth images, sensor values and model weights; and one sample
instead of four misses the text in a mixed chunk.
"""

from __future__ import annotations

import threading

from casstore.errors import FormatError, IntegrityError
from casstore.model import Buffer

__all__ = ["MAX_RAW", "RAW", "REFERENCE", "ZSTD", "Compressor", "Decompressor", "decode"]

RAW = 0
"""Codec: the bytes as they are."""
ZSTD = 1
"""Codec: one zstd frame (RFC 8878) with its content size, without checksum and dictionary."""
REFERENCE = 2
"""Codec: not the bytes but where they are, see ``casstore.format.reference``. Nothing here can decode it."""

MAX_RAW = 16 * 1024 * 1024
"""No chunk is longer than this, in raw bytes."""

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PROBE_FROM = 8192
_SAMPLE = 512


class Compressor:
    """Encodes chunks. Not thread-safe: one for each thread; its zstd context is reused from chunk to
    chunk.
    """

    def __init__(self, level: int = 3) -> None:
        # Loaded by the first who compresses: most commands that find nothing new never do.
        import zstandard  # noqa: PLC0415

        self._zstd = zstandard.ZstdCompressor(
            level=level, write_content_size=True, write_checksum=False, write_dict_id=False
        )
        self._probe = zstandard.ZstdCompressor(level=1, write_content_size=False, write_checksum=False)

    def encode(self, data: Buffer) -> tuple[int, Buffer]:
        """Return the codec and the bytes to store for one chunk.

        With ``RAW`` the payload is ``data`` itself, not a copy. Raises ``ValueError`` above ``MAX_RAW``
        bytes.
        """
        size = len(data)
        if size > MAX_RAW:
            raise ValueError(f"a chunk has at most {MAX_RAW} bytes, not {size}")
        if size >= _PROBE_FROM and self._looks_incompressible(data, size):
            return RAW, data
        packed = self._zstd.compress(data)
        if len(packed) >= size - size // 20:
            return RAW, data
        return ZSTD, packed

    def _looks_incompressible(self, data: Buffer, size: int) -> bool:
        """Whether a sample from the middle of each quarter does not shrink."""
        quarter = size // 4
        first = (quarter - _SAMPLE) // 2
        sample = b"".join([data[at : at + _SAMPLE] for at in range(first, size - _SAMPLE, quarter)])
        return len(self._probe.compress(sample)) >= len(sample)


class Decompressor:
    """Decodes chunks. Not thread-safe: one for each thread."""

    def __init__(self) -> None:
        import zstandard  # noqa: PLC0415 - see Compressor

        self._error = zstandard.ZstdError
        self._content_size = zstandard.frame_content_size
        # A damaged frame may ask for a window far larger than its content.
        self._zstd = zstandard.ZstdDecompressor(max_window_size=MAX_RAW)

    def decode(self, codec: int, payload: Buffer, raw_length: int) -> bytes:
        """Return the raw bytes of a chunk: exactly ``raw_length`` of them. Their id is the caller's to check.

        No memory is taken before ``raw_length`` and the size that the frame declares were found equal and
        within ``MAX_RAW``. Raises ``FormatError`` for an unknown codec or a frame that can't be what
        ``Compressor`` wrote, and ``IntegrityError`` when the frame is damaged or the length is another.
        """
        if not 0 <= raw_length <= MAX_RAW:
            raise FormatError(f"a chunk claims {raw_length} raw bytes; the limit is {MAX_RAW}")
        if codec == RAW:
            if len(payload) != raw_length:
                raise IntegrityError(f"a raw chunk has {len(payload)} bytes instead of {raw_length}")
            return bytes(payload)
        if codec == REFERENCE:
            raise FormatError("a chunk that is needed at once is only referred to")
        if codec != ZSTD:
            raise FormatError(f"unknown codec {codec} of a chunk", hint="a newer casstore may have written it")
        return self._decode_zstd(payload, raw_length)

    def _decode_zstd(self, payload: Buffer, raw_length: int) -> bytes:
        # An empty chunk is always raw; zstandard would accept anything after a header that declares no
        # content.
        if raw_length == 0 or bytes(payload[:4]) != _ZSTD_MAGIC:
            raise FormatError("a compressed chunk does not start with a zstd frame")
        try:
            declared = self._content_size(payload)
            if declared != raw_length:
                raise IntegrityError(f"a zstd frame declares {declared} bytes instead of {raw_length}")
            raw = self._zstd.decompress(payload, max_output_size=raw_length, allow_extra_data=False)
        except self._error as error:
            raise IntegrityError(f"a zstd frame is damaged: {error}") from error
        if len(raw) != raw_length:
            raise IntegrityError(f"a zstd frame holds {len(raw)} bytes instead of {raw_length}")
        return raw


class _Local(threading.local):
    def __init__(self) -> None:
        self.decompressor = Decompressor()


_local = _Local()


def decode(codec: int, payload: Buffer, raw_length: int) -> bytes:
    """``Decompressor.decode`` with a decompressor of the calling thread's own."""
    return _local.decompressor.decode(codec, payload, raw_length)
