"""Who wants to know what the server does: its log, its metrics, its traces.

Decided here and only here: what they are told, and that nobody who is told can make the work itself fail.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Engine, event

__all__ = ["Asked", "Observer", "Observers", "RequestLog"]

_log = logging.getLogger(__name__)
_QUIET = frozenset({"/health", "/ready", "/metrics"})
_KINDS = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE", "BEGIN", "PRAGMA"})


@dataclass(slots=True)
class Asked:
    """A request that was answered. ``route`` is a template, empty for what is no route; ``status`` is 101 for
    websockets that were accepted, 0 for what was never answered; ``seconds`` until the last byte.
    """

    method: str
    route: str
    status: int
    seconds: float
    user: str


class Observer(Protocol):
    """Somebody who is told; called from many threads."""

    def during(self, scope: Mapping[str, Any]) -> contextlib.AbstractContextManager[Callable[[Asked], None]]:
        """Around a request; what it gives is called at its end."""

    def statement(self, kind: str, seconds: float, failed: bool) -> None:
        """The database has carried out a statement (``SELECT``, ``INSERT``, ..., ``OTHER``)."""

    def placed(self, seconds: float) -> None:
        """The scheduler has gone once through its queues."""


class Observers:
    """All of them. Without any it costs nothing."""

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = list(observers)

    def add(self, observer: Observer) -> None:
        """Tell this one too, from now on."""
        self._observers.append(observer)

    @contextlib.contextmanager
    def during(self, scope: Mapping[str, Any]) -> Iterator[Callable[[Asked], None]]:
        """See ``Observer.during``."""
        with contextlib.ExitStack() as stack:
            told = [stack.enter_context(one.during(scope)) for one in self._observers]

            def tell(asked: Asked) -> None:
                for one in told:
                    _safely(one, asked)

            yield tell

    def placed(self, seconds: float) -> None:
        """See ``Observer.placed``."""
        for one in self._observers:
            _safely(one.placed, seconds)

    def watch(self, engine: Engine) -> None:
        """Tell what the statements of this database take."""
        if not self._observers:
            return

        def before(_c: Any, _cursor: Any, _sql: str, _p: Any, context: Any, _many: bool) -> None:
            if context is not None:
                context.casstore_began = time.perf_counter()

        def after(_c: Any, _cursor: Any, sql: str, _p: Any, context: Any, _many: bool) -> None:
            self._statement(sql, context, failed=False)

        def failed(context: Any) -> None:
            self._statement(context.statement or "", context.execution_context, failed=True)

        event.listen(engine, "before_cursor_execute", before)
        event.listen(engine, "after_cursor_execute", after)
        event.listen(engine, "handle_error", failed)

    def _statement(self, sql: str, context: Any, *, failed: bool) -> None:
        began = getattr(context, "casstore_began", None)
        seconds = 0.0 if began is None else time.perf_counter() - began
        word = sql.lstrip()[:12].partition(" ")[0].upper()
        for one in self._observers:
            _safely(one.statement, word if word in _KINDS else "OTHER", seconds, failed)


class RequestLog:
    """One line in the log for each request: never its query, its body or its headers."""

    @contextlib.contextmanager
    def during(self, _scope: Mapping[str, Any]) -> Iterator[Callable[[Asked], None]]:
        """See ``Observer.during``."""
        yield self._tell

    def _tell(self, asked: Asked) -> None:
        if asked.route in _QUIET:
            return
        route = asked.route or "(no route)"
        fields = {"method": asked.method, "route": route, "status": asked.status, "user": asked.user}
        _log.info(
            "%s %s %d %.1f ms %s",
            asked.method,
            route,
            asked.status,
            asked.seconds * 1000,
            asked.user or "-",
            extra={"fields": fields | {"seconds": round(asked.seconds, 6)}},
        )

    def statement(self, kind: str, seconds: float, failed: bool) -> None:
        """Not logged."""

    def placed(self, seconds: float) -> None:
        """Not logged."""


def _safely(what: Callable[..., None], *values: Any) -> None:
    try:
        what(*values)
    except Exception:  # noqa: BLE001 - the request itself has been answered
        _log.exception("something could not be observed")
