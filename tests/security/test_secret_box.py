"""Sealed secrets open with their key, in their place, and nowhere else; keys are seen by nobody."""

from __future__ import annotations

import base64
import os
import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.errors import AccessError, IntegrityError, NotFoundError, StorageError, UsageError
from casstore_server.secrets import (
    Key,
    KeyFile,
    SecretBox,
    key_of,
    make_key_file,
    new_key,
    parse_keys,
    replace_key_file,
)

_KEY = Key(bytes(range(32)))


def _box(*keys: Key) -> SecretBox:
    return SecretBox(lambda: keys)


@given(st.binary(max_size=200), st.lists(st.text(max_size=10), max_size=3))
def test_what_is_sealed_opens_in_its_place_alone(data: bytes, context: list[str]) -> None:
    box = _box(_KEY)
    sealed = box.seal(data, *context)
    assert box.open(sealed, *context) == data
    assert len(data) < 8 or data not in sealed
    with pytest.raises(IntegrityError):
        box.open(sealed, *context, "")
    if len(context) > 1:
        with pytest.raises(IntegrityError):
            box.open(sealed, context[0] + context[1], *context[2:])


@given(st.integers(min_value=9), st.integers(min_value=1, max_value=255))
def test_a_changed_byte_is_seen(where: int, by: int) -> None:
    box = _box(_KEY)
    sealed = bytearray(box.seal(b"a secret of some length", "row"))
    sealed[9 + where % (len(sealed) - 9)] ^= by
    with pytest.raises(IntegrityError):
        box.open(bytes(sealed), "row")


def test_equal_secrets_do_not_look_alike() -> None:
    box = _box(_KEY)
    assert box.seal(b"same", "a") != box.seal(b"same", "a")


def test_the_first_key_seals_and_all_open() -> None:
    old, new = new_key(), new_key()
    sealed = _box(old).seal(b"x", "a")
    assert key_of(sealed) == old.id
    both = _box(new, old)
    assert both.open(sealed, "a") == b"x"
    assert key_of(both.seal(b"x", "a")) == both.key_id == new.id
    with pytest.raises(AccessError, match=old.id):
        _box(new).open(sealed, "a")


@pytest.mark.parametrize("cut", [b"", b"\1", b"\2" + bytes(60), b"\1" + bytes(20)])
def test_what_is_no_sealed_value_is_refused(cut: bytes) -> None:
    with pytest.raises(AccessError):
        _box(_KEY).open(cut, "a")


def test_no_key_is_shown_or_copied() -> None:
    line = _KEY.line()
    box = _box(_KEY)
    for shown in (repr(_KEY), repr(box), str(vars(box)), f"{_KEY}"):
        assert line not in shown
    with pytest.raises(TypeError):
        pickle.dumps(_KEY)
    assert _KEY.derive("a") != _KEY.derive("b")
    assert line.encode() not in _KEY.derive("a")


def test_keys_are_read_from_texts() -> None:
    one, two = new_key(), new_key()
    assert parse_keys(f"# made today\n{one.line()}\n\n {two.line()} , {one.line()}\n", "x") == (one, two)


@pytest.mark.parametrize("text", ["", "# nothing", "c2hvcnQ=", "no base64!", base64.b64encode(bytes(33)).decode()])
def test_wrong_keys_are_refused_without_being_shown(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_keys(text, "the place")
    assert "the place" in caught.value.message
    assert caught.value.hint is not None
    assert "new-key" in caught.value.hint
    assert not text.strip() or text.startswith("#") or text not in caught.value.message


def test_a_file_is_made_once_and_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    with pytest.raises(NotFoundError):
        KeyFile(path)
    make_key_file(path)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(StorageError):
        make_key_file(path)
    keys = KeyFile(path)
    (first,) = keys()
    other = new_key()
    replace_key_file(path, [other, first])
    assert keys() == (other, first)
    path.unlink()
    assert keys() == (other, first)
    assert os.listdir(tmp_path) == []
    assert other.line() not in repr(keys)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret.key"
    make_key_file(path)
    path.chmod(mode)
    with pytest.raises(AccessError, match="Other users"):
        KeyFile(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a file"):
        KeyFile(tmp_path)
    (tmp_path / "large").write_bytes(b"A" * 20_000)
    (tmp_path / "large").chmod(0o600)
    with pytest.raises(UsageError, match="too large"):
        KeyFile(tmp_path / "large")
