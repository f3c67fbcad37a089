"""How the command starts, fails and ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from casstore.errors import CancelledError, ErrorKind, IntegrityError, NotFoundError, ServiceError, SpecError
from casstore_cli import errors, main
from casstore_cli.commands import version

START = "import sys; sys.argv[0] = 'osmo'; from casstore_cli.main import main; main()"
HEAVY = {
    "blake3",
    "rich",
    "msgspec",
    "yaml",
    "zstandard",
    "pyfastcdc",
    "httpx",
    "jinja2",
    "asyncio",
    "logging",
    "sqlite3",
}


def osmo(*args: str, **kwargs: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **kwargs}
    return subprocess.run(
        [sys.executable, "-c", START, *args],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, (_, _, line) in main.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line.split()[0])}", shown, re.MULTILINE)


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 0
    assert "Usage: osmo" in capsys.readouterr().out


def test_every_command_of_the_table_loads() -> None:
    ctx = click.Context(main.cli)
    for name in main.COMMANDS:
        assert isinstance(main.cli.get_command(ctx, name), click.Command), name


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys; from casstore_cli import main; main.run(['--help']);"
        "print(sorted(m for m in sys.modules if '.' not in m), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"'(\w+)'", result.stderr))
    assert "click" in loaded
    assert not loaded & HEAVY


def test_work_without_a_server_loads_nothing_to_reach_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    script = (
        "import sys; from casstore_cli import main; code = main.run(['dataset', 'upload', 'd', sys.argv[1]]);"
        "print(code, sorted(sys.modules), file=sys.stderr)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    ).stderr
    assert said.splitlines()[-1].startswith("0 ")
    assert not {"ssl", "http.client", "asyncio", "sqlalchemy"} & set(re.findall(r"'([\w.]+)'", said))


def test_program_name_follows_argv0() -> None:
    script = "import sys; sys.argv[0] = '/usr/bin/casstore'; from casstore_cli.main import main; main()"
    result = subprocess.run([sys.executable, "-c", script, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"casstore \d+\.\d+\.\d+\S*\n", result.stdout)
    assert osmo("--version").stdout.startswith("osmo ")


def test_version_json() -> None:
    result = osmo("version", "-t", "json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["client"]["version"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["datset"], "Did you mean 'dataset'"),
        (["--nope"], "--nope"),
        (["version", "-t", "xml"], "xml"),
        (["version", "extra"], "extra"),
    ],
)
def test_wrong_usage(args: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("Usage: osmo")
    assert words in captured.err


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(version.command, "callback", fail)
    return main.run(["version", *args])


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (NotFoundError("no dataset 'x'"), 2, 404),
        (SpecError("bad"), 1, 400),
        (IntegrityError("bad chunk"), 2, 500),
        (ServiceError("down"), 10, 503),
    ],
)
def test_store_errors(
    error: Exception,
    code: int,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fail_with(error, monkeypatch) == code
    assert capsys.readouterr().out == f"Error message: {error}\nError code: {status}\n"


def test_errors_in_json_have_a_hint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert fail_with(NotFoundError("gone", hint="look there"), monkeypatch, "-t", "json") == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"message": "gone", "code": 404, "kind": ErrorKind.NOT_FOUND, "hint": "look there"}
    assert fail_with(NotFoundError("gone", hint="look there"), monkeypatch) == 2
    assert capsys.readouterr().out.endswith("Hint: look there\n")


def test_errors_can_not_act_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(NotFoundError("no \x1b[2J\nfile"), monkeypatch) == 2
    assert capsys.readouterr().out.startswith("Error message: no \\x1b[2J\\nfile\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CancelledError("interrupted")])
def test_interrupt(error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert fail_with(error, monkeypatch) == 3
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "interrupted\n")


def test_unexpected_errors_go_to_the_log(
    isolated_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fail_with(RuntimeError("surprise"), monkeypatch) == 2
    log = isolated_home / ".local/state/osmo/client.log"
    captured = capsys.readouterr()
    assert captured.out == (
        f"Error message: internal error: RuntimeError: surprise; details are in {log}\nError code: 1\n"
    )
    assert "Traceback" not in captured.out + captured.err
    assert "RuntimeError: surprise" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_os_errors_name_the_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert fail_with(PermissionError(13, "Permission denied", "/secret/x"), monkeypatch, "-t", "json") == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown["message"].startswith("/secret/x: Permission denied")


def test_log_rotates(isolated_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "_LOG_SIZE", 10)
    for number in range(8):
        fail_with(RuntimeError(f"number {number}"), monkeypatch)
    folder = isolated_home / ".local/state/osmo"
    assert sorted(p.name for p in folder.iterdir()) == [
        "client.log",
        *(f"client.log.{n}" for n in range(1, 5)),
    ]
    assert "number 7" in (folder / "client.log").read_text()
    assert "number 3" in (folder / "client.log.4").read_text()


def test_an_unwritable_log_is_no_second_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OSMO_LOG_FILE_DIR", "/dev/null/x")
    assert fail_with(RuntimeError("surprise"), monkeypatch) == 2
    assert "internal error: RuntimeError: surprise\n" in capsys.readouterr().out


def test_closed_pipe_is_silent() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        result = subprocess.run(
            [sys.executable, "-c", START, "version"],
            stdout=write,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(write)
    assert result.stderr == ""
    assert result.returncode == errors.EXIT_PIPE


@pytest.mark.parametrize("args", [["version"], ["version", "-t", "json"], ["--help"], ["dataset", "info", "x"]])
def test_full_disk_behind_standard_output(args: list[str]) -> None:
    with open("/dev/full", "w", encoding="ascii") as full:
        result = subprocess.run(
            [sys.executable, "-c", START, *args], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "message" in result.stderr.lower()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    command = f'exec "$0" -c "{START}" dataset info x {closed}'
    result = subprocess.run(["/bin/sh", "-c", command, sys.executable], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "Traceback" not in result.stdout + result.stderr


def test_names_that_the_terminal_lacks() -> None:
    script = (
        "import sys; sys.argv[0] = 'osmo'; from casstore_cli import main, output;"
        "from casstore_cli.commands import version;"
        "version.command.callback = lambda **k: output.text('gr\\u00f6\\u00dfe');"
        "main.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "version"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0
    assert result.stdout == b"gr\\xf6\\xdfe\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    result = osmo("completion", shell)
    assert result.returncode == 0
    assert "_OSMO_COMPLETE" in result.stdout


def test_completion_of_commands() -> None:
    result = osmo(_OSMO_COMPLETE="bash_complete", COMP_WORDS="osmo vers", COMP_CWORD="1")
    assert result.stdout == "plain,version\n"


def test_interrupted_for_real() -> None:
    script = (
        "import os, signal, sys; sys.argv[0] = 'osmo'; from casstore_cli import main;"
        "from casstore_cli.commands import version;"
        "version.command.callback = lambda **k: os.kill(os.getpid(), signal.SIGINT);"
        "main.main()"
    )
    result = subprocess.run([sys.executable, "-c", script, "version"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (3, "", "interrupted\n")


def test_interrupted_while_loading() -> None:
    # What the installed command does first; the interrupt comes out of an import.
    code = (
        "import sys\n"
        "class Stop:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'click': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\n"
        "from casstore_cli.start import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
