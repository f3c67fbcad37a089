"""The keys of interactive connections.

Decided here and only here: how long a key is good. It is used once, by the user that it was given to; it opens nothing
by itself, but for those of ``webserver`` (see ``api.webproxy``).
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Literal

from casstore.errors import ServiceError, UsageError
from casstore.wire.router import STREAM_KEY
from casstore_orchestrator.agent.attach import Request
from casstore_orchestrator.ports import RunKey

__all__ = ["Session", "Sessions", "Use"]

Use = Literal["exec", "portforward", "rsync", "webserver"]
KEY_SECONDS = 120.0
"""How long a key is good that nobody uses."""
FIRST_USE_SECONDS = 3600.0
"""How long a page that nobody opened is there; OSMO's."""
IDLE_SECONDS = 1800.0
"""How long one is there after it was used; OSMO's."""
_MAX_KEYS = 4096
_MAX_PAGES = 256


@dataclass(frozen=True, slots=True)
class Session:
    """What a key stands for. ``request`` is what the agent of the run is asked for."""

    use: Use
    workflow_id: str
    user: str
    run: RunKey
    request: Request


@dataclass(slots=True)
class Sessions:
    """The keys that were given out and not used. ``announce`` and ``wait`` are for the thread of the event loop."""

    _keys: OrderedDict[str, tuple[Session, float]] = field(default_factory=OrderedDict)
    _pages: dict[str, tuple[Session, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _waiting: dict[str, asyncio.Future[Session]] = field(default_factory=dict)

    def add(self, session: Session) -> str:
        """A new key."""
        key = secrets.token_hex(16)
        self._put(key, session)
        return key

    def take(self, key: str, use: str, workflow_id: str, user: str) -> Session | None:
        """What a key stands for, once."""
        with self._lock:
            found = self._keys.get(key)
            if found is None or found[1] < time.monotonic():
                return None
            session = found[0]
            if (session.use, session.workflow_id, session.user) != (use, workflow_id, user):
                return None
            del self._keys[key]
        return session

    def announce(self, key: str, session: Session) -> None:
        """A connection with this key, chosen by the client, will come, or is waiting already."""
        if not key.startswith(STREAM_KEY) or len(key) > 128:
            raise UsageError("that is not the key of a connection")
        waiting = self._waiting.pop(key, None)
        if waiting is None:
            self._put(key, session)
        elif not waiting.done():
            waiting.set_result(session)

    async def wait(self, key: str, use: str, workflow_id: str, user: str, seconds: float) -> Session | None:
        """As ``take``, but for a key that may not have been announced yet."""
        taken = self.take(key, use, workflow_id, user)
        if taken is not None or key in self._waiting or len(self._waiting) >= _MAX_KEYS:
            return taken
        future: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._waiting[key] = future
        try:
            session = await asyncio.wait_for(future, seconds)
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(key, None)
        return session if (session.use, session.workflow_id, session.user) == (use, workflow_id, user) else None

    def add_page(self, session: Session) -> str:
        """A new key for web pages: good until nobody used it for a while."""
        key = secrets.token_hex(16)
        now = time.monotonic()
        with self._lock:
            for old in [name for name, (_, until) in self._pages.items() if until < now]:
                del self._pages[old]
            if len(self._pages) >= _MAX_PAGES:
                raise ServiceError(
                    f"More than {_MAX_PAGES} tasks' pages are open", hint="Use osmo workflow port-forward."
                )
            self._pages[key] = (session, now + FIRST_USE_SECONDS)
        return key

    def page(self, key: str) -> Session | None:
        """What such a key stands for; asking is using it."""
        now = time.monotonic()
        with self._lock:
            found = self._pages.get(key)
            if found is None or found[1] < now:
                return None
            self._pages[key] = (found[0], max(found[1], now + IDLE_SECONDS))
        return found[0]

    def _put(self, key: str, session: Session) -> None:
        now = time.monotonic()
        with self._lock:
            while self._keys and (len(self._keys) >= _MAX_KEYS or next(iter(self._keys.values()))[1] < now):
                self._keys.popitem(last=False)
            self._keys[key] = (session, now + KEY_SECONDS)
