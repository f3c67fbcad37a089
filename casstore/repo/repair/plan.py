"""What a repair is going to do: a function from what a check found to a list of steps.

Decided here and only here: which damage can be repaired, and what is said of it before anything is done. What is not in
the plan is not touched: objects that do not belong to a store, and records of versions, whatever is wrong with them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum

from casstore.errors import FormatError
from casstore.repo import layout
from casstore.repo.check import About, Inspection, VersionLoss
from casstore.repo.check.dataset import Dataset
from casstore.repo.repair.quarantine import LARGEST
from casstore.repo.repair.records import name_for

__all__ = ["Action", "Plan", "Step", "make_plan"]


class Action(StrEnum):
    """What a step does; append-only, these appear in JSON output."""

    PACK = "pack"
    """The whole chunks of a damaged pack go into a new one."""
    INDEX = "index"
    """Segments that are damaged or wrong are replaced by what the packs say."""
    MANIFEST = "manifest"
    """A damaged root goes out of the way, so that the same data can be uploaded again."""
    HEAD = "head"
    """A head is made anew from its versions, or one of nothing is removed."""
    NAME = "name"
    """A name is led to its dataset, or released."""
    TAG = "tag"
    """Tags that lead nowhere are removed."""
    RECORD = "record"
    """A lease, or a record of a collection, that nobody can read goes out of the way."""
    FILES = "files"
    """Missing chunks are taken from files."""
    SALVAGE = "salvage"
    """What is left of a version becomes a new one."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what is done, to which object, in one line; and what is lost by it or was lost before, if anything."""

    action: Action
    key: str
    text: str
    lost: str | None = None
    pack_id: bytes = b""
    dataset_id: str = ""
    number: int = 0
    tags: frozenset[str] = frozenset()


@dataclass(slots=True)
class Plan:
    """The steps, in order; what is lost whatever is done; and what no step touches although it is wrong."""

    steps: list[Step] = field(default_factory=list)
    losses: list[VersionLoss] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not self.steps


def make_plan(
    found: Inspection,
    *,
    salvage: bool = False,
    folder: str | None = None,
    dying: Collection[bytes] = (),
    salvaged: Collection[tuple[str, int]] = (),
) -> Plan:
    """Return the plan for what a check has found.

    ``dying`` are the packs that are being deleted anyway; ``salvaged`` the versions of which there is a salvaged one
    already.
    """
    plan = Plan(losses=found.report.losses)
    _packs(found, plan, dying)
    _index(found, plan)
    _manifests(found, plan)
    _records(found, plan)
    if folder is not None and (found.trees.wanted or any(step.action is Action.PACK for step in plan.steps)):
        count = len(found.trees.wanted)
        text = f"look for {count} missing chunk{'' if count == 1 else 's'} in the files below {folder}"
        plan.steps.append(Step(Action.FILES, layout.PACKS, text))
    if salvage:
        for loss in found.report.losses:
            if (loss.dataset_id, loss.number) not in salvaged:
                text = f"make a new version of {loss.dataset} from what is left of version {loss.number}"
                key = layout.version_key(loss.dataset_id, loss.number)
                step = Step(Action.SALVAGE, key, text, None, dataset_id=loss.dataset_id, number=loss.number)
                plan.steps.append(step)
    plan.left = [
        f"{problem.where}: {problem.message}" for problem in found.report.problems if problem.about is About.FOREIGN
    ]
    return plan


def _packs(found: Inspection, plan: Plan, dying: Collection[bytes]) -> None:
    for pack_id, pack in sorted(found.packs.known.items()):
        key = layout.pack_key(pack_id)
        if pack.sound and not pack.damaged:
            continue
        if pack_id in dying:
            plan.left.append(f"{key}: damaged, and being deleted by a collection of garbage")
        elif pack.size > LARGEST:
            plan.left.append(f"{key}: has {pack.size} bytes, which no pack has")
        elif pack.sound:
            bad = len(pack.damaged)
            text = f"store the {pack.records - bad} whole chunks of {pack.records} anew"
            plan.steps.append(Step(Action.PACK, key, text, f"{bad} chunks", pack_id=pack_id))
        else:
            text = "its table of contents is damaged: find its chunks by the index, and store the whole ones anew"
            plan.steps.append(Step(Action.PACK, key, text, None, pack_id=pack_id))


