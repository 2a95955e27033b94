"""One login per connection, by one mechanism. `SMTP.login()` of aiosmtplib tries them all in turn: many bad logins."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, Literal

from aiosmtplib import SMTPResponse
from aiosmtplib.auth import auth_login_encode, auth_plain_encode, auth_xoauth2_encode

Mechanism = Literal["plain", "login", "xoauth2"]
Ask = Callable[..., Awaitable[SMTPResponse]]
"""Sends one command line, given in words, and returns the reply."""


class NoLogin(Exception):
    """The credentials and the server's mechanisms do not fit; the text says how, without any secret."""


def choose(wanted: str, credentials: Mapping[str, Any], offered: tuple[str, ...]) -> Mechanism:
    """The one mechanism: XOAUTH2 with a token, else PLAIN, else LOGIN where the server offers no PLAIN.

    `wanted` is the mailbox's `auth` setting, `offered` the server's mechanisms in lower case. Raises `NoLogin`.
    """
    mechanism: Mechanism = "xoauth2" if credentials.get("access_token") else "plain"
    if wanted in ("plain", "login", "xoauth2"):
        mechanism = wanted  # type: ignore[assignment]
    elif mechanism == "plain" and "plain" not in offered and "login" in offered:
        mechanism = "login"
    if mechanism not in offered:
        raise NoLogin(f"the server offers {', '.join(offered).upper() or 'no login'} here, not {mechanism.upper()}")
    needed = "access_token" if mechanism == "xoauth2" else "password"
    if not credentials.get("username") or not credentials.get(needed):
        raise NoLogin(f"{mechanism.upper()} needs a user name and {needed.replace('_', ' ')}; the mailbox has none")
    return mechanism


async def log_in(ask: Ask, mechanism: Mechanism, credentials: Mapping[str, Any]) -> tuple[SMTPResponse, dict[str, str]]:
    """Try once. Returns the server's last word, 235 if it agrees, and what it said beside (XOAUTH2's JSON, as text)."""
    user = str(credentials["username"])
    match mechanism:
        case "plain":
            return await ask(b"AUTH", b"PLAIN", auth_plain_encode(user, str(credentials["password"]))), {}
        case "login":
            name, password = auth_login_encode(user, str(credentials["password"]))
            reply = await ask(b"AUTH", b"LOGIN", name)
            return (await ask(password) if reply.code == 334 else reply), {}
        case "xoauth2":
            return await _xoauth2(ask, user, str(credentials["access_token"]))


async def _xoauth2(ask: Ask, user: str, token: str) -> tuple[SMTPResponse, dict[str, str]]:
    reply = await ask(b"AUTH", b"XOAUTH2", auth_xoauth2_encode(user, token))
    if reply.code != 334:
        return reply, {}
    # A refusal comes as base64 JSON first; an empty line asks for the reply itself
    # (developers.google.com/gmail/imap/xoauth2-protocol, 2026-11).
    return await ask(b""), _challenge(reply.message)


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
