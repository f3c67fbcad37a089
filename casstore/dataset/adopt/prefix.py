"""Everything below a URL of object storage, or the one object that it names, as one version.

Decided here and only here: where the objects land. There is nothing to compare their bytes with: each is read from the
state in which it was listed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from casstore.dataset.adopt.base import Buckets, Found
from casstore.errors import NotFoundError
from casstore.remote.urls import shown
from casstore.transfer.raw.listing import Place
from casstore.transfer.spool import ForeignFile, ForeignFolder

__all__ = ["Prefix"]


class Prefix:
    """A ``Foreign``. ``dest``: the folder of the version that everything lands in, ``b""`` for its top.

    ``named``: below ``dest``, a prefix keeps its own last component, as a folder that is uploaded does.
    """

    def __init__(self, url: str, buckets: Buckets, *, dest: bytes = b"", named: bool = False) -> None:
        self.url = shown(url)
        self._client, path = buckets.open(url)
        self._place = Place(self._client, path, self.url)
        self._dest = dest
        self._named = os.fsencode(path.rpartition("/")[2]) if named else b""
        self._files = 0
        self.alone: bytes | None = None
        """The path in the version of the object that the URL names itself, once it was seen."""

    def entries(self) -> Iterator[Found]:
        """See ``Foreign.entries``. ``NotFoundError`` when nothing is there."""
        self._files, self.alone = 0, None
        folders = 0
        for found in self._place.objects():
            info = found.info
            where = f"{self._client.url}/{info.key}"
            alone = bool(self._place.prefix) and info.key == self._place.prefix
            try:
                name = os.fsencode(found.name)
            except UnicodeEncodeError:
                yield Found(where, None, b"", "its key is not valid text")
                continue
            parts = [self._dest, b"" if alone else self._named, name]
            path = b"/".join(part for part in parts if part)
            mtime = int(info.mtime * 1000) * 10**6
            if found.is_folder:
                folders += 1
                if info.size:
                    yield Found(where, None, path, "its key ends in a slash, and it has content")
                elif found.name:
                    yield Found(where, ForeignFolder(path.rstrip(b"/"), 0o755, mtime))
                continue
            self._files += 1
            if alone:
                self.alone = path
            yield Found(where, ForeignFile(path, info.size, self._client.url, info.key, info.etag, 0o644, mtime))
        if not self._files + folders:
            raise NotFoundError(f"there is nothing at {self.url}")

    def provenance(self) -> dict[str, Any]:
        """See ``Foreign.provenance``."""
        return {"from": "url", "source": self.url, "files": self._files}
