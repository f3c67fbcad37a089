"""Workflows that read and write object storage, and the secrets that they need: real commands, a real server of ours,
moto's S3 server on loopback.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from casstore.testing.servers.s3 import S3Server, moto_s3

OSMO = [sys.executable, "-c", "from casstore_cli.main import main; main()"]
PATIENCE = 120.0
CANARY = "canary/5e+cr3t=="
SHORT = "q7"


class Home:
    """A user's home, and the server that their commands start. Nothing about storage is in the environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "run").mkdir(parents=True, mode=0o700)
        self.work = folder / "work"
        self.work.mkdir()
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONPATH") if name in os.environ}
        self.env = kept | {
            "HOME": str(folder),
            "USER": "ada",
            "LOGNAME": "ada",
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "TZ": "UTC",
            "PYTHONWARNINGS": "error::ResourceWarning",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def osmo(self, *words: str, code: int = 0, stdin: str | None = None) -> str:
        done = subprocess.run(
            [*OSMO, *words], env=self.env, cwd=self.work, input=stdin or "", capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        said = f"{done.stdout}\n--- stderr\n{done.stderr}"
        assert "Traceback" not in said, said
        assert CANARY not in said
        assert done.returncode == code, f"osmo {' '.join(words)}: exit {done.returncode}\n{said}"
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.osmo(*words, "-t", "json"))

    def run(self, text: str, *wanted: str) -> dict[str, Any]:
        (self.work / "flow.yaml").write_text(text)
        name = self.json("workflow", "submit", "flow.yaml")["name"]
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found: dict[str, Any] = self.json("workflow", "query", name, "-v")
            if found["status"].startswith(("COMPLETED", "FAILED")):
                found["log"] = self.osmo("workflow", "logs", name)
                assert found["status"] in (wanted or ("COMPLETED",)), found["log"]
                return found
            time.sleep(0.1)
        raise AssertionError(f"{name} is {found['status']}")

    def close(self) -> None:
        self.osmo("server", "stop", "--tasks")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_s3() as server:
        yield server


@pytest.fixture(scope="module")
def home(s3: S3Server) -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="cs-", ignore_cleanup_errors=True) as folder:
        found = Home(Path(folder) / "ada")
        yield found
        found.close()


@pytest.fixture
def bucket(home: Home, s3: S3Server) -> str:
    """A bucket that the user has a credential for, by a file and standard input."""
    name = s3.bucket()
    (home.work / "key").write_text(f"{s3.access_key}\n")
    home.osmo(
        "credential", "set", "storage", "--type", "DATA", "--payload", f"endpoint=s3://{name}",
        f"access_key_id={s3.access_key_id}", f"region={s3.region}", f"override_url={s3.endpoint}",
        "--payload-file", "access_key=key",
    )  # fmt: skip
    return name


FLOW = """
workflow:
  name: tally
  tasks:
  - name: count
    image: ubuntu
    command: [bash, -c]
    args:
    - |
      set -e
      mkdir {{output}}/sub
      cat {{input:0}}/*.txt {{input:0}}/deep/* | sort > {{output}}/sub/all
      find {{input:0}} -type f | wc -l > {{output}}/count
      ln -s /etc/passwd {{output}}/link
    inputs:
    - url: s3://BUCKET/in
      regex: .*txt
    outputs:
    - url: s3://BUCKET/out/{{workflow_id}}
    - dataset: {name: tallies}
"""


