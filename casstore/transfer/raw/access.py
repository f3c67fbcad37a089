"""Whether credentials allow what they should.

Decided here and only here: what is tried for each kind of access, and that nothing is left behind by a trial where
that is allowed.
"""

from __future__ import annotations

import os

from casstore.errors import CasstoreError, UsageError
from casstore.remote.base import ObjectClient
from casstore.remote.credentials import CredentialSource, StorageCredential
from casstore.remote.urls import parse_url
from casstore.transfer.raw.listing import open_place

__all__ = ["ACCESS_TYPES", "check_access", "check_credential"]

ACCESS_TYPES = ("READ", "WRITE", "DELETE")
_PROBE = ".casstore-check-"


def check_access(url: str, access: str, credentials: CredentialSource | None = None) -> None:
    """Try one of ``ACCESS_TYPES`` at a URL; raises what went wrong.

    READ lists, WRITE stores an empty object and removes it if it may, DELETE removes it and must.
    """
    with open_place(url, credentials) as place:
        if access == "READ":
            for _ in place.client.list(place.base, recursive=False):
                break
            return
        key = f"{place.base}{_PROBE}{os.urandom(8).hex()}"
        place.client.put(key, [b""])
        _remove(place.client, key, must=access == "DELETE")


def check_credential(endpoint: str, credential: StorageCredential) -> bool:
    """Try whether a credential can list what it is for; raises what went wrong.

    False when that can't be tried: the endpoint is an account and names no container.
    """
    try:
        parse_url(endpoint)
    except UsageError:
        return False
    check_access(endpoint, "READ", _Only(credential))
    return True


class _Only:
    def __init__(self, credential: StorageCredential) -> None:
        self._credential = credential

    def find(self, profile: str) -> StorageCredential | None:
        """The one credential."""
        return self._credential


def _remove(client: ObjectClient, key: str, *, must: bool) -> None:
    try:
        client.delete([key])
    except CasstoreError:
        if must:
            raise
