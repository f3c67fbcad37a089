"""``osmo dataset mount`` and ``umount``: versions as folders.

Decided here and only here: what these commands tell, and which folders they work on.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import ConflictError, NotFoundError, UsageError
from casstore_cli import output
from casstore_cli.commands.dataset.options import existing_folder
from casstore_cli.multi import Command, OptionalValueOption

if TYPE_CHECKING:
    from casstore.model import Totals
    from casstore_fuse.records import Record, Registry

_SHOWN_USERS = 5
_SILENCE = 2.0
"""Seconds that a mount's process may take to end before it is said what is waited for, ..."""
_PATIENCE = 30.0
"""... and seconds in all."""


@click.command("mount", cls=Command)
@click.argument("name", metavar="NAME")
@click.argument("path", metavar="DIR", required=False)
@click.option("--foreground", is_flag=True, help="Stay until it is unmounted, and show the log.")
@click.option("--writable", is_flag=True, help="Let the folder be written to; the changes stay on this machine.")
@click.option(
    "--prefetch",
    cls=OptionalValueOption,
    alone="",
    metavar="[=REGEX]",
    help="Fetch all files, or those whose path matches, before they are asked for.",
)
@click.option("--cache-size", metavar="SIZE", help="Room for what was read, such as 50G; else a tenth of the disk.")
@click.option("--no-cache", is_flag=True, help="Keep nothing of what was read on this machine's disk.")
@output.format_option("text", "json")
def mount(
    *,
    name: str,
    path: str | None,
    foreground: bool,
    writable: bool,
    prefetch: str | None,
    cache_size: str | None,
    no_cache: bool,
    format_type: str,
) -> None:
    """Show a version of the dataset NAME as the folder DIR, without downloading it.

    NAME is NAME[:TAG] or NAME@DIGEST, the first digits (eight or more) of the digest of a version. DIR must exist and
    be empty. Files are read when they are needed, and what was read is kept for the next time. Of a collection, each
    member is a folder in DIR.

    `osmo dataset mount list` shows the mounts that there are.
    """
    from casstore_cli import mounts

    registry = mounts.find_registry()
    clear_dead(registry)
    if path is None:
        if name != "list":
            raise UsageError(f"name the folder for {name}", hint=f"osmo dataset mount {name} DIR")
        _list(registry, format_type)
        return
    from casstore.cache.space import parse_limit
    from casstore_fuse.session import Settings, default_limit

    if no_cache and cache_size:
        raise UsageError("--no-cache and --cache-size: give one of them")
    try:
        limit = parse_limit(cache_size) if cache_size else default_limit(mounts.cache_dir())
    except ValueError:
        raise UsageError(f"{cache_size!r} is no size", hint="write it like 500M or 50G") from None
    folder = folder_of(path)
    with registry.locked(folder):
        _check_place(registry, folder, path)
        bucket, facts, totals = _target(name)
        if writable and "members" in facts:
            raise UsageError(f"{name!r} is a collection: changes are made to one dataset", hint="mount its members")
        settings = Settings(
            path=folder,
            bucket=bucket,
            runtime=registry.runtime,
            state=registry.state_dir,
            writable=writable,
            cache=None if no_cache else mounts.cache_dir(),
            limit=limit,
            prefetch=_pattern(prefetch),
            **facts,
        )
        if prefetch is not None and not no_cache:
            _warn_of_room(totals, limit)
        if foreground:
            mounts.hold(settings)
        mounts.start(settings)
    record = registry.get(folder)
    if format_type == "json" and record is not None:
        output.document(_shape(registry, record))
        return
    output.message(f"{settings.title} is mounted at {output.escape(path)}")
    if writable and record is not None and record.layer is not None:
        _tell_kept(record.layer, path)


def folder_of(path: str) -> str:
    """The one name of a folder."""
    found = os.path.realpath(path)
    if not found.isprintable():
        raise UsageError("the path of the folder holds characters that can't be shown", hint="choose another one")
    return found


def _check_place(registry: Registry, folder: str, path: str) -> None:
    from casstore_fuse import mounted
    from casstore_fuse.records import ours

    record = registry.get(folder)
    if record is not None and record.alive and ours(record):
        raise ConflictError(f"{record} is mounted at {path} already", hint=f"osmo dataset umount {path}")
    _clear_foreign(folder)
    existing_folder(path)
    with os.scandir(folder) as entries:
        if next(entries, None) is not None:
            raise ConflictError(f"{path} is not empty: what is in it would be hidden", hint="choose an empty folder")
    if (point := mounted.at(folder)) is not None and point.kind in {mounted.KIND, "overlay"}:
        raise ConflictError(f"{point.source} is mounted at {path} already")


