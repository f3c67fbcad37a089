"""The user's own workflow server: where it listens, and how it is started, stopped and found.

Decided here and only here: the path of the socket, who starts the server and when it counts as ready, and
what is said when it does not start. Two commands that need it at once start one: the second waits for the
first's lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from casstore import __version__
from casstore.config import Config, Paths
from casstore.errors import CancelledError, CasstoreError, ServiceError, UsageError
from casstore.wire.cluster import ServerReply, TasksEnded
from casstore.wire.local import (
    ERROR_PREFIX,
    HINT_PREFIX,
    LOG_FILE,
    MAX_SOCKET_PATH,
    PID_FILE,
    PROGRESS_PREFIX,
    READY,
    START_LOCK_FILE,
)
from casstore_cli import output
from casstore_cli.client import Client, Target

__all__ = [
    "Options",
    "Place",
    "ask",
    "check_installed",
    "command_line",
    "connect",
    "ensure",
    "find_place",
    "is_installed",
    "log_tail",
    "running_pid",
    "start",
    "stop",
]

START_TIMEOUT_S = 30.0
"""A start takes about a second; on a busy machine it may take several."""
STOP_TIMEOUT_S = 15.0
"""How long a server may take to end, besides the time that it gives to open replies, before it is killed."""
ENDING_TIMEOUT_S = 5.0
"""How long a start waits for a server that is about to end."""
_LOG_TAIL_LINES = 12
_INSTANCE = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)
Options = Mapping[str, object]
"""What the user gave on the command line of the server's settings; None for what was not given."""
_GIVEN_NONE: Options = {}


class Place(NamedTuple):
    """Where the server of this user, with this state folder, is."""

    socket_path: str
    state_dir: str
    user: str
    instance: str = ""

    @property
    def pid_file(self) -> str:
        """Locked by a running server."""
        return self._own(PID_FILE)

    @property
    def log_file(self) -> str:
        """What a server in the background writes."""
        return self._own(LOG_FILE)

    def _own(self, name: str) -> str:
        return os.path.join(self.state_dir, f"{name}.{self.instance}" if self.instance else name)


def find_place(config: Config, instance: str = "") -> Place:
    """Where the server is, or would be; nothing is made.

    The socket's name tells apart several state folders, and several servers of one.
    """
    if instance and not _INSTANCE.fullmatch(instance):
        raise UsageError(f"'{instance}' can't be the name of a server: letters, digits, '_' and '-' only, at most 32")
    return Place(_socket_path(config.paths, instance), config.paths.state, config.user, instance)


def connect(place: Place) -> Client:
    """A client of the server at ``place``, running or not."""
    return Client(Target(place.user, socket_path=place.socket_path), on_warning=output.warn)


def ensure(config: Config) -> Client:
    """A client of the running server, which is started in the background when there is none.

    A server of another version is replaced when nothing runs or waits in it; otherwise the user is warned.
    Raises ``ServiceError`` with the end of its log when it does not start.
    """
    place = find_place(config)
    client = connect(place)
    version = client.probe()
    if version is None:
        start(config)
    elif version != __version__:
        _replace(config, client)
    return client


def start(config: Config, options: Options = _GIVEN_NONE, *, instance: str = "") -> bool:
    """Start the server in the background and wait until it answers; False when one was running already."""
    place = find_place(config, instance)
    _private(place.state_dir)
    _private(os.path.dirname(place.socket_path))
    with _locked(os.path.join(place.state_dir, START_LOCK_FILE)):
        if connect(place).probe() is not None:
            return False
        _wait_for_the_last(place)
        _spawn(config, place, options)
    return True


def _wait_for_the_last(place: Place) -> None:
    """A server that runs and does not answer is about to end; or its socket was removed, and nobody can reach it."""
    deadline = time.monotonic() + ENDING_TIMEOUT_S
    while (pid := running_pid(place)) is not None:
        if time.monotonic() > deadline:
            raise ServiceError(
                f"Your server (process {pid}) runs, but its socket {place.socket_path} is gone",
                hint="End it with 'osmo server stop': what runs goes on, and the next one takes it up.",
            )
        time.sleep(0.05)


