"""Looking at a whole bucket: what is another one than when it was last looked at is read and written down.

Decided here and only here: how that is found out without reading every head, in what portions the changes are written,
and that a portion which somebody else was faster with is read again.

Where the store is a folder of this machine, the state of each name and each head is asked for, and whether there is a
version after the last one that is known: versions may be many, and need not be listed. Everywhere else
all records are listed, a thousand at a time and in several parts at once, which brings the states of all heads.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from casstore.backend.base import Backend
from casstore.dataset import Bucket
from casstore.errors import CancelledError, ConflictError, FormatError, NotFoundError
from casstore.repo import layout
from casstore_server.db import index
from casstore_server.db.index import Known
from casstore_server.db.store import Database
from casstore_server.services.index.reading import Read, Wanted, read, require_store

__all__ = ["Looked", "look", "refresh"]

PORTION = 32
"""Names that are read before they are written down."""
_ATTEMPTS = 20
_DAMAGED = 100
"""Names with something that can't be read, which are tried again in one look."""
_PARTS = "-0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
Stop = Callable[[], bool]


@dataclass(slots=True)
class Looked:
    """How far a look has come: names that there are, that are done (``before`` it, too), versions that were read, what
    could not be.
    """

    names: int = 0
    done: int = 0
    before: int = 0
    versions: int = 0
    problems: dict[str, str] = field(default_factory=dict)


class _Heads(NamedTuple):
    """The states of all heads, and how many version records each dataset has, by id."""

    marks: Mapping[str, str]
    objects: Mapping[str, int]


def look(
    database: Database,
    bucket: Bucket,
    bucket_id: int,
    *,
    round_: int | None = None,
    tell: Callable[[Looked], None] = lambda _: None,
    stop: Stop = lambda: False,
) -> Looked:
    """Have the index say what the bucket says. ``tell`` is called after each portion.

    With ``round_``, the number of a rebuild, everything is read that was not read in it yet. ``CancelledError`` when
    ``stop`` says so; nothing is lost by that.
    """
    backend = bucket.store.backend
    names = dict(_names(backend))
    heads = None if backend.capabilities.local else _listed(bucket)
    with database.reading() as connection:
        known = index.known(connection, bucket_id)
    mark_of = _marks(backend, heads)
    damaged = iter(range(_DAMAGED))
    wanted: list[Wanted] = []
    for name, mark in names.items():
        before = known.get(name)
        one = Wanted(name=name, before=before, mark=mark, mark_of=mark_of)
        again = before is not None and before.problem is not None and next(damaged, None) is not None
        if before is None or (before.round < round_ if round_ else again or _differs(backend, heads, one, before)):
            wanted.append(one)
    gone = [name for name in known if name not in names]
    if gone:
        require_store(bucket)
        with database.writing() as connection:
            index.forget_unseen(connection, bucket_id, gone)
    state = Looked(len(names), len(names) - len(wanted), len(names) - len(wanted))
    for at in range(0, len(wanted), PORTION):
        _write(database, bucket, bucket_id, wanted[at : at + PORTION], state, round_=round_, stop=stop)
        state.done += len(wanted[at : at + PORTION])
        tell(state)
    return state


def refresh(database: Database, bucket: Bucket, bucket_id: int, names: Sequence[str], *, whole: bool = False) -> None:
    """Have the index say what the bucket says of these names, at once.

    Damage is raised; ``NotFoundError`` is not. ``whole`` has the versions listed too.
    """
    with database.reading() as connection:
        known = index.known(connection, bucket_id, names)
    wanted = [Wanted(name=name, before=known.get(name)) for name in dict.fromkeys(names)]
    state = Looked()
    for found in _write(database, bucket, bucket_id, wanted, state, round_=None, whole=whole):
        if found.damage is not None:
            raise found.damage


