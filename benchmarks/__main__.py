"""The benchmarks' command; see ``README.md`` beside this file."""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

from benchmarks import generate, mounts, peers, remote


def main() -> None:
    """Parse the command line and run what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "casstore-benchmarks")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="all contenders, interleaved")
    run.add_argument("--data", nargs="+", choices=generate.SETS, default=["large", "small", "mixed"])
    run.add_argument("--rounds", type=int, default=3)
    run.add_argument("--scale", type=float, default=1.0)
    run.add_argument("--only", nargs="+", default=[], help="these contenders (casstore is always there)")
    run.add_argument("--output", type=Path, help="append the report to this file")
    far = commands.add_parser("remote", help="upload to and download from an S3 server, beside rclone")
    far.add_argument("--data", nargs="+", choices=generate.SETS, default=["video", "mixed"])
    far.add_argument("--rounds", type=int, default=3)
    far.add_argument("--scale", type=float, default=1.0)
    far.add_argument("--steps", nargs="+", choices=remote.STEPS, default=list(remote.STEPS))
    far.add_argument("--output", type=Path, help="append the report to this file")
    shown = commands.add_parser("mount", help="versions as folders, beside the local disk and other mounts")
    shown.add_argument("--data", nargs="+", choices=mounts.PARTS, default=list(mounts.PARTS))
    shown.add_argument("--rounds", type=int, default=3)
    shown.add_argument("--scale", type=float, default=0.2, help="1 for the full sizes")
    shown.add_argument(
        "--only", nargs="+", default=[], help="these contenders (casstore and the disk are always there)"
    )
    shown.add_argument("--quick", action="store_true", help="only try that it works")
    shown.add_argument("--output", type=Path, help="append the report to this file")
    commands.add_parser("kernels", help="the cost of each kernel")
    commands.add_parser("scaling", help="cost per gigabyte and per file")
    make = commands.add_parser("generate", help="make a data set")
    make.add_argument("target", type=Path)
    make.add_argument("--data", choices=generate.SETS, default="mixed")
    make.add_argument("--scale", type=float, default=1.0)
    change = commands.add_parser("edit", help="change a data set into its second version")
    change.add_argument("target", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "generate":
        generate.make(arguments.data, arguments.target.absolute(), arguments.scale)
    elif arguments.command == "edit":
        generate.edit(arguments.target)
    elif arguments.command == "kernels":
        from benchmarks import kernels

        print(kernels.kernels())
    elif arguments.command == "scaling":
        from benchmarks import kernels

        print(kernels.scaling(arguments.folder))
    else:
        for name in arguments.data:
            if arguments.command == "mount":
                rounds, scale = (1, mounts.QUICK) if arguments.quick else (arguments.rounds, arguments.scale)
                report = mounts.compare(name, arguments.folder, rounds, scale, arguments.only)
            elif arguments.command == "remote":
                report = remote.compare(name, arguments.folder, arguments.rounds, arguments.scale, arguments.steps)
            else:
                report = peers.compare(name, arguments.folder, arguments.rounds, arguments.scale, arguments.only)
            print(report, "\n", flush=True)
            if arguments.output:
                with arguments.output.open("a") as out:
                    out.write(f"{report}\n\n{platform.machine()}, {platform.system()} {platform.release()}\n\n")


if __name__ == "__main__":
    main()
