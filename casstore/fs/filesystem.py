"""The file system itself, as fsspec wants it.

Decided here and only here: what is listed where, and what is said of an entry. At the top are the user's buckets, in a
bucket its datasets and collections, in a collection its members, in a dataset the files of one version. A tag is looked
up when it is first asked for, and means the same version from then on. Nothing can be written.

What ``info`` says: ``name``, ``size``, ``type``, and within a version ``mode``, ``mtime``, ``islink``, ``destination``
of a link, ``version`` (its number) and ``digest``. A link to a file is a file; in listings one to a folder, or to
nowhere, is a ``link``, so that walks end.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from fsspec.spec import AbstractFileSystem

from casstore.dataset.summary import Version
from casstore.errors import CasstoreError, UsageError
from casstore.fs import opened
from casstore.fs.file import OsmoFile
from casstore.fs.names import ROOT, Address, follow, parse
from casstore.fs.opened import Source, Sources, as_os_error, translated
from casstore.model import Entry, Kind
from casstore.repo.tree import Tree
from casstore.transfer.ranges import Layout, Wanted

__all__ = ["OsmoFileSystem"]

_FORMAT = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}

Info = dict[str, Any]


class _Place(NamedTuple):
    """Where a path is within a version. ``head`` is the path of the version's top."""

    source: Source
    version: Version
    tree: Tree
    head: str
    path: bytes


class OsmoFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Versions of datasets, for reading: ``osmo://[bucket/]name[:tag]/path``, or ``name@digest``.

    Buckets and credentials are those that the ``osmo`` command uses. Thread-safe, and safe to use after a fork;
    pickled, it looks tags up again where it is unpickled: see ``pinned``. Errors are those of files:
    ``FileNotFoundError``, ``PermissionError``, other ``OSError`` where the store failed or is damaged.
    """

    protocol = "osmo"
    root_marker = ""

    def __init__(self, **options: Any) -> None:
        """``options`` are fsspec's own."""
        super().__init__(**options)
        self._configuration = opened.here()

    @property
    def fsid(self) -> str:
        """What tells this file system from others."""
        return "osmo"

    @property
    def _sources(self) -> Sources:
        return opened.of(self._configuration)

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        found = super()._strip_protocol(path)
        return found.lstrip("/") if isinstance(found, str) else found

    def invalidate_cache(self, path: str | None = None) -> None:
        """Look up what tags mean again, in all instances of this process. Files that are open stay as they are."""
        self._sources.forget()

    def pinned(self, path: str) -> str:
        """Return the path with the number of the version in place of a tag: it means the same everywhere, for ever."""
        path = self._strip_protocol(path)
        with translated(path):
            found = self._place(self._parse(path))
        if found is None:
            raise _missing(path, "names no version")
        inside = f"/{os.fsdecode(found.path)}" if found.path else ""
        return f"{self.protocol}://{found.source.bucket.name}/{found.version.dataset}:{found.version.number}{inside}"

    # ---- looking

    def info(self, path: str, **_: Any) -> Info:
        """Return what is said of one path; of what it leads to, where it is a link."""
        path = self._strip_protocol(path)
        if not path:
            return _folder("")
        with translated(path):
            address = self._parse(path)
            place = self._place(address)
            if place is None:
                if address.path:
                    raise _missing(path)
                return _folder(path)
            return self._info(place, path)

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        """Return what is in a folder, sorted by name; of a file, that file."""
        path = self._strip_protocol(path)
        with translated(path):
            found = self._ls(path)
        return found if detail else [info["name"] for info in found]

    def _ls(self, path: str) -> list[Info]:
        if not path:
            return [_folder(name) for name in self._sources.buckets]
        address = self._parse(path)
        if address.name is None:
            bucket = self._sources.source(address.bucket).bucket
            return [_folder(f"{path}/{name}") for name in sorted(summary.name for summary in bucket.list())]
        place = self._place(address)
        if place is None:
            if address.path:
                raise _missing(path)
            chosen = self._sources.choose(address.bucket, address.name, address.tag, address.digest)
            return [_folder(f"{path}/{name}") for name in sorted(chosen.members)]
        entry = follow(place.tree, place.path)
        if entry is None:
            raise _missing(path)
        if entry.kind != Kind.DIRECTORY:
            return [self._info(place, path)]
        return [
            self._listed(place, below, f"{path}/{os.fsdecode(below.name)}")[0]
            for below in place.tree.listdir(entry.path)
        ]

    def find(
        self,
        path: str,
        maxdepth: int | None = None,
        withdirs: bool = False,
        detail: bool = False,
        **options: Any,
    ) -> Any:
        """Return all files below a path, in one pass over each version. Links are listed if they lead to files, and
        with ``withdirs`` if they lead to folders; those are not followed.
        """
        path = self._strip_protocol(path)
        if maxdepth is not None and maxdepth < 1:
            raise ValueError("maxdepth must be at least 1")
        found: dict[str, Info] = {}
        with contextlib.suppress(FileNotFoundError), translated(path):
            found = {info["name"]: info for info in self._find(path, maxdepth, withdirs=withdirs)}
        names = sorted(found)
        return {name: found[name] for name in names} if detail else names

    def _find(self, path: str, maxdepth: int | None, *, withdirs: bool) -> Iterator[Info]:
        place = self._place(self._parse(path)) if path else None
        if place is not None:
            yield from self._find_in(place, path, maxdepth, withdirs=withdirs)
            return
        below = self._ls(path)
        if withdirs and path:
            yield _folder(path)
        for info in below:
            if maxdepth is None or maxdepth > 1:
                yield from self._find(info["name"], maxdepth and maxdepth - 1, withdirs=withdirs)
            elif withdirs:
                yield info

    def _find_in(self, place: _Place, path: str, maxdepth: int | None, *, withdirs: bool) -> Iterator[Info]:
        top = follow(place.tree, place.path)
        if top is None:
            return
        if top.kind != Kind.DIRECTORY:
            yield self._info(place, path)
            return
        if withdirs:
            yield self._info(place, path)
        strip = len(top.path) + 1 if top.path else 0
        for entry in place.tree.entries(top.path):
            if entry.path == top.path or (maxdepth and entry.path.count(b"/", strip) >= maxdepth):
                continue
            if entry.kind == Kind.DIRECTORY and not withdirs:
                continue
            info, target = self._listed(place, entry, f"{path}/{os.fsdecode(entry.path[strip:])}")
            if target is not None and (withdirs or target.kind == Kind.FILE):
                yield info

    def walk(
        self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = None, **options: Any
    ) -> Iterator[Any]:
        """As in fsspec, but what can't be read is not taken for empty: by default only a missing path is."""
        walked: Iterator[Any] = super().walk(path, maxdepth, topdown, on_error or _unless_missing, **options)
        return walked

    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is such a file or folder. What can't be found out is an error."""
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isdir(self, path: str) -> bool:
        """Whether this is a folder."""
        return self._is(path, "directory")

    def isfile(self, path: str) -> bool:
        """Whether this is a file."""
        return self._is(path, "file")

    def _is(self, path: str, kind: str) -> bool:
        try:
            return bool(self.info(path)["type"] == kind)
        except FileNotFoundError:
            return False

    def ukey(self, path: str) -> str:
        """Return what changes when the content of a path does."""
        info = self.info(path)
        return f"{info.get('digest', '')}/{info['name']}"

    def modified(self, path: str) -> Any:
        """Return when a file was last changed, as a ``datetime``."""
        from datetime import UTC, datetime  # noqa: PLC0415

        return datetime.fromtimestamp(self.info(path).get("mtime", 0), UTC)

    # ---- reading

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """Return a file, or a part of it; negative numbers count from its end."""
        (found,) = self.cat_ranges([path], [start], [end], on_error="raise")
        return bytes(found)

    def cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        """Return parts of files; what is near to each other in the store is fetched with one request.

        With ``on_error`` ``"return"`` an exception stands for what can't be read.
        """
        if not isinstance(paths, list):
            raise TypeError("paths must be a list")
        starts = starts if isinstance(starts, list) else [starts] * len(paths)
        ends = ends if isinstance(ends, list) else [ends] * len(paths)
        if len(starts) != len(paths) or len(ends) != len(paths):
            raise ValueError("paths, starts and ends must be of one length")
        results: list[Any] = [None] * len(paths)
        files: dict[str, tuple[Source, Layout] | Exception] = {}
        work: dict[int, tuple[Source, list[tuple[int, Wanted]]]] = {}
        for at, (name, start, end) in enumerate(zip(paths, starts, ends, strict=True)):
            path = self._strip_protocol(name)
            if path not in files:
                files[path] = self._try_file(path)
            file = files[path]
            if isinstance(file, Exception):
                results[at] = file
                continue
            source, layout = file
            first, last, _step = slice(start, end).indices(layout.size)
            work.setdefault(id(source), (source, []))[1].append((at, (layout, first, max(0, last - first))))
        for source, wanted in work.values():
            for batch in _batches(wanted, source.ranges.step):
                self._read_batch(source, batch, paths, results)
        if on_error != "return":
            for result in results:
                if isinstance(result, Exception):
                    raise result
        return results

    def _read_batch(self, source: Source, batch: list[tuple[int, Wanted]], paths: list[str], into: list[Any]) -> None:
        found: Sequence[list[memoryview] | CasstoreError]
        try:
            if len(batch) == 1 and batch[0][1][2] > source.ranges.step:
                into[batch[0][0]] = _read_long(source, *batch[0][1])
                return
            found = source.ranges.read_many([wanted for _, wanted in batch])
        except CasstoreError as error:
            found = [error] * len(batch)
        for (at, _), part in zip(batch, found, strict=True):
            into[at] = as_os_error(part, paths[at]) if isinstance(part, CasstoreError) else b"".join(part)

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **options: Any) -> Any:
        """Return a file, or a mapping of several paths to their contents, which are fetched together."""
        paths = self.expand_path(path, recursive=recursive, **options)
        if len(paths) == 1 and not isinstance(path, list) and paths[0] == self._strip_protocol(path):
            return self.cat_file(paths[0])
        if recursive:
            paths = [one for one in paths if not self.isdir(one)]
        found = dict(zip(paths, self.cat_ranges(paths, None, None), strict=True))
        if on_error == "raise":
            for content in found.values():
                if isinstance(content, Exception):
                    raise content
        if on_error == "omit":
            return {name: content for name, content in found.items() if not isinstance(content, Exception)}
        return found

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        cache_type: str = "none",
        **_: Any,
    ) -> OsmoFile:
        if mode != "rb":
            _refuse(path)
        path = self._strip_protocol(path)
        with translated(path):
            place, entry = self._file(path)
            layout = self._layout(place, entry)
            details = self._info(place, path)
        bucket = place.source.bucket.name
        return OsmoFile(
            self,
            path,
            lambda: self._sources.source(bucket),
            layout,
            details=details,
            block_size=block_size,
            cache_type=cache_type,
            cache_options=cache_options,
        )

    # ---- what can't be done

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Refused, as all that changes anything."""
        _refuse(path)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Refused."""
        _refuse(path)

    def rmdir(self, path: str) -> None:
        """Refused."""
        _refuse(path)

    def _rm(self, path: str) -> None:
        _refuse(path)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Refused."""
        _refuse(path2)

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **_: Any) -> None:
        """Refused."""
        _refuse(path1)

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:
        """Refused."""
        _refuse(rpath)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Refused."""
        _refuse(path)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """Refused."""
        _refuse(path)

    # ---- from a path to what is there

    def _parse(self, path: str) -> Address:
        try:
            return parse(path, self._sources.config.buckets)
        except UsageError as error:
            raise _missing(path, error.message) from None

    def _place(self, address: Address) -> _Place | None:
        """Return the version that a path is in; None for what is above versions."""
        if address.name is None:
            return None
        chosen = self._sources.choose(address.bucket, address.name, address.tag, address.digest)
        source = self._sources.source(address.bucket)
        version, head, path = chosen.version, address.head, address.path
        if version is None:
            member, _, path = path.partition(b"/")
            name = os.fsdecode(member)
            version = chosen.members.get(name)
            if version is None:
                return None
            head = f"{head}/{name}"
        return _Place(source, version, source.tree(version), head, path)

    def _file(self, path: str) -> tuple[_Place, Entry]:
        place = self._place(self._parse(path))
        entry = None if place is None else follow(place.tree, place.path)
        if place is None or entry is None:
            if self.isdir(path):
                raise IsADirectoryError(errno.EISDIR, "is a folder", path)
            raise _missing(path)
        if entry.kind != Kind.FILE:
            raise IsADirectoryError(errno.EISDIR, "is a folder", path)
        return place, entry

    @staticmethod
    def _layout(place: _Place, entry: Entry) -> Layout:
        return place.source.ranges.layout((place.tree.id, entry.path), place.tree, entry.size, entry.content)

    def _try_file(self, path: str) -> tuple[Source, Layout] | Exception:
        try:
            with translated(path):
                place, entry = self._file(path)
                return place.source, self._layout(place, entry)
        except (OSError, ValueError) as error:
            return error

    def _info(self, place: _Place, path: str) -> Info:
        """Return what is said of a path, links followed."""
        itself = place.tree.lookup(place.path) if place.path else ROOT
        entry = follow(place.tree, place.path)
        if entry is not None:
            return _said(place.version, path, entry, itself if itself and itself.kind == Kind.SYMLINK else None)
        if itself is None:
            raise _missing(path)
        return _said(place.version, path, itself, itself)

    @staticmethod
    def _listed(place: _Place, entry: Entry, name: str) -> tuple[Info, Entry | None]:
        """Return what is said of an entry in a listing, and what it leads to."""
        if entry.kind != Kind.SYMLINK:
            return _said(place.version, name, entry, None), entry
        target = follow(place.tree, entry.path)
        shown = target if target is not None and target.kind == Kind.FILE else entry
        return _said(place.version, name, shown, entry), target


