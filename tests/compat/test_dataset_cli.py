"""The surface of ``osmo dataset`` and ``osmo bucket``: commands, positionals, flags, defaults, choices of OSMO 6.2."""

from __future__ import annotations

from dataclasses import dataclass, field

import click
import pytest

from casstore_cli.main import cli
from casstore_cli.multi import ManyOption


@dataclass(frozen=True)
class Expected:
    """One command of OSMO 6.2. ``many``: options that take several values; ``flags``: those that take none."""

    positionals: tuple[str, ...]
    options: dict[str, str] = field(default_factory=dict)
    flags: dict[str, str] = field(default_factory=dict)
    many: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, object] = field(default_factory=dict)
    choices: dict[str, tuple[str, ...]] = field(default_factory=dict)


TRANSFER = {"-p": "--processes", "-T": "--threads", "-b": "--benchmark-out"}
FORMAT = {"-t": "--format-type"}
TREES = {"-m": "--metadata", "-l": "--labels"}
TEXT_JSON = {"--format-type": ("text", "json")}
ATTRIBUTES = {"-s": "--set", "-d": "--delete"}

OSMO_62 = {
    "info": Expected(
        ("NAME",), {"-c": "--count", "-o": "--order", **FORMAT}, {"-a": "--all"},
        defaults={"--count": 100, "--order": "asc", "--format-type": "text"},
        choices={"--order": ("asc", "desc"), **TEXT_JSON},
    ),
    "upload": Expected(
        ("NAME", "PATHS..."), {"-d": "--desc", "-x": "--regex", **TRANSFER},
        {"-r": "--resume", "": "--start-only"}, TREES,
    ),
    "download": Expected(("NAME", "PATH"), {"-x": "--regex", **TRANSFER}, {"-r": "--resume"}),
    "update": Expected(
        ("NAME",), {"-r": "--remove", "": "--resume", **TRANSFER}, {"": "--start-only"}, {"-a": "--add", **TREES}
    ),
    "delete": Expected(("NAME",), FORMAT, {"-a": "--all", "-f": "--force"}, choices=TEXT_JSON),
    "list": Expected(
        (), {"-n": "--name", "-c": "--count", "-o": "--order", **FORMAT}, {"-a": "--all-users"},
        {"-u": "--user", "-b": "--bucket"}, {"--count": 20, "--order": "asc"},
        {"--order": ("asc", "desc"), **TEXT_JSON},
    ),
    "tag": Expected(("NAME",), many=ATTRIBUTES),
    "label": Expected(("NAME",), FORMAT, {"-f": "--file"}, ATTRIBUTES, choices=TEXT_JSON),
    "metadata": Expected(("NAME",), FORMAT, {"-f": "--file"}, ATTRIBUTES, choices=TEXT_JSON),
    "rename": Expected(("ORIGINAL_NAME", "NEW_NAME")),
    "query": Expected(("FILE",), {"-b": "--bucket", **FORMAT}, choices=TEXT_JSON),
    "collect": Expected(("NAME", "DATASETS...")),
    "recollect": Expected(("NAME",), many={"-a": "--add", "-r": "--remove"}),
    "inspect": Expected(
        ("NAME",), {"-x": "--regex", "-c": "--count", **FORMAT},
        defaults={"--count": 1000}, choices={"--format-type": ("text", "tree", "json")},
    ),
    "checksum": Expected(("PATHS...",)),
    "check": Expected(
        ("NAME",), {"-a": "--access-type", "-c": "--config-file"},
        choices={"--access-type": ("READ", "WRITE", "DELETE")},
    ),
}  # fmt: skip


def group(name: str) -> click.Group:
    found = cli.get_command(click.Context(cli), name)
    assert isinstance(found, click.Group)
    return found


def command(name: str) -> click.Command:
    dataset = group("dataset")
    found = dataset.get_command(click.Context(dataset), name)
    assert found is not None
    return found


@pytest.mark.parametrize("name", sorted(OSMO_62))
def test_surface(name: str) -> None:
    expected = OSMO_62[name]
    found = command(name)
    ctx = click.Context(found)
    positionals = tuple(
        p.human_readable_name.upper() + ("..." if p.nargs == -1 else "")
        for p in found.params
        if isinstance(p, click.Argument)
    )
    assert positionals == expected.positionals
    options = {name: p for p in found.params if isinstance(p, click.Option) for name in p.opts}
    for kind, declared in (("one", expected.options), ("none", expected.flags), ("many", expected.many)):
        for short, long in declared.items():
            option = options[long]
            found_kind = "none" if option.is_flag else "many" if isinstance(option, ManyOption) else "one"
            assert found_kind == kind, long
            assert not short or options[short] is option
    for long, default in expected.defaults.items():
        assert options[long].get_default(ctx) == default
    for long, choices in expected.choices.items():
        kind_of = options[long].type
        assert isinstance(kind_of, click.Choice)
        assert tuple(kind_of.choices) == choices


def test_required_positionals() -> None:
    for name, expected in OSMO_62.items():
        for param in command(name).params:
            if isinstance(param, click.Argument):
                assert param.required, (name, param.name, expected)


def test_every_command_of_the_release_is_there() -> None:
    listed = set(group("dataset").list_commands(click.Context(cli)))
    assert {*OSMO_62, "migrate"} <= listed


def test_start_only_is_hidden() -> None:
    for name in ("upload", "update"):
        option = next(p for p in command(name).params if "--start-only" in p.opts)
        assert isinstance(option, click.Option)
        assert option.hidden


def test_bucket_list() -> None:
    bucket = group("bucket")
    found = bucket.get_command(click.Context(bucket), "list")
    assert found is not None
    assert "--format-type" in {name for p in found.params for name in p.opts}
