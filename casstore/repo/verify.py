"""Reading everything, and saying what is not what it should be.

Decided here and only here: that a verification is a check that reads every byte. ``casstore.repo.check`` says what
makes a store whole.
"""

from __future__ import annotations

from casstore.repo.check import Problem, Report, Watcher, check_store, check_version
from casstore.repo.store import Store
from casstore.repo.tree import Tree

__all__ = ["Problem", "Report", "Watcher", "verify_store", "verify_tree"]


def verify_store(store: Store, watcher: Watcher | None = None) -> Report:
    """Read every object of a store to its last bit, and follow every reference. Raises nothing for damage."""
    return check_store(store, read=1.0, watcher=watcher)


def verify_tree(store: Store, tree: Tree, watcher: Watcher | None = None) -> Report:
    """Read every chunk of one version. Raises nothing for damage."""
    return check_version(store, tree.id, watcher)
