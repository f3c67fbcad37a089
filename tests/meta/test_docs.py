"""The documentation speaks of what there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from casstore_cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(group: click.Command, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found = {path: group}
    if isinstance(group, click.Group):
        context = click.Context(group, info_name=" ".join(("osmo", *path)))
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            found |= commands(command, (*path, name))
    return found


ALL = commands(cli)
SHELL = {"|", "||", "&", "&&", ";", ">", "2>", "<"}


def test_every_command_has_help() -> None:
    silent = [path for path, command in ALL.items() if not (command.help or command.short_help)]
    assert silent == []


def test_every_command_is_in_the_guide() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    leaves = [path for path, command in ALL.items() if path and not isinstance(command, click.Group)]
    missing = [" ".join(path) for path in leaves if f"osmo {' '.join(path)}" not in text]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_exist(page: Path) -> None:
    text = page.read_text()
    shown = re.findall(r"^(?:\$ )?(osmo .*)$", text, re.MULTILINE) + re.findall(r"`(osmo [^`\n]+)`", text)
    for line in shown:
        words = shlex.split(line, comments=True)[1:]
        words = words[: next((at for at, word in enumerate(words) if word in SHELL), len(words))]
        path: tuple[str, ...] = ()
        for word in words:
            if (*path, word) not in ALL:
                break
            path = (*path, word)
        assert path, line
        command = ALL[path]
        assert not isinstance(command, click.Group) or len(words) == len(path), line
        options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        for word in words[len(path) :]:
            if word.startswith("-") and word not in {"-", "--"}:
                assert word.split("=")[0] in options | {"--help"}, line


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
