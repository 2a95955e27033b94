"""Mailboxes: connect one, set what it may send, pause and resume it, give it new credentials, remove it.

Whatever lets a mailbox send again computes `parked_until` and `next_at` anew in the same transaction (rule 13).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb

from outtray import apps, arming, budgets
from outtray.cancel import cancel_where
from outtray.door import Door, MailboxName, open_address
from outtray.evidence import LOOK_ANEW
from outtray.find import mailbox_id_of
from outtray.plan import Begin, Commit, Plan, Row, Statement, rows
from outtray_schema import bindings
from outtray_schema.address import Address, parse_address
from outtray_schema.errors import InvalidMailbox, MailboxDisconnected, NotFound, Problem, Refused, WrongState
from outtray_schema.ids import new_id
from outtray_schema.mailbox import SmtpServer, smtp_server
from outtray_schema.plans import DAILY, Limits, effective_limits, with_learned

REMOVED = "removed"
"""The status reason of a mailbox that its owner took away. Its row stays: what it sent counts for 24 hours more."""

# Inserts a mailbox, or takes back one that was removed: with its id comes what it has used of its limits.
ADD = f"""
INSERT INTO outtray.mailbox AS m (id, app_id, provider, host, address, address_index, plan, limits, server, credentials,
    provider_app, scopes)
VALUES (%(id)s, %(app)s, %(provider)s, %(host)s, %(address)s, %(index)s, %(plan)s, %(limits)s, %(server)s,
    %(credentials)s, %(provider_app)s, %(scopes)s)
ON CONFLICT (app_id, address_index) DO UPDATE
SET provider = excluded.provider, host = excluded.host, address = excluded.address, plan = excluded.plan,
    limits = excluded.limits, server = excluded.server, credentials = excluded.credentials,
    provider_app = excluded.provider_app, scopes = excluded.scopes,
    credentials_version = %(version)s, status = 'active', status_reason = NULL, status_at = outtray.outtray_now(),
    parks = 0, parked_until = NULL, parked_reason = NULL
WHERE m.id = %(id)s AND m.status = 'disabled' AND m.status_reason = '{REMOVED}'
  AND m.credentials_version = %(version)s - 1
RETURNING m.id
"""

# Reads who has an address in an app; locks nothing.
OCCUPANT = """
SELECT m.id, m.status, m.status_reason, m.credentials_version FROM outtray.mailbox m
WHERE m.app_id = %(app)s AND m.address_index = %(index)s
"""

_COLUMNS = """m.id, m.provider, m.host, m.address, m.plan, m.limits, m.server, m.status, m.status_reason, m.status_at,
    m.parked_until, m.parked_reason, m.next_at, m.turn_until, m.created_at, m.provider_app, m.scopes, m.on_unknown,
    m.learned, outtray.outtray_now() AS now, ARRAY(
        SELECT b.name FROM outtray.mailbox_budget mb JOIN outtray.budget b ON b.id = mb.budget_id
        WHERE mb.mailbox_id = m.id ORDER BY b.name) AS budgets,
    a.default_mailbox_id = m.id AS is_default"""

# Reads one mailbox, or all of an app that are not removed; locks nothing.
GET = f"""
SELECT {_COLUMNS} FROM outtray.mailbox m JOIN outtray.app a ON a.id = m.app_id
WHERE m.app_id = %(app)s AND m.id = %(mailbox)s
"""
LIST = f"""
SELECT {_COLUMNS} FROM outtray.mailbox m JOIN outtray.app a ON a.id = m.app_id
WHERE m.app_id = %(app)s AND m.status_reason IS DISTINCT FROM '{REMOVED}' ORDER BY m.id
"""

# Counts what waits in a mailbox; locks nothing.
WAITING = """
SELECT count(*) AS waiting FROM outtray.message m
WHERE m.mailbox_id = %(mailbox)s AND m.state IN ('queued', 'handing_over')
"""

# The following write one mailbox whose row is locked already. A wait for a limit or for pace is over when the limits
# change; one that the provider asked for is not.
SET = """
UPDATE outtray.mailbox m SET plan = %(plan)s, limits = %(limits)s, address = %(address)s, on_unknown = %(on_unknown)s,
    learned = m.learned - %(forgotten)s::text[],
    parked_until = CASE WHEN m.parked_reason ~ '^(pace|quota|budget)' THEN NULL ELSE m.parked_until END,
    parked_reason = CASE WHEN m.parked_reason ~ '^(pace|quota|budget)' THEN NULL ELSE m.parked_reason END
