"""``osmo credential``: the secrets of tasks and of object storage.

Decided here and only here: how a credential is written on a command line, and where it is kept: with the server that
the user is logged in to, else with their own, which is started. Where no server is installed a file keeps them
(``casstore.vault``), which the first server takes up. What is for object storage is in ``config.yaml`` besides, for
this command's own transfers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from casstore.errors import CasstoreError, UsageError
from casstore_cli import output
from casstore_cli.lazy import LazyGroup
from casstore_cli.multi import Command, ManyOption

if TYPE_CHECKING:
    from casstore.config import Config
    from casstore.vault import Vault
    from casstore.wire.credentials import Credential, CredentialBody, CredentialSummary
    from casstore_cli.client import Client

_TYPES = ("REGISTRY", "DATA", "GENERIC")
_MAX_FILE = 256 * 1024
_PUBLIC = frozenset({"registry", "username", "endpoint", "region", "override_url", "access_key_id", "addressing_style"})
"""Keys whose values are no secrets, unless the credential is GENERIC."""


def _remember_format(ctx: click.Context, _: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        ctx.meta[output.FORMAT_KEY] = value
    return value


_FORMAT = click.option(
    "-t",
    "--format-type",
    type=click.Choice(("text", "json")),
    callback=_remember_format,
    is_eager=True,
    expose_value=False,
    help="Format of the result (default: text).",
)  # here it may stand before the command, too, as with OSMO's


@click.group("credential", cls=LazyGroup)
@_FORMAT
def cli() -> None:
    """Keep the secrets of your tasks and of object storage."""


@cli.command("set", cls=Command)
@click.argument("name")
@click.option("--type", "kind", type=click.Choice(_TYPES, case_sensitive=False), help="What it is for [GENERIC].")
@click.option("--generic", "kinds", flag_value="GENERIC", multiple=True, help="Same as --type GENERIC.")
@click.option("--registry", "kinds", flag_value="REGISTRY", multiple=True, help="Same as --type REGISTRY.")
@click.option("--data", "kinds", flag_value="DATA", multiple=True, help="Same as --type DATA.")
@click.option("--payload", cls=ManyOption, metavar="KEY=VALUE...", help="Keys and their values.")
@click.option(
    "--payload-file", cls=ManyOption, metavar="KEY=PATH...", help="Keys, and files that hold their values; - is stdin."
)
@click.option("--value", metavar="VALUE", help="The value of the key NAME; - asks for it, or reads standard input.")
@click.option("--no-validate", is_flag=True, help="DATA: do not try the credential.")
def set_(
    *,
    name: str,
    kind: str | None,
    kinds: Sequence[str],
    payload: Sequence[str],
    payload_file: Sequence[str],
    value: str | None,
    no_validate: bool,
) -> None:
    """Keep the credential NAME, in place of the one that had this name.

    GENERIC: any keys, for 'credentials:' of a task. DATA: endpoint, access_key_id, access_key, and optionally region,
    override_url, session_token, addressing_style; used by itself for URLs below the endpoint. REGISTRY: auth, and
    optionally registry, username.

    A value on the command line can be seen by others while the command runs, and stays in the history of the shell:
    --value - and --payload-file keep it off. Without a value, it is asked for.
    """
    from casstore.config import load_config
    from casstore.wire.credentials import Credential, check_name

    check_name(name)
    chosen = _chosen(kind, kinds)
    pairs = _pairs(name, chosen, payload, payload_file, value)
    body = _body(chosen, pairs)
    credential = Credential.of_body(body)
    if _in_argv(chosen, payload, value):
        output.warn("a secret on a command line can be seen by others and stays in the shell's history: use --value -")
    for other in _keep(load_config(), name, credential, body, validate=not no_validate):
        output.message(f"Credential {other} was for {credential.profile}, too: it is gone.")
    output.text(f"Set {chosen} credential {name}.")


@cli.command("list", cls=Command)
@_FORMAT
def list_() -> None:
    """List your credentials, without their secrets.

    Local says whether one for object storage is in config.yaml, for transfers from this machine.
    """
    from casstore.config import load_config
    from casstore.wire.credentials import DATA
    from casstore_cli.credentials import local_profiles

    config = load_config()
    local = set(local_profiles(config))
    found = _summaries(config)
    rows: list[dict[str, Any]] = [
        {
            "cred_name": one.cred_name,
            "cred_type": one.cred_type,
            "profile": one.profile,
            "local": one.profile in local if one.cred_type == DATA else None,
        }
        for one in found
    ]
    named = {one.profile for one in found if one.cred_type == DATA}
    rows += [
        {"cred_name": None, "cred_type": DATA, "profile": profile, "local": True} for profile in sorted(local - named)
    ]
    if output.is_json():
        output.document({"credentials": rows}, indent=2)
        return
    answers = {True: "Yes", False: "No", None: "N/A"}
    table = [(r["cred_name"], r["cred_type"], r["profile"], answers[r["local"]]) for r in rows]
    output.text(output.table(("Name", "Type", "Profile", "Local"), table))


@cli.command("delete", cls=Command)
@click.argument("name")
def delete(name: str) -> None:
    """Forget the credential NAME."""
    from casstore.config import load_config
    from casstore.wire.credentials import DATA, CredentialList, check_name
    from casstore_cli.client import quoted
    from casstore_cli.credentials import forget_data

    check_name(name)
    config = load_config()
    client = _server(config)
    if client is None:
        found = _vault(config).remove(config.user, name)
        removed = [(found.type, found.profile)]
    else:
        reply = client.delete(f"api/credentials/{quoted(name)}", CredentialList)
        removed = [(one.cred_type, one.profile) for one in reply.credentials]
    for kind, profile in removed:
        if kind == DATA and profile is not None:
            forget_data(profile)
    output.text(f"Deleted credential {name}.")


def _chosen(kind: str | None, kinds: Sequence[str]) -> str:
    wanted = {given.upper() for given in (*kinds, *((kind,) if kind else ()))}
    if len(wanted) > 1:
        raise UsageError(f"a credential has one type, not {' and '.join(sorted(wanted))}")
    return wanted.pop() if wanted else "GENERIC"


def _pairs(
    name: str, kind: str, payload: Sequence[str], payload_file: Sequence[str], value: str | None
) -> dict[str, str]:
    """The keys and values that were asked for. No message holds a value."""
    if value is not None and kind == "DATA":
        raise UsageError("--value can't hold a DATA credential", hint="--payload access_key_id=... endpoint=...")
    single = {"REGISTRY": "auth"}.get(kind, name)
    found: list[tuple[str, str]] = []
    if value is not None:
        found.append((single, _asked(name) if value == "-" else value))
    for index, item in enumerate(payload, 1):
        key, equals, text = item.partition("=")
        if not equals:
            raise UsageError(f"--payload: value {index} is not KEY=VALUE")
        found.append((key, text))
    for index, item in enumerate(payload_file, 1):
        key, equals, path = item.partition("=")
        if not equals or not path:
            raise UsageError(f"--payload-file: value {index} is not KEY=PATH")
        found.append((key, _from_file(path)))
    if not found and kind == "DATA":
        raise UsageError(
            "a DATA credential needs --payload endpoint=URL access_key_id=ID, and --payload-file access_key=PATH"
        )
    if not found:
        found.append((single, _asked(name)))
    pairs = dict(found)
    if len(pairs) < len(found):
        twice = sorted(key for key in pairs if sum(key == other for other, _ in found) > 1)
        raise UsageError(f"the key {twice[0][:80]!r} is given twice")
    return pairs


def _asked(name: str) -> str:
    """A value from a person, unseen, or from standard input."""
    if sys.stdin.isatty():
        import getpass

        value = getpass.getpass(f"Value of {name} (not shown): ", stream=sys.stderr)
    else:
        value = _text(sys.stdin.buffer.read(_MAX_FILE + 1), "standard input")
    if not value:
        raise UsageError("the value is empty", hint="--value - asks for it, or reads standard input")
    return value


def _from_file(path: str) -> str:
    if path == "-":
        return _text(sys.stdin.buffer.read(_MAX_FILE + 1), "standard input")
    try:
        with open(os.path.expanduser(path), "rb") as file:
            return _text(file.read(_MAX_FILE + 1), path)
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}") from None


def _text(data: bytes, what: str) -> str:
    """The text; the newline that ends a single line is no part of it, those of several lines (keys) are."""
    if len(data) > _MAX_FILE:
        raise UsageError(f"{what} is larger than {_MAX_FILE} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{what} is not UTF-8 text") from None
    single = text.removesuffix("\n").removesuffix("\r")
    return text if "\n" in single else single


def _body(kind: str, pairs: dict[str, str]) -> CredentialBody:
    import msgspec

    from casstore.wire.credentials import CredentialBody, DataPart, GenericPart, RegistryPart

    try:
        if kind == "REGISTRY":
            return CredentialBody(registry_credential=msgspec.convert(pairs, RegistryPart))
        if kind == "DATA":
            return CredentialBody(data_credential=msgspec.convert(pairs, DataPart))
    except msgspec.ValidationError as error:  # it names keys, and no values
        part = RegistryPart if kind == "REGISTRY" else DataPart
        raise UsageError(
            f"not a {kind} credential: {error}", hint=f"its keys are: {', '.join(part.__struct_fields__)}"
        ) from None
    return CredentialBody(generic_credential=GenericPart(credential=pairs))


def _in_argv(kind: str, payload: Sequence[str], value: str | None) -> bool:
    if value is not None and value != "-":
        return True
    keys = {item.partition("=")[0] for item in payload}
    return bool(keys) if kind == "GENERIC" else bool(keys - _PUBLIC)


def _try(credential: Credential, body: CredentialBody) -> None:
    """Refuse a DATA credential that does not work."""
    from casstore.transfer.raw import check_credential

    part, storage = body.data_credential, credential.storage()
    if part is None or storage is None:
        return
    try:
        tried = check_credential(part.endpoint, storage)
    except CasstoreError as error:
        raise type(error)(
            f"the credential was not kept, for it does not work: {error.message}",
            hint=error.hint or "to keep it all the same: --no-validate",
        ) from None
    if not tried:
        output.message(f"{credential.profile} names no container: the credential was not tried.")


def _keep(config: Config, name: str, credential: Credential, body: CredentialBody, *, validate: bool) -> list[str]:
    """Keep it; returns the names of those that it takes the place of."""
    from casstore.wire.credentials import Credential as Kept
    from casstore_cli import login
    from casstore_cli.client import quoted
    from casstore_cli.credentials import keep_data

    storage, profile = credential.storage(), credential.profile
    client = _server(config)
    own = login.read(config.paths) is None
    if validate and own:
        _try(credential, body)
    if not own and client is not None:
        client.post(f"api/credentials/{quoted(name)}", object, None if validate else {"validate": False}, body)
    if storage is not None and profile is not None:
        keep_data(profile, storage)
        credential = Kept(type=credential.type, profile=profile, payload={})
    if client is None:
        return _vault(config).put(config.user, name, credential)
    if own:  # after the configuration, which it reads: what is there it keeps no second time
        client.post(f"api/credentials/{quoted(name)}", object, {"validate": False}, body)
    return []


def _summaries(config: Config) -> list[CredentialSummary]:
    from casstore.wire.credentials import CredentialList, CredentialSummary

    client = _server(config)
    if client is not None:
        return client.get("api/credentials", CredentialList).credentials
    own = _vault(config).names(config.user)
    return [CredentialSummary(cred_name=name, cred_type=one.type, profile=one.profile) for name, one in own.items()]


def _vault(config: Config) -> Vault:
    from casstore.vault import Vault

    return Vault(config.paths.config)


def _server(config: Config) -> Client | None:
    """The server that the user is logged in to, or their own; None where that is not installed."""
    from casstore_cli import background, login

    if login.read(config.paths) is None and not background.is_installed():
        return None
    return login.connect(config)
