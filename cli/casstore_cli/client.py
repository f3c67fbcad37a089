"""HTTP to a workflow server: over the unix socket of the user's own, or to the URL of a remote one.

Decided here and only here: how a request is put together (OSMO's headers, repeated keys for lists, ``True``
and ``False`` for booleans), how long a reply may take, and which error each failure becomes. The standard
library's ``http.client`` is used because it is imported in a tenth of the time of any other.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from casstore import __version__
from casstore.errors import AccessError, CasstoreError, ServiceError, UsageError
from casstore.structs import from_json
from casstore.wire.following import PLACES_HEADER, QUIET_S
from casstore.wire.protocol import (
    CLIENT_VERSION_HEADER,
    MAX_REQUEST_BYTES,
    PROTOCOL_VERSION,
    SERVICE_VERSION_HEADER,
    USER_HEADER,
    WARNING_HEADER,
    decode_warning,
    to_exception,
)
from casstore_cli import web

__all__ = [
    "BearerToken",
    "Client",
    "ConnectionLostError",
    "NotLetInError",
    "ReplyLostError",
    "Stream",
    "Target",
    "quoted",
]

REPLY_TIMEOUT_S = 60.0
"""How long a reply that is not a stream may take."""
_SILENCE_S = 4 * QUIET_S
"""How long a server that promised to speak now and then may be silent."""
_MAX_REPLY_BYTES = 256 * 2**20
_PIECE_BYTES = 1 << 16

_NOT_LET_IN = frozenset({http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.TOO_MANY_REQUESTS})
_EXIT_LATER = 75

_MAX_URL = 48_000
"""Servers refuse a request line of more than 64 KiB."""

_OWN_HINT = (
    "Try again; if that does not help, end it with 'osmo server stop --force', and the next command starts another."
)

_DONE_HINT = "It may have done what it was asked for: look before you ask again."

Value = str | int | bool | None | Sequence[str]
T = TypeVar("T")


class NotLetInError(AccessError):
    """The server does not know who asks (401), or they ask too often (429)."""

    def __init__(self, message: str, *, hint: str | None = None, status: int) -> None:
        super().__init__(message, hint=hint)
        self._status = status

    @property
    def http_status(self) -> int:
        """What the server said."""
        return self._status

    @property
    def exit_code(self) -> int:
        """75 for who asks too often, as OSMO's command has it: try again later."""
        return _EXIT_LATER if self._status == http.HTTPStatus.TOO_MANY_REQUESTS else super().exit_code

    def __reduce__(self) -> tuple[object, ...]:
        return (partial(NotLetInError, hint=self.hint, status=self._status), (self.message,))


class BearerToken(Protocol):
    """What proves who asks: see ``casstore_cli.bearer``."""

    def token(self) -> str:
        """The token to send now."""

    def renew(self, refused: str) -> bool:
        """Get another one than ``refused``; False when that is no use."""


class Target(NamedTuple):
    """Where a server is: the path of its unix socket, or a URL; and who asks."""

    user: str
    socket_path: str | None = None
    url: str | None = None
    bearer: BearerToken | None = None

    @property
    def display(self) -> str:
        """For messages."""
        return self.url or f"unix:{self.socket_path}"


class ConnectionLostError(ServiceError):
    """The server can't be reached, or went away."""


class ReplyLostError(ConnectionLostError):
    """The server went away after it was asked and before it answered: it may have done what it was asked for."""


class Stream(NamedTuple):
    """Pieces of a text as they come; ``ConnectionLostError`` when it is cut short. ``marked``: it tells how far it was
    read, as in ``casstore.wire.following``.
    """

    pieces: Generator[bytes, None, None]
    marked: bool


