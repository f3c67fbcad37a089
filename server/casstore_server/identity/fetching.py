"""Asking the identity provider.

Decided here and only here: that it is asked by https (or on this machine), redirected nowhere, and may neither take
long nor answer much.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from typing import Any, Final

import msgspec

from casstore import __version__
from casstore.errors import ServiceError
from casstore_server.identity.urls import check_url

__all__ = ["fetch_json"]

SECONDS: Final = 10.0
MAX_BYTES: Final = 1 << 20
_BLOCK: Final = 64 << 10


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Go nowhere else: the reply that says so is then an error."""


def fetch_json(url: str, what: str) -> dict[str, Any]:
    """The JSON object at a URL. Raises ``ServiceError`` naming ``what`` when it can't be had."""
    check_url(url, what)
    asked = urllib.request.Request(  # noqa: S310  # https, or this machine
        url, headers={"Accept": "application/json", "User-Agent": f"casstore/{__version__}"}
    )
    try:
        with urllib.request.build_opener(_Stay).open(asked, timeout=SECONDS) as answer:
            raw = _read(answer, what)
        found = msgspec.json.decode(raw)
    except urllib.error.HTTPError as error:
        error.close()
        raise ServiceError(f"{what} answers with status {error.code} at {url}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ServiceError(f"{what} can't be reached at {url}: {reason}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ServiceError(f"{what} answers with something else than JSON at {url}") from None
    if not isinstance(found, dict):
        raise ServiceError(f"{what} answers with something else than a JSON object at {url}")
    return found


def _read(answer: http.client.HTTPResponse, what: str) -> bytes:
    until = time.monotonic() + SECONDS
    blocks, size = [], 0
    while block := answer.read1(_BLOCK):
        blocks.append(block)
        size += len(block)
        if size > MAX_BYTES:
            raise ServiceError(f"{what} answers with more than {MAX_BYTES} bytes")
        if time.monotonic() > until:
            raise ServiceError(f"{what} takes too long to answer")
    return b"".join(blocks)
