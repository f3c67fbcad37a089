"""Bytes between a connection and a program in a task."""

from __future__ import annotations

import os
import socket
import threading
from dataclasses import dataclass

from casstore_orchestrator import frames
from casstore_orchestrator.agent.pump import exchange_program
from casstore_orchestrator.frames import Frames, Kind


@dataclass
class Over:
    """A program that has ended and read nothing."""

    stdin: int
    stdout: int
    stderr: int
    terminal: int = -1
    ended: int = -1
    code: int | None = 3
    with_the_task: bool = False


def test_input_that_nobody_reads_does_not_cost_the_exit_code() -> None:
    near, far = socket.socketpair()
    stdin = os.pipe()
    ends = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    results: list[bool] = []

    def serve() -> None:
        with far:
            results.append(exchange_program(far, Over(stdin[1], *ends)))

    thread = threading.Thread(target=serve)
    with near:
        near.sendall(frames.encode(Kind.DATA, b"x" * 1000))
        thread.start()
        got, reader = [], Frames()
        while data := near.recv(1 << 16):
            got += reader.feed(data)
        near.sendall(frames.encode(Kind.DATA, b"x" * 1000))  # fails when the other side has closed it
    thread.join()
    for fd in (*stdin, *ends):
        os.close(fd)
    assert [(kind, frames.exit_status(payload)) for kind, payload in got] == [(Kind.EXIT, (3, False))]
    assert results == [True]
