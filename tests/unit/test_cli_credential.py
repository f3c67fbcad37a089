"""``osmo credential`` where no server can run, and the file that it keeps secrets in then."""

from __future__ import annotations

import io
import json
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from casstore.config import load_config
from casstore.errors import AccessError, FormatError, NotFoundError, TransientError, UsageError
from casstore.remote.credentials import StorageCredential
from casstore.transfer import raw
from casstore.vault import Vault
from casstore.wire.credentials import (
    Credential,
    CredentialBody,
    DataPart,
    GenericPart,
    RegistryPart,
    profile_of,
)
from casstore_cli import background, main
from casstore_cli.credentials import ConfigCredentials

Run = Callable[..., str]
CANARY = "canary-5eed"


class Stdin:
    def __init__(self, data: bytes) -> None:
        self.buffer = io.BytesIO(data)

    def isatty(self) -> bool:
        return False


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(background, "is_installed", lambda: False)

    def call(*args: object, code: int = 0, stdin: bytes = b"") -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "stdin", Stdin(stdin))
        found = main.run(["credential", *map(str, args)])
        captured = capsys.readouterr()
        assert found == code, captured.out + captured.err
        call.err = captured.err  # type: ignore[attr-defined]
        assert CANARY not in captured.out + captured.err
        return captured.out

    return call


def vault() -> Vault:
    return Vault(load_config().paths.config)


def payload(name: str) -> dict[str, str]:
    found = vault().get("tester", name)
    assert found is not None
    return found.payload


# --- set


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["hf_token", "--generic", "--value", CANARY], {"hf_token": CANARY}),
        (["wandb_api_key", "--generic", "--value", CANARY], {"wandb_api_key": CANARY}),
        (["hub", "--payload", f"token={CANARY}", "user=me=you"], {"token": CANARY, "user": "me=you"}),
        (["hub", "--type", "generic", "--payload", "a=1", "--payload", "b="], {"a": "1", "b": ""}),
    ],
)
def test_every_way_to_write_one(run: Run, words: list[str], wanted: dict[str, str]) -> None:
    assert run("set", *words) == f"Set GENERIC credential {words[0]}.\n"
    assert payload(words[0]) == wanted
    assert "can be seen by others" in run.err  # type: ignore[attr-defined]


def test_a_value_from_standard_input_warns_of_nothing(run: Run) -> None:
    run("set", "hub", "--value", "-", stdin=f"{CANARY}\n".encode())
    assert payload("hub") == {"hub": CANARY}
    assert run.err == ""  # type: ignore[attr-defined]
    run("set", "hub", stdin=f"{CANARY}2\r\n".encode())
    assert payload("hub") == {"hub": f"{CANARY}2"}
    assert "empty" in run("set", "hub", "--value", "-", code=2)
    assert payload("hub") == {"hub": f"{CANARY}2"}


