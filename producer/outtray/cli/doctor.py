"""`outtray doctor`: is everything that must be right, right? Each line is fine, or says what to do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import psycopg
import typer
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import DictRow
from redis.exceptions import RedisError
from rich.markup import escape

from outtray.cli.exits import Exit
from outtray.cli.options import Json, examples
from outtray.cli.queue_facts import read_breakers, read_processes, redis_client
from outtray.cli.screen import count, duration, facts, moment, out, print_json
from outtray.cli.session import database, services
from outtray.revision import newest_revision, revision
from outtray_schema.database import conninfo
from outtray_schema.errors import OuttrayError, SettingsError, Unavailable
from outtray_schema.settings import Settings
from outtray_schema.vault import load_vault

EXAMPLES = examples("outtray doctor", "outtray doctor --json")

TESTED_POSTGRES = 180000
"""PostgreSQL 18: what the tests run against."""

SKEW = timedelta(seconds=2)
"""Between clocks; more than this and times in logs and on pages mislead. No decision compares two clocks."""

LINKED_WITHIN = timedelta(minutes=5)
"""An entry of the journal that is older and not linked yet has waited too long; half a minute is usual."""

Grade = Literal["ok", "warning", "trouble"]
_MARKS = {"ok": "[green]✓[/]", "warning": "[yellow]![/]", "trouble": "[red]✗[/]"}

# Reads the server's version, its clock, and how far tests have moved ours; locks nothing.
SERVER = """
SELECT current_setting('server_version_num')::int AS number, current_setting('server_version') AS version,
    clock_timestamp() AS now
"""
SHIFT = "SELECT shift FROM outtray.clock"

# Reads since when entries of the journal wait to be linked, NULL if none does, and how many seals there are; locks
# nothing.
JOURNAL = """
SELECT outtray.outtray_now() - (SELECT j.at FROM outtray.journal j WHERE j.id > s.sealed_to ORDER BY j.id LIMIT 1)
    AS behind, (SELECT count(*) FROM outtray.journal_seal) AS seals
FROM outtray.journal_sealing s
"""

# Counts the messages that killed their workers within the last week, through the index of what failed; locks nothing.
POISON = """
SELECT count(*) AS n, max(m.ended_at) AS last FROM outtray.message m
WHERE m.state = 'failed' AND m.reason LIKE 'poison: %' AND m.ended_at > outtray.outtray_now() - interval '7 days'
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: how it is, and, where it is not well, what to do."""

    about: str
    grade: Grade
    found: str
    cure: str = ""


def doctor(as_json: Json = False) -> None:
    """Check that everything is in order, and say what is not.

    Settings, keys, database, Redis, clocks, processes, spool. Exit 1 if anything is in trouble (2: a setting).
    """
    findings = list(_examine())
    if as_json:
        print_json({"ok": not _in_trouble(findings), "findings": findings})
    else:
        out.print(facts((_MARKS[each.grade] + f" {each.about}", _text(each)) for each in findings))
    if _in_trouble(findings):
        raise typer.Exit(Exit.USAGE if findings[-1].about == "settings" else Exit.REFUSED)


def _in_trouble(findings: list[Finding]) -> bool:
    return any(each.grade == "trouble" for each in findings)


def _text(finding: Finding) -> str:
    cure = f"\n[bold]{escape(finding.cure)}[/]" if finding.cure else ""
    return escape(finding.found) + cure


def _examine() -> Iterator[Finding]:
    """Look at everything, from the ground up; what cannot be reached ends its own branch only."""
    try:
        with services() as settings:
            yield Finding("settings", "ok", _settings_line(settings))
            yield from _spared("keys", lambda: _keys(settings))
            yield from _spared("postgresql", lambda: _postgresql(settings))
            yield from _redis(settings)
            yield from _spool(settings)
    except (SettingsError, OuttrayError) as error:
        yield Finding("settings", "trouble", str(error))


def _spared(about: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What `look` finds, its own failure being a finding too."""
    try:
        yield from look()
    except (SettingsError, OuttrayError, psycopg.Error) as error:
        text = str(error) if isinstance(error, (SettingsError, OuttrayError)) else type(error).__name__
        yield Finding(about, "trouble", text)