WHERE m.id = %(mailbox)s
"""
ARM = f"UPDATE outtray.mailbox m SET next_at = {arming.NEXT_AT} WHERE m.id = %(mailbox)s"
SET_STATUS = """
UPDATE outtray.mailbox m SET status = %(status)s, status_reason = %(reason)s, status_at = outtray.outtray_now()
WHERE m.id = %(mailbox)s
"""
SET_SERVER = "UPDATE outtray.mailbox m SET server = %(server)s WHERE m.id = %(mailbox)s"
# New credentials end every wait but one for a limit of ours: what was wrong was the old ones' or their server's.
SET_CREDENTIALS = """
UPDATE outtray.mailbox m SET credentials = %(credentials)s, credentials_version = %(version)s, parks = 0,
    server = %(server)s, host = %(host)s,
    status = CASE m.status WHEN 'paused' THEN 'paused' ELSE 'active' END,
    status_reason = CASE m.status WHEN 'paused' THEN m.status_reason END,
    status_at = CASE WHEN m.status IN ('paused', 'active') THEN m.status_at ELSE outtray.outtray_now() END,
    parked_until = CASE WHEN m.parked_reason LIKE 'quota%%' THEN m.parked_until END,
    parked_reason = CASE WHEN m.parked_reason LIKE 'quota%%' THEN m.parked_reason END
WHERE m.id = %(mailbox)s AND m.credentials_version = %(version)s - 1
RETURNING m.id
"""
REMOVE = f"""
UPDATE outtray.mailbox m SET status = 'disabled', status_reason = '{REMOVED}', status_at = outtray.outtray_now(),
    credentials = NULL, credentials_version = m.credentials_version + 1, next_at = NULL
