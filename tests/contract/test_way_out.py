"""The way out of a group's network, tried in a network namespace that stands in for this machine's network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from casstore_orchestrator.executors.probe import probe

# The "machine": an address that is not loopback, a server on it, one on loopback, and a resolver that is not there.
MACHINE = """
import http.server, json, socket, subprocess, sys, threading
from pathlib import Path
from casstore_orchestrator.executors.process import ProcessExecutor
from casstore_orchestrator.ports import PlacedFile, TaskLaunch

for command in ("link set lo up", "addr add 192.0.2.1/32 dev lo"):
    subprocess.run(["ip", *command.split()], check=True)

class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"reached")
    def log_message(self, *_):
        pass

servers = [http.server.ThreadingHTTPServer((host, 0), Answer) for host in ("192.0.2.1", "127.0.0.1")]
for server in servers:
    threading.Thread(target=server.serve_forever, daemon=True).start()

class Sink:
    def __init__(self):
        self.lines = {}
    def write(self, task, text, *, source=""):
        self.lines.setdefault(task + source, []).extend(text.decode().split("\\n"))

script = f'''
curl -s -m 20 http://192.0.2.1:{servers[0].server_port}/ || echo refused
echo
for host in 192.0.2.1 10.213.0.2 127.0.0.1; do
    curl -s -m 2 http://$host:{servers[1].server_port}/ && echo "loopback by $host"
done
cat /etc/resolv.conf
until curl -s -m 5 http://$PEER:8080/ -o /dev/null; do sleep 0.05; done &
python3 -m http.server 8080 > /dev/null 2>&1 &
wait %1
echo peer; sleep 1
'''
found = {}
for egress in (True, False):
    sink = Sink()
    files = (PlacedFile("/tmp/run.sh", script.encode()),)
    base = Path(sys.argv[1]) / str(egress)
    launches = [
        TaskLaunch(name, ("bash", "/tmp/run.sh"), {"PEER": peer}, files, base / name, 1, 0, 0)
        for name, peer in (("a", "b"), ("b", "a"))
    ]
    gang = ProcessExecutor(mode="bubblewrap", egress=egress).prepare("g", launches, sink)
    gang.release()
    codes = [gang.tasks[name].wait(60) for name in "ab"]
    gang.close()
    found[str(egress)] = {"codes": codes, "lines": sink.lines}
print(json.dumps(found))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="a network to try it in is made by root")
@pytest.mark.skipif(not probe().way_out, reason=f"groups get no way out here: {'; '.join(probe().lacks)}")
def test_tasks_reach_other_networks_if_the_pool_allows_it_and_never_this_machines_loopback(tmp_path: Path) -> None:
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", MACHINE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for egress, first in (("True", "reached"), ("False", "refused")):
        for task in "ab":
            lines = found[egress]["lines"][task]
            assert lines[0] == first
            assert not [line for line in lines if "loopback by" in line]
            assert lines[-1] == "peer"
            assert ("nameserver 10.213.0.3" in lines) is (egress == "True")
            told = found[egress]["lines"][f"{task}osmo"]
            assert any("own network with a way out" in line for line in told) is (egress == "True")
        assert found[egress]["codes"] == [0, 0]
    left = subprocess.run(["pgrep", "-f", "slirp4netns.*osmo-out"], capture_output=True, text=True, check=False)
    assert not [pid for pid in left.stdout.split() if _is_ours(pid, tmp_path)]


def _is_ours(pid: str, folder: Path) -> bool:
    try:
        return str(folder) in Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return False
