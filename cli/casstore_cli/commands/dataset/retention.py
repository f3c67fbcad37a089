"""``osmo dataset retention``.

Decided here and only here: how the rule of a dataset is given and shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casstore.errors import UsageError
from casstore_cli import output
from casstore_cli.durations import seconds, span
from casstore_cli.multi import Command

if TYPE_CHECKING:
    from casstore.model import Retention


@click.command("retention", cls=Command)
@click.argument("name")
@click.option("--keep-last", type=click.IntRange(1), metavar="N", help="Keep the newest N versions.")
@click.option("--keep-tagged/--no-keep-tagged", default=None, help="Keep versions with a tag.")
@click.option("--keep-within", callback=seconds, metavar="SPAN", help="Keep versions that are younger, such as 30d.")
@click.option("--clear", is_flag=True, help="Forget the rule first; alone: keep everything.")
@output.format_option("text", "json")
def retention(
    name: str, keep_last: int | None, keep_tagged: bool | None, keep_within: int | None, clear: bool, format_type: str
) -> None:
    """Show or change which versions of the dataset NAME are kept.

    What one rule keeps is kept; the latest version and the members of collections always are. Nothing is deleted before
    `osmo store gc`, which shows what it is going to delete.
    """
    from casstore.dataset import parse_ref
    from casstore.dataset.retention import change
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name)
    if ref.tag is not None:
        raise UsageError(f"the rule belongs to the whole dataset: name it without :{ref.tag}")
    writes = clear or not (keep_last is None and keep_tagged is None and keep_within is None)
    with open_bucket(ref.bucket, write=writes) as bucket:
        rule = change(
            bucket.refs,
            ref.name,
            keep_last=keep_last,
            keep_tagged=keep_tagged,
            keep_within_s=keep_within,
            clear=clear,
        )
    if format_type == "json":
        output.document({"name": ref.name, "retention": None if rule is None else _document(rule)})
    else:
        output.text(f"{ref.name} keeps {_words(rule)}.")


def _document(rule: Retention) -> dict[str, object]:
    return {"keep_last": rule.keep_last, "keep_tagged": rule.keep_tagged, "keep_within_s": rule.keep_within_s}


def _words(rule: Retention | None) -> str:
    if rule is None:
        return "all versions"
    parts = []
    if rule.keep_last is not None:
        parts.append("the latest version" if rule.keep_last == 1 else f"the latest {rule.keep_last} versions")
    if rule.keep_tagged:
        parts.append("versions with a tag")
    if rule.keep_within_s is not None:
        parts.append(f"versions younger than {span(rule.keep_within_s)}")
    return ", ".join(parts) + ", and what is in a collection"
