"""A plain client of HTTP, for tests of the wire.

Decided here and only here: nothing of ours: it speaks HTTP over a unix socket, or a port of this machine.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

__all__ = ["Http", "Reply"]


@dataclass
class Reply:
    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode()

    def json(self) -> Any:
        return json.loads(self.content)


class Http:
    """A client that knows nothing of ours. ``address``: the path of a unix socket, or a port of this machine."""

    def __init__(self, address: str | int, headers: Mapping[str, str] | None = None) -> None:
        self.address = address
        self.headers = dict(headers or {})

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> Reply:
        return self.ask("GET", path, params)

    def post(
        self,
        path: str,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        content: bytes | Iterable[bytes] | None = None,
    ) -> Reply:
        body = _json(json) if json is not None else content
        return self.ask("POST", path, params, body)

    def ask(self, method: str, path: str, params: Mapping[str, Any] | None = None, body: Any = None) -> Reply:
        with self.open(method, path, params, body) as response:
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def open(
        self, method: str, path: str, params: Mapping[str, Any] | None = None, body: Any = None
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", timeout=60)
        if isinstance(self.address, str):
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.connect(self.address)
        else:
            connection.port = self.address
        url = path + (f"?{urlencode(params, doseq=True)}" if params else "")
        headers = {"Content-Type": "application/json", "Connection": "close"} | self.headers
        try:
            connection.request(method, url, body=body, headers=headers)
            return connection.getresponse()
        except OSError:
            connection.close()
            raise


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
