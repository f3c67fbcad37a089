"""``osmo store info``: what a store holds, and what it takes.

Decided here and only here: how it is shown.
"""

from __future__ import annotations

import click

from casstore_cli import output
from casstore_cli.multi import Command


@click.command("info", cls=Command)
@click.option("-b", "--bucket", "bucket_name", help="Show this bucket's store; else the default one's.")
@output.format_option("text", "json")
def info(bucket_name: str | None, format_type: str) -> None:
    """Show the format and id of a bucket's store, its objects by kind, and what deduplication saves."""
    from casstore.repo.usage import usage
    from casstore_cli.stores import open_bucket

    with open_bucket(bucket_name) as bucket:
        found = usage(bucket.store)
        name, url = bucket.name, bucket.store.url
    total = found.total
    kinds = {kind: count for kind, count in found.kinds.items() if count.objects}
    ratio = found.ratio
    if format_type == "json":
        output.document(
            {
                "bucket": name,
                "url": url,
                "format": found.format,
                "id": found.id,
                "features": found.features,
                "datasets": found.datasets,
                "collections": found.collections,
                "versions": found.versions,
                "logical_size": found.logical,
                "referenced_size": found.referred,
                "stored_size": found.stored,
                "ratio": None if ratio is None else round(ratio, 3),
                "objects": {kind: {"count": one.objects, "size": one.size} for kind, one in kinds.items()},
                "total": {"count": total.objects, "size": total.size},
                "running": found.running,
                "trash": {"packs": found.waiting.objects, "size": found.waiting.size},
            }
        )
        return
    output.text(f"Bucket {name}, at {output.escape(url)}")
    features = output.escape(", ".join(found.features)) or "no features"
    output.text(f"Store {output.escape(found.id)}, format {found.format}, {features}")
    output.text(f"{found.datasets} datasets, {found.collections} collections, {found.versions} versions")
    saved = "" if ratio is None else f": {ratio:.1f} times as much"
    output.text(f"{output.size(found.logical)} in all versions, {output.size(found.stored)} in packs{saved}")
    if found.referred:
        output.text(f"{output.size(found.referred)} of them are not in the store: versions refer to them elsewhere")
    output.text(f"{found.running} operations running")
    output.text(f"{found.waiting.objects} packs, {output.size(found.waiting.size)}, wait for being deleted")
    rows = [(kind, one.objects, output.size(one.size)) for kind, one in kinds.items()]
    output.text()
    output.text(output.table(("Objects", "Count", "Size"), rows, total=("", total.objects, output.size(total.size))))