@pytest.mark.slow
def test_a_workflow_reads_and_writes_a_bucket(home: Home, s3: S3Server, bucket: str) -> None:
    client = s3.boto3()
    try:
        for key, body in {"in/a.txt": b"a\n", "in/b.txt": b"b\n", "in/deep/c.txt": b"c\n", "in/d.bin": b"d\n"}.items():
            client.put_object(Bucket=bucket, Key=key, Body=body)
        client.put_object(Bucket=bucket, Key="in2/no.txt", Body=b"no\n")
        done = home.run(FLOW.replace("BUCKET", bucket))
        out = f"out/{done['name']}"
        keys = [one["Key"] for one in client.list_objects_v2(Bucket=bucket, Prefix="out/")["Contents"]]
        assert keys == [f"{out}/count", f"{out}/sub/all"]  # the link is not followed out of the folder
        assert client.get_object(Bucket=bucket, Key=f"{out}/sub/all")["Body"].read() == b"a\nb\nc\n"
        assert client.get_object(Bucket=bucket, Key=f"{out}/count")["Body"].read() == b"3\n"
        log = done["log"]
        assert f"Downloaded s3://{bucket}/in to {{{{input:0}}}}: 3 files" in log
        assert f"Uploaded to s3://{bucket}/{out}: 2 files" in log
        assert "link: a symbolic link" in log
        version = home.json("dataset", "info", "tallies")["versions"][-1]
        assert version["metadata"]["default"]["input_data"] == [f"s3://{bucket}/in"]
        (note,) = [one for one in version["provenance"]["inputs"] if one["kind"] == "url"]
        assert (note["files"], note["size"], note["regex"], len(note["checksum"])) == (3, 6, ".*txt", 64)
        # The digest is over what was there: another object, another digest.
        client.put_object(Bucket=bucket, Key="in/a.txt", Body=b"A\n")
        home.run(FLOW.replace("BUCKET", bucket))
        again = home.json("dataset", "info", "tallies")["versions"][-1]["provenance"]["inputs"][0]
        assert again["checksum"] != note["checksum"]
    finally:
        client.close()


@pytest.mark.slow
def test_what_is_wrong_with_a_url_is_one_line(home: Home, s3: S3Server, bucket: str) -> None:
    client = s3.boto3()
    try:
        client.put_object(Bucket=bucket, Key="evil/../../escaped", Body=b"x")
    finally:
        client.close()
    flow = FLOW.replace("    - url: s3://BUCKET/out/{{workflow_id}}\n", "").replace("      regex: .*txt\n", "")
    (home.work / "flow.yaml").write_text(flow.replace("s3://BUCKET/in", "s3:///nowhere"))
    said = home.osmo("workflow", "submit", "flow.yaml", code=1)
    assert "task count, input 0: url:" in said
    empty = home.run(flow.replace("BUCKET/in", f"{bucket}/empty"), "FAILED_DOWNLOAD", "FAILED")
    assert f"there is nothing at s3://{bucket}/empty" in empty["log"]
    evil = home.run(flow.replace("BUCKET/in", f"{bucket}/evil"), "FAILED_DOWNLOAD", "FAILED")
    assert "the key 'evil/../../escaped'" in evil["log"]
    assert not list(home.folder.rglob("escaped"))


@pytest.mark.slow
def test_osmo_data_against_a_bucket(home: Home, s3: S3Server, bucket: str) -> None:
    (home.work / "tree/sub").mkdir(parents=True, exist_ok=True)
    (home.work / "tree/sub/file").write_bytes(b"content")
    (home.work / "tree/big").write_bytes(os.urandom(9 << 20))
    url = f"s3://{bucket}/trees"
    assert home.json("data", "upload", url, "tree")["files"] == 2
    assert home.json("data", "upload", url, "tree", "--resume")["reused"] >= 1
    assert [one["name"] for one in home.json("data", "list", url, "-r")] == ["tree/big", "tree/sub/file"]
    (home.work / "back").mkdir(exist_ok=True)
    assert home.json("data", "download", f"{url}/tree", "back")["files"] == 2
    assert (home.work / "back/big").read_bytes() == (home.work / "tree/big").read_bytes()
    assert home.json("data", "download", f"{url}/tree", "back", "--resume")["reused"] == 2
    for access in ("READ", "WRITE", "DELETE"):
        assert json.loads(home.osmo("data", "check", url, "-a", access)) == {"status": "pass"}
    assert home.json("data", "delete", url)["deleted"] == 2
    assert json.loads(home.osmo("data", "check", "s3://nobody-has-this-one"))["status"] == "fail"


