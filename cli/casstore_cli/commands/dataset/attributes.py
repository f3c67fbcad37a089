"""``osmo dataset tag``, ``label``, ``metadata`` and ``rename``: what can change about a version or a dataset.

Decided here and only here: how these commands read their options and show what came of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from casstore.errors import UsageError
from casstore_cli import output
from casstore_cli.commands.dataset import trees
from casstore_cli.multi import Command, ManyOption

_F = TypeVar("_F", bound=Callable[..., Any])


@click.command("tag", cls=Command)
@click.argument("name")
@click.option("-s", "--set", "set_", cls=ManyOption, metavar="TAG...", help="Tags to set; they move to this version.")
@click.option("-d", "--delete", cls=ManyOption, metavar="TAG...", help="Tags to delete from this version.")
@output.format_option("text", "json")
def tag(name: str, set_: tuple[str, ...], delete: tuple[str, ...], format_type: str) -> None:
    """Set and delete tags of the version NAME[:TAG or :VERSION]."""
    from casstore.dataset import parse_ref
    from casstore_cli.stores import open_bucket

    if not set_ and not delete:
        raise UsageError("nothing to do: give --set, --delete, or both")
    ref = parse_ref(name)
    with open_bucket(ref.bucket, write=True) as bucket:
        version = bucket.update_tags(ref.name, set=set_, delete=delete, tag=ref.tag)
        if format_type == "json":
            output.document({"version_id": str(version.number), "tags": list(version.tags)})
        else:
            output.text(output.table(("Version_id", "Tags"), [(version.number, ", ".join(version.tags))]))


def _tree_command(function: _F) -> _F:
    for option in (
        output.format_option("text", "json"),
        click.option("-d", "--delete", cls=ManyOption, metavar="KEY...", help="Dotted keys to delete, first."),
        click.option(
            "-s", "--set", "set_", cls=ManyOption, metavar="ITEM...",
            help="KEY[.SUB]:string:VALUE[,VALUE...], or numeric.",
        ),
        click.option("-f", "--file", "files", is_flag=True, help="--set and --delete name YAML files."),
        click.argument("name"),
    ):  # fmt: skip
        function = option(function)
    return function


@click.command("label", cls=Command)
@_tree_command
def label(name: str, files: bool, set_: tuple[str, ...], delete: tuple[str, ...], format_type: str) -> None:
    """Set and delete labels of the dataset or collection NAME; without options show them."""
    from casstore.dataset import parse_ref
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name)
    if ref.tag is not None:
        raise UsageError(f"labels belong to the whole dataset: name it without :{ref.tag}")
    changes: dict[str, Any] = {
        "set": trees.to_set(set_, "labels", files=files),
        "delete": trees.to_delete(delete, files=files),
    }
    with open_bucket(ref.bucket, write=any(changes.values())) as bucket:
        if any(changes.values()):
            labels = bucket.update_labels(ref.name, **changes)
        else:
            labels = bucket.info(ref.name).summary.labels
    _print_tree(labels, "No Labels", format_type)


@click.command("metadata", cls=Command)
@_tree_command
def metadata(name: str, files: bool, set_: tuple[str, ...], delete: tuple[str, ...], format_type: str) -> None:
    """Set and delete metadata of the version NAME:TAG; without options show them."""
    from casstore.dataset import parse_ref
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name)
    if ref.tag is None:
        raise UsageError(
            "metadata belongs to one version: name it with a tag or a number",
            hint=f"the latest is {ref.name}:latest",
        )
    changes: dict[str, Any] = {
        "set": trees.to_set(set_, "metadata", files=files),
        "delete": trees.to_delete(delete, files=files),
    }
    with open_bucket(ref.bucket, write=any(changes.values())) as bucket:
        if any(changes.values()):
            found = bucket.update_metadata(ref.name, ref.tag, **changes)
        else:
            found = bucket.resolve(ref.name, ref.tag).metadata
    _print_tree(found, "No Metadata", format_type)


def _print_tree(tree: dict[str, Any], empty: str, format_type: str) -> None:
    if format_type == "json":
        output.document(tree)
        return
    for line in output.tree_text(tree) if tree else (empty,):
        output.text(line)


@click.command("rename", cls=Command)
@click.argument("original_name")
@click.argument("new_name")
def rename(original_name: str, new_name: str) -> None:
    """Give the dataset or collection ORIGINAL_NAME another name, within its bucket."""
    from casstore.dataset import parse_ref
    from casstore_cli.stores import open_bucket

    old, new = parse_ref(original_name), parse_ref(new_name)
    for ref in (old, new):
        if ref.tag is not None:
            raise UsageError(f"a name has no tag: {ref}")
    with open_bucket(old.bucket, write=True) as bucket:
        if new.bucket is not None and new.bucket != bucket.name:
            raise UsageError(
                f"{old.name!r} can't move to bucket {new.bucket!r}", hint="download it and upload it there"
            )
        bucket.rename(old.name, new.name)
        output.text(f"{old.name} has been renamed to {new.name}")
