"""A line of a known rate between moto's server and its clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from casstore.testing.servers import s3
from casstore.testing.servers.s3 import Line


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(s3, "time", found)
    return found


class Answer:
    """Parts of a body, as a WSGI application hands them out."""

    def __init__(self, parts: Iterator[bytes], closed: list[bool]) -> None:
        self._parts = parts
        self._closed = closed

    def __iter__(self) -> Iterator[bytes]:
        return self._parts

    def close(self) -> None:
        self._closed.append(True)


def served(data: bytes, closed: list[bool]) -> Any:
    def application(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [])

        def parts() -> Iterator[bytes]:
            yield data[:10]
            yield b""
            yield data[10:]

        return Answer(parts(), closed)

    return application


@pytest.mark.parametrize("size", [0, 5, 100_000, 3 << 20])
def test_everything_comes_at_the_rate(clock: Clock, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    told: list[str] = []
    closed: list[bool] = []
    line = Line(served(data[:size], closed), 1e6)
    begun = clock.now
    assert b"".join(line({}, lambda status, _: told.append(status))) == data[:size]
    assert (told, closed) == (["200 OK"], [True])
    took = clock.now - begun
    assert size / 1e6 - Line.AHEAD - 1e-6 <= took <= size / 1e6


def test_requests_share_the_line(clock: Clock) -> None:
    data = bytes(1 << 20)
    line = Line(served(data, []), 1e6)
    answers = [line({}, lambda *_: None) for _ in range(3)]
    begun = clock.now
    received = [0, 0, 0]
    while any(size < len(data) for size in received):
        for number, answer in enumerate(answers):
            received[number] += len(next(answer, b""))
    assert clock.now - begun >= 3 * len(data) / 1e6 - Line.AHEAD - 1e-6
    assert max(received) == min(received)
