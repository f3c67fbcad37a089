"""Clients of boto3, configured for AWS and for the services that speak S3.

Decided here and only here: where an endpoint, a region and keys are taken from, how a bucket is addressed, and which
checksums, signatures and timeouts there are. boto3's own retries are off: ``retry`` knows the deadline.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import os
from collections.abc import Callable
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from casstore.errors import UsageError
from casstore.remote.body import Body
from casstore.remote.credentials import StorageCredential
from casstore.remote.pace import paced
from casstore.remote.s3_errors import library_error

__all__ = ["Connection", "connect"]

CONNECT_TIMEOUT: Final = 10.0
READ_TIMEOUT: Final = 60.0
"""Seconds without a byte from the service; ``pace`` has those of an answer in all."""
CONNECTIONS: Final = 64
"""Connections that are kept open for the next request; more are made when more threads ask."""
DEFAULT_REGION: Final = "us-east-1"
_TRUE = {"1", "true", "yes", "on"}


class Connection(NamedTuple):
    """A client of boto3, whether it is one of AWS, and the exceptions that it raises."""

    client: Any
    on_aws: bool
    errors: tuple[type[Exception], ...]


def connect(
    url: str, endpoint: str | None, credential: StorageCredential | None, *, signature: str | None = None
) -> Connection:
    """Return a client for the bucket that is shown as ``url``. Nothing is sent yet. ``signature`` is boto3's name of a
    way to sign; None leaves it to boto3.

    ``UsageError`` for settings that can't be right, ``AccessError`` for a profile that does not exist.
    """
    try:
        # boto3's own layer over botocore is not needed, and loading it takes longer than the first requests.
        import botocore.session  # noqa: PLC0415 - the cloud's library is loaded only where it is used
        from botocore import exceptions  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415
    except ImportError:
        raise UsageError(f"{url} needs boto3", hint="pip install 'casstore[s3]'") from None
    endpoint = endpoint or (credential.override_url if credential else None) or _endpoint_of_environment()
    if endpoint and "://" not in endpoint:
        endpoint = f"https://{endpoint}"
    keys: dict[str, Any] = {}
    if credential is not None and credential.access_key_id:
        keys["aws_access_key_id"] = credential.access_key_id
        keys["aws_secret_access_key"] = credential.access_key
        keys["aws_session_token"] = credential.session_token or None
    errors = (exceptions.BotoCoreError, exceptions.ClientError, HTTPError, OSError, ValueError)
    try:
        session = botocore.session.get_session()
        _read_models_faster(session)
        region = (credential.region if credential else None) or session.get_config_variable("region")
        region = region or os.environ.get("AWS_REGION") or DEFAULT_REGION

        unsigned = Config(s3={"payload_signing_enabled": False})

        def leave_unsigned(request: Any, **_: Any) -> None:
            # Without TLS a signature covers the body's hash. Packs are verified when they are read, and hashing them
            # once more would be the larger part of sending them.
            if isinstance(request.data, Body) and request.data.named_by_hash:
                request.context["client_config"] = unsigned

        def make(endpoint: str | None, on_aws: bool) -> Any:
            config = Config(
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                retries={"total_max_attempts": 1, "mode": "standard"},
                max_pool_connections=CONNECTIONS,
                tcp_keepalive=True,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                signature_version=signature,
                s3=_s3_settings(url, endpoint, on_aws, credential),
            )
            made = session.create_client("s3", region_name=region, endpoint_url=endpoint, config=config, **keys)
            _keep_pace(made)
            made.meta.events.register("before-call.s3.DeleteObjects", _add_md5)
            made.meta.events.register("before-sign.s3", leave_unsigned)
            return made

        client = make(endpoint, endpoint is None or _is_aws(endpoint))
        actual = client.meta.endpoint_url
        if endpoint is None and not _is_aws(actual):
            client.close()
            client = make(actual, False)  # a profile names another service
        return Connection(client, _is_aws(actual), errors)
    except errors as error:
        raise library_error(error, url) from None


def _keep_pace(client: Any) -> None:
    """Give up answers that come too slowly. botocore has no public way to its connections; without one, it goes on."""
    session = getattr(getattr(client, "_endpoint", None), "http_session", None)
    pools = getattr(session, "_pool_classes_by_scheme", {})
    pools.update(paced(pools))


def _read_models_faster(session: Any) -> None:
    """Have the description of the service, a megabyte of JSON, read by a fast parser, and once in a process: a client
    for each of the stores that a command opens, and for the server of a mount, would read it again.
    """
    loader = session.get_component("data_loader")
    paths = tuple(loader.search_paths)  # the user may have descriptions of their own
    known = _loaders.get(paths)
    if known is not None:
        session.register_component("data_loader", known)
        return

    class Files(type(loader.file_loader)):  # type: ignore[misc]  # a class of botocore
        def _load_file(self, path: str, open_file: Callable[..., Any]) -> Any:
            try:
                with open_file(path, "rb") as file:
                    return msgspec.json.decode(file.read())
            except (FileNotFoundError, NotADirectoryError):
                return None  # what it expects of a file that is not there

    loader.file_loader = Files()
    _loaders[paths] = loader


_loaders: dict[tuple[str, ...], Any] = {}


def _endpoint_of_environment() -> str | None:
    if os.environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() in _TRUE:
        return None
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _s3_settings(url: str, endpoint: str | None, on_aws: bool, credential: StorageCredential | None) -> dict[str, Any]:
    settings: dict[str, Any] = {"addressing_style": _style(url, endpoint, on_aws, credential)}
    if endpoint is None or endpoint.startswith("https://"):
        settings["payload_signing_enabled"] = False  # TLS guards the body: hashing it would double the work
    return settings


def _style(url: str, endpoint: str | None, on_aws: bool, credential: StorageCredential | None) -> str:
    """Return how the bucket is named: in the path or in the host."""
    style = (credential.addressing_style if credential else None) or os.environ.get("OSMO_S3_ADDRESSING_STYLE")
    if style:
        if style not in {"path", "virtual", "auto"}:
            raise UsageError(f"addressing style {style[:40]!r} is neither path nor virtual")
        return style
    if os.environ.get("AWS_S3_FORCE_PATH_STYLE", "").lower() in _TRUE:
        return "path"
    if on_aws or endpoint is None:
        return "auto"  # virtual, save for names with dots, which no certificate covers
    # ByteDance's service takes nothing else.
    return "virtual" if url.startswith("tos://") and not _is_address(endpoint) else "path"


def _host(endpoint: str) -> str:
    return (urlsplit(endpoint).hostname or "").rstrip(".").lower()


def _is_aws(endpoint: str) -> bool:
    return _host(endpoint).endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))


def _is_address(endpoint: str) -> bool:
    host = _host(endpoint)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or host.endswith(".localhost")
    return True


def _add_md5(params: dict[str, Any], **_: Any) -> None:
    """Add the checksum that every service takes with a list of keys to delete; many know none of the newer ones."""
    body = params.get("body")
    if isinstance(body, bytes | bytearray) and "Content-MD5" not in params["headers"]:
        digest = hashlib.md5(body, usedforsecurity=False).digest()
        params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()
