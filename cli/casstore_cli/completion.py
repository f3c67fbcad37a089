"""``osmo completion``: the script that teaches a shell to complete the command.

Decided here and only here: nothing but the wording; the scripts are click's.
"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from casstore_cli import output


@click.command("completion")
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the completion script of SHELL.

    For bash, put this line into ~/.bashrc:  eval "$(osmo completion bash)"
    """
    root = ctx.find_root()
    program = root.info_name or "osmo"
    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"click has no completion for {shell}")
    output.text(found(root.command, {}, program, f"_{program.upper()}_COMPLETE").source())
