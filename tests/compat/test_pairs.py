"""Requests as OSMO 6.2's client sends them, each with the reply that it needs: ``pairs/<endpoint>.yaml``.

Every file is a conversation with a server of its own, over its port, by the rules of the reference of the wire
(``osmo-wire-6.2.md`` §3, ``osmo-datasets-6.2.md`` §5, ``osmo-spec.md`` §5.2). What goes over the wire is written by
what those say of the client, and by nothing of ours. The keys of a file:

    about       what it is for
    row         the rows of those tables that it covers: see ``ROWS``
    storage     ``s3`` for a server with a bucket ``lab`` in S3, ``${place}/lab``
    talk        pairs of requests and replies, in their order; before any of them, ``do`` says what else happens then

of a pair:

    GET, POST, PUT, PATCH, DELETE   the endpoint as the client has it, which is put behind the server's URL and a slash
    query       parameters: a list is its name repeated, an empty one and none are left out, true and false are ``True``
                and ``False``
    json, body  what is sent: as JSON (a text too), or as it is; without both there is no body
    as          who asks, by ``x-osmo-user`` (ada, who owns the server, when it is not there); nobody, if it is null
    headers     more headers
    reply       the status
    gives       what the client reads of the reply; see ``fits``
    text        a regular expression for all of a reply that is no JSON
    warns       a regular expression for what the client prints to stderr
    has         headers of the reply
    keep        name: path in the reply; ``${name}`` stands for it later, ``${name:int}`` for the number that it is

The shape of a reply is written as what it must have, and may have more: a mapping needs its keys, or ``{"*": shape}``
for every value; a list of one shape needs that of all its elements, and one at least, a list of several fits each of
its own; a text is one of ``KINDS``, several with ``|``, a regular expression between slashes, or, behind ``=``, itself;
anything else is itself.
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit

import pytest
import yaml
from fastapi.routing import APIRoute

from casstore.backend.memory import MemoryBackend
from casstore.dataset.adopt.base import Buckets
from casstore.repo.store import Store
from casstore.testing.foreign import OsmoFolder, osmo_etag
from casstore.testing.http import Http, Reply
from casstore.testing.servers.s3 import S3Server, moto_s3
from casstore_server.api import gate
from casstore_server.api.app import assemble
from casstore_server.api.rules import all_routes

if TYPE_CHECKING:
    from tests.compat.conftest import Server

FILES = sorted((Path(__file__).parent / "pairs").glob("*.yaml"))
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
STOCK = {
    "User-Agent": "osmo-cli/6.0.0",
    "Accept-Encoding": "gzip, deflate",
    "Accept": "*/*",
    "Content-Type": "application/json",
}
"""What every request of the client has; most also its version."""
VERSION = {"x-osmo-client-version": "6.0.0"}
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?"
KINDS: dict[str, Callable[[Any], bool]] = {
    "any": lambda _: True,
    "null": lambda value: value is None,
    "text": lambda value: isinstance(value, str),
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "list": lambda value: isinstance(value, list),
    "map": lambda value: isinstance(value, dict),
    "time": lambda value: isinstance(value, str) and bool(re.fullmatch(TIME, value)),
    "count": lambda value: isinstance(value, str) and value.isdigit(),
    "uuid": lambda value: (
        isinstance(value, str) and bool(re.fullmatch(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}", value))
    ),
}
HELLO = """\
workflow:
  name: hello
  tasks:
  - name: one
    image: ubuntu
    command: [echo, hi]
