"""A whole check: in which order things are looked at, and what of it is reported.

Decided here and only here: the order, and that nothing is reported before it was looked at twice. Records are read
first, then the index, then the packs: each leads only to what was there before it was written itself, so that a store
that is written to meanwhile does not look damaged. What is collected meanwhile does, until the second look: then the
records are read anew, and the index, and only what still is wrong is told.
"""

from __future__ import annotations

from collections.abc import Collection

from casstore.errors import IntegrityError, NotFoundError
from casstore.repo import layout
from casstore.repo.check.packs import Packs
from casstore.repo.check.places import Places
from casstore.repo.check.records import Records
from casstore.repo.check.report import About, Report, VersionLoss, Watcher, show
from casstore.repo.check.rest import look_at_rest, tell_unused
from casstore.repo.check.session import Session
from casstore.repo.check.trees import Damage, Trees
from casstore.repo.store import Store

__all__ = ["Inspection", "check_store", "check_version"]


class Inspection:
    """Everything that a check finds out; what a repair is planned from."""

    def __init__(
        self,
        store: Store,
        *,
        read: float = 0.0,
        seed: int = 0,
        only: Collection[str] = (),
        watcher: Watcher | None = None,
        follow: bool = True,
    ) -> None:
        """``read`` is the share of the data packs that is read, from 0 to 1; ``only`` the datasets that are wanted.

        Without ``follow`` what packs refer to elsewhere is not read with them.
        """
        self.store = store
        self.session = Session(store, watcher)
        self.records = Records(self.session)
        self.places = Places(self.session)
        self.packs = Packs(self.session, self.places.compare, share=read, seed=seed, follow=follow)
        self.places.packs = self.packs
        self.trees = Trees(self.session, self.places)
        self.damage: dict[bytes, Damage] = {}
        self.unreferenced: dict[bytes, int] = {}
        self.manifest_problems: dict[str, str] = {}
        self.damaged_roots: set[str] = set()
        """Keys of roots that versions lead to, that are there, and that can't be read."""
        self.stale: dict[str, str] = {}
        self._sums: dict[bytes, tuple[str, tuple[int, ...]]] = {}
        self._read = read
        self._only = frozenset(only)
        self.report = self.session.report
        self.report.seed = seed if 0 < read < 1 else None

    def run(self) -> Report:
        """Look at everything, and report."""
        self.records.read()
        if self._only:
            self.records.choose(set(self._only))
        self.places.open(counted=not self._only)
        if not self._only:
            self.packs.scan()
        self._follow(self._active())
        if not self._only:
            self._manifests()
            self.stale = self.places.stale()
        if self._suspicious():
            self._look_again()
        self._tell()
        return self.report

    def _active(self) -> dict[bytes, list[tuple[str, int]]]:
        """Return the manifests of the versions that users can see, with the versions."""
        found: dict[bytes, list[tuple[str, int]]] = {}
        for dataset in self.records.datasets.values():
            for number in dataset.active():
                found.setdefault(dataset.versions[number].manifest, []).append((dataset.id, number))
        return found

    def _follow(self, manifests: Collection[bytes]) -> None:
        found = self.trees.check(list(manifests), whole=self._read >= 1)
        self.damage = {one: damage for one, damage in found.items() if damage}
        self._sums |= self.trees.sums

    def _manifests(self) -> None:
        """Look at the roots that no version leads to, too: nobody loses anything by them."""
        active = self._active()
        unknown: list[bytes] = []
        for info in self.session.each(layout.MANIFESTS):
            self.session.checked(info.size)
            try:
                manifest_id = layout.id_of(info.key)
                if layout.manifest_key(manifest_id) != info.key:
                    self.manifest_problems[info.key] = "it is in the wrong folder"
                elif manifest_id in active:
                    damage = self.damage.get(manifest_id)
                    if damage is not None and damage.root is not None:
                        self.damaged_roots.add(info.key)
                else:
                    self.unreferenced[manifest_id] = info.size
                    self.trees.root(manifest_id)
                    unknown.append(manifest_id)
            except NotFoundError:
                continue
            except IntegrityError as error:
                self.manifest_problems[info.key] = error.message
        if self._read >= 1:
            trees = Trees(self.session, self.places, needed=False)
            for manifest_id, found in trees.check(unknown, whole=True).items():
                if found.wrong:
                    self.manifest_problems[layout.manifest_key(manifest_id)] = found.wrong

    def _suspicious(self) -> bool:
        return bool(
            self.damage
            or self.stale
            or self.manifest_problems
            or self.places.damaged
            or self.places.unindexed
            or self.packs.foreign
            or self.records.suspicious
            or any(pack.damaged or not pack.sound for pack in self.packs.known.values())
        )

    def _look_again(self) -> None:
        """Find out what still is wrong."""
        self.session.count_no_more()
        hurt = {one: self._active().get(one, ()) for one in self.damage}
        for dataset_id in {dataset_id for versions in hurt.values() for dataset_id, _ in versions}:
            self.records.refresh(dataset_id)  # a version that was deleted meanwhile has nothing to lose
        self.records.look_again()
        self.places.open(counted=False)
        self.packs.look_again()
        if not self._only:
            self.stale = self.places.stale()
        for key in list(self.manifest_problems):
            try:
                self.session.backend.stat(key)
            except NotFoundError:
                del self.manifest_problems[key]
        if self.damage or self.places.unindexed:
            active = self._active()
            targets = active if self.places.unindexed else [one for one in self.damage if one in active]
            self.places.unindexed.clear()
            self.trees = Trees(self.session, self.places)
            self._follow(targets)

    # ---- telling

    def _tell(self) -> None:
        self.packs.tell(problems=not self._only)  # of chosen datasets their own losses alone
        self.places.tell(self.stale)
        active = self._active()
        for key, message in sorted(self.manifest_problems.items()):
            self.session.problem(key, f"the manifest is damaged: {message}", About.MANIFEST)
        for manifest_id, damage in sorted(self.damage.items()):
            tell_damage(self.session, layout.manifest_key(manifest_id), damage)
        self.records.tell()
        self._tell_losses(active)
        self._tell_records(active)
        if not self._only:
            look_at_rest(self.session)
            tell_unused(self)

    def _tell_losses(self, active: dict[bytes, list[tuple[str, int]]]) -> None:
        losses: list[VersionLoss] = []
        for manifest_id, damage in self.damage.items():
            for dataset_id, number in active.get(manifest_id, ()):
                loss = VersionLoss(self.records.datasets[dataset_id].name, dataset_id, number)
                loss.files, loss.paths, loss.entries = damage.files, damage.paths, damage.entries
                loss.reason = damage.root or damage.wrong
                losses.append(loss)
        for dataset in self.records.datasets.values():
            if not dataset.deleted:
                reasons = {number: f"its record is damaged: {text}" for number, text in dataset.damaged.items()}
                reasons |= dict.fromkeys(dataset.missing, "its record is missing")
                losses += [VersionLoss(dataset.name, dataset.id, one, reason=text) for one, text in reasons.items()]
        self.report.losses = sorted(losses, key=lambda loss: (loss.dataset, loss.dataset_id, loss.number))

    def _tell_records(self, active: dict[bytes, list[tuple[str, int]]]) -> None:
        """Compare the versions with the roots of their trees."""
        for manifest_id, versions in active.items():
            for dataset_id, number in versions:
                version = self.records.datasets[dataset_id].versions[number]
                totals = version.totals
                sums = version.checksum, (totals.files, totals.directories, totals.symlinks, totals.size)
                if self._sums.get(manifest_id, sums) != sums:
                    key = layout.version_key(dataset_id, number)
                    self.session.problem(key, "the record is damaged: it does not fit its manifest", About.VERSION)