WHERE m.id = %(mailbox)s
"""

# Deletes a mailbox's access tokens.
FORGET_TOKENS = "DELETE FROM outtray.token t WHERE t.mailbox_id = %(mailbox)s"

# Reads a mailbox's sealed credentials; locks nothing.
CREDENTIALS = "SELECT m.credentials, m.credentials_version FROM outtray.mailbox m WHERE m.id = %(mailbox)s"

# Reads a mailbox's server; locks nothing.
SERVER = "SELECT m.server FROM outtray.mailbox m WHERE m.id = %(mailbox)s"

# Inserts what a mailbox sent by another system.
IMPORT_USAGE = """
INSERT INTO outtray.usage (mailbox_id, counted_at, messages, recipients, external, externals, source)
VALUES (%(mailbox)s, %(at)s, %(messages)s, %(recipients)s, %(external)s, %(externals)s::bytea[], 'import')
"""


@dataclass(frozen=True, slots=True)
class Mailbox:
    """A mailbox as it stands. Its address is not in its repr, so that no log shows it."""

    id: UUID
    provider: str
    host: str
    address: str = field(repr=False)
    name: str = field(repr=False)
    aliases: tuple[str, ...] = field(repr=False)
    plan: str
    overrides: Mapping[str, Any]
    limits: Limits
    server: Mapping[str, Any]
    status: str
    status_reason: str | None
    status_at: datetime | None
    parked_until: datetime | None
    parked_reason: str | None
    next_at: datetime | None
    turn_until: datetime | None
    is_default: bool
    created_at: datetime
    provider_app: str | None = None
    """The OAuth client by which it logs in; None where a password does."""
    scopes: tuple[str, ...] = ()
    """What its owner granted, as the provider names it."""
    budgets: tuple[str, ...] = ()
    """The budgets that it shares, by name."""
    on_unknown: str | None = None
    """What becomes of its messages of which nobody can tell whether they left; None: as its app has it."""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """What a mailbox sent at some time by another system, so that our first day keeps its limits.

    `externals` are the distinct external recipients' addresses, where the plan limits those; only their blind indexes
    are stored.
    """

    at: datetime
    messages: int = 1
    recipients: int = 1
    external: int = 0
    externals: tuple[str, ...] = field(default=(), repr=False)


def add_smtp(
    door: Door,
    address: str | Address,
    *,
    host: str,
    port: int = 587,
    tls: Literal["implicit", "starttls", "clear"] = "starttls",
    username: str | None = None,
    password: str,
    name: str | None = None,
    aliases: Iterable[str] = (),
    plan: str = "smtp",
    limits: Mapping[str, Any] | None = None,
    ca_file: str | None = None,
    auth: Literal["auto", "plain", "login", "xoauth2"] = "auto",
    imap: Mapping[str, Any] | None = None,
    imap_username: str | None = None,
    imap_password: str | None = None,
    default: bool = False,
) -> Plan[Mailbox]:
    """Connect a mailbox that sends by SMTP. `username` is the address where none is given.

    `imap`: where to look for evidence (the fields of `ImapServer`), with the same login unless another is given.
    With `auth="xoauth2"` the password is an access token. Raises `InvalidMailbox` with every field that is wrong, and
    `SettingsError` in a process without the credentials ring. Nothing is sent; `outtray mailbox test` tries it.
    """
    server = smtp_server(host=host, port=port, tls=tls, ca_file=ca_file, auth=auth, imap=imap)
    sender = sender_of(address, name)
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


def add_row(door: Door, row: Mapping[str, Any], default: bool, also: Plan[Any] | None = None) -> Plan[Mailbox]:
    """Insert a mailbox, or take back a removed one; `also` is carried out in the same transaction."""
    app_id, mailbox_id = row["app"], row["id"]
    yield Begin()
    if not (yield Statement(ADD, row)):
        raise _taken()
    yield from budgets.join_by_tenant(mailbox_id)
    yield from rows(ARM, mailbox=mailbox_id)
    yield from arming.note_mailbox(app_id, mailbox_id, "added", door.actor, {"plan": row["plan"]})
    if also is not None:
        yield from also
    if default:
        yield from apps.set_default_mailbox(app_id, mailbox_id)
    yield Commit()
    door.forget()
    return (yield from get(door, mailbox_id))


def get(door: Door, mailbox: MailboxName = None) -> Plan[Mailbox]:
    """One mailbox by id or address, or the app's default. Raises `NotFound`."""
    app_id = yield from door.app()
    mailbox_id = yield from mailbox_id_of(door, app_id, mailbox)
    found = yield from rows(GET, app=app_id, mailbox=mailbox_id)
    if not found:
        raise NotFound("there is no such mailbox in this app; see `outtray mailbox list`")
    return _view(door, found[0])


def list_all(door: Door) -> Plan[list[Mailbox]]:
    """The app's mailboxes, oldest first; removed ones are left out."""
    app_id = yield from door.app()
    return [_view(door, row) for row in (yield from rows(LIST, app=app_id))]


