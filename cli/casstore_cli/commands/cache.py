"""``osmo cache``: what is kept on this machine's disk of what was read from stores.

Decided here and only here: what these commands tell.
"""

from __future__ import annotations

import click

from casstore.errors import UsageError
from casstore_cli import output
from casstore_cli.multi import Command


@click.group("cache")
def cli() -> None:
    """What was read from stores, kept on this machine's disk.

    It holds verified data alone, is shared by mounts and downloads, and can be cleared at any time.
    """


@cli.command("info", cls=Command)
@output.format_option("text", "json")
def info(format_type: str) -> None:
    """Show where the cache is, what it holds, and how large it may get."""
    from casstore_cli.caching import open_space

    space = open_space()
    used = space.holdings()
    total = sum(size for _, size in used.values())
    if format_type == "json":
        output.document(
            {
                "path": space.root,
                "size": total,
                "limit": space.limit,
                "holds": {kind: {"count": count, "size": size} for kind, (count, size) in sorted(used.items())},
            }
        )
        return
    output.text(f"The cache is at {output.escape(space.root)}")
    output.text(f"{output.size(total)} of {output.size(space.limit)} are used")
    rows = [(kind, count, output.size(size)) for kind, (count, size) in sorted(used.items())]
    if rows:
        output.text(output.table(("Kind", "Files", "Size"), rows))


@cli.command("clear", cls=Command)
@click.option("--keep", metavar="SIZE", help="Keep what was used last, up to this size, such as 5G.")
@output.format_option("text", "json")
def clear(keep: str | None, format_type: str) -> None:
    """Remove what is in the cache. Running mounts go on, and read again what they need."""
    from casstore.cache.space import parse_limit
    from casstore_cli.caching import open_space

    try:
        limit = parse_limit(keep) if keep is not None else 0
    except ValueError:
        raise UsageError(f"{keep!r} is no size", hint="write it like 500M or 50G") from None
    space = open_space()
    removed = space.shrink(limit)
    left = space.usage()
    if format_type == "json":
        output.document({"path": space.root, "removed": removed, "size": left})
        return
    output.message(f"{output.size(removed)} removed, {output.size(left)} left in {output.escape(space.root)}")
