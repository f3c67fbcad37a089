"""Robot-like data, the same bytes every time, and an edited second version of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

MIB = 1 << 20


def noise(path: Path, size: int, seed: int) -> None:
    """Write video-like bytes: they do not compress and share nothing."""
    rng = random.Random(seed)
    with path.open("wb") as out:
        for start in range(0, size, MIB):
            out.write(rng.randbytes(min(MIB, size - start)))


def joint_log(path: Path, rows: int, seed: int) -> None:
    """Write a CSV of joint angles that drift slowly."""
    rng = random.Random(seed)
    angles = [rng.uniform(-1, 1) for _ in range(7)]
    with path.open("w") as out:
        out.write("t,q0,q1,q2,q3,q4,q5,q6\n")
        for row in range(rows):
            angles = [angle + rng.gauss(0, 0.001) for angle in angles]
            out.write(f"{row / 500:.3f}," + ",".join(f"{angle:.6f}" for angle in angles) + "\n")


def depth_image(path: Path, seed: int, width: int = 320, height: int = 240) -> None:
    """Write a 16-bit depth image: a tilted plane with sensor noise in the last bits."""
    rng = random.Random(seed)
    shift = rng.randrange(200)
    bits = rng.randbytes(width * height)
    pixels = [600 + shift + 3 * (at // width) + (bits[at] & 3) for at in range(width * height)]
    path.write_bytes(b"P5\n%d %d\n65535\n" % (width, height) + struct.pack(f">{len(pixels)}H", *pixels))


def large(root: Path, scale: float) -> None:
    """Write four video-like files, 2 GiB in all at scale 1."""
    for number in range(4):
        noise(root / f"camera_{number}.mp4", int(512 * MIB * scale), number)


def video(root: Path, scale: float) -> None:
    """Write twenty video-like files, 1 GiB in all at scale 1."""
    for number in range(20):
        noise(root / f"camera_{number:02d}.mp4", int(1024 * MIB * scale) // 20, 1000 + number)


def small(root: Path, scale: float) -> None:
    """Write files of 8 KiB, 50,000 at scale 1, a thousand in a folder."""
    rng = random.Random(8)
    for number in range(int(50_000 * scale)):
        folder = root / f"part_{number // 1000:03d}"
        folder.mkdir(exist_ok=True)
        with open(folder / f"frame_{number:06d}.bin", "wb", buffering=0) as out:
            out.write(rng.randbytes(8192))


def mixed(root: Path, scale: float) -> None:
    """Write episodes of a robot: video, joint logs, depth images, JSON and binary frames; about 1 GiB at scale 1."""
    for number in range(max(1, int(50 * scale))):
        folder = root / f"episode_{number:04d}"
        (folder / "depth").mkdir(parents=True)
        (folder / "frames").mkdir()
        noise(folder / "wrist.mp4", 14 * MIB, number)
        joint_log(folder / "joints.csv", 20_000, number)
        for frame in range(12):
            depth_image(folder / "depth" / f"{frame:05d}.pgm", number * 100 + frame)
        rng = random.Random(number)
        for frame in range(60):
            meta = {
                "frame": frame,
                "stamp": frame / 30,
                "gripper": rng.random() < 0.5,
                "pose": [rng.random() for _ in range(6)],
            }
            (folder / "frames" / f"{frame:05d}.json").write_text(json.dumps(meta))
            (folder / "frames" / f"{frame:05d}.bin").write_bytes(
                struct.pack("<64f", *(rng.gauss(0, 1) for _ in range(64)))
            )


SETS: dict[str, Callable[[Path, float], None]] = {"large": large, "small": small, "mixed": mixed, "video": video}


def make(name: str, root: Path, scale: float = 1.0) -> None:
    """Make the data set ``name`` at ``root``, unless a whole one of this scale is there."""
    mark = root.with_name(root.name + ".made")
    if mark.exists() and mark.read_text() == f"{name} {scale}":
        return
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    SETS[name](root, scale)
    mark.write_text(f"{name} {scale}")


def edit(root: Path) -> None:
    """Change ``root`` into its second version: about one file in a hundred, and one byte inserted into the largest."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    biggest = max(files, key=lambda path: path.stat().st_size)
    data = biggest.read_bytes()
    biggest.write_bytes(data[: len(data) // 3] + b"!" + data[len(data) // 3 :])
    rng = random.Random(99)
    for path in rng.sample(files, max(1, len(files) // 100)):
        if path == biggest:
            continue
        choice = rng.randrange(4)
        if choice == 0:
            path.unlink()
        elif choice == 1:
            path.rename(path.with_name("renamed_" + path.name))
        elif choice == 2:
            with path.open("ab") as out:
                out.write(b"appended\n" * 20)
        else:
            (path.parent / f"added_{path.stem}.txt").write_text("new\n" * 50)
    os.sync()