def change(
    door: Door,
    mailbox: MailboxName,
    *,
    plan: str | None = None,
    limits: Mapping[str, Any] | None = None,
    reserve: int | None = None,
    pace: int | None = None,
    name: str | None = None,
    aliases: Iterable[str] | None = None,
    on_unknown: Literal["hold", "resend", "app"] | None = None,
    forget_learned: bool = False,
    budget: str | None = None,
    leave_budget: str | None = None,
) -> Plan[Mailbox]:
    """Change a mailbox's plan, single limits (`None` lifts one), reserve, pace (messages a minute), name or aliases.

    `on_unknown`: what becomes of its messages of which nobody can tell whether they left; `app`: as its app has it.
    `forget_learned`: the plan holds again where the provider's refusals had taught less. `budget`, `leave_budget`: the
    name of one to share, or to share no more. What is not named stays. A wait for a limit ends, and the next turn
    judges anew. Raises `InvalidMailbox`, `NotFound`.
    """
    before = yield from get(door, mailbox)
    named = {"reserve": reserve, "per_minute": pace}
    overrides = {
        **before.overrides,
        **(limits or {}),
        **{key: value for key, value in named.items() if value is not None},
    }
    effective_limits(plan or before.plan, overrides, before.provider)
    sender = Address(before.address, before.name if name is None else name)
    known = sealed_address(door, before.id, sender, before.aliases if aliases is None else aliases)
    policy = before.on_unknown if on_unknown is None else _policy(on_unknown)
    row = {
        "plan": plan or before.plan, "limits": Jsonb(overrides), "address": known, "on_unknown": policy,
        "forgotten": _forgotten(before, forget_learned),
    }  # fmt: skip
    app_id = yield from door.app()
    yield Begin()
    yield from arming.lock(app_id, before.id)
    yield from rows(SET, mailbox=before.id, **row)
    if budget is not None:
        yield from budgets.join(before.id, budget)
    if leave_budget is not None:
        yield from budgets.leave(before.id, leave_budget)
    yield from rows(ARM, mailbox=before.id)
    told = {"plan": plan or before.plan, "limits": overrides, "on_unknown": policy}
    told |= _more(forget_learned, budget, leave_budget)
    yield from arming.note_mailbox(app_id, before.id, "changed", door.actor, told)
    yield Commit()
    door.forget()
    return (yield from get(door, before.id))


def _policy(on_unknown: str) -> str | None:
    if on_unknown not in ("hold", "resend", "app"):
        raise InvalidMailbox(Problem("on_unknown", f"{on_unknown!r} is none; it is hold, resend or app"))
    return None if on_unknown == "app" else on_unknown


def _forgotten(before: Mailbox, all_of_it: bool) -> list[str]:
    """The measures of which nothing learned is kept: all, or those that had recovered under the plan of before.

    Those must go now, or they would bind anew under a plan that allows more.
    """
    binding = {each.measure for each in before.limits.learned}
    return [measure for measure in DAILY if all_of_it or measure not in binding]


def _more(forget_learned: bool, budget: str | None, leave_budget: str | None) -> dict[str, Any]:
    named = {"forget_learned": forget_learned, "budget": budget, "leave_budget": leave_budget}
    return {name: value for name, value in named.items() if value}


def reconnect(
    door: Door,
    mailbox: MailboxName,
    *,
    password: str,
    username: str | None = None,
    host: str | None = None,
    port: int | None = None,
    tls: Literal["implicit", "starttls", "clear"] | None = None,
    ca_file: str | None = None,
    auth: Literal["auto", "plain", "login", "xoauth2"] | None = None,
    imap: Mapping[str, Any] | None = None,
    imap_username: str | None = None,
    imap_password: str | None = None,
) -> Plan[Mailbox]:
    """Give a mailbox new credentials, and with them a new server where one is named; it sends again at once.

    A login of its own for IMAP stays unless another is given.

    A paused one stays paused. Raises `NotFound`; `WrongState` if it was removed, or changed by somebody else meanwhile.
    """
    before = yield from get(door, mailbox)
    if before.status_reason == REMOVED:
        raise WrongState("the mailbox was removed; add it again")
    named = {"host": host, "port": port, "tls": tls, "ca_file": ca_file, "auth": auth, "imap": imap}
    changes = {key: value for key, value in named.items() if value is not None}
    server = smtp_server(**{**before.server, **changes})
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


