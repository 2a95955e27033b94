"""Consents: mailboxes that log in by what their owner granted, and the record of who granted what, when.

An app that runs its own consent page hands in what it got (`add_google`, `add_microsoft`); `outtray mailbox connect`
runs one by itself. A new consent ends every wait but one for a limit: the mailbox sends again within seconds (rule 13).
Nothing here asks a provider: a refresh token that does not work shows itself at the first refresh.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from psycopg.types.json import Jsonb

from outtray import arming, budgets, mailboxes, oauth_apps
from outtray.door import Door, MailboxName
from outtray.evidence import LOOK_ANEW
from outtray.find import mailbox_id_of
from outtray.mailboxes import Mailbox
from outtray.plan import Begin, Commit, Plan, Row, rows
from outtray_schema import bindings
from outtray_schema.address import Address
from outtray_schema.consent import SCOPES, Issuer, canonical, guarantee
from outtray_schema.errors import InvalidMailbox, NotFound, Problem, WrongState
from outtray_schema.mailbox import smtp_server
from outtray_schema.plans import effective_limits

ConsentKind = Literal["connected", "reconnected", "disconnected", "revoked"]

HOSTS: Mapping[Issuer, str] = {"google": "gmail.googleapis.com", "microsoft": "graph.microsoft.com"}
PROVIDERS: Mapping[Issuer, str] = {"google": "gmail", "microsoft": "microsoft"}
PLANS: Mapping[Issuer, str] = {"google": "gmail", "microsoft": "microsoft"}
"""A Gmail account's plan is not visible by its API, so it is taken for the smaller one until its owner says more."""

SERVERS: Mapping[Issuer, Mapping[str, Any]] = {
    # Gmail: implicit TLS on 465; Exchange Online and Outlook.com: STARTTLS on 587 (both providers' docs, 2026-11).
    "google": {"host": "smtp.gmail.com", "port": 465, "tls": "implicit"},
    "microsoft": {"host": "smtp.office365.com", "port": 587, "tls": "starttls"},
}
IMAP: Mapping[str, Mapping[str, Any]] = {
    "smtp.gmail.com": {"host": "imap.gmail.com"},
    "smtp.office365.com": {"host": "outlook.office365.com"},
}
"""Where evidence is looked for, by the SMTP server: implicit TLS on 993 (developers.google.com/gmail/imap;
support.microsoft.com, POP, IMAP, and SMTP settings; 2026-11)."""

# Inserts into the record of consents.
NOTE = """
INSERT INTO outtray.consent (mailbox_id, actor, provider_app, kind, scopes)
VALUES (%(mailbox)s, %(actor)s, %(provider_app)s, %(kind)s, %(scopes)s)
"""

# Reads a mailbox's consents, oldest first; locks nothing.
CONSENTS = """
SELECT c.at, c.actor, c.provider_app, c.kind, c.scopes FROM outtray.consent c
WHERE c.mailbox_id = %(mailbox)s ORDER BY c.id
"""

# Reads how a mailbox logs in; locks nothing.
LOGIN = """
SELECT m.credentials, m.credentials_version, m.provider, m.provider_app, m.scopes, m.server, m.status, m.status_reason
FROM outtray.mailbox m WHERE m.id = %(mailbox)s
"""

# The following write a mailbox whose row is locked already. New credentials end every wait but one for a limit of ours.
SET_CONSENT = """
UPDATE outtray.mailbox m SET credentials = %(credentials)s, credentials_version = %(version)s, parks = 0,
    provider_app = %(provider_app)s, scopes = %(scopes)s, logins = NULL,
    status = CASE m.status WHEN 'paused' THEN 'paused' ELSE 'active' END,
    status_reason = CASE m.status WHEN 'paused' THEN m.status_reason END,
    status_at = CASE WHEN m.status IN ('paused', 'active') THEN m.status_at ELSE outtray.outtray_now() END,
    parked_until = CASE WHEN m.parked_reason LIKE 'quota%%' THEN m.parked_until END,
    parked_reason = CASE WHEN m.parked_reason LIKE 'quota%%' THEN m.parked_reason END
WHERE m.id = %(mailbox)s
"""
END_CONSENT = """
UPDATE outtray.mailbox m SET credentials = %(credentials)s, credentials_version = %(version)s,
    status = 'reconnect', status_reason = %(reason)s, status_at = outtray.outtray_now()
WHERE m.id = %(mailbox)s
"""
# Old access tokens go; so does the lease of a refresh that is under way with the old refresh token. Versions only rise.
END_TOKENS = """
UPDATE outtray.token t SET access = NULL, expires_at = NULL, version = t.version + 1, refreshing = t.refreshing + 1,
    refreshing_until = NULL
WHERE t.mailbox_id = %(mailbox)s
"""

