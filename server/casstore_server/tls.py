"""TLS of the server itself.

Decided here and only here: TLS 1.2 at least; and that a certificate that was renewed is used for new connections within
a minute, without a restart, while one that can't be read leaves the old one in force.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from pathlib import Path
from typing import Final

from casstore.errors import UsageError

__all__ = ["Certificate"]

LOOK_SECONDS: Final = 60.0
_log = logging.getLogger(__name__)


class Certificate:
    """The files of a certificate (with those that lead to its root) and its key."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises ``UsageError`` when they can't be used."""
        self._certificate = certificate
        self._key = key
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._stamp = self._looked()
        self._load()

    def renew(self) -> bool:
        """Use the files if they have changed; whether they have."""
        stamp = self._looked()
        if stamp == self._stamp:
            return False
        try:
            self._load()
        except UsageError as error:
            _log.error("%s; the old one stays in force", error.message)
            return False
        self._stamp = stamp
        _log.info("the certificate in %s was renewed", self._certificate)
        return True

    async def watch(self) -> None:
        """Renew it whenever there is a new one; for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.renew)

    def _looked(self) -> tuple[object, ...]:
        found: list[object] = []
        for path in (self._certificate, self._key):
            try:
                status = os.stat(path)
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
            except OSError as error:
                found.append(error.errno)
        return tuple(found)

    def _load(self) -> None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._certificate, self._key, _no_password)
            self.context.load_cert_chain(self._certificate, self._key, _no_password)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(
                f"The certificate {self._certificate} and its key {self._key} can't be used: {error}"
            ) from None


def _no_password() -> str:
    raise UsageError(
        "The key of the certificate has a password, which nobody is there to type", hint="Use one without."
    )
