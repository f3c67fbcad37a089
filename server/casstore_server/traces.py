"""Traces for OpenTelemetry.

Decided here and only here: when there are any (where the environment names an exporter in OpenTelemetry's own
variables, and never otherwise), the names of the spans and what they say: routes by template, statements by their first
word; nothing that a user wrote.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from casstore import __version__
from casstore.errors import UsageError
from casstore_server.observing import Asked

__all__ = ["Traces", "tracing", "wanted"]

_log = logging.getLogger(__name__)
_EXPORTER: Final = "OTEL_TRACES_EXPORTER"
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NO = frozenset({"", "none"})
FLUSH_S = 3.0
"""How long the server waits at its end for a collector to take what is left."""


def wanted(environment: Mapping[str, str]) -> str:
    """The exporter that the environment asks for (``otlp``, ``console``); empty when it asks for none."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return ""
    named = environment.get(_EXPORTER, "").strip().lower()
    if named:
        return "" if named in _NO else named
    return "otlp" if any(environment.get(name) for name in _ENDPOINTS) else ""


@contextlib.contextmanager
def tracing(exporter: str) -> Iterator[Traces | None]:
    """Traces to ``exporter`` for the length of the block; what is left is sent at its end, unless the collector takes
    too long. None for an empty one.

    ``UsageError`` when the packages are not installed, or the exporter is not one that there is.
    """
    if not exporter:
        yield None
        return
    try:
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415  # optional
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415  # optional
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415  # optional

        made = _exporter(exporter)
    except ImportError:
        raise UsageError(
            f"{_EXPORTER} or its endpoint is set, and OpenTelemetry is not installed",
            hint="Install it with: pip install 'casstore[otel]', or set OTEL_SDK_DISABLED=true",
        ) from None
    name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": "casstore-server"}
    # What it would do at the exit of the process is done here, for a bounded time.
    provider = TracerProvider(
        shutdown_on_exit=False, resource=Resource.create({**name, "service.version": __version__})
    )
    provider.add_span_processor(BatchSpanProcessor(made))
    _log.info("traces are sent by the exporter %s", exporter)
    try:
        yield Traces(provider)
    finally:
        sending = threading.Thread(target=provider.shutdown, name="traces", daemon=True)
        sending.start()
        sending.join(FLUSH_S)


def _exporter(name: str) -> Any:
    if name == "otlp":
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415  # optional

        return OTLPSpanExporter()
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415  # optional

        return ConsoleSpanExporter()
    raise UsageError(f"{_EXPORTER} names an exporter that there is not: {name[:40]}", hint="There are: otlp, console")


class Traces:
    """Spans of requests, statements and placement passes; an ``Observer``. ``provider`` is a ``TracerProvider``."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry.propagate import extract  # noqa: PLC0415  # optional
        from opentelemetry.trace import SpanKind, Status, StatusCode  # noqa: PLC0415  # optional

        self._tracer: Any = provider.get_tracer("casstore", __version__)
        self._extract: Any = extract
        self._kinds: Any = SpanKind
        self._error: Any = Status(StatusCode.ERROR)

    @contextlib.contextmanager
    def during(self, scope: Mapping[str, Any]) -> Iterator[Callable[[Asked], None]]:
        """See ``Observer.during``; the caller's trace goes on."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope.get("headers", ())}
        context = self._extract({name: headers[name] for name in ("traceparent", "tracestate") if name in headers})
        with self._tracer.start_as_current_span("request", context=context, kind=self._kinds.SERVER) as span:

            def tell(asked: Asked) -> None:
                span.update_name(f"{asked.method} {asked.route or '(no route)'}")
                span.set_attribute("http.request.method", asked.method)
                span.set_attribute("http.route", asked.route)
                span.set_attribute("http.response.status_code", asked.status)
                if asked.status >= 500 or asked.status == 0:
                    span.set_status(self._error)

            yield tell

    def statement(self, kind: str, seconds: float, failed: bool) -> None:
        """See ``Observer.statement``."""
        self._past(f"database {kind}", seconds, failed, {"db.operation.name": kind})

    def placed(self, seconds: float) -> None:
        """See ``Observer.placed``."""
        self._past("scheduler placement pass", seconds, False, {})

    def _past(self, name: str, seconds: float, failed: bool, attributes: Mapping[str, str]) -> None:
        end = time.time_ns()
        span = self._tracer.start_span(
            name, kind=self._kinds.INTERNAL, attributes=attributes, start_time=end - int(seconds * 1e9)
        )
        if failed:
            span.set_status(self._error)
        span.end(end)
