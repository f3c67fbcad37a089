"""A server's database as years of work would leave it: rows that are put straight into the tables.

The bucket is real as far as the index looks at it: a store with a name and a head for each dataset. Version records,
packs and manifests are left out. Everything is the same each time.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, Table, insert

from casstore.backend.base import Backend
from casstore.backend.registry import open_backend
from casstore.format import record
from casstore.model import DatasetType, Head, Totals, VersionRecord
from casstore.repo import layout
from casstore.repo.records import NameRecord
from casstore.repo.store import Store
from casstore_orchestrator.records import GroupRecord, TaskRecord, WorkflowRecord
from casstore_orchestrator.spec import GroupSpec, TaskSpec, WorkflowSpec
from casstore_orchestrator.status import GroupStatus, Priority, TaskStatus, WorkflowStatus
from casstore_server.db import attributes, schema
from casstore_server.db import index_tables as tables

__all__ = ["BIG", "USERS", "Sizes", "dataset_name", "fill_index", "fill_workflows", "make_bucket"]

USERS = 100
BIG = 5_000
"""Versions of the first dataset."""
_EPOCH = 1_767_225_600
_YEAR = 365 * 86400
_PORTION = 20_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much there is."""

    datasets: int
    versions: int
    workflows: int


def dataset_name(number: int) -> str:
    """The name of a dataset."""
    return f"{('robot', 'arm', 'drive', 'scan', 'speech')[number % 5]}-{number:06d}"


def _key(number: int) -> str:
    return f"d{number:021d}"


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1e6):06d}Z"


