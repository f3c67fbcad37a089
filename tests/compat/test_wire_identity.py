"""Logins as clients see them, what is refused and when, and what is written down of it."""

from __future__ import annotations

import contextlib
import json
import logging
import ssl
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.client import HTTPException, HTTPSConnection
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from casstore.errors import UsageError
from casstore.testing.http import Http
from casstore_server.api.app import create_app
from casstore_server.db.audit import AuditLog, NewAudit
from casstore_server.db.identity import People, Token
from casstore_server.identity.actions import Policy, Role
from casstore_server.identity.settings import IdentitySettings
from casstore_server.identity.tokens import digest, new_token
from casstore_server.run import answering
from casstore_server.services.audit import Trail
from casstore_server.tls import Certificate
from tests.compat.conftest import HELLO, Server

DAY = 86_400.0


class Site:
    """A server beside that of the fixture, over the same parts, with other settings."""

    def __init__(self, server: Server, folder: Path, **settings: Any) -> None:
        self.server = server
        self.people = People(server.services.database)
        chosen = replace(server.services.settings, identity=IdentitySettings(**settings))
        lab = Role("lab", "", (Policy(("workflow:*", "pool:Read"), ("pool/default",)),))
        self.services = replace(server.services, settings=chosen, roles=lambda: {"lab": lab})
        self._folder = folder
        self.port = 0

    def open(self) -> AbstractContextManager[Site]:
        return self._open()

    @contextlib.contextmanager
    def _open(self) -> Iterator[Site]:
        with answering(create_app(self.services), self._folder / "n", port=0) as port:
            self.port = port
            yield self

    def token(self, user: str = "lena", *roles: str, name: str = "ci", days: float = 1.0) -> str:
        made = new_token()
        now = time.time()
        kept = Token(user, name, "", now, now + days * DAY, None, roles or ("osmo-user",))
        self.people.add_token(kept, digest(made))
        return made

    def bearer(self, token: str) -> Http:
        return Http(self.port, {"Authorization": f"Bearer {token}"})

    def entries(self, **query: Any) -> list[dict[str, Any]]:
        found = self.server.client.get("/api/v1/audit", params=query)
        assert found.status_code == 200, found.text
        listed: list[dict[str, Any]] = found.json()["entries"]
        return listed


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Iterator[Site]:
    with Site(server, tmp_path, dev_login="off").open() as made:
        made.people.create("lena", by="ada", roles=["osmo-user", "lab"])
        yield made


def test_a_personal_token_is_good_itself_and_for_an_id_token(site: Site) -> None:
    token = site.token()
    assert site.bearer(token).get("/api/pool").status_code == 200
    stranger = Http(site.port)
    posted = stranger.post("/api/auth/jwt/access_token", json={"token": token})
    legacy = stranger.get("/api/auth/jwt/access_token", {"access_token": token})
    for reply in (posted, legacy):
        assert reply.status_code == 200, reply.text
        assert reply.headers["cache-control"] == "no-store"
        made = reply.json()["token"]
        assert made.count(".") == 2
        assert jwt.decode(made, options={"verify_signature": False})["name"] == "lena"
        profile = site.bearer(made).get("/api/profile/settings").json()
        assert (profile["profile"]["username"], profile["token"]["name"]) == ("lena", "ci")
        assert profile["roles"] == ["osmo-user"], "of its user's roles, those that the token has"
    keys = stranger.get("/api/auth/keys").json()["keys"]
    public = jwt.PyJWK(keys[0], "ES256")
    assert jwt.decode(made, public, algorithms=["ES256"], audience="casstore", issuer="casstore")["sub"] == "lena"