def _settings_line(settings: Settings) -> str:
    given = sorted(settings.model_fields_set - {"database_url", "redis_url", "key_file", "keys"})
    named = ", ".join(f"OUTTRAY_{name.upper()}" for name in given)
    return f"valid; app {settings.app}" + (f"; set: {named}" if named else "")


def _keys(settings: Settings) -> Iterator[Finding]:
    vault = load_vault(settings)
    source = (
        "OUTTRAY_KEYS" if settings.keys is not None else str(settings.key_file or settings.data_folder / "keys.json")
    )
    if vault.has_credentials:
        yield Finding("keys", "ok", f"{source}: all three rings, readable by its owner alone")
    else:
        yield Finding("keys", "ok", f"{source}: no credentials ring, so this process only enqueues")


# ── PostgreSQL ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _postgresql(settings: Settings) -> Iterator[Finding]:
    try:
        with database(settings) as connection:
            yield from _server(settings, connection)
            migrated = _migrated(connection)
            yield migrated
            if migrated.grade == "ok":
                yield from _shift(connection)
                yield _journal(connection)
                yield from _processes(connection)
                yield from _breakers(connection)
                yield from _poison(connection)
    except Unavailable:
        cure = "look at OUTTRAY_DATABASE_URL, and at the server and its log"
        yield Finding("postgresql", "trouble", f"{_place(settings)} does not answer", cure)


def _place(settings: Settings) -> str:
    """Where the database should be; never with its user or password."""
    parts = conninfo_to_dict(conninfo(settings))
    port = f":{parts['port']}" if "port" in parts else ""
    return f"{parts.get('host', 'localhost')}{port}/{parts.get('dbname', '')}"


def _server(settings: Settings, connection: Connection[DictRow]) -> Iterator[Finding]:
    began = datetime.now(UTC)
    server = connection.execute(SERVER).fetchone() or {}
    between = began + (datetime.now(UTC) - began) / 2
    version, place = server["version"], _place(settings)
    if server["number"] < TESTED_POSTGRES:
        cure = "the tests run against PostgreSQL 18; an older one may lack something"
        yield Finding("postgresql", "warning", f"{place} answers; version {version}", cure)
    else:
        yield Finding("postgresql", "ok", f"{place} answers; version {version}")
    yield _skew("postgresql's clock", server["now"] - between)


def _migrated(connection: Connection[Any]) -> Finding:
    found, needed = revision(connection), newest_revision()
    if found is None or found < needed:
        return Finding(
            "tables", "trouble", f"at migration {found or 'none'}, this version needs {needed}", "run: outtray migrate"
        )
    if found > needed:
        return Finding(
            "tables", "warning", f"at migration {found}, newer than this version's {needed}", "update this machine"
        )
    return Finding("tables", "ok", f"at migration {found}")


def _shift(connection: Connection[DictRow]) -> Iterator[Finding]:
    row = connection.execute(SHIFT).fetchone()
    if row and row["shift"]:
        cure = "only tests move it: UPDATE outtray.clock SET shift = '0'"
        yield Finding("clock", "trouble", f"outtray's clock is moved by {duration(row['shift'])}", cure)


def _journal(connection: Connection[DictRow]) -> Finding:
    """Entries are linked within half a minute, unless a transaction that began before them is open yet."""
    row = connection.execute(JOURNAL).fetchone() or {}
    if row.get("behind") is None or row["behind"] <= LINKED_WITHIN:
        return Finding("journal", "ok", f"linked; {count(row.get('seals', 0), 'seal')}")
    cure = "is a dispatcher alive, or a transaction open for long? (docs/journal.md)"
    return Finding("journal", "warning", f"entries wait to be linked, since {duration(row['behind'])}", cure)


def _processes(connection: Connection[DictRow]) -> Iterator[Finding]:
    processes = read_processes(connection)
    for role in ("worker", "dispatcher"):
        alive = sum(each.alive for each in processes if each.role == role)
        if alive:
            yield Finding(f"{role}s", "ok", f"{alive} alive")
        else:
            yield Finding(
                f"{role}s", "trouble", "none has spoken for 30 s: nothing leaves", f"start one: outtray {role}"
            )