@pytest.mark.slow
def test_datasets_of_a_workflow_lie_in_a_bucket_of_the_service(home: Home, bucket: str) -> None:
    home.osmo("bucket", "add", "lab", f"s3://{bucket}/stores/lab")
    (home.work / "episodes").mkdir()
    (home.work / "episodes/one").write_text("1")
    home.osmo("dataset", "upload", "lab/episodes", "episodes")
    done = home.run("""
workflow:
  name: copy
  tasks:
  - name: one
    image: ubuntu
    command: [cp, -r, "{{input:0}}/episodes", "{{output}}"]
    inputs: [{dataset: {name: lab/episodes}}]
    outputs: [{dataset: {name: lab/copies}}]
""")
    assert "Uploaded lab/copies:1" in done["log"]
    refused = home.osmo("data", "delete", f"s3://{bucket}/stores", code=2)
    assert "dataset store" in refused
    (home.work / "copies").mkdir()
    home.osmo("dataset", "download", "lab/copies", "copies")
    assert [path.name for path in home.work.glob("copies/**/one")] == ["one"]


# --- secrets


SECRETS = """
workflow:
  name: secretive
  tasks:
  - name: one
    image: ubuntu
    command: [bash, -c]
    args:
    - |
      echo "the token is $TOKEN, the pin is $PIN"
      cat /tmp/keys/token
      test "$TOKEN" = "$(cat /tmp/keys/token)" && stat -c 'mode %a' /tmp/keys/token
      echo "$TOKEN" | sha256sum | cut -c 1-8 > {{output}}/proof
      env | grep TOKEN >&2
    credentials:
      hub: {TOKEN: token, PIN: pin}
      hub2: /tmp/keys
    outputs:
    - dataset: {name: proofs}
"""


def holds(folder: Path, secret: bytes) -> list[str]:
    """The files below a folder that hold the secret in clear."""
    return [
        str(path.relative_to(folder))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and secret in path.read_bytes()
    ]


@pytest.mark.slow
def test_a_secret_is_in_no_place_but_its_own(home: Home) -> None:
    (home.work / "flow.yaml").write_text(SECRETS)
    refused = home.osmo("workflow", "submit", "flow.yaml", code=2)
    assert "there is no credential 'hub'" in refused
    assert "osmo credential set hub" in refused
    home.osmo("credential", "set", "hub", "--payload-file", "token=-", "--payload", f"pin={SHORT}", stdin=CANARY)
    home.osmo("credential", "set", "hub2", "--payload-file", "token=-", stdin=CANARY)
    done = home.run(SECRETS)
    log = done["log"]
    assert "the token is [MASKED], the pin is [MASKED]" in log
    assert "[one] [MASKED]" in log
    assert "TOKEN=[MASKED]" in log
    assert "mode 600" in log
    for words in (
        ["workflow", "query", done["name"], "-v", "-t", "json"],
        ["workflow", "spec", done["name"]],
        ["workflow", "events", done["name"]],
        ["credential", "list", "-t", "json"],
        ["dataset", "info", "proofs", "-t", "json"],
    ):
        home.osmo(*words)  # which looks for the secret in everything that is said
    assert holds(home.folder, CANARY.encode()) == [], "it is sealed"


@pytest.mark.slow
def test_a_secret_in_a_command_line_is_warned_about_and_masked(home: Home) -> None:
    home.osmo("credential", "set", "hub", "--payload-file", "token=-", "--payload", f"pin={SHORT}", stdin=CANARY)
    flow = """
workflow:
  name: careless
  tasks:
  - name: one
    image: ubuntu
    command: COMMAND
    credentials: {hub: {TOKEN: token}}
"""
    told = home.run(flow.replace("COMMAND", "[echo, said, $(TOKEN)]"))
    assert "$(TOKEN) in the command puts a secret" in told["log"]
    assert "said [MASKED]" in told["log"]
    failed = home.run(flow.replace("COMMAND", "[$(TOKEN)]"), "FAILED")
    assert "[MASKED]" in failed["log"]
    home.osmo("workflow", "events", failed["name"])
    assert holds(home.folder, CANARY.encode()) == [], "it is sealed"
    home.osmo("credential", "delete", "hub")
    assert "no credential" in home.osmo("workflow", "submit", "flow.yaml", code=2)
    assert holds(home.folder, CANARY.encode()) == []