def _write(
    database: Database,
    bucket: Bucket,
    bucket_id: int,
    wanted: Sequence[Wanted],
    state: Looked,
    *,
    round_: int | None,
    stop: Stop = lambda: False,
    whole: bool = False,
) -> list[Read]:
    """Read names and write down what was found, until nobody was faster and nothing is left to be read."""
    done: list[Read] = []
    waiting, first, attempts = list(wanted), True, Counter[str]()

    def states_of(keys: Sequence[str]) -> dict[str, dict[int, str]]:
        if round_ is not None and first:
            return {}
        with database.reading() as connection:
            return index.numbers_known(connection, bucket_id, keys)

    while waiting:
        if stop():
            raise CancelledError("interrupted")
        found = read(bucket, waiting, states_of, whole=whole or round_ is not None or not first)
        again: list[str] = []
        new = [one for one in found if round_ is not None or _is_new(one)]
        new.sort(key=lambda one: one.reading.head is None)  # a dataset is moved to its new name with all that is known
        done += [one for one in found if one not in new]
        for one, written in zip(new, _apply(database, bucket_id, new, round_), strict=True):
            if written and not one.partial:
                done.append(one)
            else:
                again.append(one.reading.name)
                attempts[one.reading.name] += not written
            state.versions += len(one.reading.versions)
        state.problems.update({one.reading.name: one.damage.message for one in done if one.damage is not None})
        if again and max(attempts.values(), default=0) > _ATTEMPTS:
            raise ConflictError("datasets changed again and again while they were indexed", hint="try again")
        waiting, first = _once_more(database, bucket_id, waiting, again), False
    return done


def _is_new(one: Read) -> bool:
    """Whether there is anything to write down; states in listings count."""
    reading, before = one.reading, one.reading.before
    if before is None:
        return reading.head is not None or reading.problem is not None or bool(reading.mark)
    return not one.same or (bool(reading.mark) and (reading.mark, reading.head_mark) != (before.mark, before.head_mark))


def _apply(database: Database, bucket_id: int, found: Sequence[Read], round_: int | None) -> list[bool]:
    """Write readings down at once; for each whether it counts."""
    if not found:
        return []
    written = []
    with database.writing() as connection:
        for one in found:
            before = one.reading.before
            stamp = round_ if round_ is not None and not one.partial else 0 if before is None else before.round
            same = one.same and round_ is None
            written.append(index.applied(connection, bucket_id, one.reading, stamp, same=same))
    return written


def _once_more(database: Database, bucket_id: int, wanted: Sequence[Wanted], names: Sequence[str]) -> list[Wanted]:
    if not names:
        return []
    with database.reading() as connection:
        known = index.known(connection, bucket_id, names)
    # Marks were taken before the first reading: they are good for any later one.
    marks = {one.name: one for one in wanted}
    return [replace(marks[name], before=known.get(name)) for name in names]


def _names(backend: Backend) -> Iterator[tuple[str, str]]:
    for info in backend.list(layout.NAMES):
        with contextlib.suppress(FormatError):  # what does not belong there
            yield layout.name_of(info.key), info.state


def _listed(bucket: Bucket) -> _Heads:
    """List all records, in parts side by side."""
    backend = bucket.store.backend
    marks: dict[str, str] = {}
    objects: Counter[str] = Counter()

    def part(first: str) -> None:
        # From the ids that begin with this character to those that begin with the next one.
        for info in backend.list(layout.DATASETS, after=f"{layout.DATASETS}{first}" if first != _PARTS[0] else ""):
            key, _, rest = info.key.removeprefix(layout.DATASETS).partition("/")
            if key[:1] > first and first != _PARTS[-1]:
                return
            if rest == "head":
                marks[key] = info.state
            elif layout.is_dataset_id(key):
                objects[key] += 1

    bucket.refs.each(part, _PARTS)
    return _Heads(marks, objects)


def _marks(backend: Backend, heads: _Heads | None) -> Callable[[str], str]:
    """What tells the state of a head."""
    if heads is not None:
        return lambda key: heads.marks.get(key, "")

    def look(key: str) -> str:
        try:
            return backend.stat(layout.head_key(key)).state
        except NotFoundError:
            return ""

    return look


def _differs(backend: Backend, heads: _Heads | None, one: Wanted, before: Known) -> bool:
    """Whether anything may have changed since ``before``."""
    if not one.mark or one.mark != before.mark:
        return True
    if before.key is None:
        return False
    mark = one.mark_of(before.key)
    if not mark or mark != before.head_mark:
        return True
    if before.last < 0:
        return False
    if heads is not None:
        return heads.objects.get(before.key, 0) != before.objects
    try:
        backend.stat(layout.version_key(before.key, before.last + 1))
    except NotFoundError:
        return False
    return True
