"""The files of ``deploy/``: as far as they can be looked at without an engine, and against the program itself."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from casstore_cli.main import cli
from casstore_server.options import OPTIONS
from casstore_server.secrets import KEY_VARIABLE

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "osmo-server.service"
VARIABLES = {option.variable for option in OPTIONS} | {KEY_VARIABLE}


class Options(dict[str, Any]):
    """A section of a unit, in which a key may come several times."""

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, list) and key in self:
            self[key].extend(value)
        else:
            super().__setitem__(key, value)


def unit() -> dict[str, Any]:
    parser = configparser.ConfigParser(interpolation=None, strict=False, dict_type=Options)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return {name: dict(parser[name]) for name in parser.sections()}


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE))
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


def check_command(words: list[str]) -> None:
    """It is a command of ours, with options that there are."""
    assert words[0] == "osmo"
    command: click.Command = cli
    context = click.Context(cli)
    rest = words[1:]
    while isinstance(command, click.Group):
        found = command.get_command(context, rest[0])
        assert found is not None, words
        command, rest = found, rest[1:]
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert set(rest) <= options


def check_variables(names: set[str]) -> None:
    assert {name for name in names if name.startswith("CASSTORE_")} <= VARIABLES


def test_the_unit_starts_what_there_is_and_leaves_tasks_alone() -> None:
    service = unit()["Service"]
    words = shlex.split(service["ExecStart"])
    check_command([Path(words[0]).name, *words[1:]])
    assert "--foreground" in words
    assert (service["Type"], service["KillMode"]) == ("notify", "process")
    text = UNIT.read_text()
    given = {
        pair.partition("=")[0]
        for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE)
        for pair in shlex.split(line)
    }
    assert {"HOME", "XDG_RUNTIME_DIR", "CASSTORE_SERVER_PORT"} <= given
    check_variables(given)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    # Its program is not installed at that place here, and systemd looks for it.
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )
    told = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert told == []


def test_the_image_has_what_it_copies_and_starts_what_there_is() -> None:
    found = instructions()
    for name, words in found:
        if name == "COPY" and not words.startswith("--from"):
            for source in words.split()[:-1]:
                assert (ROOT / source).exists(), source
    (entry,) = [words for name, words in found if name == "ENTRYPOINT"]
    check_command(yaml.safe_load(entry))
    (health,) = [words for name, words in found if name == "HEALTHCHECK"]
    check_command(yaml.safe_load(health.partition("CMD ")[2]))
    environment = {pair.partition("=")[0] for name, words in found if name == "ENV" for pair in shlex.split(words)}
    check_variables(environment)
    assert [words for name, words in found if name == "USER"] == ["osmo"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (wanted,) = re.findall(r"'\.\[([a-z0-9,]+)\]'", (DEPLOY / "Dockerfile").read_text())
    assert set(wanted.split(",")) <= set(extras)


def test_the_constraints_of_the_image_are_plain_versions() -> None:
    (script,) = re.findall(r"sed -E '([^']+)'", (DEPLOY / "Dockerfile").read_text())
    done = subprocess.run(
        ["sed", "-E", script, str(ROOT / "requirements.lock")], capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line]
    assert len(lines) > 50
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==\S+( ; .*)?", line)] == []


def test_the_composition_fits_the_image_and_the_settings() -> None:
    found = compose()
    server, database = found["services"]["server"], found["services"]["database"]
    assert (DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    check_variables(set(server["environment"]))
    assert server["network_mode"] == "host"
    assert server["init"] is True
    assert all(port.startswith("127.0.0.1:") for port in database["ports"])
    named = {volume.partition(":")[0] for service in found["services"].values() for volume in service["volumes"]}
    assert named == set(found["volumes"])
    (folder,) = [words for name, words in instructions() if name == "VOLUME"]
    assert server["volumes"] == [f"state:{folder}"]
    assert "healthcheck" in database
    assert re.search(r"password.{0,3}[:=] *[a-z0-9]{6}", (DEPLOY / "compose.yaml").read_text(), re.IGNORECASE) is None


def _has_compose() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _has_compose(), reason="this docker has no compose, or there is none")
def test_compose_takes_the_composition() -> None:
    done = subprocess.run(
        ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "POSTGRES_PASSWORD": "x"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