def _counts(sizes: Sizes) -> list[int]:
    source, rest = random.Random(1), sizes.versions
    counts = [min(BIG, rest // 2)]
    weights = [source.paretovariate(1.2) for _ in range(sizes.datasets - 1)]
    rest -= counts[0]
    scale = (rest - len(weights)) / sum(weights)
    counts += [1 + int(weight * scale) for weight in weights]
    counts[-1] += sizes.versions - sum(counts)
    return counts


def _head(number: int, count: int) -> Head:
    labels = {"team": f"team{number % 20}", "stage": {"level": number % 3}, "parts": ["a", "b", "c"][: number % 4]}
    return Head(
        id=_key(number),
        name=dataset_name(number),
        type=DatasetType.DATASET,
        created_at=_iso(_EPOCH + number),
        created_by=f"user{number % USERS}",
        write_id="0" * 32,
        labels=labels,
        tags={"golden": count} if number % 10 == 0 else {},
        last_version=count,
    )


def make_bucket(folder: Path, sizes: Sizes) -> None:
    """A store with the names and heads of all datasets, written long ago."""
    folder.mkdir(parents=True)
    backend = open_backend(folder.as_uri(), create=True)
    Store.open(backend, create=True).close()
    (folder / "names").mkdir(exist_ok=True)
    for number, count in enumerate(_counts(sizes)):
        head = _head(number, count)
        name = record.encode("name", NameRecord(name=head.name, id=head.id, write_id="0" * 32))
        for key, data in ((layout.name_key(head.name), name), (layout.head_key(head.id), record.encode("head", head))):
            path = folder / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            os.utime(path, (_EPOCH, _EPOCH))
        if number == sizes.datasets // 2:  # the one whose deleted versions are asked for: they are listed
            folder_of = (folder / layout.head_key(head.id)).with_name("versions")
            folder_of.mkdir()
            for version in range(1, count + 1):
                (folder_of / str(version)).touch()


def fill_index(engine: Engine, folder: Path, url: str, sizes: Sizes) -> None:
    """The rows of all datasets and versions of the bucket that is declared with this URL."""
    backend = open_backend(folder.as_uri())
    store = Store.open(backend)
    with engine.begin() as connection:
        values = {"id": 1, "address": url, "url": store.url, "store": store.id, "looked_at": time.time(), "cost": 1.0}
        connection.execute(insert(tables.bucket), values | {"round": 1, "round_at": None})
    counts = _counts(sizes)
    names = {info.key: info.state for info in backend.list(layout.NAMES)}
    for part in _portions(enumerate(counts), 2_000):
        _insert(engine, tables.name, (_name_row(backend, names, number, count) for number, count in part))
    _insert(engine, tables.dataset, (_dataset_row(number, count) for number, count in enumerate(counts)))
    for table, rows in (
        (tables.dataset_user, _user_rows(counts)),
        (tables.dataset_tag, _tag_rows(counts)),
        (tables.dataset_label, _label_rows(counts)),
        (tables.version, _version_rows(counts)),
        (tables.version_metadata, _metadata_rows(counts)),
    ):
        _insert(engine, table, rows)
    trees = [_metadata(number, number) for number in range(1000)] + [_head(number, 1).labels for number in range(60)]
    texts = {key: text for tree in trees for key, text in attributes.rows(tree) if text}
    _insert(engine, tables.text, ({"bucket": 1, "key": key, "text": text} for key, text in texts.items()))
    store.close()


def _name_row(backend: Backend, names: dict[str, str], number: int, count: int) -> dict[str, Any]:
    head = _head(number, count)
    key = layout.head_key(head.id)
    return {
        "bucket": 1,
        "name": head.name,
        "mark": names[layout.name_key(head.name)],
        "key": head.id,
        "head_mark": backend.stat(key).state,
        "etag": backend.get(key).etag,
        "last": count,
        "objects": count,
        "generation": 1,
        "round": 1,
        "problem": None,
    }


def _created(number: int, version: int) -> float:
    return _EPOCH + (hash((number, version)) % (_YEAR * 1000)) / 1000


def _dataset_row(number: int, count: int) -> dict[str, Any]:
    head = _head(number, count)
    last = _created(number, count)
    return {
        "id": number + 1,
        "bucket": 1,
        "name": head.name,
        "key": head.id,
        "type": head.type.value,
        "created": (_EPOCH + number) * 1_000_000,
        "created_at": head.created_at,
        "created_by": head.created_by,
        "last_version": count,
        "last_created": int(last * 1_000_000),
        "last_created_at": _iso(last),
        "stored_size": count * 1000,
        "labels": msgspec.json.encode(head.labels).decode(),
    }


def _user_rows(counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    for number, count in enumerate(counts):
        for user in {_uploader(number, version) for version in range(1, min(count, USERS) + 1)}:
            yield {"dataset": number + 1, "user": user}


def _tag_rows(counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    for number, count in enumerate(counts):
        for tag, version in _head(number, count).tags.items():
            yield {"dataset": number + 1, "tag": tag, "number": version}


def _label_rows(counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    for number, count in enumerate(counts):
        for key in dict(attributes.rows(_head(number, count).labels)):
            yield {"dataset": number + 1, "key": key, "bucket": 1}


def _uploader(number: int, version: int) -> str:
    return f"user{(number + version // 10) % USERS}"


def _metadata(at: int, number: int) -> dict[str, Any]:
    """The metadata of the version that is the ``at``-th of all."""
    return {
        "score": at * 7919 % 1_000_003 / 1_000_003,
        "split": ("train", "train", "train", "test")[at % 4],
        "note": f"recorded in hall {number % 50}",
        "run": {"id": at},
    }


def _version_rows(counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    at = 0
    for number, count in enumerate(counts):
        name = dataset_name(number)
        for version in range(1, count + 1):
            at += 1
            created, user = _created(number, version), _uploader(number, version)
            digest = hashlib.blake2b(b"%d" % at, digest_size=32).hexdigest()
            made = VersionRecord(
                number=version,
                manifest=digest,
                checksum=digest,
                totals=Totals(files=10, size=at * 100),
                created_at=_iso(created),
                created_by=user,
                write_id="",
                new_bytes=1000,
                metadata=_metadata(at, number),
            )
            yield {
                "id": at,
                "bucket": 1,
                "dataset": number + 1,
                "name": name,
                "number": version,
                "ready": 1,
                "created": int(created * 1_000_000),
                "created_by": user,
                "stored": 1000,
                "state": "",
                "record": msgspec.json.encode(made).decode(),
            }


def _metadata_rows(counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    at = 0
    for number, count in enumerate(counts):
        for _ in range(count):
            at += 1
            for key in dict(attributes.rows(_metadata(at, number))):
                yield {"version": at, "key": key, "bucket": 1}


def fill_workflows(engine: Engine, sizes: Sizes) -> None:
    """Workflows with two tasks each, all but a few of them over, and their tags."""
    _insert(engine, schema.workflow, (_workflow_row(number, sizes.workflows) for number in range(sizes.workflows)))
    _insert(engine, schema.task, itertools.chain.from_iterable(
        _task_rows(_workflow(number, sizes.workflows)) for number in range(sizes.workflows)
    ))  # fmt: skip
    _insert(engine, schema.tag, (
        {"workflow_id": f"flow{number % 500}-{number // 500 + 1}", "tag": tag}
        for number in range(sizes.workflows) for tag in _tags(number)
    ))  # fmt: skip


def _tags(number: int) -> list[str]:
    return [f"tag{number % 40}"] if number % 3 == 0 else []


_SPEC = WorkflowSpec(
    name="flow",
    groups=(
        GroupSpec(
            name="g",
            tasks=tuple(TaskSpec(name=name, image="x", command=("true",), lead=name == "a") for name in ("a", "b")),
        ),
    ),
)


def _workflow(number: int, count: int) -> WorkflowRecord:
    begun = _EPOCH + number * _YEAR / count
    over = number < count - 200
    tasks = tuple(
        TaskRecord(
            name=name,
            uuid=f"{number * 2 + at:032x}",
            lead=name == "a",
            status=TaskStatus.COMPLETED if over else TaskStatus.SUBMITTING,
            node=f"node-{number % 300}" if over else None,
            start_time=begun + 10 if over else None,
            end_time=begun + 100 if over else None,
        )
        for at, name in enumerate(("a", "b"))
    )
    status = WorkflowStatus.COMPLETED if number % 10 else WorkflowStatus.FAILED
    return WorkflowRecord(
        id=f"flow{number % 500}-{number // 500 + 1}",
        name=f"flow{number % 500}",
        number=number // 500 + 1,
        uuid=f"{number:032x}",
        user=f"user{number % USERS}",
        pool=f"pool{number % 4}",
        spec=_SPEC,
        groups=(GroupRecord(name="g", tasks=tasks, status=GroupStatus.COMPLETED if over else GroupStatus.SUBMITTING),),
        priority=(Priority.NORMAL, Priority.HIGH, Priority.LOW)[number % 3],
        status=status if over else WorkflowStatus.PENDING,
        submit_time=begun,
        start_time=begun + 10 if over else None,
        end_time=begun + 100 if over else None,
        tags=tuple(_tags(number)),
    )


def _workflow_row(number: int, count: int) -> dict[str, Any]:
    made = _workflow(number, count)
    small = msgspec.structs.replace(made, spec=WorkflowSpec(name="", groups=()))
    return {
        "id": made.id,
        "uuid": made.uuid,
        "name": made.name,
        "number": made.number,
        "user": made.user,
        "pool": made.pool,
        "status": str(made.status),
        "priority": str(made.priority),
        "submit_time": made.submit_time,
        "start_time": made.start_time,
        "end_time": made.end_time,
        "live": 0,
        "record": msgspec.json.encode(small).decode(),
        "spec": msgspec.json.encode(made.spec).decode(),
        "spec_text": "workflow: {name: flow}",
        "template_text": None,
        "app_uuid": None,
        "app_version": None,
    }


def _task_rows(made: WorkflowRecord) -> Iterator[dict[str, Any]]:
    for position, task in enumerate(made.all_tasks()):
        yield {
            "workflow_id": made.id,
            "name": task.name,
            "retry_id": 0,
            "position": position,
            "status": str(task.status),
            "node": task.node,
            "start_time": task.start_time,
            "end_time": task.end_time,
            "cpu": 1.0,
            "memory": float(1 << 30),
            "storage": float(1 << 30),
            "gpu": 1,
        }


def _portions(rows: Iterable[Any], size: int) -> Iterator[list[Any]]:
    found = iter(rows)
    while part := list(itertools.islice(found, size)):
        yield part


def _insert(engine: Engine, table: Table, rows: Iterable[dict[str, Any]]) -> None:
    """Put rows into a table as fast as the driver can: its indexes are made when they are there."""
    indexes = sorted(table.indexes, key=lambda index: str(index.name))
    with engine.begin() as connection:
        for index in indexes:
            index.drop(connection)
    for part in _portions(rows, _PORTION):
        names = list(part[0])
        quoted = ", ".join(f'"{name}"' for name in names)
        values = [tuple(row.values()) for row in part]
        with engine.connect() as connection, connection.begin():
            driver: Any = connection.connection.driver_connection
            if engine.dialect.name == "sqlite":
                marks = ", ".join("?" * len(names))
                driver.executemany(f'INSERT INTO "{table.name}" ({quoted}) VALUES ({marks})', values)
                continue
            with driver.cursor().copy(f'COPY "{table.name}" ({quoted}) FROM STDIN') as copy:
                for row in values:
                    copy.write_row(row)
    with engine.begin() as connection:
        for index in indexes:
            index.create(connection)
