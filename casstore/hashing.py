"""The one hash function of the store.

Decided here and only here: every id is a BLAKE3 digest of 32 bytes. The id of a chunk is the plain digest of
its raw bytes. A digest over anything else (a file, a manifest, a cache key) is taken in a *derive-key*
context of its own, so that no crafted file content can have the same id as a structure. In text an id is 64
lower-case hexadecimal digits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from blake3 import blake3 as Hasher  # noqa: N812 - a class in all but its name

from casstore.errors import FormatError
from casstore.model import DIGEST_SIZE, Buffer

__all__ = ["Hasher", "derive", "derive_hasher", "digest", "digest_parts", "from_hex", "to_hex"]

_HEX = re.compile(r"[0-9a-f]{64}\Z", re.ASCII)


def digest(data: Buffer) -> bytes:
    """Return the plain BLAKE3 digest (32 bytes) of ``data``: the id of a chunk with these bytes."""
    return Hasher(data).digest()


def digest_parts(parts: Iterable[Buffer]) -> bytes:
    """Return the plain BLAKE3 digest (32 bytes) of the concatenation of ``parts``."""
    hasher = Hasher()
    for part in parts:
        hasher.update(part)
    return hasher.digest()


def derive_hasher(context: str) -> Hasher:
    """Return a streaming hasher for the domain that ``context`` names: ``update`` it, then ``digest()``.

    A context is a constant in the code, never made from input: ``"casstore <what> <version>"``.
    """
    return Hasher(derive_key_context=context)


def derive(context: str, data: Buffer) -> bytes:
    """Return the BLAKE3 digest (32 bytes) of ``data`` in the domain that ``context`` names."""
    return Hasher(data, derive_key_context=context).digest()


def to_hex(value: bytes) -> str:
    """Return the text form of an id. Raises ``ValueError`` unless it has 32 bytes."""
    if len(value) != DIGEST_SIZE:
        raise ValueError(f"an id has {DIGEST_SIZE} bytes, not {len(value)}")
    return value.hex()


def from_hex(text: str) -> bytes:
    """Return the id (32 bytes) with this text form.

    Raises ``FormatError`` for anything but exactly 64 lower-case hexadecimal digits, so that an id has one
    spelling.
    """
    if not _HEX.match(text):
        raise FormatError(f"not an id (64 lower-case hexadecimal digits): {text[:80]!r}")
    return bytes.fromhex(text)
