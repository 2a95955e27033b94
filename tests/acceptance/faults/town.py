"""The town of a fault run: the sandbox's servers, mailboxes on all six routes, and a fleet that is kept up.

Whoever dies is borne anew at once. All that the fleet says to PostgreSQL goes by the proxy; the judge asks directly.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from acceptance.faults.matrix import ROUTES
from acceptance.faults.nursery import Nursery
from acceptance.faults.proxy import NAME, PostgresProxy
from acceptance.faults.referee import Referee
from acceptance.fleet import environment
from outtray import Outtray
from outtray_sandbox.accepted import Accepted, most_in_any_24h
from outtray_sandbox.google import GoogleHouse, GoogleServer
from outtray_sandbox.imap import ImapServer
from outtray_sandbox.microsoft import Client, MicrosoftHouse, MicrosoftServer
from outtray_sandbox.microsoft.house import Refreshing
from outtray_sandbox.smtp import SmtpServer
from outtray_sandbox.web import Ledger
from outtray_schema.consent import SCOPES
from outtray_schema.settings import Settings
from polling import eventually

CLIENT, SECRET, PASSWORD = "faults", "faults-secret", "pw"
HOST_OF_ROUTE = {
    "gmail draft": "gmail.example", "gmail send": "gmail.example", "graph draft": "contoso.example",
    "graph sendMail": "contoso.example", "smtp readable": "filed.example", "smtp blind": "blind.example",
}  # fmt: skip
GRANTS = {"gmail draft": "compose", "gmail send": "send", "graph draft": "compose", "graph sendMail": "send"}


@dataclass(frozen=True, slots=True)
class Times:
    """The protocol's constants as this run has them, and how long its faults last, in seconds.

    `late` is beyond a handover's deadline and before its settling time is over; a look that finds nothing counts only
    then. `settled`: when all that is to be known of an unanswered handover is known.
    """

    scaled: dict[str, str]
    lease: float
    sweep: float
    short_stop: float
    long_stop: float
    past_settling: float
    late: float
    late_command: float
    late_commit: float
    settled: float


SCALED = Times(
    {
        "lease": "2s", "turn_length": "2s", "round_again": "2s", "sweep_every": "2s", "tend_every": "200ms",
        "handover_begin": "2s", "handover_answer": "3s", "prepare_limit": "8s", "command_timeout": "2s",
        "connect_timeout": "2s", "broker_patience": "1s", "backoff_base": "300ms", "backoff_cap": "1s",
        "park_cap": "1s", "breaker_probe": "300ms", "breaker_probe_cap": "1s",
        "sweep_every_without_redis": "1s", "spool_after": "500ms", "host_share": "1",
        "smtp_clear_loopback": "true", "look_scale": "0.006", "settle_time": "1s", "look_limit": "3s",
        "token_timeout": "2s", "token_lease": "3s", "suspect_alone": "200ms", "poison_after": "50", "attempts": "50",
    },
    lease=2.0, sweep=2.0, short_stop=0.7, long_stop=2.6, past_settling=11.0, late=5.6, late_command=2.4,
    late_commit=2.5, settled=25.0,
)  # fmt: skip
REAL = Times(
    {"smtp_clear_loopback": "true", "host_share": "1"},
    lease=30.0, sweep=60.0, short_stop=10.0, long_stop=35.0, past_settling=1300.0, late=635.0, late_command=125.0,
    late_commit=35.0, settled=2000.0,
)  # fmt: skip


CLAIMS = """
CREATE SCHEMA judge;
CREATE TABLE judge.claim (mailbox_id uuid, fence bigint, worker text, PRIMARY KEY (mailbox_id, fence));
CREATE FUNCTION judge.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO judge.claim VALUES (NEW.id, NEW.turn_fence, NEW.turn_worker); RETURN NULL;
END $$;
CREATE TRIGGER judge AFTER UPDATE OF turn_fence ON outtray.mailbox FOR EACH ROW
    WHEN (NEW.turn_fence > OLD.turn_fence) EXECUTE FUNCTION judge.note();
