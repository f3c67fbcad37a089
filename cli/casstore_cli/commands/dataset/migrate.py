"""``osmo dataset migrate``: every version of datasets in a bucket of OSMO 6.3 or older.

Decided here and only here: how the command line says which dataset becomes which, and how the outcome is shown.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import IntegrityError, NotFoundError, UsageError
from casstore_cli import output
from casstore_cli.commands.dataset import trees
from casstore_cli.commands.dataset.options import reference_option, workers
from casstore_cli.commands.dataset.transfer import amount, working
from casstore_cli.multi import Command, ManyOption

if TYPE_CHECKING:
    from casstore.dataset import Bucket
    from casstore.dataset.adopt.base import Buckets
    from casstore.dataset.adopt.collect import Collected
    from casstore.dataset.adopt.info import Info
    from casstore.dataset.adopt.migrate import Migration, Outcome, Step
    from casstore.dataset.adopt.osmo import OsmoDataset
    from casstore.transfer.foreign import Problem

SHOWN = 20
"""Problems of one version that are shown; JSON has all."""
_WORDS = {
    "planned": "to be taken over",
    "created": "taken over",
    "present": "here already",
    "damaged": "NOT taken over: damaged",
    "left_out": "left out: the service did not count it as ready",
    "late": "NOT taken over: a later version is here already",
}
_COLLECTED = {
    "created": "was made",
    "present": "is here already",
    "incomplete": "was NOT made",
    "taken": "was NOT made: something else has this name",
}
_CHECKS = {
    "md5": "MD5",
    "md5-of-parts": "ETag of parts",
    "md5-of-text": "MD5 of text",
    "etag": "only the service's ETag",
    "none": "nothing to compare with",
}


@click.command("migrate", cls=Command)
@click.argument("source")
@click.argument("name", required=False)
@click.option("--dataset", "names", cls=ManyOption, metavar="ID=NAME...", help="The dataset ID becomes NAME.")
@click.option("--info", "infos", cls=ManyOption, metavar="FILE...", help="What `osmo dataset info -t json` printed.")
@click.option("-b", "--bucket", "bucket_name", metavar="BUCKET", help="The bucket to migrate to.")
@click.option("--list", "list_", is_flag=True, help="Only show which datasets are there.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done, and what is wrong.")
@click.option("--skip-damaged", is_flag=True, help="Make versions without the files that are damaged.")
@click.option("--follow", cls=ManyOption, metavar="URL...", help="Read linked objects below these URLs, too.")
@reference_option
@click.option("-T", "--threads", type=click.IntRange(1), help="Files that are read at once.")
@output.format_option("text", "json")
@click.pass_context
def migrate(
    ctx: click.Context,
    *,
    source: str,
    name: str | None,
    names: tuple[str, ...],
    infos: tuple[str, ...],
    bucket_name: str | None,
    list_: bool,
    dry_run: bool,
    skip_damaged: bool,
    follow: tuple[str, ...],
    reference: bool,
    threads: int | None,
    format_type: str,
) -> None:
    """Take over datasets from a bucket of OSMO 6.3 or older, with all their versions.

    SOURCE is the URL (or folder) that OSMO's bucket had, or that of one dataset in it. Datasets have only an ID there:
    NAME names the only one, --dataset ID=NAME one of several, and --info FILE brings names, tags, labels, metadata,
    dates and users from what an old client printed.

    Every file is checked against the digest in the manifest. Done again, it continues behind the last version that is
    here. With --reference nothing is copied: see the guide for what that costs.
    """
    if not _is_place(source):
        _say_nothing_to_do(source, name)
        return
    from casstore.dataset import parse_ref
    from casstore.dataset.adopt.base import Buckets
    from casstore.dataset.adopt.osmo import find_datasets
    from casstore_cli.credentials import ConfigCredentials
    from casstore_cli.stores import normal_url, open_bucket

    url = normal_url(source)
    ref = parse_ref(name) if name else None
    if ref is not None and ref.tag:
        raise UsageError(f"{name}: all versions are taken over", hint=f"name the dataset without a tag: {ref.name}")
    if ref is not None and ref.bucket and bucket_name not in (None, ref.bucket):
        raise UsageError(f"{name!r} is not in bucket {bucket_name!r}")
    with Buckets(ConfigCredentials()) as buckets:
        datasets = find_datasets(url, buckets, follow)
        if list_:
            _list(datasets, format_type)
            return
        known = _load_infos(infos)
        chosen = _choose(datasets, ref.name if ref else None, names, known)
        with open_bucket(bucket_name or (ref.bucket if ref else None), write=True) as bucket:
            if reference:
                announce_reference(bucket, url)
            run = partial(
                _migrate, bucket, buckets, dry_run=dry_run, skip=skip_damaged, refer=reference, threads=threads
            )
            reports = [run(one, into, known) for one, into in chosen]
            collections = [] if dry_run else _collect(bucket, known, [migration for migration, _ in reports])
            _tell(bucket, url, reports, collections, format_type)
    if any(one.missing or one.state == "taken" for one in collections):
        ctx.exit(IntegrityError("").exit_code)
    if any(outcome.state in ("damaged", "late") for _, outcomes in reports for outcome in outcomes):
        ctx.exit(IntegrityError("").exit_code)


def announce_reference(bucket: Bucket, url: str) -> None:
    """Say what ``--reference`` means; ``UsageError`` for what can't be referred to."""
    from casstore.errors import AccessError
    from casstore.format.reference import Pointer
    from casstore.remote.urls import REMOTE_SCHEMES, parse_url

    place = parse_url(url)
    if place.scheme not in REMOTE_SCHEMES:
        raise UsageError(
            f"--reference is for object storage, and the data is at {url}",
            hint="without it the data is copied, and what versions share is stored once",
        )
    output.message(
        "The data is read once to compute digests, and nothing is copied. "
        "These versions break when the objects are changed or deleted."
    )
    try:
        bucket.store.references.check(Pointer(place.bucket_url, place.prefix or "-", "", 0))
    except AccessError as error:
        output.warn(
            f"you can't read these versions yet: {output.escape(error.message)}: {output.escape(error.hint or '')}"
        )


