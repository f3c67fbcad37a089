"""Tokens, keys that sign, limits, and where it is safe to listen."""

from __future__ import annotations

import ipaddress
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from sqlalchemy import select

from casstore.errors import AccessError, CasstoreError, UsageError
from casstore_server.api.authenticate import Door
from casstore_server.db import schema, sealed
from casstore_server.db.audit import AuditLog, AuditWish, NewAudit
from casstore_server.db.callers import Callers, KnownToken, KnownUser
from casstore_server.db.engine import open_database, open_postgres
from casstore_server.db.identity import People, Token
from casstore_server.db.signing import SigningKeys
from casstore_server.db.store import Database
from casstore_server.identity import keys as signing
from casstore_server.identity import tokens
from casstore_server.identity.bearer import Bearers, unverified
from casstore_server.identity.failures import LoginError
from casstore_server.identity.keys import Keys
from casstore_server.identity.limits import Limit
from casstore_server.identity.settings import IdentitySettings, check_listening
from casstore_server.options import resolve
from casstore_server.secrets import SecretBox, new_key
from casstore_server.services.v1.signing import Signing
from casstore_server.settings import parse

KEY = new_key()
BOX = SecretBox(lambda: [KEY])
NOW = 1_800_000_000.0


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        engine = open_database(tmp_path / "db")
    else:
        engine = open_postgres(request.getfixturevalue("postgres")())
    made = Database(engine)
    sealed.check(made, BOX)
    yield made
    made.close()


def known(until: float = NOW + 10_000) -> KnownToken:
    user = KnownUser("lena", False, frozenset({"osmo-user", "lab"}))
    return KnownToken("t1", "ci", until, frozenset({"osmo-user", "gone"}), user)


def test_a_token_has_its_form_and_its_checksum() -> None:
    made = {tokens.new_token() for _ in range(50)}
    assert len(made) == 50
    for token in made:
        assert token.startswith("casstore_")
        assert len(token) == 55
        assert tokens.is_token(token)
        swapped = token[:20] + token[21] + token[20] + token[22:]
        assert token[20] == token[21] or not tokens.is_token(swapped)
    assert tokens.digest("x") == tokens.digest("x") != tokens.digest("y")
    for wrong in (
        "",
        "casstore_",
        "casstore_" + "a" * 46,
        token + "\n",
        token[:-1],
        token.upper(),
        "osmo_" + token[9:],
    ):
        assert not tokens.is_token(wrong)