# Reads every live mailbox that logs in at the same Google project, by its sealed address' index in its own app.
SAME_PROJECT = """
SELECT m.id, m.app_id, m.address_index FROM outtray.mailbox m JOIN outtray.provider_app p ON p.name = m.provider_app
WHERE p.provider = %(issuer)s AND split_part(p.client_id, '-', 1) = split_part(%(client_id)s, '-', 1)
  AND m.credentials IS NOT NULL AND m.id <> %(mailbox)s AND m.status_reason IS DISTINCT FROM %(given_back)s
"""

GIVEN_BACK = "its consent was given back"
"""The status reason of a mailbox that was disconnected: it holds no token, and its queue waits."""


@dataclass(frozen=True, slots=True)
class Consent:
    """One entry of the record: who did what, by which OAuth client, and what was granted from then on."""

    at: datetime
    actor: str
    provider_app: str | None
    kind: str
    scopes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Disconnected:
    """A mailbox whose tokens were erased. `others` counts this person's other connections at the same provider app."""

    mailbox: Mailbox
    others: int
    warning: str = ""


@dataclass(frozen=True, slots=True)
class Revocable:
    """What a revocation at Google needs: the token itself, which is never shown."""

    mailbox_id: UUID
    refresh_token: str = field(repr=False)
    others: int = 0


def add_google(
    door: Door,
    address: str | Address,
    *,
    refresh_token: str,
    scopes: Iterable[str],
    provider_app: str,
    smtp: bool = False,
    name: str | None = None,
    aliases: Iterable[str] = (),
    plan: str | None = None,
    limits: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    default: bool = False,
) -> Plan[Mailbox]:
    """Connect a Gmail mailbox by a consent that was obtained before; `scopes` are those that were *granted*.

    `smtp`: it sends by SMTP with the same consent, which must then be for https://mail.google.com/; `server` replaces
    parts of Google's own. Raises `InvalidMailbox`, `NotFound` for the provider app, and `SettingsError` without the
    credentials ring.
    """
    secret = {"kind": "google", "refresh_token": refresh_token}
    wanted = _Wanted("google", provider_app, secret, frozenset(scopes), smtp, server)
    return (yield from _add(door, address, wanted, name, aliases, plan, limits, default))


def add_microsoft(
    door: Door,
    address: str | Address,
    *,
    refresh_token: str,
    scopes: Iterable[str],
    provider_app: str,
    tenant: str | None = None,
    smtp: bool = False,
    shared: bool = False,
    name: str | None = None,
    aliases: Iterable[str] = (),
    plan: str | None = None,
    limits: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    default: bool = False,
) -> Plan[Mailbox]:
    """Connect a Microsoft mailbox by a consent that was obtained before; `scopes` are those that were *granted*.

    `tenant`: the person's own, where it is known. `shared`: the address is another mailbox than the person's, in which
    they may send. `smtp` and `server` as with Google, for the scopes of https://outlook.office.com/.
    """
    secret = {"kind": "microsoft", "refresh_token": refresh_token} | ({"tenant": tenant} if tenant else {})
    wanted = _Wanted("microsoft", provider_app, secret, frozenset(scopes), smtp, server, shared)
    return (yield from _add(door, address, wanted, name, aliases, plan, limits, default))


