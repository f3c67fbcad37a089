"""What roles grant: more policies never grant less, patterns mean what they say, and no border is crossed."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casstore.errors import UsageError
from casstore_server.identity.actions import (
    ACTIONS,
    EVERYTHING,
    NOTHING,
    Action,
    Grants,
    Policy,
    Role,
    grants_of,
    parse_role,
    scope_kind,
)

NAMES = st.sampled_from(["a", "ab", "abc", "b", "ba", "gpu", "gpu-1"])
PATTERNS = st.sampled_from(
    ["*", "workflow:*", "*:Read", "dataset:*", "pool:Read", "user:Manage", "w*:*e*", "*:*", "open"]
)
RESOURCES = st.one_of(
    st.just("*"),
    st.builds(
        lambda kind, name, star: f"{kind}/{name}{star}",
        st.sampled_from(["pool", "bucket"]),
        NAMES,
        st.sampled_from(["", "*"]),
    ),
    st.sampled_from(["pool/*", "bucket/*"]),
)
POLICIES = st.lists(
    st.builds(
        lambda actions, resources: Policy(tuple(actions), tuple(resources)),
        st.lists(PATTERNS, min_size=1, max_size=3),
        st.lists(RESOURCES, min_size=1, max_size=3),
    ),
    max_size=4,
)  # fmt: skip
ASKED = st.sampled_from([action for action in ACTIONS if action != "open"])


def by_the_book(policies: list[Policy], action: Action, name: str | None) -> bool:
    """The same, said as slowly and plainly as possible."""
    kind = scope_kind(action)
    for policy in policies:
        if not any(fnmatch.fnmatchcase(action, pattern) for pattern in policy.actions):
            continue
        for resource in policy.resources:
            if resource == "*" or (kind and name is None and resource.startswith(f"{kind}/")):
                return True
            if kind and name is not None and fnmatch.fnmatchcase(f"{kind}/{name}", resource):
                return True
    return False


@given(POLICIES, ASKED, st.one_of(st.none(), NAMES))
def test_grants_are_what_the_policies_say(policies: list[Policy], action: Action, name: str | None) -> None:
    grants = Grants(policies=tuple(policies))
    allowed = by_the_book(policies, action, name)
    if scope_kind(action) == "pool":
        assert grants.may(action, pool=name) is allowed
    elif scope_kind(action) == "bucket":
        assert grants.may(action, bucket=name) is allowed
    else:
        assert grants.may(action) is by_the_book(policies, action, None)
    assert (action in grants.actions) is grants.may(action)


@given(POLICIES, POLICIES, ASKED, NAMES)
def test_another_policy_never_takes_a_right_away(
    some: list[Policy], more: list[Policy], action: Action, name: str
) -> None:
    before, after = Grants(policies=tuple(some)), Grants(policies=(*more, *some))
    assert after.may(action, pool=name, bucket=name) >= before.may(action, pool=name, bucket=name)
    assert after.may(action) >= before.may(action)


@given(st.lists(RESOURCES.filter(lambda text: text != "*"), min_size=1), ASKED)
def test_all_rights_in_some_places_are_no_right_to_manage_the_server(resources: list[str], action: Action) -> None:
    grants = Grants(policies=(Policy(("*",), tuple(resources)),))
    if not scope_kind(action):
        assert not grants.may(action)
    elif scope_kind(action) == "pool":
        assert grants.may(action, pool="elsewhere") is ("pool/*" in resources)


@given(st.text(alphabet="a*:W", max_size=12), st.text(alphabet="a:W", max_size=12))
def test_patterns_of_actions_are_those_of_a_shell(pattern: str, text: str) -> None:
    assert Policy((pattern,)).grants(text) is fnmatch.fnmatchcase(text, pattern)


def test_built_in_roles() -> None:
    assert set(EVERYTHING.actions) == set(ACTIONS) - {"open"}
    assert not NOTHING.actions
    assert NOTHING.may("open")
    user, viewer = grants_of(["osmo-user"]), grants_of(["osmo-viewer"])
    assert user.may("workflow:Create", pool="any")
    assert user.may("dataset:Delete", bucket="any")
    for action in ("user:Manage", "config:Write", "workflow:Manage", "app:Manage", "bucket:Manage", "audit:Read"):
        assert not user.may(action)
    assert set(viewer.actions) < set(user.actions)
    assert all(action.endswith((":Read", ":Own")) for action in viewer.actions)
    assert grants_of([]) == NOTHING
    assert not grants_of(["gone"]).actions
    assert grants_of(["gone", "osmo-user"]).roles == ("gone", "osmo-user")


def test_a_declared_role() -> None:
    lab = parse_role(
        "lab", {"description": "d", "policies": [{"actions": ["workflow:*"], "resources": ["pool/gpu*", "pool/cpu"]}]}
    )
    assert lab == Role("lab", "d", (Policy(("workflow:*",), ("pool/gpu*", "pool/cpu")),))
    grants = grants_of(["lab"], {"lab": lab})
    assert grants.may("workflow:Create", pool="gpu-1")
    assert grants.may("workflow:Create", pool="cpu")
    assert not grants.may("workflow:Create", pool="cpu2")
    assert not grants.may("pool:Read", pool="cpu")
    assert grants.may("workflow:Read")
    impostor = {"osmo-user": Role("osmo-user", "", (Policy(("*",)),))}
    assert not grants_of(["osmo-user"], impostor).may("user:Manage"), "built-in roles can't be declared over"


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("osmo-admin", {}, "built in"),
        ("../x", {}, "not the name of a role"),
        ("x", [], "mapping"),
        ("x", {"policies": {}}, "list"),
        ("x", {"policies": [{"actions": ["*"], "effect": "Deny"}]}, "unknown key effect"),
        ("x", {"policies": [{"actions": "workflow:Read"}]}, "list"),
        ("x", {"policies": [{"actions": []}]}, "list"),
        ("x", {"policies": [{"actions": ["workflow:Cook"]}]}, "no action 'workflow:Cook'"),
        ("x", {"policies": [{"actions": [{"path": "/api"}]}]}, "list of texts"),
        ("x", {"policies": [{"actions": ["*"], "resources": ["pool/*x"]}]}, "not a resource"),
        ("x", {"policies": [{"actions": ["*"], "resources": ["cluster/x"]}]}, "not a resource"),
        ("x", {"policies": [{"actions": ["*"], "resources": ["pool/" + "x" * 200]}]}, "not a resource"),
    ],
)
def test_a_role_that_is_wrong_is_refused(name: str, raw: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_role(name, raw)
