"""``osmo pool simulate``: what the declared pools would do with a trace of work.

Decided here and only here: what is simulated without a trace, and the words of the report.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import msgspec

from casstore.config import load_config
from casstore.errors import UsageError
from casstore_cli import output
from casstore_cli.multi import Command, ManyOption


@click.command("simulate", cls=Command)
@click.argument("trace", required=False, type=click.Path(path_type=Path))
@click.option("-p", "--pool", "pools", cls=ManyOption, help="Only these pools; the first takes what names none.")
@click.option("--nodes", type=click.IntRange(1, 10_000), help="Not the declared pools: one of this many nodes,")
@click.option("--gpu", type=click.IntRange(min=0), default=8, show_default=True, help="with this many GPUs each.")
@click.option(
    "--hours", type=click.FloatRange(min=0.1), default=24.0, show_default=True, help="Without a trace: so long,"
)
@click.option("--load", type=click.FloatRange(0.01, 10.0), default=0.9, show_default=True, help="with this much work,")
@click.option("--seed", type=int, default=1, show_default=True, help="and the same work for the same number.")
@click.option(
    "--every", type=click.FloatRange(0.0), default=10.0, show_default=True, help="Seconds between two passes."
)
@output.format_option("text", "json")
def simulate(
    *,
    trace: Path | None,
    pools: Sequence[str],
    nodes: int | None,
    gpu: int,
    hours: float,
    load: float,
    seed: int,
    every: float,
    format_type: str,
) -> None:
    """Run a TRACE of work on the declared pools, with a clock that need not wait.

    The scheduler is the real one, and nothing is run. TRACE is a CSV file with the columns submit, duration and tasks
    (and any of gpu, cpu, memory, priority, user, pool, limit), or a .swf file in the Standard Workload Format. Without
    one, work is made up.
    """
    from casstore_orchestrator.pools import Machine, Resources, find_pool, parse_pools, this_machine
    from casstore_orchestrator.simulator.report import report
    from casstore_orchestrator.simulator.traces import generate, read_trace
    from casstore_orchestrator.simulator.world import simulate as run

    if nodes is not None:
        size = Resources(cpu=64 * max(1, gpu), memory=1 << 40, storage=1 << 40, gpu=gpu)
        declared = parse_pools({"default": {"platforms": {"default": {"nodes": nodes}}}}, Machine("node", size))
    else:
        config = load_config()
        declared = parse_pools(config.pools, this_machine(config.paths.data))
    for name in pools:
        find_pool(declared, name)
    chosen = {name: declared[name] for name in pools or declared}
    first = next(iter(chosen))
    jobs = read_trace(trace, first) if trace else generate(seed, chosen, seconds=hours * 3600, load=load)
    for job in jobs:
        if job.pool not in chosen:
            raise UsageError(f"the trace names pool '{job.pool}'", hint=f"simulated are: {', '.join(chosen)}")
    found = report(run(chosen, jobs, every=every))
    if format_type == "json":
        output.document(msgspec.to_builtins(found))
        return
    output.text(f"Groups      : {found.groups} ({found.tasks} tasks) on {found.gpus} GPUs")
    output.text(
        f"Time        : {found.span / 3600:.1f} h; no scheduler could do it in less than {found.bound / 3600:.1f} h"
    )
    output.text(
        f"GPUs in use : {found.utilisation:.1%} (at most {found.possible:.1%} is possible), {found.lost:.1%} lost"
    )
    output.text(f"Preempted   : {found.preemptions} groups; unfinished: {found.unfinished}")
    output.text(f"Fairness    : users {found.fair_users:.3f}, pools {found.fair_pools:.3f} (Jain's index)")
    output.text(
        f"Passes      : {found.passes}, {1000 * found.pass_mean:.1f} ms each, {1000 * found.pass_most:.0f} ms at most; "
        f"{found.decisions:.0f} placements a second"
    )
    output.text()
    rows = [
        (kind.name, kind.groups, *(f"{value:.0f}" for value in (kind.mean, kind.p95, kind.most)))
        for kind in found.waits
    ]
    output.text(output.table(("Groups of", "Number", "Waited [s]", "95% within [s]", "Longest [s]"), rows))
