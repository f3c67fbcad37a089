"""Addresses at which one object can be read, or one put, by somebody without credentials of the bucket.

Decided here and only here: what is signed for each service. An address is for one key, one method and a few minutes; a
put is for a number of bytes as well where the service can be told. Credentials that can't sign (a shared access
signature of Azure's, a token without a key) give none: ``open_signer`` then returns None, and the bytes go through
whoever has the credentials. Nothing is sent to a service, but for one question to Amazon's: where the bucket is.
"""

from __future__ import annotations

import hmac
import json
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from casstore.errors import AccessError, CasstoreError, UsageError
from casstore.remote.credentials import AmbientCredentials, CredentialSource, StorageCredential
from casstore.remote.urls import StorageUrl

__all__ = ["Address", "ObjectSigner", "open_signer"]


class Address(msgspec.Struct, frozen=True):
    """A URL that is a secret for as long as it works, and the headers that must be sent with it."""

    url: str
    headers: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Address({self.url.partition('?')[0]!r})"


class ObjectSigner(Protocol):
    """Signs for one bucket. Thread-safe."""

    def read(self, key: str, seconds: int) -> Address:
        """Return where an object can be read, whole or in ranges, for so long."""
        ...

    def write(self, key: str, size: int, seconds: int) -> Address:
        """Return where ``size`` bytes can be put as an object, for so long."""
        ...


def open_signer(place: StorageUrl, credentials: CredentialSource | None = None) -> ObjectSigner | None:
    """Return who signs for the bucket ``place`` is in; None where its credentials can't, or there are none."""
    credential = (credentials or AmbientCredentials()).find(place.profile)
    try:
        if place.scheme == "gs":
            return _gcs(place, credential)
        if place.scheme == "azure":
            return _azure(place, credential)
        return _S3(place, credential)
    except (AccessError, UsageError, ImportError):
        return None  # the store's own client tells what is wrong


class _S3:
    """Version 4 of Amazon's signatures: what boto3 would choose by itself does not cover the length."""

    def __init__(self, place: StorageUrl, credential: StorageCredential | None) -> None:
        from casstore.remote.s3_connect import connect  # noqa: PLC0415 - a library that only this service needs

        endpoint = f"https://{place.endpoint}" if place.endpoint else None
        self._bucket = place.bucket
        self._url = place.bucket_url
        found = connect(self._url, endpoint, credential, signature="s3v4")
        self._client, self._errors = found.client, found.errors
        region = self._region() if found.on_aws else None
        if region and region != self._client.meta.region_name:
            # A request in the wrong one is led to the right one; an address can't be.
            here = msgspec.structs.replace(credential or StorageCredential(), region=region)
            self._client = connect(self._url, endpoint, here, signature="s3v4").client
        self.read("a", 60)  # says at once whether there is anything to sign with

    def _region(self) -> str | None:
        errors: tuple[type[Exception], ...] = (*self._errors, KeyError)
        try:
            said = self._client.head_bucket(Bucket=self._bucket)["ResponseMetadata"]["HTTPHeaders"]
        except errors:
            return None
        found = said.get("x-amz-bucket-region")
        return str(found) if found else None

    def read(self, key: str, seconds: int) -> Address:
        return Address(self._sign("get_object", {"Key": key}, seconds))

    def write(self, key: str, size: int, seconds: int) -> Address:
        # The length is among what is signed: boto3 puts it into the headers, and the service compares.
        return Address(self._sign("put_object", {"Key": key, "ContentLength": size}, seconds))

    def _sign(self, method: str, what: dict[str, Any], seconds: int) -> str:
        try:
            found: str = self._client.generate_presigned_url(
                method, Params={"Bucket": self._bucket, **what}, ExpiresIn=seconds
            )
        except self._errors as error:
            raise AccessError(f"{self._url}: addresses can't be signed ({type(error).__name__})") from None
        return found


