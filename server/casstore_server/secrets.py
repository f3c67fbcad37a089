"""Secrets at rest: how they are sealed, and with which key.

Decided here and only here: AES-256-GCM under a key that the operator holds; that a sealed value says which key opens it
and opens nowhere but where it was sealed for (its context is authenticated with it); what a key looks like in a file,
and that a file that others can read is refused. The first key of several seals, all of them open: that is how keys are
changed while servers run. What is sealed in the database, and anew, is known to ``db.sealed``.

A sealed value: a byte 1, the id of the key (8 bytes), a nonce (12), and the ciphertext with its tag (16).
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import secrets
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from casstore.errors import AccessError, CasstoreError, IntegrityError, NotFoundError, StorageError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["KEY_VARIABLE", "Key", "KeyFile", "SecretBox", "make_key_file", "new_key", "parse_keys", "replace_key_file"]

KEY_VARIABLE: Final = "CASSTORE_SECRET_KEY"
_VERSION: Final = b"\1"
_ID: Final = 8
_NONCE: Final = 12
_TAG: Final = 16
_HEAD: Final = len(_VERSION) + _ID
_KEY_BYTES: Final = 32
_MAX_KEYS: Final = 16
_MAX_FILE: Final = 16 << 10
_HOW = "Make one with: osmo server new-key"


class Key:
    """32 secret bytes, and the id by which sealed values name them. Nothing shows the bytes."""

    __slots__ = ("_cipher", "_secret", "id")

    def __init__(self, secret: bytes) -> None:
        """Raises ``UsageError`` for a wrong number of bytes."""
        if len(secret) != _KEY_BYTES:
            raise UsageError(f"a key for secrets has {_KEY_BYTES} bytes, not {len(secret)}", hint=_HOW)
        self._secret = secret
        self._cipher: AESGCM | None = None
        self.id = hashlib.sha256(b"casstore key id\0" + secret).digest()[:_ID].hex()

    def __repr__(self) -> str:
        return f"Key({self.id})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and secrets.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> str:
        raise TypeError("a key is not to be copied to where anybody could read it")

    def line(self) -> str:
        """As it is written in a file: the secret itself, as base64."""
        return base64.b64encode(self._secret).decode()

    def derive(self, purpose: str) -> bytes:
        """32 bytes that are good for one purpose, and tell nothing of the key or of those for others."""
        return hashlib.blake2b(purpose.encode(), key=self._secret, digest_size=32, person=b"casstore").digest()

    @property
    def cipher(self) -> AESGCM:
        """The cipher of this key."""
        if self._cipher is None:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  # only where it is needed

            self._cipher = AESGCM(self._secret)
        return self._cipher


class SecretBox:
    """Seals and opens secrets; safe to use from any thread. ``keys`` is asked each time, the first of them seals."""

    def __init__(self, keys: Callable[[], Sequence[Key]]) -> None:
        self._keys = keys

    def __repr__(self) -> str:
        return "SecretBox()"

    @property
    def keys(self) -> Sequence[Key]:
        """All that open."""
        return self._keys()

    @property
    def key_id(self) -> str:
        """The id of the key that seals."""
        return self._keys()[0].id

    def seal(self, data: bytes, *context: str) -> bytes:
        """``data`` for nobody without the key to read. ``context`` says where it is kept (a table and a row's key):
        without the same it does not open.
        """
        key = self._keys()[0]
        head = _VERSION + bytes.fromhex(key.id)
        nonce = secrets.token_bytes(_NONCE)
        return head + nonce + key.cipher.encrypt(nonce, data, _bound(head, context))

    def open(self, sealed: bytes, *context: str) -> bytes:
        """What was sealed. Raises ``AccessError`` when there is no key for it, ``IntegrityError`` when it was changed,
        or sealed for another place.
        """
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  # only where it is needed

        wanted = key_of(sealed)
        key = next((known for known in self._keys() if known.id == wanted), None)
        if key is None:
            raise AccessError(f"a secret was sealed with the key {wanted or 'of another version'}, which is not given")
        nonce, rest = sealed[_HEAD : _HEAD + _NONCE], sealed[_HEAD + _NONCE :]
        try:
            return key.cipher.decrypt(nonce, rest, _bound(sealed[:_HEAD], context))
        except InvalidTag:
            raise IntegrityError(f"a secret is damaged, or not where it was kept: {' '.join(context)}") from None


def key_of(sealed: bytes) -> str:
    """The id of the key that opens a sealed value; empty when it is none of this version."""
    if sealed[:1] != _VERSION or len(sealed) < _HEAD + _NONCE + _TAG:
        return ""
    return sealed[1:_HEAD].hex()


def _bound(head: bytes, context: Sequence[str]) -> bytes:
    """What is authenticated besides; JSON, so that no two contexts are the same bytes."""
    return head + msgspec.json.encode([str(part) for part in context])


def new_key() -> Key:
    """A new random key."""
    return Key(secrets.token_bytes(_KEY_BYTES))


def parse_keys(text: str, what: str) -> tuple[Key, ...]:
    """The keys in a text: base64, apart by spaces, lines or commas; lines that begin with # are comments.

    Raises ``UsageError`` naming ``what``, and nothing of the text.
    """
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    words = [word for word in re.split(r"[\s,]+", " ".join(lines)) if word]
    if not words or len(words) > _MAX_KEYS:
        raise UsageError(f"{what} must hold a key, or up to {_MAX_KEYS}: it has {len(words)}", hint=_HOW)
    found = []
    for number, word in enumerate(words, 1):
        try:
            secret = base64.b64decode(word, validate=True)
        except (binascii.Error, ValueError):
            secret = b""
        if len(secret) != _KEY_BYTES:
            raise UsageError(f"{what}: key {number} is not {_KEY_BYTES} bytes in base64", hint=_HOW)
        found.append(Key(secret))
    return tuple(dict.fromkeys(found))


class _Stamp(NamedTuple):
    inode: int
    changed: int
    size: int


class KeyFile:
    """The keys in a file, read again when it changes; what was last right stays in force. Thread-safe."""

    def __init__(self, path: Path) -> None:
        """Raises as ``read`` does."""
        self.path = path
        self._lock = threading.Lock()
        self._stamp: _Stamp | None = None
        self._keys: tuple[Key, ...] = ()
        self._refresh()

    def __repr__(self) -> str:
        return f"KeyFile({str(self.path)!r})"

    def __call__(self) -> tuple[Key, ...]:
        with self._lock:
            with contextlib.suppress(CasstoreError):  # a file that is being replaced stops nobody
                self._refresh()
            return self._keys

    def _refresh(self) -> None:
        try:
            found = os.stat(self.path)
        except OSError as error:
            raise _unreadable(self.path, error) from None
        stamp = _Stamp(found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp != self._stamp:
            self._keys = _read(self.path)
            self._stamp = stamp


def _read(path: Path) -> tuple[Key, ...]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(path, error) from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is not a file, so it holds no key for secrets")
    with open(descriptor, "rb") as file:
        if found.st_uid not in {os.geteuid(), 0} or stat.S_IMODE(found.st_mode) & 0o077:
            raise AccessError(
                f"Other users can read the key for secrets in {path}: it is not used",
                hint=f"chmod 600 {path}; if somebody may have read it, then: osmo server rekey --new",
            )
        data = file.read(_MAX_FILE + 1)
    if len(data) > _MAX_FILE:
        raise UsageError(f"{path} is too large to be a key for secrets")
    return parse_keys(data.decode("ascii", "replace"), str(path))


def _unreadable(path: Path, error: OSError) -> CasstoreError:
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"There is no key for secrets: {path} does not exist", hint=_HOW)
    return AccessError(f"The key for secrets can't be read: {path}: {error.strerror}")


def make_key_file(path: Path) -> None:
    """A new key in a new file, mode 0600. Raises ``StorageError``, also when it exists."""
    _write(path, [new_key()], replaces=False)


def replace_key_file(path: Path, keys: Sequence[Key]) -> None:
    """Have these keys in a file at once, instead of those that are there. Raises ``StorageError``."""
    _write(path, keys, replaces=True)


def _write(path: Path, keys: Sequence[Key], *, replaces: bool) -> None:
    text = "# The key of the server's secrets. Whoever has it can read them; without it nobody can.\n"
    text += "".join(f"{key.line()}\n" for key in keys)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(draft, flags, 0o600), "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if replaces:
            os.replace(draft, path)
        else:
            os.link(draft, path)
            os.unlink(draft)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise StorageError(f"The key for secrets can't be written to {path}: {error.strerror}") from None
