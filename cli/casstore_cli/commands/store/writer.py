"""``osmo store take-over``.

Decided here and only here: what is asked before the one writer of a store is replaced.
"""

from __future__ import annotations

import click

from casstore.config import MODES
from casstore.errors import UsageError
from casstore_cli import output
from casstore_cli.multi import Command


@click.command("take-over", cls=Command)
@click.option("-b", "--bucket", "bucket_name", help="The bucket whose store it is; else the default one.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-f", "--force", is_flag=True, help="The same.")
@output.format_option("text", "json")
def take_over(bucket_name: str | None, yes: bool, force: bool, format_type: str) -> None:
    """Become the one writer of a store, in place of the machine and user that is.

    Stores on services without conditional writes have one writer; everybody else reads. Stop what the former writer is
    doing first: from now on its changes are refused, and what it has not committed is lost.
    """
    from casstore.repo.single import FEATURE, take_over
    from casstore_cli.remote import find, visible
    from casstore_cli.stores import open_store

    config = visible()
    bucket = find(config, bucket_name)
    if bucket.mode != MODES[0]:
        raise UsageError(f"bucket {bucket.name!r} is read-only", hint=f"declared so in {config.paths.config_file}")
    with open_store(bucket, config=config) as store:
        question = f"Is the former writer of {bucket.url} stopped, and shall this machine take its place?"
        # Where there is no such writer the error comes before the question.
        wanted = FEATURE not in store.config.features or yes or force or output.confirm(question, unasked="--yes")
        if wanted:
            take_over(store.backend)
    if format_type == "json":
        output.document({"bucket": bucket.name, "writer": wanted})
    else:
        output.text(f"This machine is the writer of {bucket.name} now." if wanted else "Nothing was changed.")
