"""Whether a tree is what its root says.

Decided here and only here: what must hold of all entries of a tree together: each is in a folder of the same tree, and
the checksum and the totals are those of the root.
"""

from __future__ import annotations

from casstore.errors import FormatError, IntegrityError
from casstore.model import Entry, Kind
from casstore.repo.check.report import show
from casstore.repo.tree import ChecksumBuilder, Tree

__all__ = ["contradiction"]

_BATCH = 256


def contradiction(tree: Tree) -> str | None:
    """Say what is wrong with a tree of which every node can be read, or None."""
    sums, folders = ChecksumBuilder(), _Folders()
    batch: list[Entry] = []
    try:
        for entry in tree.entries():
            folders.check(entry)
            batch.append(entry)
            if len(batch) == _BATCH:
                sums.add(batch)
                batch = []
        sums.add(batch)
        if (sums.checksum(), sums.totals()) != (tree.checksum, tree.totals):
            raise FormatError("its checksum or its totals are not those of its entries")
    except IntegrityError as error:
        return f"the tree can't be right: {error.message}"
    return None


class _Folders:
    """Whether each entry's folder is a folder of the same tree, told from their order with little memory."""

    def __init__(self) -> None:
        self._above: list[tuple[bytes, set[bytes]]] = [(b"", set())]

    def check(self, entry: Entry) -> None:
        """Take the next entry; ``FormatError`` when it is in no folder."""
        parent, _, name = entry.path.rpartition(b"/")
        above = self._above
        if above[-1][0] != parent:
            upper, _, folder = parent.rpartition(b"/")
            while len(above) > 1 and above[-1][0] != upper:
                above.pop()
            if above[-1][0] != upper or folder not in above[-1][1]:
                raise FormatError(f"{show(parent)} holds entries, but is no folder")
            above.append((parent, set()))
        if entry.kind == Kind.DIRECTORY:
            above[-1][1].add(name)
