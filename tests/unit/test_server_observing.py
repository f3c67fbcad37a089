"""Requests, statements and passes are told to metrics, traces and the log; readiness."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from casstore.errors import UsageError
from casstore_orchestrator.figures import Figures, PoolFigures
from casstore_server.api.edge import handle_errors
from casstore_server.api.observe import Observed
from casstore_server.api.streaming import stream
from casstore_server.db.engine import open_database
from casstore_server.db.standing import Standing
from casstore_server.db.store import Database, EventRow
from casstore_server.logs import TextLines
from casstore_server.metrics import MAX_POOLS, OTHER, Metrics
from casstore_server.observing import Asked, Observer, Observers, RequestLog
from casstore_server.services.readiness import check
from casstore_server.services.streams import Wish, event_text
from casstore_server.supervision import notify
from casstore_server.traces import Traces, tracing, wanted

FIGURES = Figures(pools={"default": PoolFigures(waiting=3, running=2, lease=9.5)}, alive=True, seconds_since_step=0.5)


def application() -> FastAPI:
    app = FastAPI()

    @app.get("/things/{thing}")
    def thing(thing: str) -> dict[str, str]:
        return {"thing": thing}

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("no")

    @app.websocket("/talk/{key}")
    async def talk(ws: WebSocket, key: str) -> None:
        await ws.accept()
        await ws.close()

    return app


def ask(
    app: Any,
    path: str,
    *,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    kind: str = "http",
    sent: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """The messages with which the application answers."""
    sent = [] if sent is None else sent
    first = {"type": "websocket.connect"} if kind == "websocket" else {"type": "http.request", "body": b""}
    incoming = [first]

    async def receive() -> dict[str, Any]:
        if not incoming and kind == "http":
            await asyncio.Event().wait()  # the client stays
        return incoming.pop(0) if incoming else {"type": "websocket.disconnect", "code": 1000}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": kind, "method": method, "path": path, "raw_path": path.encode(), "query_string": b"token=hush",
        "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2),
        "root_path": "", "state": {}, "subprotocols": [],
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return sent


def value(metrics: Metrics, line: str) -> float:
    found = [text for text in metrics.render().decode().splitlines() if text.startswith(f"{line} ")]
    assert found, f"{line} is not in\n{metrics.render().decode()}"
    return float(found[0].rpartition(" ")[2])


def test_requests_are_counted_by_template_and_never_by_what_a_caller_wrote() -> None:
    metrics = Metrics(lambda: FIGURES)
    app = Observed(application(), Observers([metrics]))
    for number in range(5):
        ask(app, f"/things/thing-{number}")
        ask(app, f"/nowhere/{number}", method=f"ODD{number}")
    with pytest.raises(RuntimeError):
        ask(app, "/broken")
    ask(app, "/talk/secret-key", kind="websocket")
    assert value(metrics, 'casstore_http_requests_total{method="GET",route="/things/{thing}",status="200"}') == 5
    assert value(metrics, 'casstore_http_requests_total{method="OTHER",route="(none)",status="404"}') == 5
    assert value(metrics, 'casstore_http_requests_total{method="GET",route="/broken",status="500"}') == 1
    assert value(metrics, 'casstore_http_requests_total{method="WEBSOCKET",route="/talk/{key}",status="101"}') == 1
    assert value(metrics, 'casstore_http_request_seconds_count{method="GET",route="/things/{thing}"}') == 5
    assert value(metrics, "casstore_http_requests_open") == 0
    said = metrics.render().decode()
    assert not [word for word in ("thing-1", "nowhere", "ODD", "secret-key", "hush") if word in said]


def test_statements_and_their_failures_are_counted() -> None:
    metrics = Metrics(lambda: FIGURES)
    observers = Observers()
    observers.add(metrics)
    engine = create_engine("sqlite://")
    observers.watch(engine)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))
        connection.execute(text("CREATE TABLE x (y)"))
        with pytest.raises(OperationalError):
            connection.execute(text("SELECT z FROM x"))
    engine.dispose()
    assert value(metrics, 'casstore_database_statements_total{failed="no",kind="SELECT"}') == 1
    assert value(metrics, 'casstore_database_statements_total{failed="yes",kind="SELECT"}') == 1
    assert value(metrics, 'casstore_database_statements_total{failed="no",kind="OTHER"}') == 1


def test_pools_are_shown_as_they_are_and_only_so_many() -> None:
    metrics = Metrics(lambda: FIGURES)
    assert value(metrics, 'casstore_groups_waiting{pool="default"}') == 3
    assert value(metrics, 'casstore_groups_running{pool="default"}') == 2
    assert value(metrics, "casstore_leases") == 1
    assert value(metrics, "casstore_scheduler_idle_seconds") == 0.5
    metrics.placed(0.25)
    assert value(metrics, "casstore_placement_pass_seconds_count") == 1
    many = Metrics(lambda: Figures({f"p{n:04}": PoolFigures(1, 0, 0) for n in range(1000)}, True, 0))
    assert value(many, f'casstore_groups_waiting{{pool="{OTHER}"}}') == 1000 - MAX_POOLS
    assert many.render().decode().count("casstore_groups_waiting{") == MAX_POOLS + 1


def test_a_request_keeps_a_plain_id_and_gets_one_otherwise() -> None:
    app = Observed(application(), Observers())

    def number(given: str) -> str:
        start = ask(app, "/things/x", headers={"x-request-id": given})[0]
        return str(dict(start["headers"])[b"x-request-id"].decode())

    assert number("abc-1.2_3") == "abc-1.2_3"
    for bad in ("", "a b", "x" * 65, "\x1b[1m", 'a"b'):
        assert number(bad) != bad
        assert len(number(bad)) == 32


def test_the_log_of_requests_has_no_query_and_no_quiet_route(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ask(Observed(application(), Observers([RequestLog()])), "/things/private", headers={"x-osmo-user": "ada"})
    (record,) = [found for found in caplog.records if found.name == "casstore_server.observing"]
    assert record.getMessage().startswith("GET /things/{thing} 200 ")
    assert not [word for word in ("hush", "private") if word in f"{record.getMessage()} {record.__dict__['fields']}"]
    caplog.clear()
    RequestLog()._tell(Asked("GET", "/metrics", 200, 0.1, ""))
    assert not caplog.records


def test_who_watches_can_not_make_a_request_fail(caplog: pytest.LogCaptureFixture) -> None:
    class Bad(RequestLog):
        def _tell(self, asked: Asked) -> None:
            raise RuntimeError("no")

    assert ask(Observed(application(), Observers([Bad()])), "/things/x")[0]["status"] == 200
    assert "could not be observed" in caplog.text


def test_spans_of_requests_statements_and_passes() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    observers = Observers([Traces(provider)])
    engine = create_engine("sqlite://")
    observers.watch(engine)
    app = FastAPI()

    @app.get("/rows/{table}")
    def rows(table: str) -> int:
        with engine.connect() as connection:
            return int(connection.execute(text("SELECT :secret"), {"secret": 42}).scalar_one())

    trace = "0af7651916cd43dd8448eb211c80319c"
    ask(Observed(app, observers), "/rows/hush", headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    observers.placed(0.5)
    engine.dispose()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    request, statement = spans["GET /rows/{table}"], spans["database SELECT"]
    assert request.context is not None
    assert f"{request.context.trace_id:032x}" == trace
    assert statement.parent is not None
    assert statement.parent.span_id == request.context.span_id
    placing = spans["scheduler placement pass"]
    assert placing.start_time is not None
    assert placing.end_time == placing.start_time + 500_000_000
    assert "hush" not in "".join(span.to_json() for span in spans.values())
    assert "42" not in str([dict(span.attributes or {}) for span in spans.values()])
    provider.shutdown()


@pytest.mark.parametrize(
    ("environment", "exporter"),
    [
        ({}, ""),
        ({"OTEL_SERVICE_NAME": "x"}, ""),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://h"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://h"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, ""),
    ],
)
def test_traces_are_there_when_the_environment_asks(environment: dict[str, str], exporter: str) -> None:
    assert wanted(environment) == exporter


def test_an_exporter_that_there_is_not() -> None:
    with pytest.raises(UsageError, match="zipkin"), tracing("zipkin"):
        pass
    with tracing("") as none:
        assert none is None
    with tracing("console") as some:
        assert some is not None


def test_a_collector_that_does_not_answer_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casstore_server.traces.FLUSH_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with tracing("otlp") as traces:
            assert traces is not None
            traces.placed(0.1)
        (sending,) = [thread for thread in threading.enumerate() if thread.name == "traces"]
        connection, _ = silent.accept()
        connection.recv(100)
        assert sending.is_alive()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        sending.join(60)
        connection.close()


def test_without_extras_nothing_of_them_is_loaded() -> None:
    program = (
        "import sys\nimport casstore_server.run\n"
        "print([name for name in sys.modules if name.partition('.')[0] in ('prometheus_client',)"
        " or name.startswith('opentelemetry.sdk')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_observers_are_what_they_are_asked_to_be() -> None:
    provider = TracerProvider()
    found: list[Observer] = [RequestLog(), Metrics(lambda: FIGURES), Traces(provider)]
    for observer in found:
        observer.placed(0)
        observer.statement("SELECT", 0, False)
    provider.shutdown()


def test_a_stream_that_is_cut_sends_what_is_there_and_no_end() -> None:
    ending, waiting = threading.Event(), threading.Event()

    def make(stop: Callable[[], bool]) -> Any:
        yield b"first\n"
        waiting.set()
        assert ending.wait(60)
        assert stop()
        yield b"last\n"

    def whole(stop: Callable[[], bool]) -> Any:
        yield b"all\n"
        assert not stop()

    app = FastAPI()
    app.get("/cut")(lambda: stream(make, ending))
    app.get("/whole")(lambda: stream(whole, threading.Event()))
    helper = threading.Thread(target=lambda: (waiting.wait(60), ending.set()))
    helper.start()
    cut = [message for message in ask(app, "/cut") if message["type"] == "http.response.body"]
    helper.join()
    assert b"".join(message["body"] for message in cut) == b"first\nlast\n"
    assert all(message["more_body"] for message in cut)
    assert ask(app, "/whole")[-1]["more_body"] is False


def test_systemd_is_told_and_nobody_else_learns_where(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(short_path / "n"))
        monkeypatch.setattr("casstore_server.supervision._address", None)
        notify("READY=1")  # nobody to tell
        monkeypatch.setenv("NOTIFY_SOCKET", str(short_path / "n"))
        notify("READY=1")
        assert "NOTIFY_SOCKET" not in os.environ
        notify("STOPPING=1")
        assert [listener.recv(64), listener.recv(64)] == [b"READY=1", b"STOPPING=1"]


class Broken:
    """A database that does not answer."""

    def reading(self) -> Any:
        raise OperationalError("SELECT 1", {}, Exception("gone"))


@pytest.mark.parametrize(
    ("figures", "broken", "ending", "wrong"),
    [
        (FIGURES, False, False, {}),
        (FIGURES._replace(alive=False), False, False, {"scheduler": "not running"}),
        (FIGURES._replace(seconds_since_step=61), False, False, {"scheduler": "makes no steps"}),
        (FIGURES, True, False, {"database": "does not answer"}),
        (FIGURES, False, True, {"server": "ending"}),
    ],
)
def test_a_server_is_ready_when_it_can_do_its_work(
    tmp_path: Path, figures: Figures, broken: bool, ending: bool, wrong: dict[str, str]
) -> None:
    database = Database(open_database(tmp_path / "server.sqlite"))
    services: Any = SimpleNamespace(
        scheduler=SimpleNamespace(figures=lambda: figures),
        settings=SimpleNamespace(lease=15.0),
        ending=threading.Event(),
        database=Broken() if broken else database,
    )
    if ending:
        services.ending.set()
    found = check(services)
    database.close()
    assert found.checks == {"database": "OK", "scheduler": "OK", "server": "OK"} | wrong
    assert found.status == ("NOT READY" if wrong else "OK")


def test_a_failure_is_found_in_the_log_by_what_its_reply_says(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    handle_errors(app)

    @app.get("/broken")
    def broken() -> None:
        raise RuntimeError("no")

    caplog.handler.setFormatter(TextLines())
    sent: list[dict[str, Any]] = []
    with pytest.raises(RuntimeError):  # for the server underneath; the client has its reply
        ask(Observed(app, Observers()), "/broken", headers={"x-request-id": "r-7"}, sent=sent)
    assert dict(sent[0]["headers"])[b"x-request-id"] == b"r-7"
    assert "under [r-7]" in json.loads(sent[1]["body"])["hint"]
    assert "GET /broken failed [r-7]" in caplog.text


def test_events_that_were_stored_before_the_end_are_given() -> None:
    rows = [(1, EventRow("a", 0, "Started", "", 0.0))]

    def stop() -> bool:  # something happens until the very moment
        rows.append((2, EventRow("a", 0, "Ended", "", 1.0)))
        return True

    database = SimpleNamespace(
        standings=SimpleNamespace(of=lambda _: Standing(finished=False, live=True)),
        events=lambda _, after: [row for row in rows if row[0] > after],
    )
    services: Any = SimpleNamespace(database=database)
    lines = b"".join(event_text(services, "wf-1", Wish(), stop)).decode().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["Started", "Ended"]