def test_servers_of_one_database_make_one_key_and_accept_each_others_tokens(database: Database) -> None:
    clock = Clock()
    servers = [Bearers(Keys(SigningKeys(database), BOX, clock=clock), "casstore", 900, clock=clock) for _ in range(4)]
    issued: list[str] = []
    threads = [threading.Thread(target=lambda one=one: issued.append(one.issue(known()).token)) for one in servers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({unverified(token).kid for token in issued}) == 1
    with database.reading() as connection:
        assert len(connection.execute(select(schema.signing_key)).all()) == 1
    real = Bearers(Keys(SigningKeys(database), BOX), "casstore", 900)
    fresh = real.issue(known(until=2e10)).token
    other = Bearers(Keys(SigningKeys(database), BOX), "casstore", 900)
    assert other.check(fresh) == "t1"
    assert real.public()["keys"][0].keys() == {"kid", "use", "alg", "kty", "crv", "x", "y"}


def test_the_private_key_is_sealed(database: Database) -> None:
    Keys(SigningKeys(database), BOX).signing()
    with database.reading() as connection:
        row = connection.execute(select(schema.signing_key)).one()
    assert BOX.open(row.sealed, "signing_key", row.kid)[-32:] not in row.sealed
    other = new_key()
    with pytest.raises(CasstoreError):
        Keys(SigningKeys(database), SecretBox(lambda: [other])).signing()


def test_servers_of_one_database_accept_each_others_addresses(database: Database) -> None:
    clock, signs = Clock(), Signing(lambda: clock.now)
    ring = [KEY]
    one, two = (Keys(SigningKeys(database), SecretBox(lambda: ring), clock=clock) for _ in range(2))

    def signed(keys: Keys) -> tuple[str, ...]:
        query = parse_qs(urlsplit(signs.address(keys, "team", "packs/1", "read", 900)).query)
        return tuple(query[name][0] for name in ("until", "by", "sig"))

    def accepts(keys: Keys, given: tuple[str, ...], key: str = "packs/1") -> bool:
        try:
            signs.check(keys, "team", key, "read", *given)
        except AccessError:
            return False
        return True

    made: list[tuple[str, ...]] = []
    threads = [threading.Thread(target=lambda keys=keys: made.append(signed(keys))) for keys in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] == made[1]
    assert accepts(one, made[0])
    assert not accepts(one, made[0], "packs/2")
    assert not accepts(one, (made[0][0], "", made[0][2]))

    new = new_key()
    ring[:] = [new, KEY]
    assert sealed.reseal(database, SecretBox(lambda: ring)).changed == 1
    ring[:] = [new]
    fresh = Keys(SigningKeys(database), SecretBox(lambda: ring), clock=clock)
    assert accepts(fresh, made[0]), "what was signed before everything was sealed anew is good after it"
    assert accepts(one, signed(fresh))

    one.rotate()
    clock.now += 2
    assert accepts(two, signed(one))
    assert accepts(two, made[0])
    clock.now += 900
    assert not accepts(two, made[0])


def test_a_derived_secret_is_for_one_purpose(database: Database) -> None:
    one, two = (Keys(SigningKeys(database), BOX).signing() for _ in range(2))
    assert one.derive("a") == two.derive("a")
    assert len({one.derive("a"), one.derive("b"), one.private.private_numbers().private_value.to_bytes(32, "big")}) == 3


def test_keys_are_changed_and_old_ones_are_good_as_long_as_what_they_signed(tmp_path: Path) -> None:
    database = Database(open_database(tmp_path / "db"))
    sealed.check(database, BOX)
    clock = Clock()
    one, two = (Keys(SigningKeys(database), BOX, clock=clock) for _ in range(2))
    first = one.signing().kid
    assert two.find(first) is not None
    clock.now += signing.ROTATE_SECONDS + 1
    second = one.signing().kid
    assert second != first
    assert two.signing().kid == second
    assert {key["kid"] for key in two.public()["keys"]} == {first, second}
    assert two.find(first) is not None
    clock.now += 2
    assert two.find("nobody's") is None
    clock.now += signing.KEEP_SECONDS
    assert one.find(first) is None
    third = two.rotate()
    clock.now += 2
    assert third not in {first, second}
    assert one.find(third) is not None, "a key that is not known is looked for at once"
    with database.reading() as connection:
        assert {row.kid for row in connection.execute(select(schema.signing_key))} == {second, third}
    database.close()


def test_what_is_in_an_id_token(tmp_path: Path) -> None:
    database = Database(open_database(tmp_path / "db"))
    sealed.check(database, BOX)
    clock = Clock()
    bearers = Bearers(Keys(SigningKeys(database), BOX), "https://osmo.example", 900, clock=clock)
    made = bearers.issue(known())
    claims = jwt.decode(made.token, options={"verify_signature": False})
    assert claims == {
        "iss": "https://osmo.example",
        "aud": "casstore",
        "sub": "lena",
        "name": "lena",
        "iat": int(NOW),
        "exp": int(NOW) + 900,
        "jti": "t1",
        "osmo_token_name": "ci",
        "osmo_roles": ["osmo-user"],
    }
    assert made.expires_at == int(NOW) + 900
    assert bearers.issue(known(until=NOW + 5)).expires_at == int(NOW) + 5, "no longer than the personal token"
    database.close()


def test_id_tokens_that_are_not_good(tmp_path: Path) -> None:
    database = Database(open_database(tmp_path / "db"))
    sealed.check(database, BOX)
    keys = Keys(SigningKeys(database), BOX)
    bearers = Bearers(keys, "casstore", 900)
    good = bearers.issue(known(until=2e10)).token
    assert bearers.check(good) == "t1"
    claims: dict[str, Any] = jwt.decode(good, options={"verify_signature": False})
    mine = keys.signing()

    def signed(changed: dict[str, Any], key: Any = mine.private, algorithm: str = "ES256", kid: str = mine.kid) -> str:
        return jwt.encode({**claims, **changed}, key, algorithm=algorithm, headers={"kid": kid})

    head, body, signature = good.split(".")
    public = "x" * 64
    for token, words in (
        ("", "neither"),
        ("a.b.c", "neither"),
        (good + "x" * 20_000, "neither"),
        (f"{head}.{body}.{signature[:-4]}AAAA", "not good"),
        (signed({"exp": 1}), "has ended"),
        (signed({"iss": "https://evil.example"}), "not good"),
        (signed({"aud": "other"}), "not good"),
        (signed({"iat": 4e9, "nbf": 4e9}), "not good"),
        (signed({}, kid="unknown"), "a key that is not"),
        (signed({}, key=None, algorithm="none"), "not good"),
        (signed({}, key=public, algorithm="HS256"), "not good"),
    ):
        with pytest.raises(LoginError, match=words):
            bearers.check(token)
    del claims["jti"]
    with pytest.raises(LoginError, match="jti"):
        bearers.check(signed({}))
    database.close()


def test_a_limit_fills_steadily_and_knows_each_name() -> None:
    clock = Clock(0.0)
    limit = Limit(2.0, 3.0, clock=clock)
    assert [limit.wait("a") for _ in range(4)] == [0, 0, 0, 1]
    assert limit.wait("b") == 0
    clock.now = 0.5
    assert limit.wait("a", take=False) == 0
    assert [limit.wait("a"), limit.wait("a")] == [0, 1]
    clock.now = 100.0
    assert [limit.wait("a") for _ in range(4)] == [0, 0, 0, 1], "never more than the burst"
    slow = Limit(0.1, 1.0, clock=clock)
    assert [slow.wait("a"), slow.wait("a")] == [0, 10]
    assert all(Limit(0.0, 0.0, clock=clock).wait("a") == 0 for _ in range(100))


def test_a_limit_remembers_so_many_names_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casstore_server.identity.limits._MAX_NAMES", 2)
    limit = Limit(1.0, 1.0, clock=Clock())
    for name in ("a", "b", "c"):
        assert limit.wait(name) == 0
    assert limit.wait("c") > 0
    assert limit.wait("a") == 0


SAFE = {"public_url": "https://osmo.example.org", "tls_cert": "c", "tls_key": "k"}


@pytest.mark.parametrize(
    ("host", "settings", "words"),
    [
        ("127.0.0.1", {}, None),
        ("::1", {}, None),
        ("127.0.0.1", {"dev_login": "on"}, None),
        ("0.0.0.0", {}, "read on the way"),
        ("0.0.0.0", {"dev_login": "on", **SAFE}, "could say that they are anybody"),
        ("192.168.1.5", {"public_url": "https://osmo.example.org"}, "read on the way"),
        ("192.168.1.5", {"tls_cert": "c", "tls_key": "k"}, "does not know its name"),
        ("192.168.1.5", SAFE, None),
        ("::", SAFE, None),
        ("0.0.0.0", {"proxies": ("10.0.0.0/8",), "public_url": "https://osmo.example.org"}, None),
        ("127.0.0.1", {"tls_cert": "c"}, "together"),
        ("127.0.0.1", {"gateway": True}, "gateway needs proxies"),
        ("127.0.0.1", {"oidc_issuer": "https://id.example"}, "oidc_client_id or oidc_audiences"),
    ],
)
def test_where_it_is_safe_to_listen(host: str, settings: dict[str, Any], words: str | None) -> None:
    made = IdentitySettings(**settings)
    if words is None:
        check_listening(host, 8000, made)
        return
    with pytest.raises(UsageError, match=words):
        check_listening(host, 8000, made)


def test_without_a_port_nobody_else_reaches_it() -> None:
    check_listening("0.0.0.0", None, IdentitySettings())


@pytest.mark.parametrize(
    ("host", "settings", "allowed"),
    [
        ("127.0.0.1", {}, True),
        ("127.0.0.1", {"public_url": "http://localhost:8000"}, True),
        ("127.0.0.1", {"public_url": "https://osmo.example.org"}, False),
        ("127.0.0.1", {"proxies": ("127.0.0.1/32",)}, False),
        ("127.0.0.1", {"oidc_issuer": "https://id.example"}, False),
        ("127.0.0.1", {"dev_login": "off"}, False),
        ("127.0.0.1", {"dev_login": "on", "oidc_issuer": "https://id.example"}, True),
        ("10.0.0.1", {}, False),
    ],
)
def test_whose_own_word_is_taken(host: str, settings: dict[str, Any], allowed: bool) -> None:
    assert IdentitySettings(**settings).allows_dev(host) is allowed


def test_settings_by_file_and_by_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        "casstore:\n  server:\n    dev_login: off\n    hosts: [a.example, b.example]\n    proxies: [10.1.0.0/16]\n"
        "    oidc_issuer: https://id.example/realms/lab\n    oidc_client_id: osmo\n"
        "    oidc_roles: {leads: [osmo-admin, lab], staff: osmo-user}\n"
    )
    folders = [f"--{name}=/nowhere" for name in ("socket-path", "state-dir", "data-dir", "cache-dir")]
    command = [*folders, f"--config-file={file}", "--user=ada", "--action=config"]
    found = parse(command).settings.identity
    assert (found.dev_login, found.hosts, found.proxies) == ("off", ("a.example", "b.example"), ("10.1.0.0/16",))
    assert found.oidc_roles == (("leads", ("osmo-admin", "lab")), ("staff", ("osmo-user",)))
    monkeypatch.setenv("CASSTORE_SERVER_OIDC_ROLES", "x=osmo-admin,x=lab, y=osmo-user")
    monkeypatch.setenv("CASSTORE_SERVER_HOSTS", "c.example")
    monkeypatch.setenv("CASSTORE_SERVER_DEFAULT_ROLES", " ")
    found = parse(command).settings.identity
    assert found.oidc_roles == (("x", ("osmo-admin", "lab")), ("y", ("osmo-user",)))
    assert (found.hosts, found.default_roles) == (("c.example",), ())


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("dev_login", "maybe", "auto, on, off"),
        ("public_url", "http://osmo.example.org", "https"),
        ("public_url", "https://osmo.example.org/path", "without a path"),
        ("oidc_issuer", "http://id.example", "https"),
        ("oidc_issuer", "https://user:secret@id.example", "https"),
        ("oidc_issuer", "ftp://id.example", "https"),
        ("oidc_user_claim", "", "claim"),
        ("proxies", "10.0.0.1/8", "networks"),
        ("proxies", "proxy.example", "networks"),
        ("hosts", [1], "list"),
        ("default_roles", "x y", "roles"),
        ("oidc_roles", "leads", "group=role"),
        ("token_life", 5, "60"),
        ("rate_limit", -1, "number"),
        ("audit_days", True, "number"),
        ("gateway", "perhaps", "true or false"),
    ],
)
def test_settings_that_are_wrong_are_told(name: str, value: object, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        resolve({}, {}, {name: value}, "config.yaml")


def scope(host: str, client: str = "127.0.0.1", path: str = "/api/pool", **headers: str) -> dict[str, Any]:
    pairs = [(b"host", host.encode())]
    pairs += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "path": path, "headers": pairs, "client": (client, 1), "scheme": "http"}