def command_line(config: Config, options: Options = _GIVEN_NONE, *, instance: str = "") -> list[str]:
    """What starts the server in the foreground. ``-P`` keeps the current folder out of the module path."""
    place = find_place(config, instance)
    _private(place.state_dir)
    _private(os.path.dirname(place.socket_path))
    paths = config.paths
    found = {
        "socket-path": place.socket_path,
        "state-dir": place.state_dir,
        "config-file": paths.config_file,
        "data-dir": paths.data,
        "cache-dir": paths.cache,
        "user": config.user,
    }
    line = [sys.executable, "-P", "-m", "casstore_server"]
    if instance:
        found["instance"] = instance
    line += [f"--{name}={value}" for name, value in found.items()]
    return line + [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]


def ask(config: Config, action: str, options: Options = _GIVEN_NONE, *, flags: Sequence[str] = ()) -> dict[str, Any]:
    """Have the server's program do something else than serve, such as ``config`` or ``backup``; what it says.

    Raises the error that it says.
    """
    check_installed()
    done = subprocess.run(
        [*command_line(config, options), f"--action={action}", *flags],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    raise _refused(done.returncode, done.stderr)


def follow(
    config: Config, action: str, told: Callable[[dict[str, Any]], None], *, flags: Sequence[str] = ()
) -> dict[str, Any]:
    """As ``ask``, for what takes long: ``told`` is called with each thing that it says on its way.

    An interrupt ends it in good order, and is raised as what it says then.
    """
    check_installed()
    line = [*command_line(config, _GIVEN_NONE), f"--action={action}", *flags]
    other = b""
    with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while True:
            try:
                said = process.stderr.readline() if process.stderr else b""
                if not said:
                    break
                if said.startswith(PROGRESS_PREFIX.encode()):
                    told(json.loads(said.removeprefix(PROGRESS_PREFIX.encode())))
                else:
                    other += said
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
        done = process.stdout.read() if process.stdout else b""
    if process.returncode == 0:
        found: dict[str, Any] = json.loads(done)
        return found
    raise _refused(process.returncode, other)


def _refused(code: int, output: bytes) -> CasstoreError:
    """What a program of the server's that ended with an error has said."""
    said = output.decode("utf-8", "replace").strip().splitlines()
    told = [line.removeprefix(ERROR_PREFIX) for line in said if line.startswith(ERROR_PREFIX)]
    hints = [line.removeprefix(HINT_PREFIX) for line in said if line.startswith(HINT_PREFIX)]
    kinds = {kind("").exit_code: kind for kind in (ServiceError, CancelledError)}
    kind = kinds.get(code, UsageError)
    return kind((told or said or [f"The server's program ended with {code}"])[-1], hint=" ".join(hints) or None)


def running_pid(place: Place) -> int | None:
    """The process id of the running server, None when there is none.

    The lock decides, not the file's content.
    """
    try:
        fd = os.open(place.pid_file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).strip()
        return int(text) if text.isdigit() else None
    finally:
        os.close(fd)
    return None


class Stopped(NamedTuple):
    """A server that was stopped. ``tasks`` ran in it; ``ended`` says that they were ended, with ``left`` groups of them
    that did not within the time; None: the server did not answer, so nobody knows.
    """

    tasks: int | None
    ended: bool = False
    left: int = 0


def stop(config: Config, *, tasks: bool = False, instance: str = "") -> Stopped | None:
    """End the server and wait until it is gone; None when none was running. With ``tasks`` what runs ends with it, and
    begins again with the next server; otherwise it goes on.
    """
    place = find_place(config, instance)
    pid = running_pid(place)
    if pid is None:
        return None
    stopped, patience = Stopped(None), STOP_TIMEOUT_S
    with contextlib.suppress(ServiceError):  # one that does not answer is ended all the same
        client = connect(place)
        found = client.get("api/v1/server", ServerReply)
        stopped, patience = Stopped(found.tasks), STOP_TIMEOUT_S + found.drain
        if tasks and stopped.tasks:
            left = client.post("api/v1/server/end-tasks", TasksEnded).left
            stopped = stopped._replace(ended=True, left=left)
    for number, limit in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if running_pid(place) != pid:
                return stopped
            time.sleep(0.02)
    raise ServiceError(f"The server (process {pid}) does not end")


def log_tail(place: Place, lines: int = _LOG_TAIL_LINES) -> list[str]:
    """The last lines of the log of the server."""
    try:
        with open(place.log_file, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 16384))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-lines:]


