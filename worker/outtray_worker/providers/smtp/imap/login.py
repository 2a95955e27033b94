"""One login per connection, by one mechanism, as with SMTP: each bad one counts against the mailbox at its provider."""

from __future__ import annotations

import imaplib
import re
from collections.abc import Callable, Mapping
from typing import Any

from outtray_schema.outcome import Held
from outtray_worker.providers.smtp.auth import BY_TOKEN, oauthbearer
from outtray_worker.providers.smtp.imap.client import Client
from outtray_worker.providers.smtp.imap.troubles import Refused
from outtray_worker.providers.smtp.link import Ended

_UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f]")


def log_in(client: Client, credentials: Mapping[str, Any], place: tuple[str, int]) -> str:
    """Try once; returns the mechanism. Raises `Refused` with `at_login`, or `Ended` where there is none that fits."""
    user = str(credentials.get("username") or "")
    token, password = credentials.get("access_token"), credentials.get("password")
    if not user or not (token or password) or _UNSPEAKABLE.search(f"{user}{token or ''}{password or ''}"):
        raise _no_login("IMAP needs a user name and a password or token; the mailbox has none that can be written")
    mechanism = _choose(client.offers(), bool(token), f"{user}{password}".isascii())
    try:
        _by(client, mechanism, user, str(token or password), place)
    except imaplib.IMAP4.abort:
        raise
    except imaplib.IMAP4.error as refusal:
        raise Refused(str(refusal), at_login=True) from None
    return mechanism


def _choose(offered: frozenset[str], token: bool, ascii_only: bool) -> str:
    """By a token as with SMTP; else PLAIN, else LOGIN, which carries ASCII only (RFC 3501 4.3)."""
    if token:
        if fitting := [each for each in BY_TOKEN if f"AUTH={each.upper()}" in offered]:
            return fitting[0]
        raise _no_login("the server takes no token here (it offers no XOAUTH2 and no OAUTHBEARER)")
    if "AUTH=PLAIN" in offered:
        return "plain"
    if "LOGINDISABLED" in offered:
        raise _no_login("the server takes no password here (LOGINDISABLED)")
    if not ascii_only:
        raise _no_login("the server offers only LOGIN, which carries no letters beyond ASCII")
    return "login"


def _by(client: Client, mechanism: str, user: str, secret: str, place: tuple[str, int]) -> None:
    match mechanism:
        case "xoauth2":
            client.log_in_by("XOAUTH2", _once(f"user={user}\x01auth=Bearer {secret}\x01\x01"))
        case "oauthbearer":
            client.log_in_by("OAUTHBEARER", _once(oauthbearer(user, secret, *place), "\x01"))
        case "plain":
            client.log_in_by("PLAIN", _once(f"\0{user}\0{secret}"))
        case _:
            client.log_in_plainly(user, secret)


def _once(answer: str, then: str = "") -> Callable[[bytes], bytes]:
    """The first challenge gets the answer. A token's refusal says why in a second one, to which an empty line asks for
    the refusal itself (developers.google.com/gmail/imap/xoauth2-protocol, 2026-11), or one ^A (RFC 7628 3.2.3)."""
    answers = [answer.encode()]
    return lambda challenge: answers.pop() if answers else then.encode()


def _no_login(reason: str) -> Ended:
    return Ended(Held(reason, evidence={"rule": "imap-no-login"}))
