"""Azurite, Microsoft's double of Azure Blob Storage, as a process of its own on loopback.

Decided here and only here: how it is started, and that everything is in its memory and its account's key is made up
anew each time. It comes from npm: `scripts/setup dev` installs the version that `tests/servers/azurite` pins.
"""

from __future__ import annotations

import base64
import os
import re
import secrets
import subprocess
import threading
import uuid
from pathlib import Path
from typing import Any, Final, Self

from casstore.errors import StorageError
from casstore.remote.credentials import StorageCredential

__all__ = ["Azurite"]

ACCOUNT: Final = "casstore"
START_SECONDS: Final = 120
MEMORY_MIB: Final = 2048
_LISTENS = re.compile(r"listens on (http://127\.0\.0\.1:\d+)")


class Azurite:
    """A running server. ``folder`` is where npm installed it. ``StorageError`` when it does not start."""

    def __init__(self, folder: Path) -> None:
        program = folder / "node_modules/azurite/dist/src/blob/main.js"
        if not program.exists():
            raise StorageError(f"Azurite is not installed in {folder}", hint="run scripts/setup dev")
        self.key = base64.b64encode(secrets.token_bytes(48)).decode()
        options = "--blobHost 127.0.0.1 --blobPort 0 --blobKeepAliveTimeout 600 --skipApiVersionCheck --silent"
        memory = f"--inMemoryPersistence --extentMemoryLimit {MEMORY_MIB} --disableTelemetry"
        self._process = subprocess.Popen(
            ["node", str(program), *options.split(), *memory.split()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{self.key}"},
            cwd="/",
        )
        watchdog = threading.Timer(START_SECONDS, self._process.kill)
        watchdog.start()
        try:
            self.url = self._wait()
        except BaseException:
            self.stop()
            raise
        finally:
            watchdog.cancel()
        threading.Thread(target=self._drain, daemon=True).start()

    def _wait(self) -> str:
        assert self._process.stdout is not None
        said = []
        for line in self._process.stdout:
            said.append(line)
            if found := _LISTENS.search(line):
                return found[1]
        raise StorageError(f"Azurite does not start: {''.join(said[-5:]).strip()}")

    def _drain(self) -> None:
        assert self._process.stdout is not None
        for _ in self._process.stdout:
            pass

    @property
    def credential(self) -> StorageCredential:
        """What a client needs to talk to this server."""
        return StorageCredential(access_key_id=ACCOUNT, access_key=self.key, override_url=self.url)

    def container(self) -> str:
        """Make a container and return its name."""
        name = f"c-{uuid.uuid4().hex}"
        with self.service().create_container(name):
            return name

    def service(self) -> Any:
        """Azure's own client, for what a test does behind the store's back."""
        from azure.storage.blob import BlobServiceClient  # noqa: PLC0415

        return BlobServiceClient(
            f"{self.url}/{ACCOUNT}", credential={"account_name": ACCOUNT, "account_key": self.key}, retry_total=0
        )

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