def _is_place(source: str) -> bool:
    return "://" in source or source.startswith(("/", ".", "~")) or os.path.isdir(source)


def _say_nothing_to_do(source: str, name: str | None) -> None:
    """OSMO's own form of the command: it turned datasets of its first releases into those with manifests."""
    from casstore.dataset import parse_ref
    from casstore_cli.stores import open_bucket

    try:
        ref = parse_ref(source)
    except UsageError:
        raise NotFoundError(f"{source} is neither a URL, a folder nor the name of a dataset") from None
    if name is not None:
        raise NotFoundError(f"the folder {source} does not exist")
    with open_bucket(ref.bucket) as bucket:
        version = bucket.resolve(ref.name, ref.tag)
    output.message(
        f"{version} is in this store already: there is nothing to migrate. "
        "Datasets of OSMO 6.3 or older come from their bucket: osmo dataset migrate URL NAME"
    )


def _load_infos(paths: Sequence[str]) -> dict[str, Info]:
    from casstore.dataset.adopt.info import MAX_INFO, load_info

    found: dict[str, Info] = {}
    for path in paths:
        for info in load_info(path, trees.read_file(path, MAX_INFO), _warn):
            found[info.id] = info
    return found


def _choose(
    datasets: list[OsmoDataset], name: str | None, names: Sequence[str], infos: dict[str, Info]
) -> list[tuple[OsmoDataset, str]]:
    """Return which dataset becomes which."""
    from casstore.dataset.adopt.info import COLLECTION

    wanted = {ident: info.name for ident, info in infos.items() if info.type != COLLECTION}
    for text in names:
        ident, equals, into = text.partition("=")
        if not equals or not into:
            raise UsageError(f"{text!r} does not say which dataset becomes which", hint="write --dataset ID=NAME")
        wanted[ident] = into
    ids = {dataset.id for dataset in datasets}
    missing = sorted(wanted.keys() - ids)
    if missing:
        raise NotFoundError(f"there is no dataset {missing[0]!r} there", hint="see what there is with --list")
    if name is not None:
        several = [dataset for dataset in datasets if dataset.id in wanted] or datasets
        if len(several) > 1:
            raise UsageError(
                f"there are {len(several)} datasets: one name is not enough", hint="see --list, then --dataset ID=NAME"
            )
        wanted[several[0].id] = name
    if not wanted:
        raise UsageError(
            f"{len(datasets)} dataset{'' if len(datasets) == 1 else 's'} there, and no name for any",
            hint="give NAME for the only one, --dataset ID=NAME, or --info FILE; see --list",
        )
    chosen = [(dataset, wanted[dataset.id]) for dataset in datasets if dataset.id in wanted]
    if len({into for _, into in chosen}) < len(chosen):
        raise UsageError("two datasets can't become one", hint="give each a name of its own: --dataset ID=NAME")
    return chosen


def _list(datasets: list[OsmoDataset], format_type: str) -> None:
    """Show the datasets, by what may help to tell them apart."""
    rows: list[dict[str, Any]] = []
    for dataset in datasets:
        with dataset:
            versions = dataset.versions()
            rows.append(
                {
                    "id": dataset.id,
                    "versions": [version.number for version in versions],
                    "last_written": max(version.info.mtime for version in versions) if versions else None,
                    "begins_with": versions[-1].first() if versions else None,
                }
            )
    if format_type == "json":
        output.document(rows)
        return
    from datetime import UTC, datetime

    cells = [
        (
            row["id"],
            len(row["versions"]),
            None if row["last_written"] is None else output.date(datetime.fromtimestamp(row["last_written"], UTC)),
            row["begins_with"],
        )
        for row in rows
    ]
    output.text(output.table(("Dataset", "Versions", "Last Written", "Begins With"), cells))


