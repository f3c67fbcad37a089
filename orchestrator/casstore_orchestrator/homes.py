"""The folders of workflows on the host.

Decided here and only here: the layout below the scheduler's home, and how the output of a task is kept for the tasks
that read it.

    <workflow id>/_logs/...                     see ``logs``
    <workflow id>/_mounts/<group>.<p>/<n>       versions that tasks of a group read, while its placement p runs
    <workflow id>/<task>/<retry id>/data/...    the home of one attempt, removed when its group ends
    <workflow id>/<task>/output/                the output that other tasks read, also of later workflows
    <workflow id>/<task>/output.json            its ``OutputNote``
    _results/...                                what tasks left for equal ones, see ``reuse``
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

import msgspec

from casstore.errors import NotFoundError
from casstore.hashing import derive_hasher
from casstore.structs import from_json

from .folders import remove_tree
from .provenance import InputNote, OutputNote
from .transfers import Stop

__all__ = ["Homes", "tree_checksum"]

_NAME = re.compile(r"[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?")
_READ = 1 << 20


class Homes:
    """The folders below one root; names are checked, so that none of them leaves it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def workflow(self, workflow_id: str) -> Path:
        """Everything of one workflow."""
        return self.root / _checked(workflow_id)

    def task(self, workflow_id: str, task: str) -> Path:
        """Everything of one task but its log."""
        return self.workflow(workflow_id) / _checked(task)

    def attempt(self, workflow_id: str, task: str, retry_id: int) -> Path:
        """The home of one attempt."""
        return self.task(workflow_id, task) / str(retry_id)

    def mounts(self, workflow_id: str, group: str, placement: int) -> Path:
        """Where versions are mounted for a placement of a group."""
        return self.workflow(workflow_id) / "_mounts" / f"{_checked(group)}.{placement:d}"

    def make(self, workflow_id: str, task: str, retry_id: int, inputs: int) -> Path:
        """A fresh home with empty input folders and an empty output folder."""
        home = self.attempt(workflow_id, task, retry_id)
        remove_tree(home)
        for index in range(inputs):
            (home / "data" / "input" / str(index)).mkdir(parents=True)
        for name in ("data/input", "data/output", "tmp"):
            (home / name).mkdir(parents=True, exist_ok=True)
        return home

    def keep_output(
        self, workflow_id: str, task: str, retry_id: int, inputs: tuple[InputNote, ...], stop: Stop
    ) -> OutputNote:
        """Move the output folder of an attempt to where other tasks find it, and note what is in it."""
        source = self.attempt(workflow_id, task, retry_id) / "data" / "output"
        checksum, files, size = tree_checksum(source, stop)
        note = OutputNote(
            workflow_id=workflow_id,
            task=task,
            retry_id=retry_id,
            checksum=checksum,
            files=files,
            size=size,
            inputs=inputs,
        )
        folder = self.task(workflow_id, task)
        remove_tree(folder / "output")
        source.rename(folder / "output")
        self._write_note(folder, note)
        return note

    def adopt_output(
        self,
        source_id: str,
        source_task: str,
        workflow_id: str,
        task: str,
        retry_id: int,
        inputs: tuple[InputNote, ...],
    ) -> OutputNote:
        """Make the kept output of an equal task that of this one, too, without a copy: nobody changes either."""
        source, note = self.kept_output(source_id, source_task)
        note = msgspec.structs.replace(note, workflow_id=workflow_id, task=task, retry_id=retry_id, inputs=inputs)
        folder = self.task(workflow_id, task)
        draft = folder / "output.new"
        remove_tree(draft)
        remove_tree(folder / "output")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, draft, symlinks=True, copy_function=_link)
        draft.rename(folder / "output")
        self._write_note(folder, note)
        return note

    def _write_note(self, folder: Path, note: OutputNote) -> None:
        draft = folder / "output.json.new"
        draft.write_bytes(msgspec.json.encode(note))
        draft.replace(folder / "output.json")

    def kept_output(self, workflow_id: str, task: str) -> tuple[Path, OutputNote]:
        """The kept output of a task; ``NotFoundError`` when it left none."""
        folder = self.task(workflow_id, task)
        try:
            note = from_json((folder / "output.json").read_bytes(), OutputNote)
        except (FileNotFoundError, NotADirectoryError):
            msg = f"task {task} of workflow {workflow_id} has left no output"
            raise NotFoundError(msg) from None
        return folder / "output", note

    def remove_workflow(self, workflow_id: str) -> None:
        """Remove everything of a workflow, logs and kept outputs included."""
        remove_tree(self.workflow(workflow_id))


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        msg = f"not a name: {name!r}"
        raise ValueError(msg)
    return name


def tree_checksum(folder: Path, stop: Stop) -> tuple[str, int, int]:
    """A digest (hex) over names, kinds, permission bits and contents, with the number and bytes of the files."""
    total = derive_hasher("casstore task output 1")
    root = os.fsencode(folder)
    files = size = 0
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            stop.check()
            status = entry.stat(follow_symlinks=False)
            mode = stat.S_IMODE(status.st_mode)
            if stat.S_ISDIR(status.st_mode):
                kind, body = b"d", b""
                pending.append(entry.path)
            elif stat.S_ISLNK(status.st_mode):
                kind, body, mode = b"l", os.readlink(entry.path), 0o777
            elif stat.S_ISREG(status.st_mode):
                kind, body = b"f", _file_digest(entry.path, stop)
                files += 1
                size += status.st_size
            else:
                continue
            relative = entry.path[len(root) + 1 :]
            total.update(b"%c %o %d %d\n" % (kind, mode, len(relative), len(body)) + relative + body)
    return total.digest().hex(), files, size


def _file_digest(path: bytes, stop: Stop) -> bytes:
    hasher = derive_hasher("casstore task output file 1")
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        while block := file.read(_READ):
            stop.check()
            hasher.update(block)
    return hasher.digest()
