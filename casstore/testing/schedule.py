"""Several actors on one back end, each stopped at chosen calls while the others go on.

Decided here and only here: how interleavings are made. Every actor has a back end of its own over the same inner one. A
seed chooses at which of its calls an actor stops, and for how many calls of the others it stands still: all of its
threads, its heartbeat included, as after ``SIGSTOP``. When nobody else can go on, one that stands still is woken. Time
plays no part, and a schedule can't hang: an actor that ends counts as one that needs no turn.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from casstore.backend.base import Backend, Buffer, Capabilities, Condition, Object, ObjectInfo

__all__ = ["Schedule", "run_actors"]

T = TypeVar("T")


@dataclass(slots=True)
class _Actor:
    stops: dict[int, int]
    """Number of a call (from 1) -> how many calls of others it is held for."""
    calls: int = 0
    until: int | None = None
    """Total of calls at which it goes on; None while it runs."""
    ended: bool = False
    trace: list[str] = field(default_factory=list)


class Schedule:
    """A seeded interleaving. ``stops``: how often each actor stands still; ``reach`` bounds calls and stand-stills."""

    def __init__(self, seed: int, *, stops: int = 3, reach: int = 120) -> None:
        self._random = random.Random(seed)  # noqa: S311 - to repeat a schedule, not to keep a secret
        self._stops = stops
        self._reach = reach
        self._turn = threading.Condition()
        self._actors: dict[str, _Actor] = {}
        self._total = 0

    def backend(self, name: str, inner: Backend) -> Backend:
        """Return the back end of a new actor."""
        rng = self._random
        # Small numbers are likelier: what matters in a short operation is near its begin or its end.
        stops: dict[int, int] = {}
        for _ in range(self._stops):
            stops[1 + int(self._reach * rng.random() ** 2)] = 1 + int(self._reach * rng.random())
        with self._turn:
            self._actors[name] = _Actor(stops)
        return _Scheduled(inner, lambda call: self._step(name, call))

    def end(self, name: str) -> None:
        """An actor is done: nobody waits for it."""
        with self._turn:
            self._actors[name].ended = True
            self._wake()

    def trace(self) -> dict[str, list[str]]:
        """What each actor called, with the stand-stills: for the message of a test that failed."""
        with self._turn:
            return {name: list(actor.trace) for name, actor in self._actors.items()}

    def _step(self, name: str, call: str) -> None:
        with self._turn:
            actor = self._actors[name]
            while actor.until is not None:  # another thread of this actor has stopped it
                self._turn.wait()
            self._total += 1
            actor.calls += 1
            actor.trace.append(f"{self._total} {call}")
            held = actor.stops.get(actor.calls)
            if held is not None and not actor.ended:
                actor.until = self._total + held
                actor.trace.append(f"{self._total} stands still for {held} calls")
            self._wake()
            while actor.until is not None:
                self._turn.wait()

    def _wake(self) -> None:
        """Let those go on whose time has come; one more when nobody is left to bring it."""
        waiting = [actor for actor in self._actors.values() if actor.until is not None]
        for actor in waiting:
            if actor.until is not None and (actor.until <= self._total or actor.ended):
                actor.until = None
        if not any(actor.until is None and not actor.ended for actor in self._actors.values()):
            still = [actor for actor in waiting if actor.until is not None]
            if still:
                min(still, key=lambda actor: actor.until or 0).until = None
        self._turn.notify_all()


def run_actors(schedule: Schedule, actors: dict[str, Callable[[], None]]) -> dict[str, BaseException]:
    """Run each actor in a thread until all have ended; return what they raised, by name."""
    raised: dict[str, BaseException] = {}
    ready = threading.Barrier(len(actors))

    def run(name: str, work: Callable[[], None]) -> None:
        try:
            ready.wait()
            work()
        except BaseException as error:  # noqa: BLE001 - the caller decides which errors an actor may end with
            raised[name] = error
        finally:
            schedule.end(name)

    threads = [threading.Thread(target=run, args=item, name=item[0]) for item in actors.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


class _Scheduled:
    def __init__(self, inner: Backend, step: Callable[[str], None]) -> None:
        self._inner = inner
        self._step = step

    @property
    def url(self) -> str:
        return self._inner.url

    @property
    def capabilities(self) -> Capabilities:
        return self._inner.capabilities

    def get(self, key: str, *, limit: int | None = None) -> Object:
        return self._call(f"get {key}", lambda: self._inner.get(key, limit=limit))

    def read(self, key: str, offset: int, length: int) -> bytes:
        return self._call(f"read {key}", lambda: self._inner.read(key, offset, length))

    def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
        return self._call(f"put {key}", lambda: self._inner.put(key, data, condition=condition))

    def stat(self, key: str) -> ObjectInfo:
        return self._call(f"stat {key}", lambda: self._inner.stat(key))

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        return self._call(f"list {prefix}", lambda: iter(list(self._inner.list(prefix, after=after))))

    def delete(self, keys: Iterable[str]) -> None:
        # One by one: others may come in between.
        for key in list(keys):
            self._call(f"delete {key}", lambda key=key: self._inner.delete([key]))  # type: ignore[misc]

    def local_path(self, key: str) -> str | None:
        return self._inner.local_path(key)

    def close(self) -> None:
        """Nothing: the other actors go on with the inner one."""

    def _call(self, call: str, work: Callable[[], T]) -> T:
        self._step(call)
        return work()
