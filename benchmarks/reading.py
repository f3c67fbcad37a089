"""Reading a folder, as a process of its own that tells what it took: ``python -m benchmarks.reading WORK PATH ...``.

The seconds are those of the reading alone, without the start of Python; ``first`` is when the first bytes were there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import sys
import time
from collections.abc import Callable

MIB = 1 << 20


def sequential(path: str) -> int:
    """Read a file from front to back, a MiB at once."""
    buffer, total = bytearray(MIB), 0
    with open(path, "rb", buffering=0) as file:
        while got := file.readinto(buffer):
            total += got
    return total


def scattered(path: str, block: str, count: str, seed: str) -> int:
    """Read blocks of a file here and there."""
    rng, size, total = random.Random(int(seed)), int(block), 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        blocks = os.fstat(descriptor).st_size // size
        for _ in range(int(count)):
            total += len(os.pread(descriptor, size, rng.randrange(blocks) * size))
    finally:
        os.close(descriptor)
    return total


def whole(root: str, names: str, processes: str, seed: str) -> int:
    """Read all files that a list names, shuffled, by several processes; returns their bytes."""
    with open(names, encoding="utf-8") as file:
        wanted = file.read().splitlines()
    random.Random(int(seed)).shuffle(wanted)
    count = int(processes)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def work(number: int) -> None:
        total, first = 0, 0.0
        buffer = bytearray(MIB)
        for name in wanted[number::count]:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                while got := os.readv(descriptor, [buffer]):
                    total += got
                    first = first or time.perf_counter()
                    if got < MIB:
                        break
            finally:
                os.close(descriptor)
        results.put((total, first))

    workers = [context.Process(target=work, args=(number,)) for number in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        sys.exit("a reader failed")
    found = [results.get() for _ in workers]
    _first.append(min(first for _, first in found))
    return sum(total for total, _ in found)


def loader(root: str, names: str, workers: str, seed: str) -> int:
    """One epoch of a PyTorch ``DataLoader``: a shuffled batch of 32 files at a time; returns their bytes."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    with open(names, encoding="utf-8") as file:
        wanted = [os.path.join(root, name) for name in file.read().splitlines()]

    class Files(Dataset[torch.Tensor]):
        def __len__(self) -> int:
            return len(wanted)

        def __getitem__(self, index: int) -> torch.Tensor:
            with open(wanted[index], "rb") as file:
                return torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)

    torch.manual_seed(int(seed))
    torch.set_num_threads(1)
    begun[:] = time.perf_counter(), _cpu()  # loading PyTorch is nobody's time here
    batches = DataLoader(Files(), batch_size=32, shuffle=True, num_workers=int(workers), collate_fn=list)
    total = 0
    for batch in batches:
        if not total:
            _first.append(time.perf_counter())
        total += sum(len(one) for one in batch)
    return total


def _cpu() -> float:
    both = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(one.ru_utime + one.ru_stime for one in both)


WORK: dict[str, Callable[..., int]] = {
    "sequential": sequential,
    "scattered": scattered,
    "whole": whole,
    "loader": loader,
}
_first: list[float] = []
begun = [0.0, 0.0]


def main() -> None:
    """Do the work and print what it took."""
    begun[:] = time.perf_counter(), _cpu()
    total = WORK[sys.argv[1]](*sys.argv[2:])
    wall, cpu = time.perf_counter() - begun[0], _cpu() - begun[1]
    first = _first[0] - begun[0] if _first else None
    print(json.dumps({"wall": wall, "cpu": cpu, "bytes": total, "first": first}))


if __name__ == "__main__":
    main()