class _Azure:
    def __init__(self, place: StorageUrl, endpoint: str, account: str, key: str) -> None:
        self._base = f"{endpoint}/{quote(place.bucket)}"
        self._container = place.bucket
        self._account = account
        self._key = key

    def read(self, key: str, seconds: int) -> Address:
        return Address(self._sign(key, seconds, read=True))

    def write(self, key: str, size: int, seconds: int) -> Address:
        del size  # not among what can be signed
        # Creating is not overwriting: the address puts one object once.
        return Address(self._sign(key, seconds, create=True), {"x-ms-blob-type": "BlockBlob"})

    def _sign(self, key: str, seconds: int, **may: bool) -> str:
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas  # noqa: PLC0415

        token = generate_blob_sas(
            self._account,
            self._container,
            key,
            account_key=self._key,
            permission=BlobSasPermissions(**may),
            expiry=datetime.now(UTC) + timedelta(seconds=seconds),
        )
        return f"{self._base}/{quote(key)}?{token}"


def _azure(place: StorageUrl, credential: StorageCredential | None) -> ObjectSigner | None:
    from casstore.remote.azure_account import find_login  # noqa: PLC0415

    login = find_login(place.account, credential)
    return _Azure(place, login.endpoint, place.account, login.key) if login.key else None


class _Gcs:
    """Version 4 of Google's own signatures, in the query."""

    def __init__(self, place: StorageUrl, endpoint: str, who: str, algorithm: str, region: str, sign: Any) -> None:
        self._base = f"{endpoint}/{quote(place.bucket, safe='')}"
        self._who = who
        self._algorithm = algorithm
        self._region = region
        self._raw_sign = sign
        self._lock = threading.Lock()

    def read(self, key: str, seconds: int) -> Address:
        return Address(self._sign("GET", key, seconds, {}))

    def write(self, key: str, size: int, seconds: int) -> Address:
        headers = {"x-goog-if-generation-match": "0", "x-goog-content-length-range": f"{size},{size}"}
        return Address(self._sign("PUT", key, seconds, headers), headers)

    def _sign(self, method: str, key: str, seconds: int, headers: Mapping[str, str]) -> str:
        from casstore.remote.gcs_auth import text_to_sign  # noqa: PLC0415

        target = f"{self._base}/{quote(key, safe='/-._~')}"
        parts = urlsplit(target)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        scope = f"{stamp[:8]}/{self._region}/storage/goog4_request"
        signed = {**headers, "host": parts.netloc}
        query = {
            "X-Goog-Algorithm": self._algorithm,
            "X-Goog-Credential": f"{self._who}/{scope}",
            "X-Goog-Date": stamp,
            "X-Goog-Expires": str(seconds),
            "X-Goog-SignedHeaders": ";".join(sorted(signed)),
        }
        text = text_to_sign(
            self._algorithm, method, parts.path, [*query.items()], signed, "UNSIGNED-PAYLOAD", stamp, scope
        )
        asked = urlencode(query, quote_via=quote, safe="-._~")
        with self._lock:
            signature = self._raw_sign(text.encode(), scope)
        return f"{target}?{asked}&X-Goog-Signature={signature.hex()}"


def _gcs(place: StorageUrl, credential: StorageCredential | None) -> ObjectSigner | None:
    from casstore.remote.gcs_auth import find_endpoint, key_of  # noqa: PLC0415

    secret = credential.access_key.strip() if credential is not None else ""
    if credential is None or not secret:
        return None
    endpoint = find_endpoint(credential)
    if not secret.startswith("{"):
        if not credential.access_key_id:
            return None

        def by_secret(text: bytes, scope: str) -> bytes:
            return hmac.digest(key_of(secret, scope), text, "sha256")

        region = credential.region or "auto"
        return _Gcs(place, endpoint, credential.access_key_id, "GOOG4-HMAC-SHA256", region, by_secret)
    try:
        import google.auth.crypt  # noqa: PLC0415

        info = json.loads(secret)
        rsa: Any = google.auth.crypt.RSASigner.from_service_account_info(info)  # type: ignore[no-untyped-call]
        who = str(info["client_email"])
    except (ValueError, KeyError, TypeError, CasstoreError):
        return None
    return _Gcs(place, endpoint, who, "GOOG4-RSA-SHA256", "auto", lambda text, _: rsa.sign(text))