def _clear_foreign(folder: str) -> None:
    """Take away a mount of ours at this folder that answers nobody and is not written down."""
    import errno

    from casstore_fuse import mounted
    from casstore_fuse.mounting import unmount

    point = mounted.at(folder)
    if point is None or point.kind != mounted.KIND:
        return
    try:
        os.statvfs(folder)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            unmount(folder, lazy=True)
            output.warn(f"the dead mount at {output.escape(folder)} was taken away")


def _target(name: str) -> tuple[str, dict[str, Any], Totals]:
    """The name of the bucket, what its ``Settings`` say of a version or of a collection, and the sums of its files."""
    from casstore.dataset.pick import find_version, parse_pick
    from casstore.model import DatasetType, Totals
    from casstore_cli.stores import is_writable, open_bucket
    from casstore_fuse.session import Member

    ref, digest = parse_pick(name)
    with open_bucket(ref.bucket) as bucket:
        hold = {"hold": is_writable(bucket.name)}
        if bucket.refs.find(ref.name).type == DatasetType.DATASET:
            found = find_version(bucket, ref.name, ref.tag, digest)
            record = found.record
            facts = {"dataset": found.dataset, "version": found.number, "manifest": record.manifest}
            return bucket.name, facts | hold, record.totals
        if digest is not None:
            raise UsageError(f"{ref.name!r} is a collection: it has no digest", hint=f"mount {ref.name}")
        versions = bucket.resolve_all(ref.name, ref.tag)
    members = tuple(Member(one.dataset, one.number, one.record.manifest) for one in versions)
    if len({member.dataset for member in members}) < len(members):
        raise UsageError(f"{ref.name!r} has several versions of one dataset", hint="mount them one by one")
    totals = [version.record.totals for version in versions]
    sums = Totals(files=sum(one.files for one in totals), size=sum(one.size for one in totals))
    return bucket.name, {"dataset": ref.name, "version": 0, "manifest": "", "members": members} | hold, sums


def _pattern(prefetch: str | None) -> str | None:
    from casstore.dataset.sources import matcher

    matcher(prefetch)  # refuses a wrong one
    return prefetch


def _warn_of_room(totals: Totals, limit: int) -> None:
    from casstore.cache.space import KEEP

    if totals.size > KEEP * limit:
        output.warn(
            f"the version has {output.size(totals.size)}, and the cache may get {output.size(limit)} large: fetching "
            "ahead ends when it is full. --cache-size makes it larger"
        )


def _tell_kept(layer: str, path: str) -> None:
    from casstore_fuse import layers

    if layers.has_changes(layer):
        output.message(f"Changes from before are in it: osmo dataset commit {output.escape(path)}")


def clear_dead(registry: Registry) -> None:
    """Take away mounts whose processes are gone, and say so."""
    for record in registry.clear():
        output.warn(
            f"the mount of {record} at {output.escape(record.path)} was dead and was taken "
            f"away; its log is {output.escape(record.log)}"
        )


def _shape(registry: Registry, record: Record) -> dict[str, object]:
    state = registry.state(record)
    counters = state.counters() if state else {}
    if state:
        state.close()
    return {
        "path": record.path,
        "bucket": record.bucket,
        "name": record.dataset,
        "version": str(record.version) if record.version else None,
        "digest": record.manifest or None,
        "since": record.started,
        "writable": record.layer is not None,
        "state": ("alive" if record.alive else "dead") if record.here else "elsewhere",
        "pid": record.pid,
        "log": record.log,
        "guarded": bool(counters.pop("guarded", 0)),
        **counters,
        "hit_rate": _rate(counters),
    }


def _rate(counters: dict[str, int]) -> float | None:
    """The share of the reads that memory or the cache on the disk answered. Reads are counted before their answers."""
    reads = counters.get("reads", 0)
    return round(min(1.0, (counters["hits"] + counters["cached"]) / reads), 4) if reads else None


