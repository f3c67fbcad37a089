"""Every version of a dataset in a bucket of OSMO, one after the other, into a dataset of ours.

Decided here and only here: which versions are taken over and in which order, which are here already, and what an
interrupted migration leaves: whole versions, in the order of the old numbers. Doing it again goes on behind the last of
them: a version says in its provenance which one of which dataset it was. Nothing is added out of order, because the
highest number is the latest version.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from casstore.dataset import attributes
from casstore.dataset.adopt.info import Info, InfoVersion, plain
from casstore.dataset.adopt.osmo import OsmoDataset, OsmoVersion
from casstore.dataset.adopt.take import Survey, Taking, commit_for, survey
from casstore.dataset.catalog import Catalog, require_dataset
from casstore.dataset.ref import check_name
from casstore.dataset.summary import UploadResult
from casstore.errors import ConflictError, NotFoundError
from casstore.model import Head
from casstore.transfer.foreign import Problem
from casstore.transfer.spool import Spool

if TYPE_CHECKING:
    from casstore.dataset.bucket import Bucket

__all__ = ["Migration", "Outcome", "State", "Step"]


class State(StrEnum):
    """What becomes of one old version. The values are part of the command's JSON."""

    PLANNED = "planned"
    CREATED = "created"
    PRESENT = "present"
    """It is here already."""
    DAMAGED = "damaged"
    """No version was made: see its problems."""
    LEFT_OUT = "left_out"
    """The service did not count it as ready."""
    LATE = "late"
    """A later one is here already, so that this one can't be added."""


class Step(msgspec.Struct):
    """One old version, and what is to become of it. ``number`` is the old one, ``version`` ours."""

    source: OsmoVersion
    state: State
    number: int
    version: int | None = None
    found: Survey = msgspec.field(default_factory=Survey)


class Outcome(msgspec.Struct):
    """What became of it."""

    step: Step
    state: State
    version: int | None = None
    result: UploadResult | None = None
    problems: list[Problem] = []
    checks: dict[str, int] = {}


class _Here(msgspec.Struct):
    """A version of ours that was an old one."""

    version: int
    origin: dict[str, Any]