def set_imap(door: Door, mailbox: MailboxName, imap: Mapping[str, Any] | None) -> Plan[Mailbox]:
    """Say where evidence is looked for, by the fields of `ImapServer`; those that are not named stay. None: nowhere.

    Raises `NotFound`; `InvalidMailbox` where it does not fit, or the mailbox does not send by SMTP.
    """
    before = yield from get(door, mailbox)
    if before.provider != "smtp":
        raise InvalidMailbox(Problem("imap", f"a mailbox of the provider {before.provider} is not looked into by IMAP"))
    wanted = None if imap is None else {**(before.server.get("imap") or {}), **imap}
    app_id = yield from door.app()
    yield Begin()
    yield from arming.lock(app_id, before.id)
    (row,) = yield from rows(SERVER, mailbox=before.id)
    server = smtp_server(**{**row["server"], "imap": wanted})
    yield from rows(SET_SERVER, mailbox=before.id, server=Jsonb(stored(server)))
    yield from arming.note_mailbox(app_id, before.id, "changed", door.actor, {"imap": server.imap is not None})
    yield Commit()
    door.forget()
    return (yield from get(door, before.id))


def pause(door: Door, mailbox: MailboxName, why: str = "") -> Plan[Mailbox]:
    """Let nothing leave from this mailbox until it is resumed. Raises `NotFound`, `WrongState`."""
    before = yield from get(door, mailbox)
    if before.status == "disabled":
        raise WrongState(f"the mailbox is disabled ({before.status_reason}); nothing leaves from it anyway")
    return (yield from _set_status(door, before.id, "paused", why or None, "paused"))


def resume(door: Door, mailbox: MailboxName) -> Plan[Mailbox]:
    """Let a paused mailbox send again. Raises `NotFound`, `MailboxDisconnected`, `WrongState`."""
    before = yield from get(door, mailbox)
    if before.status == "reconnect":
        raise MailboxDisconnected("the mailbox is not paused; its credentials were refused: reconnect it")
    if before.status == "disabled":
        raise WrongState(f"the mailbox is disabled ({before.status_reason}); connect it again")
    if before.status == "active":
        return before
    return (yield from _set_status(door, before.id, "active", None, "resumed"))


def remove(door: Door, mailbox: MailboxName, *, force: bool = False) -> Plan[int]:
    """Take a mailbox away: its credentials are erased, nothing leaves from it any more.

    Refused with `WrongState` while messages wait in it, unless `force`, which cancels them; answers with how many.
    """
    before = yield from get(door, mailbox)
    (count,) = yield from rows(WAITING, mailbox=before.id)
    if count["waiting"] and not force:
        raise WrongState(f"{count['waiting']} message(s) wait in this mailbox; force=True cancels them")
    app_id = yield from door.app()
    yield Begin()
    yield from arming.lock(app_id, before.id)
    yield from rows(REMOVE, mailbox=before.id)
    yield from rows(FORGET_TOKENS, mailbox=before.id)
    yield from arming.note_mailbox(app_id, before.id, REMOVED, door.actor)
    yield Commit()
    counts = yield from cancel_where(door, mailbox=before.id, reason="mailbox removed")
    door.forget()
    return counts.cancelled


def set_default(door: Door, mailbox: MailboxName) -> Plan[Mailbox]:
    """Let messages of the app that name no mailbox leave from this one. Raises `NotFound`."""
    app_id = yield from door.app()
    yield from apps.set_default_mailbox(app_id, (yield from mailbox_id_of(door, app_id, mailbox)))
    door.forget()
    return (yield from get(door, mailbox))


def import_usage(door: Door, mailbox: MailboxName, usage: Iterable[UsageRow]) -> Plan[int]:
    """Count what the mailbox sent elsewhere in the last 24 hours; answers with how many rows. All or none.

    Raises `NotFound`; `Refused` naming the row that is wrong.
    """
    app_id = yield from door.app()
    mailbox_id = yield from mailbox_id_of(door, app_id, mailbox)
    count = 0
    yield Begin()
    for count, row in enumerate(usage, 1):
        yield Statement(IMPORT_USAGE, _usage_parameters(door, app_id, mailbox_id, count - 1, row))
    yield Commit()
    return count


