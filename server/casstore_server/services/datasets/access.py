"""From the names in a request to an opened bucket, and from a place in it to the addresses that replies have.

Decided here and only here: that a bucket which is declared as read-only is not written to through any route, which
region a bucket is said to be in, and how its URLs look as links of HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from casstore.dataset import Bucket
from casstore.errors import AccessError, UsageError
from casstore.remote.urls import REMOTE_SCHEMES, parse_url, scheme_of
from casstore.repo import layout
from casstore_server.services.context import Caller, Services

__all__ = ["Place", "open_bucket", "place_at", "place_of"]

_REGIONS = {"s3": "us-east-1", "swift": "us-east-1", "gs": "us-east1", "azure": "eastus", "tos": "cn-beijing"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a bucket is: its URL without secrets, the region of the service, and the address it is reached at when
    that is not the vendor's.
    """

    url: str
    region: str
    endpoint: str | None = None

    @property
    def remote(self) -> bool:
        """Whether clients on other machines can reach it."""
        return scheme_of(self.url) in REMOTE_SCHEMES

    def require_remote(self, bucket: str) -> None:
        """Refuse what OSMO's client, which moves data itself, has no way to."""
        if not self.remote:
            raise UsageError(
                f"Bucket {bucket} is a folder of the server's machine, where OSMO's client can't read or write",
                hint="Use a bucket in object storage, or casstore's own osmo command on that machine.",
            )

    def link(self, uri: str) -> str:
        """A URL in this bucket as a link of HTTP; itself where the service has none."""
        if not self.remote:
            return uri
        found = parse_url(uri)
        path = quote(found.prefix)
        if self.endpoint:
            return f"{self.endpoint.rstrip('/')}/{found.bucket}/{path}"
        if found.scheme == "s3":
            return f"https://{found.bucket}.s3.{self.region}.amazonaws.com/{path}"
        if found.scheme == "gs":
            return f"https://storage.googleapis.com/{found.bucket}/{path}"
        if found.scheme == "azure":
            return f"https://{found.account}.blob.core.windows.net/{found.bucket}/{path}"
        return f"https://{found.endpoint}/{found.bucket}/{path}"

    def manifest(self, manifest_id: str) -> str:
        """Where the manifest of a version is, by its id in hex."""
        return f"{self.url}/{layout.manifest_key(bytes.fromhex(manifest_id))}"

    def folder(self, dataset_id: str) -> str:
        """Where the records of a dataset are."""
        return f"{self.url}/{layout.DATASETS}{dataset_id}"


def open_bucket(services: Services, caller: Caller, name: str, *, write: bool = False) -> Bucket:
    """The bucket as the caller sees it. ``NotFoundError``; ``AccessError`` for one that is only read, or not theirs."""
    caller.require("dataset:Write" if write else "dataset:Read", bucket=name)
    bucket = services.stores.open(name, caller.user)
    if write and not services.stores.is_writable(name):
        raise AccessError(f"Bucket {name} is declared as read-only", hint="Use another one: osmo bucket list")
    return bucket


def place_of(services: Services, bucket: Bucket) -> Place:
    """Where an opened bucket is."""
    return place_at(services, bucket.store.url)


def place_at(services: Services, url: str) -> Place:
    """Where the bucket is whose store has this URL."""
    scheme = scheme_of(url) or ""
    if scheme not in REMOTE_SCHEMES:
        return Place(url, "")
    found = services.stores.credential(parse_url(url).profile)
    region = (found.region if found else None) or _REGIONS.get(scheme, "")
    return Place(url, region, found.override_url if found else None)
