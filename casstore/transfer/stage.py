"""Where a download lands, and how it gets there whole.

Decided here and only here: where files are written before they are where the user wants them, what is left of an
interrupted download, and when what is left may be trusted.

    <parent>/.<name>.casstore-partial/   held by a lock (flock) while a download runs
        state                            the version, and the boot during which everything was written
        tree/                            the new folder, renamed to <parent>/<name> in the end
        tmp/                             files on their way into a folder that has content already

A new folder appears whole or not at all. Into a folder with content, files are renamed one by one. A file of a state
that was written since the machine started is trusted by its size and modification time, which is set last; after a
crash of the machine its blocks may be missing all the same, and so its content is compared.
"""

from __future__ import annotations

import fcntl
import os
import stat
from types import TracebackType
from typing import Self

import msgspec

from casstore import hashing
from casstore.errors import ConflictError, NotFoundError
from casstore.structs import from_json
from casstore.transfer.safefs import NAME_MAX, Confined, local_error, show

__all__ = ["INSIDE", "Landing", "staging_name"]

_SUFFIX = b".casstore-partial"
INSIDE = b".casstore-partial"
"""The staging folder of a download into a folder that nothing can be put beside."""
_TREE, _TMP, _STATE = b"tree", b"tmp", b"state"


class State(msgspec.Struct, frozen=True):
    """What a staging folder holds: a version (manifest id), and the boot in which all of it was written."""

    manifest: str
    boot: str


def staging_name(name: bytes) -> bytes:
    """Return the name of the staging folder beside the folder ``name``."""
    if len(name) + len(_SUFFIX) + 1 > NAME_MAX:
        name = name[:128] + b"-" + hashing.digest(name).hex()[:32].encode()
    return b"." + name + _SUFFIX


def _boot() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""  # never trusted: where the boot is unknown, contents are compared


