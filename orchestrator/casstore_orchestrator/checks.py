"""Legal values of single fields of a workflow.

Decided here and only here: what a name, a dataset reference, a storage URL, a path, a mount, a credential, a regular
expression and a file of a task may look like. Every check raises SpecError that begins with ``path``, the place of the
value in the document.
"""

from __future__ import annotations

import base64
import binascii
import posixpath
import re
from collections.abc import Mapping
from typing import Final

from casstore.errors import SpecError

from .spec import FileSpec

__all__ = [
    "TASK_REFERENCE",
    "VARIABLE",
    "check_credentials",
    "check_dataset",
    "check_files",
    "check_inside",
    "check_labels",
    "check_mounts",
    "check_name",
    "check_regex",
    "check_size",
    "check_url",
]

MAX_NAME: Final = 64
MAX_LABELS: Final = 16
MAX_PATH: Final = 4000
MAX_REGEX: Final = 1000
MAX_STRING: Final = 128 * 1024 - 1
"""Bytes of one argument, or of one variable with its name: what Linux passes to a program."""
_SYSTEM_FOLDERS: Final = ("/dev", "/proc", "/sys")
_NAME: Final = re.compile(r"[a-zA-Z](?:[a-zA-Z0-9_-]*[a-zA-Z0-9])?", re.ASCII)
TASK_REFERENCE: Final = re.compile(r"(?:[a-zA-Z0-9][a-zA-Z0-9_-]*:)?[a-zA-Z](?:[a-zA-Z0-9_-]*[a-zA-Z0-9])?", re.ASCII)
_DATASET: Final = re.compile(r"(?:[A-Za-z0-9_{}-]+/)?[A-Za-z0-9_{}-]+(?::[A-Za-z0-9_{}-]*)?", re.ASCII)
_URL: Final = re.compile(r"(?:s3|gs|azure|tos|swift|file)://\S+")
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", re.ASCII)
_DOMAIN: Final = re.compile(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?", re.ASCII)
VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*", re.ASCII)


def check_name(name: str, path: str) -> None:
    """A name of a workflow, group or task."""
    if len(name) > MAX_NAME:
        raise SpecError(f"{path}: {len(name)} characters are more than {MAX_NAME}")
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"{path}: {name!r} is not a name",
            hint="letters, digits, '_' and '-'; the first is a letter, the last a letter or a digit",
        )


def check_files(files: tuple[FileSpec, ...], path: str) -> None:
    """The files of a task: their paths, that no two are the same, and their contents."""
    taken: dict[str, int] = {}
    for index, file in enumerate(files):
        where = f"{path}[{index}]"
        if len(file.path) > MAX_PATH:
            raise SpecError(f"{where}.path: {len(file.path)} characters are more than {MAX_PATH}")
        if not file.path or "\0" in file.path or file.path.endswith("/"):
            raise SpecError(f"{where}.path: {file.path!r} is not the path of a file")
        target = posixpath.normpath("/" + file.path.lstrip("/"))
        if target == "/osmo" or target.startswith("/osmo/"):
            raise SpecError(f"{where}.path: adding file to /osmo is forbidden", hint="use /tmp, for example")
        if not file.path.startswith("/") or ".." in file.path.split("/"):
            raise SpecError(
                f"{where}.path: {file.path!r} is not an absolute path without '..'", hint="use /tmp/..., for example"
            )
        if any(target == folder or target.startswith(f"{folder}/") for folder in _SYSTEM_FOLDERS):
            raise SpecError(f"{where}.path: '{file.path}' is in a folder of the system", hint="use /tmp, for example")
        if target in taken:
            raise SpecError(f"{where}.path: '{file.path}' is already the path of files[{taken[target]}]")
        taken[target] = index
        if file.contents is not None and file.localpath is not None:
            raise SpecError(f"{where}: only one of 'contents' and 'localpath' may be given")
        if file.contents is None and file.localpath is None:
            raise SpecError(f"{where}.contents: missing", hint="give 'contents' or 'localpath'")
        if file.base64:
            try:
                base64.b64decode("".join((file.contents or "").split()), validate=True)
            except (binascii.Error, ValueError):
                raise SpecError(f"{where}.contents: not base64, although 'base64' is set") from None