def test_values_from_files_keep_the_newlines_of_keys(run: Run, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("-----BEGIN-----\nabc\n-----END-----\n")
    (tmp_path / "token").write_text("one line\n")
    run("set", "ssh", "--payload-file", "key=key", f"token={tmp_path}/token", "in=-", stdin=b"from stdin")
    assert payload("ssh") == {"key": "-----BEGIN-----\nabc\n-----END-----\n", "token": "one line", "in": "from stdin"}
    assert run.err == ""  # type: ignore[attr-defined]
    (tmp_path / "bytes").write_bytes(b"\xff")
    assert "UTF-8" in run("set", "ssh", "--payload-file", "key=bytes", code=2)
    assert "can't read" in run("set", "ssh", "--payload-file", "key=nowhere", code=2)
    assert "directory" in run("set", "ssh", "--payload-file", f"key={tmp_path}", code=2)
    (tmp_path / "big").write_bytes(b"x" * (257 * 1024))
    assert "larger" in run("set", "ssh", "--payload-file", "key=big", code=2)


def test_a_prompt_does_not_show_what_is_typed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass

    class Terminal(Stdin):
        def isatty(self) -> bool:
            return True

    asked: list[str] = []

    def answer(prompt: str, stream: Any = None) -> str:
        asked.append(prompt)
        return CANARY

    monkeypatch.setattr(getpass, "getpass", answer)
    monkeypatch.setattr(sys, "stdin", Terminal(b""))
    assert main.run(["credential", "set", "hub"]) == 0
    assert "hub" in asked[0]
    assert payload("hub") == {"hub": CANARY}


def test_set_again_replaces(run: Run) -> None:
    # OSMO fails with a duplicate key, and its troubleshooting page says to delete first.
    for value in ("one", "two"):
        run("set", "hub", "--payload", f"k={value}")
    assert payload("hub") == {"k": "two"}
    run("set", "hub", "--registry", "--value", "x")
    found = vault().get("tester", "hub")
    assert found is not None
    assert (found.type, found.profile) == ("REGISTRY", "registry-1.docker.io")


@pytest.mark.parametrize(
    "words",
    [
        ["1st", "--value", CANARY],
        ["hub-", "--value", CANARY],
        ["hub", "--payload", CANARY],
        ["hub", "--payload-file", CANARY],
        ["hub", "--payload", f"../k={CANARY}"],
        ["hub", "--payload", f"={CANARY}"],
        ["hub", "--payload", f"k={CANARY}", f"k={CANARY}2"],
        ["hub", "--data", "--value", CANARY],
        ["hub", "--data"],
        ["hub", "--data", "--payload", f"access_key={CANARY}"],
        ["hub", "--data", "--payload", "endpoint=s3://b", "access_key_id=x"],
        ["hub", "--data", "--payload", "endpoint=http://b", f"access_key={CANARY}"],
        ["hub", "--data", "--payload", "endpoint=file:///b", f"access_key={CANARY}"],
        ["hub", "--registry", "--payload", f"auth={CANARY}", "more=1"],
        ["hub", "--registry", "--payload", f"auth={CANARY}", "registry=a b"],
        ["hub", "--registry", "--generic", "--value", CANARY],
        ["hub", "--type", "DATA", "--generic", "--value", CANARY],
        ["hub", "--type", "OTHER", "--value", CANARY],
    ],
)
def test_what_can_not_be_is_refused_without_its_values(run: Run, words: list[str]) -> None:
    run("set", *words, code=2)
    assert not (Path(load_config().paths.config) / "credentials.json").exists()


# --- DATA


def data(*more: str) -> list[str]:
    return [
        "--type",
        "DATA",
        "--payload",
        "endpoint=s3://robots/some/path",
        "access_key_id=me",
        f"access_key={CANARY}",
        *more,
    ]


def test_a_data_credential_is_tried_and_then_kept_in_config_yaml(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, StorageCredential]] = []

    def check(endpoint: str, credential: StorageCredential) -> bool:
        tried.append((endpoint, credential))
        return True

    monkeypatch.setattr(raw, "check_credential", check)
    run("set", "robots", *data("region=eu-west-1"))
    wanted = StorageCredential(access_key_id="me", access_key=CANARY, region="eu-west-1")
    assert tried == [("s3://robots/some/path", wanted)]
    assert ConfigCredentials().find("s3://robots") == wanted
    assert stat.S_IMODE(os.stat(load_config().paths.config_file).st_mode) == 0o600
    assert payload("robots") == {}  # no secret is kept twice
    (row,) = json.loads(run("list", "-t", "json"))["credentials"]
    assert row == {"cred_name": "robots", "cred_type": "DATA", "profile": "s3://robots", "local": True}


def test_a_data_credential_that_does_not_work_is_not_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bool:
        raise AccessError("s3://robots: the signature does not match")

    monkeypatch.setattr(raw, "check_credential", refuse)
    said = run("set", "robots", *data(), code=2)
    assert "signature does not match" in said
    assert "--no-validate" in said
    assert "robots" not in run("list")
    run("set", "robots", *data(), "--no-validate")
    assert "robots" in run("list")


def test_there_is_one_for_each_profile(run: Run) -> None:
    run("set", "first", *data(), "--no-validate")
    run("set", "second", *data(), "--no-validate")
    assert "first was for s3://robots" in run.err  # type: ignore[attr-defined]
    assert [row["cred_name"] for row in json.loads(run("list", "-t", "json"))["credentials"]] == ["second"]
    run("delete", "second")
    assert ConfigCredentials().find("s3://robots") is None


@pytest.mark.parametrize(
    ("endpoint", "profile"),
    [
        ("s3://b/deep/path", "s3://b"),
        ("gs://b", "gs://b"),
        ("azure://account", "azure://account"),
        ("azure://account/container/x", "azure://account"),
        ("tos://host/b/x", "tos://host/b"),
        ("swift://host/account", "swift://host/account"),
        ("swift://host:8080/account/container", "swift://host:8080/account"),
    ],
)
def test_the_profile_of_an_endpoint(endpoint: str, profile: str) -> None:
    assert profile_of(endpoint) == profile


