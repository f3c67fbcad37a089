"""The log of the server itself, on its standard error.

Decided here and only here: how a line looks, as text or as JSON, that it names the request that it belongs to, that one
event is one line (but for tracebacks of the text form), and that what looks like a secret is masked in it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import msgspec

from casstore_server.redacting import redact

__all__ = ["JsonLines", "TextLines", "request_id", "set_up"]

request_id: ContextVar[str] = ContextVar("casstore_request_id", default="")
"""The request that is being answered; empty outside of one."""
_log = logging.getLogger(__name__)
_CUT = "ASGI callable returned without completing response."
"""What uvicorn says of a followed log that we end with the server, on purpose."""
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_CONTROL = {number: f"\\x{number:02x}" for number in (*range(32), 127)} | {9: "\t", 10: "\\n", 13: "\\r"}


def set_up(log_format: str, level: str) -> None:
    """Send everything to standard error. ``log_format`` is ``text`` or ``json``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    handler.addFilter(_is_news)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    sys.excepthook = lambda *raised: _log.critical("the server failed", exc_info=raised)
    threading.excepthook = _thread_failed
    for noisy in ("alembic", "botocore", "urllib3", "azure", "opentelemetry", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether it is not just what we did ourselves: replies are broken off, and those that take too long cancelled."""
    cancelled = record.exc_info and record.exc_info[0] is asyncio.CancelledError
    return record.msg != _CUT and not (cancelled and record.name == "uvicorn.error")


def _thread_failed(failed: threading.ExceptHookArgs) -> None:
    raised = failed.exc_value
    if raised is not None:
        name = failed.thread.name if failed.thread is not None else "unknown"
        _log.error("thread %s failed", name, exc_info=(type(raised), raised, failed.exc_traceback))


class TextLines(logging.Formatter):
    """Lines for people."""

    def __init__(self) -> None:
        super().__init__(_TEXT)
        self.converter = time.gmtime
        self.default_msec_format = "%s.%03dZ"

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name of the base class
        """The line without its traceback; what is not printable in it can't forge another line."""
        found = request_id.get()
        line = super().formatMessage(record).rstrip("\n").translate(_CONTROL)
        return f"{line} [{found}]" if found else line

    def format(self, record: logging.LogRecord) -> str:
        """The line and its traceback."""
        return redact(super().format(record))


class JsonLines(logging.Formatter):
    """One JSON object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, ``process``, ``thread``; where
    there is one ``request_id`` and ``exception``; and the fields of ``extra={"fields": {...}}``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The object."""
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage().rstrip("\n")),
            "process": record.process or os.getpid(),
            "thread": record.threadName,
        }
        if found := request_id.get():
            line["request_id"] = found
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= {name: redact(value) if isinstance(value, str) else value for name, value in fields.items()}
        return msgspec.json.encode(line, enc_hook=str).decode()
