"""A version of very many files, made without the files: each has eight bytes of its own, a thousand in a folder."""

from __future__ import annotations

import sys
from typing import Any

from casstore.dataset.catalog import Catalog
from casstore.dataset.commit import Commit, until_made
from casstore.format.manifest import CHUNK_REF
from casstore.model import Content, Entry, Kind
from casstore.repo.tree import TreeBuilder
from casstore.transfer.progress import Silent
from casstore.transfer.upload import TreeResult
from casstore_cli.stores import open_bucket

A_FOLDER = 1000


def make(name: str, count: int) -> None:
    """Make a version of ``count`` files in the default bucket."""
    with open_bucket(write=True) as bucket:
        options: dict[str, Any] = dict.fromkeys(("description", "metadata", "labels", "tag", "provenance"))
        commit = Commit(bucket.refs, Catalog(bucket.refs, "b"), name, "bench", force=False, **options)

        def once(hold: Any) -> Any:
            with hold.writer(lanes=1) as writer:
                lane = writer.lane()
                builder = TreeBuilder(writer)
                folders = -(-count // A_FOLDER)
                for number in range(folders):
                    builder.add(Entry(b"part_%06d" % number, Kind.DIRECTORY, 0o755, 10**18))
                for number in range(count):
                    data = number.to_bytes(8)
                    content = Content(0, CHUNK_REF.pack(lane.add(data), len(data)))
                    path = b"part_%06d/frame_%07d.bin" % (number // A_FOLDER, number)
                    builder.add(Entry(path, Kind.FILE, 0o644, 10**18, len(data), content))
                manifest = builder.finish()
                writer.flush()
                hold.rely(writer.packs.used)
            return commit.finish(TreeResult(manifest, builder.checksum, builder.totals), hold)

        until_made(bucket.store, once, user="bench", dataset=name, progress=Silent())


if __name__ == "__main__":
    make(sys.argv[1], int(sys.argv[2]))