def _breakers(connection: Connection[DictRow]) -> Iterator[Finding]:
    for each in read_breakers(connection):
        found = f"{each.whose} fails for most mailboxes since {moment(each.opened_at)}: {each.reason}"
        cure = "it is probed, and goes on by itself; look at the provider's status page (docs/containment.md)"
        yield Finding("breaker", "warning", found, cure)


def _poison(connection: Connection[DictRow]) -> Iterator[Finding]:
    row = connection.execute(POISON).fetchone() or {"n": 0}
    if row["n"]:
        found = f"{count(row['n'], 'message')} failed within 7 days because their workers died over them, last "
        cure = "a bug of ours, or too little memory: keep the workers' logs; outtray message list --state failed"
        yield Finding("poison", "warning", found + moment(row["last"]), cure)


# ── Redis, clocks, spool ────────────────────────────────────────────────────────────────────────────────────────────


def _redis(settings: Settings) -> Iterator[Finding]:
    client = redis_client(settings)
    try:
        info: Any = client.info()
        began = time.time()
        seconds, micros = client.time()
        between = (began + time.time()) / 2
    except (RedisError, OSError) as error:
        cure = "mail still leaves, more slowly; look at OUTTRAY_REDIS_URL and the server"
        yield Finding("redis", "warning", f"does not answer ({type(error).__name__})", cure)
        return
    finally:
        client.close()
    yield Finding(
        "redis",
        "ok",
        f"answers; {info.get('server_name', 'redis')} {info.get('valkey_version', info.get('redis_version', ''))}",
    )
    yield _eviction(str(info.get("maxmemory_policy", "")))
    yield _skew("redis's clock", timedelta(seconds=seconds + micros / 1e6 - between))


def _eviction(policy: str) -> Finding:
    """With any other policy a full Redis drops rounds and buckets by itself, and pace is rebuilt again and again."""
    if policy == "noeviction":
        return Finding("redis memory", "ok", "maxmemory-policy noeviction")
    cure = "run: redis-cli CONFIG SET maxmemory-policy noeviction, and set it in redis.conf"
    return Finding("redis memory", "trouble", f"maxmemory-policy is {policy or 'unknown'}: hints may be dropped", cure)


def _skew(about: str, skew: timedelta) -> Finding:
    if abs(skew) <= SKEW:
        return Finding(about, "ok", f"within {duration(SKEW)} of this machine's")
    way = "ahead of" if skew > timedelta(0) else "behind"
    cure = "run NTP on both; windows and quotas go by the database's clock alone, pages and logs by this machine's"
    return Finding(about, "warning", f"{duration(skew)} {way} this machine's", cure)


def _spool(settings: Settings) -> Iterator[Finding]:
    """The spool holds answers that the database did not take; workers write them as soon as it does."""
    folder = settings.spool
    damaged = sorted(folder.glob("*.damaged"))
    if damaged:
        cure = f"look at it: outtray spool show {damaged[0].name}; docs/spool.md says what can be done"
        yield Finding("spool", "trouble", f"{count(len(damaged), 'file')} of damaged outcomes in {folder}", cure)
        return
    files = sorted([*folder.glob("*.spool"), *folder.glob("*.jsonl")])
    if files:
        age = timedelta(seconds=max(0.0, time.time() - min(file.stat().st_mtime for file in files)))
        cure = "leave them: a running worker on this machine writes them; see outtray spool list; do not delete any"
        yield Finding("spool", "warning", f"{count(len(files), 'file')} of outcomes wait, since {duration(age)}", cure)
        return
    parent = next(each for each in (folder, *folder.parents) if each.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        yield Finding(
            "spool",
            "trouble",
            f"{folder} cannot be written",
            "set OUTTRAY_SPOOL_FOLDER to a durable folder of this user's",
        )
        return
    yield Finding("spool", "ok", f"empty ({folder})")