def test_what_was_taken_away_is_refused_at_once(site: Site) -> None:
    token = site.token("lena", "osmo-user", "lab")
    made = Http(site.port).post("/api/auth/jwt/access_token", json={"token": token}).json()["token"]
    here = [site.bearer(token), site.bearer(made)]
    assert [one.get("/api/app").status_code for one in here] == [200, 200]
    site.people.take("lena", "osmo-user")
    assert [one.get("/api/app").status_code for one in here] == [403, 403]
    assert [one.get("/api/pool").status_code for one in here] == [200, 200]
    site.people.delete_token("lena", "ci")
    for one in here:
        refused = one.get("/api/pool")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert "is not known here" in refused.json()["message"]
    again = site.token("lena", "lab")
    site.people.delete("lena")
    assert site.bearer(again).get("/api/pool").status_code in {401, 403}
    refused = Http(site.server.port, {"x-osmo-user": "lena"}).get("/api/pool")
    assert (refused.status_code, "is disabled" in refused.text) == (403, True)
    assert (site.entries()[0]["user"], site.entries()[0]["outcome"]) == ("lena", "refused"), "and it is known who"
    assert Http(site.port).post("/api/auth/jwt/access_token", json={"token": again}).status_code in {401, 403}


@pytest.mark.parametrize(
    ("header", "status", "words"),
    [
        (None, 401, "does not know who you are"),
        ("Basic bGVuYTp4", 401, "must be: Bearer"),
        ("Bearer", 401, "must be: Bearer"),
        ("Bearer x", 401, "neither a personal token nor an id token"),
        ("Bearer casstore_x", 401, "mistyped"),
        ("Bearer NEW", 401, "not known here"),
        ("Bearer e30.e30.e30", 401, "does not trust"),
        ("Bearer " + jwt.encode({"iss": "https://evil.example"}, "k" * 40), 401, "does not trust"),
        ("Bearer " + jwt.encode({"iss": "casstore"}, "k" * 40), 401, "not this server's"),
        ("Bearer " + "x" * 20_000, 401, "neither"),
    ],
)
def test_what_lets_nobody_in(site: Site, header: str | None, status: int, words: str) -> None:
    header = header and header.replace("NEW", new_token())  # not among the parameters: all workers name tests alike
    refused = Http(site.port, {} if header is None else {"Authorization": header}).get("/api/pool")
    assert refused.status_code == status, refused.text
    assert words in refused.json()["message"]
    assert refused.json()["error_code"] == "CREDENTIAL"


def test_a_token_that_has_ended(site: Site) -> None:
    late = site.bearer(site.token(days=-1.0))
    refused = late.get("/api/pool")
    assert (refused.status_code, "has ended" in refused.text) == (401, True)
    assert {late.get("/api/pool").status_code for _ in range(40)} == {401}, "that is no guess"


def test_nobodys_own_word_is_taken_where_that_is_off(site: Site) -> None:
    for name in ("lena", "ada"):
        refused = Http(site.port, {"x-osmo-user": name}).get("/api/pool")
        assert refused.status_code == 401
        assert "osmo login" in refused.json()["hint"]
    assert Http(site.port).get("/metrics").status_code == 401
    with_token = Http(site.port, {"Authorization": f"Bearer {site.token()}", "x-osmo-user": "ada"})
    assert with_token.get("/api/profile/settings").json()["profile"]["username"] == "lena", "the token counts"
    forwarded = Http(site.port, {"x-osmo-user": "ada", "x-forwarded-for": "unix", "x-osmo-roles": "osmo-admin"})
    assert forwarded.get("/api/pool").status_code == 401
    for path in ("/health", "/ready", "/api/version", "/api/auth/login", "/api/auth/keys"):
        assert Http(site.port).get(path).status_code == 200


def test_many_failed_logins_stop_others_of_the_address_but_nobody_who_is_in(site: Site) -> None:
    token, late = site.token(), site.token(name="late")
    assert site.bearer(token).get("/api/pool").status_code == 200
    statuses = [site.bearer(new_token()).get("/api/pool").status_code for _ in range(30)]
    assert statuses[:20] == [401] * 20
    assert 429 in statuses
    refused = site.bearer(late).get("/api/pool")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error_code"] == "CREDENTIAL"
    assert site.bearer(token).get("/api/pool").status_code == 200