def test_the_hosts_that_a_server_answers_for() -> None:
    inside = Door(IdentitySettings(hosts=("osmo.lab:8000",)), "127.0.0.1")
    for host in ("127.0.0.1:8000", "localhost", "[::1]:80", "osmo.lab:8000", "OSMO.lab:8000"):
        assert inside.asking(scope(host)).links.base == f"http://{host}"
    outside = Door(IdentitySettings(public_url="https://osmo.example.org", tls_cert="c", tls_key="k"), "0.0.0.0")
    assert outside.asking(scope("osmo.example.org", client="8.8.8.8")).links.base == "https://osmo.example.org"
    for door, host in ((inside, "osmo.lab"), (inside, "evil.example"), (outside, "127.0.0.1"), (outside, "")):
        with pytest.raises(AccessError, match="does not answer for the host"):
            door.asking(scope(host))
        assert door.asking(scope(host, path="/health")).path == "/health", "probes call it by its address"


def test_headers_of_proxies_count_from_proxies_alone() -> None:
    door = Door(
        IdentitySettings(public_url="https://osmo.example.org", proxies=("10.0.0.0/8",), gateway=True), "0.0.0.0"
    )
    given = {"x_forwarded_for": "1.1.1.1, 8.8.4.4, 10.0.0.7", "x_osmo_user": "lena"}
    through = door.asking(scope("osmo.example.org", client="10.0.0.9", **given))
    assert (through.address, through.vouched) == ("8.8.4.4", True)
    mapped = door.asking(scope("osmo.example.org", client="::ffff:10.0.0.9", **given))
    assert (mapped.address, mapped.vouched) == ("8.8.4.4", True)
    local = door.asking(scope("osmo.example.org", client="127.0.0.1", **given))
    assert (local.address, local.vouched) == ("127.0.0.1", False)
    with pytest.raises(AccessError, match="through its proxy"):
        door.asking(scope("osmo.example.org", client="8.8.8.8", **given))
    for hops in ("unix", "", "1.1.1.1, nonsense", "x" * 5000):
        assert door.asking(scope("osmo.example.org", client="10.0.0.9", x_forwarded_for=hops)).address == "10.0.0.9"
    assert ipaddress.ip_address(through.address)


