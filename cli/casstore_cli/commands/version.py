"""``osmo version``.

Decided here and only here: the shape of the version report.
"""

from __future__ import annotations

import click

from casstore_cli import output


@click.command("version")
@output.format_option("text", "json")
def command(format_type: str) -> None:
    """Print the version of this program."""
    from casstore import __version__

    if format_type == "json":
        output.document({"client": {"name": "casstore", "version": __version__}})
    else:
        output.text(f"Client: casstore {__version__}")
