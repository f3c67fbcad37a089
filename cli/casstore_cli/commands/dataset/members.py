"""``osmo dataset collect`` and ``recollect``: collections.

Decided here and only here: what these commands tell.
"""

from __future__ import annotations

import click

from casstore.errors import UsageError
from casstore_cli import output
from casstore_cli.multi import Command, ManyOption


@click.command("collect", cls=Command)
@click.argument("name")
@click.argument("datasets", nargs=-1, required=True)
def collect(name: str, datasets: tuple[str, ...]) -> None:
    """Make the collection NAME of the versions DATASETS[:TAG]. A collection stands for its members."""
    from casstore.dataset import parse_ref
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name)
    if ref.tag is not None:
        raise UsageError(f"a collection has no tags: name it without :{ref.tag}")
    with open_bucket(ref.bucket, write=True) as bucket:
        bucket.collect(ref.name, datasets)
        output.text(f"Collection {ref.name} created in bucket {bucket.name}")


@click.command("recollect", cls=Command)
@click.argument("name")
@click.option("-a", "--add", cls=ManyOption, metavar="DATASET[:TAG]...", help="Versions to add, last.")
@click.option("-r", "--remove", cls=ManyOption, metavar="DATASET[:TAG]...", help="Members to take out, first.")
@output.format_option("text", "json")
def recollect(name: str, add: tuple[str, ...], remove: tuple[str, ...], format_type: str) -> None:
    """Change the members of the collection NAME. One that is left without members is deleted."""
    from casstore.dataset import parse_ref
    from casstore_cli.stores import open_bucket

    ref = parse_ref(name)
    if ref.tag is not None:
        raise UsageError(f"a collection has no tags: name it without :{ref.tag}")
    with open_bucket(ref.bucket, write=True) as bucket:
        members = bucket.recollect(ref.name, add=add, remove=remove)
        if format_type == "json":
            output.document({"versions": [{"dataset_name": m.name, "version": str(m.number)} for m in members]})
        elif members:
            output.text(output.table(("Dataset", "Version"), [(m.name, m.number) for m in members]))
        else:
            output.text(f"Collection {ref.name} deleted")
