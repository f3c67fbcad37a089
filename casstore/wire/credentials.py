"""Requests and replies about credentials.

Decided here and only here: the field names of these shapes (OSMO's), what a credential may hold, and the profile that
it is for. No ``repr`` and no message holds a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import msgspec

from casstore.errors import UsageError
from casstore.remote.configured import check_credential
from casstore.remote.credentials import StorageCredential
from casstore.remote.urls import parse_url

__all__ = [
    "DATA",
    "GENERIC",
    "REGISTRY",
    "TYPES",
    "Credential",
    "CredentialBody",
    "CredentialList",
    "CredentialSummary",
    "DataPart",
    "GenericPart",
    "RegistryPart",
    "check_name",
    "profile_of",
    "storage_part",
]

GENERIC, DATA, REGISTRY = "GENERIC", "DATA", "REGISTRY"
TYPES = (REGISTRY, DATA, GENERIC)

MAX_BYTES = 256 * 1024
"""Bytes of all keys and values of one credential."""
_NAME = re.compile(r"[a-zA-Z](?:[\w-]{0,126}[a-zA-Z0-9])?", re.ASCII)
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}", re.ASCII)
_REGISTRY = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252}[A-Za-z0-9])?(?::[0-9]{1,5})?(?:/[A-Za-z0-9._/-]{1,200})?")


class RegistryPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """For a registry of container images."""

    auth: str
    registry: str = "registry-1.docker.io"
    username: str = ""

    def __repr__(self) -> str:
        return f"RegistryPart(registry={self.registry!r})"


class DataPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """For object storage; ``endpoint`` is a URL in it. The last two are ours. Without keys the identity of the
    machine is used.
    """

    endpoint: str
    access_key_id: str = ""
    access_key: str = ""
    region: str | None = None
    override_url: str | None = None
    session_token: str = ""
    addressing_style: str | None = None

    def __repr__(self) -> str:
        return f"DataPart(endpoint={self.endpoint!r})"


class GenericPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Keys and values for tasks."""

    credential: dict[str, str]

    def __repr__(self) -> str:
        return "GenericPart()"


class CredentialBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of a request that sets a credential: exactly one of these."""

    registry_credential: RegistryPart | None = None
    data_credential: DataPart | None = None
    generic_credential: GenericPart | None = None


class CredentialSummary(msgspec.Struct, kw_only=True):
    """One credential without its secrets. ``profile`` is None for a GENERIC one."""

    cred_name: str
    cred_type: str
    profile: str | None = None


class CredentialList(msgspec.Struct, kw_only=True):
    """The credentials of one user, or the one that was removed."""

    credentials: list[CredentialSummary]


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """A credential that was found sound."""

    type: str
    profile: str | None
    payload: dict[str, str]

    def __repr__(self) -> str:
        return f"Credential({self.type}, profile={self.profile!r})"

    @classmethod
    def of_body(cls, body: CredentialBody) -> Credential:
        """Check a body. ``UsageError``."""
        parts = [body.registry_credential, body.data_credential, body.generic_credential]
        if sum(part is not None for part in parts) != 1:
            raise UsageError("exactly one of registry_credential, data_credential and generic_credential must be given")
        if body.registry_credential is not None:
            return _of_registry(body.registry_credential)
        if body.data_credential is not None:
            return _of_data(body.data_credential)
        assert body.generic_credential is not None
        return cls(type=GENERIC, profile=None, payload=_checked(body.generic_credential.credential))

    def storage(self) -> StorageCredential | None:
        """What a DATA credential holds; None for another one."""
        return StorageCredential(**self.payload) if self.type == DATA else None


def check_name(name: str) -> str:
    """The name of a credential; ``UsageError`` for what can't be one."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name[:80]!r} is not a name for a credential",
            hint="letters, digits, '_' and '-'; the first is a letter, the last a letter or a digit",
        )
    return name


def profile_of(endpoint: str) -> str:
    """The profile of a URL of storage, or of a profile itself, such as ``azure://account``. ``UsageError``."""
    try:
        return parse_url(endpoint).profile
    except UsageError:
        for rest in ("container", "account/container"):  # a profile need not name a container
            try:
                found = parse_url(f"{endpoint.rstrip('/')}/{rest}").profile
            except UsageError:
                continue
            if found == endpoint.rstrip("/"):
                return found
        raise


def storage_part(part: DataPart) -> StorageCredential:
    """The credential in a DATA part. ``UsageError`` when its parts can't go together."""
    given = {name: getattr(part, name) for name in StorageCredential.__struct_fields__}
    return check_credential(StorageCredential(**given), "data_credential")


def _of_registry(part: RegistryPart) -> Credential:
    if not part.auth:
        raise UsageError("registry_credential.auth is empty")
    if not _REGISTRY.fullmatch(part.registry):
        raise UsageError("registry_credential.registry must be host[:port]")
    username = part.username or ("$oauthtoken" if part.registry.partition("/")[0] == "nvcr.io" else "")
    payload = _checked({"registry": part.registry, "username": username, "auth": part.auth})
    return Credential(type=REGISTRY, profile=part.registry, payload=payload)


def _of_data(part: DataPart) -> Credential:
    profile = profile_of(part.endpoint)
    if profile == "file://":
        raise UsageError("a local folder needs no credential")
    storage = storage_part(part)
    pairs = ((name, getattr(storage, name)) for name in storage.__struct_fields__)
    return Credential(type=DATA, profile=profile, payload=_checked({name: value for name, value in pairs if value}))


def _checked(payload: Mapping[str, str]) -> dict[str, str]:
    if not payload:
        raise UsageError("the credential is empty: give it at least one key")
    total = 0
    for key, value in payload.items():
        if not _KEY.fullmatch(key):
            raise UsageError(
                f"{key[:80]!r} can't be a key of a credential", hint="letters, digits, '_', '-' and '.', as for a file"
            )
        try:
            total += len(key) + len(value.encode())
        except UnicodeEncodeError:
            raise UsageError(f"the value of {key!r} is not UTF-8 text") from None
        if "\0" in value:
            raise UsageError(f"the value of {key!r} holds a NUL character")
    if total > MAX_BYTES:
        raise UsageError(f"the credential has {total} bytes; at most {MAX_BYTES} are kept")
    return dict(payload)
