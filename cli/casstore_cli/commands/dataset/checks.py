"""``osmo dataset checksum``, ``verify`` and ``check``: is it what it should be, and may it be touched.

Decided here and only here: what is probed, and how the findings are told.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from casstore.config import Config, load_config
from casstore.errors import OUTCOMES, CasstoreError, ErrorKind, UsageError
from casstore_cli import output
from casstore_cli.multi import Command
from casstore_cli.progress import Meter

if TYPE_CHECKING:
    from casstore.backend.base import Backend, Buffer, Condition


_PROBES = "probe/"


@click.command("checksum", cls=Command)
@click.argument("paths", nargs=-1, required=True)
def checksum(paths: tuple[str, ...]) -> None:
    """Print the checksum of the version that uploading PATHS would make. Nothing is stored."""
    from casstore.dataset.sources import parse_sources
    from casstore.repo.store import Store
    from casstore.transfer.upload import upload_tree

    sources = parse_sources(paths)
    with Store.open(_nowhere(), create=True) as store, Meter("Reading") as meter:
        result = upload_tree(store, sources, progress=meter)
    for line in result.skipped:
        output.warn(output.escape(line))
    output.text(result.checksum.hex())


def _nowhere() -> Backend:
    """A back end that forgets the data: what is left of an upload then is its checksum."""
    from casstore.backend.memory import MemoryBackend
    from casstore.repo import layout

    class Nowhere(MemoryBackend):
        def put(self, key: str, data: Sequence[Buffer], *, condition: Condition = None) -> str:
            if key.startswith(layout.PACKS):
                return "forgotten"
            return super().put(key, data, condition=condition)

    return Nowhere()


@click.command("verify", cls=Command)
@click.argument("name", required=False)
@click.option("-b", "--bucket", "bucket_name", help="Verify this bucket; else the default one.")
@output.format_option("text", "json")
@click.pass_context
def verify(ctx: click.Context, name: str | None, bucket_name: str | None, format_type: str) -> None:
    """Read every byte of the version NAME[:TAG], or without a name of the whole bucket, and compare the digests.

    Problems are listed, and the exit code is not 0 then.
    """
    from casstore.dataset import parse_ref
    from casstore.repo.verify import Watcher
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name) if name else None
    if ref and ref.bucket and bucket_name and ref.bucket != bucket_name:
        raise UsageError(f"{name!r} is not in bucket {bucket_name!r}")
    with open_bucket(bucket_name or (ref.bucket if ref else None)) as bucket, Meter("Verifying") as meter:

        class Show(Watcher):
            def checked(self, size: int) -> None:
                meter.advance(size)

        report = bucket.verify(ref.name if ref else None, tag=ref.tag if ref else None, watcher=Show())
        what = str(ref) if ref else f"bucket {bucket.name}"
    if format_type == "json":
        problems = [{"where": p.where, "message": p.message} for p in report.problems]
        output.document({"objects": report.objects, "size": report.size, "problems": problems})
    else:
        for problem in report.problems:
            output.text(f"{output.escape(problem.where)}: {output.escape(problem.message)}")
        count = len(report.problems)
        found = f"{count} problem{'' if count == 1 else 's'}" if count else "no problems"
        output.text(f"{what}: {report.objects} objects, {output.size(report.size)} read, {found}.")
    if report.problems:
        ctx.exit(OUTCOMES[ErrorKind.INTEGRITY].exit_code)


@click.command("check", cls=Command)
@click.argument("name")
@click.option(
    "-a",
    "--access-type",
    type=click.Choice(("READ", "WRITE", "DELETE"), case_sensitive=False),
    help="What to try; else all three.",
)
@click.option("-c", "--config-file", metavar="FILE", help="Use this config.yaml.")
def check(name: str, access_type: str | None, config_file: str | None) -> None:
    """Try what may be done with the bucket that holds the dataset NAME.

    Prints {"status": "pass"}, or "fail" with the error; succeeds in both cases.
    """
    from casstore.dataset import parse_ref

    ref = parse_ref(name)
    config = load_config(config_file)
    wanted = [access_type] if access_type else ["READ", "WRITE", "DELETE"]
    try:
        for access in wanted:
            _probe(ref.bucket, access, config)
    except CasstoreError as error:
        output.document({"status": "fail", "error": error.message})
        return
    output.document({"status": "pass"})


def _probe(bucket: str | None, access: str, config: Config) -> None:
    """Try one kind of access; raises what went wrong. What is written is removed again."""
    from casstore.backend.base import Absent
    from casstore_cli.stores import open_bucket, probe_store

    with open_bucket(bucket, write=access != "READ", config=config) as opened:
        if access == "READ":
            return  # an open store has been read
        if access == "WRITE":
            probe_store(opened.store)
        backend, key = opened.store.backend, f"{_PROBES}{os.urandom(16).hex()}"
        backend.put(key, [b"probe"], condition=Absent())
        try:
            backend.delete([key])
        except CasstoreError:
            if access == "DELETE":
                raise