def test_nobody_says_by_a_header_that_they_came_by_the_unix_socket() -> None:
    door = Door(IdentitySettings(), "127.0.0.1")
    assert door.asking(scope("127.0.0.1", x_forwarded_for="unix")).address == "127.0.0.1"


def test_headers_that_say_who_somebody_is_are_there_once() -> None:
    twice = scope("127.0.0.1", x_osmo_user="lena")
    twice["headers"].append((b"x-osmo-user", b"admin"))
    with pytest.raises(UsageError, match="more than once"):
        Door(IdentitySettings(), "127.0.0.1").asking(twice)


def test_the_audit_log_is_kept_by_both_databases(database: Database) -> None:
    log = AuditLog(database)
    entry = NewAudit(1.0, "lena", None, "app:Write", "/api/app/user/%", "done", "unix", "r" * 100, "{}")
    for number in range(3):
        log.add(entry._replace(at=float(number)))
    found = log.page(AuditWish(user="lena", resource="/api/app/user/%"), 2)
    assert [row.entry.at for row in found] == [2.0, 1.0]
    assert found[0].entry.request_id == "r" * 64, "what is too long is cut"
    assert [row.entry.at for row in log.page(AuditWish(older_than=found[-1].id), 9)] == [0.0]
    assert log.page(AuditWish(resource="/api/app/user/_"), 9) == [], "nothing in it is a pattern"
    assert log.forget(1.5) == 2
    assert len(log.page(AuditWish(), 9)) == 1


def test_what_is_known_of_callers_is_read_from_both_databases(database: Database) -> None:
    people, callers = People(database), Callers(database)
    people.create("lena", by="ada", roles=["osmo-user"])
    made = tokens.new_token()
    people.add_token(Token("lena", "ci", "", NOW, 4e9, None, ("osmo-user", "lab")), tokens.digest(made))
    found = callers.token(digest=tokens.digest(made))
    assert found is not None
    assert (found.user.name, found.user.roles, found.roles) == ("lena", {"osmo-user"}, {"osmo-user", "lab"})
    assert callers.token(id=found.id) == found
    used = people.token("lena", "ci").last_used
    assert used is not None
    callers.token(id=found.id)
    assert people.token("lena", "ci").last_used == used, "not at each request"
    assert callers.token(digest=tokens.digest("x")) is None
    assert callers.user("nobody") is None
    people.create("spare", by="ada", roles=["osmo-admin"])
    people.delete("lena")
    assert callers.token(id=found.id) is None
    gone = callers.user("lena")
    assert gone is not None
    assert gone.disabled