def _index(found: Inspection, plan: Plan) -> None:
    replaced = len(found.stale) + len(found.places.damaged)
    if replaced:
        text = f"replace {replaced} of {len(found.places.segments) + len(found.places.damaged)} segments"
    elif found.places.unindexed:
        text = "add what it lacks"
    elif plan.steps:
        text = "lead to the new packs"
    else:
        return
    plan.steps.append(Step(Action.INDEX, layout.INDEX, f"{text}, by the packs' tables of contents"))


def _manifests(found: Inspection, plan: Plan) -> None:
    for key in sorted({*found.manifest_problems, *found.damaged_roots}):
        text = "take the damaged manifest out of the way, so that an upload of the same data stores it again"
        plan.steps.append(Step(Action.MANIFEST, key, text))


def _records(found: Inspection, plan: Plan) -> None:
    records = found.records
    rebuilt: set[str] = set()
    for dataset in sorted(records.datasets.values(), key=lambda one: one.id):
        step = _head(found, dataset)
        if step is not None:
            plan.steps.append(step)
            if dataset.versions or dataset.damaged:
                rebuilt.add(dataset.id)
        elif dataset.head is not None and not dataset.head.deleted:
            known = {*dataset.versions, *dataset.damaged, *dataset.missing}
            tags = frozenset(tag for tag, number in dataset.head.tags.items() if number not in known)
            if tags:
                text = f"remove the tags of {dataset.name} that lead to no version"
                key = layout.head_key(dataset.id)
                lost = "tags: " + ", ".join(sorted(tags))
                plan.steps.append(Step(Action.TAG, key, text, lost, dataset_id=dataset.id, tags=tags))
    _names(found, plan, rebuilt)
    for problem in found.report.problems:
        if problem.about in (About.LEASE, About.TRASH):
            text = f"take the damaged {problem.about} out of the way"
            if problem.about is About.TRASH:
                text += ": make sure that no collection of garbage is running"
            plan.steps.append(Step(Action.RECORD, problem.where, text))


def _head(found: Inspection, dataset: Dataset) -> Step | None:
    if dataset.head is not None or dataset.collected:
        return None
    key = layout.head_key(dataset.id)
    count = len(dataset.versions) + len(dataset.damaged)
    if count:
        name = name_for(found.records, dataset)
        text = f"make the head of {name} anew from {count} version{'' if count == 1 else 's'}"
        lost = "its labels, its tags, later changes of metadata, and which versions were deleted"
        return Step(Action.HEAD, key, text, lost, dataset_id=dataset.id)
    if dataset.head_problem is None:
        return None
    text = "remove the damaged head of a dataset without versions, or of a collection"
    return Step(Action.HEAD, key, text, "what it held", dataset_id=dataset.id)


def _names(found: Inspection, plan: Plan, rebuilt: set[str]) -> None:
    records = found.records
    headless = {
        one.id for one in records.datasets.values() if one.head is None and one.head_problem is not None
    } - rebuilt
    targets = {key: target for key, target in records.names.items() if target in headless}
    owners = {
        layout.name_key(one.name): one
        for one in records.datasets.values()
        if one.head is not None and not one.head.deleted
    }
    done: set[str] = set()
    for key in sorted({*records.name_problems, *records.dangling(), *targets}):
        owner = owners.get(key)
        try:
            name = layout.name_of(key)
        except FormatError as error:
            plan.left.append(error.message)
            continue
        if owner is not None:
            done.add(owner.id)
            step = Step(Action.NAME, key, f"lead the name {name} to its dataset", None, dataset_id=owner.id)
        else:
            step = Step(Action.NAME, key, f"release the name {name}: it leads to no dataset")
        plan.steps.append(step)
    for dataset in sorted(records.unnamed(), key=lambda one: one.id):
        if dataset.id not in done:
            text = f"give the dataset {dataset.name}, which no name leads to, its name or one like it"
            plan.steps.append(Step(Action.NAME, layout.name_key(dataset.name), text, None, dataset_id=dataset.id))