def _migrate(
    bucket: Bucket,
    buckets: Buckets,
    dataset: OsmoDataset,
    name: str,
    infos: dict[str, Info],
    *,
    dry_run: bool,
    skip: bool,
    refer: bool,
    threads: int | None,
) -> tuple[Migration, list[Outcome]]:
    from casstore.dataset.adopt.migrate import Migration, State
    from casstore.dataset.adopt.take import Taking
    from casstore.transfer.memo import Memo

    with dataset:
        migration = Migration(bucket, dataset, name, infos.get(dataset.id), warn=_warn)
        output.message(f"Looking at {dataset.url}")
        steps = migration.plan(thorough=dry_run)
        if dry_run:
            return migration, [_planned(step) for step in steps]
        due = [step for step in steps if step.state is State.PLANNED]
        files, size = sum(step.found.files for step in due), sum(step.found.size for step in due)
        versions = f"{len(due)} version{'' if len(due) == 1 else 's'}"
        output.message(f"{versions} to take over to {name}: {amount(files, size)} in all of them")
        outcomes: list[Outcome] = []
        with (
            Memo(bucket.cache_dir, dataset.url, bucket.store.id) as memo,
            working("Migrating", "whole versions are kept; migrate again to continue from here") as meter,
        ):
            meter.expect(files, size)
            taking = Taking(
                bucket,
                name,
                buckets,
                memo,
                skip_damaged=skip,
                refer=refer,
                progress=meter,
                threads=workers(None, threads),
                counted=True,
            )
            outcomes += migration.run(steps, taking)
        return migration, outcomes


def _collect(bucket: Bucket, infos: dict[str, Info], migrations: list[Migration]) -> list[Collected]:
    """Make the collections that were described, of what was migrated now or before."""
    from casstore.dataset.adopt.collect import collect
    from casstore.dataset.adopt.info import COLLECTION

    return [collect(bucket, info, migrations, _warn) for info in infos.values() if info.type == COLLECTION]


def _planned(step: Step) -> Outcome:
    from casstore.dataset.adopt.migrate import Outcome, State

    damaged = step.state is State.PLANNED and bool(step.found.problems)
    return Outcome(step, State.DAMAGED if damaged else step.state, step.version, problems=step.found.problems)


def _tell(
    bucket: Bucket,
    url: str,
    reports: list[tuple[Migration, list[Outcome]]],
    collections: list[Collected],
    format_type: str,
) -> None:
    if format_type == "json":
        output.document(
            {
                "bucket": bucket.name,
                "source": url,
                "datasets": [
                    {
                        "id": migration.dataset.id,
                        "name": migration.name,
                        "versions": [_shape(outcome) for outcome in outcomes],
                    }
                    for migration, outcomes in reports
                ],
                "collections": [
                    {"name": one.name, "state": one.state.value, "members": one.members, "missing": one.missing}
                    for one in collections
                ],
            }
        )
        return
    for migration, outcomes in reports:
        rows: list[tuple[object, ...]] = []
        for outcome in outcomes:
            show_problems(outcome.problems)
            found = outcome.step.found
            due = outcome.state in ("planned", "created", "damaged")
            rows.append(
                (
                    outcome.step.number,
                    None if outcome.version is None else f"{migration.name}:{outcome.version}",
                    _WORDS[outcome.state],
                    found.files if due else None,
                    output.size(found.size) if due else None,
                    checked(outcome.checks) or None,
                )
            )
        output.text(f"{migration.dataset.id} to {bucket.name}/{migration.name}")
        output.text(output.table(("Version", "Here", "State", "Files", "Size", "Checked"), rows))
        if any(outcome.state == "damaged" for outcome in outcomes):
            output.text("Nothing is made of damaged versions. --skip-damaged makes them of what is left.")
    for one in collections:
        lacks = f": not here are {output.escape(', '.join(one.missing[:SHOWN]))}" if one.missing else ""
        output.text(f"Collection {one.name} {_COLLECTED[one.state]}{lacks}")


def show_problems(problems: Sequence[Problem]) -> None:
    """Print the first of them, a line each."""
    for problem in problems[:SHOWN]:
        path = f"{output.escape(problem.path)}: " if problem.path else ""
        output.text(f"{path}{output.escape(problem.message)} ({output.escape(problem.url)})")
    if len(problems) > SHOWN:
        output.text(f"... and {len(problems) - SHOWN} more")


def checked(checks: dict[str, int]) -> str:
    """Say for how many files what was compared."""
    return ", ".join(f"{count} by {_CHECKS[check]}" for check, count in checks.items())


def problem_shape(problem: Problem) -> dict[str, str]:
    """One problem as JSON."""
    return {"path": os.fsdecode(problem.path), "where": problem.url, "message": problem.message}


def _shape(outcome: Outcome) -> dict[str, Any]:
    step = outcome.step
    return {
        "source_version": step.number,
        "state": outcome.state.value,
        "version": None if outcome.version is None else str(outcome.version),
        "manifest": step.source.url,
        "osmo_checksum": step.source.checksum or None,
        "checksum": outcome.result.version.record.checksum if outcome.result else None,
        "files": step.found.files,
        "size": step.found.size,
        "new_bytes": outcome.result.new_bytes if outcome.result else 0,
        "checks": outcome.checks,
        "problems": [problem_shape(problem) for problem in outcome.problems],
    }


def _warn(line: str) -> None:
    output.warn(output.escape(line))
