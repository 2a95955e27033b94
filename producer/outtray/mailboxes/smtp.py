"""Mailboxes that log in by a password: connect one, give it new credentials, say where it is looked into."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from psycopg.types.json import Jsonb

from outtray import arming
from outtray.door import Door, MailboxName
from outtray.evidence import LOOK_ANEW
from outtray.mailboxes.storing import ARM, add_row, place, sealed, sealed_address, sender_of, stored
from outtray.mailboxes.view import REMOVED, Mailbox, get
from outtray.plan import Begin, Commit, Plan, Row, Statement, rows
from outtray_schema import bindings
from outtray_schema.address import Address
from outtray_schema.errors import InvalidMailbox, Problem, WrongState
from outtray_schema.hosts import MailHost, by_address, by_name
from outtray_schema.mailbox import SmtpServer, smtp_server
from outtray_schema.plans import effective_limits

Tls = Literal["implicit", "starttls", "clear"]
SmtpAuth = Literal["auto", "plain", "login", "xoauth2", "oauthbearer"]
BY_TOKEN = ("xoauth2", "oauthbearer")

SET_SERVER = "UPDATE outtray.mailbox m SET server = %(server)s, logins = NULL WHERE m.id = %(mailbox)s"

# A server that was mended is tried at once; a wait for a limit of ours goes on.
END_WAIT = """
UPDATE outtray.mailbox m SET parked_until = NULL, parked_reason = NULL
WHERE m.id = %(mailbox)s AND m.parked_reason !~ '^(pace|quota|budget)'
"""

# New credentials end every wait but one for a limit of ours: what was wrong was the old ones' or their server's.
SET_CREDENTIALS = """
UPDATE outtray.mailbox m SET credentials = %(credentials)s, credentials_version = %(version)s, parks = 0,
    server = %(server)s, host = %(host)s, logins = NULL,
    status = CASE m.status WHEN 'paused' THEN 'paused' ELSE 'active' END,
    status_reason = CASE m.status WHEN 'paused' THEN m.status_reason END,
    status_at = CASE WHEN m.status IN ('paused', 'active') THEN m.status_at ELSE outtray.outtray_now() END,
    parked_until = CASE WHEN m.parked_reason LIKE 'quota%%' THEN m.parked_until END,
    parked_reason = CASE WHEN m.parked_reason LIKE 'quota%%' THEN m.parked_reason END
