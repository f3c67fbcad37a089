"""``osmo login`` and ``logout``.

Decided here and only here: which ways to log in there are, which one is taken when none is asked for, where passwords
and tokens are read from, and that a login is kept once the server has accepted it.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace

import click

from casstore.config import Config, load_config
from casstore.errors import CasstoreError, NotFoundError, UsageError
from casstore.wire.auth import LoginReply
from casstore.wire.cluster import ProfileReply
from casstore_cli import login, output, web
from casstore_cli.client import Client, Target
from casstore_cli.login import Login, Tokens
from casstore_cli.multi import Command

_METHODS = ("code", "pkce", "password", "token", "dev")
_MAX_SECRET = 64 * 1024
_NO_PROVIDER = "The server names no identity provider for this"


class _SecretCommand(Command):
    """Says nothing of words that it did not expect: one may be a secret whose option was forgotten."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As every command, but for that."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as exc:
            name = exc.option_name.partition("=")[0]
            raise click.UsageError(
                f"No such option: {name}" if name.startswith("--") else "No such option", ctx
            ) from None
        except click.UsageError as exc:
            if type(exc) is not click.UsageError:
                raise
            raise click.UsageError("There is a word too many, after the URL", ctx) from None


@click.command("login", cls=_SecretCommand)
@click.argument("url", required=False)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    help="code: confirm a code in a browser anywhere; pkce: with the browser of this machine; password, token: of a "
    "service account; dev: by name alone. By default code where the server has an identity provider, else dev.",
)
@click.option("--username", help="Your name there, for the methods dev and password.")
@click.option("--password", help="Your password; others on this machine may see it here, so better in a file.")
@click.option("--password-file", metavar="FILE", help="A file that has the password; - reads standard input.")
@click.option("--token", help="A token made by 'osmo token set'; others on this machine may see it here.")
@click.option("--token-file", metavar="FILE", help="A file that has the token; - reads standard input.")
@click.option("--device-endpoint", metavar="URL", help="Where codes are made, if not where the server says.")
@click.option("--browser-endpoint", metavar="URL", help="Where the browser begins, if not where the server says.")
@click.option(
    "--callback-port",
    type=click.IntRange(0, 65535),
    default=0,
    help="The port of this machine that the browser comes back to; by default any that is free.",
)
def login_command(
    url: str | None,
    method: str | None,
    username: str | None,
    password: str | None,
    password_file: str | None,
    token: str | None,
    token_file: str | None,
    device_endpoint: str | None,
    browser_endpoint: str | None,
    callback_port: int,
) -> None:
    """Use the server at URL instead of your own; without URL the one used last."""
    if password is not None and password_file is not None:
        raise click.UsageError("--password and --password-file exclude each other")
    if token is not None and token_file is not None:
        raise click.UsageError("--token and --token-file exclude each other")
    config = load_config()
    old = _old(config)
    if url is None:
        if old is None:
            raise UsageError("Which server?", hint="osmo login URL")
        url = old.url
    url = login.check_url(url)
    with login.change(config.paths):
        pass  # that it can be kept is tried before anybody goes to a browser
    output.text(f"Logging in to {output.escape(url)}")
    _flush()
    method = method or _method(url, password or password_file, token or token_file)
    name = username or (old.user if old and old.url == url and old.tokens is None else config.user)
    if method == "dev":
        _finish(config, Login(url, login.check_user(name)))
        return
    web.check_private(url, "The server")
    from casstore_cli import oauth

    if method == "token":
        secret = _secret("token", token, token_file, "OSMO_LOGIN_TOKEN")
        tokens = oauth.by_personal_token(url, secret)
    elif method == "password":
        offer = oauth.offer(url)
        user = username or _asked("Username: ")
        secret = _secret("password", password, password_file, "OSMO_LOGIN_PASSWORD")
        tokens = oauth.by_password(_there(offer.token_endpoint), offer.device_client_id, user, secret)
    elif method == "code":
        offer = oauth.offer(url)
        device = device_endpoint or _there(offer.device_endpoint, "pkce" if offer.browser_endpoint else "token")
        tokens = oauth.by_device(device, _there(offer.token_endpoint), offer.device_client_id, tell=_tell)
    else:
        tokens = _by_browser(oauth.offer(url), browser_endpoint, callback_port)
    _finish(config, Login(url, oauth.name_in(tokens), tokens))


