"""Fixtures for every test: no test sees the user's own configuration, store or state."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from casstore.structs import settle
from casstore.testing.postgres import find_programs, running_postgres


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the soak budgets too")


def pytest_configure(config: pytest.Config) -> None:
    """Examples are the same ones in each run, so that a failure is the change's; the nightly run looks for new ones.
    None has a deadline: machines are busy.
    """
    hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None)
    hypothesis.settings.register_profile("new", derandomize=False, deadline=None, print_blob=True)
    hypothesis.settings.load_profile("new" if config.getoption("--nightly") else "same")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "slow" not in item.keywords)  # so that no worker is left with one of them in the end
    if config.getoption("--nightly"):
        return
    nightly = [item for item in items if "nightly" in item.keywords]
    if nightly:
        config.hook.pytest_deselected(items=nightly)
        items[:] = [item for item in items if "nightly" not in item.keywords]


def pytest_collection_finish() -> None:
    settle()


@pytest.fixture(autouse=True)
def isolated_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home of its own for every test; returns it.

    Its path is short, whatever pytest's own folder is called: a Unix socket's has to fit into 108 bytes.
    """
    home = Path(tempfile.mkdtemp(prefix="ch-"))
    monkeypatch.setenv("HOME", str(home))
    for name, folder in {
        "XDG_CONFIG_HOME": ".config",
        "XDG_DATA_HOME": ".local/share",
        "XDG_STATE_HOME": ".local/state",
        "XDG_CACHE_HOME": ".cache",
        "XDG_RUNTIME_DIR": ".run",
    }.items():
        (home / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv(name, str(home / folder))
    (home / ".run").chmod(0o700)
    for name in ("OSMO_CONFIG_FILE_DIR", "OSMO_CONFIG_DIR", "OSMO_LOG_FILE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("USER", "tester")
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def deep_path() -> Iterator[Path]:
    """A folder for trees deeper than Python's own clean-up can go; removed by `rm`."""
    path = Path(tempfile.mkdtemp(prefix="casstore-deep-"))
    yield path
    subprocess.run(["rm", "-rf", str(path)], check=True)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder with a short name: the path of a Unix socket below it fits into the kernel's 108 bytes."""
    with tempfile.TemporaryDirectory(prefix="cs-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Callable[[], str]]:
    """A real PostgreSQL of our own; each call makes an empty database and gives its URL."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed; scripts/setup dev installs it")
    with running_postgres(programs) as make:
        yield make