WHERE m.id = %(mailbox)s AND m.credentials_version = %(version)s - 1
RETURNING m.id
"""

# Reads a mailbox's sealed credentials; locks nothing.
CREDENTIALS = "SELECT m.credentials, m.credentials_version FROM outtray.mailbox m WHERE m.id = %(mailbox)s"

# Reads a mailbox's server; locks nothing.
SERVER = "SELECT m.server FROM outtray.mailbox m WHERE m.id = %(mailbox)s"


def add_smtp(
    door: Door,
    address: str | Address,
    *,
    host: str | None = None,
    port: int | None = None,
    tls: Tls | None = None,
    username: str | None = None,
    password: str,
    name: str | None = None,
    aliases: Iterable[str] = (),
    plan: str | None = None,
    limits: Mapping[str, Any] | None = None,
    ca_file: str | Path | None = None,
    pin: str | None = None,
    auth: SmtpAuth = "auto",
    imap: Mapping[str, Any] | Literal["none"] | None = None,
    imap_username: str | None = None,
    imap_password: str | None = None,
    preset: str | None = None,
    default: bool = False,
) -> Plan[Mailbox]:
    """Connect a mailbox that sends by SMTP. `username` is the address where none is given.

    Without `host` it is found by `preset` (a name of `hosts.HOSTS`) or by the address, with its port, TLS, IMAP server
    and plan; what is given counts more. `ca_file`: certificates of authorities, read here and stored; `pin`: the
    certificate that the server must show. `imap`: where to look for evidence (the fields of `ImapServer`), by the same
    login unless another is given. With `auth="xoauth2"` or `"oauthbearer"` the password is an access token.

    Raises `InvalidMailbox` with every field that is wrong, and `SettingsError` in a process without the credentials
    ring. Nothing is sent; `outtray mailbox test` tries it.
    """
    sender = sender_of(address, name)
    known = None if host is not None and preset is None else by_name(preset) if preset else by_address(sender.email)
    server = _server(known, {"host": host, "port": port, "tls": tls, **_trusted(ca_file, pin), "auth": auth}, imap)
    plan = plan or (known.plan if known else "smtp")
    if known and known.imap_by_local_part and imap_username is None:
        imap_username = sender.email.rpartition("@")[0]
    if known and known.refuses_passwords and auth not in BY_TOKEN:
        raise InvalidMailbox(Problem("password", known.refuses_passwords))
    secret = _smtp_secret(username or sender.email, password, auth) | _imap_secret(imap_username, imap_password)
    overrides = dict(limits or {})
    effective_limits(plan, overrides, "smtp")
    app_id = yield from door.app()
    mailbox_id, version = yield from place(door, app_id, sender)
    row = {
        "id": mailbox_id,
        "app": app_id,
        "provider": "smtp",
        "host": server.host,
        "address": sealed_address(door, mailbox_id, sender, aliases),
        "index": door.vault.blind_index(app_id, sender.email),
        "plan": plan,
        "limits": Jsonb(overrides),
        "server": Jsonb(stored(server)),
        "credentials": sealed(door, mailbox_id, version, secret),
        "version": version,
        "provider_app": None,
        "scopes": [],
    }
    return (yield from add_row(door, row, default))


def _server(
    known: MailHost | None, given: Mapping[str, Any], imap: Mapping[str, Any] | Literal["none"] | None
) -> SmtpServer:
    """What is known of the host, and over it what was given. Raises `InvalidMailbox`."""
    named = {name: value for name, value in given.items() if value is not None}
    looks = None if imap == "none" else imap if imap is not None or known is None else known.imap
    return smtp_server(**{**(known.smtp if known else {}), **named, "imap": looks})


def _trusted(ca_file: str | Path | None, pin: str | None) -> dict[str, str | None]:
    """The authorities and the pin as they are stored: workers on other machines have not that file."""
    try:
        ca = Path(ca_file).read_text("ascii", "replace") if ca_file is not None else None
    except OSError as error:
        raise InvalidMailbox(Problem("ca_file", f"{ca_file} cannot be read: {error.strerror}")) from None
    return {"ca": ca, "pin": pin}


def reconnect(
    door: Door,
    mailbox: MailboxName,
    *,
    password: str,
    username: str | None = None,
    host: str | None = None,
    port: int | None = None,
    tls: Tls | None = None,
    ca_file: str | Path | None = None,
    pin: str | None = None,
    auth: SmtpAuth | None = None,
    imap: Mapping[str, Any] | None = None,
    imap_username: str | None = None,
    imap_password: str | None = None,
) -> Plan[Mailbox]:
    """Give a mailbox new credentials, and with them a new server where one is named; it sends again at once.

    A login of its own for IMAP stays unless another is given. A paused mailbox stays paused.

    Raises `NotFound`; `WrongState` if it was removed, or changed by somebody else meanwhile.
    """
    before = yield from get(door, mailbox)
    if before.status_reason == REMOVED:
        raise WrongState("the mailbox was removed; add it again")
    named = {"host": host, "port": port, "tls": tls, **_trusted(ca_file, pin), "auth": auth, "imap": imap}
    server = _changed(before.server, {key: value for key, value in named.items() if value is not None})
    (login,) = yield from rows(CREDENTIALS, mailbox=before.id)
    known = _login(door, before, login)
    looks = {key: value for key, value in known.items() if key.startswith("imap_")}
    secret = _smtp_secret(username or known["username"], password, server.auth)
    secret |= looks | _imap_secret(imap_username, imap_password)
    version = login["credentials_version"] + 1
    row = {
        "mailbox": before.id,
        "credentials": sealed(door, before.id, version, secret),
        "version": version,
        "server": Jsonb(stored(server)),
        "host": server.host,
    }
    return (yield from _reconnect(door, row))


def _reconnect(door: Door, row: Mapping[str, Any]) -> Plan[Mailbox]:
    app_id, mailbox_id = (yield from door.app()), row["mailbox"]
    yield Begin()
    yield from arming.lock(app_id, mailbox_id)
    if not (yield Statement(SET_CREDENTIALS, row)):
        raise WrongState("the mailbox's credentials were changed by somebody else meanwhile; look, then try again")
    yield from rows(ARM, mailbox=mailbox_id)
    yield from rows(LOOK_ANEW, app=app_id, mailbox=mailbox_id)
    yield from arming.note_mailbox(app_id, mailbox_id, "reconnected", door.actor)
    yield Commit()
    door.forget()
    return (yield from get(door, mailbox_id))


def set_password(door: Door, mailbox: MailboxName, password: str) -> Plan[Mailbox]:
    """`reconnect` with the same user name at the same server."""
    return (yield from reconnect(door, mailbox, password=password))


def _changed(before: Mapping[str, Any], changes: Mapping[str, Any]) -> SmtpServer:
    """A server with some fields changed. Authorities that are stored replace a file of the workers' machines."""
    old = {name: value for name, value in before.items() if not (name == "ca_file" and "ca" in changes)}
    return smtp_server(**{**old, **changes})


