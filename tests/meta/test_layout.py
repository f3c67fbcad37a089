"""The shape of the repository: what a reader relies on without being told."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "casstore",
    "cli/casstore_cli",
    "fuse/casstore_fuse",
    "orchestrator/casstore_orchestrator",
    "server/casstore_server",
]
LONGEST = 500
LONG_WITH_REASON = {"casstore/testing/backend_contract.py": "one list of promises, read from top to bottom"}
DOCSTRING = re.compile(r'\s*r?"""')


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def test_component_roots_are_no_packages() -> None:
    # A package called `cli` or `server` would squat a generic name in every environment.
    for folder in ("server", "fuse", "cli", "orchestrator", "tests", "benchmarks"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_modules_are_short() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in long.items() if lines > LONGEST and name not in LONG_WITH_REASON} == {}


def test_modules_say_what_is_decided_in_them() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in modules()
        if path.name != "__init__.py"
        and "migrations" not in path.parts
        and not path.read_text().lstrip().lstrip("r").startswith(chr(34) * 3)
    ]
    assert silent == []


def test_the_wheel_holds_the_packages_and_nothing_generic(tmp_path: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {Path(package).name for package in PACKAGES}
    assert any(name.endswith("migrations/env.py") for name in zipfile.ZipFile(wheel).namelist())


def test_pyproject_lists_the_packages() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == PACKAGES


HEAVY = (
    "rich",
    "msgspec",
    "yaml",
    "blake3",
    "zstandard",
    "pyfastcdc",
    "sqlite3",
    "fastapi",
    "sqlalchemy",
    "http.client",
)


@pytest.mark.parametrize("arguments", [["--help"], ["dataset", "--help"], ["workflow", "--help"], ["version"]])
def test_starting_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['osmo', *sys.argv[1:]]\n"
        "from casstore_cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    loaded = done.stderr.rpartition("HEAVY ")[2].strip()
    if arguments == ["--help"]:
        assert loaded == "[]"
    for name in ("rich", "fastapi", "sqlalchemy", "pyfastcdc"):
        assert repr(name) not in loaded


def test_the_tree_names_no_machine_and_no_registry() -> None:
    # Hosts of registries, and paths of the machine that a file was written on.
    pattern = re.compile(r"pypi\.org|pythonhosted|npmjs|deb\.debian\.org|/root/\.|/home/(?!data|you)\w+/|/work/")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = [
        name
        for name in tracked.split("\0")
        if name and name != "tests/meta/test_layout.py" and pattern.search((ROOT / name).read_text(errors="replace"))
    ]
    assert named == []
