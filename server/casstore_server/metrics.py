"""What Prometheus is told at ``/metrics``.

Decided here and only here: the names of the metrics, and that their labels have few values: routes by template, pools
as far as they are among the first hundred, statements by their first word. ``prometheus-client`` is imported here only,
and only where the extra ``metrics`` is installed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from casstore import __version__
from casstore_orchestrator.figures import Figures, PoolFigures
from casstore_server.observing import Asked

__all__ = ["Metrics", "available"]

MAX_POOLS = 100
"""Pools with metrics of their own; the others are summed up as ``(other)``."""
OTHER = "(other)"
_REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600)
_STATEMENT_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)
_PASS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5)


def available() -> bool:
    """Whether the package is installed."""
    from importlib.util import find_spec  # noqa: PLC0415  # asked once

    return find_spec("prometheus_client") is not None


class Metrics:
    """The metrics of one server; an ``Observer``. ``figures`` is asked at every look.

    Raises ``ImportError`` when the package is not installed.
    """

    def __init__(self, figures: Callable[[], Figures]) -> None:
        import prometheus_client as prom  # noqa: PLC0415  # optional
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415  # optional

        self._figures = figures
        self._family: Any = GaugeMetricFamily
        self._prom: Any = prom
        self._prom.disable_created_metrics()
        registry = self._registry = prom.CollectorRegistry()
        prom.ProcessCollector(registry=registry)
        prom.PlatformCollector(registry=registry)
        prom.GCCollector(registry=registry)
        prom.Info("casstore_server", "The server", registry=registry).info({"version": __version__})
        self._requests = prom.Counter(
            "casstore_http_requests", "Requests that were answered", ("method", "route", "status"), registry=registry
        )
        self._latency = prom.Histogram(
            "casstore_http_request_seconds",
            "Until the last byte of the reply",
            ("method", "route"),
            buckets=_REQUEST_S,
            registry=registry,
        )
        self._open = prom.Gauge(
            "casstore_http_requests_open", "Requests that are being answered, websockets among them", registry=registry
        )
        self._statements = prom.Counter(
            "casstore_database_statements", "Statements of SQL", ("kind", "failed"), registry=registry
        )
        self._statement_s = prom.Histogram(
            "casstore_database_statement_seconds", "Of the database", ("kind",), buckets=_STATEMENT_S, registry=registry
        )
        self._passes = prom.Histogram(
            "casstore_placement_pass_seconds",
            "One look at the queues of all pools, with the groups that were placed",
            buckets=_PASS_S,
            registry=registry,
        )
        registry.register(self)  # for ``collect``

    @property
    def content_type(self) -> str:
        """Of what ``render`` gives."""
        return str(self._prom.CONTENT_TYPE_LATEST)

    def render(self) -> bytes:
        """All metrics as they are now, in Prometheus' text form."""
        return bytes(self._prom.generate_latest(self._registry))

    def describe(self) -> list[Any]:
        """Nothing: asking is for ``collect``."""
        return []

    def collect(self) -> Iterator[Any]:
        """What is known at the moment of the look."""
        figures = self._figures()
        meaning: dict[str, tuple[str, Callable[[PoolFigures], float]]] = {
            "casstore_groups_waiting": ("Groups that wait for nodes, by pool", lambda pool: pool.waiting),
            "casstore_groups_running": ("Groups that hold nodes, by pool", lambda pool: pool.running),
            "casstore_lease_seconds": ("How long the lease of the pool is good for", lambda pool: pool.lease),
        }
        for name, (text, get) in meaning.items():
            family = self._family(name, text, labels=("pool",))
            for pool, value in _few({pool: get(found) for pool, found in figures.pools.items()}).items():
                family.add_metric((pool,), value)
            yield family
        yield self._family("casstore_leases", "Pools that this server looks after", value=len(figures.pools))
        yield self._family(
            "casstore_scheduler_idle_seconds", "Since the scheduler's last step", value=figures.seconds_since_step
        )

    @contextlib.contextmanager
    def during(self, _scope: Mapping[str, Any]) -> Iterator[Callable[[Asked], None]]:
        """See ``Observer.during``."""
        with self._open.track_inprogress():
            yield self._answered

    def _answered(self, asked: Asked) -> None:
        route = asked.route or "(none)"
        self._requests.labels(asked.method, route, str(asked.status)).inc()
        self._latency.labels(asked.method, route).observe(asked.seconds)

    def statement(self, kind: str, seconds: float, failed: bool) -> None:
        """See ``Observer.statement``."""
        self._statements.labels(kind, "yes" if failed else "no").inc()
        self._statement_s.labels(kind).observe(seconds)

    def placed(self, seconds: float) -> None:
        """See ``Observer.placed``."""
        self._passes.observe(seconds)


def _few(values: Mapping[str, float]) -> dict[str, float]:
    names = sorted(values)
    few = {name: values[name] for name in names[:MAX_POOLS]}
    if len(names) > MAX_POOLS:
        few[OTHER] = sum(values[name] for name in names[MAX_POOLS:])
    return few
