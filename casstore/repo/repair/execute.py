"""Carrying a plan out.

Decided here and only here: the order. New packs first, then the index that leads to them, and only then are old packs
removed; heads before the names that lead to them; new versions last. At any moment a reader finds at least what it
found before, so that a repair that ends anywhere is repeated from the start: what is done is not in the next plan.
Everything is read again before it is changed; nothing that the plan remembers is believed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from casstore.errors import ConflictError, IntegrityError, NotFoundError
from casstore.format import record
from casstore.repo import layout
from casstore.repo import records as stored
from casstore.repo.check import Inspection, Report, Watcher, check_store
from casstore.repo.check.session import Session
from casstore.repo.leases import Lease
from casstore.repo.limits import bounded_get
from casstore.repo.packs import put_pack
from casstore.repo.refs import Refs
from casstore.repo.repair.files import restore_chunks
from casstore.repo.repair.frames import salvage
from casstore.repo.repair.index import rebuild_index
from casstore.repo.repair.plan import Action, Plan, Step, make_plan
from casstore.repo.repair.quarantine import Quarantine
from casstore.repo.repair.records import Rewriter
from casstore.repo.repair.salvage import check_fresh, manifest_of_damaged, salvage_version, salvaged_as
from casstore.repo.repair.storing import Storing
from casstore.repo.store import Store
from casstore.repo.trash import DyingSet, dying

__all__ = ["Done", "Repair"]

OnStep = Callable[[str], None]


@dataclass(slots=True)
class Done:
    """What was done, a line each; what could not be; and where the originals are."""

    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    quarantine: str = ""
    kept: int = 0
    report: Report = field(default_factory=Report)


class Repair:
    """One repair of a store: looks, plans, and does."""

    def __init__(
        self,
        store: Store,
        *,
        user: str,
        salvage: bool = False,
        folder: str | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        """``salvage``: new versions are made of damaged ones. ``folder``: files that may have what is missing."""
        self._store = store
        self._backend = store.backend
        self._user = user
        self._salvage = salvage
        self._folder = folder
        self._watcher = watcher
        self._refs = Refs(store.backend)
        self._found = Inspection(store, read=1.0, watcher=watcher, follow=False)

    def plan(self) -> Plan:
        """Read the whole store, and return what is going to be done."""
        found = self._found
        found.run()
        done = {
            (loss.dataset_id, loss.number)
            for loss in (found.report.losses if self._salvage else ())
            if self._has_head(loss.dataset_id) and salvaged_as(self._refs, loss.dataset_id, loss.number) is not None
        }
        return make_plan(found, salvage=self._salvage, folder=self._folder, dying=self._dying().packs, salvaged=done)

    def _has_head(self, dataset_id: str) -> bool:
        dataset = self._found.records.datasets.get(dataset_id)
        return dataset is not None and dataset.head is not None

    def _dying(self) -> DyingSet:
        try:
            return dying(self._backend)
        except IntegrityError:
            return DyingSet(frozenset(), frozenset())  # a record that can't be read is in the plan

    def execute(self, plan: Plan, on_step: OnStep | None = None) -> Done:
        """Do what the plan says, then check the structure of the store once more."""
        done = Done()
        tell = on_step or (lambda _: None)
        quarantine = Quarantine(self._backend)
        if not plan.empty:
            with Lease.acquire(self._backend, kind="repair", user=self._user):
                self._data(plan, quarantine, done, tell)
                self._records(plan, quarantine, done, tell)
                self._versions(plan, done, tell)
        done.quarantine, done.kept = quarantine.prefix, quarantine.count
        self._store.index.close()
        done.report = check_store(self._store, watcher=self._watcher)
        return done

    # ---- packs, index, manifests

    def _data(self, plan: Plan, quarantine: Quarantine, done: Done, tell: OnStep) -> None:
        steps = [step for step in plan.steps if step.action is Action.PACK]
        old: list[str] = []
        dead: set[bytes] = set()
        never = self._dying().packs
        for step in steps:
            tell(step.text)
            replaced = self._pack(step, quarantine, never, done)
            if replaced:
                old.append(step.key)
                dead.add(step.pack_id)
        if dead or any(step.action is Action.INDEX for step in plan.steps):
            tell("the index")
            replaced_count, made = rebuild_index(Session(self._store), quarantine, frozenset(dead))
            done.lines.append(f"index: {replaced_count} segments replaced by {made}")
        quarantine.remove(*old)
        for step in plan.steps:
            if step.action not in (Action.MANIFEST, Action.RECORD) or not self._is_damaged(step):
                continue
            if quarantine.remove(step.key):
                done.lines.append(f"{step.key}: moved to quarantine")

    def _is_damaged(self, step: Step) -> bool:
        """Whether an object that goes out of the way still is what the plan says."""
        try:
            if step.action is Action.MANIFEST:
                manifest_id = layout.id_of(step.key)
                self._found.trees.root(manifest_id)
                return layout.manifest_key(manifest_id) != step.key or step.key in self._found.manifest_problems
            kind = "lease" if step.key.startswith(layout.LEASES) else "trash"
            record.check(kind, bounded_get(self._backend, step.key, record.MAX_RECORD))
        except NotFoundError:
            return False
        except IntegrityError:
            return True
        return False

    def _pack(self, step: Step, quarantine: Quarantine, never: frozenset[bytes], done: Done) -> bool:
        """Store what is whole of a damaged pack; whether the old one has to go then."""
        segments = [one.segment for one in self._found.places.segments.values()]
        try:
            for backwards in (False, True):
                builder, known = salvage(self._backend, step.pack_id, segments, backwards=backwards)
                if not len(builder):
                    done.lines.append(f"{step.key}: no chunk of it is whole")
                    return True
                sealed = builder.seal()
                if sealed.pack_id == step.pack_id:
                    # All of it was found: it is what it was.
                    if not quarantine.keep(step.key):
                        return False
                    self._backend.put(step.key, sealed.parts)
                    done.lines.append(f"{step.key}: all {known} chunks found, and the pack made anew")
                    return False
                if sealed.pack_id not in never:
                    put_pack(self._backend, sealed)
                    new = layout.pack_key(sealed.pack_id)
                    done.lines.append(f"{step.key}: {len(sealed.places)} of {known} chunks are in {new} now")
                    return True
        except NotFoundError:
            return False  # gone meanwhile
        done.failed.append(f"{step.key}: its chunks are in packs that are being deleted; repair again later")
        return False

    # ---- heads and names

    def _records(self, plan: Plan, quarantine: Quarantine, done: Done, tell: OnStep) -> None:
        records = self._found.records
        rewriter = Rewriter(stored.Records(self._backend), records, quarantine)
        for step in plan.steps:
            if step.action not in (Action.HEAD, Action.NAME, Action.TAG):
                continue
            tell(step.text)
            dataset = records.datasets.get(step.dataset_id)
            try:
                if step.action is Action.TAG and dataset is not None:
                    rewriter.drop_tags(dataset, set(step.tags))
                elif step.action is Action.HEAD and dataset is not None:
                    if dataset.versions or dataset.damaged:
                        rewriter.head(dataset)
                    else:
                        rewriter.remove_head(dataset)
                elif step.action is Action.NAME and dataset is not None:
                    rewriter.claim(dataset)
                elif step.action is Action.NAME:
                    rewriter.lead(layout.name_of(step.key), None)
            except (NotFoundError, IntegrityError) as error:
                done.failed.append(f"{step.key}: {error.message}")
            else:
                done.lines.append(f"{step.key}: {step.text}")

    # ---- what is missing, and versions

    def _versions(self, plan: Plan, done: Done, tell: OnStep) -> None:
        wanted = [step for step in plan.steps if step.action in (Action.FILES, Action.SALVAGE)]
        if not wanted:
            return
        for step in wanted:
            tell(step.text)
            # What is there now, the steps before counted in.
            found = Inspection(self._store)
            found.run()
            storing = Storing(self._backend, found.places, self._dying())
            if step.action is Action.FILES and self._folder is not None:
                count = len(found.trees.wanted)
                restored = restore_chunks(self._folder, found.trees.wanted, self._store.chunker, storing)
                done.lines.append(f"{restored} of {count} missing chunks found in {self._folder}")
            else:
                self._salvage_version(step, found, storing, done)

    def _salvage_version(self, step: Step, found: Inspection, storing: Storing, done: Done) -> None:
        dataset = found.records.datasets.get(step.dataset_id)
        name = f"{dataset.name if dataset is not None else step.dataset_id}:{step.number}"
        if not any((loss.dataset_id, loss.number) == (step.dataset_id, step.number) for loss in found.report.losses):
            done.lines.append(f"{name}: is whole again")
            return
        version = dataset.versions.get(step.number) if dataset is not None else None
        manifest = (
            version.manifest
            if version is not None
            else manifest_of_damaged(self._backend, found.trees, step.dataset_id, step.number)
        )
        if manifest is None:
            done.failed.append(f"{name}: nothing is known of what was in it")
            return
        try:
            new = salvage_version(
                self._refs,
                found.trees,
                storing,
                step.dataset_id,
                step.number,
                manifest,
                user=self._user,
                validate=check_fresh(self._backend, storing),
            )
        except (IntegrityError, NotFoundError, ConflictError) as error:
            done.failed.append(f"{name}: {error.message}")
            return
        lost = f"{new.files} file{'' if new.files == 1 else 's'} left out"
        if new.entries:
            lost += f", and {new.entries} entries of which nothing is known"
        done.lines.append(f"{name}: version {new.number} has what is left of it, {lost}")
