"""Types that many threads are the first to use, all at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

CROWD = """
import sys, threading
import msgspec
from casstore.format import record
from casstore.structs import settle
from casstore_orchestrator.records import WorkflowRecord
DATA = b'{"name":"a","uuid":"b","user":"u","pool":"p","spec":{"name":"x","groups":[]}}'
sys.setswitchinterval(1e-6)
if sys.argv[1] == "settled":
    settle()
    work = lambda: msgspec.json.decode(DATA, type=WorkflowRecord)
else:
    data = record._header("x", DATA) + DATA
    work = lambda: record.decode("x", data, WorkflowRecord)
failed = []
gate = threading.Barrier(8)
def run():
    gate.wait()
    try:
        assert work().name == "a"
    except Exception as error:
        failed.append(error)
threads = [threading.Thread(target=run) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert not failed, failed
"""


@pytest.mark.parametrize("how", ["settled", "a record"])
def test_threads_that_decode_a_type_for_the_first_time_together(how: str) -> None:
    for _ in range(5):  # without that, two of five end by a signal
        done = subprocess.run([sys.executable, "-c", CROWD, how], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_types_that_can_not_be_decoded_are_passed_over() -> None:
    import msgspec

    from casstore.structs import settle

    class Odd(msgspec.Struct):
        field: "NoSuchType"  # type: ignore[name-defined]  # noqa: F821, UP037

    settle()
    assert Odd in msgspec.Struct.__subclasses__()
