"""What a sandboxed task sees: its folders, and what of the machine is hidden from it.

Decided here and only here: the mount plan of a task as arguments of bubblewrap, the folders below an attempt's home,
what is hidden, and which Linux capabilities a task keeps.

The root folder is a folder of the attempt's own on the disk. Over each top-level folder of the machine lies a layer of
the task's own where the kernel can (else it is read-only); folders with mounts of their own below are read-only. Homes,
``/run`` and the temporary folders of the machine are not there at all. ``/tmp``, ``/var/tmp``, ``/root`` and whatever
the task writes elsewhere live in the attempt's home, so they survive a restart in place and count as disk, not memory.
Every folder that the host reads or writes later (data, outputs, inputs) is a mount point in the task, so that the task
can't put a link in its place.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from casstore.errors import ServiceError
from casstore_orchestrator.executors.probe import layered, top_level
from casstore_orchestrator.ports import Layout, TaskLaunch

__all__ = [
    "COMMANDS",
    "HOME",
    "LAYOUT",
    "PATH",
    "WORKSPACE",
    "Plan",
    "View",
    "layer_source",
    "machine_view",
    "make_home",
    "plan_mounts",
]

LAYOUT = Layout(data="/osmo/data", input="/osmo/data/input", output="/osmo/data/output")
WORKSPACE = "/osmo/run/workspace"
COMMANDS = "/osmo/usr/bin"
HOME = "/root"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_INIT = "/osmo/run/task_init.py"
_CONTROL_FD, _LAUNCH_FD, _INFO_FD = 3, 4, 5

# What a container engine leaves to root in a container; nothing that reaches the machine outside.
_CAPABILITIES = (
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip

# Secrets of the machine that its root could read; a task that runs as that root must not.
_SYSTEM_SECRETS = (
    "/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/ssh", "/etc/ssl/private", "/etc/sudoers",
    "/etc/sudoers.d", "/etc/kubernetes", "/etc/rancher", "/etc/krb5.keytab", "/var/lib/kubelet", "/var/lib/docker",
    "/var/lib/containerd", "/var/lib/containers", "/var/spool/cron",
)  # fmt: skip

# Settings and doors of the kernel: root may write the former, capabilities or not; the latter tell of the machine.
_KERNEL_READ_ONLY = ("/proc/acpi", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_KERNEL_HIDDEN = (
    "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
    "/proc/timer_list", "/sys/firmware",
)  # fmt: skip

# Programs that people keep in their home; no secrets are kept there.
_HOME_PROGRAMS = (
    ".cargo/bin", ".local/bin", ".local/lib", ".local/pipx", ".local/share/uv", ".nvm", ".pyenv", ".rustup/toolchains",
    "anaconda3", "go/bin", "mambaforge", "miniconda3", "miniforge3",
)  # fmt: skip

# Where this program keeps its configuration, its state and its sockets.
_OWN_FOLDERS = ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "OSMO_CONFIG_FILE_DIR", "OSMO_CONFIG_DIR")

# Folders of which the sandbox has its own, and nothing of the machine's.
_PRIVATE = ("/home", "/root", "/run", "/tmp", "/var/tmp")  # noqa: S108  names, no file is made in them

_GPU_DEVICES = ("nvidia", "dri", "kfd")


@dataclass(frozen=True, slots=True)
class View:
    """What every task on this machine sees of it: top-level folders and links, exposed and hidden paths."""

    folders: tuple[str, ...]
    plain_folders: tuple[str, ...]
    links: tuple[tuple[str, str], ...]
    exposed: tuple[str, ...]
    hidden: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Arguments of bubblewrap before and after those of the layered folders, the folders to lay, and the inputs to lay:
    (name of the layer, what lies below it).
    """

    before: tuple[str, ...]
    folders: tuple[str, ...]
    after: tuple[str, ...]
    layers: str
    inputs: tuple[tuple[str, str], ...] = ()


def _user_homes() -> list[str]:
    homes = {os.path.realpath(os.path.expanduser("~"))}
    with contextlib.suppress(KeyError):
        homes.add(os.path.realpath(pwd.getpwuid(os.geteuid()).pw_dir))
    return sorted(home for home in homes if home != "/" and os.path.isdir(home))


