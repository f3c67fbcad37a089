"""``osmo store``: what is below all datasets of a bucket.

Decided here and only here: which commands there are. Each family has a module of its own, imported when it is used.
"""

from __future__ import annotations

import click

from casstore_cli.lazy import LazyGroup, Table

_HERE = "casstore_cli.commands.store"

COMMANDS: Table = {
    "info": (f"{_HERE}.info", "info", "Show what a store holds, and what it takes."),
    "check": (f"{_HERE}.check", "check", "Look for damage, and tell whose data is lost."),
    "repair": (f"{_HERE}.repair", "repair", "Repair what can be repaired: a plan first."),
    "gc": (f"{_HERE}.gc", "gc", "Give back the space of what was deleted."),
    "leases": (f"{_HERE}.leases", "leases", "Show who is storing something right now."),
    "take-over": (f"{_HERE}.writer", "take_over", "Become the writer of a store that has only one."),
}


@click.group("store", cls=LazyGroup, table=COMMANDS)
def cli() -> None:
    """Care for the store of a bucket: the data below all its datasets."""