class Landing:
    """The folder that a download writes to. Use as a context manager; call ``finish`` when everything is there.

    ``root``: write here. ``fresh``: nothing is there yet. ``in_place``: this is the user's folder itself, so that files
    go through ``temporary`` and a rename. ``trusted``: what has the right size and modification time is complete.
    ``lost``: permission bits that new files do not get (umask, default ACL). ``folds``: the file system takes
    different names for the same.
    """

    root: Confined
    fresh: bool
    in_place: bool
    trusted: bool
    temporary: Confined | None
    lost: int
    folds: bool

    def __init__(self, dest: str | bytes, manifest: bytes, *, resume: bool) -> None:
        """Prepare to write the version ``manifest`` to the folder ``dest``, whose parent exists.

        ``ConflictError`` for a folder with content (unless ``resume``), a link, a file, or a second download to the
        same place; ``NotFoundError`` without a parent.
        """
        self._shown = show(os.fsencode(dest))
        self._manifest = manifest.hex()
        self._name = b""
        self._finished = False
        self._mode: int | None = None
        self._open: list[Confined] = []
        try:
            self._parent = self._keep(self._open_parent(os.fsencode(dest)))
            self._prepare(resume=resume)
        except OSError as error:
            self.close()
            raise local_error(error, os.fsencode(dest)) from None
        except BaseException:
            self.close()
            raise

    def _keep(self, folder: Confined) -> Confined:
        self._open.append(folder)
        return folder

    def _open_parent(self, dest: bytes) -> Confined:
        parent, name = os.path.split(dest.rstrip(b"/") or b"/")
        if name in (b"", b".", b".."):
            parent, name = os.path.split(os.path.realpath(dest))
        if not name:
            raise ConflictError(f"{self._shown} can't be the folder of a dataset", hint="name a folder below it")
        self._name = name
        try:
            return Confined(os.open(parent or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFoundError(f"the folder {show(parent)} does not exist", hint="create it first") from None

    def _prepare(self, *, resume: bool) -> None:
        status = self._parent.stat(self._name)
        existing: Confined | None = None
        if status is not None:
            if not stat.S_ISDIR(status.st_mode):
                what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "a file"
                raise ConflictError(f"{self._shown} is {what}, not a folder", hint="choose another destination")
            self._mode = stat.S_IMODE(status.st_mode)
            existing = self._keep(Confined(os.dup(self._parent.directory(self._name))))
        empty = existing is None or not _listing(existing)
        if not empty and not resume:
            raise ConflictError(
                f"{self._shown} is not empty",
                hint="with --resume, files that are there and complete are kept, all others are replaced",
            )
        mounted = existing is not None and os.fstat(existing.descriptor).st_dev != self._device()
        if existing is None or (empty and not mounted and self._may_write_parent()):
            self._prepare_tree(resume=resume)
        else:
            self._prepare_in_place(existing, beside=not mounted and self._may_write_parent(), fresh=empty)

    def _device(self) -> int:
        return os.fstat(self._parent.descriptor).st_dev

    def _may_write_parent(self) -> bool:
        return os.access(b".", os.W_OK | os.X_OK, dir_fd=self._parent.descriptor, effective_ids=True)

    def _prepare_tree(self, *, resume: bool) -> None:
        self._lock(self._parent, staging_name(self._name))
        left = self._read_state()
        tree = self._staging.stat(_TREE)
        if tree is not None and not resume:
            clear(self._staging)
            tree = None
        self.fresh = tree is None
        self.in_place = False
        self.temporary = None
        boot = _boot()
        self.trusted = self.fresh or (left == State(self._manifest, boot) and bool(boot))
        # A state that was not trusted once stays so: what this run does not reach is still unknown.
        self._write_state(State(self._manifest, boot if self.trusted else ""))
        if self.fresh:
            self._staging.mkdir(_TREE)
        self.root = self._keep(Confined(os.dup(self._staging.directory(_TREE))))
        self._probe()

    def _prepare_in_place(self, existing: Confined, *, beside: bool, fresh: bool) -> None:
        if beside:
            self._lock(self._parent, staging_name(self._name))
        else:
            self._lock(existing, INSIDE)
        self._staging.mkdir(_TMP, 0o700)
        self.temporary = self._keep(Confined(os.dup(self._staging.directory(_TMP))))
        clear(self.temporary)
        self.root = existing
        self.fresh = fresh
        self.in_place = True
        self.trusted = True
        self._probe()
        self.lost = 0o7777  # folders below may have default ACLs of their own: every file gets its bits explicitly

    def _lock(self, above: Confined, name: bytes) -> None:
        self._above, self._staging_name = above, name
        while True:
            above.mkdir(name, 0o700)
            folder = Confined(os.dup(above.directory(name)))
            above.forget(name)
            try:
                fcntl.flock(folder.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                folder.close()
                raise ConflictError(
                    f"another download to {self._shown} is running", hint="wait for it, or stop it first"
                ) from None
            # Whoever held it before may have finished and removed it between the two calls.
            status, own = above.stat(name), os.fstat(folder.descriptor)
            if status is not None and os.path.samestat(status, own):
                self._staging = self._keep(folder)
                if own.st_uid != os.geteuid() or own.st_mode & 0o022:
                    raise ConflictError(
                        f"somebody else may write to {show(name)} beside {self._shown}", hint="remove it first"
                    )
                return
            folder.close()

    def _read_state(self) -> State | None:
        try:
            descriptor = self._staging.open_file(_STATE)
        except OSError:
            return None
        try:
            return from_json(os.read(descriptor, 4096), State)
        except msgspec.MsgspecError:
            return None
        finally:
            os.close(descriptor)

    def _write_state(self, state: State) -> None:
        descriptor, path = self._staging.create_temporary()
        try:
            os.write(descriptor, msgspec.json.encode(state))
        finally:
            os.close(descriptor)
        self._staging.rename(path, self._staging, _STATE)

    def _probe(self) -> None:
        """Find out by trying what new files get, and which names are one to this file system."""
        token = os.urandom(4).hex()
        name = f".casstore-Prob\u00e9-{token}".encode()
        descriptor = self._staging.create(name, 0o777)
        try:
            self.lost = 0o777 & ~os.fstat(descriptor).st_mode
            others = (f".casstore-prob\u00e9-{token}", f".casstore-Probe\u0301-{token}")
            self.folds = any(self._staging.stat(other.encode()) is not None for other in others)
        finally:
            os.close(descriptor)
            self._staging.remove(name)

    def clock(self) -> int:
        """Return the time (ns) that the file system of the destination has now."""
        descriptor, name = self._staging.create_temporary()
        try:
            return os.fstat(descriptor).st_ctime_ns
        finally:
            os.close(descriptor)
            self._staging.remove(name)

    def finish(self) -> None:
        """Put the new folder into its place, and remove what was only needed on the way."""
        try:
            if not self.in_place:
                if self._mode is not None:
                    os.fchmod(self.root.descriptor, self._mode)
                self._staging.forget(_TREE)
                self._staging.rename(_TREE, self._parent, self._name)
            self._finished = True
            self._discard()
        except OSError as error:
            raise local_error(error, self._shown) from None

    def _discard(self) -> None:
        if self.temporary is not None:
            clear(self.temporary)
            self._staging.forget(_TMP)
        clear(self._staging)
        os.rmdir(self._staging_name, dir_fd=self._above.descriptor)

    def close(self) -> None:
        """Let go. An unfinished new folder stays where it is, for ``resume``."""
        try:
            if not self._finished and getattr(self, "temporary", None) is not None:
                self._discard()
        except OSError:
            pass  # the reason why the download failed matters more; the next one clears it
        for folder in reversed(self._open):
            folder.close()
        self._open.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _listing(folder: Confined) -> list[bytes]:
    # A descriptor of its own: listing moves the position of an open directory.
    descriptor = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder.descriptor)
    try:
        return [os.fsencode(name) for name in os.listdir(descriptor)]
    finally:
        os.close(descriptor)


def clear(folder: Confined) -> None:
    """Remove everything inside a folder, however deep: folders are moved up before they are emptied."""
    number = 0
    pending = _listing(folder)
    while pending:
        name = pending.pop()
        status = folder.stat(name)
        if status is None:
            continue
        if not stat.S_ISDIR(status.st_mode):
            folder.remove(name)
            continue
        folder.set_mode(name, 0o700)
        folder.forget(name)
        with Confined(os.dup(folder.directory(name))) as inner:
            for child in _listing(inner):
                below = inner.stat(child)
                if below is None or not stat.S_ISDIR(below.st_mode):
                    inner.remove(child)
                    continue
                inner.set_mode(child, 0o700)  # moving a folder writes to it
                number += 1
                moved = b".casstore-old-%d-%s" % (number, os.urandom(4).hex().encode())
                inner.rename(child, folder, moved)
                pending.append(moved)
        folder.forget(name)
        os.rmdir(name, dir_fd=folder.descriptor)
