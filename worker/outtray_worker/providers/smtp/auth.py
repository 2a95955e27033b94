"""One login per connection, by one mechanism. `SMTP.login()` of aiosmtplib tries them all in turn: many bad logins."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal

from aiosmtplib import SMTPResponse
from aiosmtplib.auth import auth_login_encode, auth_plain_encode, auth_xoauth2_encode

Mechanism = Literal["plain", "login", "xoauth2", "oauthbearer"]
BY_TOKEN = ("xoauth2", "oauthbearer")
"""In the order in which they are taken: the older one is what most servers have been tried with."""
Ask = Callable[..., Awaitable[SMTPResponse]]
"""Sends one command line, given in words, and returns the reply."""


class NoLogin(Exception):
    """The credentials and the server's mechanisms do not fit; the text says how, without any secret."""


def choose(wanted: str, credentials: Mapping[str, Any], offered: tuple[str, ...]) -> Mechanism:
    """The one mechanism: by a token XOAUTH2, or OAUTHBEARER where only that is offered; else PLAIN, or else LOGIN.

    `wanted` is the mailbox's `auth` setting, `offered` the server's mechanisms in lower case. Raises `NoLogin`.
    """
    mechanism: Mechanism = "xoauth2" if credentials.get("access_token") else "plain"
    if wanted in ("plain", "login", *BY_TOKEN):
        mechanism = wanted  # type: ignore[assignment]
    elif mechanism == "xoauth2" and "xoauth2" not in offered and "oauthbearer" in offered:
        mechanism = "oauthbearer"
    elif mechanism == "plain" and "plain" not in offered and "login" in offered:
        mechanism = "login"
    if mechanism not in offered:
        raise NoLogin(f"the server offers {', '.join(offered).upper() or 'no login'} here, not {mechanism.upper()}")
    needed = "access_token" if mechanism in BY_TOKEN else "password"
    if not credentials.get("username") or not credentials.get(needed):
        raise NoLogin(f"{mechanism.upper()} needs a user name and {needed.replace('_', ' ')}; the mailbox has none")
    return mechanism


async def log_in(
    ask: Ask, mechanism: Mechanism, credentials: Mapping[str, Any], place: tuple[str, int]
) -> tuple[SMTPResponse, dict[str, str]]:
    """Try once. Returns the server's last word, 235 if it agrees, and what it said beside (a token's error, as text).

    `place` is the server's host and port, which OAUTHBEARER names.
    """
    user = str(credentials["username"])
    match mechanism:
        case "plain":
            return await ask(b"AUTH", b"PLAIN", auth_plain_encode(user, str(credentials["password"]))), {}
        case "login":
            name, password = auth_login_encode(user, str(credentials["password"]))
            reply = await ask(b"AUTH", b"LOGIN", name)
            return (await ask(password) if reply.code == 334 else reply), {}
        case "xoauth2":
            said = auth_xoauth2_encode(user, str(credentials["access_token"]))
            # A refusal comes as base64 JSON first; an empty line asks for the reply itself
            # (developers.google.com/gmail/imap/xoauth2-protocol, 2026-11).
            return await _by_token(ask, b"XOAUTH2", said, b"")
        case "oauthbearer":
            said = base64.b64encode(oauthbearer(user, str(credentials["access_token"]), *place).encode())
            # The same, but the answer is one ^A (RFC 7628 3.2.3).
            return await _by_token(ask, b"OAUTHBEARER", said, b"AQ==")


async def _by_token(ask: Ask, mechanism: bytes, said: bytes, dummy: bytes) -> tuple[SMTPResponse, dict[str, str]]:
    reply = await ask(b"AUTH", mechanism, said)
    if reply.code != 334:
        return reply, {}
    return await ask(dummy), _challenge(reply.message)


def oauthbearer(user: str, token: str, host: str, port: int) -> str:
    """What OAUTHBEARER says at first (RFC 7628 3.1); the user's name as SASL writes it (RFC 5801 4)."""
    name = user.replace("=", "=3D").replace(",", "=2C")
    return f"n,a={name},\x01host={host}\x01port={port}\x01auth=Bearer {token}\x01\x01"


def _challenge(text: str) -> dict[str, str]:
    try:
        said = json.loads(base64.b64decode(text))
    except (binascii.Error, ValueError):
        return {}
    if not isinstance(said, dict):
        return {}
    return {f"oauth_{key}": str(said[key]) for key in ("status", "schemes", "scope") if key in said}


def secrets_of(credentials: Mapping[str, Any]) -> Iterator[str]:
    """Every text that a server could echo of a login: the credentials and what they look like on the wire."""
    user = str(credentials.get("username") or "")
    yield user
    yield user.partition("@")[0]
    yield str(credentials.get("imap_username") or "")
    for name in ("password", "imap_password", "access_token"):
        if secret := credentials.get(name):
            encode = auth_xoauth2_encode if name == "access_token" else auth_plain_encode
            yield str(secret)
            yield encode(user, str(secret)).decode()
            yield base64.b64encode(str(secret).encode()).decode()
