"""Tokens of an identity provider: which are taken, and what is asked of the provider when."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from casstore.errors import ServiceError, UsageError
from casstore_server.identity import fetching
from casstore_server.identity.bearer import unverified
from casstore_server.identity.failures import LoginError
from casstore_server.identity.fetching import fetch_json
from casstore_server.identity.oidc import Provider, Said

ISSUER = "https://id.example/realms/lab"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    of = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    made = next((maker for kind, maker in of.items() if isinstance(key, kind)), OKPAlgorithm)
    return {**json.loads(made.to_jwk(key.public_key())), "kid": kid, **more}


KEYS = [
    jwk(RSA, "rsa", alg="RS256", use="sig"),
    jwk(EC, "ec"),
    jwk(ED, "ed"),
    jwk(WEAK, "weak"),
    jwk(EC, "enc", use="enc"),
    {"kty": "oct", "k": "c2VjcmV0", "kid": "oct", "alg": "HS256"},
    {"kty": "RSA", "kid": "broken", "n": "!"},
    "nonsense",
]


class World:
    """A provider that counts what it is asked."""

    def __init__(self, **more: Any) -> None:
        self.now = 0.0
        self.asked: list[str] = []
        self.keys: list[Any] = list(KEYS)
        self.down = False
        self.described: dict[str, Any] = {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"}
        given = {"user_claim": "preferred_username", "groups_claim": "groups", **more}
        self.provider = Provider(ISSUER, ["osmo", "web"], fetch=self.fetch, clock=lambda: self.now, **given)

    def fetch(self, url: str, what: str) -> dict[str, Any]:
        self.asked.append(url)
        if self.down:
            raise ServiceError(f"{what} can't be reached at {url}")
        return {"keys": self.keys} if url.endswith("/keys") else self.described

    def check(self, token: str) -> Said:
        return self.provider.check(token, unverified(token))


def token(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "rsa", **claims: Any) -> str:
    now = int(time.time())
    given = {"iss": ISSUER, "aud": "osmo", "sub": "1", "iat": now, "exp": now + 300, "preferred_username": "lena"}
    kept = {name: value for name, value in {**given, **claims}.items() if value is not None}
    return jwt.encode(kept, key, algorithm=algorithm, headers={} if kid is None else {"kid": kid})


def test_a_token_of_the_provider_says_who_somebody_is_and_their_groups() -> None:
    world = World()
    assert world.check(token(groups=["lab", "staff", 3])) == Said("lena", frozenset({"lab", "staff"}))
    assert world.check(token(EC, "ES256", "ec")) == Said("lena", frozenset())
    assert world.check(token(ED, "EdDSA", "ed", aud=["web"])).user == "lena"
    assert world.check(token(ED, "EdDSA", None)).user == "lena", "the only key of its kind"
    assert world.check(token(aud=["other", "web"], azp="web")).user == "lena"
    assert world.check(token(iat=int(time.time()) + 30, nbf=int(time.time()) + 30)).user == "lena", "clocks differ"
    assert world.asked == [f"{ISSUER}/.well-known/openid-configuration", f"{ISSUER}/keys"], "each was asked for once"


def test_claims_may_have_other_names_and_be_deeper() -> None:
    world = World(user_claim="email", groups_claim="realm_access.roles")
    said = world.check(token(email="lena@lab.example", realm_access={"roles": ["lead"]}))
    assert said == Said("lena@lab.example", frozenset({"lead"}))
    with pytest.raises(LoginError, match="has not verified"):
        world.check(token(email="lena@lab.example", email_verified=False))


PUBLIC = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def confused() -> str:
    """Signed with the public key as if it were a secret."""
    import base64
    import hashlib
    import hmac

    def part(value: Any) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    claims = jwt.decode(token(), options={"verify_signature": False})
    head = part({"alg": "HS256", "kid": "rsa"}) + b"." + part(claims)
    made = base64.urlsafe_b64encode(hmac.new(PUBLIC, head, hashlib.sha256).digest()).rstrip(b"=")
    return (head + b"." + made).decode()


BAD: dict[str, tuple[Callable[[], str], str]] = {
    "ended": (lambda: token(exp=int(time.time()) - 120), "has ended"),
    "no end": (lambda: token(exp=None), "exp"),
    "no subject": (lambda: token(sub=None), "sub"),
    "from the future": (lambda: token(nbf=int(time.time()) + 600), "not good"),
    "another application's": (lambda: token(aud="other"), "not good"),
    "nobody's": (lambda: token(aud=None), "not good"),
    "asked for by another": (lambda: token(aud=["osmo", "other"], azp="other"), "another application"),
    "several, asked for by nobody": (lambda: token(aud=["osmo", "other"]), "another application"),
    "another issuer's": (lambda: token(iss="https://evil.example"), "not good"),
    "not signed": (lambda: token(None, "none", "rsa"), "not accepted"),
    "a secret of everybody's": (confused, "not accepted"),
    "by a shared secret": (lambda: token("secret" * 10, "HS256", "oct"), "not accepted"),
    "by another key": (
        lambda: token(rsa.generate_private_key(public_exponent=65537, key_size=2048)),
        "not good",
    ),
    "by a key that is not known": (lambda: token(kid="new"), "does not have"),
    "by a key for something else": (lambda: token(EC, "ES256", "enc"), "does not have"),
    "by a short key": (lambda: token(WEAK, "RS256", "weak"), "does not have"),
    "by a key for another algorithm": (lambda: token(RSA, "PS256", "rsa"), "does not have"),
    "of nobody": (lambda: token(preferred_username=None), "no claim preferred_username"),
    "of something else": (lambda: token(preferred_username=["lena"]), "no claim preferred_username"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
def test_tokens_that_are_not_taken(name: str) -> None:
    make, words = BAD[name]
    with pytest.raises(LoginError, match=words):
        World().check(make())


def test_new_keys_are_found_at_once_and_nobody_makes_us_ask_all_the_time() -> None:
    world = World()
    world.check(token())
    fresh = ec.generate_private_key(ec.SECP256R1())
    world.keys = [jwk(fresh, "fresh")]
    world.now = 31.0
    assert world.check(token(fresh, "ES256", "fresh")).user == "lena"
    asked = len(world.asked)
    for number in range(20):
        with pytest.raises(LoginError):
            world.check(token(kid=f"made-up-{number}"))
    assert len(world.asked) == asked, "within 30 seconds it is asked once"
    with pytest.raises(LoginError):
        world.check(token())
    world.now = 62.0
    with pytest.raises(LoginError):
        world.check(token(kid="made-up"))
    assert len(world.asked) == asked + 1


def test_what_was_known_is_good_for_a_day_while_the_provider_is_away() -> None:
    world = World()
    world.check(token())
    world.down = True
    world.now = 3601.0
    assert world.check(token()).user == "lena"
    world.now = 24 * 3600.0 - 1
    assert world.check(token()).user == "lena"
    world.now = 25 * 3600.0
    with pytest.raises(ServiceError, match="can't be reached"):
        world.check(token())
    asked = len(world.asked)
    with pytest.raises(ServiceError, match="can't be reached"):
        world.check(token())
    assert len(world.asked) == asked, "not at each request"
    world.down = False
    world.now += 31.0
    assert world.check(token()).user == "lena"


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ({"issuer": f"{ISSUER}/", "jwks_uri": f"{ISSUER}/keys"}, "says that it is"),
        ({"jwks_uri": f"{ISSUER}/keys"}, "says that it is"),
        ({"issuer": ISSUER}, "where its keys are"),
        ({"issuer": ISSUER, "jwks_uri": "http://id.example/keys"}, "not a URL of https"),
        (
            {"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys", "token_endpoint": "file:///etc/passwd"},
            "not a URL of https",
        ),
    ],
)
def test_a_description_that_is_not_to_be_followed(described: dict[str, Any], words: str) -> None:
    world = World()
    world.described = described
    with pytest.raises((ServiceError, UsageError), match=words):
        world.check(token())


@pytest.fixture
def answers() -> Iterator[tuple[str, dict[str, Any]]]:
    """A server of this machine that answers what it is told."""
    told: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(told.get("status", 200))
            for name, value in told.get("headers", {}).items():
                self.send_header(name, value)
            self.end_headers()
            for block in told.get("blocks", [b"{}"]):
                try:
                    self.wfile.write(block)
                except OSError:
                    return

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/x", told
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"status": 500}, "status 500"),
        ({"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}}, "status 302"),
        ({"blocks": [b"["]}, "something else than JSON"),
        ({"blocks": [b"[]"]}, "JSON object"),
        ({"blocks": [b"[" * 200_000]}, "something else than JSON"),
        ({"blocks": [b"x" * 65536] * 20}, "more than"),
    ],
)
def test_answers_that_are_none(answers: tuple[str, dict[str, Any]], answer: dict[str, Any], words: str) -> None:
    url, told = answers
    told.update(answer)
    with pytest.raises(ServiceError, match=words):
        fetch_json(url, "The identity provider")


def test_an_answer_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "SECONDS", 0.0)
    with pytest.raises(ServiceError, match="too long"):
        fetching._read(_Endless(), "The identity provider")  # type: ignore[arg-type]  # as far as it is used


class _Endless:
    def read1(self, _: int) -> bytes:
        return b" "


def test_only_https_or_this_machine_is_asked() -> None:
    for url in ("http://id.example/x", "ftp://127.0.0.1/x", "file:///etc/passwd", "https://", "https://a@b/"):
        with pytest.raises(UsageError, match="not a URL of https"):
            fetch_json(url, "it")
    with pytest.raises(ServiceError, match="can't be reached"):
        fetch_json("http://127.0.0.1:1/x", "it")
