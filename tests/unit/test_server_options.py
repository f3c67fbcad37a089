"""The settings of a server, and what its log says."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

import pytest

from casstore.errors import UsageError
from casstore_server.api.streaming import _Pump
from casstore_server.logs import JsonLines, TextLines, _is_news, request_id
from casstore_server.options import OPTIONS, resolve
from casstore_server.redacting import redact, redact_url
from casstore_server.settings import parse

FOLDERS = [f"--{name}=/nowhere" for name in ("socket-path", "state-dir", "data-dir", "cache-dir")]


def test_the_command_line_counts_more_than_the_environment_and_that_more_than_the_file() -> None:
    section, environment = (
        {"port": 1, "drain": 1, "lease": 1},
        {"CASSTORE_SERVER_PORT": "2", "CASSTORE_SERVER_LEASE": "2"},
    )
    found = resolve({"lease": "3"}, environment, section, "config.yaml")
    assert {name: (found[name].value, found[name].source) for name in ("lease", "port", "drain", "host")} == {
        "lease": (3.0, "command line"),
        "port": (2, "environment (CASSTORE_SERVER_PORT)"),
        "drain": (1.0, "file"),
        "host": ("127.0.0.1", "default"),
    }
    assert set(found) == {option.name for option in OPTIONS}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("port", "70000", "from 0 to 65535"),
        ("port", True, "from 0 to 65535"),
        ("port", "8o", "from 0 to 65535"),
        ("lease", "nan", "seconds"),
        ("drain", "-1", "seconds"),
        ("log_format", "xml", "text, json"),
        ("log_level", 3, "debug"),
        ("metrics", "perhaps", "true or false"),
        ("database", 3, "postgresql://"),
        ("host", "example.org", "address"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(name: str, value: object, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        resolve({}, {}, {name: value}, "config.yaml")


@pytest.mark.parametrize("value", ["127.0.0.1", "localhost", "::1", "127.9.9.9"])
def test_addresses_of_this_machine_may_be_listened_on(value: str) -> None:
    assert resolve({"host": value}, {}, {}, "f")["host"].value in {value, "127.0.0.1"}


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(UsageError, match=r"config\.yaml: unknown key casstore\.server\.prot") as failed:
        resolve({}, {}, {"prot": 1}, "config.yaml")
    assert "port" in str(failed.value.hint)


def test_the_database_is_in_nothing_that_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASSTORE_DATABASE_URL", "postgresql://ada:hush@host/db")
    order = parse([*FOLDERS, f"--config-file={tmp_path / 'config.yaml'}", "--user=ada", "--port=0", "--action=config"])
    assert order.database == "postgresql://ada:hush@host/db"
    assert "hush" not in f"{order.settings} {order}"
    assert order.effective["database"].shown == "postgresql://ada:***@host/db"
    assert (order.settings.port, order.action) == (0, "config")
    assert order.settings.url == "http://127.0.0.1:0"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("lost postgresql://ada:hu/s@h@db.example/osmo now", "lost postgresql://ada:***@db.example/osmo now"),
        ("Authorization: Bearer hush", "Authorization: ***"),
        ("{'secret_access_key': 'hush', 'user': 'ada'}", "{'secret_access_key': '***', 'user': 'ada'}"),
        ("GET /x?X-Amz-Signature=hush&part=3", "GET /x?X-Amz-Signature=***&part=3"),
        ("password=hush, port=3", "password=***, port=3"),
        ("done token:Own /api by ada, token:Ownhush", "done token:Own /api by ada, token:***"),
        ("listening on http://127.0.0.1:8000: everybody", "listening on http://127.0.0.1:8000: everybody"),
        ("a task of workflow hello-1 ended: 3", "a task of workflow hello-1 ended: 3"),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, kept: str) -> None:
    assert redact(text) == kept


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://ada:hu@sh:x@h:1/d", "postgresql://ada:***@h:1/d"),
        ("postgresql://h/d?password=hush", "postgresql://h/d?***"),
        ("postgresql:///d", "postgresql:///d"),
        ("hush", "***"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def line(formatter: logging.Formatter, message: str, *args: object, **extra: object) -> str:
    record = logging.LogRecord("x", logging.ERROR, "f", 1, message, args, None)
    record.__dict__ |= extra
    return formatter.format(record)


def test_a_line_of_text_is_one_line_and_names_its_request() -> None:
    token = request_id.set("r-1")
    try:
        found = line(TextLines(), "%s failed", "/a\n2026-11-21 ERROR forged\x1b[1m token=hush\n")
    finally:
        request_id.reset(token)
    assert "\n" not in found
    assert "\x1b" not in found
    assert "hush" not in found
    assert found.endswith("[r-1]")
    assert "[" not in line(TextLines(), "no request")


def test_a_line_of_json_has_everything() -> None:
    token = request_id.set("r-1")
    try:
        try:
            raise ValueError("password=hush")
        except ValueError:
            text = line(JsonLines(), "a\nb", exc_info=sys.exc_info(), fields={"route": "/x", "note": "token=hush"})
    finally:
        request_id.reset(token)
    found = json.loads(text)
    assert "\n" not in text
    assert "hush" not in text
    assert (found["level"], found["logger"], found["message"], found["request_id"]) == ("error", "x", "a\nb", "r-1")
    assert "ValueError" in found["exception"]
    assert found["route"] == "/x"
    assert found["time"].endswith("Z")


def test_threads_of_streams_know_their_request() -> None:
    import threading

    token = request_id.set("r-2")
    try:
        pump = _Pump(lambda _: iter(()), threading.Event())
    finally:
        request_id.reset(token)
    assert pump._context.run(request_id.get) == "r-2"


def test_what_the_server_does_itself_at_its_end_is_no_error() -> None:
    def news(name: str, message: str, raised: type[BaseException] | None = None) -> bool:
        found = (raised, raised(), None) if raised else None
        return _is_news(logging.LogRecord(name, logging.ERROR, "f", 1, message, (), found))

    assert not news("uvicorn.error", "ASGI callable returned without completing response.")
    assert not news("uvicorn.error", "Exception in ASGI application\n", asyncio.CancelledError)
    assert news("uvicorn.error", "Exception in ASGI application\n", ValueError)
    assert news("casstore_server.run", "failed", asyncio.CancelledError)
