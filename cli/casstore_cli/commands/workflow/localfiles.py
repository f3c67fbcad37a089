"""Local files that a workflow names: ``files[].localpath`` and ``inputs[].dataset.localpath``.

Decided here and only here: which local files a specification may reach (those beside it), how they travel (as base64,
so that binary files and bash's ``${#a[@]}`` survive), and how a local folder becomes a version of a dataset.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from casstore.config import Config
from casstore.errors import SourceError, SpecError, UsageError
from casstore.wire.protocol import MAX_REQUEST_BYTES
from casstore_cli import output

__all__ = ["Document", "mentions_localpath"]

_MAX_FILE_BYTES = MAX_REQUEST_BYTES // 4 * 3  # as base64 it still fits into one request


def mentions_localpath(text: str) -> bool:
    """Whether the text can name local files at all; almost none does, and then it is sent as it is."""
    return "localpath" in text


@dataclass(frozen=True, slots=True)
class _DatasetUse:
    entry: dict[str, Any]
    name: str
    path: str


class Document:
    """A rendered specification whose local paths are replaced step by step.

    ``base`` is the folder of the file; paths are relative to it. ``outside`` allows paths that leave it.
    """

    def __init__(self, rendered: str, base: str, *, outside: bool = False) -> None:
        from casstore import safeyaml
        from casstore_orchestrator.template import Protected

        self._base = os.path.realpath(base)
        self._outside = outside
        self._protected = Protected(rendered)
        self._tree = safeyaml.load(self._protected.text, what="workflow", max_bytes=MAX_REQUEST_BYTES, error=SpecError)

    def text(self) -> str:
        """The specification as it stands now."""
        import yaml

        class Dumper(yaml.SafeDumper):
            """As people write it: scripts as blocks."""

        def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
            style = "|" if "\n" in value else None
            return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

        Dumper.add_representer(str, text)
        dumped: str = yaml.dump(
            self._tree, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1 << 20, default_flow_style=False
        )
        return self._protected.restore(dumped)

    def inline_files(self, *, as_text: bool) -> None:
        """Put the bytes of every ``files[].localpath`` into the specification.

        ``as_text``: as text that the server renders like the rest of the file.
        """
        for task in self._tasks():
            for file in _items(task, "files"):
                local = file.get("localpath")
                if local is None:
                    continue
                where = f"task {task.get('name')}: file {file.get('path')}"
                if file.get("contents") is not None:
                    raise SpecError(f"{where}: only one of 'contents' and 'localpath' may be given")
                data = self._read(self._path(local, where), where)
                del file["localpath"]
                if as_text:
                    try:
                        file["contents"] = data.decode("utf-8")
                    except UnicodeDecodeError:
                        raise SpecError(
                            f"{where}: {local} is not UTF-8 text", hint="Leave out --render-localpath-files."
                        ) from None
                else:
                    file["contents"] = base64.b64encode(data).decode("ascii")
                    file["base64"] = True

    def has_datasets(self) -> bool:
        """Whether an input dataset is to be made from local files; checks their paths."""
        return bool(list(self._datasets()))

    def upload_datasets(self, config: Config, *, quiet: bool) -> None:
        """Upload what inputs name, each folder once, and name the resulting version instead.

        Content that is the newest version already makes no new one.
        """
        done: dict[tuple[str, str], str] = {}
        for use in list(self._datasets()):
            key = (use.name, use.path)
            if key not in done:
                done[key] = self._upload(use, config, quiet=quiet)
            use.entry["name"] = done[key]
            del use.entry["localpath"]

    def _upload(self, use: _DatasetUse, config: Config, *, quiet: bool) -> str:
        from casstore.dataset import parse_ref
        from casstore_cli.remote import visible
        from casstore_cli.stores import open_bucket

        ref = parse_ref(use.name)
        workflow = self._tree.get("workflow", {}) if isinstance(self._tree, dict) else {}
        metadata = {
            "default": {
                "workflow_name": str(workflow.get("name", "")),
                "localpath_dataset": True,
                "localpath": use.path,
            }
        }
        with open_bucket(ref.bucket, write=True, config=visible(config)) as bucket:
            result = bucket.upload(ref.name, [use.path], metadata=metadata)
        version = result.version.record.number
        if not quiet:
            if result.created:
                output.message(f"Uploaded {use.path} as {use.name}:{version}, {output.size(result.new_bytes)} new.")
            else:
                output.message(f"{use.path} is unchanged: {use.name}:{version}.")
        return f"{use.name}:{version}"

    def _datasets(self) -> Iterator[_DatasetUse]:
        for task in self._tasks():
            for item in _items(task, "inputs"):
                entry = item.get("dataset")
                if not isinstance(entry, dict) or entry.get("localpath") is None:
                    continue
                name = entry.get("name")
                where = f"task {task.get('name')}: dataset {name}"
                if not isinstance(name, str) or ":" in name:
                    raise SpecError(f"{where}: a dataset with a localpath has a name without a tag")
                yield _DatasetUse(entry, name, self._source(entry["localpath"], where))

    def _source(self, local: object, where: str) -> str:
        """The argument for an upload: ``dir/*`` stands for what is in the folder."""
        if isinstance(local, str) and local.endswith("/*"):
            return self._path(local[:-2], where) + "/*"
        return self._path(local, where)

    def _path(self, local: object, where: str) -> str:
        if not isinstance(local, str) or not local or "\0" in local:
            raise SpecError(f"{where}: localpath must be the path of a file")
        path = os.path.realpath(os.path.join(self._base, self._protected.restore(local)))
        if not self._outside and path != self._base and not path.startswith(self._base.rstrip("/") + "/"):
            raise UsageError(
                f"{where}: {local} is outside {self._base}, the folder of the workflow file",
                hint="If that is meant, allow it with --allow-outside-paths.",
            )
        if not os.path.exists(path):
            raise SourceError(f"{where}: {path} does not exist", hint="Paths are relative to the workflow file.")
        return path

    @staticmethod
    def _read(path: str, where: str) -> bytes:
        if not os.path.isdir(path) and not os.path.isfile(path):
            raise SourceError(f"{where}: {path} is not an ordinary file")
        try:
            with open(path, "rb") as file:
                data = file.read(_MAX_FILE_BYTES + 1)
        except OSError as exc:
            raise SourceError(f"{where}: can't read {path}: {exc.strerror}") from None
        if len(data) > _MAX_FILE_BYTES:
            raise SourceError(
                f"{where}: {path} is too large to be part of a workflow",
                hint="Use a dataset as an input, which may have a localpath too.",
            )
        return data

    def _tasks(self) -> Iterator[dict[str, Any]]:
        workflow = self._tree.get("workflow") if isinstance(self._tree, dict) else None
        if isinstance(workflow, dict):
            yield from _items(workflow, "tasks")
            for group in _items(workflow, "groups"):
                yield from _items(group, "tasks")


def _items(parent: dict[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """The mappings in a list; whatever is not as it should be is left to the server, which names the place."""
    found = parent.get(key)
    if isinstance(found, list):
        yield from (item for item in found if isinstance(item, dict))
