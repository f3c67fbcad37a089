"""Checking a store: what is not as it should be, and which data it costs."""

from casstore.repo.check.report import About, Note, Problem, Report, VersionLoss, Watcher
from casstore.repo.check.run import Inspection, check_store, check_version

__all__ = [
    "About",
    "Inspection",
    "Note",
    "Problem",
    "Report",
    "VersionLoss",
    "Watcher",
    "check_store",
    "check_version",
]
