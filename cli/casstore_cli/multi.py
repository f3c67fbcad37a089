"""Command lines the way argparse reads them: options with several values, and shortened long options.

Decided here and only here: what a command line means before click sees it. OSMO's command was built on
argparse, and scripts rely on two things click does not do:

- an option that takes one or more values (``--set a b c``). It takes everything up to the next option or
``--``. It
  can be repeated, and the values add up. A value may start with ``-`` when it is a number, when it holds a
  space, or when it is attached to the option (``--set=-x``, ``-s-x``); attached, it is the only one.
- a long option may be shortened as long as it is not ambiguous (``--format json``).

Unlike argparse, options and positional arguments can be mixed freely. A known option is never swallowed as
the value of another one: ``--regex --resume`` is an error, ``--regex=--resume`` is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import click

_NUMBER = re.compile(r"-\d+\Z|-\d*\.\d+\Z")


class ManyOption(click.Option):
    """An option that takes one or more values, and can be repeated. Its value is a tuple, empty when not
    given.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["multiple"] = True
        super().__init__(*args, **kwargs)


class OptionalValueOption(click.Option):
    """An option whose value may be left out, and is ``alone`` then. A value has to be attached: ``--name=VALUE``."""

    def __init__(self, *args: Any, alone: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.alone = alone


class Command(click.Command):
    """A command whose line is read as described above. Use as ``@click.command(cls=Command)``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite the line in click's terms, then let click parse it."""
        return super().parse_args(ctx, args if ctx.resilient_parsing else list(_Reader(self, ctx).read(args)))


class _Reader:
    """Rewrites one command line. Each value that is emitted follows its own option."""

    def __init__(self, command: click.Command, ctx: click.Context) -> None:
        self.ctx = ctx
        self.options: dict[str, click.Option] = {}
        for param in command.get_params(ctx):
            if isinstance(param, click.Option):
                for name in (*param.opts, *param.secondary_opts):
                    self.options[name] = param

    def read(self, args: list[str]) -> Iterator[str]:
        at = 0
        while at < len(args):
            word = args[at]
            at += 1
            if word == "--":
                yield from args[at - 1 :]
                return
            if word.startswith("--"):
                name, attached, value = word.partition("=")
                name = self._expand(name)
                option = self.options.get(name)
                if option is None or _is_flag(option):
                    yield name + attached + value
                    continue
                if attached or isinstance(option, OptionalValueOption):
                    yield from (name, value if attached else getattr(option, "alone", ""))
                    continue
            elif word.startswith("-") and len(word) > 1:
                flags, name, value = self._bundle(word)
                yield from flags
                if not name:
                    continue
                option = self.options[name]
                if value:
                    yield from (name, value)
                    continue
            else:
                yield word
                continue
            values = self._values(option, args, at)
            if not values:
                raise click.BadOptionUsage(name, f"Option '{name}' requires an argument.", ctx=self.ctx)
            at += len(values)
            for item in values:
                yield from (name, item)

    def _values(self, option: click.Option, args: list[str], at: int) -> list[str]:
        """The values of ``option`` among the tokens from ``at``: all up to the next option, or just one."""
        if not isinstance(option, ManyOption):
            return [] if at >= len(args) or args[at] == "--" or self._known(args[at]) else [args[at]]
        end = at
        while end < len(args) and not self._option_like(args[end]):
            end += 1
        return args[at:end]

    def _known(self, word: str) -> bool:
        return word.partition("=")[0] in self.options

    def _option_like(self, word: str) -> bool:
        if not word.startswith("-") or word == "-":
            return False
        return self._known(word) or (not _NUMBER.match(word) and " " not in word)

    def _expand(self, name: str) -> str:
        """The one long option that ``name`` begins, or ``name`` itself, about which click then complains."""
        if name in self.options:
            return name
        found = {id(self.options[o]): o for o in self.options if o.startswith(name) and o.startswith("--")}
        if len(found) > 1:
            several = ", ".join(sorted(found.values()))
            raise click.NoSuchOption(name, f"Option '{name}' is ambiguous: {several}.", ctx=self.ctx)
        return next(iter(found.values()), name)

    def _bundle(self, word: str) -> tuple[list[str], str, str]:
        """Split ``-rxVALUE`` into flags, the option that takes a value, and what is attached to it."""
        flags: list[str] = []
        for at, letter in enumerate(word[1:], 1):
            name = "-" + letter
            option = self.options.get(name)
            if option is None:
                return [word], "", ""
            if not _is_flag(option):
                return flags, name, word[at + 1 :].removeprefix("=")
            flags.append(name)
        return flags, "", ""


def _is_flag(option: click.Option) -> bool:
    return option.is_flag or option.count
