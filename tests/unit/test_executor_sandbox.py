"""The mount plan: what is hidden, what is shown, and in which order."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("sandboxes are made of Linux namespaces", allow_module_level=True)

from casstore_orchestrator.executors import cgroups, probe, sandbox
from casstore_orchestrator.ports import TaskLaunch


def make_launch(tmp_path: Path, *, read_only_inputs: bool = False, gpu: int = 0) -> TaskLaunch:
    home = tmp_path / "home"
    sandbox.make_home(home)
    (home / "data/input/0").mkdir(parents=True, exist_ok=True)
    return TaskLaunch("t", ("true",), {}, (), home, 1.0, 0, gpu, read_only_inputs)


def make_plan(launch: TaskLaunch, view: sandbox.View) -> sandbox.Plan:
    return sandbox.plan_mounts(launch, view, Path("/hosts"), None, Path("/init.py"), "/usr/bin/python3")


def pairs(plan: sandbox.Plan, kind: str) -> list[tuple[str, str]]:
    arguments = plan.after
    return [(arguments[i + 1], arguments[i + 2]) for i, word in enumerate(arguments) if word == kind]


VIEW = sandbox.View(folders=("/usr",), plain_folders=("/mnt",), links=(("bin", "usr/bin"),), exposed=(), hidden=())


def test_the_folders_of_the_attempt_are_in_the_plan(tmp_path: Path) -> None:
    launch = make_launch(tmp_path)
    home = str(launch.home.resolve())
    plan = make_plan(launch, VIEW)
    assert plan.before == ("--bind", f"{home}/root", "/", "--ro-bind", "/mnt", "/mnt")
    assert plan.folders == ("/usr",)
    assert (f"{home}/tmp", "/tmp") in pairs(plan, "--bind")
    assert (f"{home}/data/output", "/osmo/data/output") in pairs(plan, "--bind")
    assert (f"{home}/data/input/0", "/osmo/data/input/0") in pairs(plan, "--bind")
    assert os.readlink(launch.home / "root/bin") == "usr/bin"


def test_read_only_inputs_are_bound_read_only(tmp_path: Path) -> None:
    launch = make_launch(tmp_path, read_only_inputs=True)
    plan = make_plan(launch, VIEW)
    assert (f"{launch.home.resolve()}/data/input/0", "/osmo/data/input/0") in pairs(plan, "--ro-bind")


def test_the_plan_holds_no_privilege_over_the_machine(tmp_path: Path) -> None:
    after = make_plan(make_launch(tmp_path), VIEW).after
    kept = {after[i + 1] for i, word in enumerate(after) if word == "--cap-add"}
    assert after[after.index("--cap-drop") + 1] == "ALL"
    dangerous = {"SYS_ADMIN", "SYS_PTRACE", "SYS_MODULE", "SYS_RAWIO", "NET_ADMIN", "MKNOD", "DAC_READ_SEARCH", "BPF"}
    assert kept.isdisjoint(f"CAP_{name}" for name in dangerous)
    assert {"--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--clearenv"} <= set(after)


def test_what_is_hidden_is_covered_once_and_only_where_it_is_seen(tmp_path: Path) -> None:
    (tmp_path / "secret/below").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    hidden = (f"{tmp_path}/file", f"{tmp_path}/secret", f"{tmp_path}/secret/below", "/elsewhere")
    arguments = sandbox._hide(hidden, [str(tmp_path)])
    assert arguments == [
        *("--ro-bind", "/dev/null", f"{tmp_path}/file"),
        *("--perms", "0755", "--tmpfs", f"{tmp_path}/secret"),
    ]


def test_the_view_hides_what_the_operator_names_and_shows_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated_home: Path
) -> None:
    (isolated_home / ".cargo/bin").mkdir(parents=True)
    (isolated_home / ".ssh").mkdir()
    view = sandbox.machine_view([Path("/usr/share")], [isolated_home / ".config"])
    assert "/usr/share" in view.hidden
    home = str(isolated_home.resolve())
    assert {f"{home}/.cargo/bin", f"{home}/.config"} <= set(view.exposed)
    assert not any(path in {home, f"{home}/.ssh"} for path in view.exposed)
    assert {"/usr"} <= {*view.folders, *view.plain_folders}
    assert {"/tmp", "/run", "/proc", "/dev", "/home", "/root"}.isdisjoint({*view.folders, *view.plain_folders})


def test_mount_points_follow_no_links(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    (root / "osmo").symlink_to(target)
    (root / "file").write_text("x")
    sandbox._skeleton(root, [("lib", "usr/lib")], ["/osmo/data", "/file/below"])
    assert list(target.iterdir()) == []
    assert (root / "osmo/data").is_dir()
    assert (root / "file/below").is_dir()
    assert (root / "file.displaced").read_text() == "x"


def test_groups_are_looked_for_where_this_process_is(tmp_path: Path) -> None:
    assert cgroups._inside("/sys/fs/cgroup", "/", "/a/b") == "/sys/fs/cgroup/a/b"
    assert cgroups._inside("/sys/fs/cgroup", "/a", "/a/b") == "/sys/fs/cgroup/b"
    assert cgroups._inside("/sys/fs/cgroup", "/a", "/other") is None


def test_the_limits_of_version_2_are_written(tmp_path: Path) -> None:
    """There is no such hierarchy on every machine; the files are ordinary ones here."""
    bases = cgroups.Bases(2, str(tmp_path), str(tmp_path), str(tmp_path))
    group = cgroups.make_group(bases, "casstore-1-1", memory=1 << 30, cpu=1.5, quota=True)
    folder = tmp_path / "casstore-1-1"
    assert (folder / "memory.max").read_text() == str(1 << 30)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "cpu.weight").read_text() == "150"
    assert (folder / "cpu.max").read_text() == "150000 100000"
    assert (folder / "pids.max").read_text() == str(cgroups.MAX_PROCESSES)
    assert group.oom_kills() == 0
    (folder / "memory.events").write_text("low 0\noom 2\noom_kill 3\noom_group_kill 0\n")
    assert group.oom_kills() == 3
    assert bases.group_paths("x") == (f"{tmp_path}/x",)


def test_a_machine_without_bubblewrap_says_how_to_get_it() -> None:
    machine = probe._probe("/nonexistent")
    assert not machine.sandbox
    assert "install" in machine.reasons[0]


def test_a_bubblewrap_that_fails_is_told_with_its_own_words(tmp_path: Path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: no permissions for that' >&2\nexit 1\n")
    fake.chmod(0o755)
    machine = probe._probe(f"{tmp_path}:{os.environ['PATH']}")
    assert not machine.sandbox
    assert "no permissions for that" in machine.reasons[0]
