"""The floor: what the C libraries cost for these bytes, with one process a core and nothing in between.

Each process takes files in turn (a file larger than 64 MiB in pieces), reads them, cuts them, hashes the chunks,
compresses those that look compressible, and appends them to a file of its own. No deduplication, no index, no manifest,
no order.
"""

from __future__ import annotations

import multiprocessing
import os
import sys

from blake3 import blake3
from pyfastcdc import FastCDC
from zstandard import ZstdCompressor

PIECE = 64 << 20


def work(jobs: list[tuple[str, int, int]], target: str) -> None:
    """Do the work on these pieces of files."""
    cutter = FastCDC(65536, min_size=16384, max_size=262144)
    packed, quick = ZstdCompressor(level=3), ZstdCompressor(level=1)
    buffer = memoryview(bytearray(PIECE))
    with open(target, "wb", buffering=0) as out:
        for path, offset, size in jobs:
            with open(path, "rb", buffering=0) as file:
                file.seek(offset)
                got = file.readinto(buffer[:size])
            start = 0
            for chunk in cutter.cut_buf(buffer[:got]):
                part = buffer[start : start + chunk.length]
                start += chunk.length
                blake3(part).digest()
                sample = part[: min(len(part), 4096)]
                dense = len(part) > 4096 and len(quick.compress(sample)) > 0.97 * len(sample)
                out.write(part if dense else packed.compress(part))
        os.fsync(out.fileno())


def main() -> None:
    """Share the files out and wait."""
    source, target = sys.argv[1:]
    jobs: list[tuple[str, int, int]] = []
    for folder, _, names in os.walk(source):
        for name in names:
            path = os.path.join(folder, name)
            size = os.path.getsize(path)
            jobs += [(path, at, min(PIECE, size - at)) for at in range(0, size, PIECE)]
    cores = len(os.sched_getaffinity(0))
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(jobs[n::cores], f"{target}/{n}")) for n in range(cores)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    sys.exit(any(worker.exitcode for worker in workers))


if __name__ == "__main__":
    main()
