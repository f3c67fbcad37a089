"""What a place for objects really does, found out by doing it.

Decided here and only here: which promises of ``Backend`` are tried before a store is trusted to a service, and how. A
service may know nothing of conditions and say so; it may know nothing of them and say nothing, taking the second put as
gladly as the first; or keep them as long as nobody else writes at the same moment. Only the first is told by an error.
All keys are new, below ``probe/<random>/``, and removed again.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

import msgspec

from casstore.backend.base import Absent, Backend, Matches
from casstore.errors import (
    AccessError,
    CasstoreError,
    IntegrityError,
    NotFoundError,
    PreconditionError,
    StorageError,
    TransientError,
)

__all__ = ["PROBES", "Finding", "ProbeReport", "probe", "refusal"]

PROBES = "probe/"
"""Prefix of what is written for a probe."""

_FIRST = b"first " * 40
_SECOND = b"second" * 40
_THIRD = b"third " * 40


class Finding(msgspec.Struct, frozen=True):
    """One promise, and whether it was kept. ``detail`` is one line; empty when there is nothing to say."""

    promise: str
    kept: bool
    detail: str = ""


class ProbeReport(msgspec.Struct, frozen=True):
    """What was found."""

    findings: tuple[Finding, ...]

    @property
    def conditional(self) -> bool:
        """Whether conditional writes hold: several writers may use a store there."""
        return all(finding.kept for finding in self.findings if finding.promise in _CONDITIONAL)

    @property
    def usable(self) -> bool:
        """Whether everything else holds: a store can be there at all."""
        return all(finding.kept for finding in self.findings if finding.promise not in _CONDITIONAL)

    @property
    def lines(self) -> list[str]:
        """One line each."""
        return [
            f"{'yes' if finding.kept else 'NO '}  {finding.promise}" + (f": {finding.detail}" if finding.detail else "")
            for finding in self.findings
        ]


def probe(backend: Backend, *, writers: int = 8, rounds: int = 3) -> ProbeReport:
    """Try what a store needs. ``writers`` threads race in each of ``rounds``.

    Raises ``AccessError`` when nothing may be written, ``NotFoundError`` for a bucket that does not exist, and
    ``TransientError`` when the service can't be asked. Everything else is a finding.
    """
    prober = _Prober(backend, writers, rounds)
    findings = []
    try:
        for promise, attempt in prober.attempts():
            findings.append(_found(promise, attempt))
            if promise == _READ_AFTER_WRITE and not findings[-1].kept:
                break
    finally:
        prober.clean_up()
    return ProbeReport(tuple(findings))


_READ_AFTER_WRITE = "an object can be read once it is written"
_RANGES = "parts of an object can be read"
_LISTED = "a listing shows what is written"
_ABSENT = "an object is created only where none is"
_MATCHES = "an object is replaced only in a known state"
_RACE = "of many who create an object at once, one wins"
_SWAP_RACE = "of many who replace an object at once, one wins"
_DELETED = "what is deleted is gone"
_CONDITIONAL = frozenset({_ABSENT, _MATCHES, _RACE, _SWAP_RACE})


def _found(promise: str, attempt: Callable[[], str | None]) -> Finding:
    try:
        problem = attempt()
    except (AccessError, TransientError):
        raise
    except NotFoundError as error:
        if promise == _READ_AFTER_WRITE and error.hint:  # the bucket
            raise
        problem = error.message
    except CasstoreError as error:
        problem = error.message
    return Finding(promise, problem is None, problem or "")


class _Prober:
    def __init__(self, backend: Backend, writers: int, rounds: int) -> None:
        self._backend = backend
        self._writers = writers
        self._rounds = rounds
        self._prefix = f"{PROBES}{os.urandom(16).hex()}/"
        self._keys: list[str] = []
        self._conditional = False

    def attempts(self) -> list[tuple[str, Callable[[], str | None]]]:
        """The promises, and what tries each: it returns the problem, or None."""
        return [
            (_READ_AFTER_WRITE, self._read_after_write),
            (_RANGES, self._ranges),
            (_LISTED, self._listed),
            (_ABSENT, self._absent),
            (_MATCHES, self._matches),
            (_RACE, self._race),
            (_SWAP_RACE, self._swap_race),
            (_DELETED, self._deleted),
        ]

    def clean_up(self) -> None:
        """Remove what was written, as far as that is allowed."""
        with contextlib.suppress(CasstoreError):
            self._backend.delete(self._keys)

    def _new(self, name: str) -> str:
        key = self._prefix + name
        self._keys.append(key)
        return key

    def _read_after_write(self) -> str | None:
        key = self._new("object")
        for data in (_FIRST, _SECOND):
            tag = self._backend.put(key, [data])
            found = self._backend.get(key)
            if found.data != data:
                return "other bytes were read than were written"
            if found.etag != tag:
                return "the tag of a state is another when it is read"
        return None

    def _ranges(self) -> str | None:
        key = self._prefix + "object"
        for offset, length in ((6, 12), (-7, 7), (0, len(_SECOND))):
            start = offset if offset >= 0 else len(_SECOND) + offset
            if self._backend.read(key, offset, length) != _SECOND[start : start + length]:
                return "other bytes were read than were asked for"
        try:
            self._backend.read(key, 10, len(_SECOND))
        except IntegrityError:
            return None
        return "more bytes were read than there are"

    def _listed(self) -> str | None:
        found = {info.key: info.size for info in self._backend.list(self._prefix)}
        return None if found == {self._prefix + "object": len(_SECOND)} else "the listing is not up to date"

    def _absent(self) -> str | None:
        key = self._new("absent")
        self._backend.put(key, [_FIRST], condition=Absent())
        for data in (_SECOND, _THIRD):
            try:
                self._backend.put(key, [data], condition=Absent())
            except PreconditionError:
                pass
            else:
                return "the condition was ignored: a second object was taken"
            if self._backend.get(key).data != _FIRST:
                return "the second write was refused, and done all the same"
        return None

    def _matches(self) -> str | None:
        key = self._new("matches")
        old = self._backend.put(key, [_FIRST])
        try:
            new = self._backend.put(key, [_SECOND], condition=Matches(old))
        except PreconditionError:
            return "a write in the right state was refused"
        if self._backend.get(key).etag != new:
            return "the tag of a state is another when it is read"
        try:
            self._backend.put(key, [_THIRD], condition=Matches(old))
        except PreconditionError:
            pass
        else:
            return "the condition was ignored: a write over another state was taken"
        return None if self._backend.get(key).data == _SECOND else "a write was refused, and done all the same"

    def _race(self) -> str | None:
        for number in range(self._rounds):
            key = self._new(f"race-{number}")
            winners = self._raced(lambda data, key=key: self._backend.put(key, [data], condition=Absent()))  # type: ignore[misc]  # mypy can't type it
            if problem := self._problem_of_race(key, winners):
                return problem
        return None

    def _swap_race(self) -> str | None:
        key = self._new("swap-race")
        tag = self._backend.put(key, [_FIRST])
        for _ in range(self._rounds):
            winners = self._raced(lambda data, tag=tag: self._backend.put(key, [data], condition=Matches(tag)))  # type: ignore[misc]
            if problem := self._problem_of_race(key, winners):
                return problem
            tag = self._backend.get(key).etag
        return None

    def _problem_of_race(self, key: str, winners: list[bytes]) -> str | None:
        if len(winners) != 1:
            return f"{len(winners)} of {self._writers} won"
        return None if self._backend.get(key).data == winners[0] else "what is read is not what the winner wrote"

    def _raced(self, put: Callable[[bytes], str]) -> list[bytes]:
        """Let all put at once; return what those put who won."""
        barrier = threading.Barrier(self._writers)
        winners: list[bytes] = []
        failed: list[CasstoreError] = []

        def contend(number: int) -> None:
            # Tags may be made of the bytes: equal ones would be the same state.
            data = b"writer %d %s" % (number, os.urandom(8).hex().encode())
            barrier.wait()
            try:
                put(data)
            except PreconditionError:
                return
            except CasstoreError as error:
                failed.append(error)
                return
            winners.append(data)

        threads = [threading.Thread(target=contend, args=(number,), daemon=True) for number in range(self._writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]
        return winners

    def _deleted(self) -> str | None:
        try:
            self._backend.delete(self._keys)
        except AccessError as error:
            return error.message
        with contextlib.suppress(NotFoundError):
            self._backend.get(self._prefix + "object")
            return "it can still be read"
        return "it is still listed" if any(True for _ in self._backend.list(self._prefix)) else None


def refusal(report: ProbeReport, url: str) -> StorageError:
    """The error for a place that can hold no store."""
    broken = next(finding for finding in report.findings if not finding.kept and finding.promise not in _CONDITIONAL)
    return StorageError(
        f"{url} can't hold a store: not so that {broken.promise}: {broken.detail}",
        hint="use another service, or another bucket",
    )