@click.command("logout", cls=Command)
def logout_command() -> None:
    """Forget the login, and go back to the server of your own."""
    done = login.forget(load_config().paths)
    output.text("Successfully logged out." if done else "You were not logged in.")


def _old(config: Config) -> Login | None:
    """The login before this one; what can't be read any more is replaced."""
    try:
        return login.read(config.paths)
    except CasstoreError as exc:
        output.warn(exc.message)
        return None


def _method(url: str, password: str | None, token: str | None) -> str:
    """How to log in when nobody said: as what is given says, or as the server offers."""
    if token or password:
        return "token" if token else "password"
    from casstore_cli import oauth

    offer = oauth.offer(url)
    return "code" if offer.device_endpoint else "pkce" if offer.browser_endpoint else "dev"


def _by_browser(offer: LoginReply, endpoint: str | None, port: int) -> Tokens:
    from casstore_cli.browser import by_browser

    client = offer.browser_client_id or offer.device_client_id
    return by_browser(
        endpoint or _there(offer.browser_endpoint, "code" if offer.device_endpoint else "token"),
        _there(offer.token_endpoint),
        client,
        port=port,
        tell=_tell,
    )


def _there(endpoint: str | None, other: str = "token") -> str:
    if not endpoint:
        raise NotFoundError(_NO_PROVIDER, hint=f"Use --method {other}.")
    return endpoint


def _finish(config: Config, found: Login) -> None:
    """Ask the server whether it takes the login, and keep it if it does."""
    if found.tokens is None:
        client = Client(Target(found.user, url=found.url), on_warning=output.warn)
    else:
        from casstore_cli.bearer import Bearer

        bearer = Bearer(config.paths, found, fresh=True)
        client = Client(Target(found.user, url=found.url, bearer=bearer), on_warning=output.warn)
    welcome = found.user
    if found.tokens is not None and found.tokens.refresh_token is None:
        output.warn("The identity provider does not renew this login (it gave no refresh token): it will end soon")
    profile = client.get("api/profile/settings", ProfileReply).profile
    if found.tokens is not None:
        found = replace(found, user=profile.username)
    login.save(config.paths, found)
    output.text(f"Successfully logged in. Welcome {output.escape(welcome or found.user)}.")


def _secret(what: str, given: str | None, file: str | None, variable: str) -> str:
    """A password or token: as given, of a file, of the environment, or typed in. ``UsageError`` when there is none."""
    if file is not None:
        text = _read(file).rstrip("\r\n")
    elif given is not None:
        text = given
    elif os.environ.get(variable):
        text = os.environ[variable]
    elif sys.stdin.isatty():
        import getpass

        text = getpass.getpass(f"{what.capitalize()}: ", stream=sys.stderr)
    else:
        raise UsageError(f"Must provide a {what}", hint=f"--{what}-file FILE, or the variable {variable}.")
    if not text.strip():
        raise UsageError(f"The {what} is empty")
    return text.strip() if what == "token" else text


def _read(file: str) -> str:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(_MAX_SECRET + 1)
        else:
            with open(file, "rb") as opened:
                data = opened.read(_MAX_SECRET + 1)
    except OSError as exc:
        raise UsageError(f"can't read {file}: {exc.strerror}") from None
    if len(data) > _MAX_SECRET:
        raise UsageError(f"{file} is too large for a password or a token")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not text") from None


def _asked(question: str) -> str:
    if not sys.stdin.isatty():
        raise UsageError("Must provide a user name", hint="--username NAME")
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def _tell(line: str) -> None:
    output.text(line)
    _flush()


def _flush() -> None:
    """What is to be done now must be seen now, by a program that reads it, too."""
    sys.stdout.flush()
