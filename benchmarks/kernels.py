"""What each kernel costs, and how cost grows with size: in one process, without the command around it."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import generate
from casstore import hashing
from casstore.backend.memory import MemoryBackend
from casstore.backend.registry import open_backend
from casstore.chunking.fastcdc import FastCDCChunker
from casstore.compression import Compressor, decode
from casstore.repo.store import Store
from casstore.transfer.scan import Source
from casstore.transfer.upload import upload_tree

MIB = 1 << 20


def _rate(work: Callable[[], object], size: int, seconds: float = 1.0) -> float:
    """Return MiB a CPU second: the best of the repetitions that fit."""
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return size / MIB / best


def kernels() -> str:
    """Measure chunking, hashing and compressing; rates, and each as a multiple of hashing."""
    dense = os.urandom(16 * MIB)
    with tempfile.TemporaryDirectory() as folder:
        generate.joint_log(Path(folder, "log"), 60_000, 1)
        text = Path(folder, "log").read_bytes()[: 4 * MIB]
    chunker, compressor = FastCDCChunker(), Compressor()
    view = memoryview(dense)
    lengths = chunker.cut(dense, final=True)
    starts = [sum(lengths[:n]) for n in range(len(lengths))]
    chunks = [view[start : start + length] for start, length in zip(starts, lengths, strict=True)]
    text_lengths = chunker.cut(text, final=True)
    text_chunks = [text[sum(text_lengths[:n]) :][:length] for n, length in enumerate(text_lengths)]
    packed = [compressor.encode(chunk) for chunk in text_chunks]
    memory = Store.open(MemoryBackend(), create=True)

    def through() -> None:
        writer = memory.writer(lanes=1)
        with writer:
            lane = writer.lane()
            for chunk in chunks:
                lane.add(chunk)

    rates = {
        "cut": _rate(lambda: chunker.cut(dense, final=True), len(dense)),
        "hash, by chunk": _rate(lambda: [hashing.digest(chunk) for chunk in chunks], len(dense)),
        "probe, incompressible": _rate(lambda: [compressor.encode(chunk) for chunk in chunks], len(dense)),
        "compress, joint log": _rate(lambda: [compressor.encode(chunk) for chunk in text_chunks], len(text)),
        "decode, joint log": _rate(
            lambda: [decode(codec, data, len(chunk)) for (codec, data), chunk in zip(packed, text_chunks, strict=True)],
            len(text),
        ),
        "hash, deduplicate and pack": _rate(through, len(dense)),
    }
    base = rates["hash, by chunk"]
    rows = ["| kernel | MiB a CPU second | time, as a multiple of hashing |", "|---|---:|---:|"]
    rows += [f"| {name} | {rate:,.0f} | {base / rate:.2f} |" for name, rate in rates.items()]
    return "\n".join(rows)


def scaling(folder: Path) -> str:
    """Measure the cost per gigabyte and per file as the amount grows; memory is the peak so far."""
    rows = ["| data | amount | CPU s per GiB | CPU us per file | peak MiB |", "|---|---:|---:|---:|---:|"]
    for name, scales in (("small", (0.04, 0.2, 1.0, 4.0)), ("large", (0.25, 1.0, 4.0))):
        for scale in scales:
            source = folder / "scaling" / name
            generate.make(name, source, scale)
            store = Store.open(open_backend(f"file://{folder}/scaling/store", create=True), create=True)
            begun = time.process_time()
            result = upload_tree(store, [Source(os.fsencode(source), b"", contents=True)])
            cpu = time.process_time() - begun
            store.close()
            shutil.rmtree(folder / "scaling" / "store")
            totals = result.totals
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            amount = f"{totals.files:,} files, {totals.size / MIB:,.0f} MiB"
            rows.append(
                f"| {name} | {amount} | {cpu / (totals.size / 2**30):.2f} "
                f"| {cpu / totals.files * 1e6:,.0f} | {peak:.0f} |"
            )
        shutil.rmtree(folder / "scaling")
    return "\n".join(rows)