def test_who_asks_too_often_is_told_when_to_ask_again(server: Server, tmp_path: Path) -> None:
    with Site(server, tmp_path, dev_login="off", rate_limit=0.1, rate_limit_open=0.2).open() as site:
        site.people.create("lena", by="ada", roles=["osmo-user"])
        site.people.create("max", by="ada", roles=["osmo-user"])
        lena, same = site.bearer(site.token()), site.bearer(site.token(name="other"))
        assert lena.get("/api/pool").status_code == 200
        for one in (lena, same):
            refused = one.get("/api/pool")
            assert (refused.status_code, "lena asks more often" in refused.text) == (429, True)
            assert 1 <= int(refused.headers["retry-after"]) <= 10
        assert site.bearer(site.token("max")).get("/api/pool").status_code == 200
        found = {Http(site.port).get("/api/version").status_code for _ in range(5)}
        assert found == {200, 429}
        assert {lena.get("/api/version").status_code for _ in range(5)} == {200}, "who is known is not one of them"
        assert Http(site.port).get("/health").status_code == 200, "probes are not counted"
        assert Http(str(tmp_path / "n")).get("/api/pool").status_code == 200, "nor is the unix socket"


def test_a_gateway_says_who_somebody_is(server: Server, tmp_path: Path) -> None:
    with Site(server, tmp_path, proxies=("127.0.0.1/32",), gateway=True).open() as site:

        def ask(**headers: str) -> dict[str, Any]:
            given = {f"x-osmo-{name.replace('_', '-')}": value for name, value in headers.items()}
            reply = Http(site.port, given).get("/api/profile/settings")
            found: dict[str, Any] = reply.json() | {"status": reply.status_code}
            return found

        assert ask(user="lena")["roles"] == ["osmo-user"]
        assert ask(user="lena", roles="osmo-viewer, lab")["roles"] == ["lab", "osmo-viewer"]
        assert ask(user="lena", allowed_pools="other")["pools"] == []
        assert ask(user="lena", allowed_pools="other,default")["pools"] == ["default"]
        assert ask()["status"] == 401
        assert ask(user="../lena")["status"] == 400
        site.people.create("gone", by="ada", roles=[])
        site.people.delete("gone")
        assert ask(user="gone", roles="osmo-admin")["status"] == 403


def test_changes_and_refusals_are_written_down(site: Site) -> None:
    secret = site.token("lena", "osmo-user")
    lena = Http(site.port, {"Authorization": f"Bearer {secret}", "x-request-id": "r-1"})
    made = lena.post("/api/pool/default/workflow", {"priority": "low"}, json={"file": HELLO}).json()["name"]
    assert lena.post("/api/pool/default/workflow", {"dry_run": "True"}, json={"file": HELLO}).status_code == 200
    assert lena.get(f"/api/workflow/{made}").status_code == 200
    body = {"generic_credential": {"credential": {"key": "hunter2"}}}
    assert lena.post("/api/credentials/mine", json=body).status_code == 200
    assert lena.get("/api/auth/user").status_code == 403
    assert Http(site.port).get("/api/workflow").status_code == 401
    assert Http(site.port).post("/api/auth/jwt/access_token", json={"token": secret}).status_code == 200
    found = [
        (one["user"], one["token"], one["action"], one["resource"], one["outcome"]) for one in reversed(site.entries())
    ]
    assert found == [
        ("lena", "ci", "workflow:Create", "/api/pool/default/workflow", "done"),
        ("lena", "ci", "credential:Own", "/api/credentials/mine", "done"),
        ("lena", "ci", "user:Read", "/api/auth/user", "refused"),
        ("", None, "workflow:Read", "/api/workflow", "refused"),
        ("lena", "ci", "login", "/api/auth/jwt/access_token", "done"),
    ]
    first = site.entries(action="workflow:Create")[0]
    assert first["request_id"] == "r-1"
    assert first["address"] == "127.0.0.1"
    assert first["detail"] == {"method": "POST", "status": "200", "workflow": made}
    everything = json.dumps(site.entries())
    assert secret not in everything
    assert "hunter2" not in everything


def test_pages_of_the_audit_log(site: Site, server: Server) -> None:
    log = AuditLog(server.services.database)
    for number in range(25):
        user = f"u{number % 2}"
        log.add(NewAudit(1000.0 + number, user, None, "app:Write", f"/api/app/user/{number}", "done", "unix", "", "{}"))
    page = server.client.get("/api/v1/audit", {"limit": 10}).json()
    seen = [one["resource"] for one in page["entries"]]
    while page["older_than"] is not None:
        page = server.client.get("/api/v1/audit", {"limit": 10, "older_than": page["older_than"]}).json()
        seen += [one["resource"] for one in page["entries"]]
    assert seen == [f"/api/app/user/{number}" for number in reversed(range(25))]
    assert len(site.entries(user="u1")) == 12
    assert len(site.entries(resource="/api/app/user/2")) == 6
    assert site.entries(outcome="refused") == []
    assert len(site.entries(after="1970-01-01T00:16:50", before="1970-01-01T00:16:55")) == 5
    assert server.client.get("/api/v1/audit", {"after": "soon"}).status_code == 400
    assert site.bearer(site.token()).get("/api/v1/audit").status_code == 403


