"""What this machine gives to sandboxes, found out by trying.

Decided here and only here: which isolation is used and the sentences that say why. The trial runs in a process of its
own (namespaces belong to threads, and a fork of a threaded server is not safe); the answer is kept for the life of
the process.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from casstore_orchestrator.executors.cgroups import MAX_PROCESSES, Bases
from casstore_orchestrator.executors.network import why_no_router

__all__ = ["Machine", "bare_python", "layer_main", "probe", "top_level", "trial_main", "why_no_layer"]

_TRIAL_SECONDS = 60.0
# Replaced in every sandbox: never taken from the machine.
_REPLACED = frozenset({"dev", "home", "lost+found", "proc", "root", "run", "sys", "tmp"})


@dataclass(frozen=True, slots=True)
class Machine:
    """The answer of the trial.

    ``sandbox``: bubblewrap works; ``user``: in a user namespace (no privilege needed); ``bridged``: one address a task;
    ``writable``: top-level folders over which a task gets a writable layer; ``bases``: where limits can be set;
    ``way_out``: groups can be given a way to other networks.
    ``reasons`` are sentences for the user; ``lacks`` are those of them that say what is missing.
    """

    sandbox: bool
    user: bool
    bridged: bool
    bwrap: str
    writable: tuple[str, ...]
    bases: Bases
    reasons: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    way_out: bool = False


def bare_python(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``module.main`` in a bare interpreter: no site-packages, no environment, quick."""
    package_root = str(Path(__file__).resolve().parents[2])
    name, _, function = module.partition(":")
    code = f"import sys; sys.path.insert(0, {package_root!r}); from {name} import {function}; {function}()"
    return [os.path.realpath(sys.executable), "-I", "-S", "-c", code, *arguments]


def top_level() -> tuple[list[str], dict[str, str]]:
    """The folders in ``/`` that a sandbox gets, and the links (name -> target)."""
    folders, links = [], {}
    for entry in sorted(os.scandir("/"), key=lambda item: item.name):
        if entry.is_symlink():
            links[entry.name] = os.readlink(entry.path)
        elif entry.is_dir() and entry.name not in _REPLACED:
            folders.append(entry.path)
    return folders, links


def layered(folders: list[str], unseen: Iterable[str] = ()) -> list[str]:
    """Those over which a layer makes sense: a folder with mounts of its own below would lose them.

    ``unseen``: folders that tasks find empty, whatever is mounted in them.
    """
    hidden = tuple(folder.rstrip("/") + "/" for folder in unseen)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        points = [point for line in lines if not f"{(point := line.split(' ')[4])}/".startswith(hidden)]
    return [folder for folder in folders if not any(point.startswith(f"{folder}/") for point in points)]


@functools.cache
def probe() -> Machine:
    """Try what this machine gives; cached."""
    return _probe(os.environ.get("PATH", os.defpath))


def _plain(*reasons: str) -> Machine:
    return Machine(sandbox=False, user=False, bridged=False, bwrap="", writable=(), bases=Bases(), reasons=reasons)


def _probe(path: str) -> Machine:
    if sys.platform != "linux":
        return _plain(f"{sys.platform} has no Linux namespaces")
    bwrap = shutil.which("bwrap", path=path)
    if bwrap is None:
        return _plain("bubblewrap (bwrap) is not installed: install the package 'bubblewrap' to isolate tasks")
    attempts = [False, True] if os.geteuid() == 0 else [True]
    failures: list[str] = []
    for user in attempts:
        found = _try(bwrap, user=user)
        if found.get("sandbox"):
            return _machine(bwrap, found, user=user)
        failures.append(str(found.get("error", "no answer")))
    how = "user namespaces are not allowed here" if os.geteuid() else "this container does not allow namespaces"
    hint = (
        "; on Ubuntu, 'sysctl kernel.apparmor_restrict_unprivileged_userns=0' or an AppArmor profile allows them"
        if os.path.exists("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
        else ""
    )
    return _plain(f"{how} ({failures[-1]}){hint}")


def _machine(bwrap: str, found: dict[str, object], *, user: bool) -> Machine:
    raw, writable = found.get("bases"), found.get("writable")
    bases = Bases(*raw) if isinstance(raw, list) else Bases()
    folders = tuple(writable) if isinstance(writable, list) else ()
    bridged = bool(found.get("bridged"))
    lacks: list[str] = []
    reasons = [
        "own mounts, processes, IPC, host name and /tmp for every task, by bubblewrap"
        + (" in a user namespace" if user else " as root without a user namespace"),
    ]
    no_router = why_no_router()
    if bridged:
        reasons.append("own network for every group, one address a task")
        if no_router:
            lacks.append(f"nothing outside the group can be reached: {no_router}")
        else:
            reasons.append(
                "a way out for groups whose pool allows it, by slirp4netns; never to this machine's loopback"
            )
    else:
        lacks.append(
            "tasks of a group share one network and its ports: this kernel refused a bridge "
            f"({found.get('bridge_error', 'no reason given')}); nothing outside the group can be reached"
        )
    if bases.memory and bases.cpu:
        reasons.append(f"memory limits and CPU weights by control groups, version {bases.version}")
    elif bases.memory or bases.cpu:
        kind, other = ("memory", "CPU") if bases.memory else ("CPU", "memory")
        lacks.append(f"{kind} limits by control groups, version {bases.version}; {other} is not limited")
    else:
        lacks.append("memory and CPU are not limited: no control group is writable for this user")
    if bases.pids:
        reasons.append(f"at most {MAX_PROCESSES} processes and threads a task")
    elif user:
        reasons.append(f"at most {MAX_PROCESSES} processes and threads a group")
    else:
        lacks.append("the number of processes is not limited")
    if folders:
        reasons.append(f"writable layers, private to the task, over {' '.join(folders)}")
    else:
        lacks.append("the folders of this machine are read-only: layers over them are refused here")
    return Machine(
        sandbox=True,
        user=user,
        bridged=bridged,
        bwrap=bwrap,
        writable=folders,
        bases=bases,
        reasons=(*reasons, *lacks),
        lacks=tuple(lacks),
        way_out=bridged and not no_router,
    )


def _try(bwrap: str, *, user: bool) -> dict[str, object]:
    command = bare_python("casstore_orchestrator.executors.probe:trial_main", bwrap, "user" if user else "root")
    with tempfile.TemporaryDirectory(prefix="casstore-trial-") as folder:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=folder,
                env={"PATH": os.environ.get("PATH", os.defpath)},
                timeout=_TRIAL_SECONDS,
                check=False,
            )
            return dict(json.loads(done.stdout.splitlines()[-1]))
        except (OSError, ValueError, IndexError) as error:
            return {"error": f"the trial failed: {error}"}
        except subprocess.TimeoutExpired:
            return {"error": f"the trial took more than {_TRIAL_SECONDS:.0f} seconds"}


