"""``osmo store check``: is everything there, and whose data is not.

Decided here and only here: how much is read when nothing is said, and how a share is written.
"""

from __future__ import annotations

import os
import re

import click

from casstore.errors import OUTCOMES, ErrorKind, UsageError
from casstore_cli import output
from casstore_cli.commands.store.shown import report_json, show_report, watcher
from casstore_cli.multi import Command, ManyOption, OptionalValueOption
from casstore_cli.progress import Meter

_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)%?\Z")


@click.command("check", cls=Command)
@click.option("-b", "--bucket", "bucket_name", help="Check this bucket; else the default one.")
@click.option(
    "--read-data",
    cls=OptionalValueOption,
    alone="100%",
    metavar="[=PERCENT]",
    help="Read the files' data, too: all of it, or so much of it, chosen at random.",
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Choose the same share of the data again.")
@click.option("-d", "--dataset", "datasets", cls=ManyOption, metavar="NAME...", help="Only what these datasets need.")
@output.format_option("text", "json")
@click.pass_context
def check(
    ctx: click.Context,
    bucket_name: str | None,
    read_data: str | None,
    seed: int | None,
    datasets: tuple[str, ...],
    format_type: str,
) -> None:
    """Look at every record, tree and table of contents of a bucket's store, and tell which files of which versions lost
    data.

    Nothing is changed, and the exit code is not 0 when anything is damaged. The store may be written to meanwhile.
    """
    from casstore.repo.check import check_store
    from casstore_cli.stores import open_bucket

    share = _share(read_data)
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
    with open_bucket(bucket_name) as bucket, Meter("Checking") as meter:
        report = check_store(bucket.store, read=share, seed=seed, only=datasets, watcher=watcher(meter))
        what = f"bucket {bucket.name}"
    if format_type == "json":
        output.document(report_json(report))
    else:
        show_report(report, what)
    if not report.clean:
        ctx.exit(OUTCOMES[ErrorKind.INTEGRITY].exit_code)


def _share(text: str | None) -> float:
    """The share of the data that is to be read, from 0 to 1."""
    if text is None:
        return 0.0
    found = _PERCENT.match(text.strip())
    percent = float(found.group(1)) if found else 0.0
    if not 0 < percent <= 100:
        raise UsageError(
            f"--read-data={text[:40]}: a share is written like 10% or 0.5%", hint="more than 0, up to 100%"
        )
    return percent / 100
