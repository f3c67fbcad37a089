"""Every list and every query of a server whose database is full, asked over its socket.

``python -m benchmarks.pages``: by default 1,000,000 versions of 20,000 datasets and 100,000 workflows, in SQLite and in
PostgreSQL. A request is measured from the first byte that is sent to the last one of the reply.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine

from benchmarks.homes import Home
from benchmarks.rows import Sizes, dataset_name, fill_index, fill_workflows, make_bucket
from casstore.config import load_config
from casstore.testing.http import Http
from casstore.testing.postgres import find_programs, running_postgres
from casstore_cli.background import find_place
from casstore_server.db.engine import open_database, open_postgres

__all__ = ["Measured", "Page", "measure", "pages"]

_EPOCH_DAY = "2026-07-01T00:00:00"


class Page(NamedTuple):
    """A request, and what it is called."""

    name: str
    path: str
    query: dict[str, Any]


def pages(sizes: Sizes) -> list[Page]:
    """All of them: each route with each filter, first pages and deep ones."""
    found = [Page(f"datasets: {name}", "/api/bucket/list_dataset", query) for name, query in _DATASETS.items()]
    one, other = dataset_name(0), dataset_name(sizes.datasets // 2)
    info = {
        "of 5,000 versions, newest 100": (one, {}),
        "of 5,000 versions, newest 1,000": (one, {"count": 1000, "order": "DESC"}),
        "of 5,000 versions, one by number": (one, {"tag": "7"}),
        "newest 100": (other, {}),
        "with deleted ones": (other, {"all_flag": "True"}),
        "one by tag": (other, {"tag": "golden"}),
    }
    found += [Page(f"versions: {n}", f"/api/bucket/lab/dataset/{d}/info", q) for n, (d, q) in info.items()]
    queries = [text.format(one=one, other=other, id=sizes.versions // 3) for text in _QUERIES]
    found += [Page(f"query: {text}", "/api/bucket/lab/query", {"command": text}) for text in queries]
    deep = sizes.workflows // 2
    for name, query in _WORKFLOWS.items():
        found.append(Page(f"workflows: {name}", "/api/workflow", query))
    found += [
        Page("workflows: all users, deep", "/api/workflow", {"all_users": "true", "offset": deep}),
        Page("workflows: of a user, deep", "/api/workflow", {"users": ["user7"], "offset": deep // 100}),
        Page("workflow", f"/api/workflow/flow7-{max(1, sizes.workflows // 1000)}", {}),
        Page("workflow, verbose", f"/api/workflow/flow7-{max(1, sizes.workflows // 1000)}", {"verbose": "true"}),
        Page("tags", "/api/tag", {}),
        Page("users", "/api/users", {}),
    ]
    for name, query in _TASKS.items():
        found.append(Page(f"tasks: {name}", "/api/task", query))
    done = {"all_users": "true", "statuses": ["COMPLETED"]}
    found.append(Page("tasks: completed, deep", "/api/task", done | {"offset": deep}))
    return found


_DATASETS: dict[str, dict[str, Any]] = {
    "of the caller (none)": {},
    "all users": {"all_users": "true"},
    "all users, 1,000 of them": {"all_users": "true", "count": 1000, "order": "DESC"},
    "of a user": {"user": ["user7"]},
    "of ten users": {"user": [f"user{number}" for number in range(10)], "count": 100},
    "a part of many names": {"all_users": "true", "name": "robot"},
    "a part of one name": {"all_users": "true", "name": "-000777"},
    "a part of no name": {"all_users": "true", "name": "nothing"},
    "before the middle": {"all_users": "true", "latest_before": _EPOCH_DAY},
    "before the middle, 1,000 of them": {"all_users": "true", "latest_before": _EPOCH_DAY, "count": 1000},
    "a day": {"all_users": "true", "latest_after": _EPOCH_DAY, "latest_before": "2026-07-02T00:00:00"},
    "of a bucket": {"all_users": "true", "buckets": ["lab"]},
    "collections (none)": {"all_users": "true", "dataset_type": "COLLECTION"},
}
_QUERIES = (
    'name = "{other}"',
    'name CONTAINS "-0007" LIMIT 100',
    'user = "user7" ORDER BY created_date DESC LIMIT 100',
    'user != "user7" LIMIT 100',
    'created_date >= "2026-01-01T05" LIMIT 100',
    "is_collection = true OR label.stage.level = 1 LIMIT 100",
    'label.team = "team3" LIMIT 100',
    'label.team IN ["team3", "team4"] AND LEN(label.parts) > 2 ORDER BY name DESC LIMIT 100',
    'NOT label.parts CONTAINS ["a"] LIMIT 100',
    'label CONTAINS KEY "nothing" OR name = "{one}"',
    "metadata.run.id = {id}",
    "metadata.score > 0.9999",
    "metadata.score < 0.5 LIMIT 100",
    "metadata.score < 0.5 ORDER BY created_date DESC LIMIT 100",
    "metadata.score < 0.5 ORDER BY user ASC LIMIT 100",
    'metadata.split = "test" AND metadata.score >= 0.999 ORDER BY created_date DESC LIMIT 100',
    'metadata.split = "test" AND user = "user7" LIMIT 100',
    'NOT metadata.split = "train" LIMIT 100',
    'metadata.note CONTAINS "hall 7" LIMIT 100',
    'metadata.note CONTAINS "hall 7" AND label.team = "team3" LIMIT 100',
    'metadata CONTAINS KEY "score" AND name = "{one}" ORDER BY created_date DESC LIMIT 100',
    'metadata.score > 0.5 AND name CONTAINS "-0007" LIMIT 100',
    'metadata CONTAINS KEY "split" AND created_date >= "2026-03-01" AND created_date < "2026-03-02" LIMIT 100',
    'metadata CONTAINS KEY "nothing" OR metadata.run.id IN [1, 2, {id}]',
)
_WORKFLOWS: dict[str, dict[str, Any]] = {
    "of the caller (none)": {},
    "all users": {"all_users": "true"},
    "all users, 1,000 of them": {"all_users": "true", "limit": 1000},
    "all users, oldest first": {"all_users": "true", "order": "ASC"},
    "of a user": {"users": ["user7"]},
    "of three users": {"users": ["user7", "user8", "user9"]},
    "failed": {"all_users": "true", "statuses": ["FAILED"]},
    "pending": {"all_users": "true", "statuses": ["PENDING"]},
    "completed or failed": {"all_users": "true", "statuses": ["FAILED", "COMPLETED"]},
    "running (none)": {"all_users": "true", "statuses": ["RUNNING"]},
    "of a pool": {"all_users": "true", "pools": ["pool2"]},
    "of a priority": {"all_users": "true", "priority": ["LOW"]},
    "with a tag": {"all_users": "true", "tags": ["tag3"]},
    "with a tag that nothing has": {"all_users": "true", "tags": ["none"]},
    "a part of one name": {"all_users": "true", "name": "flow77-77"},
    "a part of no name": {"all_users": "true", "name": "nothing"},
    "a week": {"all_users": "true", "submitted_after": _EPOCH_DAY, "submitted_before": "2026-07-08T00:00:00"},
    "before the middle": {"all_users": "true", "submitted_before": _EPOCH_DAY},
    "of an app (none)": {"all_users": "true", "app": "nothing"},
    "of a user, failed, of a pool": {"users": ["user10"], "statuses": ["FAILED"], "pools": ["pool2"]},
}
_TASKS: dict[str, dict[str, Any]] = {
    "of the caller (none)": {},
    "unfinished, all users": {"all_users": "true"},
    "completed": {"all_users": "true", "statuses": ["COMPLETED"]},
    "completed, 1,000 of them": {"all_users": "true", "statuses": ["COMPLETED"], "limit": 1000},
    "completed, oldest first": {"all_users": "true", "statuses": ["COMPLETED"], "order": "ASC"},
    "completed, of a user": {"users": ["user7"], "statuses": ["COMPLETED"]},
    "completed, on a node": {"all_users": "true", "statuses": ["COMPLETED"], "nodes": ["node-7"]},
    "completed, of a pool": {"all_users": "true", "statuses": ["COMPLETED"], "pools": ["pool2"]},
    "completed, of a workflow": {"all_users": "true", "statuses": ["COMPLETED"], "workflow_id": "flow7-7"},
    "completed, started in a week": {
        "all_users": "true",
        "statuses": ["COMPLETED"],
        "started_after": _EPOCH_DAY,
        "started_before": "2026-07-08T00:00:00",
    },
    "failed (none)": {"all_users": "true", "statuses": ["FAILED"]},
    "sums of the unfinished": {"all_users": "true", "summary": "true"},
    "sums of a user's completed": {"users": ["user7"], "statuses": ["COMPLETED"], "summary": "true"},
}


class Measured(NamedTuple):
    """A page, the status of its replies, and how many seconds each of them took."""

    page: Page
    status: int
    seconds: list[float]


def measure(client: Http, asked: Sequence[Page], rounds: int) -> list[Measured]:
    """Ask for each page once a round; the first round is not counted."""
    statuses, times = [0] * len(asked), [[0.0] * 0 for _ in asked]
    for _ in range(rounds + 1):
        for at, page in enumerate(asked):
            clock = time.perf_counter()
            statuses[at] = client.get(page.path, page.query).status_code
            times[at].append(time.perf_counter() - clock)
    return [Measured(page, status, seconds[1:]) for page, status, seconds in zip(asked, statuses, times, strict=True)]


@contextlib.contextmanager
def _databases(wanted: str, state: Path) -> Iterator[Iterator[tuple[str, str, Engine]]]:
    with contextlib.ExitStack() as stack:

        def each() -> Iterator[tuple[str, str, Engine]]:
            if wanted in ("sqlite", "both"):
                state.mkdir(parents=True, exist_ok=True)
                yield "SQLite", "", open_database(state / "server.sqlite")
            programs = find_programs()
            if wanted in ("postgres", "both") and programs is not None:
                url = stack.enter_context(running_postgres(programs))()
                yield "PostgreSQL", url, open_postgres(url)

        yield each()


def main() -> None:
    """Run, and print a table for each database."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--datasets", type=int, default=20_000)
    parser.add_argument("--versions", type=int, default=1_000_000)
    parser.add_argument("--workflows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--database", choices=["sqlite", "postgres", "both"], default="both")
    parser.add_argument("--only", default="", help="Pages whose names have this in them.")
    given = parser.parse_args()
    sizes = Sizes(given.datasets, given.versions, given.workflows)
    with tempfile.TemporaryDirectory(prefix="pages-") as folder:
        home = Home(Path(folder))
        lab = home.folder / "lab"
        make_bucket(lab, sizes)
        config = home.folder / ".config" / "osmo" / "config.yaml"
        config.parent.mkdir(parents=True)
        config.write_text(f"casstore: {{buckets: {{lab: {{url: '{lab.as_uri()}'}}}}}}\n")
        with _databases(given.database, Path(find_place(load_config()).pid_file).parent) as databases:
            for name, url, engine in databases:
                clock = time.perf_counter()
                fill_index(engine, lab, lab.as_uri(), sizes)
                fill_workflows(engine, sizes)
                with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    if url:
                        connection.exec_driver_sql("VACUUM ANALYZE")  # as autovacuum would have
                engine.dispose()
                print(f"{name}: filled in {time.perf_counter() - clock:.0f} s", flush=True)
                key = home.osmo("server", "new-key").strip() if url else ""
                environment = {"CASSTORE_DATABASE_URL": url, "CASSTORE_SECRET_KEY": key} if url else {}
                with home.server(**environment):
                    client = Http(find_place(load_config()).socket_path)
                    asked = [page for page in pages(sizes) if given.only in page.name]
                    found = measure(client, asked, given.rounds)
                _print(name, found)


def _print(name: str, found: Sequence[Measured]) -> None:
    load = os.getloadavg()[0]
    print(f"\n### {name}, load average {load:.1f}\n\n| page | status | median ms | p95 ms |\n|---|---:|---:|---:|")
    for page, status, seconds in found:
        worst = sorted(seconds)[min(len(seconds) - 1, round(0.95 * len(seconds)))]
        print(f"| {page.name} | {status} | {statistics.median(seconds) * 1000:.1f} | {worst * 1000:.1f} |")
    medians = [statistics.median(seconds) for _, _, seconds in found]
    slowest, middle = max(medians) * 1000, statistics.median(medians) * 1000
    print(f"\nThe slowest median is {slowest:.0f} ms, the median of them {middle:.0f} ms.")


if __name__ == "__main__":
    main()
