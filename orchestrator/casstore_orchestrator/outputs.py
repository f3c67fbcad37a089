"""Storing what a task leaves in its output folder.

Decided here and only here: which files each kind of output takes, which outputs are skipped, and what the log says.
The folder is what a task made of it, so nothing in it is followed out of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from casstore import safeyaml
from casstore.errors import CasstoreError, SourceError, UsageError

from .folders import confined, copy_tree, is_empty, local_path, read_small, size_text
from .homes import Homes
from .ports import DataStore, Published, UrlStore
from .provenance import Producer
from .spec import DatasetOutput, TaskSpec, UpdateDatasetOutput, UrlOutput
from .transfers import Say, Stop, repeat

__all__ = ["OutputStorer"]

_MAX_YAML = 1 << 20
_COLON = re.compile(r"(?<!\\):")


class _Skip(Exception):  # noqa: N818 - not an error: this output has nothing to store
    pass


@dataclass(frozen=True, slots=True)
class OutputStorer:
    """Stores the outputs of one workflow's tasks. ``kept`` names the tasks whose output others may read."""

    data: DataStore
    homes: Homes
    kept: frozenset[str]
    file_urls: bool
    urls: UrlStore | None = None

    def store(self, task: TaskSpec, home: Path, producer: Producer, say: Say, stop: Stop) -> list[Published]:
        """Store every declared output, then keep the folder where other tasks of the workflow read it.

        Raises what the transfer raised after its last try. An output that can't be used (a missing path or
        metadata file) is skipped with a line in the log.
        """
        root = confined(home / "data" / "output", "")
        published: list[Published] = []
        if task.outputs and is_empty(root):
            say("No Files in Output Folder")
        for item in task.outputs if not is_empty(root) else ():
            stop.check()
            try:
                if isinstance(item, UrlOutput):
                    self._to_url(item, root, producer, say, stop)
                elif isinstance(item, DatasetOutput):
                    published.append(self._to_dataset(item, root, producer, say, stop))
                else:
                    published.append(self._update(item, root, producer, say, stop))
            except _Skip as reason:
                say(str(reason))
        if task.name in self.kept:
            self.homes.keep_output(producer.workflow_id, task.name, producer.retry_id, producer.inputs, stop)
        return published

    def _to_dataset(self, item: DatasetOutput, root: Path, producer: Producer, say: Say, stop: Stop) -> Published:
        path = item.path or "*"
        source = _source(root, path, f"output {item.name}")
        regex = item.regex or None
        if regex is not None and not _any_match(source, regex):
            msg = f"No Files in Output Folder match {regex}: {item.name} is left as it is"
            raise _Skip(msg)
        metadata, labels = _trees(root, item.name, item.metadata, item.labels)
        say(f"Uploading {_shown(item.path)} to {item.name}")
        published = repeat(
            partial(
                self.data.publish,
                item.name,
                producer.user,
                [source],
                regex=regex,
                metadata=metadata,
                labels=labels,
                origin=producer.metadata(),
                provenance=producer.provenance(),
                stop=stop,
            ),
            f"Uploading to {item.name}",
            say=say,
            stop=stop,
        )
        _report(published, say)
        return published

    def _update(self, item: UpdateDatasetOutput, root: Path, producer: Producer, say: Say, stop: Stop) -> Published:
        additions = []
        for path in item.paths:
            source, folder = _split(path)
            place = _source(root, source, f"output {item.name}").replace(":", "\\:")
            additions.append(f"{place}:{folder}" if folder else place)
        metadata, labels = _trees(root, item.name, item.metadata, item.labels)
        say(f"Adding {', '.join(item.paths)} to {item.name}")
        published = repeat(
            partial(
                self.data.update,
                item.name,
                producer.user,
                additions,
                metadata=metadata,
                labels=labels,
                origin=producer.metadata(),
                provenance=producer.provenance(),
                stop=stop,
            ),
            f"Updating {item.name}",
            say=say,
            stop=stop,
        )
        _report(published, say)
        return published

    def _to_url(self, item: UrlOutput, root: Path, producer: Producer, say: Say, stop: Stop) -> None:
        if self.urls is not None and not item.url.startswith("file:"):
            self._to_storage(self.urls, item, root, producer, say, stop)
            return
        target = local_path(item.url) if self.file_urls else None
        if target is None:
            msg = f"{item.url} can't be written here"
            raise UsageError(msg, hint="Write a dataset instead.")
        say(f"Copying {{{{output}}}} to {item.url}")
        copied = repeat(
            lambda: copy_tree(root, target, regex=item.regex or None, stop=stop, replace=True),
            f"Copying to {item.url}",
            say=say,
            stop=stop,
        )
        say(f"Copied to {item.url}: {copied.files} files, {size_text(copied.size)}")

    @staticmethod
    def _to_storage(urls: UrlStore, item: UrlOutput, root: Path, producer: Producer, say: Say, stop: Stop) -> None:
        say(f"Uploading {{{{output}}}} to {item.url}")
        tries = count()
        moved = repeat(
            lambda: urls.upload(
                item.url,
                producer.user,
                root,
                regex=item.regex or None,
                again=next(tries) > 0,
                tell=say,
                stop=stop,
            ),
            f"Uploading to {item.url}",
            say=say,
            stop=stop,
        )
        say(f"Uploaded to {item.url}: {moved.files} files, {size_text(moved.size)}")