def add_delegated(
    door: Door,
    address: str | Address,
    *,
    provider_app: str,
    scopes: Iterable[str] | None = None,
    smtp: bool = False,
    name: str | None = None,
    aliases: Iterable[str] = (),
    plan: str | None = None,
    limits: Mapping[str, Any] | None = None,
    server: Mapping[str, Any] | None = None,
    default: bool = False,
) -> Plan[Mailbox]:
    """Connect a mailbox of an organisation that delegated to the provider app itself, with no consent of its person.

    The provider app is a Google service account with domain-wide delegation, or a Microsoft app with a secret or
    certificate of its own. `scopes`: what the organisation granted; default: to compose.
    """
    app = yield from oauth_apps.get(door, provider_app)
    issuer: Issuer = "google" if app.provider == "google" else "microsoft"
    kind = {"google": "google_service_account", "microsoft": "microsoft_app"}[issuer]
    email = mailboxes.sender_of(address, name).email
    granted = frozenset(scopes if scopes is not None else SCOPES[issuer]["smtp" if smtp else "compose"])
    wanted = _Wanted(
        issuer, provider_app, {"kind": kind, "subject": email}, granted, smtp, server, issuer == "microsoft"
    )
    return (yield from _add(door, address, wanted, name, aliases, plan, limits, default))


def connect(
    door: Door,
    mailbox: MailboxName,
    *,
    refresh_token: str,
    scopes: Iterable[str],
    provider_app: str | None = None,
    tenant: str | None = None,
) -> Plan[Mailbox]:
    """Give a mailbox a new consent of its owner; it sends again at once. A paused one stays paused.

    `provider_app`: default the one that it has. Raises `NotFound`, `InvalidMailbox`; `WrongState` if it was removed or
    logs in by a password.
    """
    before = yield from mailboxes.get(door, mailbox)
    app = yield from oauth_apps.get(door, _app_of(before, provider_app))
    issuer: Issuer = "google" if app.provider == "google" else "microsoft"
    granted = canonical(scopes)
    _check(before.provider, issuer, app, "oauth", granted, refresh_token)
    secret = {"kind": issuer, "refresh_token": refresh_token} | ({"tenant": tenant} if tenant else {})
    app_id = yield from door.app()
    yield Begin()
    locked = yield from arming.lock(app_id, before.id)
    version = (locked["credentials_version"] if locked else 0) + 1
    yield from rows(
        SET_CONSENT, mailbox=before.id, version=version, provider_app=app.name, scopes=sorted(granted),
        credentials=mailboxes.sealed(door, before.id, version, secret),
    )  # fmt: skip
    yield from rows(END_TOKENS, mailbox=before.id)
    yield from budgets.join_by_tenant(before.id)
    yield from rows(mailboxes.ARM, mailbox=before.id)
    yield from rows(LOOK_ANEW, app=app_id, mailbox=before.id)
    yield from _note(door, app_id, before.id, "reconnected", app.name, sorted(granted))
    yield Commit()
    door.forget()
    return (yield from mailboxes.get(door, before.id))


def disconnect(door: Door, mailbox: MailboxName, kind: ConsentKind = "disconnected") -> Plan[Disconnected]:
    """Erase a mailbox's tokens here; its queue waits for a new consent. The consent itself stands at the provider.

    Raises `NotFound`; `WrongState` where a password logs in.
    """
    before = yield from mailboxes.get(door, mailbox)
    app = yield from oauth_apps.get(door, _app_of(before, None))
    others = yield from _others(door, before, app.client_id or "")
    app_id = yield from door.app()
    (login,) = yield from rows(LOGIN, mailbox=before.id)
    opened = _opened(door, before.id, login)
    yield Begin()
    locked = yield from arming.lock(app_id, before.id)
    version = (locked["credentials_version"] if locked else 0) + 1
    sealed = mailboxes.sealed(door, before.id, version, {"kind": opened.get("kind", app.provider)})
    yield from rows(END_CONSENT, mailbox=before.id, version=version, credentials=sealed, reason=GIVEN_BACK)
    yield from rows(END_TOKENS, mailbox=before.id)
    yield from _note(door, app_id, before.id, kind, app.name, [])
    yield Commit()
    door.forget()
    return Disconnected((yield from mailboxes.get(door, before.id)), others, _warning(app.provider, others, kind))


