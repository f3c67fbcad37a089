"""``osmo dataset commit``: versions of what was changed in a writable mount.

Decided here and only here: what this command tells, and when changes may be thrown away. What becomes a version is
``casstore.dataset.layer``'s.
"""

from __future__ import annotations

import os
from typing import Any

import click

from casstore.errors import ConflictError, NotFoundError, UsageError
from casstore_cli import output
from casstore_cli.commands.dataset import trees
from casstore_cli.commands.dataset.mount import clear_dead, folder_of
from casstore_cli.commands.dataset.options import transfer_options, tree_options, workers, writable_folder
from casstore_cli.commands.dataset.transfer import tell, working
from casstore_cli.multi import Command


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
    clear_dead(registry)
    folder = folder_of(path)
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
    from casstore.dataset.pick import find_version
    from casstore_cli.stores import open_bucket
    from casstore_fuse import layers

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
