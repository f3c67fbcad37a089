"""Fixtures for every test: no test sees the user's own configuration, store or state."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from casstore.structs import settle


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--nightly", action="store_true", help="run the soak budgets too")


def pytest_configure(config: pytest.Config) -> None:
    """Examples are the same ones in each run, so that a failure is the change's; the nightly run looks for new ones."""
    hypothesis.settings.register_profile("same", derandomize=True, database=None, print_blob=True)
    hypothesis.settings.register_profile("new", derandomize=False, print_blob=True)
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
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    on_path = shutil.which("initdb")
    if not found and on_path is None:
        pytest.skip("PostgreSQL is not installed; scripts/setup dev installs it")
    bin_ = found[-1] if found else Path(str(on_path)).resolve().parent
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    other = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    if other:  # it refuses to be root
        shutil.chown(folder, "nobody", "nogroup")
    data = folder / "data"
    settings = {"listen_addresses": "", "unix_socket_directories": folder, "fsync": "off", "max_connections": 300}
    options = [f"--{name}={value}" for name, value in settings.items()]
    quiet = {"cwd": folder, "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    initdb = [bin_ / "initdb", "-U", "postgres", "-E", "UTF8", "--locale=C", "--auth=trust", "--no-sync", "-D", data]
    subprocess.run(initdb, check=True, **quiet, **other)  # type: ignore[call-overload]
    server = subprocess.Popen([bin_ / "postgres", "-D", data, *options], **quiet, **other)  # type: ignore[call-overload]
    psql = [bin_ / "psql", "-q", "-h", folder, "-U", "postgres", "-d", "postgres", "-c"]

    def make() -> str:
        name = f"db_{uuid.uuid4().hex}"
        subprocess.run([*psql, f"CREATE DATABASE {name}"], check=True, **quiet)  # type: ignore[call-overload]
        return f"postgresql://postgres@/{name}?host={folder}"

    try:
        ready = [bin_ / "pg_isready", "-q", "-t", "30", "-h", folder]
        while subprocess.run(ready, check=False).returncode != 0:
            if server.poll() is not None:
                pytest.fail(f"PostgreSQL ended with {server.returncode}")
        yield make
    finally:
        server.send_signal(signal.SIGINT)  # it ends at once, whoever is connected
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