"""
TEMPLATE = HELLO.replace("hi]", "'{{ word }}']") + "default-values:\n  word: hi\n"
EXAMPLES = {
    "HELLO": HELLO,
    "TEMPLATE": TEMPLATE,
    "APP": HELLO.replace("hello", "train"),
    "SOON": (datetime.now(UTC) + timedelta(days=30)).strftime("%Y-%m-%d"),
}
"""What ``${NAME}`` stands for in every file: workflows, and a day in a month."""


def fits(value: Any, shape: Any, where: str = "reply") -> None:
    """Whether what came is what was to come. Raises ``AssertionError`` naming the place where it is not."""
    if isinstance(shape, Mapping):
        assert isinstance(value, dict), f"{where} is no object: {value!r}"
        if set(shape) == {"*"}:
            assert value, f"{where} is empty"
            shape = dict.fromkeys(value, shape["*"])
        for key, inner in shape.items():
            assert key in value, f"{where} has no {key}: {sorted(value)}"
            fits(value[key], inner, f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), f"{where} is no list: {value!r}"
        shapes = shape * len(value) if len(shape) == 1 else shape
        assert len(value) == len(shapes) and len(value) >= len(shape), f"{where} has {len(value)} elements: {value!r}"
        for number, (one, inner) in enumerate(zip(value, shapes, strict=True)):
            fits(one, inner, f"{where}[{number}]")
    elif isinstance(shape, str):
        assert _is(value, shape), f"{where} is {value!r}, not {shape}"
    else:
        assert value == shape and type(value) is type(shape), f"{where} is {value!r}, not {shape!r}"


def _is(value: Any, shape: str) -> bool:
    if shape.startswith("="):
        return bool(value == shape[1:])
    if len(shape) > 1 and shape[0] == shape[-1] == "/":
        return isinstance(value, str) and re.fullmatch(shape[1:-1], value, re.DOTALL) is not None
    return any(KINDS[kind](value) for kind in shape.split("|"))


class Conversation:
    """A server, and what was said."""

    def __init__(self, server: Server, buckets: Buckets | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.monkeypatch = monkeypatch
        self.buckets = buckets
        self.kept: dict[str, str] = {}

    def filled(self, value: Any) -> Any:
        """Something of a file, with what was kept in its place."""
        if isinstance(value, str):
            if number := re.fullmatch(r"\$\{(\w+):int\}", value):
                return int(self.kept[number[1]])
            return re.sub(r"\$\{(\w+)\}", lambda found: (EXAMPLES | self.kept)[found[1]], value)
        if isinstance(value, list):
            return [self.filled(one) for one in value]
        if isinstance(value, dict):
            return {self.filled(key): self.filled(one) for key, one in value.items()}
        return value

    def do(self, what: Any) -> None:
        """What happens besides requests."""
        ((name, argument),) = what.items() if isinstance(what, dict) else ((what, None),)
        getattr(self, f"_{name}")(self.filled(argument))

    def _finish(self, workflow: str) -> None:
        self.server.finish(workflow)

    def _fail(self, workflow: str) -> None:
        self.server.finish(workflow, code=3)

    def _start(self, workflow: str) -> None:
        for task in self.server.gang(workflow).tasks.values():
            assert task.started.wait(30)

    def _agents(self, _: None) -> None:
        """As if running tasks could be reached; what is asked here only gives out keys."""
        object.__setattr__(self.server.services, "agents", object())

    def _at_once(self, _: None) -> None:
        """What is said of versions of clients takes effect with the next request."""
        self.monkeypatch.setattr(gate, "FRESH_S", 0.0)

    def _line(self, said: dict[str, str]) -> None:
        task = self.server.gang(said["workflow"]).tasks["one"]
        assert task.started.wait(30)
        task.log.write("one", said["text"].encode())

    def _upload(self, said: dict[str, Any]) -> None:
        """A version, by our own means."""
        bucket = self.server.services.stores.open(said.get("bucket", "default"), "ada")
        folder = self.server.config_file.parent / "uploads" / said["name"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.txt").write_text(said.get("text", "first"))
        bucket.upload(
            said["name"],
            [str(folder)],
            metadata=said.get("metadata", {}),
            labels=said.get("labels", {}),
            **({"tag": said["tag"]} if "tag" in said else {}),
        )

    def _send(self, said: dict[str, str]) -> None:
        """What the client uploads between the two requests: files by their ETags, then the list of them."""
        assert self.buckets is not None
        data = said["text"].encode()
        etag = osmo_etag(data)
        place = f"{said['storage']}/{etag}"
        entry = OsmoFolder.described("a.txt", place, len(data), etag)
        for url, content in ((place, data), (said["manifest"], json.dumps([entry], indent=4).encode())):
            client, key = self.buckets.open(url)
            client.put(key, [content])

    def ask(self, pair: dict[str, Any]) -> None:
        """Send a request and look at its reply."""
        method = next(name for name in METHODS if name in pair)
        user = pair.get("as", "ada")
        headers = (
            STOCK | VERSION | ({} if user is None else {"x-osmo-user": user}) | self.filled(pair.get("headers", {}))
        )
        url = "/" + self.filled(pair[method])
        query = {key: self._sent(value) for key, value in self.filled(pair.get("query", {})).items()}
        written = urlencode({key: value for key, value in query.items() if value not in (None, [])}, doseq=True)
        body = self.filled(pair["body"]).encode() if "body" in pair else None
        if "json" in pair:
            body = json.dumps(self.filled(pair["json"])).encode()
        got = Http(self.server.port, headers).ask(method, url + ("?" + written if written else ""), body=body)
        try:
            self._look(got, pair)
        except AssertionError as wrong:
            raise AssertionError(f"{method} {url} {written}: {wrong}\n{got.status_code} {got.text[:2000]}") from None

    @staticmethod
    def _sent(value: Any) -> Any:
        return [str(one) for one in value] if isinstance(value, list) else None if value is None else str(value)

    def _look(self, got: Reply, pair: dict[str, Any]) -> None:
        assert got.status_code == pair["reply"]
        assert got.headers["x-osmo-service-version"]
        if "text" in pair:
            assert got.headers["content-type"].startswith("text/plain")
            assert re.fullmatch(self.filled(pair["text"]), got.text, re.DOTALL)
        else:
            assert got.headers["content-type"] == "application/json"
            if got.status_code >= 400:
                fits(got.json(), {"message": "/[^\n]+/", "error_code": "text", "workflow_id": "text|null"})
            fits(got.json(), self.filled(pair.get("gives", "any")))
        warning = base64.b64decode(got.headers.get("x-osmo-warning", "")).decode()
        assert re.fullmatch(pair.get("warns", ""), warning, re.DOTALL), f"it warns {warning!r}"
        for name, value in pair.get("has", {}).items():
            assert re.fullmatch(value, got.headers[name])
        for name, path in pair.get("keep", {}).items():
            found = got.json()
            for key in filter(None, str(path).split(".")):
                found = found[int(key)] if isinstance(found, list) else found[key]
            self.kept[name] = str(found)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    assert found.keys() <= {"about", "row", "talk", "storage", "config"}, path.name
    allowed = {
        *METHODS,
        "do",
        "query",
        "json",
        "body",
        "as",
        "headers",
        "reply",
        "gives",
        "text",
        "warns",
        "has",
        "keep",
    }
    for pair in found["talk"]:
        assert pair.keys() <= allowed, f"{path.name}: {pair}"
    return found


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_s3() as found:
        yield found


class Credential:
    def __init__(self, s3: S3Server) -> None:
        self.found = s3.credential

    def find(self, profile: str) -> Any:
        return self.found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_server_answers_as_the_client_needs_it(
    server: Server, path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(path)
    if "storage" not in found:
        hold(Conversation(server, None, monkeypatch), found)
        return
    s3 = request.getfixturevalue("s3")
    name = s3.bucket()
    url = f"s3://{name}/stores/lab"
    fields = {"access_key_id": s3.access_key_id, "access_key": s3.access_key, "override_url": s3.endpoint}
    config = {
        "auth": {"data": {f"s3://{name}": {**fields, "region": s3.region}}},
        "casstore": {"buckets": {"lab": {"url": url}}},
    }
    server.config_file.write_text(yaml.safe_dump(config))
    server.config_file.chmod(0o600)
    with closing(Buckets(Credential(s3))) as buckets:
        backend = MemoryBackend()
        Store.open(backend, create=True)
        client, key = buckets.open(f"{url}/store.json")
        client.put(key, [backend.get("store.json").data])
        conversation = Conversation(server, buckets, monkeypatch)
        conversation.kept["place"] = f"s3://{name}/stores"
        hold(conversation, found)


def hold(conversation: Conversation, found: dict[str, Any]) -> None:
    for pair in found["talk"]:
        if "do" in pair:
            conversation.do(pair["do"])
        if any(method in pair for method in METHODS):
            conversation.ask(pair)


# --- that nothing is left out

ROWS = {
    "osmo-wire-6.2.md §3": """
        version · profile list · profile set · default pool · pool list · resource list · resource info · bucket list
        credential set · credential list · credential delete · workflow submit F · workflow submit WF-ID
        workflow validate · workflow restart · workflow list · workflow query ID · workflow logs · workflow events
        workflow spec · workflow cancel · workflow tag · workflow exec · workflow port-forward · workflow rsync
        task list · app create · app update · app info · app spec · app list · app delete · app rename · app submit
        token set · token list · token delete · token roles · user list · user create · user update · user delete
        user get · config
    """,
    "osmo-datasets-6.2.md §5": """
        GET bucket · list_dataset · GET location · query · POST dataset · GET dataset · info · DELETE dataset
        attribute · collect · recollect · migrate · bucket admin
    """,
    "osmo-spec.md §5": """
        login · GET auth/keys · POST auth/jwt/access_token · POST auth/jwt/refresh_token · health · GET users
        backend list · client gate · errors
    """,
}


@pytest.mark.parametrize("table", ROWS)
def test_every_row_of_the_reference_has_its_pairs(table: str) -> None:
    rows = {row.strip() for row in re.split("[·\n]", ROWS[table]) if row.strip()}
    covered: set[str] = set()
    for path in FILES:
        found = read(path)
        statuses = {pair["reply"] for pair in found["talk"] if "reply" in pair}
        if any(status < 400 for status in statuses) and any(status >= 400 for status in statuses):
            covered |= set([found["row"]] if isinstance(found["row"], str) else found["row"])
    assert rows - covered == set(), "no file has a pair that is answered and one that is refused"


ROUTES = [route for route in all_routes(assemble().routes) if isinstance(route, APIRoute)]
OURS = re.compile(r"/api/v1/.*|/api/docs|/api/openapi\.json|/metrics|/ready")
"""Routes that no client of OSMO asks."""
REFUSED = {"/api/auth/jwt/refresh_token"}
"""Routes that answer nothing but a refusal."""


@cache
def asked() -> Counter[tuple[str, str, int]]:
    """How often each route is asked in all files, with a status."""
    found: Counter[tuple[str, str, int]] = Counter()
    for path in FILES:
        for pair in read(path)["talk"]:
            for method in METHODS:
                if method in pair:
                    url = re.sub(r"/+", "/", "/" + re.sub(r"\$\{\w+\}", "x", urlsplit(pair[method]).path))
                    for route in ROUTES:
                        if not route.path_regex.match(url):
                            continue
                        if method in (route.methods or ()):
                            found[method, route.path, pair["reply"]] += 1
                            break
                        if pair["reply"] == 405:
                            found.update((name, route.path, 405) for name in route.methods or ())
    return found


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{'-'.join(route.methods)} {route.path}")
def test_every_route_has_its_pairs(route: APIRoute) -> None:
    if OURS.fullmatch(route.path):
        return
    seen = asked()
    for method in route.methods or ():
        statuses = {status for name, path, status in seen if (name, path) == (method, route.path)}
        assert 200 in statuses or route.path in REFUSED, "there is no pair in which it answers"
        assert any(400 <= status < 500 for status in statuses), "there is no pair in which it refuses"
