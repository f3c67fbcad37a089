"""Folders that can be written to: the version below, the changes above.

Decided here and only here: who lays the one over the other (overlayfs where this process may mount, ``fuse-overlayfs``
where that is installed, else nobody), and how long changes are kept: until they were committed or thrown away. They
belong to the folder that was mounted at, and to one version.

    <layer>/upper       the changes
    <layer>/work        overlayfs's own
    <layer>/layer.json  what they are changes of
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import subprocess

import msgspec

from casstore.dataset.layer import mark_of
from casstore.errors import AccessError, ConflictError, StorageError, UsageError
from casstore.structs import from_json

__all__ = ["Layer", "check", "discard", "has_changes", "lay", "prepare", "read", "write"]

_MS_NOSUID, _MS_NODEV = 2, 4
_libc = ctypes.CDLL(None, use_errno=True)
_AWKWARD = re.compile(r"[,:\\\n]")
_HELPER = "fuse-overlayfs"


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What changes are changes of. ``committed`` is the version that was last made of them, and ``mark`` what
    ``casstore.dataset.layer.mark_of`` said of them then. ``named``: they were made through ``fuse-overlayfs``.
    """

    path: str
    bucket: str
    dataset: str
    version: int
    manifest: str
    committed: int | None = None
    mark: str = ""
    named: bool = False

    def __str__(self) -> str:
        return f"{self.bucket}/{self.dataset}:{self.version}"


def read(folder: str) -> Layer | None:
    """Return what the changes in this folder are changes of, None without any."""
    try:
        with open(os.path.join(folder, "layer.json"), "rb") as file:
            return from_json(file.read(1 << 20), Layer)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise StorageError(f"can't read {folder}/layer.json: {error}") from None


def write(folder: str, layer: Layer) -> None:
    """Note what the changes in this folder are changes of."""
    temporary = os.path.join(folder, f"layer.json.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(msgspec.json.encode(layer))
    os.replace(temporary, os.path.join(folder, "layer.json"))


def prepare(folder: str, layer: Layer) -> bool:
    """Make the folder for changes of a version, or find them there; whether there are any.

    What was committed is gone. ``ConflictError`` when there are changes of another version.
    """
    before = read(folder) if has_changes(folder) else None
    if before is not None and (before.bucket, before.dataset, before.manifest) != (
        layer.bucket,
        layer.dataset,
        layer.manifest,
    ):
        raise ConflictError(
            f"there are changes to {before} for {layer.path} that were not committed",
            hint=f"osmo dataset commit {layer.path} makes a version of them, and with --discard throws them away",
        )
    if before is None:
        discard(folder)
        try:
            os.makedirs(os.path.join(folder, "upper"), mode=0o755)
            os.makedirs(os.path.join(folder, "work"), mode=0o700)
        except OSError as error:
            raise StorageError(f"can't make the folder {folder}: {error.strerror}") from None
        os.chmod(folder, 0o700)
        write(folder, layer)
    return before is not None


def has_changes(folder: str) -> bool:
    """Whether there are changes that no version was made of."""
    layer = read(folder)
    upper = os.path.join(folder, "upper")
    if layer is None or not os.path.isdir(upper):
        return False
    with os.scandir(upper) as entries:
        if next(entries, None) is None:
            return False
    return layer.committed is None or layer.mark != mark_of(os.fsencode(upper))


def discard(folder: str) -> None:
    """Throw the changes away. They must not be mounted."""

    def again(function: object, path: str, error: object) -> None:
        # overlayfs leaves folders that not even their owner may enter.
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(path), stat.S_IRWXU)
            os.chmod(path, stat.S_IRWXU)
            shutil.rmtree(path, ignore_errors=True)

    shutil.rmtree(folder, onerror=again)
    if os.path.lexists(folder):
        shutil.rmtree(folder, ignore_errors=True)
    if os.path.lexists(folder):
        raise StorageError(f"can't remove {folder}", hint="remove it by hand, as root if need be")


def check() -> None:
    """``AccessError`` where nobody can make a writable folder."""
    if os.geteuid() != 0 and shutil.which(_HELPER) is None:
        raise AccessError(
            "only root can make a writable mount here",
            hint="install the package fuse-overlayfs, which does so for users; or copy: osmo dataset download",
        )


def lay(lower: str, folder: str, path: str, source: str) -> bool:
    """Lay the changes in ``folder`` over ``lower`` at ``path``; whether the kernel holds ``lower`` by itself now.

    ``AccessError`` where it is not possible, else ``StorageError``.
    """
    upper, work = (os.path.join(folder, name) for name in ("upper", "work"))
    for place in (lower, upper, work):
        if _AWKWARD.search(place):
            raise UsageError(f"{place!r}: overlays can't have such a name", hint="set XDG_STATE_HOME to another folder")
    number = errno.EPERM
    if os.geteuid() == 0:
        # Changes are plain files and folders, so that they can be read without the overlay.
        options = f"lowerdir={lower},upperdir={upper},workdir={work},index=off,metacopy=off,xino=off,"
        for more in ("redirect_dir=off", "userxattr"):  # the second one for root of a user namespace
            data = os.fsencode(options + more)
            if not _libc.mount(source.encode(), os.fsencode(path), b"overlay", _MS_NOSUID | _MS_NODEV, data):
                return True
            number = ctypes.get_errno()
            if number not in {errno.EPERM, errno.EACCES, errno.EINVAL}:
                break
    helper = shutil.which(_HELPER)
    if helper is not None:
        command = [helper, "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", path]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if not done.returncode:
            return False
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise AccessError(f"can't make {path} writable: {reason[-1] if reason else 'fuse-overlayfs failed'}")
    if number in {errno.EPERM, errno.EACCES}:
        check()
        raise AccessError(f"can't make {path} writable: this process may not mount overlays")
    raise StorageError(
        f"can't make {path} writable: {os.strerror(number)}",
        hint=f"changes are kept in {folder}; that must not lie on an overlay or on the network: see XDG_STATE_HOME",
    )
