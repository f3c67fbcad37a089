"""Secrets of configs, wherever they are in a document: kept, shown as stars, and the same when the stars come back."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from casstore.wire.config import MASK
from casstore_server.configs.masking import hide, ids, mask, mask_second, reveal

NAMES = st.sampled_from(["access_key", "password", "auth", "url", "name", "list"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=6).map(lambda text: f"canary{text}")
DOCUMENTS: st.SearchStrategy[Any] = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=12
)


class Kept:
    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def keep(self, value: str, old: str | None) -> str:
        if old is not None and self.found[old] == value:
            return old
        key = f"id{len(self.found)}"
        self.found[key] = value
        return key


def secrets(document: Any, name: str = "") -> list[str]:
    if isinstance(document, dict):
        return [found for key, value in document.items() for found in secrets(value, key)]
    if isinstance(document, list):
        return [found for value in document for found in secrets(value, name)]
    return [document] if isinstance(document, str) and name in {"access_key", "password", "auth"} else []


@given(DOCUMENTS)
def test_what_is_hidden_comes_back_and_is_never_shown(document: Any) -> None:
    kept = Kept()
    hidden = hide(document, None, kept)
    assert sorted(kept.found.values()) == sorted(secrets(document))
    assert reveal(hidden, kept.found) == document
    assert secrets(mask(hidden)) == [MASK] * len(secrets(document))
    assert hide(mask(hidden), hidden, kept) == hidden  # stars that come back change nothing
    assert hide(document, hidden, kept) == hidden  # nor does the same secret
    assert set(ids(hidden)) <= kept.found.keys()


@given(DOCUMENTS, DOCUMENTS)
def test_a_difference_shows_no_secret(first: Any, second: Any) -> None:
    kept = Kept()
    one = hide(first, None, kept)
    other = hide(second, one, kept)
    shown = secrets(mask_second(one, other, 7))
    assert all(text == MASK or text == f"{MASK} <secret changed in r7>" for text in shown)
    assert secrets(mask_second(one, one, 7)) == [MASK] * len(secrets(first))
