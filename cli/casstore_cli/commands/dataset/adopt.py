"""``osmo dataset adopt``: data that is kept in another way becomes a version.

Decided here and only here: how the kind of a source is told from its name, and how the outcome is shown.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import IntegrityError, UsageError
from casstore_cli import output
from casstore_cli.commands.dataset import shapes, trees
from casstore_cli.commands.dataset.migrate import announce_reference, checked, problem_shape, show_problems
from casstore_cli.commands.dataset.options import reference_option, regex_option, tree_options, workers
from casstore_cli.commands.dataset.transfer import amount, working
from casstore_cli.multi import Command
from casstore_cli.progress import duration

if TYPE_CHECKING:
    from casstore.dataset import Bucket
    from casstore.dataset.adopt.base import Buckets, Foreign
    from casstore.dataset.adopt.take import Made, Survey
    from casstore_cli.progress import Meter

_STOPPED = "nothing was changed; adopt again to continue from here"


@click.command("adopt", cls=Command)
@click.argument("name")
@click.argument("sources", nargs=-1, required=True)
@click.option("--from", "kind", type=click.Choice(("folder", "dvc", "url")), help="What SOURCES are; else it is told.")
@click.option("--cache", metavar="URL|DIR", help="The cache or remote of DVC; else the project's cache.")
@regex_option
@click.option("-d", "--desc", default="", help="Description of the version.")
@tree_options
@click.option("--tag", metavar="TAG", help="Set this tag on the new version.")
@click.option("--dry-run", is_flag=True, help="Only show what would be taken over, and what is wrong.")
@click.option("--skip-damaged", is_flag=True, help="Make the version without the files that are damaged.")
@reference_option
@click.option("-T", "--threads", type=click.IntRange(1), help="Files that are read at once.")
@output.format_option("text", "json")
@click.pass_context
def adopt(
    ctx: click.Context,
    *,
    name: str,
    sources: tuple[str, ...],
    kind: str | None,
    cache: str | None,
    regex: str | None,
    desc: str,
    metadata: tuple[str, ...],
    labels: tuple[str, ...],
    tag: str | None,
    dry_run: bool,
    skip_damaged: bool,
    reference: bool,
    threads: int | None,
    format_type: str,
) -> None:
    """Make a version of the dataset NAME of what is kept elsewhere.

    SOURCES is a folder or the URL of a storage prefix, whose content becomes the version, or files of DVC: .dvc files,
    a dvc.lock, or the md5 of a folder (ending in .dir), whose data is in the project's cache or in --cache.

    Where digests are known, as in DVC, every file is checked. Where ETags are, each file is read from the state that
    was listed. When nothing changed since the latest version, no new one is made.

    With --reference the data stays where it is: the version only refers to it, and breaks when it is changed there.
    """
    from casstore.dataset import parse_ref
    from casstore.dataset.sources import RemoteSource, matcher, refuse_store
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name)
    if ref.tag and tag and ref.tag != tag:
        raise UsageError(f"{name} and --tag {tag}: only one tag can be set")
    found = kind or _kind(sources[0])
    if cache is not None and found != "dvc":
        raise UsageError("--cache is where DVC keeps data; these sources are not DVC's")
    if reference and found == "folder":
        raise UsageError("--reference is for object storage, not for local folders", hint="without it they are copied")
    if found != "dvc" and len(sources) > 1:
        raise UsageError("one source becomes one version", hint="several folders: osmo dataset upload NAME PATH...")
    options: dict[str, Any] = {
        "description": desc or None,
        "metadata": trees.from_files(metadata, "the metadata"),
        "labels": trees.from_files(labels, "the labels"),
        "tag": tag or ref.tag,
    }
    with open_bucket(ref.bucket, write=True) as bucket:
        if found == "folder":
            _adopt_folder(bucket, ref.name, sources[0], regex, options, threads, format_type, dry_run=dry_run)
            return
        from casstore.dataset.adopt.base import Buckets
        from casstore.dataset.adopt.take import Taking, commit_for, survey
        from casstore.dataset.moving import memory_dir
        from casstore.transfer.memo import Memo
        from casstore.transfer.spool import Spool

        with Buckets(bucket.credentials) as buckets:
            foreign = _foreign(found, sources, cache, buckets)
            if reference:
                announce_reference(bucket, foreign.url)
            if found == "url":
                refuse_store([RemoteSource(foreign.url, b"")], bucket.store.url)
            select = matcher(regex)
            if dry_run:
                with Spool() as spool:
                    _tell_survey(foreign.url, survey(foreign, spool, select=select), format_type)
                return
            with (
                Memo(memory_dir(bucket), foreign.url, bucket.store.id, exclusive=False) as memo,
                working("Adopting", _STOPPED) as meter,
            ):
                taking = Taking(
                    bucket,
                    ref.name,
                    buckets,
                    memo,
                    skip_damaged=skip_damaged,
                    refer=reference,
                    progress=meter,
                    threads=workers(None, threads),
                )
                made = taking.take(
                    foreign,
                    lambda provenance: commit_for(bucket, ref.name, provenance=provenance, **options),
                    select,
                )
        _tell(bucket, foreign.url, made, meter, format_type)
    if made.result is None:
        ctx.exit(IntegrityError("").exit_code)


def _kind(source: str) -> str:
    """Tell what a source is."""
    if "://" in source:
        return "url"
    if os.path.isdir(source):
        return "folder"
    from casstore.dataset.adopt.dvc import is_dvc

    if is_dvc(source):
        return "dvc"
    raise UsageError(f"{source} is neither a URL, a folder nor a file of DVC", hint="a digest of DVC's: say --from dvc")


def _foreign(kind: str, sources: tuple[str, ...], cache: str | None, buckets: Buckets) -> Foreign:
    from casstore.remote.urls import REMOTE_SCHEMES, scheme_of
    from casstore_cli.stores import normal_url

    if kind == "dvc":
        from casstore.dataset.adopt.dvc import Dvc, find_cache, load_outs

        where = cache or find_cache(next((source for source in sources if os.path.exists(source)), "."))
        return Dvc(load_outs(sources), normal_url(where), buckets)
    from casstore.dataset.adopt.prefix import Prefix

    if scheme_of(sources[0]) not in REMOTE_SCHEMES:
        raise UsageError(f"{sources[0]} is not a URL of object storage", hint="for a local folder: --from folder")
    return Prefix(sources[0].removesuffix("*").rstrip("/"), buckets)


def _adopt_folder(
    bucket: Bucket,
    name: str,
    source: str,
    regex: str | None,
    options: dict[str, Any],
    threads: int | None,
    format_type: str,
    *,
    dry_run: bool,
) -> None:
    """A local folder is uploaded, whole: modes, times, links and all."""
    contents = source if source.endswith("/*") else f"{source.rstrip('/')}/*"
    if dry_run:
        _tell_survey(source, _survey_folder(contents, regex), format_type)
        return
    with working("Adopting", _STOPPED) as meter:
        result = bucket.upload(
            name,
            [contents],
            regex=regex,
            provenance={
                "adopted": {"from": "folder", "source": output.escape(os.path.basename(os.path.abspath(source)))}
            },
            threads=workers(None, threads),
            progress=meter,
            **options,
        )
    from casstore.dataset.adopt.take import Made

    for line in result.skipped:
        output.warn(output.escape(line))
    _tell(bucket, source, Made(result, [], {}), meter, format_type)


def _survey_folder(contents: str, regex: str | None) -> Survey:
    import stat

    from casstore.dataset.adopt.take import Survey
    from casstore.dataset.sources import matcher, parse_sources
    from casstore.transfer.scan import Scanner

    found = Survey()
    for listing in Scanner(parse_sources([contents]), select=matcher(regex)).walk():
        for item in listing.items:
            if item.status is not None and stat.S_ISREG(item.status.st_mode):
                found.files += 1
                found.size += item.status.st_size
    return found


def _tell_survey(source: str, found: Survey, format_type: str) -> None:
    if format_type == "json":
        output.document(
            {
                "source": source,
                "files": found.files,
                "size": found.size,
                "unknown_sizes": found.unknown,
                "problems": [problem_shape(problem) for problem in found.problems],
            }
        )
        return
    show_problems(found.problems)
    unknown = f" and {found.unknown} whose size is not known yet" if found.unknown else ""
    output.text(f"{amount(found.files - found.unknown, found.size)}{unknown} at {output.escape(source)}")


def _tell(bucket: Bucket, source: str, made: Made, meter: Meter, format_type: str) -> None:
    result = made.result
    if format_type == "json":
        output.document(
            {
                "bucket": bucket.name,
                "source": source,
                "created": bool(result and result.created),
                **(shapes.version(result.version, bucket.store.url) if result else {}),
                "new_bytes": result.new_bytes if result else 0,
                "checks": made.checks,
                "problems": [problem_shape(problem) for problem in made.problems],
            }
        )
        return
    show_problems(made.problems)
    if result is None:
        output.text("No version was made. --skip-damaged makes it of what is left.")
        return
    version = result.version
    if result.created:
        output.message(f"{output.escape(source)} has become version {version.number} of {version.dataset}")
    else:
        output.message(f"Nothing changed: version {version.number} of {version.dataset} is the same.")
    checks = f", {checked(made.checks)}" if made.checks else ""
    output.message(
        f"{amount(result.files, result.logical_bytes)}, {output.size(result.new_bytes)} of them new, "
        f"in {duration(meter.seconds)}{checks}."
    )