@pytest.mark.parametrize("endpoint", ["", "s3://", "azure://", "swift://host", "tos://host", "http://x/y", "b"])
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(UsageError):
        profile_of(endpoint)


# --- list and delete


def test_list_and_delete(run: Run) -> None:
    run("set", "hub", "--value", CANARY)
    run("set", "ngc", "--registry", "--payload", f"auth={CANARY}", "registry=nvcr.io")
    assert payload("ngc")["username"] == "$oauthtoken"
    table = run("list")
    assert [line.split() for line in table.splitlines()[2:]] == [
        ["hub", "GENERIC", "N/A", "N/A"],
        ["ngc", "REGISTRY", "nvcr.io", "N/A"],
    ]
    assert run("--format-type", "json", "list") == run("list", "--format-type", "json")
    assert run("delete", "hub") == "Deleted credential hub.\n"
    assert "no credential 'hub'" in run("delete", "hub", code=2)


def test_what_somebody_wrote_into_config_yaml_is_listed(run: Run) -> None:
    path = Path(load_config().paths.config_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"auth: {{data: {{'gs://b': {{access_key: {CANARY}}}}}}}")
    assert run("list").splitlines()[2].split() == ["N/A", "DATA", "gs://b", "Yes"]


# --- the file


def credential(value: str = CANARY, profile: str | None = None) -> Credential:
    return Credential(type="GENERIC" if profile is None else "DATA", profile=profile, payload={"k": value})


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    kept = Vault(str(tmp_path / "new/folder"))
    kept.put("me", "a", credential())
    assert stat.S_IMODE(os.stat(kept.path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "new/folder").st_mode) == 0o700
    os.chmod(kept.path, 0o640)
    with pytest.raises(AccessError, match="other users can read") as caught:
        kept.get("me", "a")
    assert CANARY not in str(caught.value)
    assert "chmod 600" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text", [CANARY, f'{{"users": "{CANARY}"}}', f'{{"users": {{"me": {{"a": {{"type": 1, "x": "{CANARY}"}}}}}}}}', ""]
)
def test_a_damaged_file_is_told_without_what_is_in_it(tmp_path: Path, text: str) -> None:
    kept = Vault(str(tmp_path))
    Path(kept.path).write_text(text)
    os.chmod(kept.path, 0o600)
    with pytest.raises(FormatError) as caught:
        kept.names("me")
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_of_a_newer_release_is_left_alone(tmp_path: Path) -> None:
    kept = Vault(str(tmp_path))
    Path(kept.path).write_text('{"version": 2, "users": {}}')
    os.chmod(kept.path, 0o600)
    with pytest.raises(FormatError, match="newer release"):
        kept.put("me", "a", credential())


def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    def write(number: int) -> None:
        Vault(str(tmp_path)).put(f"user-{number % 3}", f"name-{number}", credential())

    threads = [threading.Thread(target=write, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = Vault(str(tmp_path))
    assert sum(len(kept.names(f"user-{number}")) for number in range(3)) == 24
    assert sorted(os.listdir(tmp_path)) == [".credentials.lock", "credentials.json"]


def test_users_do_not_see_each_other(tmp_path: Path) -> None:
    kept = Vault(str(tmp_path))
    kept.put("me", "a", credential())
    assert kept.get("you", "a") is None
    with pytest.raises(NotFoundError):
        kept.remove("you", "a")
    assert kept.put("you", "b", credential(profile="s3://x")) == []
    assert kept.put("me", "c", credential(profile="s3://x")) == []
    assert {user: list(own) for user, own in kept.all().items()} == {"me": ["a", "c"], "you": ["b"]}


def test_no_repr_holds_a_secret() -> None:
    parts = [
        RegistryPart(auth=CANARY),
        DataPart(endpoint="s3://b", access_key=CANARY),
        GenericPart(credential={"k": CANARY}),
        credential(),
        StorageCredential(access_key=CANARY, session_token=CANARY),
        CredentialBody(generic_credential=GenericPart(credential={"k": CANARY})),
    ]
    assert CANARY not in repr(parts)


def test_an_endpoint_that_can_not_be_reached_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> bool:
        raise TransientError("s3://robots can't be reached")

    monkeypatch.setattr(raw, "check_credential", unreachable)
    assert "was not kept" in run("set", "robots", *data(), code=10)
