"""Object storage for ``url:`` inputs and outputs: the ``UrlStore`` port over ``casstore.transfer.raw``.

Decided here and only here: whose credentials a transfer uses, what a task's log hears of it, and that a transfer of
which one file fails has failed: a task never starts on half of its input.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from casstore.errors import AccessError, CasstoreError, FormatError, NotFoundError, SourceError, SpecError
from casstore.remote.credentials import CredentialSource
from casstore.remote.open import open_objects
from casstore.remote.urls import REMOTE_SCHEMES, parse_url, scheme_of
from casstore.transfer.raw import Result, Source, check_access, download, open_place, upload
from casstore.transfer.safefs import show

from .folders import size_text
from .ports import UrlTransfer

__all__ = ["StorageUrls"]

CHECK_SECONDS = 5.0
"""How long a submission waits for the service of an input."""
TELL_EVERY = 15.0
"""Seconds between two lines about how far a transfer is."""
_MAX_LINES = 20
"""Lines about single files, at most; the rest is counted."""
_log = logging.getLogger(__name__)
_TOKEN = re.compile(r"\{\{[^{}]*\}\}")


class StorageUrls:
    """Implements ``ports.UrlStore``. ``credentials_of`` gives the configured credentials of a user."""

    def __init__(self, credentials_of: Callable[[str], CredentialSource]) -> None:
        self._credentials_of = credentials_of

    def check(self, url: str, user: str, *, reads: bool) -> None:
        """See ``ports.UrlStore``."""
        plain = _TOKEN.sub("x", url)
        if scheme_of(plain) not in REMOTE_SCHEMES:
            msg = f"{show(url)!r} is not a URL of object storage"
            raise SpecError(msg, hint="It begins with one of s3:// gs:// azure:// tos:// swift://")
        profile = parse_url(plain).profile
        if plain != url:
            return
        credentials = self._credentials_of(user)
        open_objects(url, credentials)[0].close()  # a missing library, a wrong credential
        # Without a credential of the user's own, the identity of the machine decides: that of the one that reads.
        if reads and credentials.find(profile) is not None:
            _try_to_list(url, credentials)

    def download(
        self,
        url: str,
        user: str,
        target: Path,
        *,
        regex: str | None,
        tell: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> UrlTransfer:
        """See ``ports.UrlStore``."""
        progress = _Told("Downloaded", tell)
        with open_place(url, self._credentials_of(user)) as place:
            result = download(place, str(target), regex=regex, resume=True, progress=progress, stop=stop)
        return _whole(result, url)

    def upload(
        self,
        url: str,
        user: str,
        source: Path,
        *,
        regex: str | None,
        again: bool,
        tell: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> UrlTransfer:
        """See ``ports.UrlStore``."""
        progress = _Told("Uploaded", tell)
        root = Source(bytes(source), b"")
        with open_place(url, self._credentials_of(user)) as place:
            result = upload(place, [root], regex=regex, resume=again, follow=False, progress=progress, stop=stop)
        return _whole(result, url)


def _whole(result: Result, url: str) -> UrlTransfer:
    try:
        result.check(show(url))
    except FormatError as error:  # a name stays what it is however often it is tried
        raise SourceError(error.message, hint=error.hint) from None
    return UrlTransfer(files=result.files, size=result.size, digest=result.digest)


def _try_to_list(url: str, credentials: CredentialSource) -> None:
    """Raise what a credential does not allow; a service that does not answer soon may do so when the task runs."""
    found: list[CasstoreError] = []

    def work() -> None:
        try:
            check_access(url, "READ", credentials)
        except (AccessError, NotFoundError) as error:
            found.append(error)
        except Exception as error:  # noqa: BLE001 - the task will meet it again, and say it
            _log.info("could not look at %s: %s", show(url), error)

    thread = threading.Thread(target=work, name="casstore-url-check", daemon=True)
    thread.start()
    thread.join(CHECK_SECONDS)
    if found:
        raise found[0]


class _Told:
    """A ``Progress`` that says a line now and then."""

    def __init__(self, verb: str, tell: Callable[[str], None]) -> None:
        self._verb = verb
        self._tell = tell
        self._lock = threading.Lock()
        self._files = self._size = self._expected_files = self._expected_size = self._warned = 0
        self._final = False
        self._last = time.monotonic()

    def expect(self, files: int, size: int) -> None:
        """More was found."""
        with self._lock:
            self._expected_files += files
            self._expected_size += size

    def listed(self) -> None:
        """Nothing more will be found."""
        self._final = True

    def advance(self, size: int, *, new: int = 0) -> None:
        """Some bytes were moved."""
        with self._lock:
            self._size += size
            now = time.monotonic()
            if now - self._last < TELL_EVERY:
                return
            self._last = now
            more = "" if self._final else " so far"
            line = (
                f"  {self._verb} {self._files} of {self._expected_files} files, "
                f"{size_text(self._size)} of {size_text(self._expected_size)}{more}"
            )
        self._tell(line)

    def file_done(self, path: bytes) -> None:
        """A file was moved."""
        with self._lock:
            self._files += 1

    def warn(self, message: str) -> None:
        """Something about one file."""
        with self._lock:
            self._warned += 1
            warned = self._warned
        if warned <= _MAX_LINES:
            self._tell(f"  {message}")
        elif warned == _MAX_LINES + 1:
            self._tell("  (no more lines about single files)")
