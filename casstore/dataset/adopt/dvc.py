"""Data that DVC tracks: what `.dvc` files and `dvc.lock` name, from a DVC cache or remote.

Decided here and only here: how DVC's files are read, and where an object is looked for.

    files/md5/<2 hex>/<30 hex>        DVC 3: the MD5 of the bytes
    <2 hex>/<30 hex>                  before: the MD5 of the bytes, of text with the line ends of Unix
    ...dir                            a folder: a JSON array of its files; its name is the MD5 of this text

An output without ``hash: md5`` was written before DVC 3, or by it for such an output.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from casstore import safeyaml
from casstore.dataset.adopt.base import Buckets, Found
from casstore.dataset.adopt.manifest import DvcEntry, read_list
from casstore.errors import FormatError, NotFoundError, SourceError, UsageError
from casstore.remote.base import ObjectClient, RemoteInfo
from casstore.transfer.digests import Expected
from casstore.transfer.spool import UNKNOWN, ForeignFile, ForeignFolder

__all__ = ["Dvc", "Out", "find_cache", "is_dvc", "load_outs"]

_MD5 = re.compile(r"(?:md5:)?([0-9a-f]{32})(\.dir)?\Z", re.ASCII)
_MAX_FILE = 16 << 20


class Out(msgspec.Struct, frozen=True):
    """One output: a file, or a folder whose files an object lists. ``where`` names it in messages."""

    where: str
    path: str
    md5: str
    folder: bool
    legacy: bool
    mode: int = 0o644


def is_dvc(path: str) -> bool:
    """Whether this names outputs of DVC: a `.dvc` file, a `dvc.lock`, or the digest of a folder."""
    return os.path.isfile(path) and (path.endswith(".dvc") or os.path.basename(path) == "dvc.lock")


def load_outs(sources: Sequence[str]) -> list[Out]:
    """Return what `.dvc` files, `dvc.lock` files and digests name. ``UsageError`` for anything else."""
    outs: list[Out] = []
    for source in sources:
        digest = _MD5.match(source)
        if digest:
            outs.append(Out(source, "" if digest[2] else digest[1], digest[1], bool(digest[2]), legacy=True))
        else:
            outs += _outs_of(source)
    if not outs:
        raise UsageError("no output of DVC is named", hint="name .dvc files, a dvc.lock, or the md5 of a folder (.dir)")
    return outs


def _outs_of(source: str) -> list[Out]:
    try:
        with open(source, "rb") as file:
            text = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise SourceError(f"can't read {source}: {error.strerror}") from None
    found = safeyaml.load(text, what=source, max_bytes=_MAX_FILE)
    if not isinstance(found, dict):
        raise UsageError(f"{source} is not a file of DVC")
    if os.path.basename(source) != "dvc.lock":
        wdir = found.get("wdir", ".")
        return [_out(source, out, str(wdir)) for out in _list(found.get("outs"), source)]
    stages = found.get("stages") if "schema" in found else found
    if not isinstance(stages, dict):
        raise UsageError(f"{source} has no stages")
    return [
        _out(f"{source}, stage {str(name)[:80]}", out, ".")
        for name, stage in stages.items()
        if isinstance(stage, dict)
        for out in _list(stage.get("outs"), source)
    ]


def _list(value: object, source: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise UsageError(f"{source}: outs is not a list")
    return value


def _out(where: str, out: object, wdir: str) -> Out:
    if not isinstance(out, dict) or not isinstance(out.get("path"), str):
        raise UsageError(f"{where}: an output has no path")
    path = out["path"]
    if "files" in out or "cloud" in out:
        raise UsageError(
            f"{where}: {path[:200]!r} is versioned by the cloud, not kept in a cache",
            hint="take the files over from where they are: osmo dataset adopt NAME URL",
        )
    digest = _MD5.match(str(out.get("md5", "")))
    if digest is None:
        raise UsageError(f"{where}: {path[:200]!r} has no md5", hint="commit it with DVC first: dvc commit")
    if not path.startswith("/"):
        path = os.path.normpath(os.path.join(wdir, path))
    mode = 0o755 if out.get("isexec") is True else 0o644
    return Out(where, path, digest[1], bool(digest[2]), out.get("hash") != "md5", mode)


def find_cache(start: str) -> str:
    """Return the folder of the cache of the DVC project that a file is in. ``UsageError`` when it is in none."""
    folder = os.path.dirname(os.path.realpath(start))
    while True:
        dvc = os.path.join(folder, ".dvc")
        if os.path.isdir(dvc):
            return os.path.realpath(os.path.join(dvc, _cache_dir(dvc)))
        above = os.path.dirname(folder)
        if above == folder:
            raise UsageError(
                f"{start} is not in a project of DVC", hint="say where its cache or remote is: --cache URL|FOLDER"
            )
        folder = above


def _cache_dir(dvc: str) -> str:
    """What the project's configuration says, the user's own part first."""
    for name in ("config.local", "config"):
        parser = configparser.ConfigParser(interpolation=None, strict=False)
        try:
            parser.read(os.path.join(dvc, name), encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError):
            continue
        found = parser.get("cache", "dir", fallback=None)
        if found:
            return found
    return "cache"


class Dvc:
    """Outputs of DVC, from the cache or remote at ``url``: a ``Foreign``."""

    def __init__(self, outs: Sequence[Out], url: str, buckets: Buckets) -> None:
        self.url = url
        self._outs = outs
        self._client: ObjectClient
        self._client, path = buckets.open(url)
        self._prefix = f"{path}/" if path else ""
        self._legacy = 0

    def entries(self) -> Iterator[Found]:
        """See ``Foreign.entries``."""
        self._legacy = 0
        for out in self._outs:
            path = out.path.encode("utf-8", "surrogatepass")
            self._legacy += out.legacy
            try:
                info, legacy = self._find(out)
            except NotFoundError:
                where = f"{self._client.url}/{self._prefix}"
                problem = f"{out.md5}{'.dir' if out.folder else ''} is not in the cache at {where}"
                yield Found(out.where, None, path, problem)
                continue
            mtime = int(info.mtime) * 10**9
            if out.folder:
                yield from self._folder(out, path, info, legacy)
                continue
            expected = Expected(out.md5, text=out.legacy)
            file = ForeignFile(path, info.size, self._client.url, info.key, info.etag, out.mode, mtime, expected)
            yield Found(out.where, file)

    def _find(self, out: Out) -> tuple[RemoteInfo, bool]:
        """Look where it should be, then in the other layout."""
        last = NotFoundError("")
        for legacy in (out.legacy, not out.legacy):
            try:
                return self._client.head(self._key(out.md5, legacy) + (".dir" if out.folder else "")), legacy
            except NotFoundError as error:
                last = error
        raise last

    def _key(self, md5: str, legacy: bool) -> str:
        return f"{self._prefix}{'' if legacy else 'files/md5/'}{md5[:2]}/{md5[2:]}"

    def _folder(self, out: Out, base: bytes, info: RemoteInfo, legacy: bool) -> Iterator[Found]:
        if base not in {b"", b"."}:
            yield Found(out.where, ForeignFolder(base))
        below = b"" if base in {b"", b"."} else base + b"/"
        listed = f"{self._client.url}/{info.key}"
        mtime = int(info.mtime) * 10**9
        digest = hashlib.md5(usedforsecurity=False)
        try:
            for number, entry in enumerate(read_list(self._client, info, DvcEntry, digest.update), 1):
                where = f"{listed}, entry {number}"
                path = below + entry.relpath.encode("utf-8", "surrogatepass")
                found = _MD5.match(entry.md5)
                if found is None or found[2]:
                    yield Found(where, None, path, "it has no md5")
                    continue
                key = self._key(found[1], legacy)
                expected = Expected(found[1], text=out.legacy)
                file = ForeignFile(path, UNKNOWN, self._client.url, key, "", 0o644, mtime, expected)
                yield Found(where, file)
        except FormatError as error:
            raise FormatError(f"{listed}: {error.message}") from None
        if digest.hexdigest() != out.md5:
            raise FormatError(f"{listed} is damaged: its MD5 is {digest.hexdigest()}")

    def provenance(self) -> dict[str, Any]:
        """See ``Foreign.provenance``."""
        outs = [{"path": out.path, "md5": out.md5 + (".dir" if out.folder else "")} for out in self._outs[:100]]
        return {"from": "dvc", "source": self.url, "outs": outs, "legacy": self._legacy}
