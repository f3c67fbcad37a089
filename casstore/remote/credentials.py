"""Credentials of object storage: their shape, and how one is found for a URL.

Decided here and only here: the profile that a URL's credentials are kept under (OSMO's), and the order in which they
are looked for: what the caller configured for that profile, then what the service's own library finds in the
environment or in the identity of the machine. Secrets are never part of a repr.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

__all__ = ["AmbientCredentials", "CredentialSource", "StorageCredential"]


class StorageCredential(msgspec.Struct, frozen=True, kw_only=True):
    """What OSMO calls a DATA credential. For Azure ``access_key`` is a connection string or an account key."""

    access_key_id: str = ""
    access_key: str = ""
    session_token: str = ""
    region: str | None = None
    override_url: str | None = None
    """Endpoint of a compatible service instead of the vendor's, ``http(s)://host[:port]``."""
    addressing_style: str | None = None
    """``path`` or ``virtual``; None lets the endpoint decide."""

    def __repr__(self) -> str:
        return f"StorageCredential(region={self.region!r}, override_url={self.override_url!r})"


class CredentialSource(Protocol):
    """Where configured credentials come from."""

    def find(self, profile: str) -> StorageCredential | None:
        """Return the credential of a profile such as ``s3://bucket``, or None to use the ambient identity."""
        ...


class AmbientCredentials:
    """Nothing is configured: the environment and the machine's identity decide."""

    def find(self, profile: str) -> StorageCredential | None:
        """None."""
        return None