def set_trust(
    door: Door, mailbox: MailboxName, *, ca_file: str | Path | None = None, pin: str | None = None
) -> Plan[Mailbox]:
    """Say whom its TLS trusts: authorities of its own, or the one certificate that the server must show (`none`: the
    machine's authorities alone). A pin also holds for IMAP at the same host. It is tried again at once.

    Raises `NotFound`; `InvalidMailbox` where it does not fit, or the mailbox does not send by SMTP.
    """
    before = yield from _by_smtp(door, mailbox, "pin")
    changes: dict[str, Any] = {name: value for name, value in _trusted(ca_file, pin).items() if value is not None}
    if pin == "none":
        changes |= {"pin": None, "ca": None, "ca_file": None}
    looks = before.server.get("imap")
    if pin is not None and looks and looks["host"] == before.server["host"]:
        changes["imap"] = {**looks, "pin": changes["pin"]}
    app_id = yield from door.app()
    yield Begin()
    yield from arming.lock(app_id, before.id)
    (row,) = yield from rows(SERVER, mailbox=before.id)
    server = _changed(row["server"], changes)
    yield from rows(SET_SERVER, mailbox=before.id, server=Jsonb(stored(server)))
    yield from rows(END_WAIT, mailbox=before.id)
    yield from rows(ARM, mailbox=before.id)
    yield from arming.note_mailbox(app_id, before.id, "changed", door.actor, {"trust": sorted(changes)})
    yield Commit()
    door.forget()
    return (yield from get(door, before.id))


def _by_smtp(door: Door, mailbox: MailboxName, what: str) -> Plan[Mailbox]:
    before = yield from get(door, mailbox)
    if before.provider != "smtp":
        raise InvalidMailbox(
            Problem(what, f"a mailbox of the provider {before.provider} is not reached by SMTP or IMAP")
        )
    return before


def set_imap(door: Door, mailbox: MailboxName, imap: Mapping[str, Any] | None) -> Plan[Mailbox]:
    """Say where evidence is looked for, by the fields of `ImapServer`; those that are not named stay. None: nowhere.

    Raises `NotFound`; `InvalidMailbox` where it does not fit, or the mailbox does not send by SMTP.
    """
    before = yield from _by_smtp(door, mailbox, "imap")
    wanted = None if imap is None else {**(before.server.get("imap") or {}), **imap}
    app_id = yield from door.app()
    yield Begin()
    yield from arming.lock(app_id, before.id)
    (row,) = yield from rows(SERVER, mailbox=before.id)
    server = smtp_server(**{**row["server"], "imap": wanted})
    yield from rows(SET_SERVER, mailbox=before.id, server=Jsonb(stored(server)))
    if server.imap is not None:
        yield from rows(LOOK_ANEW, app=app_id, mailbox=before.id)
    yield from arming.note_mailbox(app_id, before.id, "changed", door.actor, {"imap": server.imap is not None})
    yield Commit()
    door.forget()
    return (yield from get(door, before.id))


def _smtp_secret(username: str, password: str, auth: str) -> dict[str, str]:
    # SASL PLAIN separates its parts by NUL (RFC 4616), and no server takes an empty password.
    if not password or "\0" in password + username:
        raise InvalidMailbox(Problem("password", "is empty, or has a NUL in it or in the user name"))
    return {"username": username, "access_token" if auth in BY_TOKEN else "password": password}


def _imap_secret(username: str | None, password: str | None) -> dict[str, str]:
    """A login of its own for IMAP, where there is one."""
    if password is not None and (not password or "\0" in password):
        raise InvalidMailbox(Problem("imap_password", "is empty, or has a NUL in it"))
    return {key: value for key, value in (("imap_username", username), ("imap_password", password)) if value}


def _login(door: Door, before: Mailbox, login: Row) -> Mapping[str, str]:
    """What it logs in with. Raises `WrongState` where no password logs in."""
    if login["credentials"] is None:
        return {"username": before.address}
    bound_to = bindings.credentials(before.id, login["credentials_version"])
    opened = json.loads(door.vault.credentials.decrypt(login["credentials"], bound_to))
    if opened.get("kind", "password") != "password":
        raise WrongState("the mailbox logs in by consent, not by a password: outtray mailbox connect")
    return {key: str(value) for key, value in opened.items()}
