"""Click groups whose commands are imported when they are used, not before.

Decided here and only here: how a table of commands becomes a group. The table maps a command's name to
``(module, attribute, one-line help)``; the help is shown without importing the module, so that ``osmo
--help`` costs the import of click and nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

Table = Mapping[str, tuple[str, str, str]]
"""Name of a command -> (module, attribute in it, one-line help)."""

CONTEXT_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class LazyGroup(click.Group):
    """A group over a ``Table``. Without arguments it prints its help and succeeds."""

    def __init__(self, *args: Any, table: Table | None = None, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", CONTEXT_SETTINGS)
        super().__init__(*args, **kwargs)
        self.table: Table = {} if table is None else table

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table, then those added directly."""
        return [*self.table, *(name for name in super().list_commands(ctx) if name not in self.table)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of the command, if it is one of the table."""
        found = self.table.get(cmd_name)
        if found is None:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = found
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion when the name is close to a known one."""
        name = args[0] if args else ""
        if not ctx.resilient_parsing and name and not name.startswith("-") and self.get_command(ctx, name) is None:
            import difflib

            close = difflib.get_close_matches(name, self.list_commands(ctx), 1)
            more = f" Did you mean '{close[0]}'?" if close else ""
            ctx.fail(f"No such command '{name}'.{more}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the help of the table."""
        rows = []
        for name in self.list_commands(ctx):
            if name in self.table:
                rows.append((name, self.table[name][2]))
                continue
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(80)))
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Print the help when nothing at all was given; that is no error."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        return super().parse_args(ctx, args)
