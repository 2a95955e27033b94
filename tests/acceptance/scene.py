"""A small town for tests with real processes: mailboxes on a sandbox server, a client, and a fleet to send their mail.

Time constants are scaled, as `SCALED` says; what took a mail and when is judged by the server's own ledger.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from acceptance.fleet import Fleet, Member, environment
from outtray import Message, Outtray
from outtray_sandbox.smtp import SmtpServer
from polling import eventually

SCALED = {
    "lease": "2s", "turn_length": "2s", "round_again": "2s", "sweep_every": "2s", "tend_every": "200ms",
    "handover_begin": "2s", "handover_answer": "4s", "prepare_limit": "8s", "command_timeout": "5s",
    "connect_timeout": "2s", "broker_patience": "1s", "backoff_base": "300ms", "backoff_cap": "1s", "park_cap": "1s",
    "breaker_probe": "300ms", "breaker_probe_cap": "1s",
    "sweep_every_without_redis": "1s", "spool_after": "500ms", "host_share": "1", "smtp_clear_loopback": "true",
}  # fmt: skip
LEASE, SWEEP = 2.0, 2.0


@dataclass
class Scene:
    """What a test sees and does."""

    client: Outtray
    server: SmtpServer
    fleet: Fleet
    boxes: list[UUID]
    database: Any

    def start(self, workers: int = 1, dispatchers: int = 1) -> list[Member]:
        """Start processes, and return the workers once all have said that they are alive."""
        self.fleet.start("dispatcher", dispatchers)
        begun = self.fleet.start("worker", workers)
        with self.database.connect() as db:
            self.fleet.wait_alive(db)
        return begun

    def enqueue(self, count: int, box: int | None = None, start: int = 0, **fields: Any) -> None:
        """Messages for all mailboxes in turn, or for one."""
        message = {"subject": "s", "text": "t"} | fields
        self.client.enqueue_many(
            Message(**{"to": f"p{n}@example.net", "mailbox": self.boxes[n % len(self.boxes) if box is None else box]}
                    | message)
            for n in range(start, start + count)
        )  # fmt: skip

    def rows(self, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with self.database.connect() as db:
            return db.execute(statement, parameters).fetchall()

    def one(self, statement: str, *parameters: Any) -> Any:
        return self.rows(statement, *parameters)[0][0]

    def states(self) -> Counter[str]:
        return Counter(dict(self.rows("SELECT state, count(*)::int FROM outtray.message GROUP BY state")))

    def taken(self) -> int:
        """How many mails the server took."""
        return len(self.server.ledger.read())

    def eventually_sent(self, count: int, within: float = 30.0) -> None:
        eventually(lambda: self.states()["sent"] >= count, within, f"{count} sent")

    def eventually_idle(self, within: float = 30.0) -> None:
        """Nothing is queued or handed over, and no lease is held."""
        live = "SELECT count(*) FROM outtray.message WHERE state IN ('queued', 'handing_over')"
        eventually(lambda: self.one(live) == 0 and not self.held(), within, "nothing is under way")

    def held(self) -> int:
        """Mailboxes whose lease somebody holds."""
        return int(self.one("SELECT count(*) FROM outtray.mailbox WHERE turn_until IS NOT NULL"))

    def judge(self) -> None:
        """Nothing was taken twice, and what is called sent was taken once."""
        assert not self.server.ledger.twice(), "never twice"
        taken = Counter(accepted.rfc_message_id for accepted in self.server.ledger.read())
        sent = {row[0] for row in self.rows("SELECT rfc_message_id FROM outtray.message WHERE state = 'sent'")}
        assert all(taken[rfc_message_id] == 1 for rfc_message_id in sent), "never lost"


@contextmanager
def scene(
    database: Any,
    folder: Path,
    mailboxes: int = 1,
    limits: dict[int, dict[str, Any]] | None = None,
    server: dict[str, Any] | None = None,
    **scaled: str,
) -> Iterator[Scene]:
    """A server, mailboxes (`limits` by their number), and a fleet of which nobody runs yet."""
    users = {f"box{n}@example.org": "pw" for n in range(mailboxes)}
    with (
        SmtpServer(folder / "accepted.jsonl", users=users, **(server or {})) as smtp,
        Outtray(database.settings, actor="test") as client,
        Fleet(environment(database.settings, **SCALED | scaled), folder) as fleet,
    ):
        client.apps.add("default")
        boxes = [
            client.mailboxes.add_smtp(
                user, host=smtp.host, port=smtp.port, tls="clear", password="pw",
                limits={"messages": None} | (limits or {}).get(n, {}),
            ).id
            for n, user in enumerate(users)
        ]  # fmt: skip
        yield Scene(client, smtp, fleet, boxes, database)