def _read_long(source: Source, layout: Layout, offset: int, size: int) -> bytes:
    """Return a long range, read in steps, so that memory holds it once."""
    whole = io.BytesIO()
    step = source.ranges.step
    for start in range(offset, offset + size, step):
        for piece in source.ranges.read(layout, start, min(step, offset + size - start)):
            whole.write(piece)
    return whole.getvalue()


def _folder(path: str) -> Info:
    return {"name": path, "size": 0, "type": "directory"}


def _said(version: Version, path: str, entry: Entry, link: Entry | None) -> Info:
    kind = Kind(entry.kind)
    info = {
        "name": path,
        "size": entry.size,
        "type": {Kind.FILE: "file", Kind.DIRECTORY: "directory", Kind.SYMLINK: "link"}[kind],
        "mode": _FORMAT[kind] | entry.mode,
        "mtime": entry.mtime_ns / 1e9,
        "islink": link is not None,
        "version": version.number,
        "digest": version.record.manifest,
    }
    if link is not None:
        info["destination"] = os.fsdecode(link.target)
    return info


def _batches(wanted: list[tuple[int, Wanted]], step: int) -> Iterator[list[tuple[int, Wanted]]]:
    batch: list[tuple[int, Wanted]] = []
    size = 0
    for one in wanted:
        if batch and size + one[1][2] > step:
            yield batch
            batch, size = [], 0
        batch.append(one)
        size += one[1][2]
    if batch:
        yield batch


def _unless_missing(error: Exception) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _missing(path: str, why: str = "no such file or folder") -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, why, path)


def _refuse(path: str) -> NoReturn:
    raise OSError(errno.EROFS, "versions never change: make a new one with `osmo dataset upload`", path)
