"""``python -m casstore_orchestrator.simulator TRACE NODES GPUS``: a simulation without any configuration, as JSON."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from casstore.errors import CasstoreError
from casstore_orchestrator.pools import Machine, Resources, parse_pools

from .report import report
from .traces import read_trace
from .world import simulate


def main(arguments: list[str]) -> int:
    """Run it; 2 when the arguments or the trace are wrong."""
    if len(arguments) != 3 or not all(text.isdigit() for text in arguments[1:]):
        sys.stderr.write("usage: python -m casstore_orchestrator.simulator TRACE NODES GPUS_PER_NODE\n")
        return 2
    nodes, gpus = int(arguments[1]), int(arguments[2])
    machine = Machine("node", Resources(cpu=64 * max(1, gpus), memory=1 << 40, storage=1 << 40, gpu=gpus))
    try:
        pools = parse_pools({"default": {"platforms": {"default": {"nodes": nodes}}}}, machine)
        found = report(simulate(pools, read_trace(Path(arguments[0]), "default")))
    except CasstoreError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(found)).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