def _usage_parameters(door: Door, app_id: UUID, mailbox_id: UUID, index: int, row: UsageRow) -> dict[str, Any]:
    if row.at.utcoffset() is None:
        raise Refused(Problem(f"[{index}].at", "has no time zone; write datetime(..., tzinfo=UTC)"))
    if not 0 <= row.external <= row.recipients or row.messages < 0:
        raise Refused(Problem(f"[{index}].external", "must be from 0 to recipients, and messages not negative"))
    return {
        "mailbox": mailbox_id,
        "at": row.at,
        "messages": row.messages,
        "recipients": row.recipients,
        "external": row.external,
        "externals": sorted({door.vault.blind_index(app_id, address) for address in row.externals}),
    }


def _set_status(door: Door, mailbox_id: UUID, status: str, reason: str | None, kind: str) -> Plan[Mailbox]:
    app_id = yield from door.app()
    yield Begin()
    yield from arming.lock(app_id, mailbox_id)
    yield from rows(SET_STATUS, mailbox=mailbox_id, status=status, reason=reason)
    if status == "active":
        yield from rows(ARM, mailbox=mailbox_id)
    yield from arming.note_mailbox(app_id, mailbox_id, kind, door.actor, {"reason": reason})
    yield Commit()
    door.forget()
    return (yield from get(door, mailbox_id))


def place(door: Door, app_id: UUID, sender: Address) -> Plan[tuple[UUID, int]]:
    """The id and credentials version for an address: new ones, or those of a mailbox that was removed."""
    found = yield from rows(OCCUPANT, app=app_id, index=door.vault.blind_index(app_id, sender.email))
    if not found:
        return new_id(), 1
    if found[0]["status_reason"] != REMOVED:
        raise _taken()
    return found[0]["id"], found[0]["credentials_version"] + 1


def _taken() -> InvalidMailbox:
    return InvalidMailbox(Problem("address", "is connected already; use `mailbox set` or `mailbox reconnect`"))


def sender_of(address: str | Address, name: str | None) -> Address:
    """A mailbox's address with the name that recipients see. Raises `Refused`."""
    sender = parse_address(address) if isinstance(address, str) else address
    return sender if name is None else Address(sender.email, name)


def _smtp_secret(username: str, password: str, auth: str) -> dict[str, str]:
    # SASL PLAIN separates its parts by NUL (RFC 4616), and no server takes an empty password.
    if not password or "\0" in password + username:
        raise InvalidMailbox(Problem("password", "is empty, or has a NUL in it or in the user name"))
    return {"username": username, "access_token" if auth == "xoauth2" else "password": password}


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


def sealed(door: Door, mailbox_id: UUID, version: int, secret: Mapping[str, str]) -> bytes:
    """Credentials as they are stored. Raises `SettingsError` without the credentials ring."""
    return door.vault.credentials.encrypt(json.dumps(secret).encode(), bindings.credentials(mailbox_id, version))


def sealed_address(door: Door, mailbox_id: UUID, sender: Address, aliases: Iterable[str]) -> bytes:
    """A mailbox's address, name and aliases as they are stored."""
    known = {"address": sender.email, "name": sender.name, "aliases": [parse_address(each).email for each in aliases]}
    return door.vault.addresses.encrypt(json.dumps(known).encode(), bindings.mailbox_address(mailbox_id))


def stored(server: SmtpServer) -> dict[str, Any]:
    """A server as it is stored."""
    return server.model_dump(mode="json", exclude_none=True)


def _view(door: Door, row: Row) -> Mailbox:
    address = open_address(door.vault, row["id"], row["address"])
    return Mailbox(
        **{name: row[name] for name in _AS_STORED},
        address=address["address"],
        name=address.get("name") or "",
        aliases=tuple(address.get("aliases") or ()),
        overrides=row["limits"],
        limits=with_learned(effective_limits(row["plan"], row["limits"], row["provider"]), row["learned"], row["now"]),
        is_default=bool(row["is_default"]),
        scopes=tuple(row["scopes"]),
        budgets=tuple(row["budgets"]),
    )


_AS_STORED = (
    "id", "provider", "host", "plan", "server", "status", "status_reason", "status_at", "parked_until", "parked_reason",
    "next_at", "turn_until", "created_at", "provider_app", "on_unknown",
)  # fmt: skip
