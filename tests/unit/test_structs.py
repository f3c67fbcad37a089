"""Types that threads are the first to decode."""

from __future__ import annotations

import subprocess
import sys

# With msgspec alone the process dies of a segmentation fault within the first rounds.
ROUNDS = """
import sys, threading
import msgspec
from casstore.structs import convert, from_json

def types():
    class Leaf(msgspec.Struct):
        a: int
        b: str
        c: list[int]
    class Mid(msgspec.Struct):
        leaf: Leaf
        more: dict[str, Leaf]
        none: Leaf | None = None
    class Top(msgspec.Struct):
        x: list[Mid]
        y: Mid
        z: Leaf
    return Top

leaf = b'{"a":1,"b":"x","c":[1]}'
mid = b'{"leaf":' + leaf + b',"more":{"k":' + leaf + b'}}'
data = b'{"x":[' + mid + b'],"y":' + mid + b',"z":' + leaf + b'}'
value = msgspec.json.decode(data)
sys.setswitchinterval(1e-6)
for _ in range(60):
    kind, together, found = types(), threading.Barrier(4), []
    def decode(number):
        together.wait()
        for _ in range(3):
            found.append((from_json(data, kind) if number % 2 else convert(value, kind)).x[0].leaf.c)
    threads = [threading.Thread(target=decode, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [[1]] * 12
print("done")
"""


def test_threads_may_be_the_first_to_decode_a_type() -> None:
    done = subprocess.run([sys.executable, "-c", ROUNDS], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "done\n", (done.returncode, done.stderr)
