"""Making a mount and taking it away.

Decided here and only here: who asks the kernel: ``mount(2)`` where this process may, else ``fusermount3``, which is
allowed to and hands over the descriptor.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import shutil
import socket
import subprocess
import tempfile

from casstore.errors import AccessError, CasstoreError, ConflictError, NotFoundError, StorageError, UsageError

__all__ = ["mount", "read_ahead", "unmount", "why_not"]

_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_libc = ctypes.CDLL(None, use_errno=True)


def mount(path: str, source: str) -> int:
    """Mount at an existing folder and return the descriptor to serve.

    Raises ``UsageError`` for a place that is no folder, ``AccessError`` where nobody may mount, else ``StorageError``.
    """
    if not os.path.isdir(path):
        raise UsageError(f"{path} is not a folder", hint="make it first, or choose another")
    if os.geteuid() == 0:
        return _mount_as_root(path, source)
    return _mount_by_helper(path, source)


def why_not() -> str:
    """Why this process can't mount, found out by mounting at a folder of its own; empty when it can."""
    if not os.path.exists("/dev/fuse"):
        return "this machine has no /dev/fuse"
    folder = tempfile.mkdtemp(prefix="casstore-")
    try:
        descriptor = mount(folder, "osmo:trial")
        try:
            unmount(folder, lazy=True)
        finally:
            os.close(descriptor)
    except (CasstoreError, OSError) as error:
        reason = error.message if isinstance(error, CasstoreError) else str(error)
        return reason.replace(folder, "a folder")
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return ""


def _mount_as_root(path: str, source: str) -> int:
    try:
        descriptor = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise AccessError(
            f"can't open /dev/fuse: {error.strerror}", hint="is FUSE available on this machine?"
        ) from None
    options = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=1048576"
    flags = _MS_RDONLY | _MS_NOSUID | _MS_NODEV
    failed = _libc.mount(source.encode(), os.fsencode(path), b"fuse.casstore", flags, options.encode())
    if failed:
        number = ctypes.get_errno()
        os.close(descriptor)
        if number in {errno.EPERM, errno.EACCES}:
            return _mount_by_helper(path, source)
        raise StorageError(f"can't mount at {path}: {os.strerror(number)}")
    return descriptor


def _mount_by_helper(path: str, source: str) -> int:
    helper = shutil.which("fusermount3")
    if helper is None:
        raise AccessError(
            "only root may mount here", hint="install the package fuse3, whose fusermount3 mounts for users"
        )
    ours, theirs = socket.socketpair()
    options = f"ro,nosuid,nodev,default_permissions,subtype=casstore,fsname={source.replace(',', '_')}"
    with ours, theirs:
        done = subprocess.run(
            [helper, "-o", options, "--", path],
            pass_fds=(theirs.fileno(),),
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise AccessError(f"can't mount at {path}: {reason[-1] if reason else 'fusermount3 failed'}")
        return _receive(ours)


def _receive(channel: socket.socket) -> int:
    size = array.array("i").itemsize
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(size))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptor = array.array("i", data[:size])[0]
            os.set_inheritable(descriptor, False)
            return descriptor
    raise StorageError("fusermount3 handed over no descriptor")


def unmount(path: str, *, lazy: bool = False) -> None:
    """Unmount. ``ConflictError`` when it is in use (``lazy`` takes it out of sight all the same)."""
    if os.geteuid() == 0:
        if not _libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)):
            return
        number = ctypes.get_errno()
    else:
        helper = shutil.which("fusermount3")
        if helper is None:
            raise AccessError("only root may unmount here", hint="install the package fuse3")
        command = [helper, "-u", *(["-z"] if lazy else []), "--", path]
        done = subprocess.run(command, stderr=subprocess.PIPE, check=False)
        if not done.returncode:
            return
        text = done.stderr.decode("utf-8", "replace")
        number = errno.EBUSY if "busy" in text.lower() else errno.EINVAL
    if number == errno.EBUSY:
        raise ConflictError(f"{path} is in use", hint="close what uses it, or unmount it lazily")
    if number in {errno.EINVAL, errno.ENOENT}:
        raise NotFoundError(f"nothing of ours is mounted at {path}")
    raise StorageError(f"can't unmount {path}: {os.strerror(number)}")


def read_ahead(path: str, size: int) -> bool:
    """Let the kernel read this many bytes ahead in a mount; whether it could be set (root alone may)."""
    device = os.stat(path).st_dev
    control = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    with contextlib.suppress(OSError), open(control, "w", encoding="ascii") as file:
        file.write(str(size >> 10))
        return True
    return False
