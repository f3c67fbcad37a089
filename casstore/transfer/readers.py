"""The upload's side of a reader process.

Decided here and only here: how such a process is started, and that it is never needed: whatever it can't do, and
everything once it failed, the calling thread does itself.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import subprocess
import sys
from typing import BinaryIO, cast

import casstore
from casstore.chunking.params import ChunkerParams
from casstore.transfer.reader import Reply, Request, decode_reply, encode, receive, send

MEMORY = 8 << 20
"""Bytes of files that one request may come to, with room for the last one."""

_CODE = "from casstore.transfer.reader import main; main()"


class Reader:
    """One reader process. For one thread. ``None`` from ``read`` means that it is gone for good."""

    def __init__(self, process: subprocess.Popen[bytes], memory: mmap.mmap) -> None:
        self._process = process
        self._input = cast("BinaryIO", process.stdin)
        self._output = cast("BinaryIO", process.stdout)
        self._memory = memory
        self.view = memoryview(memory)

    @classmethod
    def start(cls, params: ChunkerParams) -> Reader | None:
        """Start a process, or return None where that can't be done."""
        if not sys.executable or not hasattr(os, "memfd_create"):
            return None
        descriptor = os.memfd_create("casstore-reader")
        try:
            os.ftruncate(descriptor, MEMORY)
            memory = mmap.mmap(descriptor, MEMORY)
            package = os.path.dirname(os.path.dirname(os.path.abspath(casstore.__file__)))
            path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
            arguments = (descriptor, MEMORY, params.min, params.avg, params.max)
            process = subprocess.Popen(
                # -P: the folder of the data, which may be the current one, is no place to import modules from.
                [sys.executable, "-P", "-c", _CODE, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                pass_fds=(descriptor,),
                env={**os.environ, "PYTHONPATH": path},
            )
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return cls(process, memory)

    def read(self, request: Request) -> Reply | None:
        """Have these files read. The stored bytes are in ``view`` until the next call."""
        try:
            send(self._input, encode(request))
            reply: Reply = decode_reply(receive(self._output))
        except (OSError, EOFError, ValueError):
            return None
        return reply if len(reply) == len(request) else None

    def close(self) -> None:
        """End the process and release what was shared with it."""
        for pipe in (self._input, self._output):
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.view.release()
        self._memory.close()