def _shown(path: str | None) -> str:
    return f"{{{{output}}}}/{path}" if path else "{{output}}"


def _source(root: Path, path: str, what: str) -> str:
    """The upload source for a path below the output folder; a trailing ``*`` stays."""
    base = path.removesuffix("*") if path == "*" or path.endswith("/*") else path
    try:
        found = confined(root, base)
    except SourceError as error:
        msg = f"{what} is skipped: {error.message}"
        raise _Skip(msg) from None
    if base != path or found == root:
        if not found.is_dir():
            msg = f"{what} is skipped: {path!r} is not a folder"
            raise _Skip(msg)
        if is_empty(found):
            msg = f"No Files in Output Folder below {path}: {what} is skipped"
            raise _Skip(msg)
        return f"{found}/*"
    return str(found)


def _any_match(source: str, regex: str) -> bool:
    """Whether an upload with this regex would take any file: it sees a folder's name, but not with ``/*``."""
    if not source.endswith("/*") and not os.path.isdir(source):
        return True  # a single file is always taken
    pattern = re.compile(regex)
    folder = source.removesuffix("/*")
    above = folder if source.endswith("/*") else os.path.dirname(folder)
    for place, _, names in os.walk(folder):
        relative = os.path.relpath(place, above)
        prefix = "" if relative == "." else f"{relative}/"
        if any(pattern.match(prefix + name) for name in names):
            return True
    return False


def _split(path: str) -> tuple[str, str]:
    """``src[:dst]``; a colon in ``src`` is written with a backslash before it."""
    parts = _COLON.split(path, maxsplit=1)
    return parts[0].replace("\\:", ":"), parts[1] if len(parts) == 2 else ""


def _trees(
    root: Path, name: str, metadata: Sequence[str], labels: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    return _tree(root, name, metadata, "metadata"), _tree(root, name, labels, "labels")


def _tree(root: Path, name: str, paths: Sequence[str], kind: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            tree = safeyaml.load(read_small(confined(root, path), _MAX_YAML), what=path)
            if not isinstance(tree, dict):
                msg = f"{path} is not a mapping"
                raise SourceError(msg)
        except CasstoreError as error:
            msg = f"Output {name} is skipped: its {kind} can't be used: {error.message}"
            raise _Skip(msg) from None
        merged |= tree
    return merged


def _report(published: Published, say: Say) -> None:
    version = published.version
    for name in published.skipped:
        say(f"  left out: {name}")
    if published.created:
        say(
            f"Uploaded {version.ref}: {version.files} files, {size_text(version.size)}, "
            f"{size_text(published.new_bytes)} of them new to the store"
        )
    else:
        say(f"{version.ref} holds the same files already: no new version was made")
    say(f"Size: {version.size}B   Checksum: {version.checksum}")
