"""Actors stand still where the seed says, and nobody waits for ever."""

from __future__ import annotations

import itertools
import threading

from casstore.backend.memory import MemoryBackend
from casstore.testing.schedule import Schedule, run_actors


def work(backend, calls: int) -> None:
    for number in range(calls):
        backend.put(f"a/{number}", [b"x"])


def test_all_actors_come_to_their_end() -> None:
    for seed in range(50):
        inner = MemoryBackend()
        schedule = Schedule(seed, stops=5, reach=20)
        actors = {name: schedule.backend(name, inner) for name in "abc"}
        raised = run_actors(schedule, {name: lambda b=backend: work(b, 30) for name, backend in actors.items()})
        assert raised == {}
        assert all(sum("put" in line for line in trace) == 30 for trace in schedule.trace().values())


def test_one_that_stands_still_lets_the_others_pass() -> None:
    passed = 0
    for seed in range(20):
        inner = MemoryBackend()
        schedule = Schedule(seed, stops=1, reach=10)
        backends = {name: schedule.backend(name, inner) for name in "ab"}
        run_actors(schedule, {name: lambda b=backend: work(b, 20) for name, backend in backends.items()})
        for name, other in ("ab", "ba"):
            lines = schedule.trace()[name]
            held = next((at for at, line in enumerate(lines) if "stands still" in line), None)
            assert held is not None
            if held + 1 < len(lines):
                begin, end = (int(lines[at].split()[0]) for at in (held, held + 1))
                passed += sum(begin < int(line.split()[0]) < end for line in schedule.trace()[other]) > 0
    assert passed > 10


def test_all_threads_of_an_actor_stand_still() -> None:
    inner = MemoryBackend()
    schedule = Schedule(3, stops=2, reach=10)
    first, second = schedule.backend("first", inner), schedule.backend("second", inner)

    def two_threads() -> None:
        threads = [threading.Thread(target=work, args=(first, 10)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert run_actors(schedule, {"first": two_threads, "second": lambda: work(second, 20)}) == {}
    held = 0
    for line, after in itertools.pairwise(schedule.trace()["first"]):
        if "stands still" in line:
            begin, end = int(line.split()[0]), int(after.split()[0])
            others = [int(text.split()[0]) for text in schedule.trace()["second"] if "put" in text]
            # The call that stopped the actor was counted before; none of its threads made another one.
            assert [number for number in range(begin + 1, end) if number not in others] == []
            held += 1
    assert held


def test_errors_of_actors_are_returned() -> None:
    schedule = Schedule(1)
    backend = schedule.backend("a", MemoryBackend())
    raised = run_actors(schedule, {"a": lambda: backend.get("no/such")})  # type: ignore[dict-item]
    assert list(raised) == ["a"]