def why_no_layer(source: str, layers: str, *, user: bool) -> str:
    """Why ``source`` (relative to ``layers``) can't lie below an input that tasks may change; empty when it can.

    Tried once for folders of the same file system, and once for those of another one, which is a mount of ours.
    """
    try:
        device = os.stat(layers).st_dev
        key = (device, os.stat(os.path.join(layers, source)).st_dev == device, user)
    except OSError as error:
        return f"it can't be looked at: {error.strerror}"
    with _layers_lock:
        if key not in _layers_tried:
            _layers_tried[key] = _try_layer(source, layers, user=user)
        return _layers_tried[key]


_layers_lock = threading.Lock()
_layers_tried: dict[tuple[int, bool, bool], str] = {}


def _try_layer(source: str, layers: str, *, user: bool) -> str:
    command = bare_python("casstore_orchestrator.executors.probe:layer_main", source, "user" if user else "root")
    with tempfile.TemporaryDirectory(prefix="trial-", dir=layers) as folder:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=folder,
                env={},
                timeout=_TRIAL_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"a trial failed: {error}"
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return "" if done.returncode == 0 else (said or [f"a trial ended with {done.returncode}"])[-1]


def layer_main() -> None:
    """In a process of its own, in an empty folder of the layers: lay one over a folder, and write to it."""
    from casstore_orchestrator.executors import supervise, syscalls  # noqa: PLC0415

    here = os.getcwd()
    user = sys.argv[2] == "user"
    try:
        if user:
            supervise.enter_user_namespace()
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
        supervise.lay_inputs([["trial", os.path.join("..", sys.argv[1])]], here, user=user)
        with os.scandir("trial") as entries:
            next(entries, None)
        with open("trial/.written", "wb") as file:
            file.write(b"x")
        os.unlink("trial/.written")
        with contextlib.suppress(OSError):
            os.rmdir("trial.work/work")
    except OSError as error:
        sys.exit(f"an overlay can't be laid over it ({error})")


def trial_main() -> None:
    """In a process of its own, in an empty folder: try everything and print one line of JSON."""
    bwrap, user = sys.argv[1], sys.argv[2] == "user"
    answer: dict[str, object] = {}
    try:
        _trial(bwrap, answer, user=user)
    except OSError as error:
        answer["error"] = str(error)
    sys.stdout.write(json.dumps(answer) + "\n")


def _trial(bwrap: str, answer: dict[str, object], *, user: bool) -> None:
    # Linux only, and needs the C library: not for whoever merely imports this module.
    from casstore_orchestrator.executors import cgroups, network, supervise, syscalls  # noqa: PLC0415

    bases = cgroups.find_bases()
    answer["bases"] = [bases.version, bases.memory, bases.cpu, bases.pids]
    if user:
        supervise.enter_user_namespace()
    syscalls.unshare(syscalls.CLONE_NEWNET)
    try:
        trial_network = network.GroupNetwork(bridged=True)
        namespace = trial_network.join(0, 0)
        if namespace is not None:
            os.close(namespace)
        answer["bridged"] = True
    except OSError as error:
        answer["bridge_error"] = str(error)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    folders, links = top_level()
    here = os.getcwd()
    os.mkdir("layers")
    os.mkdir("root")
    for name, target in links.items():
        os.symlink(target, os.path.join("root", name))
    wanted = layered(folders)
    laid = supervise.lay_folders(wanted, os.path.join(here, "layers"), user=user)
    answer["writable"] = [laid[i + 2] for i in range(0, len(laid), 3) if laid[i] == "--bind"]
    arguments = ["--bind", os.path.join(here, "root"), "/", *laid]
    arguments += ["--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--hostname", "trial"]
    arguments += ["--proc", "/proc", "--dev", "/dev", "--die-with-parent", "--as-pid-1", "--cap-drop", "ALL"]
    done = subprocess.run(
        [bwrap, *arguments, "/bin/sh", "-c", "test $$ = 1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={},
        check=False,
    )
    os.chdir("/")
    with contextlib.suppress(OSError):
        for name in os.listdir(os.path.join(here, "layers")):
            if name.endswith(".work"):
                os.rmdir(os.path.join(here, "layers", name, "work"))
    if done.returncode == 0:
        answer["sandbox"] = True
    else:
        answer["error"] = done.stderr.decode(errors="replace").strip() or f"bwrap ended with {done.returncode}"