def _spawn(config: Config, place: Place, options: Options = _GIVEN_NONE) -> None:
    check_installed()
    reader, writer = os.pipe()
    log_start = os.path.getsize(place.log_file) if os.path.exists(place.log_file) else 0
    try:
        # The process detaches itself and its first half ends at once, so that nothing is left to wait for.
        subprocess.run(
            [*command_line(config, options, instance=place.instance), "--background", f"--ready-fd={writer}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(writer,),
            check=True,
        )
        os.close(writer)
        writer = -1
        ready, _, _ = select.select([reader], [], [], START_TIMEOUT_S)
        if ready and os.read(reader, 64) == READY:
            return
    except subprocess.CalledProcessError as exc:
        raise _refused(exc.returncode, exc.stderr) from exc
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if connect(place).probe() is not None:  # one that another tool started meanwhile
        return
    grown = os.path.exists(place.log_file) and os.path.getsize(place.log_file) > log_start
    tail = log_tail(place) if grown else []
    state = "ended while it started" if ready else f"did not answer within {START_TIMEOUT_S:g} s"
    told = [line.removeprefix(ERROR_PREFIX) for line in tail if line.startswith(ERROR_PREFIX)]
    hints = [line.removeprefix(HINT_PREFIX) for line in tail[-1:] if line.startswith(HINT_PREFIX)]  # this start's
    reason = (told or [line.strip() for line in tail] or [""])[-1]
    raise ServiceError(
        f"The server {state}" + (f": {reason}" if reason else ""),
        hint=" ".join([*hints[-1:], f"Its log is {place.log_file}"]),
    )


def _replace(config: Config, client: Client) -> None:
    """Replace a server of another version, under the lock: another command may be about to do the same."""
    place = find_place(config)
    with _locked(os.path.join(place.state_dir, START_LOCK_FILE)):
        version = client.probe()
        if version == __version__:
            return
        if version is not None:
            state = client.get("api/v1/server", ServerReply)
            if state.running or state.pending:
                output.warn(
                    f"the running server is version {version} and this command {__version__}; "
                    "run 'osmo server stop' when your workflows are done"
                )
                return
            output.message(f"Restarting the server: it is version {version}, this command {__version__}.")
            stop(config)
        _spawn(config, place)


def check_installed() -> None:
    """Raise ``UsageError`` when something is missing that the server needs."""
    missing = _missing()
    if missing:
        raise UsageError(
            f"Workflows need packages that are not installed: {', '.join(missing)}",
            hint="Install them with: pip install 'casstore[workflow]'",
        )


def is_installed() -> bool:
    """Whether a server can run here."""
    return not _missing()


def _missing() -> list[str]:
    from importlib.util import find_spec

    needed = ("cryptography", "fastapi", "sqlalchemy", "uvicorn", "alembic", "jinja2", "websockets")
    return [name for name in needed if not find_spec(name)]


@contextlib.contextmanager
def _locked(path: str) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _socket_path(paths: Paths, instance: str = "") -> str:
    """In the runtime folder; where that makes too long a path, in a short folder of the user's under /tmp."""
    mark = hashlib.sha256(os.fsencode(os.path.realpath(paths.state))).hexdigest()[:8]
    name = f"server-{mark}-{instance}.sock" if instance else f"server-{mark}.sock"
    path = os.path.join(paths.runtime, name)
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    return f"/tmp/casstore-{os.getuid()}/{name}"  # noqa: S108  # made 0700 and checked for its owner below


def _private(path: str) -> None:
    """Make a folder that only this user can enter; refuse one that belongs to somebody else."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError as exc:
        raise UsageError(f"Cannot make the folder {path}: {exc.strerror}") from exc
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UsageError(
            f"{path} is not a folder of yours, so the server can't listen in it",
            hint="Remove it, or set XDG_RUNTIME_DIR to a folder of your own.",
        )
    if found.st_mode & 0o077:
        os.chmod(path, 0o700)
