"""Provider apps: the OAuth clients by which mailboxes log in. One for everybody, or an app's own.

A new secret makes a refused client active again, and lets every mailbox go on that waited for it (rule 13).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from outtray.door import Door
from outtray.noting import note
from outtray.plan import Begin, Commit, Plan, Row, rows
from outtray_schema import bindings
from outtray_schema.errors import NotFound, Problem, Refused, WrongState
from outtray_schema.freeing import CHUNK, FREE, LOCK_WAITING

Kind = Literal["oauth", "service_account", "client_credentials"]
NOBODY = UUID(int=0)

_COLUMNS = """p.name, p.provider, p.kind, p.client_id, p.tenant, p.app_id IS NOT NULL AS own, p.secret IS NOT NULL AS
    has_secret, p.status, p.status_reason, p.status_at, p.created_at, p.per_minute, p.units_per_minute,
    p.user_units_per_minute,
    (SELECT count(*) FROM outtray.mailbox m
     WHERE m.provider_app = p.name AND m.status_reason IS DISTINCT FROM 'removed') AS mailboxes"""
_VISIBLE = "(p.app_id IS NULL OR p.app_id = %(app)s)"

# Inserts an OAuth client, once per name.
ADD = """
INSERT INTO outtray.provider_app (name, provider, app_id, kind, client_id, tenant, secret)
VALUES (%(name)s, %(provider)s, %(owner)s, %(kind)s, %(client_id)s, %(tenant)s, %(secret)s)
ON CONFLICT (name) DO NOTHING RETURNING name
"""

# Reads the clients that an app may use: its own, and everybody's; locks nothing.
LIST = f"SELECT {_COLUMNS} FROM outtray.provider_app p WHERE {_VISIBLE} ORDER BY p.name"
GET = f"SELECT {_COLUMNS} FROM outtray.provider_app p WHERE p.name = %(name)s AND {_VISIBLE}"

# Locks one client until the end of the transaction.
LOCK = f"SELECT p.secret_version FROM outtray.provider_app p WHERE p.name = %(name)s AND {_VISIBLE} FOR NO KEY UPDATE"

# Writes the client that is locked already.
RENEW = """
UPDATE outtray.provider_app p
SET secret = %(secret)s, secret_version = %(version)s, status = 'active', status_reason = NULL,
    status_at = outtray.outtray_now()
WHERE p.name = %(name)s
"""

# Writes a client's paces; 0 lifts one.
SET_PACE = f"""
UPDATE outtray.provider_app p
SET per_minute = nullif(coalesce(%(per_minute)s, p.per_minute), 0),
    units_per_minute = nullif(coalesce(%(units_per_minute)s, p.units_per_minute), 0),
    user_units_per_minute = nullif(coalesce(%(user_units_per_minute)s, p.user_units_per_minute), 0)
WHERE p.name = %(name)s AND {_VISIBLE} RETURNING p.name
"""

# Takes the client off mailboxes that were removed, then deletes it if no other has it.
LEAVE = (
    "UPDATE outtray.mailbox m SET provider_app = NULL WHERE m.provider_app = %(name)s AND m.status_reason = 'removed'"
)
REMOVE = """
DELETE FROM outtray.provider_app p
WHERE p.name = %(name)s AND NOT EXISTS (SELECT FROM outtray.mailbox m WHERE m.provider_app = p.name) RETURNING p.name
"""


@dataclass(frozen=True, slots=True)
class ProviderApp:
    """An OAuth client as it stands. `own`: it is this app's alone. `mailboxes` counts those that log in by it."""

    name: str
    provider: str
    kind: str
    client_id: str | None
    tenant: str | None
    own: bool
    has_secret: bool
    status: str
    status_reason: str | None
    status_at: datetime | None
    created_at: datetime
    mailboxes: int
    per_minute: int | None = None
    """Messages a minute of all its mailboxes together."""
    units_per_minute: int | None = None
    """What its provider counts calls in, a minute: all its mailboxes together, and each of them."""
    user_units_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class Described:
    """An OAuth client as its provider's console describes it in a file."""

    kind: Kind
    client_id: str | None
    secret: str


def add(
    door: Door,
    name: str,
    provider: Literal["google", "microsoft"],
    *,
    client_id: str | None = None,
    secret: str | None = None,
    kind: Kind = "oauth",
    tenant: str | None = None,
    own: bool = False,
) -> Plan[ProviderApp]:
    """Add an OAuth client. `own`: for this app's mailboxes alone, else for everybody's.

    `secret` is a client secret, a certificate with its key (PEM), or the JSON that Google's console makes, which also
    names the client. Raises `Refused` with every field that is wrong; `SettingsError` without the credentials ring.
    """
    described = described_in(secret) if secret else None
    if described is not None:
        kind, client_id, secret = described.kind, client_id or described.client_id, described.secret
    problems = _problems(name, provider, client_id, secret, kind, tenant)
    if problems:
        raise Refused(problems)
    app_id = yield from door.app()
    yield Begin()
    added = yield from rows(
        ADD, name=name, provider=provider, owner=app_id if own else None, kind=kind, client_id=client_id,
        tenant=tenant or ("common" if provider == "microsoft" else None), secret=_sealed(door, name, 1, secret),
    )  # fmt: skip
    if not added:
        raise Refused(
            Problem("name", f"there is a provider app {name!r} already; take another name, or set its secret")
        )
    yield from note(door.actor, "provider app added", provider_app=name, provider=provider, kind=kind)
    yield Commit()
    return (yield from get(door, name))


def get(door: Door, name: str) -> Plan[ProviderApp]:
    """One client by its name. Raises `NotFound`."""
    found = yield from rows(GET, name=name, app=(yield from door.app()))
    if not found:
        raise NotFound(f"there is no provider app {name!r}; see `outtray provider-app list`")
    return _view(found[0])


