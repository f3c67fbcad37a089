"""``osmo dataset upload``, ``download`` and ``update``: moving data in and out.

Decided here and only here: what these commands tell, and how their options reach the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import CancelledError, ConflictError, NotFoundError, UsageError
from casstore_cli import output
from casstore_cli.commands.dataset import trees
from casstore_cli.commands.dataset.options import (
    existing_folder,
    regex_option,
    transfer_options,
    tree_options,
    workers,
    writable_folder,
)
from casstore_cli.multi import Command, ManyOption
from casstore_cli.progress import Meter, duration

if TYPE_CHECKING:
    from casstore.dataset import Bucket, UploadResult


@click.command("upload", cls=Command)
@click.argument("name")
@click.argument("paths", nargs=-1, required=True)
@click.option("-d", "--desc", default="", help="Description of the version.")
@tree_options
@regex_option
@click.option("-r", "--resume", is_flag=True, help="Continue the newest unfinished upload.")
@click.option("--tag", metavar="TAG", help="Set this tag on the new version.")
@click.option("--force-new-version", is_flag=True, help="Make a version even when nothing changed.")
@click.option("--start-only", is_flag=True, hidden=True)
@transfer_options
@output.format_option("text", "json")
def upload(
    *,
    name: str,
    paths: tuple[str, ...],
    desc: str,
    metadata: tuple[str, ...],
    labels: tuple[str, ...],
    regex: str | None,
    resume: bool,
    tag: str | None,
    force_new_version: bool,
    start_only: bool,
    processes: int | None,
    threads: int | None,
    benchmark_out: str | None,
    format_type: str,
) -> None:
    """Upload PATHS as a new version of the dataset NAME.

    A folder keeps its own last name in the dataset; FOLDER/* uploads its content without it; a file keeps its name.
    When several paths bring the same file, the first one wins. NAME:TAG sets the tag on the new version.

    Either the whole of it becomes a version or nothing does. What was sent by an attempt that was interrupted is not
    sent again. When nothing changed since the latest version, no new one is made.
    """
    from casstore.dataset import parse_ref
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name)
    writable_folder(benchmark_out)
    wanted = ref.tag
    expected: int | None = None
    if resume and wanted is not None and wanted.isdigit():
        expected = int(wanted)
        wanted = None
    if wanted and tag and wanted != tag:
        raise UsageError(
            f"{name} and --tag {tag}: only one tag can be set", hint="set the other with: osmo dataset tag"
        )
    options: dict[str, Any] = {
        "description": desc or None,
        "metadata": trees.from_files(metadata, "the metadata"),
        "labels": trees.from_files(labels, "the labels"),
    }
    with open_bucket(ref.bucket, write=True) as bucket:
        if start_only:
            _print_start(bucket, ref.name)
            return
        if expected is not None:
            _check_pending(bucket, ref.name, expected)
        with working("Uploading", f"{ref.name} was not changed; upload again to continue from here") as meter:
            result = bucket.upload(
                ref.name,
                paths,
                regex=regex,
                tag=tag or wanted,
                resume=resume and expected is None,
                force_new_version=force_new_version,
                threads=workers(processes, threads),
                progress=meter,
                **options,
            )
        tell(bucket, result, meter, format_type)
        meter.write_benchmark(
            benchmark_out, f"upload-{ref.name}.json", files=result.files, transferred=result.new_bytes
        )
        _compare(result, expected)


@click.command("update", cls=Command)
@click.argument("name")
@click.option(
    "-a", "--add", cls=ManyOption, metavar="SRC[:DST]...", help="Files to add, into the folder DST of the dataset."
)
@click.option("-r", "--remove", metavar="REGEX", help="Leave out the files whose path matches.")
@tree_options
@click.option("--resume", metavar="VERSION", help="Continue the update that was going to be this version.")
@click.option("--force-new-version", is_flag=True, help="Make a version even when nothing changed.")
@click.option("--start-only", is_flag=True, hidden=True)
@transfer_options
@output.format_option("text", "json")
def update(
    *,
    name: str,
    add: tuple[str, ...],
    remove: str | None,
    metadata: tuple[str, ...],
    labels: tuple[str, ...],
    resume: str | None,
    force_new_version: bool,
    start_only: bool,
    processes: int | None,
    threads: int | None,
    benchmark_out: str | None,
    format_type: str,
) -> None:
    r"""Make a new version of the dataset NAME from one of its versions.

    The base is the latest version, or the one that NAME:TAG names. What is added takes the place of what had the
    same path. A colon in SRC is written \: .
    """
    from casstore.dataset import parse_ref
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name)
    writable_folder(benchmark_out)
    if not add and remove is None and not start_only:
        raise UsageError("nothing to do: give --add, --remove, or both")
    if resume is not None and not resume.isdigit():
        raise UsageError(f"--resume takes the number of a version, not {resume!r}")
    expected = None if resume is None else int(resume)
    options: dict[str, Any] = {
        "metadata": trees.from_files(metadata, "the metadata"),
        "labels": trees.from_files(labels, "the labels"),
    }
    with open_bucket(ref.bucket, write=True) as bucket:
        if start_only:
            _print_start(bucket, ref.name)
            return
        if expected is not None:
            _check_pending(bucket, ref.name, expected)
        with working("Updating", f"{ref.name} was not changed; update again to continue from here") as meter:
            result = bucket.update(
                ref.name,
                tag=ref.tag,
                add=add,
                remove=remove,
                force_new_version=force_new_version,
                threads=workers(processes, threads),
                progress=meter,
                **options,
            )
        tell(bucket, result, meter, format_type)
        meter.write_benchmark(
            benchmark_out, f"update-{ref.name}.json", files=result.files, transferred=result.new_bytes
        )
        _compare(result, expected)


@click.command("download", cls=Command)
@click.argument("name")
@click.argument("path")
@regex_option
@click.option("-r", "--resume", is_flag=True, help="Keep files that are there and right; fetch the others.")
@click.option("--force", is_flag=True, help="Overwrite what was changed in the folder since it was downloaded.")
@click.option("--cache", is_flag=True, help="Keep the files in the cache, too, for further downloads and mounts.")
@click.option("--link", is_flag=True, help="Make files read-only hard links into the cache; see the guide first.")
@click.option("--unsafe-links", is_flag=True, help="Make symbolic links that lead out of the folder, too.")
@transfer_options
@output.format_option("text", "json")
def download(
    *,
    name: str,
    path: str,
    regex: str | None,
    resume: bool,
    force: bool,
    cache: bool,
    link: bool,
    unsafe_links: bool,
    processes: int | None,
    threads: int | None,
    benchmark_out: str | None,
    format_type: str,
) -> None:
    """Download a version of the dataset NAME into the folder PATH/NAME.

    PATH must exist. The members of a collection get a folder each. Every byte is verified.

    PATH/NAME must be empty, or what an earlier download of the dataset made: then only what differs is touched. What
    was changed there is not overwritten without --force. Any other folder with content needs --resume, which
    overwrites what differs.
    """
    from casstore.dataset import checkout, parse_ref
    from casstore.transfer.download import Cached
    from casstore_cli.caching import open_cache, open_files
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name)
    existing_folder(path)
    writable_folder(benchmark_out)
    with open_bucket(ref.bucket) as bucket:
        files = open_files(make=cache or link)
        bucket.store.use(open_cache())
        again = "" if os.path.isdir(os.path.join(path, ref.name)) and not resume else " with --resume"
        with working("Downloading", f"download again{again} to continue from here") as meter:
            result = checkout.download(
                bucket,
                ref.name,
                path,
                tag=ref.tag,
                regex=regex,
                resume=resume,
                force=force,
                cached=None if files is None else Cached(files, fill=cache, link=link),
                unsafe_links=unsafe_links,
                threads=workers(processes, threads),
                progress=meter,
            )
        meter.write_benchmark(
            benchmark_out, f"download-{ref.name}.json", files=result.files, transferred=result.new_bytes
        )
        if format_type == "json":
            output.document(
                {
                    "versions": [
                        {"name": v.dataset, "version": str(v.number), "path": folder, "checksum": v.record.checksum}
                        for v, folder in zip(result.versions, result.folders, strict=True)
                    ],
                    "files": result.files,
                    "size": result.size,
                    "written": result.new_bytes,
                    "reused": result.reused,
                    "cached": result.cached,
                    "removed": result.removed,
                }
            )
            return
        for version, folder in zip(result.versions, result.folders, strict=True):
            output.message(f"{version} has been downloaded to {output.escape(folder)}")
        kept = f", {result.reused} of them were there already" if result.reused else ""
        kept += f", {result.cached} came from the cache" if result.cached else ""
        kept += f", {result.removed} others were removed" if result.removed else ""
        output.message(f"{amount(result.files, result.size)} in {duration(meter.seconds)}{kept}.")


@contextmanager
def working(verb: str, stopped: str) -> Iterator[Meter]:
    """Show progress; an interrupt is told in one line with what to do next."""
    try:
        with Meter(verb) as meter:
            yield meter
    except KeyboardInterrupt:
        raise CancelledError(f"interrupted: {stopped}") from None


def _next_number(bucket: Bucket, name: str) -> int:
    """The number that the next version gets, if nobody else makes one before."""
    try:
        head = bucket.refs.find(name)
    except NotFoundError:
        return 1
    return max([head.last_version, *bucket.refs.numbers(head.id)]) + 1


def _print_start(bucket: Bucket, name: str) -> None:
    """What OSMO's server answers when an upload starts. Here a version gets its number when it is complete."""
    number = _next_number(bucket, name)
    url = bucket.store.url
    output.document({"version_id": str(number), "region": "", "storage_path": url, "manifest_path": url})


def _check_pending(bucket: Bucket, name: str, number: int) -> None:
    expected = _next_number(bucket, name)
    if number < expected:
        raise ConflictError(
            f"version {number} of {name!r} is finished: there is nothing to continue",
            hint=f"without a number, the newest unfinished upload is continued: {name}",
        )
    if number > expected:
        raise NotFoundError(f"version {number} of {name!r} was not started", hint=f"the next one is {expected}")


def _compare(result: UploadResult, expected: int | None) -> None:
    if expected is not None and result.version.number != expected:
        output.warn(f"the version is {result.version.number}, not {expected}")


def tell(bucket: Bucket, result: UploadResult, meter: Meter, format_type: str) -> None:
    version = result.version
    for line in result.skipped:
        output.warn(output.escape(line))
    if format_type == "json":
        from casstore_cli.commands.dataset import shapes

        output.document(
            {
                "bucket": bucket.name,
                "created": result.created,
                **shapes.version(version, bucket.store.url),
                "new_bytes": result.new_bytes,
                "skipped": [output.escape(line) for line in result.skipped],
            }
        )
        return
    if result.created:
        output.message(
            f"Dataset {version.dataset} has been uploaded to bucket {bucket.name} as version {version.number}"
        )
    else:
        output.message(
            f"Nothing changed: version {version.number} of {version.dataset} in bucket {bucket.name} is the same. "
            "(--force-new-version makes another one.)"
        )
    output.message(
        f"Uploaded {output.size(result.new_bytes)} new data to the storage "
        f"({amount(result.files, result.logical_bytes)} in {duration(meter.seconds)})."
    )


def amount(files: int, size: int) -> str:
    return f"{files} file{'' if files == 1 else 's'}, {output.size(size)}"
