"""Requests to a server, and to the addresses of data that it gives.

Decided here and only here: which connections are kept, how long anything is waited for, and what is tried again: what
could not be connected to, broke off, or was refused for the moment. Every request here may be sent twice: what changes
something has a condition, and whoever sends it looks at what is there when that does not hold. What goes to an address
of data carries nothing but what belongs to the address: never a login. The standard library is used because a client of
a server needs no other.
"""

from __future__ import annotations

import http
import http.client
import random
import socket
import ssl
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, cast
from urllib.parse import SplitResult, urlsplit

from casstore.errors import ServiceError, StorageError, TransientError, UsageError
from casstore.model import Buffer

__all__ = ["Headers", "Http", "Reply", "UnreachableError"]

CONNECT_S = 10.0
READ_S = 120.0
"""Seconds without a byte of an answer."""
SERVER_S = 1800.0
"""The same of the server, which looks at all of a version before it says yes; that its machine is gone, TCP tells."""
PATIENCE_S = 150.0
"""Seconds for which something is tried again that has worked before: a server that is started again is back then."""
LONGEST_PAUSE_S = 5.0
IDLE = 32
"""Connections to one place that are kept."""
SMALL = 64 << 20
"""Bytes of an answer that is not an object, at most."""
_PASSING = frozenset({429, 502, 503, 504})

Headers = Callable[[], Mapping[str, str]]
"""What says who asks; asked for each request, because logins are renewed."""


class Reply(NamedTuple):
    """An answer, with its header names in small letters."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class UnreachableError(TransientError):
    """Nobody answers at all."""


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise


class Http:
    """Kept connections to a server and to wherever data is. Thread-safe.

    ``base`` is the server's URL; with ``unix``, the path of its socket, only what follows the host counts. ``renewed``
    is asked whether there is another login than the one in headers that were refused. ``sleep`` and ``clock`` are
    replaced by tests.
    """

    def __init__(
        self,
        base: str,
        headers: Headers,
        *,
        renewed: Callable[[Mapping[str, str]], bool] = lambda _: False,
        unix: str | None = None,
        patience: float = PATIENCE_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(base)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UsageError(f"'{base}' is not the URL of a server", hint="Use http:// or https://.")
        self.base = base.rstrip("/")
        self._headers = headers
        self._renewed = renewed
        self._unix = unix
        self._patience = patience
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._idle: defaultdict[tuple[str, str], list[http.client.HTTPConnection]] = defaultdict(list)
        self._answered: set[tuple[str, str]] = set()
        self._closed = False
        self._tls: ssl.SSLContext | None = None

    def server(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        limit: int = SMALL,
    ) -> Reply:
        """Ask the server; ``path`` begins with a slash. Any status but those that pass comes back."""
        content = () if body is None else (body,)
        who = self._headers()
        found = self._again(method, self.base + path, {**who, **(headers or {})}, content, limit)
        if found.status == http.HTTPStatus.UNAUTHORIZED and self._renewed(who):
            found = self._again(method, self.base + path, {**self._headers(), **(headers or {})}, content, limit)
        return found

    def data(
        self, method: str, url: str, *, headers: Mapping[str, str], body: Sequence[Buffer] = (), limit: int
    ) -> Reply:
        """Send a request to an address of data, which begins with a slash where it is one of the server."""
        whole = self.base + url if url.startswith("/") else url
        return self._again(method, whole, {"User-Agent": "casstore", **headers}, body, limit)

    def _again(self, method: str, url: str, headers: Mapping[str, str], body: Sequence[Buffer], limit: int) -> Reply:
        parts = urlsplit(url)
        place = parts.scheme, parts.netloc
        first, pause = 0.0, 0.1
        while True:
            try:
                found = self._once(place, parts, method, headers, body, limit)
                if not _passes(found):
                    return found
                error: TransientError | Reply = found
                wait = _asked(found.headers)
            except TransientError as caught:
                error, wait = caught, 0.0
            now = self._clock()
            first = first or now
            # What has never answered is rather not there than away for a moment.
            patience = self._patience if place in self._answered else min(self._patience, 1.0)
            seconds = min(wait, 60.0) + pause * random.random()  # noqa: S311 - no secret
            if self._closed or now + seconds - first > patience:
                if isinstance(error, Reply):
                    return error
                raise error
            self._sleep(seconds)
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _once(
        self,
        place: tuple[str, str],
        parts: SplitResult,
        method: str,
        headers: Mapping[str, str],
        body: Sequence[Buffer],
        limit: int,
    ) -> Reply:
        connection, kept = self._connection(place, parts)
        try:
            if connection.sock is None:
                self._connect(connection, parts)
            found = _exchange(connection, parts, method, headers, body, limit)
        except (OSError, http.client.HTTPException) as error:
            connected = connection.sock is not None
            connection.close()
            if kept:  # it may have been closed while nobody looked: the next one is fresh, or kept, too
                self._drop(place)
                return self._once(place, parts, method, headers, body, limit)
            raise _lost(error, parts, connected=connected) from None
        except BaseException:
            connection.close()
            raise
        self._answered.add(place)
        self._give_back(place, connection, found)
        return found

    def _connection(self, place: tuple[str, str], parts: SplitResult) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._closed:
                raise StorageError("the connection to the server was closed")
            idle = self._idle[place]
            if idle:
                return idle.pop(), True
        return self._new(parts), False

    def _new(self, parts: SplitResult) -> http.client.HTTPConnection:
        own = urlsplit(self.base)
        if self._unix is not None and (parts.scheme, parts.netloc) == (own.scheme, own.netloc):
            return _Unix(self._unix, READ_S)
        host, port, through = parts.hostname or "", parts.port, _proxy(parts)
        at = (through.hostname or "", through.port) if through is not None else (host, port)
        if parts.scheme == "https":
            if self._tls is None:
                self._tls = ssl.create_default_context()
            made: http.client.HTTPConnection = http.client.HTTPSConnection(*at, timeout=CONNECT_S, context=self._tls)
            if through is not None:
                made.set_tunnel(host, port or 443)
            return made
        return http.client.HTTPConnection(*at, timeout=CONNECT_S)

    def _connect(self, connection: http.client.HTTPConnection, parts: SplitResult) -> None:
        connection.connect()
        opened = cast("socket.socket", connection.sock)
        opened.settimeout(SERVER_S if self.base.startswith(f"{parts.scheme}://{parts.netloc}") else READ_S)
        if opened.family != socket.AF_UNIX:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6)):
                    opened.setsockopt(socket.IPPROTO_TCP, option, value)

    def _drop(self, place: tuple[str, str]) -> None:
        with self._lock:
            stale = self._idle.pop(place, [])
        for connection in stale:
            connection.close()

    def _give_back(self, place: tuple[str, str], connection: http.client.HTTPConnection, found: Reply) -> None:
        with self._lock:
            idle = self._idle[place]
            keep = not self._closed and connection.sock is not None and len(idle) < IDLE
            if keep:
                idle.append(connection)
        if not keep:
            connection.close()

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it ends."""
        with self._lock:
            self._closed = True
            places, self._idle = self._idle, defaultdict(list)
        for idle in places.values():
            for connection in idle:
                connection.close()