def test_old_entries_are_forgotten_and_floods_of_refusals_are_not_kept(server: Server) -> None:
    log = AuditLog(server.services.database)
    entry = NewAudit(time.time() - 40 * DAY, "u", None, "a", "/" + "x" * 5000, "done", "unix", "", "{}")
    Trail(log, 0.0).write(entry)
    assert [row["user"] for row in server.get("/api/v1/audit")["entries"]] == ["u"]
    trail = Trail(log, 30.0)
    trail.write(entry._replace(at=time.time(), user="v"))
    assert [row["user"] for row in server.get("/api/v1/audit")["entries"]] == ["v"]
    kept = [trail.wants("refused", "10.0.0.1", {}) for _ in range(500)]
    assert 100 <= sum(kept) < 200
    assert trail.wants("refused", "10.0.0.2", {})
    assert trail.wants("done", "10.0.0.1", {})


def test_an_entry_that_can_not_be_written_is_in_the_log_and_stops_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(AuditLog, "add", fail)
    caplog.set_level(logging.INFO, "casstore_server.audit")
    body = {"generic_credential": {"credential": {"key": "hunter2"}}}
    assert site.bearer(site.token()).post("/api/credentials/mine", json=body).status_code == 200
    said = [record.getMessage() for record in caplog.records if record.name == "casstore_server.audit"]
    assert said[0] == "done credential:Own /api/credentials/mine by lena from 127.0.0.1"
    assert "hunter2" not in caplog.text


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for this machine that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    form = serialization
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    (folder / "cert.pem").write_bytes(made.public_bytes(form.Encoding.PEM))
    (folder / "key.pem").write_bytes(private)
    return folder / "cert.pem", folder / "key.pem"


def common_name(port: int) -> str:
    """Of the certificate that the server shows."""
    shown = x509.load_pem_x509_certificate(ssl.get_server_certificate(("127.0.0.1", port), timeout=30).encode())
    return str(shown.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def test_the_server_speaks_tls_and_takes_up_a_new_certificate(server: Server, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "first")
    chosen = replace(server.services.settings, identity=IdentitySettings(tls_cert=str(cert), tls_key=str(key)))
    app = create_app(replace(server.services, settings=chosen))
    used = Certificate(cert, key)
    with answering(app, tmp_path / "n", port=0, certificate=used) as port:
        connection = HTTPSConnection(
            "127.0.0.1", port, context=ssl.create_default_context(cafile=str(cert)), timeout=30
        )
        connection.request("POST", "/api/pool/default/workflow", json.dumps({"file": HELLO}), {"x-osmo-user": "lena"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        assert answer["overview"] == f"https://127.0.0.1:{port}/workflows/{answer['name']}"
        assert Http(str(tmp_path / "n")).get("/api/pool").status_code == 200, "the unix socket has none"
        with pytest.raises((OSError, HTTPException)):
            Http(port).get("/health")
        assert common_name(port) == "first"
        assert not used.renew()
        certificate(tmp_path, "second")
        assert used.renew()
        assert common_name(port) == "second"
        cert.write_text("nonsense")
        assert not used.renew()
        assert common_name(port) == "second", "what can't be read leaves the old one in force"


def test_a_certificate_that_can_not_be_used_is_told(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "first")
    other = ec.generate_private_key(ec.SECP256R1())
    form = serialization
    for private in (
        b"nonsense",
        other.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()),
        other.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"hush")),
    ):
        key.write_bytes(private)
        with pytest.raises(UsageError, match=r"can't be used|has a password"):
            Certificate(cert, key)
    with pytest.raises(UsageError, match="can't be used"):
        Certificate(tmp_path / "none", key)
