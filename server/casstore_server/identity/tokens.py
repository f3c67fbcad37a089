"""Personal tokens: what one looks like, and what is kept of it.

Decided here and only here: ``casstore_``, 40 letters and digits of chance (238 bits) and a checksum of 6, so that
scanners find one that was published and a mistyped one is refused without a look into the database; and that SHA-256 of
it is kept, which is enough for what nobody can guess.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from typing import Final

__all__ = ["PREFIX", "digest", "is_token", "new_token"]

PREFIX: Final = "casstore_"
_ALPHABET: Final = string.digits + string.ascii_letters
_RANDOM: Final = 40
_CHECK: Final = 6
_TOKEN: Final = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_RANDOM + _CHECK}}}", re.ASCII)


def new_token() -> str:
    """A token that nobody has."""
    chosen = "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM))
    return PREFIX + chosen + _checksum(chosen)


def is_token(text: str) -> bool:
    """Whether it could be a token: its form and its checksum are right."""
    if not _TOKEN.fullmatch(text):
        return False
    body = text.removeprefix(PREFIX)
    return _checksum(body[:_RANDOM]) == body[_RANDOM:]


def digest(token: str) -> str:
    """What is kept of a token, 64 hexadecimal digits: equal for equal tokens, and nothing leads back."""
    return hashlib.sha256(token.encode()).hexdigest()


def _checksum(text: str) -> str:
    number, found = zlib.crc32(text.encode()), ""
    for _ in range(_CHECK):
        number, rest = divmod(number, len(_ALPHABET))
        found = _ALPHABET[rest] + found
    return found