def _exchange(
    connection: http.client.HTTPConnection,
    parts: SplitResult,
    method: str,
    headers: Mapping[str, str],
    body: Sequence[Buffer],
    limit: int,
) -> Reply:
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "http" and _proxy(parts) is not None:
        target = parts.geturl()
    said = dict(headers)
    views = [memoryview(part).cast("B") for part in body]
    if views or method in {"PUT", "POST"}:
        said["Content-Length"] = str(sum(len(view) for view in views))
    content: Iterable[memoryview] | None = views or None
    connection.request(method, target, body=content, headers=said)
    with connection.getresponse() as answer:
        announced = answer.length
        if announced is not None and announced > limit:
            connection.close()  # what is left unread is nobody's reply
            raise ServiceError(f"{_shown(parts)} answers with {announced} bytes; {limit} were expected at most")
        data = answer.read(limit + 1)
        if len(data) > limit:
            connection.close()
            raise ServiceError(f"{_shown(parts)} answers with more than {limit} bytes")
        if announced is not None and method != "HEAD" and len(data) < announced:
            raise http.client.IncompleteRead(b"", announced - len(data))
        if answer.will_close:
            connection.close()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, data)


def _lost(error: Exception, parts: SplitResult, *, connected: bool) -> TransientError:
    where = _shown(parts)
    reason = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    if not connected or isinstance(error, ssl.SSLError):
        text = "it does not answer" if isinstance(error, TimeoutError) else reason
        return UnreachableError(f"cannot connect to {where}: {text}", hint="See whether the server runs; its URL.")
    if isinstance(error, TimeoutError):
        return TransientError(f"{where} did not answer in time")
    return TransientError(f"the connection to {where} broke off: {reason}")


def _shown(parts: SplitResult) -> str:
    """A place without what is secret in an address."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _passes(found: Reply) -> bool:
    """Whether another answer may come soon. Of a bucket that fails our server speaks when it has tried for long."""
    return found.status in _PASSING and not (found.status == 502 and b'"kind":"storage"' in found.data)


def _asked(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return float(text) if text.isdigit() and len(text) < 6 else 0.0


def _proxy(parts: SplitResult) -> SplitResult | None:
    """The proxy of the environment for a place; none for this machine."""
    host = parts.hostname or ""
    if host in {"localhost", "::1"} or host.startswith("127."):
        return None
    proxies = urllib.request.getproxies_environment()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found or urllib.request.proxy_bypass_environment(host, proxies):  # type: ignore[attr-defined]
        return None
    return urlsplit(found if "://" in found else f"http://{found}")