def list_all(door: Door) -> Plan[list[ProviderApp]]:
    """The clients that this app's mailboxes may log in by."""
    return [_view(row) for row in (yield from rows(LIST, app=(yield from door.app())))]


def change(
    door: Door,
    name: str,
    *,
    per_minute: int | None = None,
    units_per_minute: int | None = None,
    user_units_per_minute: int | None = None,
) -> Plan[ProviderApp]:
    """Set a client's pace: messages a minute, and the units a minute of its project and of each of its users.

    What is not named stays; 0 lifts it. It holds from each mailbox's next turn. Raises `NotFound`, `Refused`.
    """
    paces = {
        "per_minute": per_minute, "units_per_minute": units_per_minute, "user_units_per_minute": user_units_per_minute,
    }  # fmt: skip
    problems = [Problem(key, "must be a whole number from 0 (no limit)") for key, n in paces.items() if not _is_pace(n)]
    if problems:
        raise Refused(problems)
    app_id = yield from door.app()
    yield Begin()
    if not (yield from rows(SET_PACE, name=name, app=app_id, **paces)):
        raise NotFound(f"there is no provider app {name!r}; see `outtray provider-app list`")
    yield from note(door.actor, "provider app changed", provider_app=name, **paces)
    yield Commit()
    return (yield from get(door, name))


def _is_pace(number: int | None) -> bool:
    return number is None or 0 <= number <= 1_000_000_000


def set_secret(door: Door, name: str, secret: str) -> Plan[ProviderApp]:
    """Give a client a new secret; the mailboxes that waited for it go on at once. Raises `NotFound`, `Refused`."""
    before = yield from get(door, name)
    described = described_in(secret)
    if described is not None:
        secret = described.secret
    if problem := _secret_problem(before.provider, before.kind, secret):
        raise Refused(problem)
    app_id = yield from door.app()
    yield Begin()
    locked = yield from rows(LOCK, name=name, app=app_id)
    if not locked:
        raise NotFound(f"the provider app {name!r} has just been removed")
    version = locked[0]["secret_version"] + 1
    yield from rows(RENEW, name=name, version=version, secret=_sealed(door, name, version, secret))
    yield from note(door.actor, "provider app renewed", provider_app=name)
    yield Commit()
    yield from _free(name)
    return (yield from get(door, name))


def remove(door: Door, name: str) -> Plan[None]:
    """Take a client away. Raises `NotFound`; `WrongState` while a mailbox logs in by it."""
    before = yield from get(door, name)
    yield Begin()
    yield from rows(LEAVE, name=name)
    if not (yield from rows(REMOVE, name=name)):
        raise WrongState(f"{before.mailboxes} mailbox(es) log in by this provider app; disconnect or remove them first")
    yield from note(door.actor, "provider app removed", provider_app=name)
    yield Commit()


def described_in(text: str) -> Described | None:
    """The client in a JSON file of Google's console: an OAuth client's, or a service account's; None for other text."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    if found.get("type") == "service_account" and "private_key" in found:
        return Described("service_account", str(found.get("client_id") or found.get("client_email") or ""), text)
    inner = found.get("installed") or found.get("web")
    if isinstance(inner, dict) and inner.get("client_secret"):
        return Described("oauth", str(inner.get("client_id") or ""), str(inner["client_secret"]))
    return None


def _free(name: str) -> Plan[None]:
    after = NOBODY
    while True:
        yield Begin()
        ids = [row["id"] for row in (yield from rows(LOCK_WAITING, name=name, after=after, chunk=CHUNK))]
        if ids:
            yield from rows(FREE, ids=ids)
        yield Commit()
        if len(ids) < CHUNK:
            return
        after = ids[-1]


def _problems(
    name: str, provider: str, client_id: str | None, secret: str | None, kind: str, tenant: str | None
) -> list[Problem]:
    found = []
    if not 1 <= len(name) <= 64 or not name.isprintable() or name != name.strip():
        found.append(Problem("name", "has 1 to 64 printable characters, like google or microsoft-eu"))
    if provider not in ("google", "microsoft"):
        found.append(Problem("provider", "is google or microsoft"))
    if not client_id:
        found.append(Problem("client_id", "is missing; the provider's console shows it"))
    if kind == "client_credentials" and (tenant or "common") in ("common", "organizations", "consumers"):
        found.append(Problem("tenant", "must be the organisation's own: an app's own token is of one tenant"))
    if problem := _secret_problem(provider, kind, secret):
        found.append(problem)
    return found


def _secret_problem(provider: str, kind: str, secret: str | None) -> Problem | None:
    if kind == "service_account" and (provider != "google" or not secret or described_in(secret) is None):
        return Problem("secret", "must be the JSON key file of a Google service account")
    if kind == "client_credentials" and (provider != "microsoft" or not secret):
        return Problem("secret", "must be a Microsoft client secret, or a certificate with its key as PEM")
    if provider == "google" and not secret:
        return Problem("secret", "is missing: Google gives every client one, also to those on people's machines")
    if secret and "-----BEGIN" in secret and kind != "service_account" and "CERTIFICATE-----" not in secret:
        return Problem("secret", "has a key but no certificate; put both into one PEM file")
    return None


def _sealed(door: Door, name: str, version: int, secret: str | None) -> bytes | None:
    if secret is None:
        return None
    return door.vault.credentials.encrypt(secret.encode(), bindings.provider_app_secret(name, version))


def _view(row: Row) -> ProviderApp:
    values: dict[str, Any] = dict(row)
    return ProviderApp(**values)
