"""The file that keeps a user's credentials where no server can run.

A server keeps credentials in its database, sealed; the first one that starts takes up what is in the file, and removes
it (``casstore_server.keyring``).

Decided here and only here: its format, and that it is for its owner's eyes: made with mode 0600 and replaced at once
under a lock, and not read when others could have read or changed it. The secrets in it are as safe as an SSH key is;
a key beside it that encrypts them would make them no safer.

For a DATA credential that ``config.yaml`` holds already (the command keeps it there, as OSMO's does) the payload here
is empty: only its name and profile are known, so that no secret is kept twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator

import msgspec

from casstore.errors import AccessError, FormatError, NotFoundError, OutOfSpaceError, StorageError
from casstore.structs import from_json
from casstore.wire.credentials import Credential

__all__ = ["FILE_NAME", "Vault"]

FILE_NAME = "credentials.json"
"""Beside ``config.yaml``."""
_LOCK_NAME = ".credentials.lock"
_MAX_BYTES = 64 << 20
_VERSION = 1


class _File(msgspec.Struct, forbid_unknown_fields=True):
    version: int = _VERSION
    users: dict[str, dict[str, Credential]] = {}


class Vault:
    """Credentials by user and name; nothing is held in memory between calls, so that changes by others are seen.

    Errors: ``AccessError`` when the file is open to others or can't be read, ``FormatError`` when it is damaged,
    ``StorageError`` when it can't be written.
    """

    def __init__(self, folder: str) -> None:
        """``folder`` is made when first something is kept."""
        self._folder = folder
        self.path = os.path.join(folder, FILE_NAME)

    def names(self, user: str) -> dict[str, Credential]:
        """All credentials of a user, by name."""
        return dict(sorted(self._read().users.get(user, {}).items()))

    def all(self) -> dict[str, dict[str, Credential]]:
        """All credentials of all users, by user and name."""
        return self._read().users

    def get(self, user: str, name: str) -> Credential | None:
        """One credential; None when the user has none of this name."""
        return self._read().users.get(user, {}).get(name)

    def put(self, user: str, name: str, credential: Credential) -> list[str]:
        """Keep a credential under a name, in place of what was there.

        There is one for each profile: returns the other names that had the same one and are gone.
        """
        with self._changing() as content:
            own = content.users.setdefault(user, {})
            same = (credential.type, credential.profile)
            gone = [
                other
                for other, old in own.items()
                if other != name and credential.profile is not None and (old.type, old.profile) == same
            ]
            for other in gone:
                del own[other]
            own[name] = credential
        return gone

    def remove(self, user: str, name: str) -> Credential:
        """Forget a credential and return it. ``NotFoundError``."""
        if self.get(user, name) is None:
            raise _missing(name)
        with self._changing() as content:
            found = content.users.get(user, {}).pop(name, None)
            if found is None:
                raise _missing(name)
            if not content.users[user]:
                del content.users[user]
        return found

    @contextlib.contextmanager
    def _changing(self) -> Iterator[_File]:
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            lock = os.open(os.path.join(self._folder, _LOCK_NAME), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AccessError(f"can't write into {self._folder}: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self._read()
            yield content
            self._write(content)
        finally:
            os.close(lock)

    def _read(self) -> _File:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return _File()
        except OSError as error:
            raise AccessError(f"can't read {self.path}: {error.strerror}") from None
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise AccessError(f"{self.path} is not a file")
            if found.st_uid not in {os.geteuid(), 0} or stat.S_IMODE(found.st_mode) & 0o077:
                raise AccessError(
                    f"other users can read the secrets in {self.path}: it is not used",
                    hint=f"chmod 600 {self.path}; and change the secrets if somebody may have read them",
                )
            if found.st_size > _MAX_BYTES:
                raise FormatError(f"{self.path} is too large")
            data = file.read(_MAX_BYTES + 1)
        try:
            content = from_json(data, _File)
        except (msgspec.MsgspecError, UnicodeDecodeError):  # what is wrong may be a part of a secret
            raise FormatError(
                f"{self.path} is damaged", hint="remove it and set your credentials again: osmo credential set"
            ) from None
        if content.version != _VERSION:
            raise FormatError(f"{self.path} was written by a newer release")
        return content

    def _write(self, content: _File) -> None:
        temporary = f"{self.path}.{os.getpid()}.tmp"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            kind = OutOfSpaceError if error.errno == 28 else StorageError
            raise kind(f"can't write {self.path}: {error.strerror}") from None


def _missing(name: str) -> NotFoundError:
    return NotFoundError(f"there is no credential {name!r}", hint="see: osmo credential list")