def check_size(text: str, path: str) -> None:
    """An argument, or a variable as ``NAME=value``: neither may be longer than the system passes on."""
    size = len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_STRING:
        raise SpecError(
            f"{path}: {size} bytes are more than the {MAX_STRING} that a program can be given in one piece",
            hint="put it into a file of the task ('files:') or into a dataset ('inputs:')",
        )


def check_mounts(mounts: tuple[str, ...], path: str) -> None:
    """Host folders to mount: ``/path`` or ``/source:/target``."""
    for index, mount in enumerate(mounts):
        source, *rest = mount.split(":")
        if not source.startswith("/") or len(rest) > 1 or (rest and not rest[0].startswith("/")):
            raise SpecError(
                f"{path}[{index}]: invalid task volume mount {mount!r}", hint="write /path, or /source:/target"
            )


def check_credentials(credentials: Mapping[str, str | dict[str, str]], path: str) -> None:
    """Uses of credentials: a folder for their files, or a mapping of variables to keys."""
    for name, use in credentials.items():
        if isinstance(use, str) and (".." in use.split("/") or "\0" in use or use == "/"):
            raise SpecError(f"{path}.{name}: {use!r} can't be a folder for its files", hint="use /tmp/..., for example")
        if isinstance(use, str) and not use.startswith("/"):
            raise SpecError(
                f"{path}.{name}: {use!r} is not an absolute path",
                hint=f"write the folder for its files, or a mapping: {name}: {{VARIABLE: key}}",
            )
        if isinstance(use, dict):
            for variable in use:
                if not VARIABLE.fullmatch(variable):
                    raise SpecError(f"{path}.{name}: {variable!r} is not a name for a variable")


def check_dataset(name: str, path: str) -> None:
    """A reference ``[bucket/]name[:tag]``, in which tokens may stand."""
    if not _DATASET.fullmatch(name):
        raise SpecError(
            f"{path}: {name!r} does not name a dataset",
            hint="write [bucket/]name[:tag] with letters, digits, '_' and '-'",
        )


def check_url(url: str, path: str) -> None:
    """A storage URL."""
    if not _URL.fullmatch(url):
        raise SpecError(
            f"{path}: {url!r} is not a storage URL",
            hint="it begins with one of s3:// gs:// azure:// tos:// swift:// file://",
        )


def check_labels(labels: Mapping[str, str], path: str) -> None:
    """Labels of a workflow: at most 16, in the syntax of Kubernetes."""
    if len(labels) > MAX_LABELS:
        raise SpecError(f"{path}: {len(labels)} labels are more than {MAX_LABELS}")
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        if not _LABEL.fullmatch(name) or (slash and not (len(prefix) <= 253 and _DOMAIN.fullmatch(prefix))):
            raise SpecError(f"{path}: {key!r} is not the name of a label", hint="for example team, or example.com/team")
        if not _LABEL.fullmatch(value):
            raise SpecError(
                f"{path}.{key}: {value!r} is not a label",
                hint="1 to 63 letters, digits, '-', '_' and '.', of which the first and last are letters or digits",
            )


def check_inside(path_text: str, where: str) -> None:
    """A path relative to the output folder that stays inside it."""
    if path_text.startswith("/") or "\0" in path_text or ".." in path_text.split("/"):
        raise SpecError(f"{where}: {path_text!r} leads out of the output folder", hint="give a relative path")


def check_regex(pattern: str | None, path: str) -> str | None:
    """The pattern when it compiles; None for an empty one."""
    if not pattern:
        return None
    if len(pattern) > MAX_REGEX:
        raise SpecError(f"{path}.regex: {len(pattern)} characters are more than {MAX_REGEX}")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise SpecError(f"{path}.regex: {pattern!r} is not a regular expression ({error})") from None
    return pattern