"""
"""Whose each fence was: a message names the fence of its handover, and no longer its worker."""
NO_CLAIMS = "DROP TRIGGER judge ON outtray.mailbox; DROP SCHEMA judge CASCADE"


@dataclass(frozen=True, slots=True)
class Box:
    """A mailbox on a route. `limit`: messages that it may send in a day."""

    id: UUID
    route: str
    address: str
    limit: int | None = None


@dataclass
class Member:
    """A process of the fleet."""

    role: str
    pid: int
    ended: threading.Event = field(default_factory=threading.Event)
    wanted: bool = True
    """Whether it is to be borne anew when it dies."""

    @property
    def name_in_table(self) -> str:
        """How the process names itself in `mailbox.turn_worker`."""
        return f"{socket.gethostname()}:{self.pid}"


@dataclass
class Town:
    """What a run sees and does."""

    settings: Settings
    times: Times
    folder: Path
    google: GoogleServer
    microsoft: MicrosoftServer
    filed: SmtpServer
    blind: SmtpServer
    imap: ImapServer
    referee: Referee
    proxy: PostgresProxy
    client: Outtray
    nursery: Nursery
    boxes: list[Box] = field(default_factory=list)
    members: dict[int, Member] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)
    by_themselves: list[str] = field(default_factory=list)
    """Processes that ended though nobody had killed them."""
    deaths: Counter[str] = field(default_factory=Counter)
    dead: set[str] = field(default_factory=set)
    """Processes as they name themselves that were killed, or stopped for so long that their answers came too late."""
    _number: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _read: dict[Path, tuple[int, list[Accepted]]] = field(default_factory=dict)

    # ── mailboxes ───────────────────────────────────────────────────────────────────────────────────────────────

    def add_box(self, route: str, limit: int | None = None, per_minute: int | None = None) -> Box:
        """A new mailbox of a new person, who has agreed to what the route needs."""
        self._number += 1
        address = f"p{self._number}@{HOST_OF_ROUTE[route]}"
        limits = (
            {"messages": limit} if per_minute is None else {"messages": limit, "per_minute": per_minute, "burst": 1}
        )
        added = self._add(route, address, limits)
        box = Box(added.id, route, address, limit)
        self.boxes.append(box)
        return box

    def _add(self, route: str, address: str, limits: dict[str, Any]) -> Any:
        if route.startswith("smtp"):
            server = self.filed if route == "smtp readable" else self.blind
            server.do("add_user", user=address, password=PASSWORD)
            imap = self.imap.where(files_sent=True) if route == "smtp readable" else None
            return self.client.mailboxes.add_smtp(
                address, host=server.host, port=server.port, tls="clear", password=PASSWORD, limits=limits, imap=imap
            )
        if route.startswith("gmail"):
            scopes = SCOPES["google"][GRANTS[route]]  # type: ignore[index]
            self.google.do("add_user", email=address)
            token = self.google.do("grant", email=address, scopes=scopes, client_id=CLIENT)
            return self.client.mailboxes.add_google(
                address, refresh_token=token, scopes=scopes, provider_app="google", limits=limits
            )
        scopes = SCOPES["microsoft"][GRANTS[route]]  # type: ignore[index]
        self.microsoft.do("add_user", address=address, scopes=" ".join((*scopes, "offline_access")))
        token = f"0.{address}"
        self.microsoft.house.refresh_tokens[token] = Refreshing(address, CLIENT, frozenset(scopes))
        return self.client.mailboxes.add_microsoft(
            address, refresh_token=token, scopes=scopes, provider_app="microsoft", limits={"per_minute": None} | limits
        )

    # ── the fleet ───────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, workers: int, dispatchers: int) -> None:
        """Return once all have said that they are alive."""
        for role, count in (("dispatcher", dispatchers), ("worker", workers)):
            for _ in range(count):
                self.bear(role)
        self.wait_alive()

    def bear(self, role: str, *arguments: str, wanted: bool = True) -> Member:
        """A new member of the fleet; `wanted`: it is borne anew whenever it dies."""
        with self._lock:
            pid = self.nursery.bear(role, self.folder / f"{role}.log", *arguments)
            member = self.members[pid] = Member(role, pid, wanted=wanted)
            return member

    def wait_alive(self, within: float = 60.0) -> None:
        """Until every worker and dispatcher of now has beaten once."""

        def beaten() -> bool:
            names = {row[0] for row in self.rows("SELECT id FROM outtray.process")}
            lasting = [member for member in list(self.members.values()) if member.role != "crm"]
            return {member.name_in_table for member in lasting} <= names

        eventually(beaten, within, "every process has said that it is alive")

    def died(self, pid: int, status: int) -> None:
        """The nursery's word. A worker or dispatcher gets a successor."""
        with self._lock:
            member = self.members.pop(pid, None)
        if member is None:
            return
        member.ended.set()
        if pid in self.killed:
            self.deaths[member.role] += 1
        elif status != 0 or member.wanted:
            self.by_themselves.append(f"{member.role} {pid} ended by itself with {status}")
        if member.wanted:
            threading.Thread(target=self.bear, args=[member.role], daemon=True).start()

    def kill(self, pid: int) -> Member | None:
        """SIGKILL, and return once it is dead."""
        with self._lock:
            member = self.members.get(pid)
            self.killed.add(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if member is not None:
            member.ended.wait(20)
            self.dead.add(member.name_in_table)
        return member

    def of_role(self, role: str) -> list[Member]:
        with self._lock:
            return [member for member in self.members.values() if member.role == role]

    def end(self) -> None:
        """SIGTERM to all, and whoever does not end is killed."""
        with self._lock:
            members = list(self.members.values())
        for member in members:
            member.wanted = False
            self.killed.add(member.pid)  # how it ends is not judged here: tests of stopping do
            with contextlib.suppress(ProcessLookupError):
                os.kill(member.pid, signal.SIGCONT)
                os.kill(member.pid, signal.SIGTERM)
        until = time.monotonic() + 20
        for member in members:
            if not member.ended.wait(max(0.1, until - time.monotonic())):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)
                member.ended.wait(5)

    # ── what the record says, and what the providers say ────────────────────────────────────────────────────────

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self._lock:
            for _ in range(2):
                try:
                    return self._judge().execute(statement, parameters).fetchall()
                except psycopg.OperationalError:
                    self._connection = None
            return self._judge().execute(statement, parameters).fetchall()

    _connection: Any = None

    def _judge(self) -> psycopg.Connection[Any]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(str(self.settings.database_url), autocommit=True)
        return self._connection  # type: ignore[no-any-return]

    def taken(self) -> Counter[str]:
        """How often each recipient's mail was taken, by all providers. Each message has a recipient of its own."""
        return Counter(recipient for accepted in self.accepted() for recipient in accepted.recipients)

    def accepted(self) -> list[Accepted]:
        ledgers = (self.google.ledger, self.microsoft.ledger, self.filed.ledger, self.blind.ledger)
        return [accepted for ledger in ledgers for accepted in self._new_of(ledger.path)]

    def _new_of(self, path: Path) -> list[Accepted]:
        """A ledger's lines so far, each read once."""
        offset, known = self._read.get(path, (0, []))
        with path.open("rb") as ledger:
            ledger.seek(offset)
            came = ledger.read()
        whole = came[: came.rfind(b"\n") + 1]
        for line in whole.splitlines():
            fields = json.loads(line)
            known.append(Accepted(**{**fields, "recipients": tuple(fields["recipients"])}))
        self._read[path] = offset + len(whole), known
        return known

    def most_in_a_day(self, box: Box) -> int:
        """The most that this mailbox's provider took from it in any 24 hours."""
        return most_in_any_24h([each for each in self.accepted() if each.user == box.address])


