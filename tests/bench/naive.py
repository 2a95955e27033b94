"""Loading and running the baseline's workers (`baseline.py` is what they run)."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from celery import Celery
from tests.bench.stand import Stand, wait_for

from outtray.wakes import redis_url
from outtray_schema.database import conninfo
from outtray_schema.ids import new_id


@dataclass(frozen=True, slots=True)
class Setting:
    """How the baseline's workers run: `processes` Celery workers with a pool each."""

    pool: str
    concurrency: int
    prefetch: int = 4
    processes: int = 1

    def __str__(self) -> str:
        several = f"{self.processes} × " if self.processes > 1 else ""
        return f"{several}{self.pool} {self.concurrency}, prefetch ×{self.prefetch}"


def load(stand: Stand, mailboxes: list[UUID], number: int, letter: bytes, mark: bytes) -> None:
    """Rows and tasks for `number` messages over the mailboxes in turn, workers still away. `mark` becomes the id."""
    from tests.bench import baseline

    stand.database.execute(baseline.SCHEMA)
    ids = [new_id() for _ in range(number)]
    with (
        stand.database.cursor() as cursor,
        cursor.copy("COPY baseline.message (id, mailbox_id, body) FROM STDIN") as copy,
    ):
        for n, message_id in enumerate(ids):
            copy.write_row((message_id, mailboxes[n % len(mailboxes)], letter.replace(mark, str(message_id).encode())))
    app = Celery("baseline", broker=stand.settings.redis_url, set_as_current=False)
    with app.connection_for_write() as connection:
        producer = app.amqp.Producer(connection)
        for message_id in ids:
            app.send_task("baseline.send", args=[str(message_id)], queue=baseline.QUEUE, producer=producer)


def start(stand: Stand, setting: Setting, **environment: str) -> None:
    """Start the workers of a setting."""
    given: dict[str, str] = {
        "BASELINE_BROKER": str(stand.settings.redis_url),
        "BASELINE_REDIS": redis_url(stand.settings),
        "BASELINE_DATABASE": conninfo(stand.settings),
        "BASELINE_PREFETCH": str(setting.prefetch),
    }
    for n in range(setting.processes):
        command = [
            "celery",
            "-A",
            "tests.bench.baseline",
            "worker",
            "--loglevel=WARNING",
            f"--hostname=naive-{n}@bench",
        ]
        pool = [f"--pool={setting.pool}", f"--concurrency={setting.concurrency}"]
        quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        stand.start("naive", [*command, *pool, *quiet], **given, **environment)


def wait_sent(stand: Stand, number: int, within: float) -> None:
    """Return once every message is recorded as sent."""

    def done() -> bool:
        stand.alive("naive")
        return int(stand.value("SELECT count(*) FROM baseline.message WHERE state = 'sent'")) >= number

    wait_for(f"{number} messages sent by the baseline", done, within, every=0.1)


def sent(stand: Stand, key: str) -> set[str]:
    """The keys of what is recorded as sent."""
    return {row[0] for row in stand.database.execute(f"SELECT {key} FROM baseline.message WHERE state = 'sent'")}