class _UnixConnection(http.client.HTTPConnection):
    """HTTP/1.1 over a unix socket."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost")
        self._path = path
        self._limit = timeout

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._limit)
        try:
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise


class Client:
    """Requests to one server, one connection each.

    ``on_warning`` receives each line the server warns about.
    """

    def __init__(self, target: Target, *, on_warning: Callable[[str], None] | None = None) -> None:
        self.target = target
        self._on_warning = on_warning
        self._base = ""
        if target.url is not None:
            parts = urlsplit(target.url)
            if parts.scheme not in {"http", "https"} or not parts.hostname:
                raise UsageError(f"'{target.url}' is not the URL of a server", hint="Use http:// or https://.")
            self._base = parts.path.rstrip("/")

    def get(self, path: str, reply: type[T], query: Mapping[str, Value] | None = None) -> T:
        """The reply to a GET of ``api/...``, decoded as ``reply``."""
        return _decode(self._exchange("GET", path, query, None), reply, path)

    def post(self, path: str, reply: type[T], query: Mapping[str, Value] | None = None, body: Any = None) -> T:
        """The reply to a POST; ``body`` is encoded as JSON unless it is None."""
        return _decode(self._exchange("POST", path, query, body), reply, path)

    def patch(self, path: str, reply: type[T], query: Mapping[str, Value] | None = None, body: Any = None) -> T:
        """The reply to a PATCH, as ``post``."""
        return _decode(self._exchange("PATCH", path, query, body), reply, path)

    def delete(self, path: str, reply: type[T], query: Mapping[str, Value] | None = None) -> T:
        """The reply to a DELETE."""
        return _decode(self._exchange("DELETE", path, query, None), reply, path)

    def change(self, method: str, path: str, body: Any) -> None:
        """Send a body whose reply says nothing, by PUT, PATCH or whatever else the route takes."""
        self._exchange(method, path, None, body)

    def stream(self, path: str, query: Mapping[str, Value] | None = None, body: Any = None) -> Stream:
        """A text that may go on for days: the reply to a GET, or with a body to a POST. The request is made at once."""
        method = "GET" if body is None else "POST"
        connection, response = self._open(method, path, query, body, timeout=_SILENCE_S, more={PLACES_HEADER: "wanted"})
        marked = response.getheader(PLACES_HEADER) is not None
        if not marked and connection.sock is not None:
            connection.sock.settimeout(None)
        return Stream(_pieces(connection, response), marked)

    def text(self, path: str, query: Mapping[str, Value] | None = None) -> str:
        """A reply that is text."""
        return self._exchange("GET", path, query, None).decode("utf-8", "replace")

    def _exchange(self, method: str, path: str, query: Mapping[str, Value] | None, body: Any) -> bytes:
        connection, response = self._open(method, path, query, body, timeout=REPLY_TIMEOUT_S)
        try:
            data = response.read(_MAX_REPLY_BYTES)
            if response.length:  # with a limit a short reply is no error for http.client
                raise http.client.IncompleteRead(b"", response.length)
        except (OSError, http.client.HTTPException) as exc:
            raise ConnectionLostError(f"The server at {self.target.display} broke off its reply: {exc}") from exc
        finally:
            response.close()
            connection.close()
        return data

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, Value] | None,
        body: Any,
        *,
        timeout: float | None,
        more: dict[str, str] | None = None,
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        data = None if body is None else msgspec.json.encode(body)
        if data is not None and len(data) > MAX_REQUEST_BYTES:
            raise UsageError(
                f"The request has {len(data)} bytes, and a server reads at most {MAX_REQUEST_BYTES}",
                hint="Put large files into a dataset and use it as an input.",
            )
        pairs = list(_pairs(query or {}))
        url = f"{self._base}/{path}" + (f"?{urlencode(pairs)}" if pairs else "")
        if len(url) > _MAX_URL:
            raise UsageError(
                "The options of this command are too long for one request",
                hint="Put long values into the file itself, or into a dataset.",
            )
        headers = self.headers() | (more or {})
        connection, response = self._send(method, url, data, headers, timeout)
        if response.status == http.HTTPStatus.UNAUTHORIZED and self.renewed(headers):
            response.close()
            connection.close()
            connection, response = self._send(method, url, data, self.headers() | (more or {}), timeout)
        if self._on_warning is not None and (warning := response.getheader(WARNING_HEADER)):
            for line in decode_warning(warning):
                self._on_warning(line)
        if response.status != http.HTTPStatus.OK:
            problem = response.read(1 << 20)
            response.close()
            connection.close()
            raise self._refusal(response, problem)
        return connection, response

    def _send(
        self, method: str, url: str, data: bytes | None, headers: dict[str, str], timeout: float | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = self._connection(timeout)
        sent = False
        try:
            if connection.sock is None:
                connection.connect()
            sent = True
            connection.request(method, url, body=data, headers=headers)
            return connection, connection.getresponse()
        except TimeoutError as exc:
            connection.close()
            raise ConnectionLostError(f"The server at {self.target.display} did not answer in time") from exc
        except (OSError, http.client.HTTPException) as exc:
            connection.close()
            if sent:
                raise ReplyLostError(
                    f"The server at {self.target.display} was asked and gave no answer: {web.explain(exc)}",
                    hint=None if method == "GET" else _DONE_HINT,
                ) from exc
            raise ConnectionLostError(
                f"Cannot connect to the server at {self.target.display}: {web.explain(exc)}",
                hint=_OWN_HINT if self.target.url is None else "Check the URL: osmo login URL.",
            ) from exc

    def renewed(self, headers: Mapping[str, str]) -> bool:
        """Whether there is another token than the one that was refused."""
        bearer = self.target.bearer
        return bearer is not None and bearer.renew(headers["Authorization"].removeprefix("Bearer "))

    def _refusal(self, response: http.client.HTTPResponse, problem: bytes) -> CasstoreError:
        """The error that a reply is; of another kind of server, too."""
        status, place = response.status, response.getheader("Location")
        if status < 400:
            where = f", and refers to {place}" if place else ""
            return UsageError(
                f"The server at {self.target.display} answered with status {status}{where}",
                hint="Log in to where it is: osmo login URL",
            )
        error = to_exception(status, problem)
        if status not in _NOT_LET_IN:
            return error
        hint, off = error.hint, ""
        if status == http.HTTPStatus.UNAUTHORIZED and self.target.bearer is not None:
            hint = hint or f"Log in again: osmo login {self.target.display}"
            off = web.clock_off(response.getheader("Date"))
        return NotLetInError(error.message, hint=f"{off} {hint}" if off else hint, status=status)

    def _connection(self, timeout: float | None) -> http.client.HTTPConnection:
        if self.target.socket_path is not None:
            return _UnixConnection(self.target.socket_path, timeout)
        return web.connection(self.target.url or "", timeout)

    def headers(self) -> dict[str, str]:
        """What every request says of this client and its user."""
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"osmo-cli/{__version__}",
            CLIENT_VERSION_HEADER: PROTOCOL_VERSION,
        }
        if self.target.bearer is not None:
            headers["Authorization"] = f"Bearer {self.target.bearer.token()}"
        elif self.target.url is not None:
            headers[USER_HEADER] = self.target.user
        return headers

    def probe(self) -> str | None:
        """The product version of the server when one answers, None when nothing listens."""
        connection = self._connection(REPLY_TIMEOUT_S)
        try:
            connection.request("GET", f"{self._base}/health", headers=self.headers())
            response = connection.getresponse()
            response.read(1 << 16)
            return response.getheader(SERVICE_VERSION_HEADER) or ""
        except (FileNotFoundError, ConnectionError, http.client.HTTPException):
            return None
        except OSError as exc:
            raise ServiceError(f"Cannot connect to the server at {self.target.display}: {web.explain(exc)}") from exc
        finally:
            connection.close()


def quoted(part: str) -> str:
    """One component of a path, so that a name from the command line can't change the route."""
    if part in {"", ".", ".."}:
        raise UsageError(f"'{part}' is not a name")
    return quote(part, safe="")


def _pieces(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> Generator[bytes, None, None]:
    try:
        while piece := response.read1(_PIECE_BYTES):
            yield piece
    except (OSError, http.client.HTTPException) as exc:
        raise ConnectionLostError(
            "The stream ended early: the server went away", hint="Ask again; see 'osmo server status'."
        ) from exc
    finally:
        response.close()
        connection.close()


def _pairs(query: Mapping[str, Value]) -> Iterator[tuple[str, str]]:
    for key, value in query.items():
        if value is None:
            continue
        if isinstance(value, (str, bool, int)):
            yield key, str(value)
        else:
            for item in value:
                yield key, item


def _decode(data: bytes, reply: type[T], path: str) -> T:
    try:
        return from_json(data, reply)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise ServiceError(f"The server's reply to {path} can't be understood: {exc}") from exc
