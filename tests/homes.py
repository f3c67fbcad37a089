"""The homes of users, for tests that run the command as they would.

Decided here and only here: what of this process's environment such a command sees, and that whatever it says is no
traceback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["OSMO", "PATIENCE", "Home", "eventually"]

OSMO = [sys.executable, "-c", "from casstore_cli.main import main; main()"]
PATIENCE = 180.0
"""Seconds that a machine which is busy with other things may take for what takes one."""


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """What ``condition`` gives once that is true."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.05)
    raise AssertionError(f"never: {what}")


class Home:
    """The home of a user, who has a server of their own or is logged in to another one. ``stderr`` is what the last
    command said there.
    """

    def __init__(self, folder: Path, user: str = "ada") -> None:
        self.folder = folder
        self.run_dir = folder / "run"
        self.run_dir.mkdir(parents=True, mode=0o700)
        self.work = folder / "work"
        self.work.mkdir()
        self.state = folder / ".local" / "state" / "casstore"
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
        self.env = kept | {
            "HOME": str(folder),
            "USER": user,
            "LOGNAME": user,
            "XDG_RUNTIME_DIR": str(self.run_dir),
            "TZ": "UTC",
            "PYTHONWARNINGS": "error::ResourceWarning",
        }
        self.stderr = ""

    def start(self, *words: str, **options: Any) -> subprocess.Popen[Any]:
        """Begin a command; its output is read from pipes unless ``options`` of ``Popen`` say otherwise."""
        options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen([*OSMO, *words], env=self.env, cwd=self.work, **options)

    def osmo(self, *words: str, code: int = 0, stdin: str | bytes = b"", **env: str) -> str:
        """Run a command to its end, which must be ``code``; its standard output."""
        done = subprocess.run(
            [*OSMO, *words],
            env=self.env | env,
            cwd=self.work,
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        output, self.stderr = done.stdout.decode(), done.stderr.decode()
        said = f"{output}\n--- stderr\n{self.stderr}"
        assert "Traceback" not in said, said
        assert done.returncode == code, f"osmo {' '.join(words)}: exit {done.returncode}\n{said}"
        return output

    def refused(self, *words: str, code: int = 2, **env: str) -> str:
        """What a command says that ends with ``code``, on both of its outputs."""
        output = self.osmo(*words, code=code, **env)
        return output + self.stderr

    def json(self, *words: str, code: int = 0, **env: str) -> Any:
        """What a command says as JSON."""
        return json.loads(self.osmo(*words, "-t", "json", code=code, **env))

    def write(self, name: str, text: str | bytes) -> str:
        """Make a file in the folder that commands run in; its path."""
        path = self.work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def query(self, workflow_id: str) -> dict[str, Any]:
        """A workflow with its groups and tasks."""
        found: dict[str, Any] = self.json("workflow", "query", workflow_id, "-v")
        return found

    def wait(self, workflow_id: str, *wanted: str) -> dict[str, Any]:
        """The workflow once it has one of these statuses."""
        found: dict[str, Any] = {}

        def there() -> bool:
            found.update(self.query(workflow_id))
            return found["status"] in wanted

        try:
            eventually(there, f"{workflow_id} is one of {wanted}")
        except AssertionError as error:
            log = self.state / "server.log"
            said = log.read_text() if log.exists() else "none here"
            raise AssertionError(f"{error}, but {found['status']}; the server's log:\n{said}") from None
        return found

    @property
    def pid(self) -> int:
        """The process of the user's own server."""
        return int((self.state / "server.pid").read_text())