def revocable(door: Door, mailbox: MailboxName, force: bool) -> Plan[Revocable]:
    """What revoking this mailbox's consent at Google takes. Raises `WrongState` where it must not be, or cannot.

    Google's revocation ends all that this person granted to the whole project, so on any but the last connection it
    would end the others too: refused, unless `force` (Google's OAuth guide for web servers, revocation, 2026-11).
    """
    before = yield from mailboxes.get(door, mailbox)
    app = yield from oauth_apps.get(door, _app_of(before, None))
    (login,) = yield from rows(LOGIN, mailbox=before.id)
    opened = _opened(door, before.id, login)
    if opened.get("kind") != "google":
        raise WrongState(f"this consent cannot be revoked from here; disconnect the mailbox. {_WHERE[app.provider]}")
    if not opened.get("refresh_token"):
        raise WrongState(f"the mailbox is disconnected, so there is no token to revoke. {_WHERE['google']}")
    others = yield from _others(door, before, app.client_id or "")
    if others and not force:
        raise WrongState(
            f"{others} other connection(s) of this person use the same Google project: revoking would end them too; "
            "disconnect this one, or force it"
        )
    return Revocable(before.id, opened["refresh_token"], others)


def consents(door: Door, mailbox: MailboxName = None) -> Plan[list[Consent]]:
    """Who agreed to what for this mailbox, oldest first. Raises `NotFound`."""
    mailbox_id = yield from mailbox_id_of(door, (yield from door.app()), mailbox)
    found = yield from rows(CONSENTS, mailbox=mailbox_id)
    return [Consent(**{**row, "scopes": tuple(row["scopes"])}) for row in found]