def _list(registry: Registry, format_type: str) -> None:
    shapes = [_shape(registry, record) for record in registry.all()]
    if format_type == "json":
        output.document({"mounts": shapes})
        return
    if not shapes:
        output.text("Nothing is mounted.")
        return
    rows: list[list[object]] = []
    for shape in shapes:
        rate: Any = shape["hit_rate"]
        fetched: Any = shape.get("fetched", 0)
        rows.append(
            [
                shape["path"],
                f"{shape['bucket']}/{shape['name']}" + (f":{shape['version']}" if shape["version"] else ""),
                "writable" if shape["writable"] else "read-only",
                output.date(str(shape["since"])),
                shape.get("opened", 0),
                shape.get("passed", 0),
                None if rate is None else f"{100 * rate:.0f}%",
                output.size(fetched),
                shape.get("errors", 0),
                shape.get("restarts", 0),
                shape["state"],
            ]
        )
    headers = ("Folder", "Version", "Mode", "Since", "Opened", "By kernel", "Hits", "Fetched", "Errors", "Restarts")
    output.text(output.table((*headers, "State"), rows))


@click.command("umount", cls=Command)
@click.argument("path", metavar="DIR", required=False)
@click.option("--all", "everything", is_flag=True, help="All of your mounts.")
@click.option("--lazy", is_flag=True, help="Even when it is in use: what is open stays readable until it is closed.")
def umount(path: str | None, *, everything: bool, lazy: bool) -> None:
    """Unmount the version at the folder DIR. The changes in a writable one are kept."""
    from casstore_cli import mounts

    if (path is None) != everything:
        raise UsageError("name one folder, or give --all")
    registry = mounts.find_registry()
    clear_dead(registry)
    if path is None:
        busy: list[ConflictError] = []
        for record in registry.all():
            try:
                _unmount(registry, record, lazy=lazy)
            except ConflictError as error:
                busy.append(error)
        if busy:
            raise busy[0]
        return
    folder = folder_of(path)
    found = registry.get(folder)
    if found is None:
        _unmount_unknown(folder, path, lazy=lazy)
        return
    _unmount(registry, found, lazy=lazy)


def _unmount(registry: Registry, record: Record, *, lazy: bool) -> None:
    from casstore_fuse.records import ours, take_away

    shown = output.escape(record.path)
    hidden = ours(record) is None or not record.here
    try:
        take_away(record, lazy=lazy)
    except ConflictError as error:
        raise _busy(record.path, error) from None
    except NotFoundError:
        pass  # unmounted by somebody else meanwhile
    if lazy or hidden or not _ends(record):
        registry.remove(record)  # what is open still is served
    output.message(f"{record} is no longer mounted at {shown}")
    if record.layer is not None:
        from casstore_fuse import layers

        if layers.has_changes(record.layer):
            output.message(f"Its changes are kept: osmo dataset commit {shown}")


def _unmount_unknown(folder: str, path: str, *, lazy: bool) -> None:
    """A mount of ours that is not written down: by another home, or from before the runtime folder was emptied."""
    from casstore_fuse import mounted
    from casstore_fuse.mounting import unmount

    point = mounted.at(folder)
    if point is None or point.kind != mounted.KIND:
        raise NotFoundError(f"nothing of yours is mounted at {path}", hint="see: osmo dataset mount list")
    try:
        unmount(folder, lazy=lazy)
    except ConflictError as error:
        raise _busy(folder, error) from None
    output.message(f"{output.escape(point.source)} is no longer mounted at {output.escape(path)}")


def _busy(folder: str, error: ConflictError) -> ConflictError:
    from casstore_fuse import mounted

    found = [f"{user.name} ({user.pid})" for user in mounted.users(folder) if user.pid != os.getpid()]
    more = f" and {len(found) - _SHOWN_USERS} more" if len(found) > _SHOWN_USERS else ""
    by = f" by {', '.join(found[:_SHOWN_USERS])}{more}" if found else ""
    return ConflictError(
        f"{folder} is in use{by}",
        hint=error.hint and "end that, or take it out of sight now: osmo dataset umount --lazy",
    )


def _ends(record: Record) -> bool:
    """Wait until the process of a mount has ended; False when something keeps it, such as another mount namespace."""
    from casstore_fuse import mounted

    try:
        descriptor = os.pidfd_open(record.pid)
    except OSError:
        return True
    try:
        if not record.alive or select.select([descriptor], [], [], _SILENCE)[0]:
            return True
        if holder := mounted.elsewhere(record.path):
            # A sandbox that was started meanwhile has a copy of all mounts, and its end is not ours to wait for.
            output.message(f"{holder.name} ({holder.pid}) has a copy of the mount: it is served until that ends")
            return False
        output.message("waiting for the process of the mount to end; --lazy does not")
        return bool(select.select([descriptor], [], [], _PATIENCE - _SILENCE)[0])
    finally:
        os.close(descriptor)
