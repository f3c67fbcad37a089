"""What the store's commands say of damage.

Decided here and only here: the words, and the JSON, for what a check found. Losses come first, by version: they are
what a user wants to know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casstore_cli import output
from casstore_cli.progress import Meter

if TYPE_CHECKING:
    from casstore.repo.check import Report, VersionLoss, Watcher

_LINES = 200
"""Problems that are shown as text; JSON has more."""


def losses_json(losses: list[VersionLoss]) -> list[dict[str, Any]]:
    """The losses for a JSON document."""
    return [
        {
            "dataset": loss.dataset,
            "version": str(loss.number),
            "files": loss.files,
            "paths": [path.decode("utf-8", "backslashreplace") for path in loss.paths],
            "unknown_entries": loss.entries,
            "reason": loss.reason,
        }
        for loss in losses
    ]


def report_json(report: Report) -> dict[str, Any]:
    """A report for a JSON document."""
    return {
        "clean": report.clean,
        "objects": report.objects,
        "size": report.size,
        "read": {
            "packs_size": report.packs_size,
            "packs_read": report.packs_read,
            "share": round(report.share, 6),
            "seed": report.seed,
        },
        "losses": losses_json(report.losses),
        "problem_count": report.count,
        "problems": [{"about": p.about.value, "where": p.where, "message": p.message} for p in report.problems],
        "notes": [{"what": n.what, "message": n.message, "count": n.count, "size": n.size} for n in report.notes],
    }


def show_losses(losses: list[VersionLoss]) -> None:
    """Print what versions lost."""
    for loss in losses:
        output.text(output.escape(str(loss)))


def show_report(report: Report, what: str) -> None:
    """Print a report."""
    show_losses(report.losses)
    # A damaged file is told with its version already.
    other = [problem for problem in report.problems if problem.about.value != "file"]
    for problem in other[:_LINES]:
        output.text(f"{output.escape(problem.where)}: {output.escape(problem.message)}")
    if len(other) > _LINES or report.more:
        output.text("... and more: -t json lists them.")
    for note in report.notes:
        size = f", {output.size(note.size)}" if note.size else ""
        output.text(f"Note: {note.count} {note.message}{size}")
    count = report.count
    found = f"{count} problem{'' if count == 1 else 's'}" if count else "no problems"
    output.text(f"{what}: {report.objects} objects, {_read(report)}, {found}.")


def _read(report: Report) -> str:
    if report.packs_read >= report.packs_size:
        return f"all {output.size(report.packs_size)} of the packs read"
    share = f"{report.share:.1%} of {output.size(report.packs_size)} of the packs read"
    return share + (f" (seed {report.seed})" if report.seed is not None else "")


def watcher(meter: Meter) -> Watcher:
    """A check's watcher that draws on a terminal."""
    from casstore.repo.check import Watcher

    class Show(Watcher):
        def found(self, size: int) -> None:
            meter.expect(1, size)

        def checked(self, size: int) -> None:
            meter.advance(size)
            meter.file_done(b"")

    return Show()