@contextmanager
def _claims_noted(settings: Settings) -> Iterator[None]:
    def run(statement: str) -> None:
        with psycopg.connect(str(settings.database_url), autocommit=True) as connection:
            connection.execute(statement)

    run(CLAIMS)
    try:
        yield
    finally:
        run(NO_CLAIMS)


@contextmanager
def town(settings: Settings, sockets: Path, folder: Path, times: Times = SCALED) -> Iterator[Town]:
    """Servers, client and nursery; no mailbox yet, and nobody runs. `sockets`: where PostgreSQL's own is."""
    with ExitStack() as stack:
        short = Path(tempfile.mkdtemp(prefix="otf-"))  # a socket's path has 108 bytes at most
        stack.callback(shutil.rmtree, short, ignore_errors=True)
        google_house, microsoft_house = GoogleHouse(Ledger(folder / "google.jsonl")), MicrosoftHouse(
            Ledger(folder / "microsoft.jsonl")
        )  # fmt: skip
        google_house.add_client(CLIENT, SECRET)
        microsoft_house.clients[CLIENT] = Client(CLIENT, SECRET)
        google = stack.enter_context(GoogleServer(google_house))
        microsoft = stack.enter_context(MicrosoftServer(microsoft_house))
        filed = stack.enter_context(SmtpServer(folder / "filed.jsonl"))
        blind = stack.enter_context(SmtpServer(folder / "blind.jsonl"))
        imap = stack.enter_context(ImapServer(filed, files_sent=True))
        referee = Referee(short / "aims")
        stack.callback(referee.close)
        proxy = stack.enter_context(PostgresProxy(short / "db", sockets / NAME))
        urls = {
            "gmail_url": google.url, "google_auth_url": google.auth_url, "google_token_url": google.token_url,
            "google_revoke_url": google.revoke_url, "graph_url": microsoft.graph_url, "entra_url": microsoft.entra_url,
        }  # fmt: skip
        database = str(settings.database_url).partition("?")[0] + f"?host={proxy.folder}"
        env = environment(settings, **times.scaled, **urls, crash_at=str(referee.folder), database_url=database)
        stack.enter_context(_claims_noted(settings))
        client = stack.enter_context(Outtray(settings.model_copy(update=urls), actor="faults"))
        client.apps.add("default")
        client.provider_apps.add("google", "google", client_id=CLIENT, secret=SECRET)
        client.provider_apps.add("microsoft", "microsoft", client_id=CLIENT, secret=SECRET)
        here = Town(settings, times, folder, google, microsoft, filed, blind, imap, referee, proxy, client, None)  # type: ignore[arg-type]
        here.nursery = Nursery(env, here.died)
        here.nursery.open()
        stack.callback(here.nursery.close)
        stack.callback(here.end)
        yield here


assert set(HOST_OF_ROUTE) == set(ROUTES)
