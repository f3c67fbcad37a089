"""``osmo data``: plain files in object storage, without datasets and without a server.

Decided here and only here: what these commands tell, and what is asked before anything is deleted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import CancelledError, CasstoreError, ConflictError, UsageError
from casstore_cli import output
from casstore_cli.commands.dataset.options import (
    existing_folder,
    regex_option,
    transfer_options,
    workers,
    writable_folder,
)
from casstore_cli.lazy import LazyGroup
from casstore_cli.multi import Command
from casstore_cli.progress import Meter, duration

if TYPE_CHECKING:
    from casstore.transfer.raw import Doomed, Found, Place, Result


@click.group("data", cls=LazyGroup)
def cli() -> None:
    """Move plain files to and from object storage: s3, gs, azure, tos, swift and file URLs."""


@cli.command("upload", cls=Command)
@click.argument("remote_uri")
@click.argument("local_path", nargs=-1, required=True)
@regex_option
@click.option("-r", "--resume", is_flag=True, help="Leave out what is there with the same size and MD5.")
@transfer_options
@output.format_option("text", "json")
@click.pass_context
def upload(
    ctx: click.Context,
    *,
    remote_uri: str,
    local_path: tuple[str, ...],
    regex: str | None,
    resume: bool,
    processes: int | None,
    threads: int | None,
    benchmark_out: str | None,
    format_type: str,
) -> None:
    """Upload files and folders below REMOTE_URI, replacing what has their names.

    A folder keeps its own last name; FOLDER/* uploads its content without it; a file keeps its name. Links to files
    are followed. The exit code is not 0 when a file failed; the others are there all the same.
    """
    from casstore.transfer.raw import parse_sources
    from casstore.transfer.raw import upload as send

    writable_folder(benchmark_out)
    sources = parse_sources(local_path)
    with _place(remote_uri) as place, _working("Uploading") as meter:
        result = send(
            place, sources, regex=regex, resume=resume, threads=workers(processes, threads), progress=_Quiet(meter)
        )
    meter.write_benchmark(benchmark_out, "data-upload.json", files=result.files, transferred=result.transferred)
    _tell(ctx, result, meter, format_type, f"uploaded to {place.url}", "")


@cli.command("download", cls=Command)
@click.argument("remote_uri")
@click.argument("local_path")
@regex_option
@click.option("-r", "--resume", is_flag=True, help="Keep files that are there and right; fetch the others.")
@transfer_options
@output.format_option("text", "json")
@click.pass_context
def download(
    ctx: click.Context,
    *,
    remote_uri: str,
    local_path: str,
    regex: str | None,
    resume: bool,
    processes: int | None,
    threads: int | None,
    benchmark_out: str | None,
    format_type: str,
) -> None:
    """Download what is below REMOTE_URI, or the one object that it names, into the folder LOCAL_PATH.

    LOCAL_PATH must exist, and nothing is written outside of it. A file takes its name when it is whole and its size,
    and where the service tells it its MD5, is right. The exit code is not 0 when a file failed.
    """
    from casstore.transfer.raw import download as fetch

    existing_folder(local_path)
    writable_folder(benchmark_out)
    with _place(remote_uri) as place, _working("Downloading") as meter:
        result = fetch(
            place,
            local_path,
            regex=regex,
            resume=resume,
            threads=workers(processes, threads),
            progress=_Quiet(meter),
        )
    meter.write_benchmark(benchmark_out, "data-download.json", files=result.files, transferred=result.transferred)
    again = "run it again with --resume to fetch only these"
    _tell(ctx, result, meter, format_type, f"downloaded to {local_path}", again)


@cli.command("list", cls=Command)
@click.argument("remote_uri")
@click.argument("local_path", required=False)
@regex_option
@click.option("-p", "--prefix", default="", metavar="TEXT", help="Only names that begin with TEXT.")
@click.option("-r", "--recursive", is_flag=True, help="Go into folders.")
@click.option("--no-pager", is_flag=True, help="Print at once, also on a terminal.")
@output.format_option("text", "json")
def list_(
    *,
    remote_uri: str,
    local_path: str | None,
    regex: str | None,
    prefix: str,
    recursive: bool,
    no_pager: bool,
    format_type: str,
) -> None:
    """List what is at REMOTE_URI: date, size, name. With LOCAL_PATH into that new file."""
    from casstore.transfer.raw.listing import matcher

    if local_path is not None and no_pager:
        raise UsageError("--no-pager and a file exclude each other")
    if local_path is not None and format_type == "json":
        raise UsageError("JSON goes to standard output", hint="redirect it: osmo data list URL -t json > FILE")
    pattern = matcher(regex)
    with _place(remote_uri) as place:
        found = (
            one
            for one in place.objects(begins=prefix, recursive=recursive)
            if one.name and (pattern is None or pattern.match(one.name))
        )
        if format_type == "json":
            array = output.Array()
            for one in found:
                array.add(_shape(place, one))
            array.close()
        elif local_path is not None:
            _to_file(local_path, found)
        elif sys.stdout.isatty() and not no_pager:
            click.echo_via_pager(line + "\n" for line in _lines(found))
        else:
            for line in _lines(found):
                output.text(line)


@cli.command("delete", cls=Command)
@click.argument("remote_uri")
@regex_option
@click.option("-f", "--force", is_flag=True, help="Do not ask, and delete dataset stores, too.")
@output.format_option("text", "json")
def delete(remote_uri: str, regex: str | None, force: bool, format_type: str) -> None:
    """Delete what is at REMOTE_URI: the object itself, and everything below it.

    On a terminal it is asked first (OSMO's command does not ask; neither does this one when no terminal is there). What
    would harm a dataset store is refused without --force: versions are deleted with 'osmo dataset delete'.
    """
    from casstore.transfer.raw import delete_objects, look_before_deleting

    with _place(remote_uri) as place:
        doomed = look_before_deleting(place, regex=regex)
        shown = output.escape(place.url)
        if not force:
            _refuse_stores(place, doomed)
        if doomed.objects and not force and sys.stdin.isatty() and sys.stderr.isatty():
            what = f"{_objects(doomed.objects)} ({output.size(doomed.size)})"
            if not output.confirm(f"Delete {what} at {shown}?"):
                raise CancelledError("nothing was deleted")
        with _working("Deleting", "what was deleted stays deleted") as meter:
            meter.expect(doomed.objects, doomed.size)
            meter.listed()
            deleted = delete_objects(place, regex=regex, progress=meter) if doomed.objects else 0
    if format_type == "json":
        output.document({"url": place.url, "deleted": deleted, "size": doomed.size})
        return
    output.text(f"Deleted {_objects(deleted)} at {shown}." if deleted else f"There is nothing to delete at {shown}.")


@cli.command("check", cls=Command)
@click.argument("remote_uri")
@click.option(
    "-a",
    "--access-type",
    type=click.Choice(("READ", "WRITE", "DELETE"), case_sensitive=False),
    default="READ",
    show_default=True,
    help="What to try.",
)
@click.option("-c", "--config-file", metavar="FILE", help="Take the credentials of this config.yaml.")
def check(remote_uri: str, access_type: str, config_file: str | None) -> None:
    """Try whether your credentials allow something at REMOTE_URI, by doing it with an object of its own.

    Prints {"status": "pass"}, or "fail" with the error; succeeds in both cases.
    """
    from casstore.config import load_config
    from casstore.transfer.raw import check_access
    from casstore_cli.credentials import ConfigCredentials

    credentials = ConfigCredentials(load_config(config_file), file=config_file)
    try:
        check_access(remote_uri, access_type.upper(), credentials)
    except CasstoreError as error:
        output.document({"status": "fail", "error": error.message})
        return
    output.document({"status": "pass"})


class _Quiet:
    """Passes events on; failures of files are listed at the end instead."""

    def __init__(self, meter: Meter) -> None:
        self.expect, self.listed = meter.expect, meter.listed
        self.advance, self.file_done = meter.advance, meter.file_done

    def warn(self, message: str) -> None:
        """The result says the same."""


@contextmanager
def _place(url: str) -> Iterator[Place]:
    from casstore.transfer.raw import open_place
    from casstore_cli.credentials import ConfigCredentials

    with open_place(url, ConfigCredentials()) as place:
        yield place


@contextmanager
def _working(verb: str, stopped: str = "what is whole stays; run it again with --resume") -> Iterator[Meter]:
    try:
        with Meter(verb) as meter:
            yield meter
    except KeyboardInterrupt:
        raise CancelledError(f"interrupted: {stopped}") from None


def _tell(ctx: click.Context, result: Result, meter: Meter, format_type: str, done: str, again: str) -> None:
    """The result, with every failure; the exit code is that of the first one."""
    for line in result.left_out:
        output.warn(f"left out: {output.escape(line)}")
    if format_type == "json":
        output.document(_result(result))
    else:
        for failure in result.failures:
            output.text(f"FAILED {output.escape(failure.name)}: {output.escape(failure.error.message)}")
        if result.failed > len(result.failures):
            output.text(f"... and {result.failed - len(result.failures)} more")
        kept = f", {result.reused} of them were there already" if result.reused else ""
        output.message(
            f"{_files(result.files)}, {output.size(result.size)} {output.escape(done)} "
            f"in {duration(meter.seconds)}{kept}."
        )
        if result.failed:
            output.text(f"{_files(result.failed)} failed{': ' + again if again else ''}.")
    if result.failed:
        ctx.exit(result.failures[0].error.exit_code)


def _result(result: Result) -> dict[str, Any]:
    return {
        "files": result.files,
        "size": result.size,
        "transferred": result.transferred,
        "reused": result.reused,
        "failed": result.failed,
        "failures": [
            {"name": output.escape(one.name), "kind": one.error.kind.value, "message": output.escape(one.error.message)}
            for one in result.failures
        ],
        "left_out": [output.escape(line) for line in result.left_out],
    }


def _lines(found: Iterator[Found]) -> Iterator[str]:
    count = 0
    for one in found:
        count += 1
        if one.is_folder:
            yield f"{'':22}   {'':>10}   {output.escape(one.name)}"
            continue
        moment = output.date(_iso(one.info.mtime)) or ""
        yield f"{moment:22}   {output.size(one.info.size):>10}   {output.escape(one.name)}"
    yield f"Total {count} objects found"


def _shape(place: Place, one: Found) -> dict[str, Any]:
    from casstore.remote.urls import parse_url

    if parse_url(place.url).scheme == "file":
        url = f"{place.url.rstrip('/')}/{one.name}" if one.info.key != place.prefix else place.url
    else:
        url = f"{parse_url(place.url).bucket_url}/{one.info.key}"
    name, url = (output.escape(text) if not text.isprintable() else text for text in (one.name, url))
    if one.is_folder:
        return {"name": name, "url": url, "type": "folder"}
    return {
        "name": name,
        "url": url,
        "type": "object",
        "size": one.info.size,
        "last_modified": _iso(one.info.mtime),
        "etag": one.info.etag,
    }


def _iso(seconds: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(max(seconds, 0), UTC).isoformat(timespec="seconds")


def _to_file(path: str, found: Iterator[Found]) -> None:
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in _lines(found))
    except FileExistsError:
        raise ConflictError(f"{path} exists already", hint="name a new file") from None
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}") from None
    output.message(f"Written to {output.escape(os.path.abspath(path))}.")


def _refuse_stores(place: Place, doomed: Doomed) -> None:
    if doomed.stores:
        raise ConflictError(
            f"{place.url}: {doomed.stores[0]} is there: this is, or holds, or is a part of, a dataset store",
            hint="delete versions with 'osmo dataset delete'; to delete the objects all the same: --force",
        )


def _objects(count: int) -> str:
    return f"{count} object{'' if count == 1 else 's'}"


def _files(count: int) -> str:
    return f"{count} file{'' if count == 1 else 's'}"
