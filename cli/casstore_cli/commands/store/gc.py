"""``osmo store gc``.

Decided here and only here: how a plan is shown and asked about, and how the result is told.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import UsageError
from casstore_cli import output
from casstore_cli.durations import seconds, share, span
from casstore_cli.line import Line
from casstore_cli.multi import Command

if TYPE_CHECKING:
    from casstore.dataset.garbage import GarbageOutcome, GarbagePlan
    from casstore.dataset.retention import Expiry
    from casstore.repo.gc.plan import Kept, Marked, Plan


@click.command("gc", cls=Command)
@click.option("-b", "--bucket", "bucket_name", help="Collect in this bucket; else the default one.")
@click.option("--dry-run", is_flag=True, help="Show the plan and change nothing.")
@click.option(
    "--grace", metavar="SPAN", callback=seconds, default="24h", show_default=True, help="Keep what is younger."
)
@click.option(
    "--repack-below",
    metavar="SHARE",
    callback=share,
    default="50%",
    show_default=True,
    help="Copy what is needed of packs with less.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("-f", "--force", is_flag=True, help="The same.")
@output.format_option("text", "json")
def gc(
    bucket_name: str | None, dry_run: bool, grace: int, repack_below: float, yes: bool, force: bool, format_type: str
) -> None:
    """Give back the space of what was deleted, and of what the rules of datasets no longer keep.

    First it is marked, and a run after the grace period deletes it; with --grace 0 it is deleted at once. Nothing that
    a version or a running upload needs is touched. It can be interrupted at any time: the next run goes on.
    """
    from casstore.dataset.garbage import Garbage
    from casstore.repo.gc.plan import Rules
    from casstore_cli.remote import find, require_local, visible
    from casstore_cli.stores import open_bucket

    config = visible()
    if not dry_run:
        require_local(find(config, bucket_name), "Collecting garbage")
    rules = Rules(grace=float(grace), repack_below=repack_below)
    with open_bucket(bucket_name, write=not dry_run, config=config) as bucket, Line() as line:
        with Garbage(bucket, rules=rules, watcher=line, look=dry_run) as garbage:
            plan = garbage.plan()
            line.clear()
            if format_type != "json":
                for text in _plan_lines(plan, bucket.name, dry_run=dry_run):
                    output.text(text)
            wanted = not dry_run and not plan.empty and _confirmed(yes=yes or force)
            outcome = garbage.run(plan) if wanted else None
            line.clear()
        if format_type == "json":
            output.document(
                {
                    "bucket": bucket.name,
                    "dry_run": dry_run,
                    "done": outcome is not None,
                    "plan": _plan_document(plan),
                    "result": None if outcome is None else _outcome_document(outcome),
                }
            )
        elif outcome is not None:
            for text in _outcome_lines(outcome, rules.grace):
                output.text(text)
        elif not dry_run and not plan.empty:
            output.text("Nothing was changed.")


def _confirmed(*, yes: bool) -> bool:
    if yes:
        return True
    if not sys.stdin.isatty():
        raise UsageError("not confirmed: there is nobody to ask, nothing was changed", hint="--yes does not ask")
    return output.confirm("Do this?")


# ---- the plan


def _plan_lines(plan: GarbagePlan, bucket: str, *, dry_run: bool) -> Iterator[str]:
    store = plan.store
    yield f"Bucket {bucket}: {output.size(store.total)} stored, {output.size(store.needed)} needed."
    for expiry in plan.expiries:
        yield from _expiry_lines(expiry)
    for marked in store.due:
        what = "Deletion to finish, begun" if marked.begun else "To delete, marked"
        yield f"{what} {_date(marked.since)}: {_packs(marked.packs)}, {output.size(marked.size)}."
    if store.marks:
        now = store.rules.grace <= 0
        yield f"To {'delete' if now else 'mark'}: {_mark_text(store)}."
        if not now:
            yield f"    A run after {span(store.rules.grace)} deletes it."
    for marked in store.waiting:
        until = _date(marked.since + store.rules.grace)
        yield f"Marked, to be deleted after {until}: {_packs(marked.packs)}, {output.size(marked.size)}."
    for kept in store.kept:
        yield f"Kept: {_packs(kept.packs)}, {output.size(kept.size)}: {_why(kept)}."
    if store.leftovers:
        yield f"Leftovers to remove: {len(store.leftovers)}."
    if plan.exchanges:
        yield f"Uploads and downloads of OSMO's client that are over: {plan.exchanges}."
    if plan.empty:
        yield "There is nothing to do."
    elif dry_run:
        yield "Nothing was changed: this was a dry run."


def _expiry_lines(expiry: Expiry) -> Iterator[str]:
    if expiry.expired:
        yield f"Dataset {expiry.name}: {_versions(expiry.expired)} no longer kept."
    by_reason: dict[str, list[int]] = {}
    for number, why in expiry.kept.items():
        by_reason.setdefault(why.value, []).append(number)
    words = {
        "latest": "the latest",
        "collection": "in a collection",
        "last": f"of the last {expiry.rule.keep_last}",
        "tagged": "tagged",
        "within": f"younger than {span(expiry.rule.keep_within_s or 0)}",
    }
    kept = "; ".join(f"{_versions(numbers)} ({words[why]})" for why, numbers in by_reason.items())
    if kept and expiry.expired:
        yield f"    Kept: {kept}."


def _versions(numbers: tuple[int, ...] | list[int]) -> str:
    shown = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
    return f"version{'' if len(numbers) == 1 else 's'} {shown}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _packs(count: int) -> str:
    return _count(count, "pack")


def _mark_text(store: Plan) -> str:
    parts = [_packs(len(store.dead))] if store.dead else []
    if store.sparse:
        moved = sum(pack.needed or 0 for pack in store.sparse)
        parts.append(f"{_packs(len(store.sparse))} after copying {output.size(moved)} of them")
    listed = (
        (store.manifests, "manifest"),
        (store.versions, "deleted version"),
        ([*store.datasets, *store.abandoned], "deleted dataset"),
    )
    parts += [_count(len(found), noun) for found, noun in listed if found]
    return f"{', '.join(parts)}: {output.size(store.frees)}"


def _why(kept: Kept) -> str:
    if kept.holder is not None:
        holder = kept.holder
        return f"{output.escape(holder.who)} runs {output.escape(holder.what)} since {_date(holder.begun)}"
    if kept.until is not None:
        return f"younger than the grace period, the last until {_date(kept.until)}"
    if kept.reason == "share":
        return "too much else in the same packs is needed (see --repack-below)"
    return "can't be read; see `osmo store check`"


def _date(seconds: float) -> str:
    return output.date(_moment(seconds)) or ""


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _plan_document(plan: GarbagePlan) -> dict[str, Any]:
    store = plan.store
    return {
        "total_bytes": store.total,
        "needed_bytes": store.needed,
        "retention": [
            {
                "dataset": expiry.name,
                "expired": [str(number) for number in expiry.expired],
                "kept": {str(number): why.value for number, why in expiry.kept.items()},
            }
            for expiry in plan.expiries
        ],
        "mark": {
            "packs": len(store.dead),
            "repack": len(store.sparse),
            "manifests": len(store.manifests),
            "versions": len(store.versions),
            "datasets": len(store.datasets) + len(store.abandoned),
            "bytes": store.frees,
        },
        "due": [_marked_document(marked, 0) for marked in store.due],
        "waiting": [_marked_document(marked, store.rules.grace) for marked in store.waiting],
        "kept": [
            {
                "reason": kept.reason.value,
                "packs": kept.packs,
                "bytes": kept.size,
                "until": None if kept.until is None else _moment(kept.until).isoformat(),
                "lease": None
                if kept.holder is None
                else {
                    "who": kept.holder.who,
                    "what": kept.holder.what,
                    "since": _moment(kept.holder.begun).isoformat(),
                },
            }
            for kept in store.kept
        ],
        "leftovers": len(store.leftovers),
        "exchanges": plan.exchanges,
    }


def _marked_document(marked: Marked, grace: float) -> dict[str, Any]:
    return {
        "id": marked.id,
        "since": _moment(marked.since).isoformat(),
        "until": _moment(marked.since + grace).isoformat(),
        "packs": marked.packs,
        "bytes": marked.size,
        "begun": marked.begun,
    }


# ---- the result


def _outcome_lines(outcome: GarbageOutcome, grace: float) -> Iterator[str]:
    swept = outcome.store.swept
    for name, numbers in outcome.expired:
        yield f"Dataset {name}: {_versions(numbers)} deleted."
    if outcome.store.marked_packs and grace > 0:
        yield f"Marked {_packs(outcome.store.marked_packs)}, {output.size(outcome.store.marked_size)}."
    if swept.rescued:
        yield f"Needed again, and kept: {_count(swept.rescued, 'object')}."
    for pack_id in swept.damaged:
        yield f"Pack {pack_id.hex()} can't be read and is kept; see `osmo store check`."
    yield (
        f"Freed {output.size(swept.size - swept.written)}: {_packs(swept.packs)}, {_count(swept.versions, 'version')} "
        f"and {_count(swept.datasets, 'dataset')} deleted, {output.size(swept.moved)} copied."
    )


def _outcome_document(outcome: GarbageOutcome) -> dict[str, Any]:
    swept = outcome.store.swept
    return {
        "expired": {name: [str(number) for number in numbers] for name, numbers in outcome.expired},
        "marked_packs": outcome.store.marked_packs,
        "marked_bytes": outcome.store.marked_size,
        "deleted_packs": swept.packs,
        "deleted_manifests": swept.manifests,
        "deleted_versions": swept.versions,
        "deleted_datasets": swept.datasets,
        "freed_bytes": swept.size - swept.written,
        "moved_bytes": swept.moved,
        "rescued": swept.rescued,
        "damaged": [pack_id.hex() for pack_id in swept.damaged],
        "leftovers": outcome.store.leftovers,
        "exchanges": outcome.exchanges,
    }
