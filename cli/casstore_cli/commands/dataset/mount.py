"""``osmo dataset mount``, ``umount`` and ``commit``: versions as folders.

Decided here and only here: what these commands tell, and which folders they work on.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import ConflictError, NotFoundError, UsageError
from casstore_cli import output
from casstore_cli.commands.dataset import trees
from casstore_cli.commands.dataset.options import existing_folder, transfer_options, tree_options, workers
from casstore_cli.multi import Command, OptionalValueOption

if TYPE_CHECKING:
    from casstore_fuse.records import Record, Registry

_SHOWN_USERS = 5
_PATIENCE = 30.0
"""Seconds that a mount's process may take to end after nothing shows it any more."""


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
    be empty. Files are read when they are needed, and what was read is kept for the next time.

    `osmo dataset mount list` shows the mounts that there are.
    """
    from casstore_cli import mounts

    registry = mounts.find_registry()
    _clear(registry)
    if path is None:
        if name != "list":
            raise UsageError(f"name the folder for {name}", hint=f"osmo dataset mount {name} DIR")
        _list(registry, format_type)
        return
    from casstore.cache.space import parse_limit
    from casstore_fuse.session import Settings, default_limit, prefers_no_open

    if no_cache and cache_size:
        raise UsageError("--no-cache and --cache-size: give one of them")
    try:
        limit = parse_limit(cache_size) if cache_size else default_limit(mounts.cache_dir())
    except ValueError:
        raise UsageError(f"{cache_size!r} is no size", hint="write it like 500M or 50G") from None
    folder = _folder(path)
    with registry.locked(folder):
        _check_place(registry, folder, path)
        bucket, version = _version(name)
        settings = Settings(
            path=folder,
            bucket=bucket,
            dataset=version.dataset,
            version=version.number,
            manifest=version.record.manifest,
            runtime=registry.runtime,
            state=registry.state_dir,
            no_open=prefers_no_open(version.record.totals, cached=not no_cache),
            writable=writable,
            cache=None if no_cache else mounts.cache_dir(),
            limit=limit,
            prefetch=_pattern(prefetch),
        )
        if foreground:
            mounts.hold(settings)
        mounts.start(settings)
    record = registry.get(folder)
    if format_type == "json" and record is not None:
        output.document(_shape(registry, record))
        return
    output.message(f"{version} is mounted at {output.escape(path)}")
    if writable and record is not None and record.layer is not None:
        _tell_kept(record.layer, path)


def _folder(path: str) -> str:
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
        raise ConflictError(
            f"{record.dataset}:{record.version} is mounted at {path} already", hint=f"osmo dataset umount {path}"
        )
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


def _version(name: str) -> tuple[str, Any]:
    """The name of the bucket, and the version."""
    from casstore.dataset import parse_ref
    from casstore.model import DatasetType
    from casstore_cli.stores import open_bucket
    from casstore_fuse.session import find_version

    text, at, digest = name.partition("@")
    ref = parse_ref(text)
    if at and ref.tag:
        raise UsageError(f"{name!r} names a tag and a digest", hint="give one of them")
    with open_bucket(ref.bucket) as bucket:
        head = bucket.refs.find(ref.name)
        if head.type == DatasetType.COLLECTION:
            raise UsageError(
                f"{ref.name!r} is a collection: one dataset can be mounted at a folder",
                hint=f"see its members with `osmo dataset info {ref.name}`",
            )
        return bucket.name, find_version(bucket, ref.name, ref.tag, digest if at else None)


def _pattern(prefetch: str | None) -> str | None:
    from casstore.dataset.sources import matcher

    matcher(prefetch)  # refuses a wrong one
    return prefetch


def _tell_kept(layer: str, path: str) -> None:
    from casstore_fuse import layers

    if layers.has_changes(layer):
        output.message(f"Changes from before are in it: osmo dataset commit {output.escape(path)}")


def _clear(registry: Registry) -> None:
    for record in registry.clear():
        output.warn(
            f"the mount of {record.dataset}:{record.version} at {output.escape(record.path)} was dead and was taken "
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
        "version": str(record.version),
        "digest": record.manifest,
        "since": record.started,
        "writable": record.layer is not None,
        "state": "alive" if record.alive else "dead",
        "pid": record.pid,
        "log": record.log,
        **counters,
        "hit_rate": round(counters["hits"] / counters["reads"], 4) if counters.get("reads") else None,
    }


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
                f"{shape['bucket']}/{shape['name']}:{shape['version']}",
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
    _clear(registry)
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
    folder = _folder(path)
    found = registry.get(folder)
    if found is None:
        _unmount_unknown(folder, path, lazy=lazy)
        return
    _unmount(registry, found, lazy=lazy)


def _unmount(registry: Registry, record: Record, *, lazy: bool) -> None:
    from casstore_fuse.records import ours, take_away

    shown = output.escape(record.path)
    hidden = ours(record) is None
    try:
        take_away(record, lazy=lazy)
    except ConflictError as error:
        raise _busy(record.path, error) from None
    except NotFoundError:
        pass  # unmounted by somebody else meanwhile
    if lazy or hidden or not _ends(record):
        registry.remove(record)  # what is open still is served
    output.message(f"{record.dataset}:{record.version} is no longer mounted at {shown}")
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
    try:
        descriptor = os.pidfd_open(record.pid)
    except OSError:
        return True
    try:
        return not record.alive or bool(select.select([descriptor], [], [], _PATIENCE)[0])
    finally:
        os.close(descriptor)


@click.command("commit", cls=Command)
@click.argument("path", metavar="DIR")
@click.option("--name", "target", metavar="NAME", help="Make a version of this dataset instead.")
@click.option("-d", "--desc", default="", help="Description of the version.")
@tree_options
@click.option("--tag", metavar="TAG", help="Set this tag on the new version.")
@click.option("--force", is_flag=True, help="Even when there is a newer version: what that changed is not in this one.")
@click.option("--discard", is_flag=True, help="Throw the changes away instead.")
@transfer_options
@output.format_option("text", "json")
def commit(
    *,
    path: str,
    target: str | None,
    desc: str,
    metadata: tuple[str, ...],
    labels: tuple[str, ...],
    tag: str | None,
    force: bool,
    discard: bool,
    processes: int | None,
    threads: int | None,
    benchmark_out: str | None,
    format_type: str,
) -> None:
    """Make a version of the changes in the writable mount at DIR, which need not be mounted any more.

    Only what was changed is read. When another version was made since, nothing is committed without --force.
    """
    from casstore_cli import mounts
    from casstore_fuse import layers

    registry = mounts.find_registry()
    _clear(registry)
    folder = _folder(path)
    place = registry.layer(folder)
    layer = layers.read(place)
    if layer is None:
        raise NotFoundError(f"there are no changes for {path}", hint="mount it with --writable first")
    if discard:
        if any((target, desc, metadata, labels, tag, force)):
            raise UsageError("--discard makes no version: it goes alone")
        with registry.locked(folder):
            record = registry.get(folder)
            if record is not None and record.alive:
                raise ConflictError(f"{path} is mounted", hint=f"first: osmo dataset umount {path}")
            layers.discard(place)
        output.message(f"The changes to {layer} for {output.escape(path)} were thrown away")
        return
    options: dict[str, Any] = {
        "force": force,
        "description": desc or None,
        "metadata": trees.from_files(metadata, "the metadata"),
        "labels": trees.from_files(labels, "the labels"),
        "tag": tag,
        "threads": workers(processes, threads),
    }
    with registry.locked(folder):
        _commit(place, layer, target, options, benchmark_out, format_type)


def _commit(
    place: str, layer: Any, target: str | None, options: dict[str, Any], benchmark_out: str | None, format_type: str
) -> None:
    import msgspec

    from casstore.dataset.layer import commit_layer, mark_of
    from casstore_cli.commands.dataset.options import writable_folder
    from casstore_cli.commands.dataset.transfer import tell, working
    from casstore_cli.stores import open_bucket
    from casstore_fuse import layers
    from casstore_fuse.session import find_version

    writable_folder(benchmark_out)
    upper = os.fsencode(os.path.join(place, "upper"))
    with open_bucket(layer.bucket, write=True) as bucket:
        base = find_version(bucket, layer.dataset, str(layer.version))
        if base.record.manifest != layer.manifest:
            raise ConflictError(f"{layer} is another version now than the one that was changed", hint="use --name")
        mark = mark_of(upper)
        with working("Committing", f"{target or layer.dataset} was not changed") as meter:
            result = commit_layer(
                bucket,
                base,
                upper,
                named=layer.named,
                name=target,
                after=layer.committed,
                progress=meter,
                **options,
            )
        if target in {None, layer.dataset}:
            done = msgspec.structs.replace(layer, committed=result.version.number, mark=mark)
            layers.write(place, done)
        tell(bucket, result, meter, format_type)
        meter.write_benchmark(
            benchmark_out, f"commit-{result.version.dataset}.json", files=result.files, transferred=result.new_bytes
        )
