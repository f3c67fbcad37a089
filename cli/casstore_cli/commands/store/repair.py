"""``osmo store repair``: a plan, a question, and then the work.

Decided here and only here: what is asked, and how a plan and its results are shown.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from casstore.config import MODES, Config
from casstore.errors import OUTCOMES, ErrorKind, UsageError
from casstore_cli import output
from casstore_cli.commands.store.shown import losses_json, show_losses, watcher
from casstore_cli.multi import Command
from casstore_cli.progress import Meter

if TYPE_CHECKING:
    from casstore.dataset import Bucket
    from casstore.repo.repair import Done, Plan


@click.command("repair", cls=Command)
@click.option("-b", "--bucket", "bucket_name", help="Repair this bucket; else the default one.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--salvage", is_flag=True, help="Make new versions of what is left of damaged ones.")
@click.option("--from", "folder", metavar="DIR", help="Look for what is missing in the files below DIR.")
@click.option("--discard-quarantine", is_flag=True, help="Remove the originals that earlier repairs have kept.")
@output.format_option("text", "json")
@click.pass_context
def repair(
    ctx: click.Context,
    bucket_name: str | None,
    dry_run: bool,
    yes: bool,
    salvage: bool,
    folder: str | None,
    discard_quarantine: bool,
    format_type: str,
) -> None:
    """Read a bucket's whole store, show what can be repaired, and after a confirmation do it.

    What is replaced or removed is kept in the store, below quarantine/. Versions that lost data stay as they are, and
    are told. The exit code is not 0 when data is lost.
    """
    from casstore.repo.repair import Repair
    from casstore_cli.remote import find, require_local, visible
    from casstore_cli.stores import open_bucket

    if discard_quarantine and (dry_run or salvage or folder):
        raise UsageError("--discard-quarantine goes alone")
    config = visible()
    require_local(find(config, bucket_name), "Repairing a store")
    if not discard_quarantine and not _config(bucket_name, config, dry_run=dry_run, yes=yes):
        _show({"plan": ["store.json is made anew"], "done": None}, format_type, "Nothing was changed.")
        ctx.exit(OUTCOMES[ErrorKind.INTEGRITY].exit_code)
    with open_bucket(bucket_name, write=not dry_run, config=config) as bucket:
        if discard_quarantine:
            _discard(bucket, format_type, yes=yes)
            return
        with Meter("Reading") as meter:
            work = Repair(bucket.store, user=bucket.user, salvage=salvage, folder=folder, watcher=watcher(meter))
            plan = work.plan()
        if format_type == "text":
            _show_plan(plan)
        done: Done | None = None
        if not plan.empty and not dry_run and (yes or output.confirm("Shall this be done?", unasked="--yes")):
            done = work.execute(plan, _tell)
        if format_type == "json":
            output.document(_document(plan, done))
        else:
            _show_done(plan, done, bucket.name)
    lost = plan.losses if done is None else done.report.losses
    damaged = bool(lost) if plan.empty else done is None or not done.report.clean
    if damaged:
        ctx.exit(OUTCOMES[ErrorKind.INTEGRITY].exit_code)


def _tell(line: str) -> None:
    """Say what is done next, to whoever watches."""
    output.message(output.escape(line), level="INFO" if sys.stderr.isatty() else "DEBUG")


def _config(bucket_name: str | None, config: Config, *, dry_run: bool, yes: bool) -> bool:
    """Whether there is a sound ``store.json``, which nothing can be looked at without; made anew if it is wanted."""
    from casstore.backend.registry import open_backend
    from casstore.errors import NotFoundError
    from casstore.repo.repair import config_problem, write_config
    from casstore_cli.credentials import ConfigCredentials

    found = config.bucket(bucket_name)
    try:
        backend = open_backend(found.url, credentials=ConfigCredentials(config))
    except NotFoundError:
        return True  # told better by whoever opens the store
    try:
        problem = config_problem(backend)
        if problem is None:
            return True
        output.message(output.escape(f"store.json: {problem}: it is made anew, and then the rest is looked at"))
        if found.mode != MODES[0]:
            raise UsageError(f"bucket {found.name!r} is read-only")
        if dry_run or not (yes or output.confirm("Shall this be done?", unasked="--yes")):
            return False
        write_config(backend)
        return True
    finally:
        backend.close()


def _discard(bucket: Bucket, format_type: str, *, yes: bool) -> None:
    from casstore.repo.repair import discard, kept

    infos = [*kept(bucket.store.backend)]
    size = sum(info.size for info in infos)
    what = f"{len(infos)} originals, {output.size(size)}, that repairs of bucket {bucket.name} have kept"
    count = size = 0
    if infos and (yes or output.confirm(f"Remove {what}, for good?", unasked="--yes")):
        count, size = discard(bucket.store.backend)
    _show({"removed": count, "size": size}, format_type, f"{count} originals were removed, {output.size(size)}.")


def _show(value: dict[str, Any], format_type: str, line: str) -> None:
    if format_type == "json":
        output.document(value)
    else:
        output.text(line)


def _show_plan(plan: Plan) -> None:
    for step in plan.steps:
        lost = f" (lost: {step.lost})" if step.lost else ""
        output.text(f"{output.escape(step.key)}: {output.escape(step.text)}{output.escape(lost)}")
    for line in plan.left:
        output.text(f"Left alone: {output.escape(line)}")


def _show_done(plan: Plan, done: Done | None, bucket: str) -> None:
    if plan.empty:
        output.text(f"bucket {bucket}: there is nothing to repair.")
    elif done is None:
        output.text("Nothing was changed.")
    else:
        for line in done.lines:
            output.text(f"Done: {output.escape(line)}")
        for line in done.failed:
            output.text(f"Failed: {output.escape(line)}")
        if done.kept:
            output.text(f"{done.kept} originals are kept below {done.quarantine}")
    losses = plan.losses if done is None else done.report.losses
    if losses:
        output.text("Lost, whatever is done:" if done is None and not plan.empty else "Lost:")
        show_losses(losses)


def _document(plan: Plan, done: Done | None) -> dict[str, Any]:
    return {
        "plan": [
            {"action": step.action.value, "key": step.key, "text": step.text, "lost": step.lost} for step in plan.steps
        ],
        "left": plan.left,
        "clean": plan.empty and not plan.losses if done is None else done.report.clean,
        "done": None if done is None else done.lines,
        "failed": [] if done is None else done.failed,
        "quarantine": done.quarantine if done is not None and done.kept else None,
        "kept": 0 if done is None else done.kept,
        "losses": losses_json(plan.losses if done is None else done.report.losses),
    }
