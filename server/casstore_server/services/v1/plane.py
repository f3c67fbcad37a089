"""What the routes of ``/api/v1`` share in one server.

Decided here and only here: how long it is remembered who signs for a bucket: credentials change.
"""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field

from casstore.remote.credentials import CredentialSource
from casstore.remote.presign import ObjectSigner, open_signer
from casstore.remote.urls import REMOTE_SCHEMES, parse_url, scheme_of
from casstore_server.services.v1.signing import Signing
from casstore_server.services.v1.trees import Proofs

__all__ = ["Plane"]

BODIES = 8
"""Packs that are taken from clients at once: each is in memory."""
_SIGNERS_S = 600.0
"""Seconds after which credentials are asked for again."""


@dataclass(slots=True)
class Plane:
    """Thread-safe."""

    proofs: Proofs = field(default_factory=Proofs)
    signing: Signing = field(default_factory=Signing)
    bodies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(BODIES))
    _signers: dict[str, tuple[float, ObjectSigner | None]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def signer(self, url: str, credentials: CredentialSource | None) -> ObjectSigner | None:
        """Who signs for the bucket of a store; None where nobody can."""
        if scheme_of(url) not in REMOTE_SCHEMES:
            return None
        with self._lock:
            known = self._signers.get(url)
            if known is None or known[0] < time.monotonic():
                known = self._signers[url] = time.monotonic() + _SIGNERS_S, open_signer(parse_url(url), credentials)
            return known[1]
