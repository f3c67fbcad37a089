"""The keys of interactive connections.

Decided here and only here: how long a key is good. It is used once, by the user that it was given to; it opens nothing
by itself, but for those of ``webserver`` (see ``api.webproxy``).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections import OrderedDict
from typing import Literal, NamedTuple

import msgspec

from casstore.errors import ServiceError, UsageError
from casstore.structs import from_json
from casstore.wire.router import STREAM_KEY
from casstore_orchestrator.agent.attach import Request
from casstore_orchestrator.ports import RunKey
from casstore_server.db.sessions import SessionRows

__all__ = ["Session", "Sessions", "Use"]

Use = Literal["exec", "portforward", "rsync", "webserver"]
KEY_SECONDS = 120.0
"""How long a key is good that nobody uses."""
FIRST_USE_SECONDS = 3600.0
"""How long a page that nobody opened is there; OSMO's."""
IDLE_SECONDS = 1800.0
"""How long one is there after it was used; OSMO's."""
_FRESH_SECONDS = 30.0
"""For how long the use of a page is not told to the database."""
_LEAST_PAUSE, _MOST_PAUSE = 0.05, 0.5
"""Seconds between looks for what was announced at another server."""
_MAX_KEYS = 4096
_MAX_PAGES = 256
_KEY, _PAGE, _STREAM = "key", "page", "stream"
_log = logging.getLogger(__name__)


class Session(msgspec.Struct, frozen=True):
    """What a key stands for. ``request`` is what the agent of the run is asked for."""

    use: Use
    workflow_id: str
    user: str
    run: RunKey
    request: Request

    def is_for(self, use: str, workflow_id: str, user: str) -> bool:
        """Whether this is what it was given out for, and to whom."""
        return (self.use, self.workflow_id, self.user) == (use, workflow_id, user)


class _Page(NamedTuple):
    session: Session
    fresh: float


class Sessions:
    """The keys that were given out and not used. ``announce`` and ``wait`` are for the thread of the event loop.

    Keys are in the database: a server that is started anew knows them, and so does every other one that shares it. What
    a client announces itself (one key for each connection through a control connection) is in memory, and in the
    database where other servers may get the connection.
    """

    def __init__(self, rows: SessionRows, *, shared: bool = False) -> None:
        """``shared``: whether there are other servers."""
        self._rows = rows
        self._shared = shared
        self._keys: OrderedDict[str, tuple[Session, float]] = OrderedDict()
        self._pages: OrderedDict[str, _Page] = OrderedDict()
        self._lock = threading.Lock()
        self._waiting: dict[str, asyncio.Future[Session]] = {}
        self._storing: set[asyncio.Task[None]] = set()

    def add(self, session: Session) -> str:
        """A new key."""
        if self._rows.count(_KEY) >= _MAX_KEYS:
            raise ServiceError(f"More than {_MAX_KEYS} keys were given out and not used", hint="Try again in a minute.")
        key = secrets.token_hex(16)
        self._rows.add(_KEY, key, _encoded(session), time.time() + KEY_SECONDS)
        return key

    def take(self, key: str, use: str, workflow_id: str, user: str) -> Session | None:
        """What a key stands for, once."""
        found = self._rows.find(_KEY, key)
        session = None if found is None else _decoded(found.data)
        if session is None or not session.is_for(use, workflow_id, user):
            return None
        return session if self._rows.remove(key) else None

    def announce(self, key: str, session: Session) -> None:
        """A connection with this key, chosen by the client, will come, or is waiting already."""
        if not key.startswith(STREAM_KEY) or len(key) > 128:
            raise UsageError("that is not the key of a connection")
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            if not waiting.done():
                waiting.set_result(session)
            return
        self._put(key, session)
        if self._shared:
            until = time.time() + KEY_SECONDS
            made = asyncio.create_task(asyncio.to_thread(self._tell, _encoded(session), key, until))
            self._storing.add(made)
            made.add_done_callback(self._storing.discard)

    def _tell(self, data: bytes, key: str, until: float) -> None:
        try:
            self._rows.add(_STREAM, key, data, until)
        except Exception:  # noqa: BLE001 - the connection that waits elsewhere says that it did not come
            _log.warning("an announced connection could not be told to other servers", exc_info=True)

    async def wait(self, key: str, use: str, workflow_id: str, user: str, seconds: float) -> Session | None:
        """As ``take``, but for a key that may not have been announced yet."""
        taken = self._taken(key)
        if taken is not None:
            return taken if taken.is_for(use, workflow_id, user) else None
        if key in self._waiting or len(self._waiting) >= _MAX_KEYS:
            return None
        future: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        try:
            async with asyncio.timeout(seconds):
                session = await (self._heard(key, future) if self._shared else future)
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(key, None)
        return session if session.is_for(use, workflow_id, user) else None

    async def _heard(self, key: str, future: asyncio.Future[Session]) -> Session:
        """The announcement, here or at another server."""
        pause = _LEAST_PAUSE
        while True:
            done, _ = await asyncio.wait([future], timeout=pause)
            if done:
                return future.result()
            found = await asyncio.to_thread(self._rows.find, _STREAM, key)
            session = None if found is None else _decoded(found.data)
            if session is not None:
                await asyncio.to_thread(self._rows.remove, key)
                return session
            pause = min(pause * 2, _MOST_PAUSE)

    def add_page(self, session: Session) -> str:
        """A new key for web pages: good until nobody used it for a while."""
        if self._rows.count(_PAGE) >= _MAX_PAGES:
            raise ServiceError(f"More than {_MAX_PAGES} tasks' pages are open", hint="Use osmo workflow port-forward.")
        key = secrets.token_hex(16)
        self._rows.add(_PAGE, key, _encoded(session), time.time() + FIRST_USE_SECONDS)
        return key

    def page(self, key: str) -> Session | None:
        """What such a key stands for; asking is using it. The database is asked now and then."""
        now = time.time()
        with self._lock:
            known = self._pages.get(key)
        if known is not None and now < known.fresh:
            return known.session
        found = self._rows.find(_PAGE, key)
        session = None if found is None else _decoded(found.data)
        if found is None or session is None:
            with self._lock:
                self._pages.pop(key, None)
            return None
        if found.until < now + IDLE_SECONDS:
            self._rows.prolong(key, now + IDLE_SECONDS)
        with self._lock:
            self._pages[key] = _Page(session, now + _FRESH_SECONDS)
            while len(self._pages) > _MAX_PAGES:
                self._pages.popitem(last=False)
        return session

    def _taken(self, key: str) -> Session | None:
        with self._lock:
            found = self._keys.pop(key, None)
        return None if found is None or found[1] < time.monotonic() else found[0]

    def _put(self, key: str, session: Session) -> None:
        now = time.monotonic()
        with self._lock:
            while self._keys and (len(self._keys) >= _MAX_KEYS or next(iter(self._keys.values()))[1] < now):
                self._keys.popitem(last=False)
            self._keys[key] = (session, now + KEY_SECONDS)


def _encoded(session: Session) -> bytes:
    return msgspec.json.encode(session)


def _decoded(data: bytes) -> Session | None:
    """None for one that another version of the server wrote."""
    try:
        return from_json(data, Session)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