def tell_damage(session: Session, where: str, damage: Damage) -> None:
    """Report what is wrong with one tree. ``where`` is what stands before the paths; it may be empty."""
    if damage.root is not None:
        session.problem(where, f"the manifest is damaged: {damage.root}", About.MANIFEST)
    if damage.wrong is not None:
        session.problem(where, damage.wrong, About.MANIFEST)
    for path, message in damage.found:
        session.problem(f"{where}: {show(path)}" if where else show(path), message, About.FILE)
    session.report.more += max(0, damage.files - len(damage.paths))


def check_store(
    store: Store, *, read: float = 0.0, seed: int = 0, only: Collection[str] = (), watcher: Watcher | None = None
) -> Report:
    """Look at a store, and report. Raises nothing for damage. See ``Inspection`` for the arguments."""
    return Inspection(store, read=read, seed=seed, only=only, watcher=watcher).run()


def check_version(store: Store, manifest_id: bytes, watcher: Watcher | None = None) -> Report:
    """Read every byte of one tree, and report. Raises nothing for damage."""
    session = Session(store, watcher, by_file=True)
    places = Places(session)
    packs = places.packs = Packs(session, places.compare, share=1, seed=0)
    places.open(counted=False)
    damage = Trees(session, places).check([manifest_id], whole=True)[manifest_id]
    if damage:
        session.count_no_more()
        places.open(counted=False)
        packs.look_again()
        damage = Trees(session, places).check([manifest_id], whole=True)[manifest_id]
    tell_damage(session, "", damage)
    return session.report