class Migration:
    """One dataset on its way. ``info`` is what the service knew of it, if that was kept."""

    def __init__(
        self,
        bucket: Bucket,
        dataset: OsmoDataset,
        name: str,
        info: Info | None = None,
        *,
        warn: Callable[[str], None],
    ) -> None:
        self.dataset = dataset
        self.name = check_name(name)
        self._bucket = bucket
        self._info = info
        self._infos: dict[int, InfoVersion] = {one.number: one for one in info.versions} if info else {}
        self._warn = warn
        self._here: dict[int, _Here] = {}
        self._looked_at: set[int] = set()
        self._foreign = False

    # ---- what there is

    @property
    def versions(self) -> dict[int, int]:
        """Our number of each old version that is here. To be asked for after ``plan`` or ``run``."""
        return {number: here.version for number, here in self._here.items()}

    def plan(self, *, thorough: bool = False) -> list[Step]:
        """Return all old versions in order. ``thorough`` finds everything that can be known without reading files.

        ``ConflictError`` when the name belongs to something else.
        """
        commit_for(self._bucket, self.name, provenance={})
        self._look()
        if self._foreign and not self._here:
            raise ConflictError(
                f"there is a dataset {self.name!r} already, and it is not this one",
                hint=f"choose another name: --dataset {self.dataset.id}=NAME",
            )
        last = max(self._here, default=0)
        steps = [self._step(source, last, thorough=thorough) for source in self.dataset.versions()]
        for number in sorted(self._infos.keys() - {step.number for step in steps}):
            if self._infos[number].status == "READY":
                self._warn(f"version {number} of {self.name} was ready, but there is no manifest of it")
        return steps

    def _step(self, source: OsmoVersion, last: int, *, thorough: bool) -> Step:
        number = source.number
        here = self._here.get(number)
        if here is not None:
            self._compare(source, here)
            return Step(source, State.PRESENT, number, here.version)
        if self._info is not None:
            info = self._infos.get(number)
            if info is None or info.status != "READY":
                return Step(source, State.LEFT_OUT, number)
        if number < last:
            return Step(source, State.LATE, number)
        if thorough:
            with Spool() as spool:
                return Step(source, State.PLANNED, number, found=survey(source, spool))
        return Step(source, State.PLANNED, number, found=survey(source))

    def _compare(self, source: OsmoVersion, here: _Here) -> None:
        """Warn when a manifest is another one than that which a version was made of."""
        if here.origin.get("manifest_etag") == source.info.etag:
            return
        survey(source)
        if here.origin.get("checksum") != source.checksum:
            self._warn(f"{source.url} was changed since it was taken over as version {here.version} of {self.name}")

    def _look(self) -> None:
        """Find the versions of ours that were old ones."""
        try:
            head = require_dataset(self._bucket.refs.find(self.name), to="migrate to")
        except NotFoundError:
            self._here.clear()
            return
        for number in Catalog(self._bucket.refs, self._bucket.name).ready(head):
            if number in self._looked_at:
                continue
            self._looked_at.add(number)
            origin = self._bucket.refs.read_version(head.id, number).provenance.get("adopted")
            if isinstance(origin, dict) and (origin.get("from"), origin.get("dataset_id")) == ("osmo", self.dataset.id):
                old = origin.get("version")
                if isinstance(old, int):
                    self._here[old] = _Here(number, origin)
                    continue
            self._foreign = True

    # ---- doing it

    def run(self, steps: list[Step], taking: Taking) -> Iterator[Outcome]:
        """Take over what is planned, and yield what became of each old version, in order.

        In the end tags and labels are restored, as far as others were not set meanwhile.
        """
        for step in steps:
            if step.state is not State.PLANNED:
                yield Outcome(step, step.state, step.version)
                continue
            self._look()
            here = self._here.get(step.number)
            if here is not None:  # by somebody else, meanwhile
                yield Outcome(step, State.PRESENT, here.version)
                continue
            made = taking.take(step.source, functools.partial(self._commit, step.number))
            if made.result is None:
                yield Outcome(step, State.DAMAGED, problems=made.problems)
                continue
            self._check_sum(step)
            number = made.result.version.number
            yield Outcome(step, State.CREATED, number, made.result, made.problems, made.checks)
        self._look()
        self._restore()

    def _commit(self, number: int, provenance: dict[str, Any]) -> Any:
        info = self._infos.get(number)
        metadata: dict[str, Any] = {}
        if info is not None:
            metadata, rest = info.plain_metadata(self._warn)
            known: dict[str, Any] = {
                "created_by": info.created_by,
                "created_date": info.created_date,
                "tags": info.tags,
            }
            known = {key: value for key, value in known.items() if value}
            if rest:
                known["metadata"] = rest
            provenance["adopted"]["info"] = known
        return commit_for(
            self._bucket,
            self.name,
            provenance=provenance,
            user=info.user if info else None,
            created_at=info.time if info else None,
            metadata=metadata,
            force=True,
        )

    def _check_sum(self, step: Step) -> None:
        info = self._infos.get(step.number)
        if info is not None and info.checksum and info.checksum != step.source.checksum:
            self._warn(
                f"the checksum of version {step.number} is {step.source.checksum}, and the service said {info.checksum}"
            )

    def _compare_latest(self) -> None:
        """Warn when OSMO's ``latest``, which was what finished last, is not the highest version."""
        for number, here in self._here.items():
            info = self._infos.get(number)
            if info is not None and "latest" in (info.tags or []) and number != max(self._here):
                self._warn(
                    f"latest was version {number}, which is {self.name}:{here.version} now; here it is the highest one"
                )

    def _restore(self) -> None:
        """Set the tags and labels that the service knew and that nobody has set here."""
        if self._info is None or not self._here:
            return
        wanted: dict[str, int] = {}
        for number, here in sorted(self._here.items()):
            info = self._infos.get(number)
            if info is not None:
                wanted |= dict.fromkeys(info.plain_tags(self._warn), here.version)
        self._compare_latest()
        labels, _ = plain(self._info.labels or {}, f"the labels of {self.name}", self._warn)

        def change(head: Head) -> Head:
            merged = attributes.check(attributes.merge(labels, head.labels), "the labels")
            tags = {**wanted, **head.tags}
            if (merged, tags) == (head.labels, head.tags):
                return head
            return msgspec.structs.replace(head, labels=merged, tags=tags)

        self._bucket.refs.update_head(self._bucket.refs.find(self.name).id, change)