def _own_packages() -> list[str]:
    found = []
    for name in ("casstore", "casstore_cli", "casstore_orchestrator", "casstore_server"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            found.append(os.path.dirname(spec.origin))
    return found


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _within(path: str, folders: Iterable[str]) -> bool:
    return any(_below(path, folder) for folder in folders)


def machine_view(hidden: Iterable[Path], exposed: Iterable[Path]) -> View:
    """Look at the machine; ``hidden`` and ``exposed`` are the operator's additions."""
    folders, links = top_level()
    homes = _user_homes()
    absent = [*_PRIVATE, *homes]
    secret = [*homes, *(os.path.realpath(path) for path in hidden), *_SYSTEM_SECRETS]
    secret += [os.path.realpath(os.environ[name]) for name in _OWN_FOLDERS if os.environ.get(name)]
    # Folders with programs, and what this very program consists of, if they are where nothing would be seen.
    programs = [sys.prefix, sys.base_prefix, *_own_packages()]
    programs += [os.path.join(home, name) for home in homes for name in _HOME_PROGRAMS]
    wanted = [path for path in map(os.path.realpath, programs) if _within(path, absent) and path not in absent]
    wanted += [os.path.realpath(path) for path in exposed]
    show = {path for path in wanted if os.path.exists(path)}
    over = layered(folders, unseen=[path for path in secret if os.path.isdir(path)])
    hide = {path for path in secret if os.path.lexists(path) and not _within(path, _PRIVATE)}
    return View(
        folders=tuple(over),
        plain_folders=tuple(folder for folder in folders if folder not in over),
        links=tuple(links.items()),
        exposed=tuple(sorted(path for path in show if not _within(path, show - {path}))),
        hidden=tuple(sorted(hide)),
    )


def make_home(home: Path) -> None:
    """Create the folders of an attempt; an attempt that restarts in place finds its own again."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o700)
        for name in ("data/input", "data/output", "tmp", "var_tmp", "run/workspace", "run/bin", "layers", "root"):
            (home / name).mkdir(parents=True, exist_ok=True)
        for name in ("tmp", "var_tmp"):
            (home / name).chmod(0o1777)
        # Whatever our umask: only the home itself is closed to others, and a task may become another user.
        for name in ("root", "run/workspace", "run/bin", "data", "data/input", "data/output"):
            (home / name).chmod(0o755)
    except OSError as error:
        raise ServiceError(f"the folder of a task can't be made: {error}") from error


def _skeleton(root: Path, links: Iterable[tuple[str, str]], points: Iterable[str]) -> None:
    """Make links and mount points in the task's root folder, following no link that an earlier run left there."""
    base = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name, target in links:
            with contextlib.suppress(FileExistsError):
                os.symlink(target, name, dir_fd=base)
        for point in points:
            current = os.dup(base)
            try:
                for part in point.strip("/").split("/"):
                    current = _step(current, part)
            finally:
                os.close(current)
    finally:
        os.close(base)


def _step(parent: int, name: str) -> int:
    """Open the folder ``name``, made if need be; whatever else has that name is put aside. Closes ``parent``."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        for _ in range(2):
            made = False
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=parent)
                made = True
            try:
                found = os.open(name, flags, dir_fd=parent)
                if made:
                    os.fchmod(found, 0o755)  # whatever our umask
                return found
            except OSError:
                os.rename(name, f"{name}.displaced", src_dir_fd=parent, dst_dir_fd=parent)
        raise ServiceError(f"the mount point {name} of a task can't be made")
    finally:
        os.close(parent)


def _hide(paths: Sequence[str], shown: Sequence[str]) -> list[str]:
    arguments: list[str] = []
    covered: list[str] = []
    for path in paths:
        if not _within(path, shown) or _within(path, covered):
            continue
        if os.path.isdir(path):
            covered.append(path)
            arguments += ["--perms", "0755", "--tmpfs", path]
        else:
            arguments += ["--ro-bind", "/dev/null", path]
    return arguments


def _names(view: View, hosts: Path, resolver: Path | None) -> list[str]:
    """How names are resolved."""
    arguments: list[str] = []
    if os.path.lexists("/etc/hosts") or "/etc" in view.folders:
        arguments += ["--ro-bind", str(hosts), "/etc/hosts"]
    if resolver is not None and os.path.lexists("/etc/resolv.conf"):
        # Often a link into /run, which is the task's own and empty: then the file is made there.
        arguments += ["--ro-bind", str(resolver), os.path.realpath("/etc/resolv.conf")]
    return arguments


def _gpu_devices() -> list[str]:
    arguments: list[str] = []
    for name in sorted(os.listdir("/dev")):
        if name.startswith(_GPU_DEVICES):
            arguments += ["--dev-bind-try", f"/dev/{name}", f"/dev/{name}"]
    return arguments


def layer_source(home: Path, source: Path) -> str:
    """The folder below an input's layer, as seen from the layers: without what is in the path of the homes."""
    return os.path.relpath(source.resolve(), home.resolve() / "layers")


def plan_mounts(launch: TaskLaunch, view: View, hosts: Path, resolver: Path | None, init: Path, python: str) -> Plan:
    """The sandbox of one attempt, whose home ``make_home`` has made. Creates mount points; mounts nothing.

    ``hosts`` and ``resolver`` are what the task finds as ``/etc/hosts`` and, unless None, ``/etc/resolv.conf``.
    """
    home = launch.home.resolve()
    shown = (*view.folders, *view.plain_folders)
    inputs = sorted(entry.name for entry in (home / "data/input").iterdir())
    points = [LAYOUT.input, LAYOUT.output, WORKSPACE, COMMANDS, "/osmo/login/config", HOME, "/tmp", "/run", "/home"]  # noqa: S108
    points += ["/proc", "/dev", "/sys", *shown]
    points += [path for path in view.exposed if os.path.isdir(path) and not _within(path, (*shown, "/tmp", "/run"))]  # noqa: S108
    _skeleton(home / "root", view.links, points)

    before = ["--bind", str(home / "root"), "/"]
    for folder in view.plain_folders:
        before += ["--ro-bind", folder, folder]
    devices = ["--dev-bind", "/dev", "/dev"] if launch.privileged else ["--dev", "/dev"]
    after = ["--ro-bind", "/sys", "/sys", "--proc", "/proc", *devices]
    for path in _KERNEL_READ_ONLY:
        if os.path.exists(path):
            after += ["--ro-bind", path, path]
    after += _hide([path for path in _KERNEL_HIDDEN if os.path.exists(path)], ("/proc", "/sys"))
    if launch.gpu > 0:
        after += _gpu_devices()
    after += ["--bind", str(home / "tmp"), "/tmp", "--tmpfs", "/run"]  # noqa: S108  the task's own
    if "/var" in shown and os.path.isdir("/var/tmp"):  # noqa: S108
        after += ["--bind", str(home / "var_tmp"), "/var/tmp"]  # noqa: S108  the task's own
    after += _hide([*view.hidden, str(home)], shown)
    for path in view.exposed:
        after += ["--ro-bind", path, path]
    after += ["--bind", str(home / "data"), LAYOUT.data, "--bind", str(home / "data/input"), LAYOUT.input]
    for name in inputs:
        kind = "--ro-bind" if launch.read_only_inputs else "--bind"
        after += [kind, str(home / "data/input" / name), f"{LAYOUT.input}/{name}"]
    laid: list[tuple[str, str]] = []
    for number, layer in enumerate(launch.layers):
        name = f"input@{number}"
        laid.append((name, layer_source(home, layer.source)))
        kind = "--ro-bind" if launch.read_only_inputs else "--bind"
        after += [kind, str(home / "layers" / name), f"{LAYOUT.input}/{layer.at}"]
    after += ["--bind", str(home / "data/output"), LAYOUT.output]
    after += ["--bind", str(home / "run/workspace"), WORKSPACE, "--ro-bind", str(home / "run/bin"), COMMANDS]
    for source, target in launch.volumes:
        after += ["--bind", source, target]
    after += ["--ro-bind", str(init), _INIT]
    after += _names(view, hosts, resolver)
    after += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    after += ["--hostname", launch.name, "--die-with-parent", "--as-pid-1", "--new-session", "--clearenv"]
    after += ["--cap-drop", "ALL"]
    for capability in ("ALL",) if launch.privileged else _CAPABILITIES:
        after += ["--cap-add", capability]
    after += ["--chdir", "/", "--info-fd", str(_INFO_FD), "--"]
    after += [python, "-I", "-S", _INIT, str(_CONTROL_FD), str(_LAUNCH_FD)]
    return Plan(tuple(before), view.folders, tuple(after), str(home / "layers"), tuple(laid))
