"""Pools that share nodes are one server's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from casstore_orchestrator.families import families_of, keep_whole
from casstore_orchestrator.pools import Pool, parse_pools, this_machine
from casstore_orchestrator.statestore import Fence
from casstore_orchestrator.testing import MemoryStateStore


def pools(**nodes: list[str]) -> Mapping[str, Pool]:
    return parse_pools({name: {"platforms": {"x": {"nodes": own}}} for name, own in nodes.items()}, this_machine())


def server(store: MemoryStateStore, owner: str, now: float) -> Callable[[Sequence[str]], dict[str, Fence]]:
    return lambda names: store.keep_leases(names, owner, now, now + 15)


def test_families_are_joined_by_way_of_others() -> None:
    found = families_of(pools(d=["n3"], c=["n2", "n3"], b=["n1", "n2"], a=["n0"]))
    assert [found.find(name) for name in "abcd"] == ["a", "b", "b", "b"]


def test_of_a_family_a_server_has_all_or_none() -> None:
    store = MemoryStateStore()
    apart = families_of(pools(a=["n0"], b=["n1"], c=["n2"]))
    one = keep_whole("a", apart, server(store, "one", 0))
    other = keep_whole("abc", apart, server(store, "other", 0))
    assert (set(one), set(other)) == ({"pool/a"}, {"pool/b", "pool/c"})
    # The operator lets the pools share a node: what the first pool's holder has not yet, it gets when it expires.
    together = families_of(pools(a=["n0"], b=["n1", "n0"], c=["n2"]))
    assert set(keep_whole("abc", together, server(store, "one", 5))) == {"pool/a"}
    assert set(keep_whole("abc", together, server(store, "other", 5))) == {"pool/c"}
    assert set(keep_whole("abc", together, server(store, "one", 16))) == {"pool/a", "pool/b"}
    assert set(keep_whole("abc", together, server(store, "other", 16))) == {"pool/c"}
    # Of a family that is free, whoever comes first has all, though both ask for all.
    assert set(keep_whole("abc", together, server(store, "other", 40))) == {"pool/a", "pool/b", "pool/c"}
    assert set(keep_whole("abc", together, server(store, "one", 41))) == set()
