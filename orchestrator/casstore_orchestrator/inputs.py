"""Putting the inputs of a task in place.

Decided here and only here: what each kind of input becomes on the disk, when the version behind a name is fixed (once
for all attempts of a group's run), and what the log says about it. What can be seen without a copy (``views``) is laid
before the task's sandbox is made, the rest is fetched while the sandbox waits.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from casstore.errors import CasstoreError, NotFoundError, SourceError, UsageError

from .folders import copy_tree, is_empty, listing, local_path, remove_tree, size_text
from .homes import Homes, tree_checksum
from .ports import DatasetVersion, DataStore, InputLayer, UrlStore
from .provenance import InputNote
from .spec import DatasetInput, Input, TaskInput, TaskSpec, UrlInput
from .transfers import Say, Stop, repeat
from .views import Views

__all__ = ["InputFetcher"]


@dataclass(frozen=True, slots=True)
class InputFetcher:
    """Fetches the inputs of the tasks of one group; a dataset's name means one version for all of them."""

    data: DataStore
    homes: Homes
    workflow_id: str
    user: str
    file_urls: bool
    urls: UrlStore | None
    versions: dict[str, tuple[DatasetVersion, ...]]
    lock: threading.Lock
    views: Views | None = None

    @classmethod
    def make(
        cls,
        data: DataStore,
        homes: Homes,
        workflow_id: str,
        user: str,
        *,
        file_urls: bool,
        urls: UrlStore | None = None,
        views: Views | None = None,
    ) -> InputFetcher:
        """A fetcher that has not resolved any name yet."""
        return cls(data, homes, workflow_id, user, file_urls, urls, {}, threading.Lock(), views)

    def lay(self, task: TaskSpec, home: Path, stop: Stop) -> tuple[InputLayer, ...]:
        """Lay the inputs that need no copy. Whatever stands against that is left to ``fetch``; ``CancelledError``."""
        views = self.views
        if views is None:
            return ()
        for index, item in enumerate(task.inputs):
            stop.check()
            if isinstance(item, DatasetInput):
                self._lay_dataset(views, task, item, home, index, stop)
            elif isinstance(item, TaskInput) and item.regex:
                views.refuse(task, home, str(index))
            elif isinstance(item, TaskInput):
                workflow_id, name = self._producer(item)
                with contextlib.suppress(NotFoundError):
                    views.lay_folder(task, home, str(index), self.homes.kept_output(workflow_id, name)[0])
        return views.layers(home)

    def _lay_dataset(
        self, views: Views, task: TaskSpec, item: DatasetInput, home: Path, index: int, stop: Stop
    ) -> None:
        try:
            with self.lock:
                if item.name not in self.versions:
                    self.versions[item.name] = self.data.resolve(item.name, self.user)
                versions = self.versions[item.name]
        except (CasstoreError, OSError):
            return  # fetching tries again, and tells
        names = [version.name for version in versions]
        for version in versions:
            at = f"{index}/{version.name}"
            if names.count(version.name) > 1:
                views.refuse(task, home, at, "the collection holds it more than once")
            else:
                views.lay_version(task, home, at, version, stop, regex=item.regex or "")

    def fetch(self, task: TaskSpec, home: Path, say: Say, stop: Stop) -> tuple[InputNote, ...]:
        """Fill ``home/data/input/<i>`` for every input and note what it was.

        Raises what the transfer raised after its last try, ``NotFoundError`` for what does not exist.
        """
        notes: list[InputNote] = []
        for index, item in enumerate(task.inputs):
            stop.check()
            target = home / "data" / "input" / str(index)
            target.mkdir(parents=True, exist_ok=True)
            shown: dict[str, Path] = {}
            notes.extend(self._fetch_one(item, home, target, shown, say, stop))
            for line in listing(target, shown=shown):
                say(f"  {line}")
        return tuple(notes)

    def _fetch_one(
        self, item: Input, home: Path, target: Path, shown: dict[str, Path], say: Say, stop: Stop
    ) -> list[InputNote]:
        """``shown`` takes what lies elsewhere: by the folder in ``target``, that one itself by the empty name."""
        place = f"{{{{input:{target.name}}}}}"
        if isinstance(item, DatasetInput):
            return self._fetch_dataset(item, place, home, target, shown, say, stop)
        if isinstance(item, TaskInput):
            return [self._fetch_task(item, place, home, target, shown, say, stop)]
        return [self._fetch_url(item, place, target, say, stop)]

    def _source(self, home: Path, at: str, what: str, how: str, say: Say) -> Path | None:
        """What an input shows; None when it has to be copied, which the log is told then."""
        view = self.views.find(home, at) if self.views is not None else ""
        if isinstance(view, InputLayer):
            return view.source
        if view:
            say(f"{what} is {how}, not mounted: {view}")
        return None

    def resolve(self, ref: str, say: Say, stop: Stop) -> tuple[DatasetVersion, ...]:
        """The versions behind a reference: fixed by whichever task of the group asks first."""
        with self.lock:
            if ref not in self.versions:
                self.versions[ref] = repeat(
                    lambda: self.data.resolve(ref, self.user), f"Looking up {ref}", say=say, stop=stop
                )
            return self.versions[ref]

    def _fetch_dataset(
        self,
        item: DatasetInput,
        place: str,
        home: Path,
        target: Path,
        shown: dict[str, Path],
        say: Say,
        stop: Stop,
    ) -> list[InputNote]:
        notes = []
        for version in self.resolve(item.name, say, stop):
            regex = item.regex or None
            source = self._source(home, f"{target.name}/{version.name}", version.ref, "downloaded", say)
            if source is not None:
                shown[version.name] = source
                what = f"files matching {regex}" if regex else f"{version.files} files, {size_text(version.size)}"
                say(f"Mounted {version.ref} ({what}) at {place}")
                notes.append(InputNote.of_version(version, item.name, regex))
                continue
            chosen = f", files matching {regex}" if regex else ""
            say(f"Downloading {version.ref} ({size_text(version.size)}{chosen}) to {place}")
            moved = repeat(
                partial(self.data.download, version, self.user, target, regex=regex, stop=stop),
                f"Downloading {version.ref}",
                say=say,
                stop=stop,
            )
            say(f"Downloaded {version.ref} to {place}: {moved.files} files, {size_text(moved.size)}")
            notes.append(InputNote.of_version(version, item.name, regex))
        return notes

    def _producer(self, item: TaskInput) -> tuple[str, str]:
        workflow_id, _, name = item.task.rpartition(":")
        return workflow_id or self.workflow_id, name

    def _fetch_task(
        self, item: TaskInput, place: str, home: Path, target: Path, shown: dict[str, Path], say: Say, stop: Stop
    ) -> InputNote:
        workflow_id, name = self._producer(item)
        ref = f"{workflow_id}:{name}"
        try:
            source, kept = self.homes.kept_output(workflow_id, name)
        except NotFoundError:
            if item.external and not item.optional:
                raise
            say(f"Task {name} has left no output: {place} is empty")
            return InputNote(kind="task", ref=ref, regex=item.regex or None)
        layer = self._source(home, target.name, f"The output of task {ref}", "copied", say)
        if layer is not None:
            shown[""] = layer
            say(f"Mounted the output of task {ref} ({kept.files} files, {size_text(kept.size)}) at {place}")
        else:
            say(f"Copying the output of task {ref} ({size_text(kept.size)}) to {place}")
            copied = self._copy(source, target, f"Copying the output of {ref}", regex=item.regex, say=say, stop=stop)
            say(f"Copied the output of task {ref} to {place}: {copied}")
        return InputNote(
            kind="task",
            ref=ref,
            regex=item.regex or None,
            checksum=kept.checksum,
            files=kept.files,
            size=kept.size,
        )

    def _fetch_url(self, item: UrlInput, place: str, target: Path, say: Say, stop: Stop) -> InputNote:
        if self.urls is not None and not item.url.startswith("file:"):
            return self._fetch_storage(self.urls, item, place, target, say, stop)
        source = local_path(item.url) if self.file_urls else None
        if source is None:
            msg = f"{item.url} can't be read here"
            raise UsageError(msg, hint="Upload the data as a dataset and name that instead.")
        if source.is_symlink() or not source.exists():
            msg = f"{item.url} does not exist"
            raise NotFoundError(msg)
        say(f"Copying {item.url} to {place}")
        copied = self._copy(source, target, f"Copying {item.url}", regex=item.regex, say=say, stop=stop)
        say(f"Copied {item.url} to {place}: {copied}")
        checksum, files, size = tree_checksum(target, stop)
        return InputNote(kind="url", ref=item.url, regex=item.regex or None, checksum=checksum, files=files, size=size)

    def _fetch_storage(
        self, urls: UrlStore, item: UrlInput, place: str, target: Path, say: Say, stop: Stop
    ) -> InputNote:
        regex = item.regex or None
        chosen = f", files matching {regex}," if regex else ""
        say(f"Downloading {item.url}{chosen} to {place}")
        moved = repeat(
            partial(urls.download, item.url, self.user, target, regex=regex, tell=say, stop=stop),
            f"Downloading {item.url}",
            say=say,
            stop=stop,
        )
        say(f"Downloaded {item.url} to {place}: {moved.files} files, {size_text(moved.size)}")
        return InputNote(
            kind="url", ref=item.url, regex=regex, checksum=moved.digest, files=moved.files, size=moved.size
        )

    @staticmethod
    def _copy(source: Path, target: Path, what: str, *, regex: str | None, say: Say, stop: Stop) -> str:
        if not source.is_dir():
            msg = f"{what}: only a folder can be an input"
            raise SourceError(msg)

        def work() -> str:
            if not is_empty(target):  # left by a try that failed
                remove_tree(target)
            done = copy_tree(source, target, regex=regex or None, stop=stop)
            left_out = f", {done.skipped} special files left out" if done.skipped else ""
            return f"{done.files} files, {size_text(done.size)}{left_out}"

        return repeat(work, what, say=say, stop=stop)