_WHERE = {
    "google": "The person can remove it at myaccount.google.com/connections",
    "microsoft": "The person can remove it at myapps.microsoft.com, or account.live.com/consent/Manage",
}


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a new mailbox logs in with."""

    issuer: Issuer
    provider_app: str
    secret: Mapping[str, str] = field(repr=False)
    granted: frozenset[str]
    smtp: bool
    server: Mapping[str, Any] | None
    shared: bool = False

    @property
    def provider(self) -> str:
        return "smtp" if self.smtp else PROVIDERS[self.issuer]

    def place(self) -> tuple[str, dict[str, Any]]:
        """Host and server, as they are stored. Raises `InvalidMailbox`."""
        if not self.smtp:
            return HOSTS[self.issuer], {"shared": True} if self.shared else {}
        wanted = {**SERVERS[self.issuer], "auth": "xoauth2", **(self.server or {})}
        # Only the provider's own: a token for a gateway goes nowhere else. And nobody looks without having been let.
        if wanted["host"] in IMAP and guarantee("smtp", self.granted).looks:
            wanted.setdefault("imap", IMAP[wanted["host"]])
        made = smtp_server(**wanted)
        return made.host, mailboxes.stored(made)


def _add(
    door: Door,
    address: str | Address,
    wanted: _Wanted,
    name: str | None,
    aliases: Iterable[str],
    plan: str | None,
    limits: Mapping[str, Any] | None,
    default: bool,
) -> Plan[Mailbox]:
    app = yield from oauth_apps.get(door, wanted.provider_app)
    granted = canonical(wanted.granted)
    kind = {"google_service_account": "service_account", "microsoft_app": "client_credentials"}
    _check(
        wanted.provider, wanted.issuer, app, kind.get(wanted.secret["kind"], "oauth"), granted,
        wanted.secret.get("refresh_token", "none is needed"),
    )  # fmt: skip
    sender, overrides = mailboxes.sender_of(address, name), dict(limits or {})
    chosen = plan or PLANS[wanted.issuer]
    effective_limits(chosen, overrides, wanted.provider)
    host, server = wanted.place()
    app_id = yield from door.app()
    mailbox_id, version = yield from mailboxes.place(door, app_id, sender)
    row = {
        "id": mailbox_id, "app": app_id, "provider": wanted.provider, "host": host, "plan": chosen,
        "address": mailboxes.sealed_address(door, mailbox_id, sender, aliases),
        "index": door.vault.blind_index(app_id, sender.email), "limits": Jsonb(overrides), "server": Jsonb(server),
        "credentials": mailboxes.sealed(door, mailbox_id, version, wanted.secret), "version": version,
        "provider_app": app.name, "scopes": sorted(granted),
    }  # fmt: skip
    note = rows(
        NOTE, mailbox=mailbox_id, actor=door.actor, provider_app=app.name, kind="connected", scopes=sorted(granted)
    )
    return (yield from mailboxes.add_row(door, row, default, note))


def _check(
    provider: str, issuer: Issuer, app: oauth_apps.ProviderApp, kind: str, granted: frozenset[str], refresh_token: str
) -> None:
    """Raise `InvalidMailbox` with every field that does not fit."""
    problems = []
    if app.provider != issuer or (provider in PROVIDERS.values() and PROVIDERS[issuer] != provider):
        problems.append(Problem("provider_app", f"{app.name!r} is one of {app.provider}, not for this mailbox"))
    elif app.kind != kind:
        problems.append(Problem("provider_app", f"{app.name!r} is of the kind {app.kind}; this needs {kind}"))
    if not refresh_token or "\0" in refresh_token:
        problems.append(Problem("refresh_token", "is empty; ask for offline access, and for the consent again"))
    if not guarantee(provider, granted).sends:
        wanted = " or ".join(" ".join(scopes) for scopes in SCOPES[issuer].values())
        problems.append(Problem("scopes", f"none of those granted lets it send; ask for {wanted}"))
    if problems:
        raise InvalidMailbox(problems)


def _app_of(box: Mailbox, named: str | None) -> str:
    if box.status_reason == mailboxes.REMOVED:
        raise WrongState("the mailbox was removed; connect it anew")
    if named is None and box.provider_app is None:
        raise WrongState("the mailbox logs in by a password, not by consent; see outtray mailbox reconnect")
    return named or str(box.provider_app)


def _opened(door: Door, mailbox_id: UUID, login: Row) -> dict[str, Any]:
    if login["credentials"] is None:
        raise NotFound("the mailbox has no consent")
    bound_to = bindings.credentials(mailbox_id, login["credentials_version"])
    opened: dict[str, Any] = json.loads(door.vault.credentials.decrypt(login["credentials"], bound_to))
    return opened


def _others(door: Door, box: Mailbox, client_id: str) -> Plan[int]:
    """This person's other live connections at the same project, in whatever app: a count, and nothing else of them."""
    issuer = "google" if client_id and box.provider != "microsoft" else "microsoft"
    app = yield from oauth_apps.get(door, str(box.provider_app))
    found = yield from rows(
        SAME_PROJECT, issuer=app.provider or issuer, client_id=client_id, mailbox=box.id, given_back=GIVEN_BACK
    )
    indexes = {row["app_id"]: door.vault.blind_index(row["app_id"], box.address) for row in found}
    return sum(bytes(row["address_index"]) == indexes[row["app_id"]] for row in found)


def _warning(provider: str, others: int, kind: ConsentKind) -> str:
    if kind == "revoked":
        return f"{others} other connection(s) of this person have ended with it" if others else ""
    stands = f"the consent itself still stands at the provider. {_WHERE[provider]}"
    if not others:
        return stands
    return f"{others} other connection(s) of this person go on; {stands}, which ends those too"


def _note(door: Door, app_id: UUID, mailbox_id: UUID, kind: str, app: str, scopes: list[str]) -> Plan[None]:
    yield from rows(NOTE, mailbox=mailbox_id, actor=door.actor, provider_app=app, kind=kind, scopes=scopes)
    yield from arming.note_mailbox(app_id, mailbox_id, kind, door.actor, {"scopes": scopes} if scopes else None)
