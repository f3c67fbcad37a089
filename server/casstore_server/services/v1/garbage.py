"""What collecting garbage in a bucket would do.

Decided here and only here: that a server plans and never collects: whoever collects has the bucket's credentials. A
plan reads every version's tree; it is worked on beside the requests, and who asks again finds the same work.
"""

from __future__ import annotations

from casstore.dataset.garbage import Garbage, GarbagePlan
from casstore.errors import ConflictError
from casstore.repo.gc.plan import Marked as MarkedFact
from casstore.repo.gc.plan import Rules
from casstore.wire.v1 import GarbageReply, Kept, Marked
from casstore_server.services.context import Caller, Services
from casstore_server.services.jobs import Stop

__all__ = ["plan"]


def plan(services: Services, caller: Caller, name: str, grace: float, repack_below: float) -> GarbageReply:
    """Return the plan. ``ConflictError`` while it is being made."""
    bucket = services.stores.open(name, caller.user)
    rules = Rules(grace=grace, repack_below=repack_below)

    def work(_: Stop) -> GarbageReply:
        with Garbage(bucket, rules=rules, look=True) as garbage:
            return _reply(name, garbage.plan(), rules)

    found = services.jobs.ask(("gc-plan", bucket.store.url, grace, repack_below), work)
    if found is None:
        raise ConflictError(f"The plan for bucket {name} is being made, which takes a while", hint="Ask again.")
    return found


def _reply(name: str, made: GarbagePlan, rules: Rules) -> GarbageReply:
    store = made.store
    expired = [(expiry.dataset_id, number) for expiry in made.expiries for number in expiry.expired]
    return GarbageReply(
        bucket=name,
        grace=rules.grace,
        repack_below=rules.repack_below,
        total=store.total,
        needed=store.needed,
        frees=store.frees,
        dead_packs=len(store.dead),
        sparse_packs=len(store.sparse),
        manifests=len(store.manifests),
        datasets=len(store.datasets),
        versions=len(store.versions),
        expired=len(expired),
        abandoned=len(store.abandoned),
        leftovers=len(store.leftovers) + made.exchanges,
        due=[_marked(one) for one in store.due],
        waiting=[_marked(one) for one in store.waiting],
        kept=[
            Kept(
                reason=str(kept.reason),
                packs=kept.packs,
                size=kept.size,
                until=kept.until,
                who=kept.holder.who if kept.holder else "",
                what=kept.holder.what if kept.holder else "",
            )
            for kept in store.kept
        ],
        empty=made.empty,
    )


def _marked(one: MarkedFact) -> Marked:
    return Marked(id=one.id, since=one.since, packs=one.packs, size=one.size, begun=one.begun)
