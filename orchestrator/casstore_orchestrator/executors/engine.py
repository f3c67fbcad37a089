"""Container engines, by their command lines.

Decided here and only here: which engines there are (podman, docker), how one is found and asked, and where the two
differ. An engine gets a clean environment of its own: nothing that a task says can reach the engine's client.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from casstore.errors import NotFoundError, ServiceError

__all__ = ["ENGINES", "Engine", "find_engine", "last_words"]

ENGINES = ("podman", "docker")
_KEPT = (
    "HOME", "PATH", "USER", "LANG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "DBUS_SESSION_BUS_ADDRESS",
    "DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "CONTAINER_HOST", "CONTAINERS_CONF", "HTTPS_PROXY", "HTTP_PROXY",
    "NO_PROXY", "https_proxy", "http_proxy", "no_proxy",
)  # fmt: skip
_PODMAN_INITS = tuple(
    f"{folder}/catatonit" for folder in ("/usr/libexec/podman", "/usr/local/libexec/podman", "/usr/local/lib/podman")
)
"""Where podman looks for its first process (containers.conf, ``helper_binaries_dir``)."""
_ANSWER_SECONDS = 60.0
_PULL_SECONDS = 3600.0
_MAX_SAID = 400
_CAP_SYS_RESOURCE = 24
_MOST = 32768


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine of this machine."""

    name: Literal["podman", "docker"]
    path: str
    version: str
    rootless: bool

    @property
    def environment(self) -> dict[str, str]:
        """What its client runs with."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        return {"PATH": os.defpath, **kept}

    def ask(self, *arguments: str, seconds: float = _ANSWER_SECONDS, doing: str) -> str:
        """Run a command of the engine and give what it prints; ``ServiceError`` with what it said."""
        try:
            done = subprocess.run(
                [self.path, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                env=self.environment,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ServiceError(f"{self.name} did not {doing} within {seconds:.0f} seconds") from None
        except OSError as error:
            raise ServiceError(f"{self.name} can't be run: {error.strerror}") from None
        if done.returncode:
            raise ServiceError(f"{self.name} could not {doing}: {last_words(done.stderr)}")
        return done.stdout.decode(errors="replace")

    def details(self, *arguments: str, doing: str) -> dict[str, Any]:
        """The first document that ``inspect`` prints; an empty one when it is not to be understood."""
        try:
            found = json.loads(self.ask(*arguments, doing=doing))
        except ValueError:
            return {}
        first = found[0] if isinstance(found, list) and found else found
        return first if isinstance(first, dict) else {}

    def ensure_image(self, image: str, *, auth_file: str | None = None) -> bool:
        """Have an image here, pulling it when it is missing; whether it was pulled. ``ServiceError``."""
        try:
            self.ask("image", "inspect", "--format", "{{.Id}}", image, doing=f"find the image {image}")
        except ServiceError:
            self.pull(image, auth_file=auth_file)
            return True
        return False

    def pull(self, image: str, *, auth_file: str | None = None) -> None:
        """Fetch an image from its registry. ``ServiceError``."""
        before: list[str] = []
        after: list[str] = []
        if auth_file is not None and self.name == "podman":
            after = ["--authfile", auth_file]
        elif auth_file is not None:
            before = ["--config", os.path.dirname(auth_file)]
        self.ask(*before, "pull", "--quiet", *after, image, seconds=_PULL_SECONDS, doing=f"pull the image {image}")

    def limits(self) -> list[str]:
        """Limits in place of the engine's own, where this process may not raise its own to them."""
        if self.name == "docker" or self.rootless or _may_raise_limits():
            return []
        found = []
        for name, kind in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
            _, most = resource.getrlimit(kind)
            most = _MOST if most == resource.RLIM_INFINITY else min(most, _MOST)
            found.append(f"--ulimit={name}={most}:{most}")
        return found

    def gpus(self, count: int) -> list[str]:
        """Options that give a container devices, by the engine's own means."""
        if not count:
            return []
        return ["--gpus", str(count)] if self.name == "docker" else ["--device", "nvidia.com/gpu=all"]

    def init(self) -> list[str]:
        """Options for a first process of a container that passes signals on and buries what is left to it.

        Without one the task's command is the first process itself: the kernel keeps signals from it that it has no
        handler for, SIGTERM too, so that it only ends once its grace is over. Podman may lack the program for it.
        """
        return ["--init"] if self.name == "docker" or any(map(os.path.exists, _PODMAN_INITS)) else []

    def subnet(self, network: str) -> str:
        """The IPv4 subnet of a network that was made. ``ServiceError``."""
        found = self.details("network", "inspect", network, doing=f"describe the network {network}")
        parts = found.get("subnets") or (found.get("IPAM") or {}).get("Config") or []
        for part in parts:
            subnet = str(part.get("subnet") or part.get("Subnet") or "")
            if "." in subnet:
                return subnet
        raise ServiceError(f"{self.name} gave the network {network} no IPv4 addresses")

    def remove(self, label: str) -> None:
        """End and remove every container and network with a label, as far as that goes."""
        for kind, options in (("container", ["rm", "--force", "--volumes"]), ("network", ["rm"])):
            try:
                listed = ["ps", "--all"] if kind == "container" else ["network", "ls"]
                found = self.ask(*listed, "--quiet", "--filter", f"label={label}", doing=f"list every {kind}").split()
                if found:
                    prefix = [] if kind == "container" else ["network"]
                    self.ask(*prefix, *options, *found, doing=f"remove a {kind}")
            except ServiceError:
                continue


def _may_raise_limits() -> bool:
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            granted = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    except (OSError, StopIteration, ValueError):
        return True
    return bool(granted >> _CAP_SYS_RESOURCE & 1)


def last_words(said: bytes) -> str:
    """The last line of what a program complained about, in one short line."""
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return (lines[-1] if lines else "it did not say why")[-_MAX_SAID:]


def find_engine(name: str | None = None) -> Engine:
    """The engine of this name, or the first that works here. ``NotFoundError`` says why none does."""
    reasons = []
    for candidate in (name,) if name else ENGINES:
        try:
            return _look(candidate)
        except NotFoundError as error:
            reasons.append(error.message)
    raise NotFoundError(
        f"there is no container engine: {'; '.join(reasons)}", hint="install podman, or run tasks as processes"
    )


@cache
def _look(name: str) -> Engine:
    """Only what was found is kept: an engine that does not answer now may be started later."""
    path = shutil.which(name)
    if name not in ENGINES or path is None:
        raise NotFoundError(f"{name} is not installed")
    kind: Literal["podman", "docker"] = "podman" if name == "podman" else "docker"
    engine = Engine(kind, path, "", rootless=False)
    form = "{{.Version.Version}} {{.Host.Security.Rootless}}" if kind == "podman" else "{{.ServerVersion}} false"
    try:
        version, _, rootless = engine.ask("info", "--format", form, doing="answer").strip().partition(" ")
    except ServiceError as error:
        raise NotFoundError(error.message) from None
    if not version:
        raise NotFoundError(f"{name} has no server")
    return Engine(kind, path, version, rootless == "true")
