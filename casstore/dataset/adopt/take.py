"""From one source to one version.

Decided here and only here: how a source is surveyed before anything is read, when a version is made of it, and what its
record says of where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from casstore.dataset.adopt.base import Buckets, Foreign
from casstore.dataset.catalog import Catalog
from casstore.dataset.commit import REFERENCES, Commit, until_made
from casstore.dataset.summary import UploadResult
from casstore.errors import FormatError, UsageError
from casstore.transfer.foreign import MAX_PROBLEMS, Problem, Referred, Taken, take_over
from casstore.transfer.memo import Memo
from casstore.transfer.progress import Progress, Silent
from casstore.transfer.spool import ForeignFile, ForeignFolder, Select, Spool

if TYPE_CHECKING:
    from casstore.dataset.bucket import Bucket
    from casstore.repo.hold import Hold

__all__ = ["Made", "Survey", "Taking", "commit_for", "references_of", "survey"]

_RECORDED = 100
"""Damaged files that the record of a version names; the others are counted."""

Seen = Callable[[ForeignFile | ForeignFolder], None]


class Survey(msgspec.Struct):
    """What a source says that it holds. ``size`` in bytes, of ``files`` without the ``unknown``."""

    files: int = 0
    size: int = 0
    unknown: int = 0
    problems: list[Problem] = []


class Made(msgspec.Struct):
    """What came of a source. ``result`` is None when no version was made."""

    result: UploadResult | None
    problems: list[Problem]
    checks: dict[str, int]


def survey(foreign: Foreign, spool: Spool | None = None, *, select: Select | None = None) -> Survey:
    """Read what a source names, and nothing of its files; ``spool`` gets the entries, and finds more that is wrong."""
    found = Survey()
    try:
        for where, entry, path, problem in foreign.entries():
            if entry is not None:
                if select is not None and (isinstance(entry, ForeignFolder) or not select(entry.path)):
                    continue
                problem = _add(entry, spool)  # noqa: PLW2901 - what is known of it now
                path = entry.path  # noqa: PLW2901
            if problem:
                found.problems.append(Problem(path, where, problem))
                if len(found.problems) >= MAX_PROBLEMS:
                    break
            elif isinstance(entry, ForeignFile):
                found.files += 1
                found.size += max(0, entry.size)
                found.unknown += entry.size < 0
    except FormatError as error:
        found.problems.append(Problem(b"", foreign.url, error.message))
    return found


def _add(entry: ForeignFile | ForeignFolder, spool: Spool | None) -> str:
    if spool is None:
        return ""
    try:
        spool.add(entry)
    except FormatError as error:
        return error.message
    return ""


class Taking(msgspec.Struct):
    """How sources are taken over into one dataset. ``counted``: ``progress`` knows already how much there is.

    ``refer``: objects stay where they are, and the version refers to them.
    """

    bucket: Bucket
    name: str
    buckets: Buckets
    memo: Memo
    skip_damaged: bool = False
    refer: bool = False
    progress: Progress = Silent()
    threads: int | None = None
    counted: bool = False

    def take(self, foreign: Foreign, prepare: Callable[[dict[str, Any]], Commit], select: Select | None = None) -> Made:
        """Store what a source names and make a version of it. ``prepare`` gets the provenance that it will have.

        Nothing is committed when there are problems, unless damaged files are to be skipped.
        """
        origin: dict[str, Any] = {}
        references: dict[str, Any] = {}
        commit = prepare({"adopted": origin, REFERENCES: references} if self.refer else {"adopted": origin})
        with Spool() as spool:
            found = survey(foreign, spool, select=select)
            if found.problems and (not self.skip_damaged or len(found.problems) >= MAX_PROBLEMS):
                return Made(None, found.problems, {})
            if not found.files and not found.problems and select is not None:
                raise UsageError(f"nothing in {foreign.url} matches the regular expression")

            if not self.counted:
                self.progress.expect(found.files, found.size)

            def once(hold: Hold) -> Made:
                taken = self._take_over(spool, hold)
                problems = [*found.problems, *taken.problems]
                checks = {check.value: count for check, count in sorted(taken.checks.items())}
                if taken.result is None:
                    return Made(None, problems, checks)
                origin.update(foreign.provenance(), checks=checks)
                references.update(references_of(taken.referred))
                if problems:
                    named = [{"path": _text(one.path), "problem": one.message} for one in problems[:_RECORDED]]
                    origin["damaged"] = {"files": len(problems), "first": named}
                return Made(commit.finish(taken.result, hold), problems, checks)

            return until_made(
                self.bucket.store,
                once,
                kind="adopt",
                user=self.bucket.user,
                dataset=self.name,
                progress=self.progress,
                again=lambda: self.progress.expect(found.files, found.size),
            )

    def _take_over(self, spool: Spool, hold: Hold) -> Taken:
        return take_over(
            self.bucket.store,
            spool.entries(),
            self.buckets.client,
            memo=self.memo,
            state_dir=self.bucket.state_dir,
            dataset=self.name,
            hold=hold,
            skip_damaged=self.skip_damaged,
            refer=self.refer,
            progress=self.progress,
            threads=self.threads,
        )


def references_of(referred: Referred) -> dict[str, Any]:
    """Return what the record of a version says of the files that stay elsewhere."""
    return {"files": referred.files, "size": referred.size, "at": referred.urls[:_RECORDED]}


def commit_for(
    bucket: Bucket,
    name: str,
    *,
    provenance: dict[str, Any],
    user: str | None = None,
    created_at: str | None = None,
    metadata: dict[str, Any] | None = None,
    description: str | None = None,
    labels: dict[str, Any] | None = None,
    tag: str | None = None,
    force: bool = False,
) -> Commit:
    """Return what commits a version of ``name``; refuses a name that can't be written to."""
    return Commit(
        bucket.refs,
        Catalog(bucket.refs, bucket.name),
        name,
        user or bucket.user,
        description=description,
        metadata=metadata,
        labels=labels,
        tag=tag,
        provenance=provenance,
        force=force,
        created_at=created_at,
    )


def _text(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
