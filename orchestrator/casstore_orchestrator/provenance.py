"""Where data came from: what is written on every version that a task makes.

Decided here and only here: the fields of the ``default`` metadata (those of OSMO 6.2, and more), of a version's
provenance, and of the note that lies beside an output folder kept for other tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .ports import DatasetVersion

__all__ = ["InputNote", "OutputNote", "Producer"]


class InputNote(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one input of a task really was. ``checksum`` and ``manifest`` in hex; ``ref`` as people write it."""

    kind: str
    ref: str
    requested: str = ""
    regex: str | None = None
    manifest: str = ""
    checksum: str = ""
    files: int = 0
    size: int = 0

    @classmethod
    def of_version(cls, version: DatasetVersion, requested: str, regex: str | None) -> InputNote:
        """The note of a dataset's version."""
        return cls(
            kind="dataset",
            ref=version.ref,
            requested=requested,
            regex=regex,
            manifest=version.manifest,
            checksum=version.checksum,
            files=version.files,
            size=version.size,
        )


class OutputNote(msgspec.Struct, frozen=True, kw_only=True):
    """What lies in an output folder kept for other tasks, and what it was made from."""

    workflow_id: str
    task: str
    retry_id: int
    checksum: str
    files: int
    size: int
    inputs: tuple[InputNote, ...] = ()


class Producer(msgspec.Struct, frozen=True, kw_only=True):
    """The attempt of a task that made an output. ``exit_code`` is None while its command runs (checkpoints)."""

    workflow_id: str
    workflow_uuid: str
    group: str
    task: str
    retry_id: int
    user: str
    image: str
    command: tuple[str, ...]
    exit_code: int | None
    inputs: tuple[InputNote, ...]

    def metadata(self) -> dict[str, Any]:
        """The version metadata that OSMO's users find under ``default``."""
        return {
            "default": {
                "wfid": self.workflow_id,
                "task": self.task,
                "created_by": self.user,
                "exit_code": self.exit_code,
                "input_data": _refs(self.inputs, "url"),
                "input_datasets": _refs(self.inputs, "dataset"),
                "input_dataset_checksums": [note.checksum for note in self.inputs if note.kind == "dataset"],
                "input_tasks": _refs(self.inputs, "task"),
            }
        }

    def provenance(self) -> dict[str, Any]:
        """The immutable record in the version itself."""
        made: dict[str, Any] = msgspec.to_builtins(self)
        return made


def _refs(notes: Sequence[InputNote], kind: str) -> list[str]:
    return [note.ref for note in notes if note.kind == kind]
