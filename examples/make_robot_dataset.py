"""Make a small robot dataset: episodes of a pick-and-place arm, the same bytes every time.

Each episode is a folder: ``joints.csv`` (six joint angles at 50 Hz), ``depth/*.pgm`` (16-bit depth images of a box on a
table), ``camera.bin`` (stands in for video: bytes that do not compress) and ``meta.json`` (task, success, seed).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
from pathlib import Path

STEPS = 300
FRAMES = 6
WIDTH, HEIGHT = 160, 120


def joints(path: Path, rng: random.Random) -> None:
    """Write a smooth trajectory of six joints with sensor noise."""
    phases = [rng.uniform(0, math.tau) for _ in range(6)]
    with path.open("w", newline="") as out:
        rows = csv.writer(out)
        rows.writerow(["t", *(f"q{joint}" for joint in range(6)), "gripper"])
        for step in range(STEPS):
            t = step / 50
            angles = [math.sin(t * (1 + joint / 7) + phase) for joint, phase in enumerate(phases)]
            rows.writerow(
                [f"{t:.2f}", *(f"{angle + rng.gauss(0, 0.002):.5f}" for angle in angles), int(step > STEPS // 2)]
            )


def depth(path: Path, rng: random.Random, frame: int) -> None:
    """Write one depth image in millimetres: a tilted table and a box that moves."""
    left = 30 + 8 * frame
    pixels = bytearray()
    for row in range(HEIGHT):
        for column in range(WIDTH):
            on_box = left < column < left + 30 and 40 < row < 80
            pixels += (900 + 2 * row - 120 * on_box + rng.randrange(2)).to_bytes(2, "big")
    path.write_bytes(b"P5\n%d %d\n65535\n" % (WIDTH, HEIGHT) + bytes(pixels))


def episode(folder: Path, seed: int) -> None:
    """Write one episode."""
    rng = random.Random(seed)
    (folder / "depth").mkdir(parents=True)
    joints(folder / "joints.csv", rng)
    for frame in range(FRAMES):
        depth(folder / "depth" / f"{frame:04d}.pgm", rng, frame)
    (folder / "camera.bin").write_bytes(rng.randbytes(400_000))
    meta = {"task": "place the box", "success": seed % 4 != 3, "seed": seed, "steps": STEPS}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")


def main() -> None:
    """Write the dataset."""
    parser = argparse.ArgumentParser(description="Make a small robot dataset, the same bytes every time.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("episodes", type=int, nargs="?", default=8)
    arguments = parser.parse_args()
    root: Path = arguments.folder
    for number in range(arguments.episodes):
        episode(root / f"episode_{number:03d}", number)
    print(f"{sum(1 for path in root.rglob('*') if path.is_file())} files in {root}")


if __name__ == "__main__":
    main()
