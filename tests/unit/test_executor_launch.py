"""Launches: what is refused, what a task's environment is, and how plain mode changes paths."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from casstore.errors import UsageError
from casstore_orchestrator.executors.launch import check_launches, open_launch, task_environment, write_commands
from casstore_orchestrator.executors.plain import plain_layout, rewrite_paths
from casstore_orchestrator.ports import PlacedFile, TaskLaunch


def launch(tmp_path: Path, **changes: object) -> TaskLaunch:
    values: dict[str, object] = {
        "name": "t",
        "argv": ("true",),
        "environment": {},
        "files": (),
        "home": tmp_path / "home",
        "cpu": 1.0,
        "memory": 0,
        "gpu": 0,
    }
    return TaskLaunch(**(values | changes))  # type: ignore[arg-type]  # a test's shorthand


@pytest.mark.parametrize("name", ["", "-a", "a b", "a\n10.0.0.1 evil", "a/b", "x" * 64, "é"])
def test_names_that_can_not_be_host_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="host name"):
        check_launches([launch(tmp_path, name=name)], 10)


def test_the_limits_of_the_system_are_told_before_it_refuses(tmp_path: Path) -> None:
    check_launches([launch(tmp_path, argv=("x" * (128 * 1024 - 1),))], 10)
    with pytest.raises(UsageError, match="argument 1 has 131072 bytes") as caught:
        check_launches([launch(tmp_path, argv=("x", "y" * (128 * 1024)))], 10)
    assert caught.value.hint is not None
    with pytest.raises(UsageError, match="too large"):
        check_launches([launch(tmp_path, name=f"t{n}") for n in range(11)], 10)
    with pytest.raises(UsageError, match="without tasks"):
        check_launches([], 10)


@pytest.mark.parametrize("key", ["", "A=B"])
def test_impossible_variables_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(UsageError, match="environment variable"):
        check_launches([launch(tmp_path, environment={key: "x"})], 10)


def test_the_task_decides_over_its_environment_but_keeps_the_commands(tmp_path: Path) -> None:
    mine = launch(tmp_path, environment={"PATH": "/mine", "HOME": "/elsewhere"}, gpu=1)
    seen = task_environment(mine, path="/usr/bin", home="/root", commands="/osmo/usr/bin", extra={"USER": "root"})
    assert seen["PATH"] == "/mine:/osmo/usr/bin"
    assert seen["HOME"] == "/elsewhere"
    assert seen["USER"] == "root"
    assert "NVIDIA_VISIBLE_DEVICES" not in seen


def test_a_launch_holds_bytes_that_are_no_text(tmp_path: Path) -> None:
    files = [PlacedFile("/a", b"\x00\xff", 0o600), PlacedFile("/b", b"text")]
    with open_launch(["cmd", "\udcff"], {"A": "\udcfe"}, "/", files, tmp_path) as stream:
        stream.seek(0)
        data = io.BytesIO(stream.read())
    header = json.loads(data.read(int.from_bytes(data.read(8), "big")))
    assert header["argv"] == ["cmd", "\udcff"]
    assert header["environment"] == {"A": "\udcfe"}
    assert header["files"] == [["/a", 0o600, 2], ["/b", 0o755, 4]]
    assert data.read() == b"\x00\xfftext"


def test_the_command_folder_can_be_written_again(tmp_path: Path) -> None:
    for _ in range(2):
        write_commands(tmp_path / "bin")
    assert (tmp_path / "bin/osmo").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "bin/python3").is_symlink()


def test_plain_mode_replaces_exactly_the_placed_paths(tmp_path: Path) -> None:
    files = (
        PlacedFile(
            "/tmp/run.sh", b"source /tmp/run.sh.d/x; . '/tmp/env'; echo /tmp/env.txt /var/tmp/env See /tmp/env."
        ),
        PlacedFile("/tmp/env", b"\x00 /tmp/env stays in binary"),
        PlacedFile("/tmp//odd/../env2", b"\xff /tmp/env is not text"),
    )
    before = launch(
        tmp_path,
        argv=("bash", "/tmp/run.sh", "--file=/tmp/env", "/tmp/environment", "s3://b/tmp/env"),
        environment={"F": "/tmp/env:/tmp/run.sh"},
        files=files,
    )
    after = rewrite_paths(before)
    root = f"{(tmp_path / 'home').resolve()}/root"
    argv = ("bash", f"{root}/tmp/run.sh", f"--file={root}/tmp/env", "/tmp/environment", "s3://b/tmp/env")
    assert after.argv == argv
    assert after.environment == {"F": f"{root}/tmp/env:{root}/tmp/run.sh"}
    body = after.files[0].data.decode()
    assert body == f"source /tmp/run.sh.d/x; . '{root}/tmp/env'; echo /tmp/env.txt /var/tmp/env See {root}/tmp/env."
    assert [file.data for file in after.files[1:]] == [file.data for file in files[1:]]
    assert [file.path for file in after.files] == [f"{root}/tmp/run.sh", f"{root}/tmp/env", f"{root}/tmp/env2"]


def test_plain_mode_without_files_changes_nothing(tmp_path: Path) -> None:
    mine = launch(tmp_path, argv=("echo", "/tmp/x"), environment={"A": "/tmp/x"})
    assert rewrite_paths(mine).argv == mine.argv
    assert plain_layout(mine.home).output.endswith("/home/data/output")
